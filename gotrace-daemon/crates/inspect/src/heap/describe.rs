//! What the objects on a path are, as far as can be told: by the type that the runtime keeps before larger objects
//! (Go 1.22 and later) or beside a pointer in an interface, by what the types of the objects before say, by being
//! waited on as a channel, by beginning with the address of a function.

use super::{
    Prover,
    layout::Pointers,
    mark::Marker,
    shapes::{self, Kind, Shape},
    types::Types,
    waiting,
    why::{Holder, Link, Path},
};
use crate::snapshot::{Standing, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// As much of an object is searched for what refers to the next.
const SEARCHED: u64 = 1 << 20;
/// `runtime.hchan.elemtype`, before `recvq`.
const ELEMENT_BEFORE_RECEIVERS: usize = 24;
/// Before the values of an object is the address of their type (`runtime.mallocHeaderSize`).
const HEADER: u64 = 8;
/// `abi.ITab.Type`.
const ITAB_TYPE: u64 = 8;

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Values of a type.
    Values {
        /// Its name.
        name: String,
        /// Whether there are several, one behind the other.
        several: bool,
    },
    /// A channel.
    Channel {
        /// Name of the type of its elements.
        element: String,
    },
    /// A coroutine of `iter.Pull`.
    Coroutine,
    /// A function with what it closes over.
    Function {
        /// Its entry.
        pc: u64,
    },
}

impl Prover {
    /// Adds to the objects of a path what they are. `goid`: whoever waits on the last; `goroutines`: all that can run.
    pub(super) fn describe(
        &self,
        memory: &dyn ReadMemory,
        marker: &Marker,
        goid: u64,
        goroutines: &[Standing],
        path: &mut Path,
    ) -> Result<(), ProcessError> {
        let for_channels = |goid: u64| {
            let standing = goroutines.iter().find(|s| s.goid == goid);
            standing.is_some_and(|s| waiting::is_for_channels(self.engine.binary(), s))
        };
        let in_coroutine = |goid: u64| {
            let standing = goroutines.iter().find(|s| s.goid == goid);
            standing.is_some_and(|s| waiting::is_in_coroutine(self.engine.binary(), s))
        };
        let types = marker.objects.types();
        // What the type before says that this object is.
        let mut expected: Option<(What, u64)> = None;
        let mut before: Option<u64> = match path.holder {
            Holder::Variable { address, .. } | Holder::Stack { address, .. } => previous(memory, address)?,
            _ => None,
        };
        let count = path.links.len();
        for n in 0..count {
            let link = &path.links[n];
            if link.through.is_some() {
                (expected, before) = (None, None);
            }
            let own = self.own(memory, marker, link)?;
            let in_interface = match before {
                Some(word) => behind_interface(memory, types, word)?,
                None => None,
            };
            // Somebody waits on the last one, and on the one before what a goroutine that waits refers to.
            let waits = match path.links.get(n + 1) {
                Some(next) => next.through.map(|(goid, _)| goid),
                None => Some(goid),
            };
            let is_channel = link.entered_at == 0 && waits.is_some_and(for_channels);
            let channel = if is_channel { self.channel(memory, types, link.address)? } else { None };
            let coroutine = waits.filter(|_| link.entered_at == 0).is_some_and(in_coroutine);
            let function = self.function(memory, link)?;
            // What refers to an object says what is where it points to, which may be the middle.
            let entered = |(what, kind)| (what, kind, link.entered_at);
            let known = channel
                .or(coroutine.then_some(What::Coroutine))
                .map(|c| (c, 0, 0))
                .or(own)
                .or(in_interface.map(entered))
                .or(expected.take().map(entered));
            let (what, kind, begin) = match known {
                Some((what, kind, begin)) => (Some(what), kind, begin),
                None => (function, 0, 0),
            };
            (path.links[n].what, path.links[n].what_at) = (what, begin);
            // On to the next.
            (expected, before) = (None, None);
            let Some(next) = path.links.get(n + 1).map(|l| (l.address, l.size, l.entered_at)) else { break };
            let link = &path.links[n];
            let Some((offset, word)) = reference(memory, (link.address, link.size), next)? else { continue };
            before = offset.checked_sub(8).map(|_| word);
            let shape = if kind == 0 { None } else { shapes::shape(memory, types, kind)? };
            let (Some(size), Some(within)) =
                (shape.map(|s| s.size).filter(|&s| s > 0), offset.checked_sub(begin))
            else {
                continue;
            };
            let several = matches!(link.what, Some(What::Values { several: true, .. }));
            if !several && within >= size {
                // Another value that lies in the same object.
                continue;
            }
            let index = if several { format!("[{}]", within / size) } else { String::new() };
            let (field, leaf, inside) = shapes::at(memory, types, kind, within % size)?;
            path.links[n].field = Some(index + &field).filter(|f| !f.is_empty());
            if inside == 0
                && let Some(leaf) = shapes::shape(memory, types, leaf)?
            {
                expected = target(memory, types, &leaf)?;
            }
        }
        Ok(())
    }

    fn pointers(&self, marker: &Marker, link: &Link) -> Option<Pointers> {
        let place = marker.table.find(link.address)?;
        marker.table.entry(place).map(|e| e.span.pointers)
    }

    /// By the type that the runtime keeps with the object, that type's address, and where the values begin.
    fn own(
        &self,
        memory: &dyn ReadMemory,
        marker: &Marker,
        link: &Link,
    ) -> Result<Option<(What, u64, u64)>, ProcessError> {
        let (address, begin) = match self.pointers(marker, link) {
            Some(Pointers::Type(address)) => (address, 0),
            Some(Pointers::Header) => {
                let mut word = [0; 8];
                if !memory.read_at(link.address, &mut word)? {
                    return Ok(None);
                }
                (u64::from_le_bytes(word), HEADER)
            }
            _ => return Ok(None),
        };
        let known = shapes::shape(memory, marker.objects.types(), address)?;
        Ok(known.filter(|s| s.size > 0).map(|s| {
            let several = link.size.saturating_sub(begin) / s.size >= 2;
            (What::Values { name: s.name, several }, address, begin)
        }))
    }

    fn channel(
        &self,
        memory: &dyn ReadMemory,
        types: &Types,
        address: u64,
    ) -> Result<Option<What>, ProcessError> {
        let receivers = self.engine.binary().offsets().get("hchan.recvq");
        let Some(at) = receivers.and_then(|o| (o as usize).checked_sub(ELEMENT_BEFORE_RECEIVERS)) else {
            return Ok(None);
        };
        let mut word = [0; 8];
        if !memory.read_at(address + at as u64, &mut word)? {
            return Ok(None);
        }
        let element = shapes::shape(memory, types, u64::from_le_bytes(word))?;
        Ok(element.map(|e| What::Channel { element: e.name }))
    }

    /// Where an object begins with a function's entry.
    fn function(&self, memory: &dyn ReadMemory, link: &Link) -> Result<Option<What>, ProcessError> {
        let mut word = [0; 8];
        if link.entered_at != 0 || !memory.read_at(link.address, &mut word)? {
            return Ok(None);
        }
        let pc = u64::from_le_bytes(word);
        let bare = pc.wrapping_sub(self.engine.bias());
        let is_entry = self.engine.binary().function_at(bare).is_some_and(|f| f.entry == bare);
        Ok(is_entry.then_some(What::Function { pc }))
    }
}

/// What something of a type refers to, and the type of that.
fn target(memory: &dyn ReadMemory, types: &Types, of: &Shape) -> Result<Option<(What, u64)>, ProcessError> {
    let element = |several| -> Result<Option<(What, u64)>, ProcessError> {
        let known = shapes::shape(memory, types, of.element)?;
        Ok(known.map(|s| (What::Values { name: s.name, several }, of.element)))
    };
    Ok(match of.kind {
        Kind::Pointer => element(false)?,
        Kind::Slice => element(true)?,
        Kind::Channel => {
            let known = shapes::shape(memory, types, of.element)?;
            known.map(|s| (What::Channel { element: s.name }, 0))
        }
        Kind::Map => Some((What::Values { name: of.name.clone(), several: false }, 0)),
        _ => None,
    })
}

/// What the data of an interface is, of which this word comes before: a type, or a table of methods that names one.
fn behind_interface(
    memory: &dyn ReadMemory,
    types: &Types,
    word: u64,
) -> Result<Option<(What, u64)>, ProcessError> {
    if word < 0x1000 || !word.is_multiple_of(8) {
        return Ok(None);
    }
    let mut address = word;
    let mut known = shapes::shape(memory, types, address)?;
    if known.is_none() {
        let mut of = [0; 8];
        if !memory.read_at(word + ITAB_TYPE, &mut of)? {
            return Ok(None);
        }
        address = u64::from_le_bytes(of);
        known = shapes::shape(memory, types, address)?;
    }
    let Some(known) = known else { return Ok(None) };
    match known.kind {
        // Such are the data themselves; others are pointed to.
        Kind::Pointer | Kind::Channel | Kind::Map => target(memory, types, &known),
        Kind::Function => Ok(None),
        _ => Ok(Some((What::Values { name: known.name, several: false }, address))),
    }
}

fn previous(memory: &dyn ReadMemory, address: u64) -> Result<Option<u64>, ProcessError> {
    let mut word = [0; 8];
    Ok(match address.checked_sub(8) {
        Some(at) if memory.read_at(at, &mut word)? => Some(u64::from_le_bytes(word)),
        _ => None,
    })
}

/// Where an object refers to another, at the place where that is entered, else anywhere: how far into the first it is,
/// and the word before that.
fn reference(
    memory: &dyn ReadMemory,
    (address, size): (u64, u64),
    (next, len, entered_at): (u64, u64, u64),
) -> Result<Option<(u64, u64)>, ProcessError> {
    let mut bytes = vec![0; usize::try_from(size.min(SEARCHED)).unwrap_or(0)];
    if !memory.read_at(address, &mut bytes)? {
        return Ok(None);
    }
    let refers = |at: &usize| {
        let word = word_at(&bytes, *at);
        word >= next && word - next < len
    };
    let mut places = (0..bytes.len()).step_by(8);
    let exact = places.clone().find(|at| word_at(&bytes, *at) == next + entered_at);
    let found = exact.or_else(|| places.find(refers));
    Ok(found.map(|at| (at as u64, at.checked_sub(8).map_or(0, |before| word_at(&bytes, before)))))
}
