//! `dump --format text`: the grammar of Go's own goroutine traceback (`runtime/traceback.go`,
//! `goroutineheader`, `traceback2`, `printcreatedby`, Go 1.21 to 1.27; before 1.21 without the creator's
//! goid), so that what reads those reads this.
//!
//! What differs by nature: arguments are `(...)` unless the snapshot has them; all frames, however deep. The
//! minutes are those that the runtime itself would print, from `g.waitsince`, which the collector sets: they
//! can be too many by up to the time between two collections, and are missing before the second. A stack that was not followed to its end ends in `...additional frames elided...`.
//! A goroutine of which Go would show no frame has all of them. What a goroutine waits for outside of its process stands
//! last between the brackets, where Go has nothing.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Dump, Group, Rendered, doing};
use crate::outside;
use gotrace_go::Frame;
use gotrace_inspect::snapshot::{Goroutine, NamedFrame, Names, Status};

/// Writes one goroutine after the other.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    let mut bodies = Bodies::new(dump);
    let now = dump.snapshot.process_clock().unwrap_or(dump.snapshot.monotonic_ns.cast_signed());
    for (n, goroutine) in dump.goroutines.iter().enumerate() {
        if n > 0 {
            out.write_all(b"\n")?;
        }
        let minutes = minutes(goroutine, now.cast_unsigned());
        let mut attributes = attributes(goroutine, minutes, names);
        if let Some(waits_for) = outside::of_goroutine(dump.snapshot, goroutine, names) {
            // What reads tracebacks takes the first closing bracket for the end.
            attributes.push_str(", ");
            attributes.push_str(&waits_for.replace('[', "(").replace(']', ")"));
        }
        writeln!(out, "goroutine {} [{attributes}]:", goroutine.goid)?;
        out.write_all(bodies.of(goroutine, names).as_bytes())?;
        bodies.created_by(out, goroutine, goroutine.parent_goid, names)?;
    }
    Ok(())
}

/// Writes groups: each as a goroutine, with a header that counts.
///
/// # Errors
/// What the writer says.
pub fn write_groups(
    out: &mut dyn Write,
    dump: &Dump<'_>,
    groups: &[Group<'_>],
    names: &mut Names,
) -> io::Result<()> {
    let mut bodies = Bodies::new(dump);
    for (n, group) in groups.iter().enumerate() {
        if n > 0 {
            out.write_all(b"\n")?;
        }
        let first = group.first;
        let attributes = attributes(first, 0, names);
        match group.count {
            1 => writeln!(out, "1 goroutine [{attributes}], goid {}:", first.goid)?,
            n => {
                writeln!(out, "{n} goroutines [{attributes}], goids {} to {}:", first.goid, group.last_goid)?;
            }
        }
        out.write_all(bodies.of(first, names).as_bytes())?;
        bodies.created_by(out, first, first.parent_goid.filter(|_| group.same_parent), names)?;
    }
    Ok(())
}

/// How many minutes a goroutine has waited by the runtime's own account; 0 when less, or not known.
fn minutes(goroutine: &Goroutine, now_ns: u64) -> u64 {
    let waits = goroutine.status.is_waiting() || goroutine.status == Status::Syscall;
    if !waits || goroutine.wait_since_ns == 0 {
        return 0;
    }
    now_ns.saturating_sub(goroutine.wait_since_ns) / 60_000_000_000
}

/// What stands between the brackets.
fn attributes(goroutine: &Goroutine, minutes: u64, names: &Names) -> String {
    let mut text = doing(goroutine, names).into_owned();
    if goroutine.status == Status::Leaked {
        text.push_str(" (leaked)");
    }
    if minutes > 0 {
        // The runtime writes "1 minutes" too.
        text.push_str(&format!(", {minutes} minutes"));
    }
    if goroutine.is_locked_to_thread() {
        text.push_str(", locked to thread");
    }
    text
}

/// The lines below the headers, each stack's and each creation's once.
struct Bodies<'a> {
    dump: &'a Dump<'a>,
    stacks: Rendered,
    created: HashMap<u64, Option<(String, String)>, FixedState>,
    offsets: HashMap<u64, u64, FixedState>,
}

impl<'a> Bodies<'a> {
    fn new(dump: &'a Dump<'a>) -> Self {
        let stacks = Rendered::new(dump.snapshot);
        Self { dump, stacks, created: HashMap::default(), offsets: HashMap::default() }
    }

    fn of(&mut self, goroutine: &Goroutine, names: &mut Names) -> Cow<'_, str> {
        let Self { dump, stacks, offsets, .. } = self;
        // The only line that the grammar has for it.
        let Some(id) = goroutine.stack else { return UNAVAILABLE.into() };
        let mut make = |arguments: &[Option<String>]| {
            let physical = dump.snapshot.stacks.frames(id);
            for frame in physical {
                offsets.entry(frame.pc()).or_insert_with(|| offset(names, dump, frame.pc()));
            }
            frames(&names.stack(physical), goroutine.is_stack_complete(), offsets, arguments)
        };
        // Stacks are alike, arguments are not.
        if dump.snapshot.arguments.is_some() {
            return make(&dump.snapshot.arguments_of(goroutine)).into();
        }
        stacks.get(id.index(), || make(&[])).into()
    }

    /// `created by main.main in goroutine 1`, and where. The traceback names the compiled function, and
    /// the innermost place in it.
    fn created_by(
        &mut self,
        out: &mut dyn Write,
        goroutine: &Goroutine,
        parent: Option<u64>,
        names: &mut Names,
    ) -> io::Result<()> {
        let pc = goroutine.created_pc;
        let made = self.created.entry(pc).or_insert_with(|| {
            let offset = offset(names, self.dump, pc);
            let frames = names.created_by(pc);
            let (first, compiled) = (frames.first()?, frames.last()?);
            let shown = !compiled.is_internal_below(Some(""));
            shown.then(|| (printed(compiled).to_owned(), position(first, offset)))
        });
        let Some((function, place)) = made else { return Ok(()) };
        match parent {
            None | Some(0) => writeln!(out, "created by {function}")?,
            Some(goid) => writeln!(out, "created by {function} in goroutine {goid}")?,
        }
        out.write_all(place.as_bytes())
    }
}

const UNAVAILABLE: &str = "\tgoroutine running on other thread; stack unavailable\n";

fn frames(
    named: &[NamedFrame<'_>],
    complete: bool,
    offsets: &HashMap<u64, u64, FixedState>,
    arguments: &[Option<String>],
) -> String {
    let mut text = String::new();
    let all = named.iter().all(|f| f.internal);
    for NamedFrame { frame, pc, physical, .. } in named.iter().filter(|f| all || !f.internal) {
        let offset = if frame.inlined { 0 } else { offsets.get(pc).copied().unwrap_or(0) };
        text.push_str(printed(frame));
        let arguments = arguments.get(*physical).filter(|_| !frame.inlined).and_then(Option::as_deref);
        text.push('(');
        text.push_str(arguments.unwrap_or("..."));
        text.push_str(")\n");
        text.push_str(&position(frame, offset));
    }
    if named.is_empty() {
        text.push_str(UNAVAILABLE);
    } else if !complete {
        text.push_str("...additional frames elided...\n");
    }
    text
}

/// How far an address lies behind its function's first; 0 outside of Go code.
fn offset(names: &Names, dump: &Dump<'_>, pc: u64) -> u64 {
    let link_time = pc.wrapping_sub(dump.snapshot.bias);
    names.binary().function_at(link_time).map_or(0, |f| link_time.wrapping_sub(f.entry))
}

fn printed(frame: &Frame) -> &str {
    if frame.function == "runtime.gopanic" { "panic" } else { &frame.function }
}

fn position(frame: &Frame, offset: u64) -> String {
    let file = if frame.file.is_empty() { "?" } else { &frame.file };
    match offset {
        0 => format!("\t{file}:{}\n", frame.line),
        _ => format!("\t{file}:{} +{offset:#x}\n", frame.line),
    }
}
