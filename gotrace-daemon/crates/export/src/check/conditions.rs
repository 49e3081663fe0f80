//! What can be wrong with a program beside its goroutines: a CPU quota that was used up, requests that were slow.

use std::sync::Arc;

use gotrace_inspect::leak::Verdict;
use gotrace_model::{
    printable::printable,
    requests::{Request, Route, RouteName},
};

use super::{Report, Weight, many};
use crate::{
    requests::{Gathered, reason, request},
    text::{duration, percent, quantile},
};

/// Routes of which it is told what was slow.
const ROUTES: usize = 5;

/// What a check looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Goroutines to which that applies.
    Verdict(Verdict),
    /// A CPU quota that was used up.
    Throttling,
    /// Requests that took long.
    Slow,
}

impl Concern {
    /// As users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verdict(verdict) => verdict.name(),
            Self::Throttling => "throttling",
            Self::Slow => "slow",
        }
    }
}

/// Requests that were traced meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Requested {
    /// How long one takes that is slow.
    pub slow_ns: u64,
    /// All of them.
    pub gathered: Gathered,
    /// Of each route the slowest one that was told.
    pub slowest: Vec<Arc<Request>>,
    /// What the probes took of the program's CPU time.
    pub probe_cost: Option<f64>,
}

/// Something that is wrong.
#[derive(Clone, Debug)]
pub struct Condition {
    /// What was looked for.
    pub concern: Concern,
    /// In a word.
    pub name: &'static str,
    /// The route; empty where it is none.
    pub about: String,
    /// What there is to say.
    pub sentence: String,
    /// Lines of what is known besides; may be empty.
    pub details: String,
}

impl Requested {
    /// Keeps a slow request that is slower than others of its route.
    pub fn keep(&mut self, request: &Arc<Request>) {
        /// As routes come from the program.
        const MOST: usize = 256;
        if let Some(known) = self.slowest.iter_mut().find(|known| known.name == request.name) {
            if known.duration_ns < request.duration_ns {
                *known = Arc::clone(request);
            }
        } else if self.slowest.len() < MOST {
            self.slowest.push(Arc::clone(request));
        }
    }

    /// Routes with slow requests, or with one that is open for so long; the one that takes the most time first.
    fn slow(&self) -> Vec<&Route> {
        let is_slow =
            |route: &&Route| route.slow > 0 || route.oldest_open_ns.is_some_and(|ns| ns >= self.slow_ns);
        self.gathered.busy().into_iter().filter(is_slow).collect()
    }

    /// What tracing them came to, without the slow ones.
    pub(super) fn sentence(&self) -> String {
        let (routes, from) = (self.gathered.busy(), duration(Some(self.slow_ns)));
        let count = self.gathered.all().0.count;
        let mut told = if routes.is_empty() {
            "no requests came".to_owned()
        } else {
            let found = match self.slow().len() {
                0 => format!("none took {from} or longer"),
                n => many(n, "finding"),
            };
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            format!("{} of {}, {found}", many(count, "request"), many(routes.len(), "route"))
        };
        let share = self.gathered.coverage();
        if share < 1.0 {
            told += &format!("; traced in turns, for {} of the time", percent(share));
        }
        if let Some(cost) = self.probe_cost {
            told += &format!("; the probes took {} of its CPU time", percent(cost));
        }
        told
    }

    fn conditions(&self) -> Vec<Condition> {
        let slow = self.slow();
        let names: Vec<&RouteName> = slow.iter().map(|route| &route.name).collect();
        let rest = slow.len().saturating_sub(ROUTES);
        let mut all: Vec<Condition> = slow
            .iter()
            .zip(RouteName::texts(&names))
            .take(ROUTES)
            .map(|(route, name)| self.condition(route, &printable(&name)))
            .collect();
        if rest > 0 {
            let sentence = format!("{} more of slow requests", many(rest, "route"));
            all.push(Condition { sentence, ..Condition::slow() });
        }
        all
    }

    fn condition(&self, route: &Route, name: &str) -> Condition {
        let from = duration(Some(self.slow_ns));
        let open = route.oldest_open_ns.filter(|ns| *ns >= self.slow_ns).map(|ns| {
            let s = if route.open == 1 { " is" } else { "s are" };
            (format!("{} request{s} open", route.open), duration(Some(ns)))
        });
        let mut sentence = if route.slow > 0 {
            format!(
                "{} of {} requests of {name} took {from} or longer (p50 {}, p99 {}, max {})",
                route.slow,
                route.durations.count,
                quantile(&route.durations, 0.5),
                quantile(&route.durations, 0.99),
                duration(Some(route.durations.max_ns)),
            )
        } else {
            String::new()
        };
        match open {
            Some((open, oldest)) if sentence.is_empty() => {
                sentence = format!("{open} of {name}, the oldest for {oldest}");
            }
            Some((open, oldest)) => sentence += &format!("; {open}, the oldest for {oldest}"),
            None => {}
        }
        if let Some(why) = route.why_slow() {
            sentence += &format!("; {} of their time: {}", percent(why.share), reason(why));
        }
        let mut details = Vec::new();
        if let Some(slowest) = self.slowest.iter().find(|request| request.name == route.name) {
            // A vector takes everything.
            let _ = request(&mut details, slowest);
        }
        let details = String::from_utf8_lossy(&details).into_owned();
        Condition { about: name.to_owned(), sentence, details, ..Condition::slow() }
    }
}

impl Condition {
    fn slow() -> Self {
        Self {
            concern: Concern::Slow,
            name: "slow",
            about: String::new(),
            sentence: String::new(),
            details: String::new(),
        }
    }
}

impl Report<'_> {
    /// What is wrong beside its goroutines, of a weight.
    #[must_use]
    pub fn conditions(&self, weight: Weight) -> Vec<Condition> {
        let throttled = self.coverage.throttling.as_ref().filter(|t| t.is_throttled()).map(|t| Condition {
            concern: Concern::Throttling,
            name: "throttled",
            about: String::new(),
            sentence: t.sentence(),
            details: String::new(),
        });
        let slow = self.requests.map(Requested::conditions).unwrap_or_default();
        let is_of = |condition: &Condition| {
            let fails = self.fail_on.contains(&condition.concern);
            weight == if fails { Weight::Problem } else { Weight::Warning }
        };
        throttled.into_iter().chain(slow).filter(is_of).collect()
    }
}
