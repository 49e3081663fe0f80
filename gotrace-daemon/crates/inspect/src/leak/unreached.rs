//! What is said of goroutines that marking the heap could not reach.

use super::{
    Reason, Unreached,
    judge::{Member, oldest, seconds},
    watch::Watch,
};

/// How many passes agree on all of these.
pub(super) fn agreed(unreached: &Unreached, members: &[Member<'_>]) -> u32 {
    let of = |m: &Member<'_>| unreached.goids.get(&m.goroutine.goid).copied().unwrap_or(0);
    members.iter().map(of).min().unwrap_or(0)
}

/// What was proven, and how well.
pub(super) fn why(watch: &Watch, unreached: &Unreached, members: &[Member<'_>]) -> String {
    let (agreed, needed) = (agreed(unreached, members), unreached.needed);
    let sought = match members.first().map(|m| m.reason) {
        Some(Reason::Nil) => {
            return format!(
                "an operation on a nil channel blocks forever by the language specification; no other goroutine can end \
                 it ({}).",
                passes(agreed, needed)
            );
        }
        Some(Reason::NoCases) => {
            return format!(
                "a select without cases blocks forever by the language specification ({}).",
                passes(agreed, needed)
            );
        }
        Some(Reason::Select) => "any channel it is blocked on",
        Some(Reason::Lock | Reason::Semaphore) => "the lock it is blocked on",
        Some(Reason::WaitGroup) => "the sync.WaitGroup it is blocked on",
        Some(Reason::Cond) => "the sync.Cond it is blocked on",
        Some(Reason::Coroutine) => "the next and stop functions of its iter.Pull",
        _ => "the channel it is blocked on",
    };
    let least = seconds(oldest(watch, members).at_least_ns);
    let proven =
        if agreed >= needed { "leaked" } else { "provisionally leaked, to be confirmed by more heap scans" };
    format!(
        "{proven}: nothing that can still run references {sought} ({}). Blocked for at least {least}.",
        passes(agreed, needed)
    )
}

fn passes(agreed: u32, needed: u32) -> String {
    let s = if agreed == 1 { "" } else { "s" };
    if agreed >= needed {
        format!("confirmed by {agreed} heap scan{s}")
    } else {
        format!("{agreed} of {needed} heap scans so far")
    }
}
