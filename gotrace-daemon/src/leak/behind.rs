//! Goroutines that a program leaves behind when it ends, and the tests that made them.
//!
//! Input: who was alive at the end, as the events engine knows it. Output: [`Finding`]s. A goroutine counts
//! only if it was parked then, and nobody had woken it: one that was about to end is not left behind.

use std::collections::BTreeMap;

use super::{AtLeastAtMost, Finding, Verdict};
use crate::snapshot::StackFrame;

/// A goroutine that was alive and parked at the end.
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
    /// When its last wait began.
    pub parked_ns: u64,
    /// What for.
    pub wait_reason: u8,
    /// Where; `None` when it parked after the last look at stacks.
    pub stack: Option<Vec<StackFrame>>,
    /// The test that made it or one of its ancestors; `None` when not known.
    pub test: Option<String>,
}

/// A goroutine that parked this shortly before the end may have been about to do something.
const SETTLED_NS: u64 = 10_000_000;
/// One that parks again and again, such as a ticker's loop, counts when it is as old as this.
const OLD_NS: u64 = 1_000_000_000;
const BRIEFLY_NS: u64 = 1_000_000;

/// What those have in common that are told together: test, entry, creation site, reason, stack.
type Alike = (Option<String>, u64, u64, u8, Option<Vec<u64>>);

/// What was left behind by a program that ended at `end_ns`; those of one test, site, reason and stack
/// together.
#[must_use]
pub fn left_behind(end_ns: u64, left: Vec<Left>) -> Vec<Finding> {
    let mut groups: BTreeMap<Alike, Vec<Left>> = BTreeMap::new();
    for left in left {
        let parked = end_ns.saturating_sub(left.parked_ns);
        let old = left.birth_ns.is_none_or(|b| end_ns.saturating_sub(b) >= OLD_NS);
        if parked < SETTLED_NS && !(old && parked >= BRIEFLY_NS) {
            continue;
        }
        let stack = left.stack.as_ref().map(|s| s.iter().map(|f| f.pc()).collect());
        let key = (left.test.clone(), left.entry_pc, left.created_pc, left.wait_reason, stack);
        groups.entry(key).or_default().push(left);
    }
    let mut findings: Vec<Finding> = groups
        .into_iter()
        .filter_map(|((test, entry_pc, created_pc, reason, _), mut members)| {
            members.sort_unstable_by_key(|l| l.goid);
            let age = |l: &Left| AtLeastAtMost {
                at_least_ns: end_ns.saturating_sub(l.birth_ns.unwrap_or(l.parked_ns)),
                at_most_ns: l.birth_ns.map(|b| end_ns.saturating_sub(b)),
            };
            let oldest = members.iter().map(age).reduce(AtLeastAtMost::longest)?;
            let stack = members.first()?.stack.clone();
            let by = test.as_ref().map_or_else(String::new, |t| format!(", made in {t}"));
            let unknown = if stack.is_some() {
                ""
            } else {
                "; its stack is not known, as it parked after the last look at stacks"
            };
            Some(Finding {
                verdict: Verdict::LeftBehind,
                growth: None,
                oldest,
                entry_pc,
                created_pc,
                wait_reason: Some(reason),
                stack: stack.unwrap_or_default(),
                waits_on: Vec::new(),
                waits_on_total: 0,
                goids: members.iter().map(|l| l.goid).collect(),
                others: Vec::new(),
                passes: None,
                came_and_exited: None,
                lives: true,
                holders: Vec::new(),
                retained_bytes: None,
                why: format!("alive, and not woken by anyone, when the program ended{by}{unknown}."),
                test,
            })
        })
        .collect();
    findings.sort_by_cached_key(Finding::by_impact);
    findings
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

    fn left(goid: u64, parked_ms: u64) -> Left {
        Left {
            goid,
            entry_pc: 16,
            created_pc: 32,
            birth_ns: Some(parked_ms * MS - 1),
            parked_ns: parked_ms * MS,
            wait_reason: 14,
            stack: None,
            test: Some("a.TestB".into()),
        }
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
    fn who_was_about_to_end_is_not_left_behind() {
        let found = left_behind(1000 * MS, vec![left(7, 500), left(8, 600), left(9, 995)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].goids, [7, 8]);
        assert_eq!(found[0].verdict, Verdict::LeftBehind);
        assert_eq!(found[0].test.as_deref(), Some("a.TestB"));
        assert_eq!(found[0].oldest.at_least_ns, 500 * MS + 1);
        assert!(found[0].why.contains("made in a.TestB") && found[0].why.contains("stack is not known"));
        // A ticker's loop parks again and again.
        let ticker = Left { birth_ns: Some(0), ..left(9, 1995) };
        assert_eq!(left_behind(2000 * MS, vec![ticker]).len(), 1);
        assert!(left_behind(0, Vec::new()).is_empty());
    }

    #[test]
    fn each_test_has_its_own() {
        let other = Left { test: Some("a.TestC".into()), ..left(8, 500) };
        let found = left_behind(1000 * MS, vec![left(7, 500), other]);
        assert_eq!(found.iter().map(|f| f.count()).collect::<Vec<_>>(), [1, 1]);
    }
}
