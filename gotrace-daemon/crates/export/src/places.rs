//! Where goroutines wait in the program's own code: a block of the summary, and `waits_at` of `gotrace.attach/1`.
//!
//! What is told is of waits of at least `--min-wait`, which both outputs say, and bounded, which they say as well.

use std::io::{self, Write};

use gotrace_common::Histogram;
use gotrace_model::{Location, Place, Places};
use serde_json::{Value as Json, json};

use crate::{
    json::{location, quantiles},
    text::{duration, made_at, quantile},
};

/// Places of a summary.
const SHOWN: usize = 10;
/// Places of a JSON line.
const TOLD: usize = 64;

/// The places where goroutines waited longest. `system`: with the runtime's own.
///
/// # Errors
/// What the writer says.
pub(crate) fn in_summary(out: &mut impl Write, places: &Places, system: bool) -> io::Result<()> {
    let shown: Vec<&Place> = places.places.iter().filter(|p| system || !p.system).collect();
    if shown.is_empty() && places.others.count == 0 {
        return Ok(());
    }
    let least = places.min_wait_ns.map_or_else(|| "--min-wait".into(), |ns| duration(Some(ns)));
    writeln!(
        out,
        "  waits at     {:<22} {:>10} {:>9} {:>9} {:>9} {:>9}  own code",
        format!("(from {least} on)"),
        "count",
        "total",
        "p50",
        "p99",
        "max"
    )?;
    for place in shown.iter().take(SHOWN) {
        let waits = &place.waits;
        writeln!(
            out,
            "               {:<22} {:>10} {:>9} {:>9} {:>9} {:>9}  {}{}",
            place.reason,
            waits.count,
            duration(Some(waits.sum_ns)),
            quantile(waits, 0.5),
            quantile(waits, 0.99),
            duration(Some(waits.max_ns)),
            made_at(place.at.as_ref()),
            place.peer.map(|peer| format!(" ← {peer}")).unwrap_or_default(),
        )?;
    }
    if shown.iter().take(SHOWN).any(|p| !p.own && !p.is_stack_complete()) {
        let told = "where it is a library's, own code is further out: a larger --stack-depth shows it";
        writeln!(out, "               {told}")?;
    }
    let more = shown.get(SHOWN..).unwrap_or_default();
    let sum = |of: fn(&Place) -> u64| more.iter().fold(0, |sum: u64, p| sum.saturating_add(of(p)));
    let rest = [
        (format!("{} more places", more.len()), sum(|p| p.waits.count), sum(|p| p.waits.sum_ns)),
        ("places without room".into(), places.others.count, places.others.sum_ns),
    ];
    for (what, count, ns) in rest.iter().filter(|(_, count, _)| *count > 0) {
        writeln!(out, "               {what:<22} {count:>10} {:>9}", duration(Some(*ns)))?;
    }
    Ok(())
}

/// The places as they stand in an interval, the longest first, and waits at all others.
pub(crate) fn to_json(places: &Places) -> (Json, Histogram) {
    let (told, others) = places.first(TOLD);
    (told.iter().map(place).collect(), others)
}

fn place(place: &Place) -> Json {
    let at = |l: &Location| location(l);
    let mut line = quantiles(&place.waits);
    let more = json!({
        "reason": place.reason,
        "frame": place.at.as_deref().map(at),
        "own": place.own,
        "stack": place.stack.iter().map(|l| at(l)).collect::<Vec<_>>(),
        "stack_complete": place.is_stack_complete(),
        "system": place.system,
        "count": place.waits.count,
        "total_ns": place.waits.sum_ns,
        "peer": place.peer.map(|peer| peer.to_string()),
        // Not known of waits that have ended.
        "now": null,
    });
    if let (Json::Object(line), Json::Object(more)) = (&mut line, more) {
        line.extend(more);
    }
    line
}
