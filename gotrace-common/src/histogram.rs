//! Histogram of durations with the buckets of an OTLP exponential histogram of scale 2: four to an
//! octave, bucket *i* holds durations in (2^(i/4), 2^((i+1)/4)] nanoseconds. The kernel side fills it,
//! user space adds what it sees itself, and the exporter sends it as it is.

/// Buckets: 36 octaves, up to 68 seconds; longer durations are in the last one.
pub const BUCKETS: usize = 144;
/// Rows of histograms a process has: one a wait reason, and the three below.
pub const REASON_ROWS: u32 = 64;
/// Row of wait reasons that have none of their own.
pub const ROW_OTHER: u32 = 61;
/// Row of system calls.
pub const ROW_SYSCALL: u32 = 62;
/// Row of scheduling delays.
pub const ROW_SCHEDULE: u32 = 63;

/// A histogram (1,176 bytes). The kernel side leaves the count to who reads it: it is that of the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Histogram {
    /// Durations counted.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// By bucket.
    pub buckets: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { count: 0, sum_ns: 0, max_ns: 0, buckets: [0; BUCKETS] }
    }
}

// 2^(1/4), 2^(2/4), 2^(3/4) in units of 2^-32, rounded down.
const QUARTERS: [u64; 3] = [5_107_605_667, 6_074_000_999, 7_223_245_558];

/// The bucket of a duration. Durations of 0 and 1 ns are in bucket 0.
#[inline(always)]
#[must_use]
pub const fn bucket_of(duration_ns: u64) -> usize {
    let v = if duration_ns > 1 { duration_ns } else { return 0 };
    // The position of the highest bit, by halving: eBPF has no instruction for it.
    let mut octave = 0;
    let mut x = v;
    if x >> 32 != 0 {
        octave += 32;
        x >>= 32;
    }
    if x >> 16 != 0 {
        octave += 16;
        x >>= 16;
    }
    if x >> 8 != 0 {
        octave += 8;
        x >>= 8;
    }
    if x >> 4 != 0 {
        octave += 4;
        x >>= 4;
    }
    if x >> 2 != 0 {
        octave += 2;
        x >>= 2;
    }
    if x >> 1 != 0 {
        octave += 1;
    }
    if octave >= 36 {
        return BUCKETS - 1;
    }
    // The mantissa in [1, 2), in units of 2^-32. Below 2^36 there is room for the shift by 63 - 36.
    let mantissa = if octave <= 32 { v << (32 - octave) } else { v >> (octave - 32) };
    let mut quarter = 0;
    if mantissa > QUARTERS[0] {
        quarter = 1;
    }
    if mantissa > QUARTERS[1] {
        quarter = 2;
    }
    if mantissa > QUARTERS[2] {
        quarter = 3;
    }
    let bucket = (octave * 4 + quarter) as usize;
    // Bounds are inclusive above, and powers of two are the only bounds that are whole numbers.
    if v & (v - 1) == 0 { bucket - 1 } else { bucket }
}

/// The upper bound of a bucket, in nanoseconds.
#[must_use]
pub fn bucket_upper_bound_ns(bucket: usize) -> u64 {
    let exponent = bucket + 1;
    let octave = (exponent / 4) as u32;
    let one = 1u64 << 32;
    let mantissa = match exponent % 4 {
        0 => one,
        quarter => QUARTERS[quarter - 1],
    };
    if octave <= 32 { mantissa >> (32 - octave) } else { mantissa << (octave - 32) }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration_ns: u64) {
        self.count += 1;
        self.sum_ns += duration_ns;
        self.max_ns = self.max_ns.max(duration_ns);
        self.buckets[bucket_of(duration_ns)] += 1;
    }

    /// Counts what another has counted.
    pub fn merge(&mut self, other: &Self) {
        let Self { count, sum_ns, max_ns, buckets } = other;
        self.count += count;
        self.sum_ns += sum_ns;
        self.max_ns = self.max_ns.max(*max_ns);
        for (mine, theirs) in self.buckets.iter_mut().zip(buckets) {
            *mine += theirs;
        }
    }

    /// What came since it was as `before`; the longest is at most 19 % above the true one where an earlier one was longer.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let buckets: [u64; BUCKETS] =
            core::array::from_fn(|n| self.buckets[n].saturating_sub(before.buckets[n]));
        let highest = buckets.iter().rposition(|n| *n > 0).map_or(0, bucket_upper_bound_ns);
        Self {
            count: buckets.iter().sum(),
            sum_ns: self.sum_ns.saturating_sub(before.sum_ns),
            max_ns: if self.max_ns > before.max_ns { self.max_ns } else { highest.min(self.max_ns) },
            buckets,
        }
    }

    /// The duration that a share `q` (0 to 1) of those counted do not exceed: the upper bound of its
    /// bucket, at most 19 % above the true value, and never above the longest. `None` when empty.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "0 <= q <= 1")]
        let rank = ((self.count as f64 * q.clamp(0.0, 1.0) + 0.999_999) as u64).max(1);
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Some(if i == BUCKETS - 1 {
                    self.max_ns
                } else {
                    bucket_upper_bound_ns(i).min(self.max_ns)
                });
            }
        }
        Some(self.max_ns)
    }
}

const _: () = assert!(size_of::<Histogram>() == 1176);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (size asserted above), every bit pattern valid.
unsafe impl aya::Pod for Histogram {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_their_bounds_say() {
        for v in (1..5000).chain((12..36).flat_map(|b| [(1u64 << b) - 1, 1 << b, (1 << b) + 1, 3 << (b - 1)]))
        {
            let b = bucket_of(v);
            assert!(
                v <= bucket_upper_bound_ns(b) + 1,
                "{v} in bucket {b} above {}",
                bucket_upper_bound_ns(b)
            );
            if b > 0 && v > 1 {
                let exact = ((v as f64).log2() * 4.0).ceil() as i64 - 1;
                assert!((exact - b as i64).abs() <= 1, "{v}: {exact} against {b}");
                assert!(v + 1 >= bucket_upper_bound_ns(b - 1), "{v} in bucket {b}");
            }
        }
    }

    #[test]
    fn powers_of_two_are_upper_bounds() {
        for b in 1..36 {
            assert_eq!(bucket_of(1 << b), 4 * b - 1);
            // Below 8 the next whole number is more than a quarter of an octave away.
            if b >= 3 {
                assert_eq!(bucket_of((1 << b) + 1), 4 * b);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_of(0), 0);
    }

    #[test]
    fn quantiles_come_from_the_buckets() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile_ns(0.5), None);
        for v in 1..=1000u64 {
            h.add(v * 1000);
        }
        let p50 = h.quantile_ns(0.5).expect("not empty");
        assert!((500_000..=600_000).contains(&p50), "{p50}");
        assert_eq!(h.quantile_ns(1.0), Some(1_000_000));
    }
}
