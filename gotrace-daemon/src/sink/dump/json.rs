//! `dump --format json`: one object a line, schema `gotrace.dump/1`: a header, a line a goroutine by
//! ascending goid, a summary. Unknown is `null`; addresses are strings.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Header, Selection};
use crate::{
    gobin::Frame,
    snapshot::{Goroutine, Names, ObjectKind, Snapshot, StackFrame, Status, Wait, WaitObject},
};

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.dump/1";

/// Writes a snapshot.
///
/// # Errors
/// What the writer says.
pub fn write(
    out: &mut impl Write,
    header: Header<'_>,
    snapshot: &Snapshot,
    names: &mut Names,
    selection: Selection,
) -> io::Result<()> {
    line(
        out,
        &json!({
            "schema": SCHEMA,
            "time_unix_nano": snapshot.time_unix_nano,
            "pid": snapshot.pid,
            "executable": header.executable,
            "go_version": header.go_version,
            "engine": "snapshot",
            "duration_ns": snapshot.duration_ns,
        }),
    )?;
    // The same stack many times: written down once.
    let mut stacks: Vec<Option<Value>> = vec![None; snapshot.stacks.len()];
    for goroutine in snapshot.goroutines.iter().filter(|g| selection.system || !g.is_system()) {
        let stack = goroutine.stack.and_then(|id| {
            let known = stacks.get_mut(id.index())?;
            Some(known.get_or_insert_with(|| frames(snapshot.frames(goroutine), names)).clone())
        });
        line(out, &object(snapshot, goroutine, names, stack))?;
    }
    let counts = &snapshot.counts;
    line(
        out,
        &json!({"summary": {
            "goroutines": counts.goroutines,
            "system": counts.system,
            "running": counts.running,
            "stacks_incomplete": counts.stacks_incomplete,
            "stacks_missing": counts.stacks_missing,
            "reread": counts.reread,
            "torn": counts.torn,
            "unreadable": counts.unreadable,
            "implausible": counts.implausible,
            "duplicates": counts.duplicates,
            "waits_unreadable": counts.waits_unreadable,
            "labels_unreadable": counts.labels_unreadable,
        }}),
    )
}

/// One object a line.
pub(in crate::sink) fn line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

fn object(snapshot: &Snapshot, goroutine: &Goroutine, names: &mut Names, stack: Option<Value>) -> Value {
    let reason = reason(names, goroutine.status.is_waiting().then_some(goroutine.wait_reason));
    let labels: serde_json::Map<String, Value> =
        snapshot.labels_of(goroutine).iter().map(|(k, v)| (k.to_string(), v.to_string().into())).collect();
    let waits: Vec<_> = snapshot
        .waits_of(goroutine)
        .iter()
        .map(|w| snapshot.object(w.object).map_or(Value::Null, |o| object_of_wait(*w, o)))
        .collect();
    // When a wait began is not known from memory: `g.waitsince` bounds nothing.
    let wait_ns = match goroutine.status {
        Status::Waiting | Status::Leaked => json!({"at_least": 0, "at_most": null}),
        _ => Value::Null,
    };
    json!({
        "goid": goroutine.goid,
        "state": goroutine.status.name(),
        "wait_reason": reason,
        "wait_ns": wait_ns,
        "system": goroutine.is_system(),
        "locked_to_thread": goroutine.is_locked_to_thread(),
        "parent_goid": goroutine.parent_goid,
        "thread_id": (goroutine.thread_id != 0).then_some(goroutine.thread_id),
        "entry": place(names.entry(goroutine.entry_pc)),
        "created_by": place(names.created_by(goroutine.created_pc).first()),
        "stack": stack.unwrap_or_else(|| json!([])),
        "stack_complete": goroutine.is_stack_complete(),
        "waits_on": waits,
        "labels": labels,
    })
}

/// A wait reason by its number; `null` for none.
pub(in crate::sink) fn reason(names: &Names, reason: Option<u8>) -> Value {
    let name = reason.and_then(|r| names.binary().wait_reasons().get(usize::from(r)));
    match (reason, name) {
        (None, _) | (_, Some(&"")) => Value::Null,
        (_, Some(name)) => (*name).into(),
        (Some(number), None) => format!("reason {number}").into(),
    }
}

/// Function, file, line.
pub(in crate::sink) fn place(frame: Option<&Frame>) -> Value {
    frame.map_or(
        Value::Null,
        |f| json!({"function": f.function, "file": text(&f.file), "line": number(f.line)}),
    )
}

/// A stack, innermost frame first.
pub(in crate::sink) fn frames(stack: &[StackFrame], names: &mut Names) -> Value {
    let named = names.stack(stack);
    let frames = named.iter().map(|n| {
        json!({
            "function": n.frame.function,
            "file": text(&n.frame.file),
            "line": number(n.frame.line),
            "pc": format!("{:#x}", n.pc),
            "inlined": n.frame.inlined,
            "internal": n.internal,
        })
    });
    Value::Array(frames.collect())
}

/// An object that is waited on.
pub(in crate::sink) fn object_of_wait(wait: Wait, object: &WaitObject) -> Value {
    let chan = (object.kind == ObjectKind::Chan && object.known).then_some(object);
    let is_chan = object.kind == ObjectKind::Chan;
    json!({
        "kind": object.kind.name(),
        "address": (object.address != 0).then(|| format!("{:#x}", object.address)),
        "op": wait.op.map(|op| op.name()),
        "len": chan.map(|c| c.len),
        "cap": chan.map(|c| c.cap),
        "closed": chan.map(|c| c.closed),
        "elem_size": chan.map(|c| c.elem_size),
        "senders": is_chan.then_some(object.senders),
        "receivers": is_chan.then_some(object.receivers),
    })
}

pub(in crate::sink) fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(in crate::sink) fn number(line: u32) -> Option<u32> {
    (line != 0).then_some(line)
}
