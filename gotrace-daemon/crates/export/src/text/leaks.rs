//! Goroutines that are proven to be leaked, and those that are suspected, in plain lines: each with who holds what it
//! waits for.
//!
//! Input: an interval. Output: lines. Only the best evidence of a holder is told: `locked` says that it holds the lock,
//! all other evidence says less.

use std::io::{self, Write};

use super::{SITES, made_at, place};
use gotrace_model::{Holder, Interval, printable::printable};

/// Holders shown of one finding.
const HOLDERS: usize = 4;

/// Goroutines that are proven to be leaked, and those that are suspected.
///
/// # Errors
/// What the writer says.
pub fn leaks(out: &mut (impl Write + ?Sized), interval: &Interval) -> io::Result<()> {
    for leak in interval.leaks.iter().take(SITES) {
        let at = match &leak.waits_at {
            Some(at) => format!(" in {}", made_at(Some(at))),
            None => String::new(),
        };
        let retained =
            leak.retained_bytes.map_or_else(String::new, |n| format!(", retaining {} of heap", bytes(n)));
        let others: usize = leak.others.iter().map(|other| other.goids.len()).sum();
        let others = match others {
            0 => String::new(),
            n => format!("; {n} of them elsewhere in the same wait cycle"),
        };
        writeln!(
            out,
            "  {:>7} LEAKED  {}  created by {}: {}{at}{retained}{others}{}",
            leak.count,
            place(&leak.entry),
            made_at(leak.created_by.as_ref()),
            leak.reason,
            suppressed(leak.suppressed.as_deref()),
        )?;
        holders(out, &leak.holders, false)?;
    }
    let more: u64 = interval.leaks.iter().skip(SITES).map(|l| l.count).sum();
    if more > 0 {
        writeln!(out, "  {more:>7} more LEAKED")?;
    }
    for suspected in interval.suspects.iter().take(SITES) {
        let at = match &suspected.waits_at {
            Some(at) => format!(" in {}", made_at(Some(at))),
            None => String::new(),
        };
        let growth = suspected
            .growth_per_second
            .map_or_else(String::new, |(low, high)| format!(", growing by {low:.2} to {high:.2} per second"));
        let waits = suspected.place.map_or_else(String::new, |place| format!("{place}: "));
        writeln!(
            out,
            "  {:>7} {}  {}  created by {}: {waits}{}{at}{growth}{}",
            suspected.count,
            match suspected.verdict {
                "stalled" => "stalled".to_owned(),
                verdict => format!("suspected ({verdict})"),
            },
            place(&suspected.entry),
            made_at(suspected.created_by.as_ref()),
            suspected.reason,
            suppressed(suspected.suppressed.as_deref()),
        )?;
        holders(out, &suspected.holders, suspected.verdict == "stalled")?;
    }
    let more: u64 = interval.suspects.iter().skip(SITES).map(|s| s.count).sum();
    if more > 0 {
        writeln!(out, "  {more:>7} more suspected")?;
    }
    if interval.leaks_refuted > 0 {
        writeln!(
            out,
            "  leak proofs REFUTED: {}, which is a bug in gotrace; please report it",
            interval.leaks_refuted
        )?;
    }
    Ok(())
}

/// `, suppressed: reason`; empty where it is not.
fn suppressed(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(", suppressed: {}", printable(reason)))
}

/// Who holds what goroutines wait for, of the best evidence alone.
fn holders(out: &mut (impl Write + ?Sized), holders: &[Holder], of_pool: bool) -> io::Result<()> {
    let best = holders.first().map(|h| h.evidence);
    for holder in holders.iter().filter(|h| Some(h.evidence) == best).take(HOLDERS) {
        writeln!(out, "          {}", held_by(holder, of_pool))?;
    }
    Ok(())
}

/// `held by goroutine 7 (main.flusher) at main.flusher (store.go:12): sleep`. `of_pool`: what it holds is a connection of
/// one.
#[must_use]
pub fn held_by(holder: &Holder, of_pool: bool) -> String {
    let how = match holder.evidence {
        "locked" => "held by",
        "refers" if of_pool => "a connection is probably held by",
        "refers" => "probably held by",
        "candidate" => "may hold one:",
        _ => "perhaps held by",
    };
    let doing = holder.reason.as_deref().unwrap_or(holder.state);
    let (runs, at) = (place(&holder.runs), made_at(Some(&holder.frame)));
    format!("{how} goroutine {} ({runs}) at {at}: {doing}", holder.goid)
}

/// `512 B`, `1.5 KiB`, `2.0 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, None);
    for name in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, Some(name));
    }
    unit.map_or(format!("{bytes} B"), |unit| format!("{value:.1} {unit}"))
}
