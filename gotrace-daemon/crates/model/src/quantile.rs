//! Percentiles of histograms, as the bounds between which they lie: a histogram knows of a duration only in which of
//! its buckets it is.

use gotrace_common::{Histogram, bucket_of, bucket_upper_bound_ns};

/// Where a percentile lies, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantile {
    /// At least this.
    pub at_least_ns: u64,
    /// At most this: at most 19 % more.
    pub at_most_ns: u64,
}

impl Quantile {
    /// The duration that a share `q` (0 to 1) of those counted do not exceed; `None` when nothing was counted.
    #[must_use]
    pub fn of(histogram: &Histogram, q: f64) -> Option<Self> {
        let at_most_ns = histogram.quantile_ns(q)?;
        // The longest is known as it is, and it is the one where none of those counted may exceed it.
        let may_exceed = (1.0 - q.clamp(0.0, 1.0)) * histogram.count as f64;
        let at_least_ns = match bucket_of(at_most_ns).checked_sub(1) {
            _ if may_exceed < 0.999_999 => at_most_ns,
            Some(below) => bucket_upper_bound_ns(below).min(at_most_ns),
            None => 0,
        };
        Some(Self { at_least_ns, at_most_ns })
    }

    /// Whether it is known to the nanosecond.
    #[must_use]
    pub const fn is_exact(self) -> bool {
        self.at_least_ns == self.at_most_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = u64>, q: f64) -> Option<Quantile> {
        let mut histogram = Histogram::default();
        durations.into_iter().for_each(|ns| histogram.add(ns));
        Quantile::of(&histogram, q)
    }

    #[test]
    fn what_is_asked_for_lies_between_the_bounds() {
        let all: Vec<u64> = (1..=997).map(|n| n * n * 1000).collect();
        for (q, rank) in [(0.01, 10), (0.5, 499), (0.9, 898), (0.99, 988), (0.999, 997), (1.0, 997)] {
            let quantile = of(all.iter().copied(), q).expect("not empty");
            let exact = all[rank - 1];
            assert!(
                (quantile.at_least_ns..=quantile.at_most_ns).contains(&exact),
                "{q}: {quantile:?}, {exact}"
            );
            assert!(quantile.at_most_ns as f64 <= quantile.at_least_ns as f64 * 1.2, "{q}: {quantile:?}");
        }
    }

    #[test]
    fn the_longest_is_known_and_the_others_are_not() {
        let ms = 1_000_000;
        assert_eq!(of([], 0.5), None);
        assert_eq!(of([200 * ms], 0.5), Some(Quantile { at_least_ns: 200 * ms, at_most_ns: 200 * ms }));
        // Of a hundred the 99 % exclude one.
        let sleeps = || (0..99).map(|_| 200 * ms).chain([900 * ms]);
        assert!(of(sleeps().take(99), 0.99).is_some_and(Quantile::is_exact));
        let p99 = of(sleeps(), 0.99).expect("not empty");
        assert!(!p99.is_exact() && p99.at_least_ns < 200 * ms && p99.at_most_ns > 200 * ms, "{p99:?}");
        assert_eq!(of(sleeps(), 1.0), Some(Quantile { at_least_ns: 900 * ms, at_most_ns: 900 * ms }));
        assert_eq!(of([0, 0, 0], 0.5), Some(Quantile { at_least_ns: 0, at_most_ns: 0 }));
    }
}
