//! `gotrace why`: who holds what a goroutine waits on, as text, as JSON (schema `gotrace.why/1`), or for
//! Graphviz.
//!
//! Input: a [`Why`], and [`Names`] for its addresses. Output: bytes. Unknown is `null`; addresses are strings.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::values::{line, place};
use crate::{
    heap::{Holder, Link, Path, What, Why},
    printable::printable,
    snapshot::{Names, StackFrame},
};

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
    /// What was found.
    pub why: &'a Why,
    /// Name of the variable that the chain begins at, and how far into it; by the symbol table.
    pub variable: Option<&'a (String, u64)>,
}

/// For people.
///
/// # Errors
/// What the writer says.
pub fn text(out: &mut impl Write, answer: Answer<'_>, names: &mut Names) -> io::Result<()> {
    let runs =
        names.runs(answer.entry_pc, answer.stack).map_or(String::new(), |f| format!(" ({})", f.function));
    let waits = answer.wait_reason.map_or(String::new(), |r| format!(" waits: {r}"));
    writeln!(out, "goroutine {}{runs}{waits}", answer.goid)?;
    writeln!(out, "  {}", sentence(answer, names))?;
    if let Why::Held(Some(path)) = answer.why {
        writeln!(out)?;
        writeln!(out, "    {}", holder(answer, &path.holder, names))?;
        for (n, link) in path.links.iter().enumerate() {
            if let Some((goid, frame)) = &link.through {
                writeln!(out, "    .. on which waits {}", stack(*goid, frame.as_ref(), names))?;
            }
            let last = n + 1 == path.links.len();
            let role = if last { "what it waits on" } else { "object" };
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
    let path = match answer.why {
        Why::Held(Some(path)) => path_value(answer, path, names),
        _ => Value::Null,
    };
    let entry = place(names.runs(answer.entry_pc, answer.stack));
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
            "outcome": outcome(answer.why),
            "path": path,
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
    match answer.why {
        Why::Held(Some(path)) => {
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
        _ => {
            let why = sentence(answer, names);
            writeln!(out, "  n0 [label={}, shape=plaintext];\n  asked -> n0 [style=dashed];", quoted(&why))?;
        }
    }
    writeln!(out, "}}")
}

const fn outcome(why: &Why) -> &'static str {
    match why {
        Why::Unknown => "unknown",
        Why::Other => "not_for_others",
        Why::Held(Some(_)) => "held",
        Why::Held(None) => "held_by_unknown",
        Why::Variable(_) => "variable",
        Why::Unreached => "unreachable",
        Why::OnPurpose => "on_purpose",
    }
}

fn sentence(answer: Answer<'_>, names: &mut Names) -> String {
    match answer.why {
        Why::Unknown => "there is no such goroutine".into(),
        Why::Other => {
            "it does not wait for another goroutine to let it run, or what it waits on is not known".into()
        }
        Why::Held(Some(path)) => {
            let through = match path.links.len() {
                0 | 1 => "refers to what it waits on".to_owned(),
                2 => "leads to what it waits on through one object".to_owned(),
                n => format!("leads to what it waits on through {} objects", n - 1),
            };
            let others: Vec<String> = path
                .links
                .iter()
                .filter_map(|l| Some(format!("goroutine {}", l.through.as_ref()?.0)))
                .collect();
            let by = match others.len() {
                0 => String::new(),
                1 => format!(", and through {}, which itself waits", others.concat()),
                _ => format!(", and through {}, which themselves wait", others.join(" and ")),
            };
            format!("{} {through}{by}", holder(answer, &path.holder, names))
        }
        Why::Held(None) => {
            "what it waits on is reached, but the way there had changed before it was found".into()
        }
        Why::Variable(address) => match answer.variable {
            Some((name, _)) => format!("blocked on the variable {name}, at {address:#x}"),
            None => format!("blocked on a global (no symbol) at {address:#x}"),
        },
        Why::OnPurpose => {
            "it is the main goroutine in a select without cases, which keeps the program alive for as long as others \
             run: it is not told as leaked"
                .into()
        }
        Why::Unreached => {
            "probably leaked: nothing that can run leads to what it waits on (1 heap scan; run `gotrace leaks` to \
             confirm)"
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
        Holder::Goroutine { goid } => format!("goroutine {goid}, by a deferred call or the like"),
        Holder::Runtime => {
            "something that was not found (let go meanwhile, or the runtime's own: a finalizer, a \
                            cleanup, a weak pointer, a record outside of the heap)"
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
    let what = known.map_or(String::new(), |w| match link.what_at {
        // The runtime's own word before large objects is no place of interest.
        0 | 8 => format!(": {w}"),
        at if at == link.entered_at => format!(": {w} there"),
        at => format!(": {w} at +{at}"),
    });
    let by = link.field.as_ref().map_or(String::new(), |f| format!(", by {}", printable(f)));
    format!("{:#x}  {role}, {} bytes{inside}{what}{by}", link.address, link.size)
}

/// What an object is.
fn what(link: &Link, names: &mut Names) -> Option<String> {
    Some(match link.what.as_ref()? {
        What::Values { name, several: false } => printable(name).into_owned(),
        What::Values { name, several: true } => format!("[]{}", printable(name)),
        What::Coroutine => "coroutine of iter.Pull, which its next and stop functions have".into(),
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
    json!({"root": root, "objects": objects})
}
