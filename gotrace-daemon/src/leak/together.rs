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
        let wait = "they wait for each other, or for what another one of them holds";
        finding.why +=
            &format!(" The same holds for those of {sites}: {wait}; nobody but these {count} does.");
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
