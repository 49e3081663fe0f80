//! For how long a tracee's requests were traced, where that is not all the time: what was counted of them is of that time
//! alone.

use gotrace_model::requests::Covered;
use serde::{Deserialize, Serialize};

/// For how long requests were traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoveredTime {
    /// Whether they are given up while the level would allow them.
    pub(super) paused: bool,
    /// Whether they are traced now, and since when that or the contrary has been; `None` until tracing begins.
    now: Option<(bool, u64)>,
    traced_ns: u64,
    all_ns: u64,
    /// Both at the last report.
    reported: (u64, u64),
}

impl CoveredTime {
    /// They are traced from now on, or are not.
    pub(super) fn mark(&mut self, now_ns: u64, traced: bool) {
        let Covered { traced_ns, all_ns } = self.until(now_ns);
        (self.traced_ns, self.all_ns) = (traced_ns, all_ns);
        self.now = Some((traced, now_ns));
    }

    /// What there was since the last report, and in all.
    pub(super) fn report(&mut self, now_ns: u64) -> (Covered, Covered) {
        let all = self.until(now_ns);
        let (traced_ns, all_ns) = std::mem::replace(&mut self.reported, (all.traced_ns, all.all_ns));
        (all.since(Covered { traced_ns, all_ns }), all)
    }

    fn until(&self, now_ns: u64) -> Covered {
        let (traced, since_ns) = self.now.unwrap_or((false, now_ns));
        let spent = now_ns.saturating_sub(since_ns);
        Covered { traced_ns: self.traced_ns + if traced { spent } else { 0 }, all_ns: self.all_ns + spent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_traced_and_what_was_not_add_up() {
        let mut covered = CoveredTime::default();
        let of = |traced_ns, all_ns| Covered { traced_ns, all_ns };
        assert_eq!(covered.report(70), (of(0, 0), of(0, 0)));
        covered.mark(100, true);
        assert_eq!(covered.report(105), (of(5, 5), of(5, 5)));
        covered.mark(110, false);
        covered.mark(140, true);
        assert_eq!(covered.report(142), (of(7, 37), of(12, 42)));
        covered.mark(150, true);
        assert_eq!(covered.report(160), (of(18, 18), of(30, 60)));
    }
}
