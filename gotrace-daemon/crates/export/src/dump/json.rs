//! `dump --format json`: one object a line, schema `gotrace.dump/1`: a header, a line a goroutine by
//! ascending goid (or, grouped, a line a group, the largest first), a summary. Unknown is `null`; addresses
//! are strings.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::{Dump, Group, Rendered, wait_reason};
use crate::outside::goroutine_json;
use gotrace_go::{Frame, Origin, origin};
use gotrace_inspect::snapshot::{Goroutine, Names, StackFrame, StackId};
use gotrace_model::printable::write_json;

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.dump/1";

/// Writes a line a goroutine.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    let mut known = Known::new(dump);
    header(out, dump, false)?;
    for &goroutine in &dump.goroutines {
        let place = known.place(goroutine, names)?;
        let labels = dump.snapshot.labels_of(goroutine).iter().map(|(k, v)| (&**k, &**v));
        line(
            out,
            &GoroutineLine {
                goid: goroutine.goid,
                parent_goid: goroutine.parent_goid,
                thread_id: (goroutine.thread_id != 0).then_some(goroutine.thread_id),
                place,
                waits_on: goroutine_json(dump.snapshot, goroutine),
                labels: labels.collect(),
            },
        )?;
    }
    summary(out, dump)
}

/// Writes a line a group.
///
/// # Errors
/// What the writer says.
pub fn write_groups(
    out: &mut dyn Write,
    dump: &Dump<'_>,
    groups: &[Group<'_>],
    names: &mut Names,
) -> io::Result<()> {
    let mut known = Known::new(dump);
    header(out, dump, true)?;
    for group in groups {
        let own_code = place(own_code(dump.snapshot.frames(group.first), names).as_ref())?;
        let place = known.place(group.first, names)?;
        line(
            out,
            &GroupLine {
                group: GroupObject {
                    count: group.count,
                    first_goid: group.first.goid,
                    last_goid: group.last_goid,
                    parent_goid: group.first.parent_goid.filter(|_| group.same_parent),
                    own_code,
                    place,
                },
            },
        )?;
    }
    summary(out, dump)
}

#[derive(Serialize)]
struct GoroutineLine<'a> {
    goid: u64,
    #[serde(flatten)]
    place: Place<'a>,
    parent_goid: Option<u64>,
    thread_id: Option<u32>,
    waits_on: Vec<Value>,
    labels: std::collections::BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct GroupLine<'a> {
    group: GroupObject<'a>,
}

#[derive(Serialize)]
struct GroupObject<'a> {
    count: u64,
    first_goid: u64,
    last_goid: u64,
    #[serde(flatten)]
    place: Place<'a>,
    parent_goid: Option<u64>,
    own_code: Box<RawValue>,
}

/// What goroutines of a group have in common.
#[derive(Serialize)]
struct Place<'a> {
    state: &'a str,
    wait_reason: Option<Cow<'static, str>>,
    wait_ns: Option<WaitNs>,
    system: bool,
    locked_to_thread: bool,
    entry: &'a RawValue,
    created_by: &'a RawValue,
    stack: &'a RawValue,
    stack_complete: bool,
}

/// When a wait began is not known from memory: `g.waitsince` bounds nothing.
#[derive(Serialize)]
struct WaitNs {
    at_least: u64,
    at_most: Option<u64>,
}

/// What is the same for many goroutines, written once.
struct Known<'a> {
    dump: &'a Dump<'a>,
    stacks: Rendered,
    /// The frames of the last goroutine, where they have arguments.
    with_arguments: String,
    entries: HashMap<(u64, Option<StackId>), Box<RawValue>, FixedState>,
    created: HashMap<u64, Box<RawValue>, FixedState>,
}

impl<'a> Known<'a> {
    fn new(dump: &'a Dump<'a>) -> Self {
        Self {
            dump,
            stacks: Rendered::new(dump.snapshot),
            with_arguments: String::new(),
            entries: HashMap::default(),
            created: HashMap::default(),
        }
    }

    fn place(&mut self, goroutine: &Goroutine, names: &mut Names) -> io::Result<Place<'_>> {
        let Self { dump, stacks, with_arguments, entries, created } = self;
        let text = match goroutine.stack {
            None => "[]",
            // Stacks are alike, arguments are not.
            Some(id) if dump.snapshot.arguments.is_some() => {
                let arguments = dump.snapshot.arguments_of(goroutine);
                *with_arguments = frames(dump.snapshot.stacks.frames(id), names, Some(&arguments));
                with_arguments
            }
            Some(id) => stacks.get(id.index(), || frames(dump.snapshot.stacks.frames(id), names, None)),
        };
        let wait_reason = wait_reason(goroutine, names);
        Ok(Place {
            state: goroutine.status.name(),
            wait_reason,
            wait_ns: goroutine.status.is_waiting().then_some(WaitNs { at_least: 0, at_most: None }),
            system: goroutine.is_system(),
            locked_to_thread: goroutine.is_locked_to_thread(),
            entry: match entries.entry((goroutine.entry_pc, goroutine.stack)) {
                hashbrown::hash_map::Entry::Occupied(known) => known.into_mut(),
                hashbrown::hash_map::Entry::Vacant(new) => {
                    let frames = dump.snapshot.frames(goroutine);
                    new.insert(place(names.runs(goroutine.entry_pc, frames))?)
                }
            },
            created_by: match created.entry(goroutine.created_pc) {
                hashbrown::hash_map::Entry::Occupied(known) => known.into_mut(),
                hashbrown::hash_map::Entry::Vacant(new) => {
                    new.insert(place(names.created_by(goroutine.created_pc).first())?)
                }
            },
            stack: serde_json::from_str(text)?,
            stack_complete: goroutine.is_stack_complete(),
        })
    }
}

fn line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    write_json(out, value)?;
    out.write_all(b"\n")
}

#[derive(Serialize)]
struct HeaderLine<'a> {
    schema: &'static str,
    time_unix_nano: u64,
    pid: u32,
    executable: &'a str,
    go_version: &'a str,
    engine: &'static str,
    duration_ns: u64,
    filter: Value,
    grouped: bool,
}

fn header(out: &mut dyn Write, dump: &Dump<'_>, grouped: bool) -> io::Result<()> {
    let Dump { header, snapshot, filter, .. } = dump;
    line(
        out,
        &HeaderLine {
            schema: SCHEMA,
            time_unix_nano: snapshot.time_unix_nano,
            pid: snapshot.pid,
            executable: header.executable,
            go_version: header.go_version,
            engine: "snapshot",
            duration_ns: snapshot.duration_ns,
            filter: filter.to_json(),
            grouped,
        },
    )
}

fn summary(out: &mut dyn Write, dump: &Dump<'_>) -> io::Result<()> {
    let counts = &dump.snapshot.counts;
    line(
        out,
        &json!({"summary": {
            "goroutines": counts.goroutines,
            "written": dump.goroutines.len(),
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
            "args_unreadable": counts.arguments_unreadable,
            "sockets_cut": dump.snapshot.outside.sockets_cut,
            "waits_not_looked_up": dump.snapshot.outside.left_out,
        }}),
    )
}

#[derive(Serialize)]
struct PlaceObject<'a> {
    function: &'a str,
    file: Option<&'a str>,
    line: Option<u32>,
}

#[derive(Serialize)]
struct FrameObject<'a> {
    #[serde(flatten)]
    place: PlaceObject<'a>,
    pc: String,
    inlined: bool,
    internal: bool,
    /// Not there unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Option<&'a str>>,
}

impl<'a> From<&'a Frame> for PlaceObject<'a> {
    fn from(frame: &'a Frame) -> Self {
        Self {
            function: &frame.function,
            file: (!frame.file.is_empty()).then_some(&frame.file),
            line: (frame.line != 0).then_some(frame.line),
        }
    }
}

/// Where a stack is in the program's own code, as [`gotrace_model::Place::at`]: the innermost frame of those whose code is
/// nearest to the main module's.
#[must_use]
pub fn own_code(stack: &[StackFrame], names: &mut Names) -> Option<Frame> {
    let module = names.binary().build().module.clone();
    let mut best: Option<(Origin, Frame)> = None;
    for named in names.stack(stack).iter().filter(|named| !named.frame.wrapper) {
        let origin = origin(&named.frame.function, module.as_deref());
        let replaces = match &best {
            // The outermost frame, where all wait on behalf of others.
            Some((Origin::Waiting, _)) => named.frame.function != "runtime.goexit",
            Some((best, _)) => origin < *best,
            None => true,
        };
        if replaces {
            best = Some((origin, named.frame.clone()));
        }
    }
    best.map(|(_, frame)| frame)
}

/// A place in the source, or `null`.
fn place(frame: Option<&Frame>) -> io::Result<Box<RawValue>> {
    Ok(serde_json::value::to_raw_value(&frame.map(PlaceObject::from))?)
}

/// The frames of a stack. `arguments`: those of each physical frame, where they are asked for.
fn frames(physical: &[StackFrame], names: &mut Names, arguments: Option<&[Option<String>]>) -> String {
    let named = names.stack(physical);
    let frames: Vec<_> = named
        .iter()
        .map(|n| FrameObject {
            place: n.frame.into(),
            pc: format!("{:#x}", n.pc),
            inlined: n.frame.inlined,
            internal: n.internal,
            args: arguments.map(|a| a.get(n.physical).filter(|_| !n.frame.inlined)?.as_deref()),
        })
        .collect();
    // Strings and numbers always have a form.
    serde_json::to_string(&frames).unwrap_or_else(|_| "[]".to_owned())
}
