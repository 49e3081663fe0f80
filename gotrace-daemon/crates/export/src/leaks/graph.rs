//! The wait-for graph: as `dot` for Graphviz, and as JSON lines (schema `gotrace.graph/1`): a header, a line
//! a group, a line an object, a line an edge, a summary.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    Header,
    values::{frames, line, place, reason},
};
use crate::dump::own_code;
use gotrace_inspect::{
    heap::Evidence,
    leak::{EdgeKind, Graph, GraphObject},
    snapshot::{Names, ObjectKind},
};
use gotrace_model::printable::printable;

/// The schema of the JSON lines.
pub const SCHEMA: &str = "gotrace.graph/1";

/// Writes JSON lines.
///
/// # Errors
/// What the writer says.
pub fn json(out: &mut impl Write, header: Header<'_>, graph: &Graph, names: &mut Names) -> io::Result<()> {
    line(
        out,
        &json!({
            "schema": SCHEMA,
            "time_unix_nano": header.time_unix_nano,
            "pid": header.pid,
            "executable": header.executable,
            "go_version": header.go_version,
            "engine": header.engine,
            "duration_ns": header.duration_ns,
            "references_complete": header.references_complete,
        }),
    )?;
    parts(out, graph, names, usize::MAX)?;
    let summary = json!({"summary": {
        "groups": graph.groups.len(), "objects": graph.objects.len(), "edges": graph.edges.len(),
        "goroutines": header.goroutines,
    }});
    line(out, &summary)
}

/// The lines of groups, objects and edges. `ids`: of at most so many goroutines of each group.
pub(crate) fn parts(
    out: &mut (impl Write + ?Sized),
    graph: &Graph,
    names: &mut Names,
    ids: usize,
) -> io::Result<()> {
    for (id, group) in graph.groups.iter().enumerate() {
        let waits = group.example.status.is_waiting().then_some(group.example.wait_reason);
        let object = json!({"group": {
            "id": id,
            "count": group.goids.len(),
            "state": group.example.status.name(),
            "wait_reason": reason(names, waits),
            "entry": place(names.runs(group.entry_pc, &group.stack)),
            "created_by": place(names.created_by(group.created_pc).first()),
            "own_code": place(own_code(&group.stack, names).as_ref()),
            "stack": frames(&group.stack, names),
            "goids": group.goids.get(..ids).unwrap_or(&group.goids),
        }});
        line(out, &object)?;
    }
    for (id, node) in graph.objects.iter().enumerate() {
        let o = &node.example;
        let chan = (o.kind == ObjectKind::Chan && o.known).then_some(o);
        let object = json!({"object": {
            "id": id,
            "count": node.count,
            "kind": o.kind.name(),
            "waiting": node.waiting,
            "address": format!("{:#x}", o.address),
            "len": chan.map(|c| c.len),
            "cap": chan.map(|c| c.cap),
            "closed": chan.map(|c| c.closed),
            "fd": o.descriptor(),
        }});
        line(out, &object)?;
    }
    for edge in &graph.edges {
        let (kind, op, evidence) = match edge.kind {
            EdgeKind::Waits(op) => ("waits", op.map(|o| o.name()), None),
            EdgeKind::Refers => ("refers", None, None),
            EdgeKind::Holds(evidence) => ("holds", None, Some(evidence.name())),
        };
        // What is inlined there may be the call of another lock.
        let frame = edge.frame.map(|frame| place(names.stack(&[frame]).last().map(|f| f.frame)));
        let object = json!({"edge": {
            "group": edge.group, "object": edge.object, "kind": kind, "op": op, "count": edge.count,
            "evidence": evidence, "frame": frame,
        }});
        line(out, &object)?;
    }
    Ok(())
}

/// Writes a graph for Graphviz: boxes are goroutines, ellipses objects; a solid arrow is a wait, a dotted
/// one says that a stack refers to the object.
///
/// # Errors
/// What the writer says.
pub fn dot(out: &mut impl Write, header: Header<'_>, graph: &Graph, names: &mut Names) -> io::Result<()> {
    writeln!(out, "digraph {} {{", quoted(&format!("{} {}", printable(header.executable), header.pid)))?;
    writeln!(out, "  rankdir=LR;\n  node [fontname=\"sans-serif\"];")?;
    for (id, group) in graph.groups.iter().enumerate() {
        let entry = names.runs(group.entry_pc, &group.stack).map_or("?".to_owned(), |f| f.function.clone());
        let waits = group.example.status.is_waiting().then_some(group.example.wait_reason);
        let state = match reason(names, waits) {
            Value::String(name) => name,
            _ => group.example.status.name().to_owned(),
        };
        let count = group.goids.len();
        let who = match group.goids.first() {
            Some(goid) if count == 1 => format!("goroutine {goid}"),
            _ => format!("{count} goroutines"),
        };
        let at = names.stack(&group.stack).iter().find(|f| !f.internal).map(|f| {
            let file = f.frame.file.rsplit('/').next().unwrap_or_default();
            format!("\n{} ({file}:{})", f.frame.function, f.frame.line)
        });
        let label = format!("{who}\n{entry}\n{state}{}", at.unwrap_or_default());
        writeln!(out, "  g{id} [shape=box, label={}];", quoted(&label))?;
    }
    for (id, node) in graph.objects.iter().enumerate() {
        writeln!(out, "  o{id} [shape=ellipse, label={}];", quoted(&label(node)))?;
    }
    for edge in &graph.edges {
        let (text, style) = match edge.kind {
            EdgeKind::Waits(op) => (op.map_or("waits", |o| o.name()), ""),
            EdgeKind::Refers => ("refers", ", style=dotted"),
            EdgeKind::Holds(Evidence::Locked) => ("holds", ", style=bold"),
            EdgeKind::Holds(_) => ("may hold", ", style=dashed"),
        };
        let count = if edge.count == 1 { String::new() } else { format!(" × {}", edge.count) };
        let label = quoted(&format!("{text}{count}"));
        writeln!(out, "  g{} -> o{} [label={label}{style}];", edge.group, edge.object)?;
    }
    writeln!(out, "}}")
}

/// What stands in an object's node; of several that are alike how many, and only what holds of all.
fn label(node: &GraphObject) -> String {
    let o = &node.example;
    let mut label = match (node.count, o.descriptor()) {
        (1, Some(number)) => format!("fd {number}"),
        (1, None) => format!("{} {:#x}", o.kind.name(), o.address),
        (n, Some(number)) => format!("{n} × fd\ne.g. fd {number}"),
        (n, None) => format!("{n} × {}", o.kind.name()),
    };
    if o.kind == ObjectKind::Chan && o.known {
        let eg = if node.count == 1 { "" } else { "e.g. " };
        label += &format!("\n{eg}len {}, cap {}{}", o.len, o.cap, if o.closed { ", closed" } else { "" });
    }
    label
}

/// A string of the DOT language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_inspect::snapshot::WaitObject;

    #[test]
    fn objects_that_are_alike_are_not_called_by_the_name_of_one() {
        let fd = WaitObject {
            address: 0xc000,
            len: 12,
            cap: 0,
            senders: 0,
            receivers: 1,
            elem_size: 0,
            kind: ObjectKind::Fd,
            closed: false,
            known: true,
            timer: false,
        };
        let of = |example, count| label(&GraphObject { example, count, waiting: 1 });
        assert_eq!(of(fd, 1), "fd 12");
        assert_eq!(of(fd, 4), "4 × fd\ne.g. fd 12");
        let chan = WaitObject { kind: ObjectKind::Chan, cap: 16, ..fd };
        assert_eq!(of(chan, 1), "chan 0xc000\nlen 12, cap 16");
        assert_eq!(of(chan, 3), "3 × chan\ne.g. len 12, cap 16");
        assert_eq!(of(WaitObject { known: false, ..fd }, 2), "2 × fd");
    }

    #[test]
    fn strings_of_dot_end_where_they_end() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}
