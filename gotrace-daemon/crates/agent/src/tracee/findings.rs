//! What an examination found of a tracee's goroutines, as results, and as log records of what is new or has doubled;
//! and log records of changes of its level.

use std::{collections::BTreeMap, sync::Arc};

use gotrace_export::text::held_by;
use gotrace_inspect::{
    heap::PASSES,
    leak::{Awaited, Identity, Suppression, Suppressions, Verdict},
};
use gotrace_model::{Leak, LeakPart, Location, LogRecord, Severity, Suspected, Value};
use serde::{Deserialize, Serialize};

use super::{Found, FoundHolder, FoundPart, Known, Names, Step, Tracee, WaitPlace, Why};

/// Places whose log records are remembered; more are told without.
const MAX_TOLD: usize = 4096;
/// A log record is sent again when there are so many times as many as at the last.
const GROWTH_STEP: u64 = 2;
/// Ids of goroutines that are named.
const NAMED: usize = 16;

/// What is believed of a tracee's goroutines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Findings {
    found: Vec<Found>,
    /// Proofs that turned out wrong.
    pub refuted: u64,
    /// How many there were at the last log record, by verdict and place.
    told: BTreeMap<(String, WaitPlace), u64>,
}

impl Findings {
    pub fn has_proven(&self) -> bool {
        self.found.iter().any(is_proven)
    }

    /// Goroutines that are proven to be leaked, by ascending id.
    pub fn proven(&self) -> Vec<u64> {
        let of = |found: &Found| {
            found
                .goids
                .iter()
                .chain(found.others.iter().flat_map(|part| &part.goids))
                .copied()
                .collect::<Vec<_>>()
        };
        let mut goids: Vec<u64> = self.found.iter().filter(|found| is_proven(found)).flat_map(of).collect();
        goids.sort_unstable();
        goids.dedup();
        goids
    }

    /// Of what was found only this is looked after from now on.
    pub fn keep(&mut self, proven: bool, suspected: bool) {
        self.found.retain(|found| if is_proven(found) { proven } else { suspected });
    }

    /// Whether a finding is new, or has grown.
    fn is_news(&mut self, found: &Found) -> bool {
        let count = found.goids.len() as u64;
        let key = (found.verdict.name().to_owned(), found.place.clone());
        if self.told.len() >= MAX_TOLD && !self.told.contains_key(&key) {
            return false;
        }
        let told = self.told.entry(key).or_insert(0);
        let news = count > 0 && count >= told.saturating_mul(GROWTH_STEP);
        if news {
            *told = count;
        }
        news
    }
}

fn is_proven(found: &Found) -> bool {
    found.verdict == Verdict::Unreachable
}

/// What goroutines run, where they were made, and where and what for they wait.
struct Place {
    entry: Arc<Location>,
    created_by: Option<Arc<Location>>,
    waits_at: Option<Arc<Location>>,
    reason: Arc<str>,
}

impl Tracee {
    /// Takes what an examination found, and tells what is new.
    pub(super) fn find(
        &mut self,
        now_ns: u64,
        found: Vec<Found>,
        names: &dyn Names,
        logs: &mut Vec<LogRecord>,
    ) {
        for found in &found {
            if self.findings.is_news(found) {
                logs.push(if is_proven(found) {
                    self.confirmed(now_ns, found, names)
                } else {
                    self.suspicion(now_ns, found, names)
                });
            }
        }
        self.findings.found = found;
    }

    /// What is proven, the most goroutines first, and who is suspected to be leaked or stalled, the worst first.
    pub(super) fn leaks_and_suspects(&mut self, names: &dyn Names) -> (Vec<Leak>, Vec<Suspected>) {
        let all = std::mem::take(&mut self.findings.found);
        let (mut leaks, mut suspects) = (Vec::new(), Vec::new());
        for found in &all {
            if is_proven(found) {
                leaks.push(self.leak(found, names));
            } else {
                suspects.push(self.suspected(found, names));
            }
        }
        self.findings.found = all;
        leaks.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.entry.cmp(&b.entry)));
        (leaks, suspects)
    }

    fn place(&mut self, place: &WaitPlace, names: &dyn Names) -> Place {
        let WaitPlace { entry_pc, created_pc, reason, frames } = place;
        let reason = match reason {
            Some(reason) => self.reason(*reason),
            None => Arc::from("unspecified"),
        };
        let symbols = &mut self.symbols;
        Place {
            entry: symbols.entry(*entry_pc, names),
            created_by: symbols.created_by(*created_pc, names),
            waits_at: symbols.wait_site(frames, names),
            reason,
        }
    }

    /// Why it may stay as it is.
    fn suppressed(&self, verdict: Verdict, place: &Place) -> Option<Arc<str>> {
        if self.suppressions.is_empty() {
            return None;
        }
        let Place { entry, created_by, waits_at, .. } = place;
        let of = identity_of(verdict, entry, created_by.as_deref(), waits_at.as_deref());
        self.suppressions.reason(&of)
    }

    fn leak(&mut self, found: &Found, names: &dyn Names) -> Leak {
        let place = self.place(&found.place, names);
        let suppressed = self.suppressed(found.verdict, &place);
        let Place { entry, created_by, waits_at, reason } = place;
        let part = |tracee: &mut Self, part: &FoundPart| {
            let at = tracee.place(&part.place, names);
            let Place { entry, created_by, waits_at, reason } = at;
            LeakPart { entry, created_by, waits_at, reason, goids: part.goids.clone() }
        };
        Leak {
            entry,
            created_by,
            waits_at,
            reason,
            count: found.goids.len() as u64,
            growth_per_second: found.growth_per_second,
            retained_bytes: found.retained_bytes,
            goids: found.goids.clone(),
            others: found.others.iter().map(|other| part(self, other)).collect(),
            place: found.awaited.map(Awaited::text),
            holders: self.holders(found, names),
            why: Arc::clone(&found.why),
            suppressed,
        }
    }

    fn suspected(&mut self, found: &Found, names: &dyn Names) -> Suspected {
        let place = self.place(&found.place, names);
        let suppressed = self.suppressed(found.verdict, &place);
        let Place { entry, created_by, waits_at, reason } = place;
        Suspected {
            verdict: found.verdict.name(),
            entry,
            created_by,
            waits_at,
            reason,
            count: found.goids.len() as u64,
            growth_per_second: found.growth_per_second,
            standing_ns: found.standing_ns,
            place: found.awaited.map(Awaited::text),
            holders: self.holders(found, names),
            why: Arc::clone(&found.why),
            goids: found.goids.iter().copied().take(NAMED).collect(),
            suppressed,
        }
    }

    fn holders(&mut self, found: &Found, names: &dyn Names) -> Vec<gotrace_model::Holder> {
        let of = |tracee: &mut Self, holder: &FoundHolder| gotrace_model::Holder {
            goid: holder.goid,
            runs: tracee.symbols.entry(holder.entry_pc, names),
            frame: tracee.symbols.call(holder.frame_pc, names),
            state: holder.status.name(),
            reason: holder.reason.map(|reason| tracee.reason(reason)),
            evidence: holder.evidence.name(),
            waits_for: holder.waits_for,
        };
        found.holders.iter().map(|holder| of(self, holder)).collect()
    }

    fn confirmed(&mut self, now_ns: u64, found: &Found, names: &dyn Names) -> LogRecord {
        let place = self.place(&found.place, names);
        let count = found.goids.len() as u64;
        let mut attributes =
            vec![("gotrace.leak.proven", number(count)), ("gotrace.leak.passes", number(u64::from(PASSES)))];
        let mut body = format!(
            "{count} goroutine{} of {} leaked: nothing that can still run references what {} blocked on ({}), confirmed by \
             {PASSES} heap scans",
            if count == 1 { "" } else { "s" },
            place.entry.function,
            if count == 1 { "it is" } else { "they are" },
            place.reason,
        );
        tell_place(&place, &mut body, &mut attributes);
        if let Some(bytes) = found.retained_bytes {
            body += &format!("; retaining {bytes} bytes of heap");
            attributes.push(("gotrace.leak.retained", number(bytes)));
        }
        self.tell_holders(found, names, &mut body, &mut attributes);
        attributes.push(goids(found));
        let suppressed = self.suppressed(found.verdict, &place);
        self.finding("gotrace.leak.confirmed", now_ns, body, attributes, suppressed)
    }

    fn suspicion(&mut self, now_ns: u64, found: &Found, names: &dyn Names) -> LogRecord {
        let place = self.place(&found.place, names);
        let (verdict, count) = (found.verdict, found.goids.len() as u64);
        let mut attributes = vec![
            ("gotrace.leak.verdict", Value::Text(Arc::from(verdict.name()))),
            ("gotrace.leak.suspects", number(count)),
            ("gotrace.leak.standing", Value::Double(found.standing_ns as f64 / 1e9)),
        ];
        if let Some(growth) = found.growth_per_second {
            attributes.push(("gotrace.leak.growth", Value::Double(growth.0)));
            attributes.push(("gotrace.leak.growth.high", Value::Double(growth.1)));
        }
        let what = match verdict {
            Verdict::Deadlock => "deadlocked",
            _ => "may have leaked",
        };
        let (entry, s) = (&place.entry.function, if count == 1 { "" } else { "s" });
        let mut body = match found.awaited {
            Some(awaited) if verdict == Verdict::Stalled => {
                format!(
                    "stalled: {count} goroutine{s} of {entry}, each {} ({})",
                    awaited.text(),
                    place.reason
                )
            }
            _ => format!("{count} goroutine{s} of {entry} {what} ({}; {})", verdict.name(), place.reason),
        };
        tell_place(&place, &mut body, &mut attributes);
        body += &format!(": {}", found.why);
        self.tell_holders(found, names, &mut body, &mut attributes);
        attributes.push(goids(found));
        let name = match verdict {
            Verdict::Deadlock => "gotrace.deadlock.detected",
            _ => "gotrace.leak.suspected",
        };
        let suppressed = self.suppressed(verdict, &place);
        self.finding(name, now_ns, body, attributes, suppressed)
    }

    /// Adds to a log record what goroutines wait for in plain words, and who holds it.
    fn tell_holders(
        &mut self,
        found: &Found,
        names: &dyn Names,
        body: &mut String,
        attributes: &mut Vec<(&'static str, Value)>,
    ) {
        if let Some(place) = found.awaited {
            attributes.push(("gotrace.wait.place", Value::Text(Arc::from(place.text()))));
        }
        let holders = self.holders(found, names);
        if let Some(holder) = holders.first() {
            *body = format!(
                "{}; {}",
                body.trim_end_matches('.'),
                held_by(holder, found.verdict == Verdict::Stalled)
            );
            let named = holders.iter().map(|h| Arc::from(h.goid.to_string())).collect();
            attributes.push(("gotrace.leak.holder.ids", Value::List(named)));
            attributes.push(("gotrace.leak.holder.evidence", Value::Text(Arc::from(holder.evidence))));
        }
    }

    /// `suppressed`: why its finding may stay as it is.
    fn finding(
        &self,
        name: &'static str,
        now_ns: u64,
        mut body: String,
        mut attributes: Vec<(&'static str, Value)>,
        suppressed: Option<Arc<str>>,
    ) -> LogRecord {
        let severity = if suppressed.is_some() { Severity::Info } else { Severity::Warn };
        if let Some(reason) = suppressed {
            body += &format!(" (suppressed: {reason})");
            attributes.push(("gotrace.leak.suppression", Value::Text(reason)));
        }
        self.record(name, now_ns, severity, body, attributes)
    }

    /// A change of its level, and why.
    pub(super) fn level_changed(&self, now_ns: u64, from: Step, to: Step, why: Why) -> LogRecord {
        let text = |text: &'static str| Value::Text(text.into());
        let mut body = format!("level changed from {} to {}: ", from.name(), to.name());
        let mut attributes =
            vec![("gotrace.level.from", text(from.name())), ("gotrace.level.to", text(to.name()))];
        match why {
            Why::Budget { cost_share, share } => {
                body += &format!(
                    "overhead about {} of the CPU time, budget {}",
                    percent(cost_share),
                    percent(share)
                );
                attributes.extend([
                    ("gotrace.level.reason", text("budget")),
                    ("gotrace.probe.cost", Value::Double(cost_share)),
                    ("gotrace.budget", Value::Double(share)),
                ]);
            }
            Why::Memory { used, limit } => {
                body += &format!("{used} bytes of memory used for the state of all processes, limit {limit}");
                attributes.extend([
                    ("gotrace.level.reason", text("memory")),
                    ("gotrace.memory.used", number(used)),
                    ("gotrace.memory.limit", number(limit)),
                ]);
            }
        }
        self.record("gotrace.level.changed", now_ns, Severity::Info, body, attributes)
    }

    fn record(
        &self,
        name: &'static str,
        now_ns: u64,
        severity: Severity,
        body: String,
        attributes: Vec<(&'static str, Value)>,
    ) -> LogRecord {
        let time_unix_nano = self.clock().unix_nano(now_ns);
        LogRecord { resource: Arc::clone(&self.resource), name, time_unix_nano, severity, body, attributes }
    }
}

/// What a leak is known by from one run to the next.
#[must_use]
pub fn identity(leak: &Leak) -> Identity {
    let Leak { entry, created_by, waits_at, .. } = leak;
    identity_of(Verdict::Unreachable, entry, created_by.as_deref(), waits_at.as_deref())
}

/// The same of any finding.
fn identity_of(
    verdict: Verdict,
    entry: &Location,
    created_by: Option<&Location>,
    waits_at: Option<&Location>,
) -> Identity {
    let function = |location: &Location| location.function.to_string();
    Identity {
        verdict,
        function: function(entry),
        created_by: created_by.map(function),
        waits_at: waits_at.map(function),
    }
}

fn number(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

/// A share, as people read it.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

fn goids(found: &Found) -> (&'static str, Value) {
    let named = found.goids.iter().take(NAMED).map(|g| Arc::from(g.to_string())).collect();
    ("gotrace.goroutine.ids", Value::List(named))
}

/// Adds to a log record what goroutines run, where they were made, and where they wait.
fn tell_place(place: &Place, body: &mut String, attributes: &mut Vec<(&'static str, Value)>) {
    let Place { entry, created_by, waits_at, reason } = place;
    attributes.extend([
        ("gotrace.wait.reason", Value::Text(Arc::clone(reason))),
        ("code.function.name", Value::Text(Arc::clone(&entry.function))),
    ]);
    if let Some(made) = created_by {
        *body += &format!("; created by {} ({}:{})", made.function, made.file, made.line);
        attributes.extend([
            ("gotrace.created_by.function.name", Value::Text(Arc::clone(&made.function))),
            ("gotrace.created_by.file.path", Value::Text(Arc::clone(&made.file))),
            ("gotrace.created_by.line.number", Value::Int(i64::from(made.line))),
        ]);
    }
    if let Some(at) = waits_at {
        *body += &format!("; blocked in {} ({}:{})", at.function, at.file, at.line);
        attributes.extend([
            ("gotrace.wait.function.name", Value::Text(Arc::clone(&at.function))),
            ("gotrace.wait.file.path", Value::Text(Arc::clone(&at.file))),
            ("gotrace.wait.line.number", Value::Int(i64::from(at.line))),
        ]);
    }
}

/// Suppressions, to be written.
pub(crate) fn known(all: &Suppressions) -> Vec<Known> {
    let known = |one: &Suppression| Known {
        function: one.function.text().into(),
        verdicts: one.verdicts.iter().map(|verdict| verdict.name().into()).collect(),
        reason: Arc::clone(&one.reason),
    };
    all.0.iter().map(known).collect()
}

/// Suppressions that were written. What is none of this version's is left out.
pub(super) fn suppressions(all: &[Known]) -> Suppressions {
    let suppression = |known: &Known| {
        Some(Suppression {
            function: known.function.parse().ok()?,
            verdicts: known.verdicts.iter().filter_map(|name| Verdict::from_name(name)).collect(),
            reason: Arc::clone(&known.reason),
        })
    };
    Suppressions(all.iter().filter_map(suppression).collect())
}
