//! What a tracee knows of its collector: cycles, pauses, assists, and other stops of the world.
//!
//! Input: [`Pause`]s and [`Assist`]s, in the order of their ends, and what names addresses. Output: the model's
//! [`Collector`]. Pure, and bounded: what finds no room is summed up.

use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::Histogram;
use gotrace_model::{Assists, Collector, Cycle, Location, STOP_REASONS, TRIGGERS, WorldStop};
use gotrace_process::Clock;
use serde::{Deserialize, Serialize};

use super::{Names, Symbols, serial};
use crate::{
    decode::{Assist, Pause},
    table::SiteKey,
};

/// Cycles of an interval that are told one by one.
const MAX_RECENT: usize = 64;
/// Stops of an interval that are told one by one.
const MAX_LONGEST: usize = 8;
/// Creation sites whose assists are counted apart.
const MAX_SITES: usize = 256;
/// Creation sites that are told of a cycle.
const MAX_TOLD: usize = 3;
/// What stands for creation sites that found no room.
const OTHERS: SiteKey = SiteKey { created_pc: 0, entry_pc: 0 };

const MARK_TERMINATION: u8 = 1;
const SWEEP_TERMINATION: u8 = 2;

/// By the functions on the stack of who stops the world: a reason that the runtime does not tell (before Go 1.21).
const REASONS_BY_FUNCTION: [(&str, u8); 10] = [
    ("runtime.gcStart", SWEEP_TERMINATION),
    ("runtime.gcMarkDone", MARK_TERMINATION),
    ("runtime.gcMarkTermination", MARK_TERMINATION),
    ("runtime.ReadMemStats", 7),
    ("runtime.GOMAXPROCS", 9),
    ("runtime.Stack", 6),
    ("runtime.goroutineProfileWithLabels", 4),
    ("runtime/debug.WriteHeapDump", 3),
    ("runtime.StartTrace", 10),
    ("runtime.StopTrace", 11),
];

/// What is known of a collector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CollectorState {
    /// Cycles that ended, by the number of what began them.
    cycles: [u64; TRIGGERS.len()],
    #[serde(with = "serial::histogram")]
    marking: Histogram,
    #[serde(with = "serial::histogram")]
    pauses: Histogram,
    #[serde(with = "serial::rows")]
    stops: Vec<(u8, Histogram)>,
    #[serde(with = "serial::histogram")]
    assists: Histogram,
    /// How many and how long.
    assists_by: BTreeMap<SiteKey, (u64, u64)>,
    open: Option<Open>,
    /// Whether its pauses have all been seen since a cycle began or ended.
    whole: bool,
    /// Pauses that began earlier are another time's: their end was not seen then.
    since_ns: u64,
    /// The cycle that ended last, which goes on where marking turns out not to be done.
    last: Option<Ended>,
    /// Those before, of this interval.
    recent: Vec<Ended>,
    left_out: u64,
    longest: Vec<Stopped>,
    longest_left_out: u64,
}

/// A cycle that marks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    trigger: u8,
    called_from: Option<Arc<Location>>,
    /// When marking began.
    marks_ns: u64,
    sweep_pause_ns: u64,
    assists: BTreeMap<SiteKey, u64>,
}

/// A cycle that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ended {
    trigger: u8,
    called_from: Option<Arc<Location>>,
    /// When marking began and the pause with which the cycle began, where these were seen.
    began: Option<(u64, u64)>,
    end_ns: u64,
    mark_ns: Option<u64>,
    mark_pause_ns: u64,
    assists: BTreeMap<SiteKey, u64>,
}

/// A stop that was not the collector's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stopped {
    reason: u8,
    start_ns: u64,
    duration_ns: u64,
    goid: u64,
    function: Option<Arc<Location>>,
    called_from: Option<Arc<Location>>,
}

impl CollectorState {
    /// The world was stopped and runs again.
    pub(super) fn pause(&mut self, pause: &Pause<'_>, symbols: &mut Symbols, names: &dyn Names) {
        if pause.start_ns < self.since_ns {
            return;
        }
        let known = pause.frames.iter().filter_map(|pc| Some((pc, symbols.known_call(pc, names)?)));
        let (frames, stack): (Vec<u64>, Vec<Arc<Location>>) = known.unzip();
        let has = |function: &str| stack.iter().any(|l| is_in(&l.function, function));
        let reason = match pause.reason {
            0 => REASONS_BY_FUNCTION
                .iter()
                .find(|(function, _)| has(function))
                .map_or(0, |(_, reason)| *reason),
            reason if usize::from(reason) < STOP_REASONS.len() => reason,
            _ => 0,
        };
        let woken_ns = pause.woken_ns.saturating_sub(pause.start_ns);
        match reason {
            SWEEP_TERMINATION => {
                self.pauses.add(woken_ns);
                let trigger = match () {
                    () if has("runtime.GC") => 3,
                    () if has("runtime.forcegchelper") => 2,
                    () if has("runtime.gcStart") => 1,
                    () => 0,
                };
                let called_from = (trigger == 3).then(|| symbols.wait_site(&frames, names)).flatten();
                self.whole = true;
                self.open = Some(Open {
                    trigger,
                    called_from,
                    marks_ns: pause.woken_ns,
                    sweep_pause_ns: woken_ns,
                    assists: BTreeMap::new(),
                });
            }
            MARK_TERMINATION => {
                let pause_ns = pause.restart_ns.saturating_sub(pause.start_ns);
                self.pauses.add(pause_ns);
                self.marked(pause, pause_ns);
            }
            _ => {
                match self.stops.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, histogram)) => histogram.add(woken_ns),
                    None => {
                        let mut histogram = Histogram::default();
                        histogram.add(woken_ns);
                        self.stops.push((reason, histogram));
                    }
                }
                let at = self.longest.partition_point(|s| s.duration_ns >= woken_ns);
                if at >= MAX_LONGEST {
                    self.longest_left_out += 1;
                    return;
                }
                let function = stack.iter().take_while(|l| is_of_runtime(&l.function)).last().cloned();
                let called_from = symbols.wait_site(&frames, names);
                let (start_ns, goid) = (pause.start_ns, pause.goid);
                let stopped =
                    Stopped { reason, start_ns, duration_ns: woken_ns, goid, function, called_from };
                self.longest.insert(at, stopped);
                if self.longest.len() > MAX_LONGEST {
                    self.longest.pop();
                    self.longest_left_out += 1;
                }
            }
        }
    }

    /// Marking has ended, or the last cycle's had not.
    fn marked(&mut self, pause: &Pause<'_>, pause_ns: u64) {
        let Some(open) = self.open.take() else {
            if let Some(last) = &mut self.last {
                // More was found to mark while the world stood still (gcMarkDone): it is the same cycle.
                last.mark_pause_ns += pause_ns;
                last.mark_ns = last.began.map(|(marks_ns, _)| pause.start_ns.saturating_sub(marks_ns));
                last.end_ns = pause.restart_ns;
                return;
            }
            if std::mem::replace(&mut self.whole, true) {
                // The same, of a cycle that was told already.
                return;
            }
            self.last = Some(Ended {
                trigger: 0,
                called_from: None,
                began: None,
                end_ns: pause.restart_ns,
                mark_ns: None,
                mark_pause_ns: pause_ns,
                assists: BTreeMap::new(),
            });
            return;
        };
        self.close();
        let Open { trigger, called_from, marks_ns, sweep_pause_ns, assists } = open;
        self.last = Some(Ended {
            trigger,
            called_from,
            began: Some((marks_ns, sweep_pause_ns)),
            end_ns: pause.restart_ns,
            mark_ns: Some(pause.start_ns.saturating_sub(marks_ns)),
            mark_pause_ns: pause_ns,
            assists,
        });
    }

    /// Nothing is seen of it from now on, for a while.
    pub(super) fn interrupt(&mut self) {
        self.close();
        self.open = None;
        self.whole = false;
    }

    /// It is seen again.
    pub(super) fn resume(&mut self, now_ns: u64) {
        self.since_ns = now_ns;
    }

    /// The last cycle goes on no more.
    fn close(&mut self) {
        let Some(last) = self.last.take() else { return };
        if let Some(count) = self.cycles.get_mut(usize::from(last.trigger)) {
            *count += 1;
        }
        if let Some(mark_ns) = last.mark_ns {
            self.marking.add(mark_ns);
        }
        if self.recent.len() < MAX_RECENT {
            self.recent.push(last);
        } else {
            self.left_out += 1;
        }
    }

    /// A goroutine of this creation site has done some of the work.
    pub(super) fn assist(&mut self, assist: &Assist, site: SiteKey) {
        let duration_ns = assist.end_ns.saturating_sub(assist.start_ns);
        self.assists.add(duration_ns);
        let has_room = self.assists_by.len() < MAX_SITES || self.assists_by.contains_key(&site);
        let site = if has_room { site } else { OTHERS };
        let (count, total_ns) = self.assists_by.entry(site).or_default();
        *count += 1;
        *total_ns += duration_ns;
        if let Some(open) = &mut self.open {
            *open.assists.entry(site).or_default() += duration_ns;
        }
    }

    /// What is known of it now; cycles and stops once.
    pub(super) fn told(&mut self, symbols: &mut Symbols, names: &dyn Names, clock: &Clock) -> Collector {
        self.close();
        let first = self.cycles.iter().sum::<u64>().saturating_sub(self.left_out);
        let recent = std::mem::take(&mut self.recent);
        let first = first.saturating_sub(recent.len() as u64);
        let mut assists_by: Vec<Assists> = Vec::new();
        for (site, (count, total_ns)) in &self.assists_by {
            let (entry, created_by) =
                (symbols.entry(site.entry_pc, names), symbols.created_by(site.created_pc, names));
            // Two addresses may be one place.
            match assists_by.iter_mut().find(|a| a.entry == entry && a.created_by == created_by) {
                Some(known) => {
                    known.count += count;
                    known.total_ns += total_ns;
                }
                None => assists_by.push(Assists { entry, created_by, count: *count, total_ns: *total_ns }),
            }
        }
        assists_by.sort_by(|a, b| b.total_ns.cmp(&a.total_ns).then_with(|| a.entry.cmp(&b.entry)));
        let told = |(n, ended): (u64, Ended)| {
            let mut by: BTreeMap<Arc<Location>, u64> = BTreeMap::new();
            for (site, ns) in &ended.assists {
                *by.entry(symbols.entry(site.entry_pc, names)).or_default() += ns;
            }
            let mut assisted_by: Vec<_> = by.into_iter().collect();
            assisted_by.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            assisted_by.truncate(MAX_TOLD);
            Cycle {
                number: first + n,
                trigger: name_of(&TRIGGERS, ended.trigger),
                called_from: ended.called_from,
                end_unix_nano: clock.unix_nano(ended.end_ns),
                mark_ns: ended.mark_ns,
                sweep_pause_ns: ended.began.map(|(_, pause_ns)| pause_ns),
                mark_pause_ns: ended.mark_pause_ns,
                assist_ns: ended.assists.values().sum(),
                assisted_by,
            }
        };
        Collector {
            cycles: TRIGGERS.into_iter().zip(self.cycles).filter(|(_, n)| *n > 0).collect(),
            marking: self.marking,
            pauses: self.pauses,
            stops: self.stops.iter().map(|(reason, h)| (name_of(&STOP_REASONS, *reason), *h)).collect(),
            assists: self.assists,
            assists_by,
            recent: (1..).zip(recent).map(told).collect(),
            recent_left_out: std::mem::take(&mut self.left_out),
            longest_left_out: std::mem::take(&mut self.longest_left_out),
            longest: std::mem::take(&mut self.longest)
                .into_iter()
                .map(|s| WorldStop {
                    reason: name_of(&STOP_REASONS, s.reason),
                    start_unix_nano: clock.unix_nano(s.start_ns),
                    duration_ns: s.duration_ns,
                    goid: s.goid,
                    function: s.function,
                    called_from: s.called_from,
                })
                .collect(),
        }
    }
}

fn name_of(names: &[&'static str], number: u8) -> &'static str {
    names.get(usize::from(number)).copied().unwrap_or("unknown")
}

/// Whether a function is that one, or a closure in it.
fn is_in(function: &str, of: &str) -> bool {
    function.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a function is one of the runtime's packages.
fn is_of_runtime(function: &str) -> bool {
    function.strip_prefix("runtime").is_some_and(|rest| rest.starts_with(['.', '/']))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses stand for these functions, by their number.
    struct Functions(&'static [&'static str]);

    impl Names for Functions {
        fn entry(&self, address: u64) -> Option<Location> {
            let function = self.0.get(usize::try_from(address).ok()?)?;
            Some(Location { function: (*function).into(), file: "/src/main.go".into(), line: 1 })
        }

        fn call(&self, address: u64) -> Option<Location> {
            self.entry(address)
        }

        fn site(&self, address: u64) -> Option<Location> {
            self.entry(address).filter(|l| !l.function.starts_with("runtime"))
        }

        fn is_function_entry(&self, _: u64) -> bool {
            true
        }
    }

    const NAMES: Functions = Functions(&[
        "?",
        "runtime.gcStart",
        "runtime.mallocgc",
        "main.decode",
        "runtime.GC",
        "runtime.gcMarkDone",
        "runtime.gcBgMarkWorker",
        "runtime.stopTheWorld",
        "runtime.ReadMemStats",
        "main.collectStats",
        "runtime.forcegchelper",
    ]);
    const HEAP: [u64; 3] = [1, 2, 3];
    const CALL: [u64; 3] = [1, 4, 3];
    const MARKED: [u64; 2] = [5, 6];
    const STATS: [u64; 3] = [7, 8, 9];

    struct Fed {
        state: CollectorState,
        symbols: Symbols,
    }

    impl Fed {
        fn new() -> Self {
            Self { state: CollectorState::default(), symbols: Symbols::default() }
        }

        /// A pause of 100 ns of which the last 30 are after the first goroutine may go on.
        fn pause(&mut self, reason: u8, start_ns: u64, frames: &[u64]) {
            let bytes: Vec<u8> = frames.iter().flat_map(|f| f.to_ne_bytes()).collect();
            let pause = Pause {
                process: 1,
                goid: 7,
                reason,
                start_ns,
                restart_ns: start_ns + 70,
                woken_ns: start_ns + 100,
                frames: crate::decode::Frames::of(&bytes),
            };
            self.state.pause(&pause, &mut self.symbols, &NAMES);
        }

        fn assist(&mut self, entry_pc: u64, ns: u64) {
            let assist =
                Assist { process: 1, goid: 9, start_ns: 50, end_ns: 50 + ns, created_pc: 3, entry_pc };
            self.state.assist(&assist, SiteKey { created_pc: 3, entry_pc });
        }

        fn told(&mut self) -> Collector {
            self.state.told(&mut self.symbols, &NAMES, &Clock::from_offset(0, 0))
        }
    }

    #[test]
    fn a_cycle_is_two_pauses_and_what_is_between() {
        let mut fed = Fed::new();
        fed.pause(2, 1_000, &HEAP);
        fed.assist(3, 40);
        fed.assist(9, 10);
        fed.assist(3, 5);
        fed.pause(1, 5_000, &MARKED);
        fed.pause(2, 10_000, &CALL);
        fed.pause(1, 20_000, &MARKED);
        let told = fed.told();
        assert_eq!(told.cycles, BTreeMap::from([("heap", 1), ("call", 1)]));
        // Mark termination ends where the first may go on.
        assert_eq!((told.pauses.count, told.pauses.sum_ns), (4, 100 + 70 + 100 + 70));
        assert_eq!((told.marking.count, told.marking.sum_ns), (2, 3_900 + 9_900));
        let [first, second] = &told.recent[..] else { panic!("{told:?}") };
        assert_eq!(
            (first.number, first.trigger, first.mark_ns, first.assist_ns),
            (1, "heap", Some(3_900), 55)
        );
        assert_eq!((first.sweep_pause_ns, first.mark_pause_ns, &first.called_from), (Some(100), 70, &None));
        let by: Vec<_> = first.assisted_by.iter().map(|(l, ns)| (&*l.function, *ns)).collect();
        assert_eq!(by, [("main.decode", 45), ("main.collectStats", 10)]);
        assert_eq!((second.number, second.trigger, second.assist_ns), (2, "call", 0));
        assert_eq!(second.called_from.as_ref().map(|l| &*l.function), Some("main.decode"));
        // Once.
        let told = fed.told();
        assert_eq!((told.count(), told.recent.len(), told.assists.count), (2, 0, 3));
    }

    #[test]
    fn a_cycle_that_was_not_done_marking_goes_on() {
        let mut fed = Fed::new();
        // Its beginning was before.
        fed.pause(1, 500, &MARKED);
        fed.pause(2, 1_000, &HEAP);
        fed.pause(1, 5_000, &MARKED);
        fed.pause(1, 6_000, &MARKED);
        let told = fed.told();
        assert_eq!(told.cycles, BTreeMap::from([("unknown", 1), ("heap", 1)]));
        let last = &told.recent[1];
        assert_eq!((last.number, last.mark_ns, last.mark_pause_ns), (2, Some(4_900), 140));
        // What was told already is not counted anew.
        fed.pause(1, 7_000, &MARKED);
        assert_eq!((fed.told().count(), fed.told().pauses.count), (2, 5));
    }

    #[test]
    fn what_was_not_seen_is_not_made_up() {
        let mut fed = Fed::new();
        fed.pause(2, 1_000, &HEAP);
        fed.pause(1, 2_000, &MARKED);
        fed.pause(2, 3_000, &HEAP);
        // Without probes meanwhile, and in the middle of a cycle afterwards.
        fed.state.interrupt();
        fed.state.resume(8_000_000);
        // One whose end was not seen before.
        fed.pause(7, 4_000, &STATS);
        fed.pause(1, 9_000_000, &MARKED);
        let told = fed.told();
        assert_eq!(told.cycles, BTreeMap::from([("heap", 1), ("unknown", 1)]));
        assert_eq!((told.marking.count, told.marking.max_ns, told.stops.len()), (1, 900, 0));
        assert_eq!((told.recent[1].mark_ns, told.recent[1].sweep_pause_ns), (None, None));
    }

    #[test]
    fn others_who_stop_the_world_are_named() {
        let mut fed = Fed::new();
        fed.pause(7, 1_000, &STATS);
        // Before Go 1.21 the stack tells.
        fed.pause(0, 2_000, &STATS);
        fed.pause(0, 3_000, &HEAP);
        fed.pause(0, 4_000, &MARKED);
        fed.pause(0, 5_000, &[3]);
        // A reason of a later version.
        fed.pause(200, 6_000, &[]);
        let told = fed.told();
        let counts: BTreeMap<_, _> = told.stops.iter().map(|(reason, h)| (*reason, h.count)).collect();
        assert_eq!(counts, BTreeMap::from([("read mem stats", 2), ("unknown", 2)]));
        assert_eq!(told.cycles, BTreeMap::from([("heap", 1)]));
        let named = |l: &Option<Arc<Location>>| l.as_ref().map(|l| l.function.to_string());
        let first = &told.longest[0];
        assert_eq!((first.reason, first.goid, first.duration_ns), ("read mem stats", 7, 100));
        assert_eq!(named(&first.function).as_deref(), Some("runtime.ReadMemStats"));
        assert_eq!(named(&first.called_from).as_deref(), Some("main.collectStats"));
        assert_eq!((named(&told.longest[3].function), &told.longest[3].called_from), (None, &None));
    }

    #[test]
    fn nothing_is_kept_of_addresses_that_are_no_code() {
        let mut fed = Fed::new();
        for n in 0..1000 {
            fed.pause(7, 1_000 * n, &[1_000_000 + n, 7, 8, 2_000_000 + n, 9]);
        }
        assert_eq!(fed.symbols.all().len(), 6, "three calls, three sites");
        let told = fed.told();
        let function = told.longest[0].function.as_ref().map(|l| l.function.to_string());
        assert_eq!(function.as_deref(), Some("runtime.ReadMemStats"));
    }

    #[test]
    fn what_finds_no_room_is_summed_up() {
        let mut fed = Fed::new();
        for n in 0..2 * MAX_SITES as u64 {
            fed.assist(1000 + n, 1);
        }
        for n in 0..2 * MAX_RECENT as u64 {
            fed.pause(2, 1_000 + 1_000 * n, &HEAP);
            fed.pause(1, 1_500 + 1_000 * n, &MARKED);
            fed.pause(7, 1_700 + 1_000 * n, &STATS);
        }
        let told = fed.told();
        assert_eq!(told.assists_by.len(), MAX_SITES + 1);
        assert_eq!(told.assists_by.iter().map(|a| a.total_ns).sum::<u64>(), 2 * MAX_SITES as u64);
        assert_eq!((told.recent.len(), told.recent_left_out), (MAX_RECENT, MAX_RECENT as u64));
        assert_eq!(told.recent[0].number, 1);
        assert_eq!((told.count(), told.longest.len()), (2 * MAX_RECENT as u64, MAX_LONGEST));
        assert_eq!(told.longest_left_out, (2 * MAX_RECENT - MAX_LONGEST) as u64);
    }
}
