//! What a check has covered, and what not: from how the process was looked at to verdicts that were checked, and reasons
//! why others were not.
//!
//! Input: [`Examined`]. Output: a [`Coverage`]. Pure. A verdict is checked, or there is a reason why not; where there may
//! be a problem all the same, the check is inconclusive.

use std::time::Duration;

use gotrace_export::{
    check::{Concern, Coverage, NotChecked, Throttling},
    text::duration,
};
use gotrace_go::GoVersion;
use gotrace_inspect::{
    heap::PASSES,
    leak::{MIN_POINTS, Verdict},
    snapshot::Counts,
};
use gotrace_process::CpuQuota;

/// The share of goroutines, one in so many, that may be unreadable.
const UNREADABLE: u64 = 20;
/// The first minor version of Go that records who created a goroutine.
const RECORDS_CREATORS: u32 = 21;

/// How the process was looked at.
#[derive(Clone, Debug)]
pub(super) struct Examined<'a> {
    pub pid: u32,
    pub version: &'a GoVersion,
    /// Whether that is newer than gotrace knows.
    pub is_newer: bool,
    /// For how long it was to be watched, and was.
    pub wanted: Duration,
    pub watched_ns: u64,
    pub stuck_after_ns: u64,
    pub looks: usize,
    /// Looks before which the process was stopped.
    pub stopped: usize,
    /// Whether next to nothing ran.
    pub quiet: bool,
    /// Goroutines without a finding that would be stuck if others had run.
    pub standing: Vec<u64>,
    /// Of the last look.
    pub counts: Counts,
    pub references_complete: bool,
    /// Whether the process exited meanwhile.
    pub exited: bool,
    /// Whether the user ended the check.
    pub interrupted: bool,
    pub scanned: Scanned,
    /// What its CPU quota did; `None` where that is not known.
    pub throttling: Option<Throttling>,
    pub requests: TracedRequests,
}

/// Whether its requests were traced.
#[derive(Clone, Debug)]
pub(super) enum TracedRequests {
    NotAsked,
    /// They were; so many events were lost meanwhile.
    Traced {
        lost: u64,
    },
    /// They could not be.
    Not(String),
}

/// How its heap was scanned.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanned {
    /// Whether the first proof is complete.
    pub complete: bool,
    /// When it was, from the beginning on, if no other one was begun.
    pub until: Option<Duration>,
    /// Scans of the last proof.
    pub made: u32,
    /// Scans that could not read the list of goroutines, and whether all were such.
    pub void: u32,
    pub all_void: bool,
    /// Goroutines without a finding that an unfinished proof has not reached so far.
    pub suspects: usize,
    /// Why no scans were made, or no more.
    pub failure: Option<String>,
    /// A goroutine that ran through all of them.
    pub never_stopped: Option<u64>,
}

/// What may not be checked beside verdicts.
const SLOW: &str = "slow requests";
const SOME: &str = "some requests";
const THROTTLING: &str = "CPU throttling";

/// Verdicts that a check can come to.
const VERDICTS: [Verdict; 6] = [
    Verdict::Unreachable,
    Verdict::Deadlock,
    Verdict::Stalled,
    Verdict::Growing,
    Verdict::Stuck,
    Verdict::Orphaned,
];

/// Those of them that rest on which goroutines run and which do not.
pub(super) const BY_TIME: [Verdict; 4] =
    [Verdict::Deadlock, Verdict::Stalled, Verdict::Growing, Verdict::Stuck];

/// What was covered. `fail_on`: verdicts that are problems; what keeps only others from being checked does not make the
/// check inconclusive.
pub(super) fn of(fail_on: &[Concern], examined: &Examined<'_>) -> Coverage {
    let mut gaps = Gaps { fail_on, unchecked: Vec::new(), items: Vec::new() };
    if examined.exited {
        let after = duration(Some(examined.watched_ns));
        gaps.verdicts(&VERDICTS, true, format!("the process exited after {after}"));
    } else {
        gaps.of_looks(examined);
        gaps.of_references(examined);
        gaps.of_scans(examined);
    }
    gaps.of_requests(examined);
    if examined.throttling.is_none() {
        let why = "the files of its control group cannot be read from here".to_owned();
        gaps.other(THROTTLING, fail_on.contains(&Concern::Throttling), why);
    }
    Coverage {
        checked: VERDICTS.into_iter().filter(|v| !gaps.unchecked.contains(v)).collect(),
        not_checked: gaps.items,
        stuck_after_ns: examined.stuck_after_ns,
        throttling: examined.throttling.clone(),
    }
}

/// What quotas did between two looks at them: that which cost most. `None` where they are not known.
pub(in crate::cli) fn throttling(
    before: Option<Vec<CpuQuota>>,
    after: Option<Vec<CpuQuota>>,
) -> Option<Throttling> {
    let (before, after) = (before?, after?);
    let since = |now: CpuQuota| {
        let first = before.iter().find(|b| b.group == now.group)?;
        Some(Throttling::Quota {
            periods: now.periods.saturating_sub(first.periods),
            throttled: now.throttled.saturating_sub(first.throttled),
            group: now.group,
            cpus: now.cpus,
        })
    };
    let cost = |of: &Throttling| match of {
        Throttling::NoQuota => 0,
        Throttling::Quota { throttled, .. } => *throttled,
    };
    // Of those that cost the same it is the innermost.
    let worst = after.into_iter().rev().filter_map(since).max_by_key(cost);
    Some(worst.unwrap_or(Throttling::NoQuota))
}

/// Why a verdict could not be given, for a CI server.
pub(super) fn unjudged(coverage: &Coverage, verdict: Verdict) -> Option<String> {
    let gaps = coverage.not_checked.iter().filter(|n| n.inconclusive);
    let of = |n: &&NotChecked| n.what.split(", ").any(|what| what == verdict.name());
    // What concerns no verdict alone concerns the proof.
    let or_leaks = |n: &&NotChecked| {
        verdict == Verdict::Unreachable
            && ![SLOW, SOME, THROTTLING].contains(&&*n.what)
            && VERDICTS.iter().all(|v| !n.what.split(", ").any(|w| w == v.name()))
    };
    let whys: Vec<String> =
        gaps.filter(|n| of(n) || or_leaks(n)).map(|n| format!("{}: {}", n.what, n.why)).collect();
    (!whys.is_empty()).then(|| format!("not checked: {}", whys.join("; ")))
}

/// The same of what is not a goroutine's.
pub(super) fn unjudged_concern(coverage: &Coverage, concern: Concern) -> Option<String> {
    let of = |n: &&NotChecked| match concern {
        Concern::Throttling => n.what == THROTTLING,
        Concern::Slow => [SLOW, SOME].contains(&&*n.what),
        Concern::Verdict(_) => false,
    };
    let gap = coverage.not_checked.iter().filter(|n| n.inconclusive).find(of)?;
    Some(format!("not checked: {}: {}", gap.what, gap.why))
}

/// What is not covered, as far as it is known.
struct Gaps<'a> {
    fail_on: &'a [Concern],
    unchecked: Vec<Verdict>,
    items: Vec<NotChecked>,
}

impl Gaps<'_> {
    fn fails(&self, verdict: Verdict) -> bool {
        self.fail_on.contains(&Concern::Verdict(verdict))
    }

    /// What is not known of requests.
    fn of_requests(&mut self, examined: &Examined<'_>) {
        let inconclusive = self.fail_on.contains(&Concern::Slow);
        match &examined.requests {
            TracedRequests::Traced { lost: 0 } => {}
            TracedRequests::Traced { lost } => {
                let why = format!("{lost} events were lost");
                self.other(SOME, inconclusive, why);
            }
            TracedRequests::Not(why) => self.other(SLOW, inconclusive, why.clone()),
            TracedRequests::NotAsked => {
                let why = "only with --requests, which attaches probes to the process".to_owned();
                self.other(SLOW, inconclusive, why);
            }
        }
    }

    /// Those of these verdicts that were checked until now were not. `grave`: there may be a finding all the same.
    fn verdicts(&mut self, verdicts: &[Verdict], grave: bool, why: String) {
        let new: Vec<Verdict> = verdicts.iter().copied().filter(|v| !self.unchecked.contains(v)).collect();
        if new.is_empty() {
            return;
        }
        let what: Vec<&str> = new.iter().map(|v| v.name()).collect();
        let inconclusive = grave && new.iter().any(|v| self.fails(*v));
        self.items.push(NotChecked { what: what.join(", "), why, inconclusive });
        self.unchecked.extend(new);
    }

    /// Something else was not.
    fn other(&mut self, what: impl Into<String>, inconclusive: bool, why: String) {
        self.items.push(NotChecked { what: what.into(), why, inconclusive });
    }

    /// What looks could not tell.
    fn of_looks(&mut self, examined: &Examined<'_>) {
        use Verdict::{Deadlock, Growing, Orphaned, Stalled, Stuck, Unreachable};
        let Examined { pid, version, wanted, watched_ns, looks, stopped, counts, standing, .. } = examined;
        let over = duration(Some(*watched_ns));
        if examined.is_newer {
            let why = format!(
                "{version} is newer than this gotrace supports: cannot tell whether goroutines have run"
            );
            self.verdicts(&[Unreachable, Stalled, Growing, Stuck, Orphaned], true, why);
        }
        if *stopped > 0 {
            let why = format!(
                "the process was stopped, by a signal or a debugger; if that was not intended: kill -CONT {pid}"
            );
            self.verdicts(&BY_TIME, true, why);
        }
        if examined.interrupted {
            let wanted = u64::try_from(wanted.as_nanos()).unwrap_or(u64::MAX);
            let why = format!("you ended the check after {over} of {}", duration(Some(wanted)));
            self.verdicts(&BY_TIME, true, why);
        }
        if *looks <= MIN_POINTS {
            let s = if *looks == 1 { "" } else { "s" };
            let why = format!("only {looks} snapshot{s} in {over}; use a longer --watch");
            self.verdicts(&BY_TIME, true, why);
        }
        if examined.quiet && !standing.is_empty() {
            let goids: Vec<String> = standing.iter().take(4).map(u64::to_string).collect();
            let more = if standing.len() > goids.len() { ", …" } else { "" };
            let why = format!(
                "{} blocked on a lock, a send or a sync.WaitGroup for at least {} (goids {}{more}), but hardly any other \
                 goroutine ran: the program may be idle; see gotrace why --pid {pid} --goid {}",
                count(standing.len(), "goroutine", "goroutines"),
                duration(Some(examined.stuck_after_ns)),
                goids.join(", "),
                goids.first().map_or("", String::as_str),
            );
            self.verdicts(&[Deadlock, Stuck], true, why);
        } else if examined.quiet {
            let why =
                "hardly any goroutine ran, so that one that is stuck looks like one that is idle".to_owned();
            self.verdicts(&[Stuck], false, why);
        }
        let unreadable = counts.unreadable + counts.implausible + counts.duplicates + counts.stacks_missing;
        if unreadable > 0 {
            let all = counts.goroutines + counts.unreadable + counts.implausible + counts.duplicates;
            let why = format!("of {all} goroutines or their stacks could not be read in the last snapshot");
            self.other(unreadable.to_string(), unreadable * UNREADABLE > all, why);
        }
    }

    /// What depends on who refers to what.
    fn of_references(&mut self, examined: &Examined<'_>) {
        if !examined.references_complete {
            let why = "too many goroutines or too large stacks to search for references".to_owned();
            self.verdicts(&[Verdict::Deadlock, Verdict::Orphaned], true, why);
        }
        if examined.version.minor < RECORDS_CREATORS {
            let why = format!("{} does not record which goroutine created another", examined.version);
            self.verdicts(&[Verdict::Orphaned], true, why);
        }
    }

    /// What scans of the heap could not tell.
    fn of_scans(&mut self, examined: &Examined<'_>) {
        let Examined { pid, watched_ns, scanned, .. } = examined;
        let over = duration(Some(*watched_ns));
        let unreachable = &[Verdict::Unreachable];
        let run = format!("run gotrace leaks --pid {pid}");
        let scans = format!("{} of {PASSES} heap scans in {over}", scanned.made);
        if let Some(why) = &scanned.failure {
            self.verdicts(unreachable, true, why.clone());
        } else if scanned.all_void {
            let why = format!("could not read the list of goroutines in {} heap scans: {run}", scanned.void);
            self.verdicts(unreachable, true, why);
        } else if let Some(goid) = scanned.never_stopped.filter(|_| scanned.complete) {
            let why =
                format!("goroutine {goid} ran during all heap scans, so that its registers are not known");
            self.verdicts(unreachable, true, why);
        } else if scanned.suspects > 0 {
            let suspects = count(scanned.suspects, "suspected leak", "suspected leaks");
            self.other(suspects, self.fails(Verdict::Unreachable), format!("not proven: {scans}: {run}"));
            if !scanned.complete {
                self.unchecked.push(Verdict::Unreachable);
            }
        } else if !scanned.complete {
            self.verdicts(unreachable, true, format!("{scans}: {run}"));
        } else if let Some(until) = scanned.until.filter(|until| 10 * *until < 9 * examined.wanted) {
            let until = duration(Some(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX)));
            self.other(
                "later leaks",
                false,
                format!("goroutines that leaked after the heap scans, which took {until}"),
            );
        }
    }
}

/// `1 suspected leak`, `2 suspected leaks`.
fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Deadlock, Growing, Orphaned, Stalled, Stuck, Unreachable};

    const FAIL_ON: [Verdict; 5] = [Unreachable, Deadlock, Stalled, Growing, Stuck];

    fn concerns(verdicts: &[Verdict]) -> Vec<Concern> {
        verdicts.iter().copied().map(Concern::Verdict).collect()
    }

    fn version(minor: u32) -> GoVersion {
        GoVersion { minor, patch: 0, text: format!("go1.{minor}") }
    }

    fn whole(version: &GoVersion) -> Examined<'_> {
        Examined {
            pid: 7,
            version,
            is_newer: false,
            wanted: Duration::from_secs(10),
            watched_ns: 10_100_000_000,
            stuck_after_ns: 5_000_000_000,
            looks: 18,
            stopped: 0,
            quiet: false,
            standing: Vec::new(),
            counts: Counts { goroutines: 40, ..Counts::default() },
            references_complete: true,
            exited: false,
            interrupted: false,
            throttling: Some(Throttling::NoQuota),
            requests: TracedRequests::Traced { lost: 0 },
            scanned: Scanned { complete: true, made: 2, ..Scanned::default() },
        }
    }

    /// Whether the check is inconclusive, what was checked, and what was not.
    fn covered(
        fail_on: &[Verdict],
        change: impl FnOnce(&mut Examined<'_>),
    ) -> (bool, Vec<Verdict>, Vec<String>) {
        let version = version(24);
        let mut examined = whole(&version);
        change(&mut examined);
        let Coverage { checked, not_checked, .. } = of(&concerns(fail_on), &examined);
        let inconclusive = not_checked.iter().any(|n| n.inconclusive);
        (inconclusive, checked, not_checked.iter().map(|n| format!("{}: {}", n.what, n.why)).collect())
    }

    #[test]
    fn what_was_looked_at_in_full_is_checked() {
        assert_eq!(covered(&FAIL_ON, |_| {}), (false, VERDICTS.to_vec(), Vec::new()));
    }

    #[test]
    fn a_proof_that_is_not_complete_is_never_clean() {
        let (inconclusive, checked, not) = covered(&FAIL_ON, |e| {
            e.scanned = Scanned { made: 3, suspects: 12, ..Scanned::default() };
        });
        assert!(inconclusive && !checked.contains(&Unreachable));
        assert_eq!(
            not,
            ["12 suspected leaks: not proven: 3 of 10 heap scans in 10s: run gotrace leaks --pid 7"]
        );
        let (inconclusive, _, not) =
            covered(&FAIL_ON, |e| e.scanned = Scanned { made: 1, ..Scanned::default() });
        assert!(inconclusive);
        assert_eq!(not, ["unreachable: 1 of 10 heap scans in 10s: run gotrace leaks --pid 7"]);
        let (inconclusive, _, not) = covered(&FAIL_ON, |e| {
            e.scanned = Scanned { failure: Some("no leak proof".into()), ..Scanned::default() };
        });
        assert!(inconclusive && not == ["unreachable: no leak proof"], "{not:?}");
        for change in [
            |e: &mut Examined<'_>| e.scanned.all_void = true,
            |e: &mut Examined<'_>| e.scanned.never_stopped = Some(9),
        ] {
            let (inconclusive, checked, _) = covered(&FAIL_ON, change);
            assert!(inconclusive && !checked.contains(&Unreachable));
        }
    }

    #[test]
    fn suspects_of_a_second_proof_leave_the_first_one_as_it_is() {
        let (inconclusive, checked, not) = covered(&FAIL_ON, |e| {
            e.scanned = Scanned { complete: true, made: 4, suspects: 1, ..Scanned::default() };
        });
        assert!(inconclusive && checked.contains(&Unreachable));
        assert!(not[0].starts_with("1 suspected leak: not proven: 4 of 10"), "{not:?}");
    }

    #[test]
    fn a_proof_says_nothing_of_what_came_after_it() {
        let (inconclusive, checked, not) =
            covered(&FAIL_ON, |e| e.scanned.until = Some(Duration::from_secs(6)));
        assert!(!inconclusive && checked.contains(&Unreachable));
        assert_eq!(not, ["later leaks: goroutines that leaked after the heap scans, which took 6.0s"]);
        assert_eq!(covered(&FAIL_ON, |e| e.scanned.until = Some(e.wanted)).2, Vec::<String>::new());
    }

    #[test]
    fn what_is_no_problem_anyway_is_not_inconclusive() {
        let gap = |e: &mut Examined<'_>| e.references_complete = false;
        let (inconclusive, checked, _) = covered(&[Unreachable], gap);
        assert!(!inconclusive && !checked.contains(&Deadlock) && !checked.contains(&Orphaned));
        assert!(covered(&[Orphaned], gap).0);
        let old = version(20);
        let coverage = of(&concerns(&FAIL_ON), &whole(&old));
        assert!(!coverage.is_inconclusive() && !coverage.checked.contains(&Orphaned));
    }

    #[test]
    fn requests_that_were_not_traced_are_never_clean() {
        let version = version(24);
        let of = |fail_on: &[Concern], requests| {
            let coverage = of(fail_on, &Examined { requests, ..whole(&version) });
            let gap = coverage.not_checked.first().map(|gap| (gap.what.clone(), gap.inconclusive));
            (gap, unjudged_concern(&coverage, Concern::Slow).is_some())
        };
        let slow = &[Concern::Slow][..];
        assert_eq!(of(slow, TracedRequests::Traced { lost: 0 }), (None, false));
        for (requests, what) in [
            (TracedRequests::NotAsked, "slow requests"),
            (TracedRequests::Not("no CAP_BPF".into()), "slow requests"),
            (TracedRequests::Traced { lost: 3 }, "some requests"),
        ] {
            assert_eq!(of(&[], requests.clone()), (Some((what.into(), false)), false));
            assert_eq!(of(slow, requests), (Some((what.into(), true)), true));
        }
    }

    #[test]
    fn what_is_not_known_of_requests_is_no_gap_of_a_proof() {
        let version = version(24);
        let examined = Examined { requests: TracedRequests::NotAsked, throttling: None, ..whole(&version) };
        let fail_on = [Concern::Verdict(Unreachable), Concern::Slow, Concern::Throttling];
        let coverage = super::of(&fail_on, &examined);
        assert_eq!(unjudged(&coverage, Unreachable), None);
        for concern in [Concern::Slow, Concern::Throttling] {
            assert!(unjudged_concern(&coverage, concern).is_some(), "{concern:?}");
        }
    }

    #[test]
    fn a_process_that_does_not_run_is_not_clean() {
        let (inconclusive, checked, not) = covered(&FAIL_ON, |e| {
            (e.stopped, e.quiet) = (3, true);
        });
        assert!(inconclusive && not.len() == 1 && not[0].contains("kill -CONT 7"), "{not:?}");
        assert_eq!(checked, [Unreachable, Orphaned]);
        let (inconclusive, checked, not) = covered(&FAIL_ON, |e| {
            (e.quiet, e.standing) = (true, vec![4, 5, 6, 8, 9]);
        });
        assert!(inconclusive && !checked.contains(&Stuck) && !checked.contains(&Deadlock));
        assert!(
            not[0].contains("5 goroutines blocked on") && not[0].contains("(goids 4, 5, 6, 8, …)"),
            "{not:?}"
        );
        // An idle program is mostly just that.
        let (inconclusive, checked, _) = covered(&FAIL_ON, |e| e.quiet = true);
        assert!(!inconclusive && !checked.contains(&Stuck));
        let (inconclusive, checked, not) = covered(&FAIL_ON, |e| e.exited = true);
        assert!(inconclusive && checked.is_empty() && not.len() == 1, "{not:?}");
    }

    #[test]
    fn each_gap_is_told_once() {
        let (inconclusive, checked, not) = covered(&FAIL_ON, |e| {
            (e.interrupted, e.looks, e.stopped) = (true, 2, 1);
        });
        assert!(inconclusive && not.len() == 1, "{not:?}");
        assert_eq!(checked, [Unreachable, Orphaned]);
        let (_, _, not) = covered(&FAIL_ON, |e| (e.interrupted, e.watched_ns) = (true, 3_200_000_000));
        assert_eq!(not, ["deadlock, stalled, growing, stuck: you ended the check after 3.2s of 10s"]);
    }

    #[test]
    fn goroutines_that_cannot_be_read_are_counted() {
        for (unreadable, grave) in [(1, false), (30, true)] {
            let (inconclusive, _, not) = covered(&FAIL_ON, |e| e.counts.unreadable = unreadable);
            assert_eq!((inconclusive, not.len()), (grave, 1), "{not:?}");
        }
    }

    #[test]
    fn a_ci_server_is_told_of_each_verdict_that_could_not_be_given() {
        let version = version(24);
        let mut examined = whole(&version);
        examined.interrupted = true;
        examined.scanned = Scanned { made: 3, suspects: 12, ..Scanned::default() };
        let coverage = of(&concerns(&FAIL_ON), &examined);
        let of = |verdict| unjudged(&coverage, verdict);
        assert_eq!(of(Orphaned), None);
        assert!(of(Stuck).is_some_and(|why| why.contains("you ended the check")));
        assert!(of(Unreachable).is_some_and(|why| why.starts_with("not checked: 12 suspected leaks")));
    }
}
