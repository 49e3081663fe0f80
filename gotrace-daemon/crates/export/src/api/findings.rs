//! What is wrong with the processes that are traced (`gotrace.findings/1`): leaks that are proven and suspected, the worst
//! first.
//!
//! Input: the processes that are traced, and each one's last [`Interval`]. Output: JSON, bounded: of each finding a few
//! goroutines, and of many findings the worst. Pure.

use std::{cmp::Reverse, sync::Arc};

use serde_json::{Value as Json, json};

use super::{
    Traced,
    processes::{Latest, container},
};
use crate::json::{leak, suspected};
use gotrace_model::{Interval, Leak, Suspected};

/// The schema of the list.
const SCHEMA: &str = "gotrace.findings/1";
/// Findings that are told.
const MOST: usize = 1000;
/// Goroutines of each whose ids are told.
const IDS: usize = 16;
/// Verdicts, the worst first.
const VERDICTS: [&str; 6] = ["deadlock", "unreachable", "stalled", "stuck", "growing", "orphaned"];

enum Finding<'a> {
    Proven(&'a Leak),
    Suspected(&'a Suspected),
}

impl Finding<'_> {
    fn verdict(&self) -> &'static str {
        match self {
            Self::Proven(_) => "unreachable",
            Self::Suspected(suspected) => suspected.verdict,
        }
    }

    /// Those that somebody has accepted last.
    fn order(&self) -> impl Ord + use<> {
        let (accepted, count) = match self {
            Self::Proven(leak) => (leak.suppressed.is_some(), leak.count),
            Self::Suspected(suspected) => (suspected.suppressed.is_some(), suspected.count),
        };
        let verdict = VERDICTS.iter().position(|verdict| *verdict == self.verdict());
        (accepted, verdict.unwrap_or(VERDICTS.len()), Reverse(count))
    }

    fn to_json(&self, traced: &Traced, interval: &Interval) -> Json {
        let mut json = match self {
            Self::Proven(proven) => leak(proven, IDS),
            Self::Suspected(of) => suspected(of),
        };
        let resource = &interval.resource;
        let more = json!({
            "pid": traced.pid,
            "service": resource.text("service.name"),
            "namespace": resource.text("k8s.namespace.name"),
            "pod": resource.text("k8s.pod.name"),
            "container": container(resource),
            "verdict": self.verdict(),
            "reported_unix_nano": interval.end_unix_nano,
        });
        if let (Json::Object(json), Json::Object(more)) = (&mut json, more) {
            json.extend(more);
            if let Self::Proven(leak) = self {
                json.insert("oldest_ns".into(), oldest_ns(leak, interval).into());
            }
        }
        json
    }
}

/// The age of the oldest of these goroutines; `None` where others are of their creation site too, so that it may be one
/// of those.
fn oldest_ns(leak: &Leak, interval: &Interval) -> Option<u64> {
    let site = interval.sites.iter().find(|s| s.entry == leak.entry && s.created_by == leak.created_by)?;
    site.oldest_ns.filter(|_| site.alive <= leak.count)
}

/// The findings in these processes.
pub(super) fn list(traced: &[Traced], latest: &Latest, time_unix_nano: u64) -> Json {
    let mut findings: Vec<(Finding<'_>, &Traced, &Arc<Interval>)> = Vec::new();
    for traced in traced {
        let Some(interval) = latest.get(&traced.resource.process()) else { continue };
        let proven = interval.leaks.iter().map(Finding::Proven);
        let all = proven.chain(interval.suspects.iter().map(Finding::Suspected));
        findings.extend(all.map(|finding| (finding, traced, interval)));
    }
    // Of those that are as bad as each other the order is that of the processes.
    findings.sort_by_key(|(finding, ..)| finding.order());
    let told =
        findings.iter().take(MOST).map(|(finding, traced, interval)| finding.to_json(traced, interval));
    json!({
        "schema": SCHEMA,
        "time_unix_nano": time_unix_nano,
        "findings": told.collect::<Vec<_>>(),
        "findings_left_out": findings.len().saturating_sub(MOST),
    })
}
