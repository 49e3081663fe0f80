//! How many goroutines a process had within the last quarter of an hour, for whoever opens the page only now.
//!
//! Input: intervals as they end. Output: figures by steps of ten seconds; `null` where no interval ended within a step.
//! Bounded: [`STEPS`] steps. Pure.

use std::collections::VecDeque;

use gotrace_model::Interval;
use serde_json::{Value as Json, json};

/// The length of a step.
const STEP_NS: u64 = 10_000_000_000;
/// Steps that are kept.
const STEPS: usize = 90;

/// What a process's goroutines did.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// The oldest first.
    steps: VecDeque<Option<Step>>,
    /// Number of the last one, counted from the Unix epoch.
    last: u64,
}

/// The intervals that ended within a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Step {
    /// At the last one's end.
    alive: u64,
    created: u64,
    exited: u64,
}

impl History {
    /// An interval has ended.
    pub fn add(&mut self, interval: &Interval) {
        let number = interval.end_unix_nano / STEP_NS;
        if self.steps.is_empty() {
            self.last = number;
            self.steps.push_back(None);
        }
        // A clock that was set back adds to the last step.
        let passed = usize::try_from(number.saturating_sub(self.last)).unwrap_or(STEPS).min(STEPS);
        self.steps.extend(std::iter::repeat_n(None, passed));
        self.steps.drain(..self.steps.len().saturating_sub(STEPS));
        self.last = self.last.max(number);
        if let Some(step) = self.steps.back_mut() {
            let step = step.get_or_insert_default();
            step.alive = interval.alive;
            step.created = step.created.saturating_add(interval.born);
            step.exited = step.exited.saturating_add(interval.died);
        }
    }

    /// `brief`: how many were alive, and nothing else.
    pub fn to_json(&self, brief: bool) -> Json {
        let each = |of: fn(&Step) -> u64| self.steps.iter().map(|s| s.as_ref().map(of)).collect::<Vec<_>>();
        let mut json = json!({
            "step_ns": STEP_NS,
            "end_unix_nano": self.last.saturating_add(1).saturating_mul(STEP_NS),
            "alive": each(|s| s.alive),
        });
        if !brief && let Json::Object(fields) = &mut json {
            fields.insert("created".into(), json!(each(|s| s.created)));
            fields.insert("exited".into(), json!(each(|s| s.exited)));
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::samples;

    fn after(seconds: &[u64]) -> History {
        let mut history = History::default();
        let mut interval = samples::interval(&samples::resource(), 1, Vec::new());
        for (n, second) in seconds.iter().enumerate() {
            (interval.end_unix_nano, interval.alive) = (second * 1_000_000_000, n as u64);
            (interval.born, interval.died) = (3, 1);
            history.add(&interval);
        }
        history
    }

    #[test]
    fn steps_without_an_interval_are_not_known() {
        let json = after(&[100, 109, 131, 125]).to_json(false);
        assert_eq!(json["end_unix_nano"], 140_000_000_000_u64);
        assert_eq!(json["alive"], json!([1, null, null, 3]), "the clock was set back");
        assert_eq!(
            (&json["created"], &json["exited"]),
            (&json!([6, null, null, 6]), &json!([2, null, null, 2]))
        );
        assert!(after(&[100]).to_json(true)["created"].is_null());
    }

    #[test]
    fn the_oldest_steps_go() {
        let seconds: Vec<u64> = (0..200).map(|n| 100 + 10 * n).collect();
        let json = after(&seconds).to_json(true);
        let alive = json["alive"].as_array().expect("a list");
        assert_eq!((alive.len(), &alive[0], &alive[89]), (STEPS, &json!(110), &json!(199)));
        let long = after(&[100, 100_000_000]).to_json(true);
        assert_eq!(long["alive"].as_array().expect("a list").iter().filter(|n| !n.is_null()).count(), 1);
    }
}
