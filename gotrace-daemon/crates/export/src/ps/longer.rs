//! What a daemon knows of programs that it traces, beside what a second shows of them: how they grew, which leaks are
//! proven, and for how long goroutines have been blocked.
//!
//! Input: what the daemon's API answers (`gotrace.processes/1`, `gotrace.history/1`, `gotrace.findings/1`). Output:
//! [`Longer`] by process; what is missing or of another form is not known. Pure.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

use super::{Kind, Problem, Seen, is_own};
use crate::text::duration;

/// Of how many steps of a history how many goroutines there were must be known, so that growth can be told.
const LEAST_STEPS: usize = 3;

/// What a daemon says of a program.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Longer {
    /// Since when it traces it, Unix epoch.
    pub since_unix_nano: u64,
    /// How: `events` or `snapshot`.
    pub engine: String,
    /// And at which level.
    pub level: String,
    /// How many goroutines came less those that ended, a second, within its history; `None` where that is not known yet.
    pub growth_per_second: Option<f64>,
    /// Over which time that is.
    pub growth_over_ns: Option<u64>,
    /// Goroutines that are proven to be leaked; `None` before its first report.
    pub leaks_proven: Option<u64>,
    /// And suspected.
    pub leak_suspects: Option<u64>,
    #[serde(skip)]
    pub(super) findings: Vec<Finding>,
}

/// A process of the list.
#[derive(Deserialize)]
struct Listed {
    pid: u32,
    start_ticks: u64,
    since_unix_nano: u64,
    engine: String,
    level: String,
    leaks_proven: Option<u64>,
    leak_suspects: Option<u64>,
}

#[derive(Deserialize)]
struct History {
    pid: u32,
    since_unix_nano: u64,
    step_ns: u64,
    alive: Vec<Option<u64>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Finding {
    pid: u32,
    verdict: String,
    count: usize,
    entry: Option<Place>,
    waits_at: Option<Place>,
    wait_reason: String,
    /// Of what is suspected.
    standing_ns: Option<u64>,
    /// Of what is proven.
    oldest_ns: Option<u64>,
    suppressed: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Place {
    function: String,
}

/// What each process is told of, by its pid and start ([`super::Row`]'s are those of the node).
#[must_use]
pub fn longer(processes: &Json, histories: &Json, findings: &Json) -> BTreeMap<(u32, u64), Longer> {
    let histories: Vec<History> = each(&histories["processes"]);
    let findings: Vec<Finding> = each(&findings["findings"]);
    let listed: Vec<Listed> = each(&processes["processes"]);
    let of = |listed: Listed| {
        let Listed { pid, start_ticks, since_unix_nano, engine, level, leaks_proven, leak_suspects } = listed;
        let growth = histories
            .iter()
            .find(|history| (history.pid, history.since_unix_nano) == (pid, since_unix_nano))
            .and_then(History::growth);
        let findings = findings.iter().filter(|f| f.pid == pid && f.suppressed.is_none()).cloned().collect();
        let longer = Longer {
            since_unix_nano,
            engine,
            level,
            growth_per_second: growth.map(|(growth, _)| growth),
            growth_over_ns: growth.map(|(_, over)| over),
            leaks_proven,
            leak_suspects,
            findings,
        };
        ((pid, start_ticks), longer)
    };
    listed.into_iter().map(of).collect()
}

/// Those of a list that have the form that they should have.
fn each<T: DeserializeOwned>(list: &Json) -> Vec<T> {
    list.as_array().into_iter().flatten().filter_map(|one| T::deserialize(one).ok()).collect()
}

impl History {
    /// Growth a second, and over which time.
    fn growth(&self) -> Option<(f64, u64)> {
        let mut known = self.alive.iter().enumerate().filter_map(|(n, alive)| Some((n, (*alive)?)));
        if known.clone().count() < LEAST_STEPS {
            return None;
        }
        // In the first step it was only just found.
        let (first, before) = known.nth(1)?;
        let (last, now) = known.next_back()?;
        let steps = u64::try_from(last - first).ok()?;
        let over_ns = steps.saturating_mul(self.step_ns);
        (over_ns > 0).then(|| ((now as f64 - before as f64) / (over_ns as f64 / 1e9), over_ns))
    }
}

impl Finding {
    fn kind(&self) -> Option<Kind> {
        let is_lock = self.wait_reason.contains("Mutex");
        match self.verdict.as_str() {
            "unreachable" => Some(Kind::Leak),
            "deadlock" => Some(Kind::Deadlock),
            "stalled" => Some(Kind::Stalled),
            "growing" => Some(Kind::Growing),
            "stuck" if is_lock => Some(Kind::Lock),
            _ => None,
        }
    }

    /// Where they are blocked, in the program's own code as far as that is told.
    fn function(&self) -> &str {
        let own = self.waits_at.iter().find(|place| is_own(&place.function));
        own.or(self.entry.as_ref()).map_or("?", |place| &place.function)
    }

    fn blocked_ns(&self) -> Option<u64> {
        self.standing_ns.or(self.oldest_ns)
    }
}

impl Seen {
    /// Adds what a daemon knows: leaks that it has proven take the place of those that a single scan shows, what grew
    /// slowly comes to them, and what a second shows too is said to be as old as it is. What has passed since is not told.
    pub fn add(&mut self, longer: &Longer) {
        for finding in &longer.findings {
            let Some(kind) = finding.kind() else { continue };
            let (function, oldest_ns) = (finding.function(), finding.blocked_ns());
            let goroutines = finding.count;
            let age = oldest_ns.map_or_else(String::new, |ns| format!(", ≥ {}", duration(Some(ns))));
            let is_same = |p: &Problem| p.kind == kind && p.function == function;
            let own = |provisional| Problem {
                kind,
                goroutines,
                function: function.to_owned(),
                provisional,
                note: format!("{goroutines} × {function}{age}"),
                oldest_ns,
            };
            match kind {
                Kind::Leak => {
                    self.problems.retain(|p| !(is_same(p) && p.provisional));
                    self.problems.push(own(false));
                }
                Kind::Growing if !self.problems.iter().any(is_same) => self.problems.push(own(false)),
                _ => {
                    for problem in self.problems.iter_mut().filter(|p| is_same(p)) {
                        if !problem.note.contains('≥') {
                            problem.note += &age;
                        }
                        problem.oldest_ns = problem.oldest_ns.max(oldest_ns);
                    }
                }
            }
        }
        self.problems.sort_by_key(|p| (p.kind, Reverse(p.goroutines)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn processes() -> Json {
        let of = |pid: u32, start: Option<u64>| {
            json!({
                "pid": pid, "start_ticks": start, "since_unix_nano": 100, "engine": "events", "level": "waits",
                "leaks_proven": 5, "leak_suspects": null, "alive": 9,
            })
        };
        json!({"processes": [of(7, Some(70)), of(8, None), of(9, Some(90))]})
    }

    fn finding(verdict: &str, count: u64, function: &str, more: &Json) -> Json {
        let mut json = json!({
            "pid": 7, "verdict": verdict, "count": count, "entry": {"function": "main.entry"},
            "waits_at": {"function": function}, "wait_reason": "chan receive", "suppressed": null,
        });
        json.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json
    }

    fn of(findings: &[Json], alive: &Json) -> Longer {
        let history = json!({"processes": [
            {"pid": 7, "since_unix_nano": 99, "step_ns": 10_000_000_000_u64, "alive": [1, 2, 3, 4]},
            {"pid": 7, "since_unix_nano": 100, "step_ns": 10_000_000_000_u64, "alive": alive},
        ]});
        let all = longer(&processes(), &history, &json!({ "findings": findings }));
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [(7, 70), (9, 90)], "a start must be known");
        assert!(all[&(9, 90)].findings.is_empty());
        all[&(7, 70)].clone()
    }

    #[test]
    fn growth_is_that_of_the_history_without_its_first_step() {
        let growth = |alive: Json| {
            let longer = of(&[], &alive);
            longer.growth_per_second.zip(longer.growth_over_ns)
        };
        assert_eq!(growth(json!([1, 100, null, 160])), Some((3.0, 20_000_000_000)));
        assert_eq!(growth(json!([null, 9, 100, 50])), Some((-5.0, 10_000_000_000)));
        assert_eq!(growth(json!([1, 2])), None);
        assert_eq!(growth(json!([null, null, 3])), None);
        assert_eq!(growth(json!("none")), None);
    }

    #[test]
    fn what_is_proven_takes_the_place_of_what_one_scan_shows() {
        let problem = |kind, provisional, note: &str| Problem {
            kind,
            goroutines: 4,
            function: "main.f".into(),
            provisional,
            note: note.into(),
            oldest_ns: None,
        };
        let mut seen = Seen {
            go_version: "go1.24.11".into(),
            goroutines: 9,
            growth_per_second: 0.0,
            problems: vec![
                problem(Kind::Leak, true, "4 × main.f"),
                problem(Kind::Lock, false, "4 wait for a lock in main.f"),
            ],
            not_scanned: None,
        };
        let hour = json!({"oldest_ns": 3_600_000_000_000_u64});
        let lock = json!({"standing_ns": 720_000_000_000_u64, "wait_reason": "sync.Mutex.Lock"});
        let longer = of(
            &[
                finding("unreachable", 3, "main.f", &hour),
                finding("unreachable", 1, "internal/poll.(*FD).Read", &json!({})),
                finding("unreachable", 9, "main.known", &json!({"suppressed": "by design"})),
                finding("growing", 40, "main.g", &json!({"standing_ns": 1_000_000_000})),
                finding("stuck", 4, "main.f", &lock),
                // A second shows that it is none any more.
                finding("stalled", 4, "main.f", &lock),
                finding("orphaned", 4, "main.f", &lock),
                json!({"verdict": "unreachable"}),
            ],
            &json!([]),
        );
        seen.add(&longer);
        let told: Vec<(Kind, bool, &str)> =
            seen.problems.iter().map(|p| (p.kind, p.provisional, p.note.as_str())).collect();
        assert_eq!(
            told,
            [
                (Kind::Leak, false, "3 × main.f, ≥ 1h00m"),
                (Kind::Leak, false, "1 × main.entry"),
                (Kind::Lock, false, "4 wait for a lock in main.f, ≥ 12m00s"),
                (Kind::Growing, false, "40 × main.g, ≥ 1.0s"),
            ]
        );
        assert_eq!(seen.problems[2].oldest_ns, Some(720_000_000_000));
    }
}
