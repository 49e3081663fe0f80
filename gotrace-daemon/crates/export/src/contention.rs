//! `block` profiles as `net/http/pprof` has them, made of waits that gotrace saw: contentions and delay by
//! stack, for `go tool pprof` or as text.
//!
//! Input: [`Waits`], and those of before where the difference is wanted. Invariants: the totals of a wait reason are those
//! of all its waits that were seen. Those without a stack of their own (too short to be sent, or beyond the stacks that
//! are kept) are one row a reason, `[no stack: chan receive]`. What differs from Go's profiles is said in comments of the
//! profile ([`Contention::notes`]), and so is what was not seen.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    sync::Arc,
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::{
    profile::{self, Line, Mapping, Profile, Sample, Tables},
    text::duration,
};
use gotrace_go::is_system_reason;
use gotrace_model::{Location, printable::printable};

/// How many waits, and how long they took together.
pub type Sum = (u64, u64);
/// The calls that return to an address, innermost first.
pub type NameAddress = Box<dyn Fn(u64) -> Vec<Arc<Location>> + Send>;

/// Waits with one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitsAt {
    /// Go's own wait reason.
    pub reason: Arc<str>,
    /// Return addresses, innermost first.
    pub frames: Box<[u64]>,
    /// Those waits.
    pub sum: Sum,
}

/// Waits of a process since tracing began.
pub struct Waits {
    /// Its pid.
    pub pid: u32,
    /// Since when, Unix epoch.
    pub began_unix_nano: u64,
    /// Until when.
    pub now_unix_nano: u64,
    /// For how long of that waits were seen.
    pub seen_ns: u64,
    /// Waits of at least the threshold by reason and stack, as far as there was room.
    pub stacks: Vec<WaitsAt>,
    /// All waits by reason, these and those without a stack.
    pub by_reason: BTreeMap<Arc<str>, Sum>,
    /// How many are without a stack as there was no room for it.
    pub without_room: u64,
    /// How many were lost on their way: they are nowhere else.
    pub lost: u64,
    /// The shortest wait that is sent with its stack.
    pub min_wait_ns: Option<u64>,
    /// Names addresses.
    pub names: NameAddress,
}

impl std::fmt::Debug for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waits").field("pid", &self.pid).field("stacks", &self.stacks).finish_non_exhaustive()
    }
}

impl Waits {
    /// What came since then. Of what was counted in another way then there is nothing.
    pub fn subtract(&mut self, before: &Self) {
        let less = |now: &mut Sum, then: &Sum| {
            *now = (now.0.saturating_sub(then.0), now.1.saturating_sub(then.1));
        };
        let known: HashMap<_, _, FixedState> =
            before.stacks.iter().map(|at| ((&at.reason, &at.frames), at.sum)).collect();
        for at in &mut self.stacks {
            if let Some(then) = known.get(&(&at.reason, &at.frames)) {
                less(&mut at.sum, then);
            }
        }
        for (reason, sum) in &mut self.by_reason {
            if let Some(then) = before.by_reason.get(reason) {
                less(sum, then);
            }
        }
        self.began_unix_nano = before.now_unix_nano;
        self.seen_ns = self.seen_ns.saturating_sub(before.seen_ns);
        self.without_room = self.without_room.saturating_sub(before.without_room);
        self.lost = self.lost.saturating_sub(before.lost);
    }
}

/// Which profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Waits that Go counts as blocking; `all`: with sleep and network.
    Block {
        /// See there.
        all: bool,
    },
}

impl Kind {
    /// Go's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block { .. } => "block",
        }
    }

    /// Whether waits of this reason, at this function, are part of it.
    fn has(self, reason: &str, function: Option<&str>) -> bool {
        let kind = reason.split_once(" (").map_or(reason, |(kind, _)| kind);
        let of_mutex = kind.starts_with("sync.Mutex.") || kind.starts_with("sync.RWMutex.");
        match self {
            // Where nothing but the runtime waits, it is for itself.
            Self::Block { all: true } => {
                !is_system_reason(reason) && !reason.starts_with("GC ") && !function.is_some_and(is_inside)
            }
            Self::Block { all: false } => {
                let others = [
                    "chan receive",
                    "chan send",
                    "select",
                    "semacquire",
                    "sync.WaitGroup.Wait",
                    "sync.Cond.Wait",
                ];
                of_mutex || others.contains(&kind)
            }
        }
    }
}

/// The call where Go's profiles begin: what is further in waits on behalf of it.
fn is_inside(function: &str) -> bool {
    let of_runtime = function.strip_prefix("runtime.").is_some_and(|name| {
        !matches!(
            name,
            "chanrecv1" | "chanrecv2" | "chansend1" | "selectgo" | "selectnbrecv" | "selectnbsend"
        )
    });
    of_runtime
        || function.starts_with("internal/sync.")
        || function.starts_with("sync.runtime_")
        || function.starts_with("internal/poll.runtime_")
        || function.ends_with(").lockSlow")
}

/// A stack as Go's profiles have it, and the reason and sum of its waits.
struct Row<'a> {
    reason: &'a Arc<str>,
    /// Addresses with their calls, innermost first; none where the stack is not known.
    calls: Vec<(u64, Vec<Arc<Location>>)>,
    sum: Sum,
}

/// A profile.
pub struct Contention<'a> {
    kind: Kind,
    waits: &'a Waits,
    rows: Vec<Row<'a>>,
    cut_off: u64,
}

impl std::fmt::Debug for Contention<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contention").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl<'a> Contention<'a> {
    /// What of these waits is part of it, the longest first.
    #[must_use]
    pub fn new(kind: Kind, waits: &'a Waits) -> Self {
        let mut rest: BTreeMap<&Arc<str>, Sum> = waits.by_reason.iter().map(|(r, sum)| (r, *sum)).collect();
        let mut named: HashMap<u64, Vec<Arc<Location>>, FixedState> = HashMap::default();
        let (mut rows, mut cut_off) = (Vec::new(), 0);
        for at in &waits.stacks {
            if let Some(rest) = rest.get_mut(&at.reason) {
                *rest = (rest.0.saturating_sub(at.sum.0), rest.1.saturating_sub(at.sum.1));
            }
            if at.sum.0 == 0 {
                continue;
            }
            let mut calls: Vec<_> = at
                .frames
                .iter()
                .map(|address| {
                    (*address, named.entry(*address).or_insert_with(|| (waits.names)(*address)).clone())
                })
                .collect();
            let is_end = |(_, calls): &(u64, Vec<Arc<Location>>)| {
                calls.first().is_some_and(|call| &*call.function == "runtime.goexit")
            };
            let complete = calls.pop_if(|last| is_end(last)).is_some();
            outside(&mut calls);
            let function = calls.first().and_then(|(_, calls)| calls.first()).map(|call| &*call.function);
            if kind.has(&at.reason, function) {
                cut_off += u64::from(!complete);
                rows.push(Row { reason: &at.reason, calls, sum: at.sum });
            }
        }
        for (reason, sum) in rest.into_iter().filter(|(_, sum)| sum.0 > 0) {
            if kind.has(reason, None) {
                rows.push(Row { reason, calls: Vec::new(), sum });
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.sum.1));
        Self { kind, waits, rows, cut_off }
    }

    /// What was not seen of the process; `None` where nothing is missing.
    #[must_use]
    pub fn incomplete(&self) -> Option<String> {
        let Waits { seen_ns, began_unix_nano, now_unix_nano, lost, .. } = self.waits;
        let passed = now_unix_nano.saturating_sub(*began_unix_nano);
        let unseen = passed.saturating_sub(*seen_ns);
        let mut missing = Vec::new();
        // A hundredth is what probes take to be put in place.
        if unseen > passed / 100 {
            let (unseen, passed) = (duration(Some(unseen)), duration(Some(passed)));
            missing.push(format!("the level was below waits for {unseen} of {passed}"));
        }
        if *lost > 0 {
            missing.push(format!("waits lost: {lost}"));
        }
        if self.cut_off > 0 {
            missing.push(format!("stacks cut off at trace.stack_depth: {}", self.cut_off));
        }
        (!missing.is_empty()).then(|| missing.join(", "))
    }

    /// What is to be known of it beside its figures.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let Waits { pid, began_unix_nano, now_unix_nano, without_room, min_wait_ns, .. } = self.waits;
        let passed = duration(Some(now_unix_nano.saturating_sub(*began_unix_nano)));
        let mut notes = vec![format!(
            "{} profile of process {pid}, {passed}; a delay is from the park to the next run",
            self.kind.name()
        )];
        if self.rows.iter().any(|row| row.calls.is_empty()) {
            let least = min_wait_ns.map_or_else(|| "the threshold".into(), |ns| duration(Some(ns)));
            let mut note = format!("no stack: waits shorter than {least} (trace.min_wait)");
            if *without_room > 0 {
                let _ = write!(note, ", and {without_room} beyond the stacks that are kept");
            }
            notes.push(note);
        }
        notes.extend(self.incomplete().map(|what| format!("incomplete: {what}")));
        notes
    }

    /// Writes it for `go tool pprof`; `executable`: what its stacks are of.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, out: &mut dyn Write, executable: &str) -> io::Result<()> {
        let mut tables = Tables::default();
        let contentions = tables.value_type("contentions", "count");
        let delay = tables.value_type("delay", "nanoseconds");
        let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let mapping = Mapping {
            id: 1,
            filename: tables.string(executable),
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
            ..Mapping::default()
        };
        let mut locations: Vec<profile::Location> = Vec::new();
        let mut ids: HashMap<(u64, usize, Option<&str>), u64, FixedState> = HashMap::default();
        let mut sample = Vec::new();
        for Row { reason, calls, sum } in &self.rows {
            let mut location = |address: u64, line: Vec<Line>, of: Option<&'a str>| {
                let id = locations.len() as u64 + 1;
                *ids.entry((address, line.len(), of)).or_insert_with(|| {
                    locations.push(profile::Location { id, mapping_id: 1, address, line });
                    id
                })
            };
            let mut location_id = Vec::new();
            for (address, calls) in calls {
                let line = calls.iter().map(|call| Line {
                    function_id: tables.function(&call.function, &call.file),
                    line: i64::from(call.line),
                });
                location_id.push(location(address.saturating_sub(1), line.collect(), None));
            }
            if calls.is_empty() {
                let function_id = tables.function(&without_stack(reason), "");
                location_id.push(location(0, vec![Line { function_id, line: 0 }], Some(reason)));
            }
            let label = vec![tables.label("wait_reason", reason)];
            sample.push(Sample { location_id, value: vec![int(sum.0), int(sum.1)], label });
        }
        let Waits { began_unix_nano, now_unix_nano, .. } = self.waits;
        let profile = Profile {
            sample_type: vec![contentions, delay],
            sample,
            mapping: vec![mapping],
            location: locations,
            time_nanos: int(*now_unix_nano),
            duration_nanos: int(now_unix_nano.saturating_sub(*began_unix_nano)),
            period_type: Some(contentions),
            period: 1,
            comment: self.notes().iter().map(|note| tables.string(note)).collect(),
            function: tables.functions,
            string_table: tables.strings,
        };
        profile::write(out, &profile)
    }

    /// Writes it as text, as Go does with `?debug=1`; a cycle is a nanosecond.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "--- contention:\ncycles/second=1000000000")?;
        for Row { reason, calls, sum: (count, ns) } in &self.rows {
            write!(out, "{ns} {count} @")?;
            calls.iter().try_for_each(|(address, _)| write!(out, " {address:#x}"))?;
            writeln!(out)?;
            if calls.is_empty() {
                writeln!(out, "#\t{}", without_stack(reason))?;
            }
            for (address, calls) in calls {
                for Location { function, file, line } in calls.iter().map(|call| &**call) {
                    let (function, file) = (printable(function), printable(file));
                    writeln!(out, "#\t{address:#x}\t{function}\t{file}:{line}")?;
                }
            }
            writeln!(out)?;
        }
        self.notes().iter().try_for_each(|note| writeln!(out, "# gotrace: {note}"))
    }
}

fn without_stack(reason: &str) -> String {
    format!("[no stack: {reason}]")
}

/// Leaves away the innermost calls, which wait on behalf of the others; where all do, none.
fn outside(calls: &mut Vec<(u64, Vec<Arc<Location>>)>) {
    let inside = |call: &Arc<Location>| is_inside(&call.function);
    let is_outside = |(_, calls): &(u64, Vec<Arc<Location>>)| !calls.iter().all(inside);
    let Some(first) = calls.iter().position(is_outside) else { return };
    calls.drain(..first);
    if let Some((_, calls)) = calls.first_mut() {
        let inlined = calls.iter().take_while(|call| inside(call)).count();
        calls.drain(..inlined);
    }
}

#[cfg(test)]
#[path = "contention_tests.rs"]
pub(crate) mod testing;
