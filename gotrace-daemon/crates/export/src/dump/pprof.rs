//! `dump --format pprof`: a goroutine profile, gzip'd `profile.proto`, as `go tool pprof` opens it
//! (github.com/google/pprof, proto/profile.proto).
//!
//! One sample for each stack, state, wait reason, creation site and set of labels, whose value counts its
//! goroutines. Locations are physical frames at the call that is meant, with a line for each function that
//! was inlined there, innermost first; `runtime.goexit`, which every stack ends in, is left out, as Go's own
//! profile does. A goroutine without a stack has the location of its entry function.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use prost::Message;

use super::{Dump, incomplete, wait_reason};
use gotrace_inspect::snapshot::{Goroutine, LabelsId, Names, StackFrame, StackId, Status};

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(uint64, tag = "4")]
    file_offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// Writes a profile.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> io::Result<()> {
    let bytes = profile(dump, names).encode_to_vec();
    let mut out = GzEncoder::new(out, Compression::default());
    out.write_all(&bytes)?;
    out.finish()?.flush()
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

fn profile(dump: &Dump<'_>, names: &mut Names) -> Profile {
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
    // The empty string is the first one.
    builder.string("");
    let goroutine = ValueType { r#type: builder.string("goroutine"), unit: builder.string("count") };
    let mapping = header.mapping.map(|m| Mapping {
        id: 1,
        memory_start: m.start,
        memory_limit: m.end,
        file_offset: m.file_offset,
        filename: builder.string(header.executable),
        build_id: builder.string(header.build_id),
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
    });
    builder.mapping_id = u64::from(mapping.is_some());
    let comment = builder.string(&format!("gotrace dump of process {}, {}", snapshot.pid, header.go_version));
    let incomplete = incomplete(&snapshot.counts).map(|what| builder.string(&format!("incomplete: {what}")));
    let sample = samples.into_iter().map(|(g, count)| builder.sample(dump, g, count, names)).collect();
    let nanos = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    Profile {
        sample_type: vec![goroutine],
        sample,
        mapping: mapping.into_iter().collect(),
        location: builder.locations,
        function: builder.functions,
        string_table: builder.strings,
        time_nanos: nanos(snapshot.time_unix_nano),
        duration_nanos: nanos(snapshot.duration_ns),
        period_type: Some(goroutine),
        period: 1,
        comment: [Some(comment), incomplete].into_iter().flatten().collect(),
    }
}

/// Tables of a profile.
#[derive(Default)]
struct Builder {
    strings: Vec<String>,
    string_ids: HashMap<String, i64, FixedState>,
    functions: Vec<Function>,
    function_ids: HashMap<(i64, i64), u64, FixedState>,
    locations: Vec<Location>,
    /// `None`: not shown.
    location_ids: HashMap<StackFrame, Option<u64>, FixedState>,
    entries: HashMap<u64, Option<u64>, FixedState>,
    created: HashMap<u64, i64, FixedState>,
    mapping_id: u64,
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(&id) = self.string_ids.get(text) {
            return id;
        }
        let id = i64::try_from(self.strings.len()).unwrap_or(i64::MAX);
        self.strings.push(text.to_owned());
        self.string_ids.insert(text.to_owned(), id);
        id
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        let (name, filename) = (self.string(name), self.string(file));
        let id = self.functions.len() as u64 + 1;
        *self.function_ids.entry((name, filename)).or_insert_with(|| {
            self.functions.push(Function { id, name, system_name: name, filename });
            id
        })
    }

    fn location(&mut self, frame: StackFrame, names: &mut Names) -> Option<u64> {
        if let Some(&id) = self.location_ids.get(&frame) {
            return id;
        }
        let named = names.stack(&[frame]);
        let goexit = named.first().is_some_and(|f| f.frame.function == "runtime.goexit");
        let id = (!goexit).then_some(self.locations.len() as u64 + 1);
        if let Some(id) = id {
            let line = named.iter().map(|n| Line {
                function_id: self.function(&n.frame.function, &n.frame.file),
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
        let function = names.entry(pc).map(|f| (self.function(&f.function, &f.file), i64::from(f.line)));
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
        let mut label = vec![self.label("state", goroutine.status.name())];
        if let Some(reason) = wait_reason(goroutine, names) {
            label.push(self.label("wait_reason", &reason));
        }
        if let Some(str) = self.created_by(goroutine.created_pc, names) {
            label.push(Label { key: self.string("created_by"), str });
        }
        for (key, value) in dump.snapshot.labels_of(goroutine) {
            label.push(self.label(key, value));
        }
        Sample { location_id, value: vec![count], label }
    }

    fn label(&mut self, key: &str, value: &str) -> Label {
        Label { key: self.string(key), str: self.string(value) }
    }

    /// `main.main (main.go:30)`.
    fn created_by(&mut self, pc: u64, names: &mut Names) -> Option<i64> {
        if let Some(&id) = self.created.get(&pc) {
            return Some(id);
        }
        let frame = names.created_by(pc).first()?;
        let file = frame.file.rsplit('/').next().unwrap_or_default();
        let id = self.string(&format!("{} ({file}:{})", frame.function, frame.line));
        self.created.insert(pc, id);
        Some(id)
    }
}

#[cfg(test)]
#[path = "pprof_tests.rs"]
mod tests;
