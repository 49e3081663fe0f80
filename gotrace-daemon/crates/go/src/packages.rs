//! Which packages wait on behalf of their callers, so that where a goroutine waits is told by the first function outside
//! of them; and which function makes goroutines that come from no `go` statement. Input: the name of a function, as Go has it.

/// Packages whose functions wait on behalf of their callers. The site of a wait is the first frame
/// outside of them.
const WAITING: [&str; 9] = ["runtime", "internal", "sync", "syscall", "time", "os", "net", "io", "iter"];

/// Whether a function belongs to the packages that wait on behalf of their callers.
#[must_use]
pub fn waits_for_others(function: &str) -> bool {
    // The package's path ends at the first dot behind the last slash of the path.
    let path_end = function.rfind('/').map_or(0, |i| i + 1);
    // A slash may be in a type argument or a receiver: those come behind a dot or bracket.
    let path_end = match function.find(['[', '(']) {
        Some(bracket) if bracket < path_end => function[..bracket].rfind('/').map_or(0, |i| i + 1),
        _ => path_end,
    };
    let package = function[path_end..].find('.').map_or(function, |dot| &function[..path_end + dot]);
    let top = package.split('/').next().unwrap_or(package);
    match top {
        "runtime" | "internal" | "sync" => true,
        _ => WAITING.contains(&package),
    }
}

/// Whether goroutines are made in a function by a `go` statement. The main goroutine is made by assembly, through the
/// wrapper that `runtime.newproc` has for it: it comes from no `go` statement, and Go's traceback names none.
#[must_use]
pub fn has_go_statement(function: &str) -> bool {
    function != "runtime.newproc"
}

#[cfg(test)]
mod tests {
    use super::waits_for_others;

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
}
