//! A snapshot written down, one file a format, and two of them compared.
//!
//! Input: a [`Dump`] (a [`Snapshot`] and what of it is wanted) and [`Names`] for its addresses. Output:
//! bytes, written as they come: nothing here grows with the number of goroutines but the list of which are
//! wanted. Refuses nothing; what is not known is left out or `null`, as each format has it.

pub mod count;
pub mod diff;
mod diff_text;
mod flame;
pub mod folded;
pub mod group;
pub mod json;
pub mod pprof;
pub mod read;
pub mod select;
pub mod speedscope;
pub mod svg;
pub mod text;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    io::{self, Write},
};

pub use group::Group;
pub(crate) use json::own_code;
pub use select::Filter;

use gotrace_inspect::snapshot::{Counts, Goroutine, Names, Snapshot, Status};

/// What a dump says of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header<'a> {
    /// The executable's path, as its own mount namespace has it.
    pub executable: &'a str,
    /// As the binary has it, experiments included.
    pub go_version: &'a str,
    /// Where its code is mapped.
    pub mapping: Option<Mapped>,
    /// The executable's GNU build id in hexadecimal digits; empty when it has none.
    pub build_id: &'a str,
    /// Which profile of Go's this is, where it is written as one.
    pub kind: Kind,
    /// What else there is to say of it; empty where there is nothing.
    pub note: &'a str,
}

/// A profile of goroutines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Of all.
    #[default]
    Goroutine,
    /// Of those that are leaked.
    Leaked,
}

impl Kind {
    /// The name that Go has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Goroutine => "goroutine",
            Self::Leaked => "goroutineleak",
        }
    }
}

/// A piece of the executable in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Offset in the file of what is at `start`.
    pub file_offset: u64,
}

/// A snapshot with all that it takes to write it down.
#[derive(Debug)]
pub struct Captured {
    /// The goroutines.
    pub snapshot: Snapshot,
    /// Names for its addresses.
    pub names: Names,
    /// As in [`Header`].
    pub executable: String,
    /// As in [`Header`].
    pub build_id: String,
    /// As in [`Header`].
    pub mapping: Option<Mapped>,
}

impl Captured {
    /// These goroutines (by ascending id) are proven to be leaked. How many of them do not wait here.
    pub fn mark_leaked(&mut self, goids: &[u64]) -> u64 {
        let mut missing = goids.len() as u64;
        for goroutine in &mut self.snapshot.goroutines {
            if goroutine.status.is_waiting() && goids.binary_search(&goroutine.goid).is_ok() {
                goroutine.status = Status::Leaked;
                missing = missing.saturating_sub(1);
            }
        }
        missing
    }

    /// Writes the goroutines that are wanted in a format; `kind` and `note` as in [`Header`].
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(
        &mut self,
        out: &mut dyn Write,
        (kind, note): (Kind, &str),
        filter: &Filter,
        format: fn(&mut dyn Write, &Dump<'_>, &mut Names) -> io::Result<()>,
    ) -> io::Result<()> {
        let Self { snapshot, names, executable, build_id, mapping } = self;
        let go_version = names.binary().go_version().text.clone();
        let go_version = &*go_version;
        let header = Header { executable, go_version, mapping: *mapping, build_id, kind, note };
        let dump = Dump::new(header, snapshot, filter, names);
        format(out, &dump, names)
    }
}

/// What is to be written.
#[derive(Debug)]
pub struct Dump<'a> {
    /// Of which process.
    pub header: Header<'a>,
    /// Everything that was read.
    pub snapshot: &'a Snapshot,
    /// What was asked for.
    pub filter: &'a Filter,
    /// What of it is written, by ascending goid.
    pub goroutines: Vec<&'a Goroutine>,
}

impl<'a> Dump<'a> {
    /// The goroutines that a filter lets through.
    #[must_use]
    pub fn new(header: Header<'a>, snapshot: &'a Snapshot, filter: &'a Filter, names: &mut Names) -> Self {
        let goroutines = filter.select(snapshot, names);
        Self { header, snapshot, filter, goroutines }
    }
}

/// What of the process is not there, for who must take it as it is; `None` where nothing is missing. That goroutines
/// which ran have no stack is how it is.
pub(crate) fn incomplete(counts: &Counts) -> Option<String> {
    let missing = [
        ("goroutines not read", counts.unreadable + counts.implausible + counts.duplicates),
        ("stacks not read", counts.stacks_missing),
        ("stacks cut off", counts.stacks_incomplete),
        ("labels not read", counts.labels_unreadable),
    ];
    let missing: Vec<String> =
        missing.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{what}: {n}")).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Why a goroutine waits, as Go's traceback says it; `None` when it does not wait, or for no reason.
fn wait_reason(goroutine: &Goroutine, names: &Names) -> Option<Cow<'static, str>> {
    if !goroutine.status.is_waiting() {
        return None;
    }
    match names.binary().wait_reasons().get(usize::from(goroutine.wait_reason)) {
        Some(&"") => None,
        Some(&name) => Some(name.into()),
        None => Some(format!("reason {}", goroutine.wait_reason).into()),
    }
}

/// The wait reason, or else the state: what a traceback has between brackets.
pub(crate) fn doing(goroutine: &Goroutine, names: &Names) -> Cow<'static, str> {
    wait_reason(goroutine, names).unwrap_or_else(|| goroutine.status.name().into())
}

/// Bytes of [`Rendered`] texts that are kept.
const KEPT_BYTES: usize = 64 << 20;

/// A text for each distinct stack: many goroutines share one. Those beyond [`KEPT_BYTES`] are made anew
/// each time.
struct Rendered {
    kept: Vec<Option<Box<str>>>,
    bytes: usize,
    last: String,
}

impl Rendered {
    fn new(snapshot: &Snapshot) -> Self {
        Self { kept: vec![None; snapshot.stacks.len()], bytes: 0, last: String::new() }
    }

    /// The text of the n-th stack.
    fn get(&mut self, n: usize, make: impl FnOnce() -> String) -> &str {
        let Self { kept, bytes, last } = self;
        match kept.get_mut(n) {
            Some(Some(text)) => text,
            slot => {
                *last = make();
                match slot {
                    Some(slot) if *bytes + last.len() <= KEPT_BYTES => {
                        *bytes += last.len();
                        slot.insert(std::mem::take(last).into_boxed_str())
                    }
                    _ => last,
                }
            }
        }
    }
}
