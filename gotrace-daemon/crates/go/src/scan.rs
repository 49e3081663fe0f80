//! One walk over all functions of the function table: where the functions to probe are, into which
//! others the compiler inlined them (profile-guided builds do), and how much of the tables is in use.

use std::collections::HashMap;

use super::{Error, bytes::cstr, moduledata::Found, names, pclntab::View};

/// Functions that are probed, or whose calls are, or that tell where the runtime's variables are.
pub(super) const WANTED: [&str; 32] = [
    "runtime.newproc.func1",
    "runtime.newproc1",
    "runtime.runqput",
    "runtime.casgstatus",
    "runtime.newcoro.func1",
    "runtime.gdestroy",
    "runtime.goexit0",
    "runtime.park_m",
    "runtime.execute",
    "runtime.ready",
    "runtime.netpollready",
    "runtime.injectglist",
    "runtime.goschedImpl",
    "runtime.gosched_m",
    "runtime.gopreempt_m",
    "runtime.goschedguarded_m",
    "runtime.goyield_m",
    "runtime.preemptPark",
    "runtime.coroswitch_m",
    "runtime.entersyscall",
    "runtime.entersyscallblock",
    "runtime.exitsyscall",
    "runtime.stopTheWorldWithSema",
    "runtime.startTheWorldWithSema",
    "runtime.wakep",
    "runtime.gcAssistAlloc1",
    "runtime.nanotime1",
    "runtime.nanotime",
    "runtime.forEachGRace",
    "runtime.atomicAllG",
    "runtime.semacquire1",
    "runtime.semrelease1",
];

/// The closure in which `runtime.goready` calls `runtime.ready`; its full name depends on the version
/// and on where `goready` was inlined.
const READY_CLOSURE: &[u8] = b"goready.func1";
/// Longer names are not those of the functions looked for.
const MAX_NAME: usize = 256;
/// A program has a few.
const MAX_FOUND: usize = 1000;

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Addresses by name.
    pub addresses: HashMap<&'static str, u64>,
    /// Names and addresses of the closures that call `runtime.ready`.
    pub ready_closures: Vec<(String, u64)>,
    /// (function that was inlined, function that holds the copy).
    pub inlined: Vec<(&'static str, String)>,
    /// Where the used part of the function table ends.
    pub table_end: usize,
    /// Where the used part of the tables of inlined calls and of pointers on the stack ends.
    pub inline_end: usize,
    /// C code is linked in.
    pub cgo: bool,
    /// The race detector is linked in.
    pub race: bool,
}

impl Scan {
    /// Walks over all functions, for those of the runtime.
    pub fn new(found: &Found<'_>) -> Result<Self, Error> {
        Self::of(found, &WANTED, &["runtime.", "_."])
    }

    /// Walks over all functions, for some whose names begin with one of these.
    pub fn of(found: &Found<'_>, wanted: &[&'static str], prefixes: &[&str]) -> Result<Self, Error> {
        let view = found.view;
        let wanted: HashMap<&[u8], &'static str> = wanted.iter().map(|&n| (n.as_bytes(), n)).collect();
        let watched: HashMap<u32, &'static str> =
            view.header.names(found.table).filter_map(|(at, name)| Some((at, *wanted.get(name)?))).collect();
        let mut this = Self::default();
        // Tables share their parts, but not without measure.
        let mut work = view.data.len().saturating_mul(8).saturating_add(1 << 20);
        for n in 0..view.header.functions {
            let malformed = Error::Malformed {
                what: "a function's record is outside of the function table",
                at: n as u64,
            };
            let f = view.func(n).ok_or(malformed)?;
            this.table_end = this.table_end.max(f.record_end());
            let address = found.text.wrapping_add(u64::from(f.entry));
            let name = view.header.name_start(found.table, &f);
            // Assembly of runtime/cgo through which C calls Go.
            this.cgo |= name.starts_with(b"crosscall2\0");
            if prefixes.iter().any(|p| name.starts_with(p.as_bytes())) {
                this.note(name, address, &wanted);
            }
            if let Some(end) = view.stack_maps_end(&f) {
                this.inline_end = this.inline_end.max(end);
            }
            let Some((begin, end, steps)) = view.inline_extent(&f) else { continue };
            work = work
                .checked_sub(steps + (end - begin) / 16)
                .ok_or(Error::Malformed { what: "functions share tables beyond measure", at: n as u64 })?;
            if end > view.inline.len() {
                continue;
            }
            this.inline_end = this.inline_end.max(end);
            for inlined in view.inlined_names((begin, end)) {
                if let Some(callee) = watched.get(&inlined) {
                    this.note_inlined(callee, &view, &f);
                }
            }
        }
        let functab_end = view.header.functab + 8 * view.header.functions + 4;
        this.table_end = this.table_end.max(functab_end).min(view.data.len());
        Ok(this)
    }

    fn note(&mut self, name: &[u8], address: u64, wanted: &HashMap<&[u8], &'static str>) {
        let Some(name) = name.get(..MAX_NAME.min(name.len())).and_then(|n| cstr(n, 0)) else { return };
        if let Some(known) = wanted.get(name) {
            // A wrapper for assembly's calling convention has the same name and comes later.
            self.addresses.entry(known).or_insert(address);
        }
        self.race |= name == b"runtime.racecall";
        if name.ends_with(READY_CLOSURE) && self.ready_closures.len() < MAX_FOUND {
            self.ready_closures.push((names::text(name), address));
        }
    }

    fn note_inlined(&mut self, callee: &'static str, view: &View<'_>, f: &super::pclntab::Func) {
        let holder = names::text(&view.name(f));
        let known = self.inlined.iter().any(|(c, h)| *c == callee && *h == holder);
        if !known && self.inlined.len() < MAX_FOUND {
            self.inlined.push((callee, holder));
        }
    }

    /// The functions that hold an inlined copy of a function.
    pub fn holders(&self, callee: &str) -> Vec<&str> {
        self.inlined.iter().filter(|(c, _)| *c == callee).map(|(_, h)| h.as_str()).collect()
    }
}
