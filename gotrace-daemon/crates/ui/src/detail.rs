//! More about one creation site, as lines of plain text.

use gotrace_common::Histogram;
use gotrace_export::text;
use gotrace_model::{Interval, Location, Site, printable::printable};

use super::format;

/// Goroutine ids that are listed of a finding.
const GOIDS: usize = 12;

/// What is known of a site, and what is wrong with its goroutines.
pub(super) fn lines(interval: &Interval, site: &Site) -> Vec<String> {
    let mut lines = vec![
        at(&site.entry),
        format!("created by  {}", site.created_by.as_deref().map_or_else(|| "?".into(), at)),
        format!(
            "in all      {} created, {} exited, {} alive{}{}",
            site.born_total,
            site.died_total,
            site.alive,
            site.known_cpu_ns(true)
                .map_or_else(String::new, |ns| format!(", {} of CPU time", format::duration(ns))),
            match site.throttled_total_ns {
                0 => String::new(),
                ns => format!(", throttled for {}", format::duration(ns)),
            },
        ),
    ];
    for (name, histogram) in [("waits", &site.waits), ("lifetime", &site.lifetimes)] {
        lines.extend(durations(name, histogram));
    }
    if !site.waiting.is_empty() {
        let reasons: Vec<String> =
            site.waiting.iter().map(|(reason, n)| format!("{n} in {reason}")).collect();
        lines.push(format!("waiting     {}", reasons.join(", ")));
    }
    lines.extend(problems(interval, site));
    lines
}

/// `main.worker (pool.go:12)`
pub(super) fn at(location: &Location) -> String {
    let file = location.file.rsplit('/').next().unwrap_or_default();
    let place = if file.is_empty() { String::new() } else { format!(" ({file}:{})", location.line) };
    printable(&format!("{}{place}", location.function)).into_owned()
}

fn durations(name: &str, histogram: &Histogram) -> Option<String> {
    (histogram.count > 0).then(|| {
        format!(
            "{name:<11} {}, p50 {}, p99 {}, max {}",
            histogram.count,
            text::quantile(histogram, 0.5),
            text::quantile(histogram, 0.99),
            format::duration(histogram.max_ns),
        )
    })
}

/// Findings of its goroutines, as other outputs tell them, with why and ids.
fn problems(interval: &Interval, site: &Site) -> Vec<String> {
    let mut of_site = interval.clone();
    of_site.leaks.retain(|l| l.entry == site.entry && l.created_by == site.created_by);
    of_site.suspects.retain(|s| s.entry == site.entry && s.created_by == site.created_by);
    of_site.leaks_refuted = 0;
    let mut bytes = Vec::new();
    // A vector takes everything.
    let _ = text::leaks(&mut bytes, &of_site);
    let told = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines: Vec<String> = told.lines().map(|line| line.trim_start().to_owned()).collect();
    let whys = of_site.leaks.iter().map(|l| (&l.why, &l.goids));
    for (why, goids) in whys.chain(of_site.suspects.iter().map(|s| (&s.why, &s.goids))) {
        lines.push(format!("why         {}", printable(why)));
        let ids: Vec<String> = goids.iter().take(GOIDS).map(u64::to_string).collect();
        let more = if goids.len() > ids.len() { " …" } else { "" };
        lines.push(format!("goroutines  {}{more}", ids.join(" ")));
    }
    lines
}
