//! Which packages wait on behalf of their callers, so that where a goroutine waits is told by the first function outside
//! of them; whose code a function is; and which function makes goroutines that come from no `go` statement. Input: the
//! name of a function, as Go has it.

/// Packages whose functions wait on behalf of their callers. The site of a wait is the first frame
/// outside of them.
const WAITING: [&str; 9] = ["runtime", "internal", "sync", "syscall", "time", "os", "net", "io", "iter"];

/// The path of a function's package, as the linker writes it.
fn package_of(function: &str) -> &str {
    // The package's path ends at the first dot behind the last slash of the path.
    let path_end = function.rfind('/').map_or(0, |i| i + 1);
    // A slash may be in a type argument or a receiver: those come behind a dot or bracket.
    let path_end = match function.find(['[', '(']) {
        Some(bracket) if bracket < path_end => function[..bracket].rfind('/').map_or(0, |i| i + 1),
        _ => path_end,
    };
    function[path_end..].find('.').map_or(function, |dot| &function[..path_end + dot])
}

/// Whether a function belongs to the packages that wait on behalf of their callers.
#[must_use]
pub fn waits_for_others(function: &str) -> bool {
    let package = package_of(function);
    let top = package.split('/').next().unwrap_or(package);
    match top {
        "runtime" | "internal" | "sync" => true,
        _ => WAITING.contains(&package),
    }
}

/// Whose code a function is, the program's own first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The main module's, or of a package `main`.
    Own,
    /// Another module's.
    Library,
    /// The standard library's.
    Standard,
    /// The runtime's, or of a package of the standard library that waits on behalf of its callers.
    Waiting,
}

/// Whose code a function is. `module`: path of the main module, where the binary names it.
#[must_use]
pub fn origin(function: &str, module: Option<&str>) -> Origin {
    let package = package_of(function);
    if function[package.len()..].starts_with("._Cfunc_") {
        // What cgo makes of a call of C waits on behalf of the caller.
        return Origin::Waiting;
    }
    if package == "main" || module.is_some_and(|module| is_within(package, module)) {
        return Origin::Own;
    }
    // Paths of modules begin with a host; those of the standard library have no dot there.
    match package.split_once('/') {
        Some((host, _)) if host.contains('.') => Origin::Library,
        _ if waits_for_others(function) => Origin::Waiting,
        _ => Origin::Standard,
    }
}

/// Whether a package is of a module.
fn is_within(package: &str, module: &str) -> bool {
    let is = |package: &str| match package.strip_prefix(module) {
        Some(rest) => !module.is_empty() && (rest.is_empty() || rest.starts_with('/')),
        None => false,
    };
    // The linker writes dots of the last element so.
    is(package) || (package.contains("%2e") && is(&package.replace("%2e", ".")))
}

/// Whether goroutines are made in a function by a `go` statement. The main goroutine is made by assembly, through the
/// wrapper that `runtime.newproc` has for it: it comes from no `go` statement, and Go's traceback names none.
#[must_use]
pub fn has_go_statement(function: &str) -> bool {
    function != "runtime.newproc"
}

#[cfg(test)]
mod tests {
    use super::{Origin, origin, waits_for_others};

    #[test]
    fn waiting_packages_are_told_from_the_users_own() {
        for name in [
            "runtime.gopark",
            "runtime/internal/atomic.Load",
            "internal/poll.(*FD).Read",
            "sync.(*Mutex).Lock",
            "sync/atomic.(*Value).Load",
            "time.Sleep",
            "net.(*conn).Read",
            "os.(*File).Read",
            "iter.Pull[...].func1",
        ] {
            assert!(waits_for_others(name), "{name}");
        }
        for name in [
            "main.worker",
            "net/http.(*conn).serve",
            "example.com/runtime/x.F",
            "timex.Sleep",
            "main.f[go.shape.*sync.Mutex]",
            "main.(*T[a/b.C]).m",
            "golang.org/x/sync/errgroup.(*Group).Wait",
            "time2.x",
        ] {
            assert!(!waits_for_others(name), "{name}");
        }
    }

    #[test]
    fn own_code_is_the_main_modules() {
        let module = Some("example.com/shop");
        for (function, expected) in [
            ("main.serve", Origin::Own),
            ("main.(*T[a/b.C]).m", Origin::Own),
            ("example.com/shop.Open", Origin::Own),
            ("example.com/shop/store.(*DB).Get.func1", Origin::Own),
            ("example.com/shopping.F", Origin::Library),
            ("golang.org/x/sync/errgroup.(*Group).Wait", Origin::Library),
            ("gopkg.in/yaml%2ev3.Unmarshal", Origin::Library),
            ("vendor/golang.org/x/net/http2/hpack.F", Origin::Standard),
            ("net/http.(*conn).serve", Origin::Standard),
            ("database/sql.(*DB).conn", Origin::Standard),
            ("net.(*conn).Read", Origin::Waiting),
            ("internal/poll.(*FD).Read", Origin::Waiting),
            ("runtime.gopark", Origin::Waiting),
            ("main._Cfunc_nap", Origin::Waiting),
            ("example.com/shop/c._Cfunc_nap", Origin::Waiting),
            ("mainline.F", Origin::Standard),
            ("", Origin::Standard),
        ] {
            assert_eq!(origin(function, module), expected, "{function}");
        }
        // A path without a host, and one whose last element has a dot.
        assert_eq!(origin("shop/store.F", Some("shop")), Origin::Own);
        assert_eq!(origin("gopkg.in/shop%2ev2.F", Some("gopkg.in/shop.v2")), Origin::Own);
        // What names no module is told by its paths.
        assert_eq!(origin("example.com/shop.Open", None), Origin::Library);
        assert_eq!(origin("main.serve", None), Origin::Own);
        assert_eq!(origin("net/http.Get", Some("")), Origin::Standard);
    }
}
