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
                "a channel operation on a nil channel waits for ever by the language's specification; no other \
                 goroutine can end it ({}).",
                passes(agreed, needed, "found it unmoved")
            );
        }
        Some(Reason::NoCases) => {
            return format!(
                "a select without cases waits for ever by the language's specification ({}).",
                passes(agreed, needed, "found it unmoved")
            );
        }
        Some(Reason::Select) => "any of the channels that it waits on",
        Some(Reason::Lock | Reason::Semaphore) => "the lock that it waits for",
        Some(Reason::WaitGroup) => "the sync.WaitGroup that it waits for",
        Some(Reason::Cond) => "the sync.Cond that it waits for",
        Some(Reason::Coroutine) => "the next and stop functions of the iter.Pull that it runs for",
        _ => "the channel that it waits on",
    };
    let least = seconds(oldest(watch, members).at_least_ns);
    let proven = if agreed >= needed {
        "it can never run again"
    } else {
        "provisional: it can never run again, if more passes agree"
    };
    format!(
        "{proven}: no variable, no stack of a goroutine that can run and no object that these lead to refers to \
         {sought} ({}); not moved for at least {least}.",
        passes(agreed, needed, "agree")
    )
}

fn passes(agreed: u32, needed: u32, what: &str) -> String {
    let s = if agreed == 1 { "" } else { "es" };
    if agreed >= needed {
        format!("{agreed} pass{s} over the heap of the running process {what}")
    } else {
        format!("{agreed} pass{s} of {needed} over the heap of the running process {what} so far")
    }
}
