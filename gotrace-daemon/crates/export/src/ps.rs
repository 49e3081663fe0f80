//! The Go programs of a node and what is wrong with each, as one second shows it: `gotrace ps`, as lines and as JSON
//! (`gotrace.ps/1`).
//!
//! Input: [`Row`]s, whose problems [`problems`] takes from findings, and what a daemon knows of them ([`Longer`]). Output:
//! text, problems first. A program that could not be read says why; it is never told as if nothing were wrong with it.

mod longer;

use std::{
    cmp::Reverse,
    io::{self, Write},
};

pub use longer::{Longer, longer};
use serde::Serialize;

use gotrace_inspect::{
    heap::Evidence,
    leak::{Finding, Verdict},
    snapshot::{Names, ObjectKind},
};
use gotrace_model::printable::{printable, write_json};

use crate::{
    leaks::text::is_own,
    text::{bytes, duration, problem as problem_text},
};

/// The schema of the JSON lines.
pub const SCHEMA: &str = "gotrace.ps/1";
/// Functions that are named for goroutines that block each other.
const MAX_FUNCTIONS: usize = 2;
/// Columns between two others.
const GAP: &str = "  ";

/// What is wrong, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Goroutines that wait for ever by the language's rules, or for locks of each other.
    Deadlock,
    /// Goroutines that nothing can end, as far as heap scans tell.
    Leak,
    /// Goroutines that wait for a member of a pool that hands out none.
    Stalled,
    /// Goroutines that wait for a lock, and have not got it while they were looked at.
    Lock,
    /// More and more goroutines.
    Growing,
}

/// Something that is wrong with a program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// What.
    pub kind: Kind,
    /// How many goroutines.
    pub goroutines: usize,
    /// Where they are blocked, in the program's own code.
    pub function: String,
    /// Whether more heap scans must agree.
    pub provisional: bool,
    /// What is said of it behind its kind.
    pub note: String,
    /// For how long they have been blocked at least, as far as a daemon knows.
    pub oldest_ns: Option<u64>,
}

/// A program that could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `go1.24.3`.
    pub go_version: String,
    /// Goroutines, without the runtime's own.
    pub goroutines: u64,
    /// Those that came less those that ended, a second.
    pub growth_per_second: f64,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// Why its heap was not scanned, so that no leak can be told; `None` where it was.
    pub not_scanned: Option<String>,
}

/// A program.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In gotrace's PID namespace.
    pub pid: u32,
    /// The file name of its executable.
    pub name: String,
    /// Its executable.
    pub executable: String,
    /// `namespace/pod`, else its container's id; `None` where it is in neither.
    pub place: Option<String>,
    /// What was seen, or why nothing was.
    pub seen: Result<Seen, String>,
    /// What a daemon that traces it knows.
    pub longer: Option<Longer>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Programs {
    /// In any order.
    pub rows: Vec<Row>,
    /// When they were looked at, nanoseconds since 1970.
    pub time_unix_nano: u64,
    /// How long each was watched.
    pub watched_ns: u64,
    /// Processes that gotrace may not look at: whether they are Go programs is not known.
    pub unreadable: u64,
    /// The daemon that was asked, by its pid.
    pub daemon: Option<u32>,
}

/// What is wrong by findings of a short watch.
#[must_use]
pub fn problems(findings: &[Finding], names: &mut Names) -> Vec<Problem> {
    let mut problems: Vec<Problem> = findings.iter().filter_map(|f| problem(f, names)).collect();
    problems.sort_by_key(|p| (p.kind, Reverse(p.goroutines)));
    // Those that block each other have a finding for each place: they are one problem.
    let deadlocks = problems.iter().take_while(|p| p.kind == Kind::Deadlock).count();
    if deadlocks > 1 {
        let others = problems.drain(1..deadlocks).collect::<Vec<_>>();
        let first = &mut problems[0];
        let mut functions = vec![first.function.clone()];
        for other in others {
            first.goroutines += other.goroutines;
            if functions.len() < MAX_FUNCTIONS && !functions.contains(&other.function) {
                functions.push(other.function);
            }
        }
        first.note = format!("{} goroutines in {}", first.goroutines, functions.join(", "));
    }
    problems
}

fn problem(finding: &Finding, names: &mut Names) -> Option<Problem> {
    if finding.accepted.is_accepted() {
        return None;
    }
    let is_lock = |kind| matches!(kind, ObjectKind::Mutex | ObjectKind::RwMutex);
    let locks = finding.waits_on.iter().any(|(_, object)| is_lock(object.kind));
    let kind = match finding.verdict {
        Verdict::Unreachable => Kind::Leak,
        Verdict::Deadlock => Kind::Deadlock,
        Verdict::Stalled => Kind::Stalled,
        Verdict::Growing => Kind::Growing,
        Verdict::Stuck if locks => Kind::Lock,
        _ => return None,
    };
    let goroutines = finding.count();
    let entry = names.runs(finding.entry_pc, &finding.stack).map_or("?".to_owned(), |f| f.function.clone());
    let stack = names.stack(&finding.stack);
    let own = stack.iter().find(|f| !f.internal && is_own(&f.frame.function));
    let function = own.map_or(entry, |f| f.frame.function.clone());
    let wait = if goroutines == 1 { "waits" } else { "wait" };
    let for_what =
        finding.awaited.map(|a| a.text()).and_then(|text| text.strip_prefix("waits ").map(str::to_owned));
    let least = duration(Some(finding.oldest.at_least_ns));
    let note = match (kind, for_what) {
        (Kind::Stalled, Some(what)) => format!("{goroutines} {wait} {what} in {function}, ≥ {least}"),
        (Kind::Lock, _) => {
            let held = finding.holders.first().map(|holder| {
                let how = match holder.evidence {
                    Evidence::Locked => "held by",
                    Evidence::Refers => "probably held by",
                    _ => "perhaps held by",
                };
                let who =
                    names.runs(holder.entry_pc, &holder.stack).map_or("?".to_owned(), |f| f.function.clone());
                format!(", {how} goroutine {} ({who})", holder.goid)
            });
            format!("{goroutines} {wait} for a lock in {function}{}", held.unwrap_or_default())
        }
        _ => format!("{goroutines} × {function}"),
    };
    let provisional = finding.passes.is_some_and(gotrace_inspect::leak::Agreement::is_provisional);
    Some(Problem { kind, goroutines, function, provisional, note, oldest_ns: None })
}

impl Kind {
    const fn title(self) -> &'static str {
        match self {
            Self::Deadlock => "DEADLOCK",
            Self::Leak => "LEAK",
            Self::Stalled => "STALLED",
            Self::Lock => "LOCK",
            Self::Growing => "GROWING",
        }
    }
}

impl Row {
    /// The worst first, then those with most goroutines.
    fn order(&self) -> impl Ord + use<> {
        let (worst, goroutines) = match &self.seen {
            Ok(seen) => (seen.problems.first().map(|p| p.kind), seen.goroutines),
            Err(_) => (None, 0),
        };
        (worst.is_none(), worst, Reverse(goroutines), self.pid)
    }

    fn is_sick(&self) -> bool {
        self.seen.as_ref().is_ok_and(|seen| !seen.problems.is_empty())
    }

    fn note(&self) -> String {
        let seen = match &self.seen {
            Ok(seen) => seen,
            Err(why) => return format!("not readable: {why}"),
        };
        let Some(worst) = seen.problems.first() else {
            return match &seen.not_scanned {
                Some(why) => format!("ok, heap not scanned: {why}"),
                None => "ok".to_owned(),
            };
        };
        let sure = if worst.provisional { "?" } else { "" };
        let more = match seen.problems.len() - 1 {
            0 => String::new(),
            n => format!(" (+{n} more)"),
        };
        format!("{}{sure} {}{more}", worst.kind.title(), worst.note)
    }

    /// In the order of [`TITLES`].
    fn cells(&self) -> [String; TITLES.len()] {
        let seen = self.seen.as_ref().ok();
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let version = |s: &Seen| s.go_version.strip_prefix("go").unwrap_or(&s.go_version).to_owned();
        let longer = self.longer.as_ref().and_then(|longer| longer.growth_per_second);
        let growth = |s: &Seen| rate(longer.unwrap_or(s.growth_per_second));
        [
            self.pid.to_string(),
            self.name.clone(),
            dash(self.place.clone()),
            dash(seen.map(version)),
            dash(seen.map(|s| s.goroutines.to_string())),
            dash(seen.map(growth)),
            self.note(),
        ]
        .map(|cell| printable(&cell).into_owned())
    }
}

/// Growth a second. What is slow is told by the hour.
fn rate(per_second: f64) -> String {
    let (per_hour, size) = (per_second * 3600.0, per_second.abs());
    match size {
        _ if per_hour.abs() < 0.5 => "0".into(),
        0.05.. => format!("{per_second:+.1}/s"),
        _ => format!("{per_hour:+.0}/h"),
    }
}

/// Titles of the columns.
const TITLES: [&str; 7] = ["PID", "NAME", "POD", "GO", "GOROUTINES", "GROWTH", "NOTE"];
/// Of these the first and these are numbers, at the right of their columns.
const NUMBERS: [usize; 3] = [0, 4, 5];
/// Left out where nobody is in one.
const POD: usize = 2;
/// What is wrong.
const NOTE: usize = 6;

impl Programs {
    fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_cached_key(|row| row.order());
        rows
    }

    /// What is not among the rows; `None` where all is.
    fn not_shown(&self) -> Option<String> {
        match self.unreadable {
            0 => None,
            1 => Some(
                "not shown: 1 process that gotrace may not read, which requires root and CAP_SYS_PTRACE"
                    .into(),
            ),
            n => Some(format!(
                "not shown: {n} processes that gotrace may not read, which requires root and CAP_SYS_PTRACE"
            )),
        }
    }

    /// What a daemon knows of these; `None` where none was asked.
    fn told_by_daemon(&self) -> Option<String> {
        let pid = self.daemon?;
        let since: Vec<u64> = self.traced().map(|longer| longer.since_unix_nano).collect();
        let Some(first) = since.iter().min() else {
            return Some(format!("gotrace daemon (pid {pid}) traces none of these"));
        };
        let time = duration(Some(self.time_unix_nano.saturating_sub(*first)));
        let up_to = if since.len() > 1 { "up to " } else { "" };
        Some(format!(
            "from gotrace daemon (pid {pid}), which traces {} of these, for {up_to}{time}: growth, proven leaks (LEAK), and \
             how long goroutines have been blocked",
            since.len()
        ))
    }

    fn traced(&self) -> impl Iterator<Item = &Longer> {
        self.rows.iter().filter_map(|row| row.longer.as_ref())
    }

    /// Writes a table. `colour`: with problems in red.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_text(&self, out: &mut impl Write, colour: bool) -> io::Result<()> {
        if self.rows.is_empty() {
            writeln!(out, "no Go programs found")?;
        } else {
            let with_pods = self.rows.iter().any(|row| row.place.is_some());
            let rows = self.sorted();
            let lines: Vec<_> = std::iter::once(TITLES.map(str::to_owned))
                .chain(rows.iter().map(|row| row.cells()))
                .collect();
            let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
            let columns: Vec<(usize, usize)> =
                (0..TITLES.len()).filter(|&c| with_pods || c != POD).map(|c| (c, width(c))).collect();
            let sick = std::iter::once(false).chain(rows.iter().map(|row| row.is_sick()));
            for (line, sick) in lines.iter().zip(sick) {
                let mut text = String::new();
                for &(column, width) in &columns {
                    let cell = &line[column];
                    text += &match column {
                        NOTE if sick && colour => {
                            let (kind, note) = cell.split_once(' ').unwrap_or((cell, ""));
                            format!("{} {note}", problem_text(kind, true))
                        }
                        _ if NUMBERS.contains(&column) => format!("{cell:>width$}"),
                        _ => format!("{cell:<width$}"),
                    };
                    text += GAP;
                }
                writeln!(out, "{}", text.trim_end())?;
            }
        }
        self.told_by_daemon().into_iter().chain(self.not_shown()).try_for_each(|line| writeln!(out, "{line}"))
    }

    /// Writes JSON lines: a header, a program each, a summary.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let mut line = |value: &serde_json::Value| {
            write_json(out, value)?;
            writeln!(out)
        };
        line(&serde_json::json!({
            "schema": SCHEMA, "time_unix_nano": self.time_unix_nano, "duration_ns": self.watched_ns,
        }))?;
        let mut with_problems = 0;
        for row in self.sorted() {
            let Row { pid, name, executable, place, seen, longer } = row;
            let seen_of = seen.as_ref().ok();
            let note = match seen {
                Ok(seen) => {
                    seen.problems.first().map_or(serde_json::json!("ok"), |p| serde_json::json!(p.kind))
                }
                Err(_) => serde_json::json!("unreadable"),
            };
            with_problems += u64::from(seen_of.is_some_and(|s| !s.problems.is_empty()));
            line(&serde_json::json!({"process": {
                "pid": pid, "name": name, "executable": executable, "place": place,
                "go_version": seen_of.map(|s| &s.go_version),
                "goroutines": seen_of.map(|s| s.goroutines),
                "growth_per_second": seen_of.map(|s| s.growth_per_second),
                "note": note,
                "problems": seen_of.map(|s| &s.problems),
                "heap_scanned": seen_of.map(|s| s.not_scanned.is_none()),
                "error": seen.as_ref().err(),
                "daemon": longer,
            }}))?;
        }
        line(&serde_json::json!({"summary": {
            "processes": self.rows.len(), "with_problems": with_problems,
            "unreadable": self.rows.iter().filter(|r| r.seen.is_err()).count(),
            "not_permitted": self.unreadable,
            "daemon": self.daemon.map(|pid| serde_json::json!({"pid": pid, "processes": self.traced().count()})),
        }}))
    }
}

/// Why a heap of this size is not scanned.
#[must_use]
pub fn too_large(resident_bytes: u64) -> String {
    format!("{} resident", bytes(resident_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, name: &str, goroutines: u64, problems: Vec<Problem>) -> Row {
        Row {
            pid,
            name: name.into(),
            executable: format!("/usr/bin/{name}"),
            place: None,
            seen: Ok(Seen {
                go_version: "go1.24.11".into(),
                goroutines,
                growth_per_second: if pid == 21867 { 4.1 } else { 0.0 },
                problems,
                not_scanned: (pid == 9).then(|| too_large(3 << 30)),
            }),
            longer: None,
        }
    }

    fn programs() -> Programs {
        let problem = |kind, goroutines, provisional, note: &str| Problem {
            kind,
            goroutines,
            function: "main.f".into(),
            provisional,
            note: note.into(),
            oldest_ns: None,
        };
        let lock = "8 wait for a lock in main.serve, held by goroutine 7 (main.flusher)";
        Programs {
            rows: vec![
                row(4682, "etcd", 39, Vec::new()),
                row(9, "large\u{1b}[2J", 50_000, Vec::new()),
                row(4671, "convoy", 49, vec![problem(Kind::Lock, 8, false, lock)]),
                row(
                    21867,
                    "demo-shop",
                    2527,
                    vec![
                        problem(Kind::Leak, 2519, true, "2519 × main.waitForever"),
                        problem(Kind::Growing, 3, false, "3 × main.poll"),
                    ],
                ),
                Row { seen: Err("requires CAP_SYS_PTRACE".into()), ..row(7, "vault", 0, Vec::new()) },
            ],
            time_unix_nano: 1_700_000_000_000_000_000,
            watched_ns: 1_000_000_000,
            unreadable: 2,
            daemon: None,
        }
    }

    #[test]
    fn what_a_daemon_knows_is_shown_and_said_to_be_its() {
        let mut programs = programs();
        programs.daemon = Some(4711);
        let text = |programs: &Programs| {
            let mut out = Vec::new();
            programs.write_text(&mut out, false).expect("written");
            String::from_utf8(out).expect("text")
        };
        assert!(text(&programs).contains("\ngotrace daemon (pid 4711) traces none of these\n"));
        for (row, growth, ago_s) in [(0, Some(0.02), 720), (3, None, 60)] {
            programs.rows[row].longer = Some(Longer {
                since_unix_nano: programs.time_unix_nano - ago_s * 1_000_000_000,
                growth_per_second: growth,
                ..Longer::default()
            });
        }
        let shown = text(&programs);
        assert!(shown.contains("etcd            1.24.11          39   +72/h  ok\n"), "{shown}");
        assert!(shown.contains("demo-shop       1.24.11        2527  +4.1/s  LEAK? "), "a second shows that");
        let line = "\nfrom gotrace daemon (pid 4711), which traces 2 of these, for up to 12m00s: growth, ";
        assert!(shown.contains(line), "{shown}");
        assert_eq!(
            [0.0, 0.0001, -0.0002, 0.0499, 0.05, -4.0].map(rate),
            ["0", "0", "-1/h", "+180/h", "+0.1/s", "-4.0/s"]
        );
    }

    #[test]
    fn the_worst_comes_first_and_what_is_not_known_is_said() {
        let mut out = Vec::new();
        programs().write_text(&mut out, false).expect("written");
        let text = String::from_utf8(out).expect("text");
        let expected = concat!(
            "  PID  NAME            GO       GOROUTINES  GROWTH  NOTE\n",
            "21867  demo-shop       1.24.11        2527  +4.1/s  LEAK? 2519 × main.waitForever (+1 more)\n",
            " 4671  convoy          1.24.11          49       0  LOCK 8 wait for a lock in main.serve, held by \
             goroutine 7 (main.flusher)\n",
            "    9  large\\u{1b}[2J  1.24.11       50000       0  ok, heap not scanned: 3.0 GiB resident\n",
            " 4682  etcd            1.24.11          39       0  ok\n",
            "    7  vault           -                 -       -  not readable: requires CAP_SYS_PTRACE\n",
            "not shown: 2 processes that gotrace may not read, which requires root and CAP_SYS_PTRACE\n",
        );
        assert_eq!(text, expected);
        let mut out = Vec::new();
        programs().write_text(&mut out, true).expect("written");
        let coloured = String::from_utf8(out).expect("text");
        assert!(coloured.contains("  \u{1b}[31;1mLEAK?\u{1b}[0m 2519 × main.waitForever"), "{coloured}");
        assert_eq!(coloured.replace("\u{1b}[31;1m", "").replace("\u{1b}[0m", ""), expected);
        let mut pods = programs();
        pods.rows[0].place = Some("kube-system/etcd-node-7".into());
        let mut out = Vec::new();
        pods.write_text(&mut out, false).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert!(text.lines().next().is_some_and(|l| l.contains("  POD  ")), "{text}");
        assert!(text.contains("  etcd            kube-system/etcd-node-7  1.24.11  "), "{text}");
    }

    #[test]
    fn json_has_a_line_a_program_and_null_for_what_is_not_known() {
        let mut out = Vec::new();
        programs().write_json(&mut out).expect("written");
        let lines: Vec<serde_json::Value> = out
            .split(|&b| b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).expect("JSON"))
            .collect();
        assert_eq!(lines[0]["schema"], SCHEMA);
        let of = |pid: u64| lines.iter().map(|l| &l["process"]).find(|p| p["pid"] == pid).expect("a program");
        assert_eq!(of(21867)["note"], "leak");
        assert_eq!(of(21867)["problems"][0]["provisional"], true);
        assert_eq!((&of(4682)["note"], &of(4682)["problems"]), (&"ok".into(), &serde_json::json!([])));
        assert_eq!((&of(9)["heap_scanned"], &of(4682)["heap_scanned"]), (&false.into(), &true.into()));
        let vault = of(7);
        assert_eq!(
            (&vault["note"], &vault["error"]),
            (&"unreadable".into(), &"requires CAP_SYS_PTRACE".into())
        );
        assert!(
            vault["goroutines"].is_null() && vault["problems"].is_null() && vault["heap_scanned"].is_null()
        );
        assert_eq!(lines[6]["summary"]["with_problems"], 2);
        let mut out = Vec::new();
        Programs::default().write_text(&mut out, false).expect("written");
        assert_eq!(out, b"no Go programs found\n");
    }
}
