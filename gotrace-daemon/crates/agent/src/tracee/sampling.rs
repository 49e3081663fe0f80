//! Which spans are exported: a share of the traces, who lived or waited long in any case, and no more than so many a
//! second. What is left out is counted by why; births, waits and all else are in the metrics, whole.
//!
//! Traces are kept or left out whole, by their ids. Where a process makes more spans than it may, its share of the
//! traces is made smaller each second, so that traces are whole then too; only within the second in which it begins
//! are they cut.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::table::Output;

/// A smaller share aims at so much of what fits, as no second is quite like the one before.
const BELOW: f64 = 0.9;

/// Which spans are exported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpanSampling {
    /// Share of the traces, 0 to 1.
    pub ratio: f64,
    /// Goroutines that lived at least so long are exported in any case.
    pub keep_longer_than: Option<Duration>,
    /// Waits of at least this, and the goroutines that waited so long, are exported in any case.
    pub keep_wait_over: Option<Duration>,
    /// Most spans of one process in a second, those that are kept in any case among them.
    pub max_per_second: Option<u32>,
}

impl SpanSampling {
    /// Everything.
    pub const ALL: Self =
        Self { ratio: 1.0, keep_longer_than: None, keep_wait_over: None, max_per_second: None };

    /// Nothing: nobody is given spans.
    pub const NONE: Self = Self { ratio: 0.0, ..Self::ALL };

    /// Nanoseconds of a wait that keeps its goroutine.
    pub(super) fn long_wait_ns(&self) -> u64 {
        self.keep_wait_over.map_or(u64::MAX, nanoseconds)
    }

    fn is_long(&self, output: &Output) -> bool {
        match output {
            Output::Ended(ended) => {
                let lived_ns = ended.exit_ns.saturating_sub(ended.birth_ns);
                ended.waited_long || self.keep_longer_than.is_some_and(|least| lived_ns >= nanoseconds(least))
            }
            Output::Waited(waited) => waited.end_ns.saturating_sub(waited.start_ns) >= self.long_wait_ns(),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Decides for one process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sampler {
    /// The second that is being counted.
    second: u64,
    /// Spans of the traces of the share that is wanted, in this second: all, and those that were taken.
    wanted: u64,
    taken: u64,
    /// Others, that were long: all, and those that were taken.
    long: u64,
    long_taken: u64,
    /// What the second before left for those of `wanted`, and the share of the traces that fits into it; nothing
    /// before the first.
    fits: Option<(u64, f64)>,
    /// Left out since tracing began: by the share, and by the bound.
    out: (u64, u64),
}

impl Sampler {
    /// Whether this is exported; what is not is counted.
    pub fn takes(&mut self, sampling: &SpanSampling, trace_id: [u8; 16], output: &Output) -> bool {
        let end_ns = match output {
            Output::Ended(ended) => ended.exit_ns,
            Output::Waited(waited) => waited.end_ns,
        };
        let position = position(trace_id);
        let wanted = position < sampling.ratio;
        if !wanted && !sampling.is_long(output) {
            self.out.0 += 1;
            return false;
        }
        let Some(most) = sampling.max_per_second.map(u64::from) else {
            return true;
        };
        self.turn(end_ns / 1_000_000_000, sampling.ratio, most);
        let (room, ratio) = self.fits.unwrap_or((most, sampling.ratio));
        let fits = if wanted {
            self.wanted += 1;
            // Who is long is not left out for the sake of a smaller share.
            (position < ratio || sampling.is_long(output)) && self.taken < room
        } else {
            self.long += 1;
            true
        };
        if !fits || self.taken + self.long_taken >= most {
            self.out.1 += 1;
            return false;
        }
        *(if wanted { &mut self.taken } else { &mut self.long_taken }) += 1;
        true
    }

    /// Begins another second, with what the last one taught.
    fn turn(&mut self, second: u64, ratio: f64, most: u64) {
        // Records of several processors come out of order by little.
        if second <= self.second {
            return;
        }
        let seconds = if self.second == 0 { 1 } else { second - self.second };
        let room = most - (self.long / seconds).min(most / 2);
        let rate = self.wanted as f64 / seconds as f64;
        let share = if rate > room as f64 { ratio * BELOW * room as f64 / rate } else { ratio };
        *self = Self { second, fits: Some((room, share)), out: self.out, ..Self::default() };
    }

    /// Whether the bound left any out.
    pub fn is_exceeded(&self) -> bool {
        self.out.1 > 0
    }

    /// Spans that were left out, by why. Kinds with 0 are left out.
    pub fn left_out(&self) -> BTreeMap<&'static str, u64> {
        [("ratio", self.out.0), ("rate_limit", self.out.1)].into_iter().filter(|(_, n)| *n > 0).collect()
    }
}

/// Where a trace stands among all, from 0 to 1.
fn position(trace_id: [u8; 16]) -> f64 {
    let [a, b, c, d, e, f, g, h, ..] = trace_id;
    // Of 53 bits, so that it stays below 1.
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11) as f64 / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use smallvec::SmallVec;

    use super::*;
    use crate::table::{Ended, Waited, Waker};

    const SECOND: u64 = 1_000_000_000;

    fn ended(lived_ns: u64, exit_ns: u64, waited_long: bool) -> Output {
        Output::Ended(Ended {
            goid: 7,
            parent_goid: 1,
            root: 7,
            creator_root: None,
            birth_ns: exit_ns - lived_ns,
            exit_ns,
            created_pc: 1,
            entry_pc: 1,
            wait_total_ns: 0,
            wait_count: 0,
            cpu: crate::table::CpuUse::default(),
            life: None,
            waited_long,
            waits_by_reason: SmallVec::new(),
        })
    }

    fn waited(took_ns: u64, end_ns: u64) -> Output {
        Output::Waited(Waited {
            goid: 7,
            root: 7,
            reason: 1,
            start_ns: end_ns - took_ns,
            end_ns,
            wake_ns: None,
            waker: Waker::Unknown,
            peer: None,
            frames: SmallVec::new(),
        })
    }

    /// The trace at this part of all.
    fn trace(position: f64) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&((position * 18_446_744_073_709_551_616.0) as u64).to_be_bytes());
        id
    }

    #[test]
    fn a_share_of_the_traces_is_kept_whole_and_who_is_long_in_any_case() {
        let sampling = SpanSampling {
            ratio: 0.25,
            keep_longer_than: Some(Duration::from_secs(2)),
            keep_wait_over: Some(Duration::from_millis(500)),
            max_per_second: None,
        };
        let mut sampler = Sampler::default();
        let now = 100 * SECOND;
        let mut takes = |position, output| sampler.takes(&sampling, trace(position), &output);
        assert!(takes(0.2, ended(10, now, false)));
        assert!(takes(0.2, waited(10, now)));
        assert!(!takes(0.3, ended(10, now, false)));
        assert!(!takes(0.3, waited(10, now)));
        assert!(takes(0.3, ended(2 * SECOND, now, false)));
        assert!(takes(0.3, waited(SECOND / 2, now)));
        assert!(takes(0.3, ended(10, now, true)));
        assert_eq!(sampler.left_out(), BTreeMap::from([("ratio", 2)]));
        assert!(Sampler::default().takes(&SpanSampling::ALL, [255; 16], &ended(1, now, false)));
        let none = SpanSampling { ratio: 0.0, ..SpanSampling::ALL };
        assert!(!Sampler::default().takes(&none, [0; 16], &ended(1, now, false)));
    }

    #[test]
    fn no_more_than_so_many_a_second_and_after_the_first_second_whole_traces() {
        let sampling = SpanSampling { max_per_second: Some(100), ..SpanSampling::ALL };
        let mut sampler = Sampler::default();
        let mut taken_of = BTreeMap::new();
        for second in 1..=5 {
            let mut taken = 0;
            // A thousand spans of a hundred traces, each of which has ten.
            for n in 0..1000_u64 {
                let of = n % 100;
                let end = second * SECOND + n * 1_000_000;
                if sampler.takes(&sampling, trace(of as f64 / 100.0), &waited(10, end)) {
                    taken += 1;
                    *taken_of.entry((second, of)).or_insert(0) += 1;
                }
            }
            assert!((90..=100).contains(&taken), "{taken} in second {second}");
        }
        assert!(
            taken_of.iter().filter(|((second, _), _)| *second > 1).all(|(_, n)| *n == 10),
            "{taken_of:?}"
        );
        assert_eq!(sampler.left_out().into_keys().collect::<Vec<_>>(), ["rate_limit"]);
        // A calm second, and all are taken again.
        for (end, expected) in [(6 * SECOND, false), (8 * SECOND, true)] {
            assert_eq!(sampler.takes(&sampling, trace(0.99), &waited(10, end)), expected);
        }
    }

    #[test]
    fn who_is_long_is_taken_before_others_and_is_bounded_too() {
        let sampling = SpanSampling {
            ratio: 0.5,
            keep_wait_over: Some(Duration::from_millis(1)),
            max_per_second: Some(100),
            ..SpanSampling::ALL
        };
        let mut sampler = Sampler::default();
        for second in 1..=3 {
            let (mut long, mut short) = (0, 0);
            for n in 0..1000_u64 {
                let end = second * SECOND + n * 1_000_000;
                if n % 20 == 0 {
                    long += u64::from(sampler.takes(&sampling, trace(0.9), &waited(2_000_000, end)));
                } else {
                    short += u64::from(sampler.takes(&sampling, trace(n as f64 / 2000.0), &waited(10, end)));
                }
            }
            assert!(long + short <= 100, "{long} and {short}");
            if second > 1 {
                assert_eq!(long, 50);
            }
        }
    }
}
