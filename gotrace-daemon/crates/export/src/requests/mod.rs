//! Requests, as `gotrace requests` prints them: each slow one with its parts and waits, and a table of routes; text and
//! JSON lines (`gotrace.requests/1`).

pub(crate) mod json;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use gotrace_common::Histogram;
use gotrace_model::{
    Interval,
    printable::printable,
    requests::{Cause, Covered, Route, RouteTotal, TimeSpent},
};

pub(crate) use json::to_json;
pub use json::{SCHEMA, header as json_header, interval as json_interval, request as json_request};
pub use json::{open_before as json_open_before, summary as json_summary};
pub use text::{LEGEND, bar, header, open_before, request, shares, table};
pub(crate) use text::{in_interval, in_summary, reason};

use crate::text::duration;

/// What came of several reports: an interval of the output.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    start_unix_nano: u64,
    end_unix_nano: u64,
    routes: Vec<Route>,
    left_out: u64,
    lost: BTreeMap<&'static str, u64>,
    covered: Covered,
}

impl Gathered {
    /// Adds a report. `all`: its figures since attaching instead, which stand alone.
    pub fn add(&mut self, interval: &Interval, all: bool) {
        if self.start_unix_nano == 0 {
            self.start_unix_nano = interval.start_unix_nano;
        }
        self.end_unix_nano = interval.end_unix_nano;
        self.lost.clone_from(&interval.lost);
        let Some(requests) = &interval.requests else { return };
        self.covered.add(if all { requests.covered_total } else { requests.covered });
        self.left_out += requests.left_out;
        for route in &mut self.routes {
            (route.open, route.oldest_open_ns) = (0, None);
        }
        for new in &requests.routes {
            let new = if all { whole(new) } else { new.clone() };
            let Some(known) = self.routes.iter_mut().find(|route| route.name == new.name) else {
                self.routes.push(new);
                continue;
            };
            (known.open, known.oldest_open_ns) = (new.open, new.oldest_open_ns);
            known.errors += new.errors;
            known.slow += new.slow;
            known.durations.merge(&new.durations);
            known.times.add(&new.times);
            known.slow_times.add(&new.slow_times);
            for (status, n) in new.by_status {
                *known.by_status.entry(status).or_default() += n;
            }
        }
    }

    /// Begins anew behind this one.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { start_unix_nano: self.end_unix_nano, ..Self::default() }
    }

    /// The share of its time for which requests were traced.
    pub(crate) fn coverage(&self) -> f64 {
        self.covered.share()
    }

    /// Events that were lost since attaching.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Routes that had requests or have open ones, the one that took the most time first.
    pub(crate) fn busy(&self) -> Vec<&Route> {
        let mut routes: Vec<_> =
            self.routes.iter().filter(|route| route.durations.count > 0 || route.open > 0).collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.durations.sum_ns));
        routes
    }

    /// Requests of all routes.
    pub(crate) fn all(&self) -> (Histogram, TimeSpent) {
        let (mut durations, mut times) = (Histogram::default(), TimeSpent::default());
        for route in &self.routes {
            durations.merge(&route.durations);
            times.add(&route.times);
        }
        (durations, times)
    }
}

/// A route with its figures since attaching.
fn whole(route: &Route) -> Route {
    let RouteTotal { by_status, errors, slow, durations, times, slow_times } = &route.total;
    Route {
        by_status: by_status.iter().map(|(status, h)| (*status, h.count)).collect(),
        errors: *errors,
        slow: *slow,
        durations: *durations,
        times: *times,
        slow_times: *slow_times,
        ..route.clone()
    }
}

/// What a goroutine did that ended a wait, in words: `goroutine 911 (main.flush): IO wait 60ms in main.write`.
#[must_use]
pub fn cause(cause: &Cause) -> String {
    let Cause { goid, function, state, duration_ns, frame } = cause;
    let function = function.as_ref().map(|f| format!(" ({})", printable(&f.function))).unwrap_or_default();
    let place = frame.as_ref().map(|f| format!(" in {}", printable(&f.function))).unwrap_or_default();
    format!("goroutine {goid}{function}: {state} {}{place}", duration(Some(*duration_ns)))
}
