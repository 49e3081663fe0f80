//! The exit check: goroutines that were still blocked when their program exited, and the tests that made them.
//!
//! Input: what each goroutine did at the end. Output: [`AtExit`]: [`Finding`]s, and how many could not be judged.
//! Only a goroutine that was parked, and that nothing had woken, is left behind: one that was running, or was about to
//! run, may have been about to end. A process cannot be held at its end to see which of those do, so what a checker
//! inside of the program waits for is inferred: a goroutine that only another one can wake stays if no other was
//! going to run, or nothing that was going to run leads to what it waits on; one that wakes by itself must have lived
//! for as long as such a checker waits ([`GRACE_NS`]).

use std::collections::BTreeMap;

use super::{Accepted, AtLeastAtMost, Finding, Verdict};
use crate::snapshot::{StackFrame, Wait, WaitObject};

/// What a goroutine did at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It ran, or was going to: runnable, or woken.
    Runs,
    /// It waits for something that may come by itself: a timer, a descriptor, the end of a system call.
    WakesByItself,
    /// It waits for what only another goroutine can do.
    WaitsForOthers,
    /// The same, unless there is a timer in what it waits on, which is not known.
    MayHaveTimer,
}

/// A goroutine that was alive at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its id.
    pub goid: u64,
    /// Its entry function.
    pub entry_pc: u64,
    /// Return address of the `go` statement; 0 when not known.
    pub created_pc: u64,
    /// When it was made, `CLOCK_MONOTONIC`; `None` when that was not seen.
    pub birth_ns: Option<u64>,
    /// What it did.
    pub doing: Doing,
    /// When its last wait began; `None` when that was not seen.
    pub parked_ns: Option<u64>,
    /// What for; `None` when it did not wait.
    pub wait_reason: Option<u8>,
    /// Where; `None` when not known.
    pub stack: Option<Vec<StackFrame>>,
    /// What it waits on, where that is known.
    pub waits_on: Vec<(Wait, WaitObject)>,
    /// Whether nothing that could still run leads to what it waits on, by the heap as it was at the end.
    pub unreachable: bool,
    /// The test that made it or one of its ancestors; `None` when not known.
    pub test: Option<String>,
}

/// One that has been parked for so long has settled.
const SETTLED_NS: u64 = 10_000_000;
/// One that parks again and again, such as a ticker's loop, has when it is as old as this.
const OLD_NS: u64 = 1_000_000_000;
const BRIEFLY_NS: u64 = 1_000_000;
/// For so long goroutines are waited for by go.uber.org/goleak v1.3 (20 tries, 1 us and twice as long each time, 100 ms
/// at most) before it reports them.
pub const GRACE_NS: u64 = 430_000_000;

/// What a program came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AtExit {
    /// What was left behind; the goroutines of one test, site, reason and stack together.
    pub findings: Vec<Finding>,
    /// Goroutines that may have been about to end.
    pub not_judged: u64,
}

impl Left {
    fn has_settled(&self, end_ns: u64) -> bool {
        let parked = self.parked_ns.map(|at| end_ns.saturating_sub(at));
        let old = self.birth_ns.is_none_or(|b| end_ns.saturating_sub(b) >= OLD_NS);
        parked.is_some_and(|parked| parked >= SETTLED_NS || old && parked >= BRIEFLY_NS)
    }

    /// Whether it is left behind. `quiet`: no other goroutine was going to run.
    fn is_left(&self, end_ns: u64, quiet: bool) -> bool {
        let since = self.birth_ns.or(self.parked_ns);
        let outlived = since.is_some_and(|since| end_ns.saturating_sub(since) >= GRACE_NS);
        match self.doing {
            Doing::Runs => false,
            Doing::WakesByItself => outlived && self.has_settled(end_ns),
            Doing::MayHaveTimer => self.has_settled(end_ns),
            Doing::WaitsForOthers => quiet || self.unreachable || self.has_settled(end_ns),
        }
    }
}

/// What those have in common that are told together: test, entry, creation site, reason, stack.
type Alike = (Option<String>, u64, u64, Option<u8>, Option<Vec<u64>>);

/// What was left behind by a program that ended at `end_ns`.
#[must_use]
pub fn left_behind(end_ns: u64, left: Vec<Left>) -> AtExit {
    let quiet = left.iter().all(|l| l.doing == Doing::WaitsForOthers || l.is_left(end_ns, false));
    let (left, others): (Vec<Left>, Vec<Left>) = left.into_iter().partition(|l| l.is_left(end_ns, quiet));
    let mut groups: BTreeMap<Alike, Vec<Left>> = BTreeMap::new();
    for left in left {
        let stack = left.stack.as_ref().map(|s| s.iter().map(|f| f.pc()).collect());
        let key = (left.test.clone(), left.entry_pc, left.created_pc, left.wait_reason, stack);
        groups.entry(key).or_default().push(left);
    }
    let mut findings: Vec<Finding> =
        groups.into_values().filter_map(|members| finding(end_ns, members)).collect();
    findings.sort_by_cached_key(Finding::by_impact);
    AtExit { findings, not_judged: others.len() as u64 }
}

/// Goroutines that are alike.
fn finding(end_ns: u64, mut members: Vec<Left>) -> Option<Finding> {
    members.sort_unstable_by_key(|l| l.goid);
    let age = |l: &Left| AtLeastAtMost {
        at_least_ns: l.birth_ns.or(l.parked_ns).map_or(0, |since| end_ns.saturating_sub(since)),
        at_most_ns: l.birth_ns.map(|b| end_ns.saturating_sub(b)),
    };
    let oldest = members.iter().map(age).reduce(AtLeastAtMost::longest)?;
    let mut objects: BTreeMap<usize, (Wait, WaitObject)> = BTreeMap::new();
    for (wait, object) in members.iter().flat_map(|l| &l.waits_on) {
        objects.entry(wait.object.index()).or_insert((*wait, *object));
    }
    let goids: Vec<u64> = members.iter().map(|l| l.goid).collect();
    let Left { entry_pc, created_pc, wait_reason, stack, test, .. } = members.into_iter().next()?;
    let by = test.as_ref().map_or_else(String::new, |t| format!(", created in {t}"));
    let unknown = if stack.is_some() { "" } else { "; stack unknown, as it blocked after the last snapshot" };
    Some(Finding {
        verdict: Verdict::LeftBehind,
        growth: None,
        oldest,
        entry_pc,
        created_pc,
        wait_reason,
        stack: stack.unwrap_or_default(),
        waits_on_total: objects.len(),
        waits_on: objects.into_values().take(Finding::MAX_WAITS).collect(),
        goids,
        others: Vec::new(),
        passes: None,
        came_and_exited: None,
        lives: true,
        awaited: None,
        holders: Vec::new(),
        retained_bytes: None,
        why: format!("still blocked, and not woken, when the program exited{by}{unknown}."),
        test,
        accepted: Accepted::default(),
    })
}

/// The test, benchmark, example or fuzz function that a function is or lies in, by Go's rules for their
/// names (`testing`; `cmd/go/internal/load/test.go`, `isTest`): `a/b.TestX` of `a/b.TestX.func1.2`.
#[must_use]
pub fn test_function(function: &str) -> Option<&str> {
    let name_at = function.rfind('/').map_or(0, |slash| slash + 1);
    let mut at = name_at;
    for part in function.get(name_at..)?.split('.') {
        let end = at + part.len();
        // Before the first dot is the package.
        if at > name_at && is_test(part) {
            return function.get(..end);
        }
        at = end + 1;
    }
    None
}

fn is_test(name: &str) -> bool {
    ["Test", "Benchmark", "Example", "Fuzz"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .any(|rest| !rest.chars().next().is_some_and(char::is_lowercase))
}

/// Whether goroutines with this entry function belong to the machinery of tests and of the runtime, and
/// are not the program's: those of package testing, of the runtime's packages, and the one that signals are
/// passed on by.
#[must_use]
pub fn is_machinery(entry: &str) -> bool {
    let package = |p: &str| entry.strip_prefix(p).is_some_and(|rest| rest.starts_with(['.', '/']));
    package("testing") || package("runtime") || entry == "os/signal.loop"
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn left(goid: u64, parked_ms: u64, doing: Doing) -> Left {
        Left {
            goid,
            entry_pc: 16,
            created_pc: 32,
            birth_ns: Some(parked_ms * MS - 1),
            doing,
            parked_ns: Some(parked_ms * MS),
            wait_reason: Some(14),
            stack: None,
            waits_on: Vec::new(),
            unreachable: false,
            test: Some("a.TestB".into()),
        }
    }

    /// The goids that are left behind by a program that ends after a second, and how many are not judged.
    fn judge(left: Vec<Left>) -> (Vec<u64>, u64) {
        let at_exit = left_behind(1000 * MS, left);
        (at_exit.findings.into_iter().flat_map(|f| f.goids).collect(), at_exit.not_judged)
    }

    #[test]
    fn tests_are_found_in_names() {
        for (function, test) in [
            ("example.com/a/b.TestServe", Some("example.com/a/b.TestServe")),
            ("example.com/a/b.TestServe.func1.2", Some("example.com/a/b.TestServe")),
            ("b.(*Suite).TestServe", Some("b.(*Suite).TestServe")),
            ("b.Test", Some("b.Test")),
            ("b.FuzzX.func1", Some("b.FuzzX")),
            ("b.BenchmarkY", Some("b.BenchmarkY")),
            ("b.Test_x", Some("b.Test_x")),
            ("b.Testify", None),
            ("b.helper", None),
            ("Test.helper", None),
            ("TestX/y.helper", None),
            ("", None),
        ] {
            assert_eq!(test_function(function), test, "{function}");
        }
    }

    #[test]
    fn machinery_is_no_ones_leak() {
        for machinery in
            ["testing.tRunner", "testing/fstest.x", "runtime/pprof.profileWriter", "os/signal.loop"]
        {
            assert!(is_machinery(machinery), "{machinery}");
        }
        for own in ["testingtools.run", "main.main.func1", "example.com/runtime.x", "os/signal.other"] {
            assert!(!is_machinery(own), "{own}");
        }
    }

    #[test]
    fn who_waits_for_others_is_left_behind_however_young() {
        use Doing::{MayHaveTimer, Runs, WaitsForOthers, WakesByItself};
        let found = left_behind(1000 * MS, vec![left(7, 500, WaitsForOthers), left(8, 999, WaitsForOthers)]);
        assert_eq!((found.findings.len(), found.not_judged), (1, 0));
        let finding = &found.findings[0];
        assert_eq!((finding.goids.as_slice(), finding.verdict), (&[7, 8][..], Verdict::LeftBehind));
        assert_eq!(finding.test.as_deref(), Some("a.TestB"));
        assert_eq!(finding.oldest.at_least_ns, 500 * MS + 1);
        assert!(finding.why.contains("created in a.TestB") && finding.why.contains("stack unknown"));
        // Unless somebody is about to run who may let it go: then what had settled is.
        for young in [left(3, 999, Runs), left(3, 999, WakesByItself), left(3, 999, MayHaveTimer)] {
            let both = vec![young, left(7, 989, WaitsForOthers), left(8, 999, WaitsForOthers)];
            assert_eq!(judge(both), (vec![7], 2));
        }
        // And what that one does not lead to.
        let alone = Left { unreachable: true, ..left(8, 999, WaitsForOthers) };
        assert_eq!(judge(vec![left(3, 999, Runs), alone]), (vec![8], 1));
        assert_eq!(left_behind(0, Vec::new()), AtExit::default());
    }

    #[test]
    fn who_wakes_by_itself_has_as_long_as_a_checker_inside_would_wait() {
        use Doing::WakesByItself;
        assert_eq!(judge(vec![left(7, 569, WakesByItself), left(8, 571, WakesByItself)]), (vec![7], 1));
        // A ticker's loop parks again and again.
        let ticker = |birth_ms: u64| Left { birth_ns: Some(birth_ms * MS), ..left(9, 995, WakesByItself) };
        assert_eq!(judge(vec![ticker(1)]), (vec![], 1));
        let at_exit = left_behind(2000 * MS, vec![Left { parked_ns: Some(1995 * MS), ..ticker(1) }]);
        assert_eq!(at_exit.findings.len(), 1);
        // Of which neither birth nor park was seen.
        let unknown = Left { birth_ns: None, parked_ns: None, ..left(9, 1, WakesByItself) };
        assert_eq!(judge(vec![unknown]), (vec![], 1));
    }

    #[test]
    fn each_test_has_its_own() {
        let other = Left { test: Some("a.TestC".into()), ..left(8, 500, Doing::WaitsForOthers) };
        let found = left_behind(1000 * MS, vec![left(7, 500, Doing::WaitsForOthers), other]);
        assert_eq!(found.findings.iter().map(Finding::count).collect::<Vec<_>>(), [1, 1]);
    }
}
