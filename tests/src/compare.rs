//! Holds what gotrace exported against what the program says of itself.
//!
//! Input: an [`Account`] and the spans of an [`Export`](crate::export::Export). Output: one sentence a disagreement; none
//! when they agree. The rules say what is exact (who, by whom, where, how often) and what a clock or a
//! scheduler may move (times, by [`Rules`]).

use std::collections::{BTreeMap, HashMap};

use crate::{
    export::Span,
    fixture::{Account, Goroutine, Wait},
    gobuild::minor,
};

/// How far clocks and schedulers may move things.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Error of the conversion from monotonic time to Unix epoch, both sides together.
    pub clock_ns: u64,
    /// Between a look of the program at its clock and the event that belongs to it: probes, and others that want the CPU.
    pub around_ns: u64,
    /// Waits that the program arranged to last at least this long must be reported.
    pub threshold_ns: u64,
    /// A wait that is not in the account is an error from this length on: shorter ones come from
    /// locks inside the standard library.
    pub stray_ns: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { clock_ns: 2_000_000, around_ns: 2_000_000, threshold_ns: 1_000_000, stray_ns: 10_000_000 }
    }
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Goroutines found as the account has them.
    pub goroutines: usize,
    /// Waits found as the account has them.
    pub waits: usize,
}

/// Go's wait reason for a neutral kind of wait, by version.
#[must_use]
pub fn reason(kind: &str, go_version: &str) -> String {
    let v = minor(go_version);
    let sync = |name: &str, since: u32| if v >= since { name } else { "semacquire" }.to_owned();
    match kind {
        "mutex" => sync("sync.Mutex.Lock", 20),
        "rwmutex read" => sync("sync.RWMutex.RLock", 20),
        "rwmutex write" => sync("sync.RWMutex.Lock", 20),
        "waitgroup" => sync("sync.WaitGroup.Wait", 24),
        "cond" => "sync.Cond.Wait".to_owned(),
        "io" => "IO wait".to_owned(),
        other => other.to_owned(),
    }
}

/// Compares; gives what agreed, or what did not.
///
/// # Errors
/// One sentence a disagreement.
pub fn compare(account: &Account, spans: &[Span], rules: Rules) -> Result<Counted, Vec<String>> {
    let mut lives: HashMap<u64, Vec<&Span>> = HashMap::new();
    let mut waits: HashMap<u64, Vec<&Span>> = HashMap::new();
    for span in spans {
        let by_goid = if span.is_wait() { &mut waits } else { &mut lives };
        by_goid.entry(span.goid()).or_default().push(span);
    }
    let mut this =
        Comparison { account, rules, lives, waits, wrong: Vec::new(), counted: Counted::default() };
    for g in &account.goroutines {
        this.life(g);
        this.waits_of(g);
    }
    this.strangers();
    if this.wrong.is_empty() { Ok(this.counted) } else { Err(this.wrong) }
}

struct Comparison<'a> {
    account: &'a Account,
    rules: Rules,
    lives: HashMap<u64, Vec<&'a Span>>,
    waits: HashMap<u64, Vec<&'a Span>>,
    wrong: Vec<String>,
    counted: Counted,
}

impl Comparison<'_> {
    /// Born once, of the right parent, at the right place and time; ended once, or not at all.
    fn life(&mut self, g: &Goroutine) {
        let spans = self.lives.get(&g.goid).cloned().unwrap_or_default();
        let who = format!("goroutine {} ({}, of {})", g.goid, g.entry, g.parent);
        let Some(last) = g.last_ns.filter(|_| !matches!(g.kind.as_str(), "main" | "cthread")) else {
            if !spans.is_empty() {
                self.wrong.push(format!("{who} never ended and has {} spans", spans.len()));
            }
            return;
        };
        let [span] = spans[..] else {
            self.wrong.push(format!("{who} has {} spans instead of one", spans.len()));
            return;
        };
        let before = self.wrong.len();
        let mut check = |what: &str, got: &str, want: &str| {
            if got != want {
                self.wrong.push(format!("{who}: {what} is {got:?} instead of {want:?}"));
            }
        };
        check("the parent", &span.number("gotrace.goroutine.parent.id").to_string(), &g.parent.to_string());
        if !is_wrapper_of(&span.name, g) {
            check("the entry function", &span.name, &g.entry);
        }
        check("the creating function", span.get("gotrace.created_by.function.name"), &g.created_by);
        if g.created_line != 0 {
            check("the creating file", span.get("gotrace.created_by.file.path"), &g.created_file);
            let line = span.get("gotrace.created_by.line.number");
            check("the creating line", line, &g.created_line.to_string());
        }
        let parent = self.lives.get(&g.parent).filter(|_| g.parent > 1);
        if let Some(parent) = parent.and_then(|p| p.first()) {
            check("the parent's span", &span.parent_span_id, &parent.span_id);
            check("the trace", &span.trace_id, &parent.trace_id);
        }
        let (spawn, first) = (self.account.unix(g.spawn_ns), self.account.unix(g.first_ns));
        let (last, end) = (self.account.unix(last), self.account.clocks_ns.1);
        self.within(&who, "began", span.start_ns, spawn, first);
        self.within(&who, "ended", span.end_ns, last, end);
        self.parts(&who, span, g);
        if self.wrong.len() == before {
            self.counted.goroutines += 1;
        }
    }

    /// The parts of its life add up to it, and what it waited for is in the one that it belongs to.
    fn parts(&mut self, who: &str, span: &Span, g: &Goroutine) {
        let part = |state: &str| span.number(&format!("gotrace.time.{state}"));
        let (running, run_queue, blocked) = (part("running"), part("run_queue"), part("blocked"));
        let whole = span.end_ns - span.start_ns;
        let sum = running + run_queue + blocked + part("syscall");
        if sum != whole {
            self.wrong.push(format!("{who}: the parts of its life are {sum} ns of {whole}"));
        }
        let arranged = g.waits.iter().filter(|wait| !wait.may && wait.kind != "syscall");
        let waited: u64 = arranged.filter_map(|wait| Some(wait.to_ns? - wait.from_ns)).sum();
        if waited > blocked + run_queue + g.waits.len() as u64 * self.rules.around_ns {
            self.wrong.push(format!(
                "{who} waited for {waited} ns, was blocked for {blocked} and ready for {run_queue}"
            ));
        }
    }

    fn within(&mut self, who: &str, what: &str, got: u64, from: u64, to: u64) {
        let slack = self.rules.clock_ns;
        if got + slack < from || got > to + slack {
            let off =
                if got < from { -from.abs_diff(got).cast_signed() } else { got.abs_diff(to).cast_signed() };
            self.wrong.push(format!("{who} {what} {off} ns outside of its bounds"));
        }
    }

    /// Each arranged wait is there once, with its reason and its waker; no long one is made up.
    fn waits_of(&mut self, g: &Goroutine) {
        let mut spans = self.waits.get(&g.goid).cloned().unwrap_or_default();
        let life = self.lives.get(&g.goid).and_then(|l| l.first()).copied();
        for span in &spans {
            if let Some(life) = life
                && (&span.parent_span_id, &span.trace_id) != (&life.span_id, &life.trace_id)
            {
                self.wrong.push(format!("a wait of goroutine {} is not its span's child", g.goid));
            }
        }
        for wait in &g.waits {
            let Some(to) = wait.to_ns else { continue };
            let want = reason(&wait.kind, &self.account.go_version);
            let (from, to) = (self.account.unix(wait.from_ns), self.account.unix(to));
            let slack = self.rules.clock_ns;
            let fits = |s: &&Span| {
                s.get("gotrace.wait.reason") == want && s.start_ns + slack >= from && s.end_ns <= to + slack
            };
            // A lock may be waited for in several goes: the longest is the one that was arranged.
            let best = spans
                .iter()
                .enumerate()
                .filter(|(_, s)| fits(s))
                .max_by_key(|(_, s)| s.end_ns - s.start_ns)
                .map(|(i, _)| i);
            match best {
                Some(i) => {
                    let span = spans.swap_remove(i);
                    spans.retain(|s| !(s.start_ns >= from && s.end_ns <= to && fits(s)));
                    if self.waker(g, wait, span) && self.place(g, wait, span) {
                        self.counted.waits += 1;
                    }
                }
                // Between announcing a wait and parking, a goroutine may be kept from running.
                None if wait.may || to - from < 3 * self.rules.threshold_ns => {}
                None => self.wrong.push(format!(
                    "goroutine {} ({}): no wait {want:?} within {} ms; it has {:?}",
                    g.goid,
                    g.entry,
                    (to - from) as f64 / 1e6,
                    spans.iter().map(|s| s.get("gotrace.wait.reason")).collect::<Vec<_>>()
                )),
            }
        }
        if g.free_waits || g.kind == "main" {
            return;
        }
        for span in spans {
            if span.end_ns - span.start_ns >= self.rules.stray_ns {
                self.wrong.push(format!(
                    "goroutine {} ({}): a wait {:?} of {} ms that the program does not know of",
                    g.goid,
                    g.entry,
                    span.name,
                    (span.end_ns - span.start_ns) as f64 / 1e6
                ));
            }
        }
    }

    /// In the function of the program that it is in; the compiler may have made a closure of its own for a call of C.
    fn place(&mut self, g: &Goroutine, wait: &Wait, span: &Span) -> bool {
        let got = span.own_code();
        let fits =
            got == wait.at || got.strip_prefix(&*wait.at).is_some_and(|more| more.starts_with(".func"));
        if !fits {
            let (who, reason, want) = (g.goid, &span.name, &wait.at);
            self.wrong.push(format!("goroutine {who}: a wait {reason:?} in {got:?} instead of {want:?}"));
        }
        fits
    }

    fn waker(&mut self, g: &Goroutine, wait: &Wait, span: &Span) -> bool {
        let kind = span.get("gotrace.waker.kind");
        let right = match wait.by.as_str() {
            "" => true,
            outside @ ("timer" | "netpoll") => kind == outside,
            goid => kind == "goroutine" && span.get("gotrace.waker.goroutine.id") == goid,
        };
        if !right {
            self.wrong.push(format!(
                "goroutine {} ({}): its wait {:?} was ended by {} and gotrace says {kind} {}",
                g.goid,
                g.entry,
                span.name,
                wait.by,
                span.get("gotrace.waker.goroutine.id")
            ));
        }
        right
    }

    /// Nobody is reported who is not in the account, except the runtime's own goroutines.
    fn strangers(&mut self) {
        let known: HashMap<u64, ()> = self.account.goroutines.iter().map(|g| (g.goid, ())).collect();
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for (goid, spans) in &self.lives {
            if !known.contains_key(goid) {
                for span in spans.iter().filter(|s| !s.name.starts_with("runtime.")) {
                    *names.entry(&span.name).or_default() += 1;
                }
            }
        }
        for (name, count) in names {
            self.wrong.push(format!("{count} goroutines {name} that the program does not know of"));
        }
    }
}

/// Whether the name is that of the closure which the compiler makes of `go f(x)`: it is where the
/// goroutine really begins, and it is named after the function that has the `go` statement.
fn is_wrapper_of(name: &str, g: &Goroutine) -> bool {
    name.strip_prefix(g.created_by.as_str()).is_some_and(|rest| {
        let rest = rest.trim_start_matches('.');
        let digits = rest.strip_prefix("gowrap").or_else(|| rest.strip_prefix("func"));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            go_version: "go1.24.11".into(),
            checksum: String::new(),
            clocks_ns: (1_000_000_000, 5_000_000_000),
            goroutines: vec![Goroutine {
                kind: "go".into(),
                goid: 7,
                parent: 1,
                spawn_ns: 100_000_000,
                first_ns: 101_000_000,
                last_ns: Some(150_000_000),
                entry: "main.worker".into(),
                created_by: "main.main".into(),
                created_file: "/m.go".into(),
                created_line: 9,
                free_waits: false,
                waits: vec![Wait {
                    kind: "mutex".into(),
                    from_ns: 110_000_000,
                    to_ns: Some(130_000_000),
                    by: "3".into(),
                    may: false,
                    at: "main.worker".into(),
                }],
            }],
        }
    }

    fn span(start: u64, end: u64, more: &[(&str, &str)]) -> Span {
        let attributes = more.iter().chain(&[("gotrace.goroutine.id", "7")]);
        Span {
            trace_id: "t".into(),
            span_id: format!("{start}"),
            parent_span_id: String::new(),
            name: "main.worker".into(),
            start_ns: start,
            end_ns: end,
            attributes: attributes.map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
            links: vec![],
            resource: BTreeMap::new(),
        }
    }

    fn spans() -> Vec<Span> {
        let life = span(
            4_100_500_000,
            4_150_100_000,
            &[
                ("gotrace.goroutine.parent.id", "1"),
                ("gotrace.created_by.function.name", "main.main"),
                ("gotrace.created_by.file.path", "/m.go"),
                ("gotrace.created_by.line.number", "9"),
                ("gotrace.time.running", "29000000"),
                ("gotrace.time.run_queue", "500000"),
                ("gotrace.time.blocked", "20100000"),
            ],
        );
        let mut wait = span(
            4_110_100_000,
            4_129_900_000,
            &[
                ("gotrace.wait.reason", "sync.Mutex.Lock"),
                ("gotrace.waker.kind", "goroutine"),
                ("gotrace.waker.goroutine.id", "3"),
                ("code.function.name", "sync/errgroup.wait"),
                ("gotrace.own_code.function.name", "main.worker"),
            ],
        );
        wait.parent_span_id.clone_from(&life.span_id);
        vec![life, wait]
    }

    #[test]
    fn what_agrees_agrees() {
        let got = compare(&account(), &spans(), Rules::default());
        assert_eq!(got, Ok(Counted { goroutines: 1, waits: 1 }));
    }

    #[test]
    fn every_kind_of_error_is_found() {
        type Change = fn(&mut Vec<Span>);
        let changes: [(&str, Change); 15] = [
            ("no life", |s| drop(s.remove(0))),
            ("a second life", |s| s.push(s[0].clone())),
            ("another parent", |s| set(&mut s[0], "gotrace.goroutine.parent.id", "2")),
            ("another line", |s| set(&mut s[0], "gotrace.created_by.line.number", "8")),
            ("another entry", |s| s[0].name = "main.other".into()),
            ("born too early", |s| s[0].start_ns -= 4_000_000),
            ("ended too early", |s| s[0].end_ns -= 4_000_000),
            ("no wait", |s| drop(s.remove(1))),
            ("another reason", |s| set(&mut s[1], "gotrace.wait.reason", "semacquire")),
            ("another waker", |s| set(&mut s[1], "gotrace.waker.goroutine.id", "4")),
            ("another place", |s| set(&mut s[1], "gotrace.own_code.function.name", "main.workers")),
            ("a part too long", |s| set(&mut s[0], "gotrace.time.running", "29000001")),
            ("a wait that is no part", |s| {
                set(&mut s[0], "gotrace.time.running", "49100000");
                set(&mut s[0], "gotrace.time.blocked", "0");
            }),
            ("a wait beyond its bounds", |s| s[1].end_ns += 9_000_000),
            ("a stranger", |s| {
                let mut other = s[0].clone();
                set(&mut other, "gotrace.goroutine.id", "8");
                s.push(other);
            }),
        ];
        for (what, change) in changes {
            let mut spans = spans();
            change(&mut spans);
            let got = compare(&account(), &spans, Rules::default());
            assert!(got.is_err(), "{what} was not noticed");
        }
    }

    fn set(span: &mut Span, key: &str, value: &str) {
        span.attributes.insert(key.to_owned(), value.to_owned());
    }

    #[test]
    fn reasons_follow_the_version() {
        assert_eq!(reason("mutex", "go1.19.13"), "semacquire");
        assert_eq!(reason("mutex", "go1.20.14"), "sync.Mutex.Lock");
        assert_eq!(reason("waitgroup", "go1.23.12"), "semacquire");
        assert_eq!(reason("waitgroup", "go1.24.11"), "sync.WaitGroup.Wait");
        assert_eq!(reason("select", "go1.27.3"), "select");
    }
}
