//! Who still holds what a goroutine waits on: the shortest chain of references from a variable or a
//! goroutine's stack to it.
//!
//! Looked for backwards, from what is waited on to what refers to it, and on from there, through the objects
//! that the last pass reached; each step looks through the heap once. The runtime's own records of
//! waiting goroutines refer to everything that is waited on, and are left out. The process runs on: a
//! reference that was found was there when it was read.

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::{
    HeapError, Prover, What, bits::Bits, evidence::Outcome, mark::Marker, modules::Module, pass::Marked,
    table::Place, variables,
};
use crate::snapshot::{StackFrame, Standing, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// Steps at most.
const MAX_STEPS: usize = 256;
/// Objects that are remembered as being on the way.
const MAX_OBJECTS: usize = 1 << 22;
/// Objects that are looked through at once.
const MAX_PLACES: usize = 1 << 16;
/// Memory is looked through in parts of this many bytes.
const PART: u64 = 1 << 16;
/// A longer stack is looked through whole.
const MAX_FOLLOWED: u64 = 1 << 20;

/// Where a chain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A variable of the program.
    Variable {
        /// Address of the word.
        address: u64,
        /// Number of the module, 0 for the program itself.
        module: usize,
        /// How far into the module's variables of that kind.
        offset: u64,
        /// Whether it has a value in the file (`data`, else `bss`).
        has_value: bool,
    },
    /// The stack of a goroutine.
    Stack {
        /// The goroutine.
        goid: u64,
        /// Address of the word.
        address: u64,
        /// The frame that holds it; `None` where it runs, or the stack could not be followed.
        frame: Option<StackFrame>,
    },
    /// The runtime's record of a goroutine: a deferred call, or the like.
    Goroutine {
        /// The goroutine.
        goid: u64,
    },
    /// Not found: it had let go before it was looked for, or it is what the runtime keeps outside of its heap
    /// (a finalizer, a cleanup, a weak handle, another record).
    Runtime,
}

/// An object on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its address.
    pub address: u64,
    /// Bytes of the object, as the runtime's size classes have them.
    pub size: u64,
    /// How far into the object that which refers to it points.
    pub entered_at: u64,
    /// What refers to it is not the object before, but a goroutine that waits on that, and its frame.
    pub through: Option<(u64, Option<StackFrame>)>,
    /// What it is; `None` where that is not known.
    pub what: Option<What>,
    /// How far into the object that is: it may be known of the middle only, where it is entered.
    pub what_at: u64,
    /// What of it refers to the next one, as its type names it (`.conn.done`, `[3].next`); `None` where that is not
    /// known.
    pub field: Option<String>,
}

/// What holds an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// What can run, or be read by what can run.
    pub holder: Holder,
    /// The objects from there, the one that is waited on last.
    pub links: Vec<Link>,
}

/// What is known of a goroutine's wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no such goroutine.
    Unknown,
    /// It does not wait for another goroutine, or that is not known of it.
    Other,
    /// What it waits on is reached; `None` where the way was not found again.
    Held(Option<Path>),
    /// What it waits on is no object of the heap, but a variable of the program or the runtime.
    Variable(u64),
    /// Nothing that can run leads to it, by this pass.
    Unreached,
    /// It is the main goroutine in a select without cases, which keeps a program alive for as long as others run.
    OnPurpose,
}

/// What was found of an object: the next one on the way to what is waited on, and where that is entered.
#[derive(Clone, Copy)]
struct Step {
    next: Option<Place>,
    entered_at: u64,
    /// Goroutine and frame, where it is not the object itself that refers to the next.
    through: Option<(u64, Option<StackFrame>)>,
}

impl Prover {
    /// Who holds what a goroutine waits on, as of the last pass.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn why(&mut self, memory: &dyn ReadMemory, goid: u64) -> Result<Why, HeapError> {
        let Some(marked) = self.last.take() else { return Ok(Why::Unknown) };
        let candidate = self.candidates.iter().find(|c| c.goid == goid).cloned();
        let known = marked.others.iter().any(|s| s.goid == goid);
        let why = match candidate {
            None if known => Why::Other,
            None => Why::Unknown,
            Some(c) if c.outcome == Outcome::Hidden => Why::OnPurpose,
            Some(c) if c.outcome == Outcome::Unreached => Why::Unreached,
            Some(c) => {
                let places: Vec<(Place, u64)> = c
                    .waits_on
                    .iter()
                    .filter_map(|&a| {
                        let place = marked.marker.table.find(a)?;
                        Some((place, a - marked.marker.table.object(place).0))
                    })
                    .filter(|(place, _)| marked.marker.has(*place))
                    .collect();
                let outside = c.waits_on.iter().copied().find(|&a| marked.marker.table.find(a).is_none());
                match outside.filter(|_| places.is_empty()) {
                    Some(address) => Why::Variable(address),
                    None => {
                        let mut path = self.path(memory, &marked, goid, &places)?;
                        if let Some(path) = &mut path {
                            self.describe(memory, &marked.marker, goid, &marked.others, path)?;
                        }
                        Why::Held(path)
                    }
                }
            }
        };
        self.last = Some(marked);
        Ok(why)
    }

    fn path(
        &mut self,
        memory: &dyn ReadMemory,
        marked: &Marked,
        goid: u64,
        sought: &[(Place, u64)],
    ) -> Result<Option<Path>, HeapError> {
        let marker = &marked.marker;
        let number = |p: Place| marker.table.number(p);
        let mut steps: HashMap<u64, Step, FixedState> = HashMap::default();
        let front = |places: &[Place]| {
            let bits = Bits::new(marker.table.objects);
            for &p in places {
                bits.set(number(p));
            }
            bits
        };
        // The runtime's records of those that wait, and their `g`s.
        let mut records: HashSet<u64, FixedState> = HashSet::default();
        let mut waiting: HashMap<u64, Vec<Place>, FixedState> = HashMap::default();
        for c in &self.candidates {
            let all = c.records.iter().chain([&c.g]);
            records.extend(all.filter_map(|&a| Some(number(marker.table.find(a)?))));
            let on = c.waits_on.iter().filter_map(|&a| marker.table.find(a)).filter(|&p| marker.has(p));
            waiting.insert(c.goid, on.collect());
        }
        let gs: HashMap<u64, u64, FixedState> = marked
            .others
            .iter()
            .filter(|s| !waiting.contains_key(&s.goid))
            .filter_map(|s| Some((number(marker.table.find(s.g)?), s.goid)))
            .collect();
        let mut now: Vec<Place> = sought.iter().map(|&(p, _)| p).collect();
        for &(place, entered_at) in sought {
            steps.insert(number(place), Step { next: None, entered_at, through: None });
        }
        for _ in 0..MAX_STEPS {
            let bits = front(&now);
            let holds = |word: u64| marker.table.find(word).filter(|&p| bits.has(number(p)));
            let found = match variables(memory, &marked.modules, &holds)? {
                Some(found) => Some(found),
                None => self.on_stacks(memory, &marked.others, &waiting, &holds)?,
            };
            if let Some((holder, word)) = found {
                return Ok(chain(marker, &steps, holder, word));
            }
            let mut next = Vec::new();
            let mut by_goroutine = None;
            referrers(memory, marker, &records, &mut |referrer, word| {
                let Some(held) = holds(word) else { return };
                if let Some(&goid) = gs.get(&number(referrer)) {
                    by_goroutine.get_or_insert((Holder::Goroutine { goid }, word));
                }
                if steps.len() < MAX_OBJECTS && !steps.contains_key(&number(referrer)) {
                    let entered_at = word - marker.table.object(held).0;
                    steps.insert(number(referrer), Step { next: Some(held), entered_at, through: None });
                    next.push(referrer);
                }
            })?;
            if let Some((holder, word)) = by_goroutine {
                return Ok(chain(marker, &steps, holder, word));
            }
            // A goroutine that waits refers to what its stack has, and is reached by what it waits on.
            for standing in marked.others.iter().filter(|s| s.goid != goid) {
                let Some(on) = waiting.get(&standing.goid) else { continue };
                let fresh: Vec<Place> =
                    on.iter().copied().filter(|&p| !steps.contains_key(&number(p))).collect();
                if fresh.is_empty() {
                    continue;
                }
                let Some((address, word)) = self.on_stack(memory, standing, &holds)? else { continue };
                let Some(held) = holds(word) else { continue };
                let through = Some((standing.goid, self.engine.frame_at(memory, standing, address)?));
                let entered_at = word - marker.table.object(held).0;
                for place in fresh {
                    steps.insert(number(place), Step { next: Some(held), entered_at, through });
                    next.push(place);
                }
            }
            if next.is_empty() {
                let Some(&last) = now.first() else { return Ok(None) };
                return Ok(chain(marker, &steps, Holder::Runtime, marker.table.object(last).0));
            }
            now = next;
        }
        Ok(None)
    }

    /// A word that holds something, on the stack of a goroutine that waits for nobody.
    fn on_stacks(
        &mut self,
        memory: &dyn ReadMemory,
        goroutines: &[Standing],
        waiting: &HashMap<u64, Vec<Place>, FixedState>,
        holds: &dyn Fn(u64) -> Option<Place>,
    ) -> Result<Option<(Holder, u64)>, HeapError> {
        for standing in goroutines.iter().filter(|s| !waiting.contains_key(&s.goid) && !s.system) {
            if let Some((address, word)) = self.on_stack(memory, standing, holds)? {
                let frame = self.engine.frame_at(memory, standing, address)?;
                return Ok(Some((Holder::Stack { goid: standing.goid, address, frame }, word)));
            }
        }
        Ok(None)
    }

    /// The first word on a goroutine's stack that holds something, and its address.
    fn on_stack(
        &mut self,
        memory: &dyn ReadMemory,
        standing: &Standing,
        holds: &dyn Fn(u64) -> Option<Place>,
    ) -> Result<Option<(u64, u64)>, HeapError> {
        let (lo, hi) = standing.stack;
        let from = standing.sp.unwrap_or(lo) & !7;
        let len = hi.saturating_sub(from);
        if standing.sp.is_none() || len > MAX_FOLLOWED {
            return Ok(first_word(memory, from, len, holds)?);
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        if !memory.read_at(from, &mut bytes)? {
            return Ok(None);
        }
        let live = self.engine.live_frames(memory, standing, &bytes)?;
        if live.frames.is_empty() {
            return Ok(first_word(memory, from, len, holds)?);
        }
        let found = live.words.iter().filter(|w| holds(w.word).is_some());
        Ok(found.filter_map(|w| Some((w.address?, w.word))).next())
    }
}

/// The chain from a holder, whose word this is.
fn chain(marker: &Marker, steps: &HashMap<u64, Step, FixedState>, holder: Holder, word: u64) -> Option<Path> {
    let mut place = marker.table.find(word)?;
    let mut entered_at = word - marker.table.object(place).0;
    let mut through = None;
    let mut links = Vec::new();
    while links.len() <= MAX_STEPS {
        let (address, size) = marker.table.object(place);
        links.push(Link { address, size, entered_at, through, what: None, what_at: 0, field: None });
        let step = steps.get(&marker.table.number(place))?;
        let Some(next) = step.next else { return Some(Path { holder, links }) };
        (entered_at, through) = (step.entered_at, step.through);
        place = next;
    }
    None
}

/// The first word of a range that holds something, and its address.
fn first_word(
    memory: &dyn ReadMemory,
    begin: u64,
    len: u64,
    holds: &dyn Fn(u64) -> Option<Place>,
) -> Result<Option<(u64, u64)>, ProcessError> {
    let begin = begin.saturating_add(7) & !7;
    let mut at = 0;
    let mut bytes = Vec::new();
    while at < len {
        bytes.resize(usize::try_from((len - at).min(PART)).unwrap_or(0) / 8 * 8, 0);
        if memory.read_at(begin.wrapping_add(at), &mut bytes)? {
            for (n, chunk) in bytes.chunks_exact(8).enumerate() {
                let word = word_at(chunk, 0);
                if holds(word).is_some() {
                    return Ok(Some((begin.wrapping_add(at + 8 * n as u64), word)));
                }
            }
        }
        at += PART;
    }
    Ok(None)
}

fn variables(
    memory: &dyn ReadMemory,
    modules: &[Module],
    holds: &dyn Fn(u64) -> Option<Place>,
) -> Result<Option<(Holder, u64)>, ProcessError> {
    for (n, module) in modules.iter().enumerate() {
        for (has_value, of) in [true, false].into_iter().zip(module.variables()) {
            let mut found = None;
            variables::each(memory, of, &mut |address, word| {
                if holds(word).is_some() {
                    let offset = address - of.range.0;
                    found = Some((Holder::Variable { address, module: n, offset, has_value }, word));
                }
                found.is_none()
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// Tells every pointer of every object that was reached.
fn referrers(
    memory: &dyn ReadMemory,
    marker: &Marker,
    records: &HashSet<u64, FixedState>,
    tell: &mut dyn FnMut(Place, u64),
) -> Result<(), ProcessError> {
    let mut places = Vec::new();
    for (n, entry) in marker.table.entries.iter().enumerate().filter(|(_, e)| !e.span.noscan) {
        let all = (0..entry.span.count).map(|index| Place { entry: n as u32, index });
        let left_out = |p| marker.skips(p) || records.contains(&marker.table.number(p));
        places.extend(all.filter(|&p| marker.has(p) && !left_out(p)));
        if places.len() >= MAX_PLACES {
            marker.objects.read(memory, &marker.table, &places, tell)?;
            places.clear();
        }
    }
    marker.objects.read(memory, &marker.table, &places, tell)
}
