//! `dump --format pprof`: a goroutine profile, gzip'd `profile.proto`, as `go tool pprof` opens it
//! (github.com/google/pprof, proto/profile.proto).
//!
//! One sample for each stack, state, wait reason, creation site and set of labels, whose value counts its
//! goroutines. Locations are physical frames at the call that is meant, with a line for each function that
//! was inlined there, innermost first; `runtime.goexit`, which every stack ends in, is left out, as Go's own
//! profile does. A goroutine without a stack has the location of its entry function.

use std::io::{self, Write};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Dump, incomplete, wait_reason};
use crate::profile::{self, Line, Location, Mapping, Profile, Sample, Tables};
use gotrace_inspect::snapshot::{Goroutine, LabelsId, Names, StackFrame, StackId, Status};

/// Writes a profile.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    profile::write(out, &make(dump, names))
}

/// What goroutines of a sample have in common.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    stack: Option<StackId>,
    /// Tells apart what has no stack.
    entry_pc: u64,
    status: Status,
    wait_reason: u8,
    created_pc: u64,
    labels: Option<LabelsId>,
}

fn make(dump: &Dump<'_>, names: &mut Names) -> Profile {
    let Dump { header, snapshot, goroutines, .. } = dump;
    let mut counts: HashMap<Key, usize, FixedState> = HashMap::default();
    let mut samples: Vec<(&Goroutine, i64)> = Vec::new();
    for &g in goroutines {
        let key = Key {
            stack: g.stack,
            entry_pc: if g.stack.is_some() { 0 } else { g.entry_pc },
            status: g.status,
            wait_reason: g.wait_reason,
            created_pc: g.created_pc,
            labels: g.labels,
        };
        let n = *counts.entry(key).or_insert(samples.len());
        match samples.get_mut(n) {
            Some((_, count)) => *count += 1,
            None => samples.push((g, 1)),
        }
    }
    drop(counts);
    let mut builder = Builder::default();
    let goroutine = builder.tables.value_type(header.kind.name(), "count");
    let mapping = header.mapping.map(|m| Mapping {
        id: 1,
        memory_start: m.start,
        memory_limit: m.end,
        file_offset: m.file_offset,
        filename: builder.tables.string(header.executable),
        build_id: builder.tables.string(header.build_id),
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
    });
    builder.mapping_id = u64::from(mapping.is_some());
    let comment =
        builder.tables.string(&format!("gotrace dump of process {}, {}", snapshot.pid, header.go_version));
    let note = (!header.note.is_empty()).then(|| builder.tables.string(header.note));
    let incomplete =
        incomplete(&snapshot.counts).map(|what| builder.tables.string(&format!("incomplete: {what}")));
    let sample = samples.into_iter().map(|(g, count)| builder.sample(dump, g, count, names)).collect();
    let nanos = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    Profile {
        sample_type: vec![goroutine],
        sample,
        mapping: mapping.into_iter().collect(),
        location: builder.locations,
        function: builder.tables.functions,
        string_table: builder.tables.strings,
        time_nanos: nanos(snapshot.time_unix_nano),
        duration_nanos: nanos(snapshot.duration_ns),
        period_type: Some(goroutine),
        period: 1,
        comment: [Some(comment), note, incomplete].into_iter().flatten().collect(),
    }
}

/// Tables of a profile.
#[derive(Default)]
struct Builder {
    tables: Tables,
    locations: Vec<Location>,
    /// `None`: not shown.
    location_ids: HashMap<StackFrame, Option<u64>, FixedState>,
    entries: HashMap<u64, Option<u64>, FixedState>,
    created: HashMap<u64, i64, FixedState>,
    mapping_id: u64,
}

impl Builder {
    fn location(&mut self, frame: StackFrame, names: &mut Names) -> Option<u64> {
        if let Some(&id) = self.location_ids.get(&frame) {
            return id;
        }
        let named = names.stack(&[frame]);
        let goexit = named.first().is_some_and(|f| f.frame.function == "runtime.goexit");
        let id = (!goexit).then_some(self.locations.len() as u64 + 1);
        if let Some(id) = id {
            let line = named.iter().map(|n| Line {
                function_id: self.tables.function(&n.frame.function, &n.frame.file),
                line: i64::from(n.frame.line),
            });
            let line = line.collect();
            let address = frame.pc().saturating_sub(u64::from(frame.is_return_address()));
            self.locations.push(Location { id, mapping_id: self.mapping_id, address, line });
        }
        self.location_ids.insert(frame, id);
        id
    }

    /// The location of an entry function, for a goroutine without a stack.
    fn entry(&mut self, pc: u64, names: &mut Names) -> Option<u64> {
        if let Some(&id) = self.entries.get(&pc) {
            return id;
        }
        let function =
            names.entry(pc).map(|f| (self.tables.function(&f.function, &f.file), i64::from(f.line)));
        let id = function.map(|(function_id, line)| {
            let (id, mapping_id) = (self.locations.len() as u64 + 1, self.mapping_id);
            self.locations.push(Location {
                id,
                mapping_id,
                address: pc,
                line: vec![Line { function_id, line }],
            });
            id
        });
        self.entries.insert(pc, id);
        id
    }

    fn sample(&mut self, dump: &Dump<'_>, goroutine: &Goroutine, count: i64, names: &mut Names) -> Sample {
        let location_id = match dump.snapshot.frames(goroutine) {
            [] => self.entry(goroutine.entry_pc, names).into_iter().collect(),
            frames => frames.iter().filter_map(|f| self.location(*f, names)).collect(),
        };
        let mut label = vec![self.tables.label("state", goroutine.status.name())];
        if let Some(reason) = wait_reason(goroutine, names) {
            label.push(self.tables.label("wait_reason", &reason));
        }
        if let Some(str) = self.created_by(goroutine.created_pc, names) {
            label.push(crate::profile::Label { key: self.tables.string("created_by"), str });
        }
        for (key, value) in dump.snapshot.labels_of(goroutine) {
            label.push(self.tables.label(key, value));
        }
        Sample { location_id, value: vec![count], label }
    }

    /// `main.main (main.go:30)`.
    fn created_by(&mut self, pc: u64, names: &mut Names) -> Option<i64> {
        if let Some(&id) = self.created.get(&pc) {
            return Some(id);
        }
        let frame = names.created_by(pc).first()?;
        let file = frame.file.rsplit('/').next().unwrap_or_default();
        let id = self.tables.string(&format!("{} ({file}:{})", frame.function, frame.line));
        self.created.insert(pc, id);
        Some(id)
    }
}

#[cfg(test)]
#[path = "pprof_tests.rs"]
mod tests;
