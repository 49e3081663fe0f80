//! Findings whose goroutines wait for each other become one.

use std::collections::BTreeMap;

use super::{
    Finding, Verdict,
    finding::{Growth, Part},
};

/// Makes one finding of those that are unreachable and have goroutines in common sets. `sets`: goids of goroutines
/// that wait for each other ([`crate::heap::Prover::together`]). What is left is in the same order.
#[must_use]
pub fn together(findings: Vec<Finding>, sets: &[Vec<u64>]) -> Vec<Finding> {
    let mut finding_of: BTreeMap<u64, usize> = BTreeMap::new();
    for (n, finding) in findings.iter().enumerate().filter(|(_, f)| f.verdict == Verdict::Unreachable) {
        finding_of.extend(finding.goids.iter().map(|&goid| (goid, n)));
    }
    // The first finding of those that each belongs to.
    let mut first: Vec<usize> = (0..findings.len()).collect();
    for set in sets {
        let mut of: Vec<usize> =
            set.iter().filter_map(|goid| finding_of.get(goid)).map(|&n| first[n]).collect();
        of.sort_unstable();
        of.dedup();
        if let [one, others @ ..] = &of[..] {
            first.iter_mut().filter(|f| others.contains(f)).for_each(|f| *f = *one);
        }
    }
    let mut left: Vec<Option<Finding>> = Vec::with_capacity(findings.len());
    for (n, finding) in findings.into_iter().enumerate() {
        match left.get_mut(first[n]) {
            Some(Some(main)) if first[n] != n => {
                join(main, finding);
                left.push(None);
            }
            _ => left.push(Some(finding)),
        }
    }
    let mut left: Vec<Finding> = left.into_iter().flatten().collect();
    for finding in left.iter_mut().filter(|f| !f.others.is_empty()) {
        let (sites, count) = (finding.others.len(), finding.count());
        let sites = if sites == 1 { "another place".to_owned() } else { format!("{sites} other places") };
        let more = count - finding.own_count();
        finding.why += &format!(" The same is true of {more} of {sites}: these {count} form a wait cycle.");
    }
    left
}

fn join(main: &mut Finding, other: Finding) {
    let Finding { growth, oldest, entry_pc, created_pc, wait_reason, stack, .. } = other;
    main.growth = match (main.growth, growth) {
        (Some(a), Some(b)) => Some(Growth { low: a.low + b.low, high: a.high + b.high }),
        (a, b) => a.or(b),
    };
    main.oldest = main.oldest.longest(oldest);
    main.passes = main.passes.into_iter().chain(other.passes).min_by_key(|p| p.agreed);
    main.goids.extend(&other.goids);
    main.goids.sort_unstable();
    main.others.push(Part {
        entry_pc,
        created_pc,
        wait_reason,
        stack,
        waits_on: other.waits_on,
        waits_on_total: other.waits_on_total,
        goids: other.goids,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leak::{Accepted, Agreement, AtLeastAtMost};

    fn finding(verdict: Verdict, goids: &[u64], agreed: u32) -> Finding {
        Finding {
            verdict,
            growth: None,
            oldest: AtLeastAtMost { at_least_ns: goids[0], at_most_ns: Some(100) },
            entry_pc: goids[0],
            created_pc: 0,
            wait_reason: Some(14),
            stack: Vec::new(),
            waits_on: Vec::new(),
            waits_on_total: 1,
            goids: goids.to_vec(),
            others: Vec::new(),
            passes: Some(Agreement { agreed, needed: 10 }),
            came_and_exited: None,
            lives: false,
            awaited: None,
            holders: Vec::new(),
            retained_bytes: None,
            why: "proven.".into(),
            test: None,
            accepted: Accepted::default(),
        }
    }

    #[test]
    fn those_that_wait_for_each_other_become_one_and_no_others() {
        let unreachable = |goids: &[u64], agreed| finding(Verdict::Unreachable, goids, agreed);
        let findings = vec![
            unreachable(&[5, 9], 10),
            unreachable(&[2, 3], 9),
            unreachable(&[7], 10),
            unreachable(&[1, 4], 10),
            finding(Verdict::Growing, &[11], 10),
        ];
        // The first and the fourth through the second; the third with itself; the last is not proven.
        let left = together(findings, &[vec![3, 9], vec![4, 2], vec![7, 70], vec![11, 5]]);
        let goids: Vec<&[u64]> = left.iter().map(|f| &f.goids[..]).collect();
        assert_eq!(goids, [&[1, 2, 3, 4, 5, 9][..], &[7], &[11]]);
        let one = &left[0];
        assert_eq!((one.own_count(), one.others.len(), one.entry_pc), (2, 2, 5));
        assert_eq!(one.oldest.at_least_ns, 5);
        assert_eq!(one.passes.map(|p| p.agreed), Some(9));
        let said = "proven. The same is true of 4 of 2 other places: these 6 form a wait cycle.";
        assert_eq!(one.why, said);
        assert!(left[1].others.is_empty() && left[1].why == "proven.");
    }
}
