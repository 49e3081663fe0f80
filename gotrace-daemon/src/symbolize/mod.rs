//! Addresses of a process to places in its source, cached: a program has few places, however many
//! goroutines pass through them.
//!
//! Input: a parsed [`Binary`] and addresses as the kernel side saw them. Output: shared [`Location`]s.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::{
    gobin::{Binary, Frame},
    sink::model::Location,
};

/// Packages whose functions wait on behalf of their callers. The site of a wait is the first frame
/// outside of them.
const WAITING: [&str; 9] = ["runtime", "internal", "sync", "syscall", "time", "os", "net", "io", "iter"];

/// Names the addresses of one program in one process.
#[derive(Debug)]
pub struct Symbolizer {
    binary: Arc<Binary>,
    file: Option<Arc<File>>,
    bias: u64,
    entries: HashMap<u64, Arc<Location>, FixedState>,
    calls: HashMap<u64, Arc<Location>, FixedState>,
    sites: HashMap<u64, Option<Arc<Location>>, FixedState>,
}

impl Symbolizer {
    /// `file`: the executable, to look into the wrappers that the compiler makes. `bias`: mapped address
    /// less link-time address; 0 unless position-independent.
    #[must_use]
    pub fn new(binary: Arc<Binary>, file: Option<Arc<File>>, bias: u64) -> Self {
        Self {
            binary,
            file,
            bias,
            entries: HashMap::default(),
            calls: HashMap::default(),
            sites: HashMap::default(),
        }
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// The program, to be shared.
    #[must_use]
    pub fn shared_binary(&self) -> &Arc<Binary> {
        &self.binary
    }

    /// Mapped address less link-time address.
    #[must_use]
    pub fn bias(&self) -> u64 {
        self.bias
    }

    /// Where the program is mapped became known.
    pub fn set_bias(&mut self, bias: u64) {
        if bias != self.bias {
            *self = Self::new(Arc::clone(&self.binary), self.file.take(), bias);
        }
    }

    fn link_time(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }

    /// Whether a function begins at this address.
    #[must_use]
    pub fn is_function_entry(&self, address: u64) -> bool {
        let address = self.link_time(address);
        self.binary.function_at(address).is_some_and(|f| f.entry == address)
    }

    /// The function that a goroutine was started with. The wrapper that the compiler makes of
    /// `go f(x)` is seen through.
    pub fn entry(&mut self, address: u64) -> Arc<Location> {
        if let Some(location) = self.entries.get(&address) {
            return Arc::clone(location);
        }
        let file = self.file.as_deref();
        let frame = self.binary.goroutine_function(self.link_time(address), &|offset, length| {
            let mut code = vec![0; length];
            file?.read_exact_at(&mut code, offset).ok()?;
            Some(code)
        });
        let location = Arc::new(frame.map_or_else(|| unknown(address), location));
        self.entries.insert(address, Arc::clone(&location));
        location
    }

    /// The place of the call that returns to this address, inlined functions included.
    pub fn call(&mut self, return_address: u64) -> Arc<Location> {
        if let Some(location) = self.calls.get(&return_address) {
            return Arc::clone(location);
        }
        let frame = self.binary.lookup(self.link_time(return_address), true).into_iter().next();
        let location = Arc::new(frame.map_or_else(|| unknown(return_address), location));
        self.calls.insert(return_address, Arc::clone(&location));
        location
    }

    /// The first place of a stack (return addresses, innermost first) outside the runtime and the
    /// standard library's waiting primitives; `None` when there is none.
    pub fn wait_site(&mut self, frames: &[u64]) -> Option<Arc<Location>> {
        frames.iter().find_map(|address| {
            if let Some(site) = self.sites.get(address) {
                return site.clone();
            }
            let frames = self.binary.lookup(self.link_time(*address), true);
            let site = frames.into_iter().find(|f| !waits_for_others(&f.function) && !f.wrapper);
            let site = site.map(|f| Arc::new(location(f)));
            self.sites.insert(*address, site.clone());
            site
        })
    }
}

fn location(frame: Frame) -> Location {
    Location { function: frame.function.into(), file: frame.file.into(), line: frame.line }
}

fn unknown(address: u64) -> Location {
    let function =
        if address == 0 { Location::BORN_BEFORE.into() } else { format!("? ({address:#x})").into() };
    Location { function, file: "".into(), line: 0 }
}

/// Whether a function belongs to the packages that wait on behalf of their callers.
fn waits_for_others(function: &str) -> bool {
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
