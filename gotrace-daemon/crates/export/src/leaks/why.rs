//! `gotrace why`: who holds what a goroutine waits on, as text, as JSON (schema `gotrace.why/1`), or for
//! Graphviz.
//!
//! Input: a [`Why`], and [`Names`] for its addresses. Output: bytes. Unknown is `null`; addresses are strings.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    json::holder as holder_value,
    text,
    values::{line, place, reason},
};
use crate::outside::{goroutine_json, of_goroutine};
use gotrace_inspect::{
    heap::{Holder, Link, Path, What, Why},
    leak,
    snapshot::{Goroutine, Names, Snapshot, StackFrame, Status},
};
use gotrace_model::printable::printable;

/// The schema of the JSON line.
pub const SCHEMA: &str = "gotrace.why/1";

/// What was asked, and what was found.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The process.
    pub pid: u32,
    /// As the binary has it, experiments included.
    pub go_version: &'a str,
    /// The goroutine.
    pub goid: u64,
    /// What it was started with; 0 for none.
    pub entry_pc: u64,
    /// Its stack, innermost frame first; empty where it is not known.
    pub stack: &'a [StackFrame],
    /// Its wait reason.
    pub wait_reason: Option<&'a str>,
    /// What it waits for in plain words, where it stands at a known place.
    pub place: Option<&'static str>,
    /// What it does.
    pub state: State,
    /// It has moved on, or ended, since it was looked at first: what it waited for then.
    pub moved_on: Option<&'a str>,
    /// What was found.
    pub why: &'a Why,
    /// Who holds the lock that it waits for, or keeps the members of the pool, the best known first.
    pub holders: &'a [leak::Holder],
    /// All goroutines, with what these two wait for outside of the process.
    pub snapshot: &'a Snapshot,
    /// Name of the variable that the chain begins at, and how far into it; by the symbol table.
    pub variable: Option<&'a (String, u64)>,
}

/// What a goroutine does, as far as that tells whether another one can let it run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Gone,
    /// It runs, or is about to.
    Runs,
    /// It is in a system call or in C.
    Syscall,
    /// It is one of the runtime's own, and waits for work.
    Runtime,
    /// It waits in one of the program's finalizers.
    Finalizer,
    /// It waits in one of the program's cleanups.
    Cleanup,
    /// It waits for something else.
    Waits,
}

impl State {
    /// Of a goroutine, if there is one.
    #[must_use]
    pub fn of(goroutine: Option<&Goroutine>) -> Self {
        let Some(goroutine) = goroutine else { return Self::Gone };
        match goroutine.status {
            Status::Syscall => Self::Syscall,
            status if !status.is_waiting() => Self::Runs,
            _ if goroutine.is_system() => Self::Runtime,
            _ if goroutine.runs_finalizers() => Self::Finalizer,
            _ if goroutine.runs_cleanups() => Self::Cleanup,
            _ => Self::Waits,
        }
    }
}

impl<'a> Answer<'a> {
    /// The way to what it waits on. What one that has moved on waited on then is not told.
    fn path(self) -> Option<&'a Path> {
        match (self.why, self.moved_on) {
            (Why::Held(Some(path)), None) => Some(path),
            _ => None,
        }
    }
}

/// The goroutine that holds what is waited on, if one does.
#[must_use]
pub fn holding(why: &Why) -> Option<u64> {
    match why {
        Why::Held(Some(Path { holder: Holder::Stack { goid, .. } | Holder::Goroutine { goid }, .. })) => {
            Some(*goid)
        }
        _ => None,
    }
}

/// What a goroutine waits for: `IO wait: read from 10.0.3.7:5432 (tcp, established, nothing unread), no deadline`.
fn does(answer: Answer<'_>, goid: u64, names: &mut Names) -> Option<String> {
    let goroutine = answer.snapshot.goroutine(goid)?;
    let text = of_goroutine(answer.snapshot, goroutine, names);
    let does = match goroutine.status {
        Status::Syscall => "system call",
        status if status.is_waiting() => {
            names.binary().wait_reasons().get(usize::from(goroutine.wait_reason)).copied()?
        }
        status => status.name(),
    };
    Some(text.map_or_else(|| does.to_owned(), |text| format!("{does}: {text}")))
}

/// For people.
///
/// # Errors
/// What the writer says.
pub fn text(out: &mut impl Write, answer: Answer<'_>, names: &mut Names) -> io::Result<()> {
    let runs =
        names.runs(answer.entry_pc, answer.stack).map_or(String::new(), |f| format!(" ({})", f.function));
    let waits = answer.wait_reason.map_or(String::new(), |r| match answer.place {
        Some(place) => format!(" {place}: {r}"),
        None => format!(" blocked in {r}"),
    });
    writeln!(out, "goroutine {}{runs}{waits}", answer.goid)?;
    writeln!(out, "  {}", sentence(answer, names))?;
    let of_pool = answer.place.is_some();
    for line in text::held_by(answer.holders, of_pool, Some(&answer.snapshot.outside), names) {
        writeln!(out, "  {line}")?;
    }
    if let Some(path) = answer.path() {
        writeln!(out)?;
        writeln!(out, "    {}", holder(answer, &path.holder, names))?;
        if let Some(does) = holding(answer.why).and_then(|goid| does(answer, goid, names)) {
            writeln!(out, "       {does}")?;
        }
        for (n, link) in path.links.iter().enumerate() {
            if let Some((goid, frame)) = &link.through {
                writeln!(out, "    .. on which this is blocked: {}", stack(*goid, frame.as_ref(), names))?;
            }
            let last = n + 1 == path.links.len();
            let role = if last { " (blocked here)" } else { "" };
            writeln!(out, "    -> {}", object(link, role, names))?;
        }
    }
    Ok(())
}

/// One object.
///
/// # Errors
/// What the writer says.
pub fn json(out: &mut impl Write, answer: Answer<'_>, names: &mut Names) -> io::Result<()> {
    let path = answer.path().map_or(Value::Null, |path| path_value(answer, path, names));
    let entry = place(names.runs(answer.entry_pc, answer.stack));
    let waits_on = answer.snapshot.goroutine(answer.goid).map(|g| goroutine_json(answer.snapshot, g));
    let outside = Some(&answer.snapshot.outside);
    let holders: Vec<Value> = answer.holders.iter().map(|h| holder_value(h, outside, names)).collect();
    let why = sentence(answer, names);
    line(
        out,
        &json!({
            "schema": SCHEMA,
            "pid": answer.pid,
            "go_version": answer.go_version,
            "goid": answer.goid,
            "entry": entry,
            "wait_reason": answer.wait_reason,
            "place": answer.place,
            "waits_on": waits_on,
            "outcome": outcome(answer),
            "path": path,
            "holders": holders,
            "why": why,
        }),
    )
}

/// For Graphviz.
///
/// # Errors
/// What the writer says.
pub fn dot(out: &mut impl Write, answer: Answer<'_>, names: &mut Names) -> io::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    writeln!(out, "digraph why {{\n  rankdir=LR;\n  node [shape=box, fontname=\"monospace\"];")?;
    let asked = format!("goroutine {}", answer.goid);
    writeln!(out, "  asked [label={}];", quoted(&asked))?;
    match answer.path() {
        Some(path) => {
            let label = holder(answer, &path.holder, names);
            writeln!(out, "  n0 [label={}, style=bold];", quoted(&label))?;
            for (n, link) in path.links.iter().enumerate() {
                let what = what(link, names).map_or(String::new(), |w| format!("\\n{w}"));
                let label = format!("{:#x}, {} bytes{what}", link.address, link.size);
                writeln!(out, "  n{} [label={}, shape=ellipse];", n + 1, quoted(&label))?;
                let Some((goid, frame)) = &link.through else {
                    let field = n.checked_sub(1).and_then(|n| path.links.get(n)?.field.as_deref());
                    let label = field.map_or(String::new(), |f| format!(" [label={}]", quoted(f)));
                    writeln!(out, "  n{n} -> n{}{label};", n + 1)?;
                    continue;
                };
                let label = stack(*goid, frame.as_ref(), names);
                writeln!(out, "  g{n} [label={}];", quoted(&label))?;
                writeln!(out, "  g{n} -> n{n} [style=dashed, label=\"waits\"];\n  g{n} -> n{};", n + 1)?;
            }
            writeln!(out, "  asked -> n{} [style=dashed, label=\"waits\"];", path.links.len())?;
        }
        None => {
            let why = sentence(answer, names);
            writeln!(out, "  n0 [label={}, shape=plaintext];\n  asked -> n0 [style=dashed];", quoted(&why))?;
        }
    }
    writeln!(out, "}}")
}

const fn outcome(answer: Answer<'_>) -> &'static str {
    match answer.why {
        _ if answer.moved_on.is_some() => "moved_on",
        Why::Held(Some(_)) => "held",
        Why::Unknown => "unknown",
        Why::Other => "not_for_others",
        Why::Held(None) => "held_by_unknown",
        Why::Variable(_) => "variable",
        Why::Unreached => "unreachable",
        Why::OnPurpose => "on_purpose",
    }
}

fn sentence(answer: Answer<'_>, names: &mut Names) -> String {
    let Some(reason) = answer.moved_on else { return found(answer, names) };
    let now = match (answer.state, answer.wait_reason) {
        (State::Gone, _) => "it has exited".to_owned(),
        (State::Syscall, _) => "it is in a system call".to_owned(),
        (_, Some(now)) => format!("it is blocked again in {now}"),
        _ => "it is running".to_owned(),
    };
    format!("it has run since the first snapshot, when it was blocked in {reason}; now {now}")
}

fn found(answer: Answer<'_>, names: &mut Names) -> String {
    match answer.why {
        Why::Unknown => "no such goroutine".into(),
        Why::Other => match (answer.state, answer.wait_reason) {
            (State::Finalizer, _) => "it runs the program's finalizers in sequence and is blocked in one: no other finalizer \
                                      runs until that one returns"
                .into(),
            (State::Cleanup, _) => {
                "it runs the program's cleanups and is blocked in one: the ones queued behind it do not run".into()
            }
            (State::Runtime, Some("finalizer wait")) => {
                "it runs the program's finalizers and has none to run: it waits until an object with one is freed".into()
            }
            (State::Runtime, Some("cleanup wait")) => "it runs the program's cleanups and has none to run".into(),
            (State::Runtime, _) => "it belongs to the Go runtime and waits for work".into(),
            (State::Runs | State::Gone, _) => "it is not blocked".into(),
            (state, reason) => {
                let goroutine = answer.snapshot.goroutine(answer.goid);
                let text = goroutine.and_then(|g| of_goroutine(answer.snapshot, g, names));
                match (text, state, reason) {
                    (Some(text), ..) => format!("it is not blocked on a lock or channel; {text}"),
                    (None, State::Syscall, _) => match answer.place {
                        Some(place) => format!("it {place}: no other goroutine can unblock it"),
                        None => "it is in a system call: no other goroutine can unblock it".into(),
                    },
                    (None, _, Some("sleep")) => "it sleeps and wakes by itself".into(),
                    (None, _, Some("IO wait")) => {
                        "it waits for I/O on a file descriptor: the other end decides".into()
                    }
                    _ => "it is not blocked on another goroutine, or what it is blocked on is unknown"
                        .into(),
                }
            }
        },
        Why::Held(Some(path)) => {
            let through = match path.links.len() {
                0 | 1 => "references what it is blocked on".to_owned(),
                2 => "reaches what it is blocked on through 1 object".to_owned(),
                n => format!("reaches what it is blocked on through {} objects", n - 1),
            };
            let others: Vec<String> = path
                .links
                .iter()
                .filter_map(|l| Some(format!("goroutine {}", l.through.as_ref()?.0)))
                .collect();
            let by = match others.len() {
                0 => String::new(),
                1 => format!(" and {}, itself blocked", others.concat()),
                _ => format!(" and {}, themselves blocked", others.join(" and ")),
            };
            let does = holding(answer.why).and_then(|goid| does(answer, goid, names));
            let does = does.map_or(String::new(), |d| format!("; that goroutine: {d}"));
            format!("{} {through}{by}{does}", holder(answer, &path.holder, names))
        }
        Why::Held(None) => {
            "what it is blocked on is reachable, but the references changed while they were followed".into()
        }
        Why::Variable(address) => match answer.variable {
            Some((name, _)) => format!("blocked on the variable {name}, at {address:#x}"),
            None => format!("blocked on a global (no symbol) at {address:#x}"),
        },
        Why::OnPurpose => {
            "it is the main goroutine in an empty select, which keeps the program running: not reported as leaked"
                .into()
        }
        Why::Unreached => {
            "probably leaked: nothing that can still run references what it is blocked on (1 heap scan; run `gotrace \
             leaks` to confirm)"
                .into()
        }
    }
}

fn holder(answer: Answer<'_>, holder: &Holder, names: &mut Names) -> String {
    match holder {
        Holder::Variable { address, module, offset, has_value } => match answer.variable {
            Some((name, 0)) => format!("variable {name}"),
            Some((name, at)) => format!("variable {name} (+{at})"),
            None => {
                let kind = if *has_value { "data" } else { "bss" };
                let of = if *module == 0 { String::new() } else { format!(" of plugin {module}") };
                format!("variable at {address:#x} ({kind}{of} +{offset:#x})")
            }
        },
        Holder::Stack { goid, frame, .. } => stack(*goid, frame.as_ref(), names),
        Holder::Goroutine { goid } => format!("goroutine {goid} (a deferred call or similar)"),
        Holder::Runtime => {
            "something unknown (released meanwhile, or internal to the runtime: a finalizer, a cleanup, a weak pointer, \
             a record outside the heap)"
                .into()
        }
    }
}

/// A goroutine, and where it stands if that is known.
fn stack(goid: u64, frame: Option<&StackFrame>, names: &mut Names) -> String {
    let stack = frame.map(|f| names.stack(std::slice::from_ref(f))).unwrap_or_default();
    match stack.first() {
        Some(f) => {
            let file = f.frame.file.rsplit('/').next().unwrap_or_default();
            format!("goroutine {goid} in {} ({file}:{})", f.frame.function, f.frame.line)
        }
        None => format!("the stack of goroutine {goid}"),
    }
}

fn object(link: &Link, role: &str, names: &mut Names) -> String {
    let inside =
        if link.entered_at == 0 { String::new() } else { format!(", entered at +{}", link.entered_at) };
    let known = what(link, names);
    let what = known.map_or_else(
        || "object".to_owned(),
        |w| match link.what_at {
            // The runtime's own word before large objects is no place of interest.
            0 | 8 => w,
            at => format!("{w} at +{at} of object"),
        },
    );
    let by = link.field.as_ref().map_or(String::new(), |f| format!(", via {}", printable(f)));
    format!("{what} {:#x} ({} bytes{inside}{by}){role}", link.address, link.size)
}

/// What an object is.
fn what(link: &Link, names: &mut Names) -> Option<String> {
    Some(match link.what.as_ref()? {
        What::Values { name, several: false } => printable(name).into_owned(),
        What::Values { name, several: true } => format!("[]{}", printable(name)),
        What::Coroutine => "coroutine of iter.Pull, referenced by its next and stop functions".into(),
        What::Channel { element } => format!("chan {}", printable(element)),
        What::Function { pc } => format!("func {}", names.entry(*pc)?.function),
    })
}

fn frame_value(frame: Option<&StackFrame>, names: &mut Names) -> Value {
    let stack = frame.map(|f| names.stack(std::slice::from_ref(f))).unwrap_or_default();
    place(stack.first().map(|f| f.frame))
}

fn path_value(answer: Answer<'_>, path: &Path, names: &mut Names) -> Value {
    let address = |a: u64| format!("{a:#x}");
    let root = match &path.holder {
        Holder::Variable { address: at, module, offset, has_value } => json!({
            "kind": "variable",
            "name": answer.variable.map(|(name, _)| name),
            "name_offset": answer.variable.map(|(_, at)| at),
            "address": address(*at),
            "module": module,
            "section": if *has_value { "data" } else { "bss" },
            "section_offset": offset,
        }),
        Holder::Stack { goid, address: at, frame } => json!({
            "kind": "stack",
            "goid": goid,
            "address": address(*at),
            "frame": frame_value(frame.as_ref(), names),
        }),
        Holder::Goroutine { goid } => json!({"kind": "goroutine", "goid": goid}),
        Holder::Runtime => json!({"kind": "runtime"}),
    };
    let objects: Vec<Value> = path
        .links
        .iter()
        .map(|l| {
            let through = l
                .through
                .as_ref()
                .map(|(goid, frame)| json!({"goid": goid, "frame": frame_value(frame.as_ref(), names)}));
            json!({
                "address": address(l.address),
                "size": l.size,
                "type": what(l, names),
                "type_at": l.what.is_some().then_some(l.what_at),
                "entered_at": l.entered_at,
                "field": l.field,
                "through": through,
            })
        })
        .collect();
    let mut root = root;
    if let Some(goroutine) = holding(answer.why).and_then(|goid| answer.snapshot.goroutine(goid)) {
        let waits = goroutine.status.is_waiting().then_some(goroutine.wait_reason);
        root["state"] = goroutine.status.name().into();
        root["wait_reason"] = reason(names, waits);
        root["waits_on"] = goroutine_json(answer.snapshot, goroutine).into();
    }
    json!({"root": root, "objects": objects})
}
