//! Reads what `gotrace dump --format json` wrote, and counts goroutines by creation site and by stack.
//!
//! Input is lines of `gotrace.dump/1`, grouped or not, that anybody may have written: everything is
//! checked, and an error names the line. What is kept grows with the distinct sites and stacks, not with
//! goroutines. Refuses other schemas, lines longer than [`MAX_LINE_BYTES`], files without their summary (cut
//! short), and those whose summary tells another number of goroutines. A [`Dump`] that was just taken is
//! counted in the same way.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, BufRead, Read as _},
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Dump, group::groups, json::SCHEMA, wait_reason};
use gotrace_go::Frame;
use gotrace_inspect::snapshot::Names;
use gotrace_model::printable::printable;

/// Longest line that is read. The deepest stack that a snapshot keeps has less.
pub const MAX_LINE_BYTES: u64 = 64 << 20;
/// Most goroutines that one line may stand for.
const MAX_COUNT: u64 = 1 << 40;

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Place<'a> {
    /// Function, as tracebacks print it.
    #[serde(borrow)]
    pub function: Cow<'a, str>,
    /// File; `None` when unknown.
    #[serde(borrow, default)]
    pub file: Option<Cow<'a, str>>,
    /// Line; `None` when unknown.
    #[serde(default)]
    pub line: Option<u32>,
}

impl Place<'_> {
    fn into_owned(self) -> Place<'static> {
        let Self { function, file, line } = self;
        Place { function: function.into_owned().into(), file: file.map(|f| f.into_owned().into()), line }
    }
}

impl<'a> From<&'a Frame> for Place<'a> {
    fn from(frame: &'a Frame) -> Self {
        Self {
            function: (&*frame.function).into(),
            file: (!frame.file.is_empty()).then(|| (&*frame.file).into()),
            line: (frame.line != 0).then_some(frame.line),
        }
    }
}

/// Texts and places, each once: those of two dumps that are compared have the same numbers.
#[derive(Debug, Default)]
pub struct Places {
    places: Vec<Place<'static>>,
    /// By an unambiguous text of what they are.
    numbers: HashMap<Box<str>, u32, FixedState>,
    texts: Vec<Box<str>>,
    text_numbers: HashMap<Box<str>, u32, FixedState>,
    scratch: String,
}

impl Places {
    /// The place with a number.
    #[must_use]
    pub fn place(&self, n: u32) -> Option<&Place<'static>> {
        self.places.get(n as usize)
    }

    /// The text with a number.
    #[must_use]
    pub fn text(&self, n: u32) -> &str {
        self.texts.get(n as usize).map_or("", |t| t)
    }

    fn number(&mut self, place: Place<'_>) -> u32 {
        let Place { function, file, line } = place;
        let place = Place { function: shown(function), file: file.map(shown), line };
        let Self { places, numbers, scratch, .. } = self;
        scratch.clear();
        spell(scratch, &place);
        if let Some(&n) = numbers.get(&**scratch) {
            return n;
        }
        let n = u32::try_from(places.len()).unwrap_or(u32::MAX);
        numbers.insert(scratch.as_str().into(), n);
        places.push(place.into_owned());
        n
    }

    fn text_number(&mut self, text: &str) -> u32 {
        let text = &*printable(text);
        if let Some(&n) = self.text_numbers.get(text) {
            return n;
        }
        let n = u32::try_from(self.texts.len()).unwrap_or(u32::MAX);
        self.texts.push(text.into());
        self.text_numbers.insert(text.into(), n);
        n
    }
}

/// Where goroutines are made, and what they run: numbers of [`Places`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The function that they were started with.
    pub entry: Option<u32>,
    /// The `go` statement.
    pub created_by: Option<u32>,
}

/// Where goroutines stand: numbers of [`Places`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stack {
    /// What they do: a text.
    pub state: u32,
    /// Why they wait: a text.
    pub wait_reason: Option<u32>,
    /// Frames that Go's traceback shows, innermost first (all of them where it shows none); empty when
    /// there is no stack.
    pub frames: Box<[u32]>,
}

/// Goroutines of one dump, counted.
#[derive(Debug, Default, Serialize)]
pub struct Tally {
    /// The file, or the process.
    pub source: String,
    /// The process.
    pub pid: Option<u32>,
    /// Its executable.
    pub executable: Option<String>,
    /// The version of Go that built it.
    pub go_version: Option<String>,
    /// When it was taken.
    pub time_unix_nano: Option<u64>,
    /// Which goroutines were wanted; `null` when the dump does not say.
    pub filter: Value,
    /// Goroutines that are counted.
    pub goroutines: u64,
    #[serde(skip)]
    pub(super) sites: Counted<Site>,
    #[serde(skip)]
    pub(super) stacks: Counted<Stack>,
}

/// How many goroutines of each.
pub(super) type Counted<T> = HashMap<T, u64, FixedState>;

/// What is wrong with a dump.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{source_name}: cannot be read: {error}")]
    Io {
        /// The file.
        source_name: String,
        /// What the system says.
        error: io::Error,
    },
    /// It is not what it should be.
    #[error("{source_name}, line {line}: {what}")]
    Line {
        /// The file.
        source_name: String,
        /// From 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
}

#[derive(Deserialize)]
struct HeaderLine {
    schema: Option<String>,
    pid: Option<u32>,
    executable: Option<String>,
    go_version: Option<String>,
    time_unix_nano: Option<u64>,
    #[serde(default)]
    filter: Value,
}

/// Any line behind the header, and what is within `group`.
#[derive(Deserialize)]
struct Line<'a> {
    goid: Option<u64>,
    #[serde(borrow)]
    group: Option<Box<Line<'a>>>,
    summary: Option<Summary>,
    count: Option<u64>,
    #[serde(borrow)]
    state: Option<Cow<'a, str>>,
    #[serde(borrow)]
    wait_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    system: bool,
    #[serde(borrow)]
    entry: Option<Place<'a>>,
    #[serde(borrow)]
    created_by: Option<Place<'a>>,
    #[serde(borrow)]
    stack: Option<Vec<StackLine<'a>>>,
}

#[derive(Deserialize)]
struct StackLine<'a> {
    #[serde(borrow)]
    function: Cow<'a, str>,
    #[serde(borrow)]
    file: Option<Cow<'a, str>>,
    line: Option<u32>,
    #[serde(default)]
    internal: bool,
}

#[derive(Deserialize)]
struct Summary {
    written: Option<u64>,
}

impl Tally {
    /// Counts the goroutines of a dump file. `system`: the runtime's own too, where the file has them.
    ///
    /// # Errors
    /// When it is not a whole dump, with the line that shows it.
    pub fn read(
        source: &str,
        file: &mut dyn BufRead,
        system: bool,
        places: &mut Places,
    ) -> Result<Self, ReadError> {
        let mut number = 0;
        let mut buffer = Vec::new();
        let mut this = Self { source: source.to_owned(), ..Self::default() };
        let mut all = 0_u64;
        loop {
            number += 1;
            let wrong = |what: String| ReadError::Line { source_name: source.to_owned(), line: number, what };
            let more = next_line(file, &mut buffer)
                .map_err(|error| ReadError::Io { source_name: source.to_owned(), error })?;
            if buffer.len() as u64 > MAX_LINE_BYTES {
                return Err(wrong(format!("longer than {MAX_LINE_BYTES} bytes: no dump has such a line")));
            }
            if !more {
                return Err(wrong(match number {
                    1 => "the file is empty".to_owned(),
                    _ => "the file ends here without a summary: it was cut short".to_owned(),
                }));
            }
            if number == 1 {
                this.header(&buffer).map_err(wrong)?;
                continue;
            }
            let mut line: Line<'_> =
                serde_json::from_slice(&buffer).map_err(|e| wrong(not_json("a line of a dump", &e)))?;
            if let Some(Summary { written }) = line.summary {
                if written.is_some_and(|w| w != all) {
                    let written = written.unwrap_or_default();
                    return Err(wrong(format!(
                        "the summary tells of {written} goroutines, but {all} come before it"
                    )));
                }
                break;
            }
            let (line, count) = match (line.group.take(), line.goid) {
                (Some(group), _) => {
                    let count = group.count.filter(|n| (1..=MAX_COUNT).contains(n));
                    (*group, count.ok_or_else(|| wrong("a group without a possible count".to_owned()))?)
                }
                (None, Some(_)) => (line, 1),
                (None, None) => return Err(wrong("neither a goroutine, a group nor a summary".to_owned())),
            };
            let (Some(state), Some(stack)) = (line.state, line.stack) else {
                return Err(wrong("a goroutine without state or stack".to_owned()));
            };
            all = all.saturating_add(count);
            if line.system && !system {
                continue;
            }
            let shown = stack.iter().any(|f| !f.internal);
            let frames = stack.into_iter().filter(|f| !shown || !f.internal);
            let place = |StackLine { function, file, line, .. }| Place { function, file, line };
            let stack = Stack {
                state: places.text_number(&state),
                wait_reason: line.wait_reason.map(|r| places.text_number(&r)),
                frames: frames.map(|f| places.number(place(f))).collect(),
            };
            let site = Site {
                entry: line.entry.map(|p| places.number(p)),
                created_by: line.created_by.map(|p| places.number(p)),
            };
            this.add(count, site, stack);
        }
        let end = next_line(file, &mut buffer)
            .map_err(|error| ReadError::Io { source_name: source.to_owned(), error })?;
        if end {
            return Err(ReadError::Line {
                source_name: source.to_owned(),
                line: number + 1,
                what: "something follows the summary: give one dump in a file".to_owned(),
            });
        }
        Ok(this)
    }

    /// Counts the goroutines of a dump.
    #[must_use]
    pub fn of(source: &str, dump: &Dump<'_>, names: &mut Names, places: &mut Places) -> Self {
        let Dump { header, snapshot, filter, goroutines } = dump;
        let mut this = Self {
            source: source.to_owned(),
            pid: Some(snapshot.pid),
            executable: Some(header.executable.to_owned()),
            go_version: Some(header.go_version.to_owned()),
            time_unix_nano: Some(snapshot.time_unix_nano),
            filter: filter.to_json(),
            ..Self::default()
        };
        for group in groups(goroutines) {
            let first = group.first;
            let site = Site {
                entry: names.runs(first.entry_pc, snapshot.frames(first)).map(|f| places.number(f.into())),
                created_by: names.created_by(first.created_pc).first().map(|f| places.number(f.into())),
            };
            let wait_reason = wait_reason(first, names).map(|r| places.text_number(&r));
            let named = names.stack(snapshot.frames(first));
            let shown = named.iter().any(|f| !f.internal);
            let frames = named.iter().filter(|f| !shown || !f.internal);
            let stack = Stack {
                state: places.text_number(first.status.name()),
                wait_reason,
                frames: frames.map(|f| places.number(f.frame.into())).collect(),
            };
            this.add(group.count, site, stack);
        }
        this
    }

    fn header(&mut self, bytes: &[u8]) -> Result<(), String> {
        let expected = "a dump begins with a line that has \"schema\":\"gotrace.dump/1\"";
        let header: HeaderLine =
            serde_json::from_slice(bytes).map_err(|e| format!("{}; {expected}", not_json("a header", &e)))?;
        match header.schema.as_deref() {
            Some(SCHEMA) => {}
            None => return Err(format!("it has no schema; {expected}")),
            Some(other) => return Err(format!("its schema is {other:?}; {expected}")),
        }
        self.pid = header.pid;
        self.executable = header.executable;
        self.go_version = header.go_version.map(|v| printable(&v).into_owned());
        self.time_unix_nano = header.time_unix_nano;
        self.filter = header.filter;
        Ok(())
    }

    fn add(&mut self, count: u64, site: Site, stack: Stack) {
        let Self { goroutines, sites, stacks, .. } = self;
        let site = sites.entry(site).or_insert(0);
        let stack = stacks.entry(stack).or_insert(0);
        for n in [goroutines, site, stack] {
            *n = n.saturating_add(count);
        }
    }
}

/// Reads a line without its end; `false` when there is none left. One that is too long is cut.
fn next_line(file: &mut dyn BufRead, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    file.take(MAX_LINE_BYTES + 1).read_until(b'\n', buffer)?;
    Ok(!buffer.is_empty())
}

/// What is wrong with JSON, with the column within its line.
fn not_json(what: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    // Always line 1, as a line is what was parsed.
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    format!("not {what}: {text}, at column {}", error.column())
}

/// Names of a file that anybody may have written, fit to be printed.
fn shown(name: Cow<'_, str>) -> Cow<'_, str> {
    match printable(&name) {
        Cow::Borrowed(_) => name,
        Cow::Owned(changed) => Cow::Owned(changed),
    }
}

/// Adds a place to a text such that different places give different texts.
fn spell(text: &mut String, place: &Place<'_>) {
    let Place { function, file, line } = place;
    let file = file.as_deref().unwrap_or("");
    // Writing to a string cannot fail.
    let _ = write!(text, "{}:{function}{}:{file}{}:", function.len(), file.len(), line.unwrap_or(0));
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
