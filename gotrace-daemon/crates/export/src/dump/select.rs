//! Which goroutines of a snapshot are wanted: by state, wait reason, function, goid, age.

use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};

use super::wait_reason;
use gotrace_inspect::snapshot::{Goroutine, Names, Snapshot, Status};

/// What is wanted; all of it must hold. The default is every goroutine but the runtime's own.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The runtime's own goroutines too.
    pub system: bool,
    /// One of these states; empty for any.
    pub states: Vec<Status>,
    /// One of these wait reasons, as Go's traceback says them; empty for any.
    pub reasons: Vec<String>,
    /// A function that any frame has, inlined ones included, or that the goroutine was started with.
    pub function: Option<Regex>,
    /// One of these goids, sorted, the runtime's own included; empty for any.
    pub goids: Vec<u64>,
    /// Those that are known to be this old.
    pub min_age: Option<MinAge>,
}

/// A least age, and who has it: a snapshot does not tell ages, two do.
#[derive(Clone, Debug, Default)]
pub struct MinAge {
    /// The least age.
    pub age: Duration,
    /// Goids that existed this long ago, sorted.
    pub goids: Vec<u64>,
}

impl Filter {
    /// The goroutines that are wanted, by ascending goid.
    #[must_use]
    pub fn select<'s>(&self, snapshot: &'s Snapshot, names: &mut Names) -> Vec<&'s Goroutine> {
        let Self { system, states, reasons, function, goids, min_age } = self;
        // Each distinct stack is searched once.
        let mut stacks: Vec<Option<bool>> = vec![None; snapshot.stacks.len()];
        let mut has_function = |g: &Goroutine, names: &mut Names, regex: &Regex| {
            if names.entry(g.entry_pc).is_some_and(|f| regex.is_match(&f.function)) {
                return true;
            }
            let Some(id) = g.stack else { return false };
            let mut search = || {
                let frames = names.stack(snapshot.stacks.frames(id));
                frames.iter().any(|f| regex.is_match(&f.frame.function))
            };
            match stacks.get_mut(id.index()) {
                Some(known) => *known.get_or_insert_with(search),
                None => search(),
            }
        };
        snapshot
            .goroutines
            .iter()
            .filter(|g| {
                (*system || !g.is_system() || !goids.is_empty())
                    && (goids.is_empty() || goids.binary_search(&g.goid).is_ok())
                    && (states.is_empty() || states.contains(&g.status))
                    && (reasons.is_empty()
                        || wait_reason(g, names).is_some_and(|r| reasons.iter().any(|wanted| **wanted == *r)))
                    && min_age.as_ref().is_none_or(|m| m.goids.binary_search(&g.goid).is_ok())
                    && function.as_ref().is_none_or(|regex| has_function(g, names, regex))
            })
            .collect()
    }

    /// As the header of `gotrace.dump/1` has it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Self { system, states, reasons, function, goids, min_age } = self;
        json!({
            "system": system,
            "states": states.iter().map(|s| s.name()).collect::<Vec<_>>(),
            "reasons": reasons,
            "function": function.as_ref().map(Regex::as_str),
            "goids": goids,
            "min_age_ns": min_age.as_ref().map(|m| u64::try_from(m.age.as_nanos()).unwrap_or(u64::MAX)),
        })
    }
}
