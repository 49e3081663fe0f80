//! gotrace's histograms of nanoseconds as OTLP exponential histograms of seconds.
//!
//! A bucket of [`Histogram`] holds the durations in (2^(i/4), 2^((i+1)/4)] nanoseconds. A second is
//! 10^9 nanoseconds, and log2(10^9) = 29.8974 is no multiple of a quarter: at scale 2 the bounds of the
//! two do not meet, the nearest shift is off by 0.41 of a bucket (7.4 %). At scale 3, with eight
//! buckets to an octave, bucket *i* becomes the buckets 2*i*−239 and 2*i*−238, whose outer bounds are
//! 2^(0.179/8) = 1.6 % above the true ones. So that is what is sent: each count is divided between the
//! two in halves, which keeps every total exact, never lets a cumulative bucket shrink, and is wrong
//! about a duration by at most its own bucket (19 %) and those 1.6 %.
//!
//! Count, sum and maximum are exact; a minimum is not kept and not sent. Durations of 2^36 ns (69 s) or
//! more are in the last bucket, whose bound they exceed; the maximum and the sum tell of them. Below
//! 8 ns whole nanoseconds are coarser than the buckets, and a duration may be counted up to 1 ns too low.

use gotrace_common::{BUCKETS, Histogram};
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogramDataPoint, exponential_histogram_data_point::Buckets,
};

/// OTLP's scale: buckets grow by 2^(1/8).
pub(super) const SCALE: i32 = 3;
/// Index of the lower half of bucket 0: the integer nearest to −8·log2(10^9) = −239.179.
const FIRST_INDEX: i32 = -239;

/// A data point without attributes and times.
pub(super) fn data_point(histogram: &Histogram) -> ExponentialHistogramDataPoint {
    let Histogram { count, sum_ns, max_ns, buckets } = histogram;
    let first = buckets.iter().position(|n| *n != 0);
    let last = buckets.iter().rposition(|n| *n != 0);
    let positive = match (first, last) {
        (Some(first), Some(last)) => {
            let mut counts = Vec::with_capacity(2 * (last - first + 1));
            for n in &buckets[first..=last] {
                counts.push(n / 2);
                counts.push(n - n / 2);
            }
            let first = i32::try_from(first).unwrap_or(0);
            Some(Buckets { offset: FIRST_INDEX + 2 * first, bucket_counts: counts })
        }
        _ => None,
    };
    ExponentialHistogramDataPoint {
        // The kernel side counts without a lock: the buckets are what the total must agree with.
        count: buckets.iter().sum::<u64>(),
        sum: Some(seconds(*sum_ns)),
        scale: SCALE,
        positive,
        max: (*count > 0).then(|| seconds(*max_ns)),
        ..Default::default()
    }
}

/// What came since `earlier`; the maximum is kept only when it grew, since else it is not known.
pub(super) fn difference(now: &Histogram, earlier: &Histogram) -> (Histogram, bool) {
    let mut delta = Histogram {
        count: now.count.saturating_sub(earlier.count),
        sum_ns: now.sum_ns.saturating_sub(earlier.sum_ns),
        max_ns: now.max_ns,
        buckets: [0; BUCKETS],
    };
    for (d, (n, e)) in delta.buckets.iter_mut().zip(now.buckets.iter().zip(&earlier.buckets)) {
        *d = n.saturating_sub(*e);
    }
    (delta, now.max_ns > earlier.max_ns)
}

#[expect(clippy::cast_precision_loss, reason = "2^53 ns are 104 days; above, 1e-16 of the value is lost")]
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use gotrace_common::bucket_of;

    use super::*;

    /// Bounds of the buckets that a duration may be counted in, in seconds.
    fn bounds(index: i32) -> (f64, f64) {
        let base = 2f64.powf(2f64.powi(-SCALE));
        (base.powi(index), base.powi(index + 1))
    }

    #[test]
    fn a_pair_of_buckets_covers_the_nanosecond_bucket_within_two_percent() {
        for i in 0..BUCKETS {
            let exponent = i32::try_from(i).expect("small");
            let true_low = 2f64.powf(f64::from(exponent) / 4.0) / 1e9;
            let true_high = 2f64.powf(f64::from(exponent + 1) / 4.0) / 1e9;
            let low = bounds(FIRST_INDEX + 2 * exponent).0;
            let high = bounds(FIRST_INDEX + 2 * exponent + 1).1;
            for ratio in [low / true_low, high / true_high] {
                assert!((1.0..1.016).contains(&ratio), "bucket {i}: {ratio}");
            }
        }
    }

    #[test]
    fn every_duration_is_near_the_bucket_that_it_is_sent_in() {
        for ns in (8..200).chain((8..36).flat_map(|b| [1u64 << b, (1 << b) + 1, 3 << (b - 1)])) {
            let mut h = Histogram::default();
            h.add(ns);
            let point = data_point(&h);
            let positive = point.positive.expect("a bucket");
            let at = positive.bucket_counts.iter().position(|n| *n == 1).expect("counted");
            let (low, high) = bounds(positive.offset + i32::try_from(at).expect("small"));
            let true_value = seconds(ns);
            assert!(low / true_value < 1.23 && true_value / high < 1.23, "{ns}: {low}..{high}");
            assert_eq!((point.count, point.sum, point.max), (1, Some(true_value), Some(true_value)));
        }
    }

    #[test]
    fn totals_are_exact_and_an_empty_one_has_no_buckets() {
        let mut h = Histogram::default();
        assert_eq!(data_point(&h).positive, None);
        assert_eq!((data_point(&h).count, data_point(&h).max), (0, None));
        for ns in 0..1001 {
            h.add(ns * 977);
        }
        let point = data_point(&h);
        assert_eq!(point.positive.expect("buckets").bucket_counts.iter().sum::<u64>(), 1001);
        assert_eq!(point.count, 1001);
    }

    #[test]
    fn cumulative_buckets_never_shrink() {
        let mut h = Histogram::default();
        let mut before = vec![0; 2];
        for _ in 0..9 {
            h.add(1_000);
            let now = data_point(&h).positive.expect("buckets").bucket_counts;
            assert!(now.iter().zip(&before).all(|(n, b)| n >= b), "{before:?} {now:?}");
            before = now;
        }
    }

    #[test]
    fn a_difference_is_what_came_since() {
        let mut earlier = Histogram::default();
        earlier.add(5_000);
        let mut now = earlier;
        now.add(2_000);
        let (delta, max_known) = difference(&now, &earlier);
        assert_eq!((delta.count, delta.sum_ns, max_known), (1, 2_000, false));
        assert_eq!(delta.buckets[bucket_of(2_000)], 1);
        now.add(9_000);
        assert!(difference(&now, &earlier).1);
    }
}
