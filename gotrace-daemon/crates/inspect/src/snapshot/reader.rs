//! Reads `g`s in batches, with their stacks and what they wait on, and takes a second look at each before
//! it is believed. One reader is used by one thread at a time; what several have read is put together
//! (`merge`).

use std::{ops::Range, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Arguments, Goroutine, Options, Snapshot, StackFrame, Status,
    arguments::Kept,
    descriptors::Descriptors,
    labels::Labels,
    layout::{Layout, word},
    model::WaitRange,
    pieces::Pieces,
    seen::{Holds, Seen},
    unwind::{End, Interner, Places, Start, roles},
    waits::{Family, Waits},
};
use gotrace_go::{Binary, EntryKind};
use gotrace_process::{ProcessError, ReadMemory};

/// `g`s that are read, and looked at again, together: small enough that little time lies between.
const BATCH: usize = 1024;
/// Most bytes of a stack that are read at all.
const LAST_WINDOW: u64 = 8 << 20;
/// `g`s this far apart are read together with what lies between.
const G_GAP: u64 = 512;
/// How often a goroutine that moves is looked at.
const TRIES: u32 = 4;

/// How many bytes of a stack are read at first: as many as nine of ten need.
#[derive(Debug, Default)]
struct Windows([u64; 8]);

impl Windows {
    const STEP: u64 = 128;

    fn note(&mut self, bytes: u64) {
        let n = usize::try_from(bytes.div_ceil(Self::STEP)).unwrap_or(usize::MAX).clamp(1, self.0.len());
        self.0[n - 1] += 1;
    }

    fn first(&self) -> u64 {
        let all: u64 = self.0.iter().sum();
        if all < 100 {
            return 4 * Self::STEP;
        }
        let mut sum = 0;
        let enough = |&n: &u64| {
            sum += n;
            sum >= all / 10 * 9
        };
        (self.0.iter().position(enough).unwrap_or(self.0.len()) as u64 + 1) * Self::STEP
    }
}

/// Goroutines of a batch: the address of each `g`, what was seen of it, and the stack.
#[derive(Default)]
struct Batch {
    gs: Vec<(u64, Option<Seen>)>,
    stacks: Vec<(Range<usize>, End)>,
    frames: Vec<StackFrame>,
    arguments: Vec<Kept>,
    /// Goroutines that wait on a `sync.Cond` which only their stack tells, and what may be its address.
    conditions: Vec<(usize, u64)>,
}

/// What is kept between the batches of a snapshot, and between snapshots.
#[derive(Debug)]
pub(super) struct Reader {
    binary: Arc<Binary>,
    bias: u64,
    layout: Layout,
    families: Vec<Family>,
    pub places: Places,
    entries: HashMap<u64, Option<EntryKind>, FixedState>,
    pub interner: Interner,
    pub waits: Waits,
    descriptors: Descriptors,
    labels: Labels,
    pieces: Pieces,
    scratch: Vec<StackFrame>,
    /// Where the arguments of those begin.
    bases: Vec<u64>,
    /// Of the goroutines that are being read, where asked for.
    arguments: Option<Arguments>,
    windows: Windows,
    /// Goroutines beyond which it stops: there is no memory for more.
    pub most: usize,
    /// The same of frames of distinct stacks: those beyond are missing.
    pub most_frames: usize,
}

impl Reader {
    pub fn new(binary: Arc<Binary>, bias: u64, layout: Layout) -> Self {
        Self {
            bias,
            families: binary.wait_reasons().iter().map(|name| Family::of(name)).collect(),
            places: Places::new(bias, layout.arm64),
            layout,
            binary,
            entries: HashMap::default(),
            interner: Interner::default(),
            waits: Waits::default(),
            descriptors: Descriptors::default(),
            labels: Labels::default(),
            pieces: Pieces::default(),
            scratch: Vec::new(),
            bases: Vec::new(),
            arguments: None,
            windows: Windows::default(),
            most: usize::MAX,
            most_frames: usize::MAX,
        }
    }

    /// Reads the `g`s at these addresses, which are sorted, and adds them to the snapshot.
    pub fn read(
        &mut self,
        memory: &dyn ReadMemory,
        options: Options,
        gs: &[u64],
        snapshot: &mut Snapshot,
    ) -> Result<(), ProcessError> {
        self.interner = Interner::within(self.most_frames);
        self.waits.begin(if options.waits { gs.len() } else { 0 });
        self.labels.begin();
        self.arguments = options.arguments.then(Arguments::default);
        let mut batch = Batch::default();
        for addresses in gs.chunks(BATCH) {
            if snapshot.goroutines.len() > self.most {
                break;
            }
            let mut again = self.batch(memory, options, addresses, &mut batch, snapshot, true)?;
            for n in 1..TRIES {
                if again.is_empty() {
                    break;
                }
                snapshot.counts.reread += if n == 1 { again.len() as u64 } else { 0 };
                let retry = n + 1 < TRIES;
                again = self.batch(memory, options, &again, &mut batch, snapshot, retry)?;
            }
        }
        snapshot.arguments = self.arguments.take();
        Ok(())
    }

    /// Reads a batch, and adds those that stood still to the snapshot; gives the others. Without `retry`
    /// those are added as running.
    fn batch(
        &mut self,
        memory: &dyn ReadMemory,
        options: Options,
        addresses: &[u64],
        batch: &mut Batch,
        snapshot: &mut Snapshot,
        retry: bool,
    ) -> Result<Vec<u64>, ProcessError> {
        batch.gs.clear();
        self.descriptors.begin();
        batch.conditions.clear();
        self.look(memory, addresses, |address, holds| match holds {
            Some(Holds::Goroutine(seen)) => batch.gs.push((address, Some(seen))),
            Some(Holds::Nothing) => snapshot.counts.dead += 1,
            Some(Holds::Nonsense) => snapshot.counts.implausible += 1,
            None => snapshot.counts.unreadable += 1,
        })?;
        self.check_entries(batch, snapshot);
        if options.stacks || options.callees {
            self.read_stacks(memory, options, batch)?;
        }
        if options.waits {
            let g_of = |n| batch.gs.get(n).map_or(0, |g: &(u64, _)| g.0);
            self.descriptors.resolve(memory, &self.layout, g_of, self.waits.now)?;
            let sleeps = |(n, (g, seen)): (usize, &(u64, Option<Seen>))| {
                seen.filter(|s| self.family(s) == Family::Sleep).map(|_| (n, *g))
            };
            let sleepers: Vec<(usize, u64)> = batch.gs.iter().enumerate().filter_map(sleeps).collect();
            self.waits.sleeps.read(memory, &self.layout, &sleepers, self.waits.now)?;
            let Batch { gs, conditions, .. } = &*batch;
            self.waits.read(memory, &self.layout, gs, conditions, &mut snapshot.counts)?;
        }
        let mut again = Vec::new();
        let mut torn = vec![false; batch.gs.len()];
        if options.stacks || options.callees || options.waits {
            let firsts: Vec<u64> = batch.gs.iter().map(|(address, _)| *address).collect();
            let mut n = 0;
            let gs = &batch.gs;
            self.look(memory, &firsts, |_, holds| {
                let still = matches!((gs[n].1, holds), (Some(before), Some(Holds::Goroutine(now)))
                    if before.stood_still(&now));
                torn[n] = !still;
                n += 1;
            })?;
        }
        let threads = self.threads(memory, batch)?;
        for (n, &(address, seen)) in batch.gs.iter().enumerate() {
            let Some(seen) = seen else { continue };
            if torn[n] && retry && !seen.runs() {
                again.push(address);
                continue;
            }
            let thread = threads.get(&(address, seen.m)).or_else(|| threads.get(&(0, seen.locked_m)));
            self.add(memory, options, batch, n, torn[n], thread.copied().unwrap_or(0), snapshot)?;
        }
        Ok(again)
    }

    /// Reads `g`s, sorted by address, and tells what each holds; nothing when it is not readable.
    fn look(
        &mut self,
        memory: &dyn ReadMemory,
        addresses: &[u64],
        mut tell: impl FnMut(u64, Option<Holds>),
    ) -> Result<(), ProcessError> {
        let len = self.layout.g_len;
        let items: Vec<(u64, u32)> = addresses.iter().map(|&a| (a, len as u32)).collect();
        let mut rest = &items[..];
        while !rest.is_empty() {
            let done = self.pieces.read(memory, rest, G_GAP)?;
            let (now, later) = rest.split_at(done);
            for (n, &(address, _)) in now.iter().enumerate() {
                let bytes = self.pieces.item(n, len).filter(|_| address.is_multiple_of(8) && address != 0);
                tell(address, bytes.map(|b| Seen::parse(b, &self.layout)));
            }
            rest = later;
        }
        Ok(())
    }

    /// Leaves out goroutines whose entry is no function.
    fn check_entries(&mut self, batch: &mut Batch, snapshot: &mut Snapshot) {
        let Self { binary, bias, entries, .. } = self;
        batch.gs.retain(|(_, seen)| {
            let entry = seen.map_or(0, |s| s.entry_pc);
            // A C thread's call into Go has none.
            let valid = entry == 0
                || entries
                    .entry(entry)
                    .or_insert_with(|| binary.entry_kind(entry.wrapping_sub(*bias)))
                    .is_some();
            snapshot.counts.implausible += u64::from(!valid);
            valid
        });
    }

    /// Follows the stacks of a batch; those that need more bytes get eight times as many, until they end.
    fn read_stacks(
        &mut self,
        memory: &dyn ReadMemory,
        options: Options,
        batch: &mut Batch,
    ) -> Result<(), ProcessError> {
        batch.frames.clear();
        batch.stacks.clear();
        batch.stacks.resize(batch.gs.len(), (0..0, End::Incomplete));
        batch.arguments.clear();
        if self.arguments.is_some() {
            batch.arguments.resize(batch.gs.len(), Kept::default());
        }
        let mut open: Vec<(usize, Start, u64)> = batch
            .gs
            .iter()
            .enumerate()
            .filter_map(|(n, (_, seen))| Some((n, seen.as_ref()?)))
            .filter(|(_, seen)| self.wants_stack(options, seen))
            .filter_map(|(n, seen)| Some((n, seen.start()?, seen.stack.1)))
            .collect();
        open.sort_unstable_by_key(|&(_, start, _)| start.sp);
        let mut window = self.windows.first();
        while !open.is_empty() {
            let items: Vec<(u64, u32)> =
                open.iter().map(|&(_, start, hi)| (start.sp, (hi - start.sp).min(window) as u32)).collect();
            let mut more = Vec::new();
            let mut rest = 0;
            while rest < items.len() {
                let done = self.pieces.read(memory, &items[rest..], 0)?;
                for i in 0..done {
                    let (n, start, hi) = open[rest + i];
                    let len = items[rest + i].1;
                    let Some(bytes) = self.pieces.item(i, len as usize) else { continue };
                    let condition = self.is_in_condition(batch.gs[n].1);
                    let wanted = condition || self.arguments.is_some();
                    let bases = if wanted { Some(&mut self.bases) } else { None };
                    let (end, used) =
                        self.places.unwind(&self.binary, start, bytes, &mut self.scratch, bases);
                    let (frames, bases) = (&self.scratch, &self.bases);
                    let reach = match &mut self.arguments {
                        Some(a) => a.reach(memory, (&self.binary, self.bias), start.sp, frames, bases)?,
                        None => 0,
                    };
                    let enough = end != End::NeedsMore && reach <= u64::from(len);
                    if !enough && u64::from(len) < (hi - start.sp).min(LAST_WINDOW) {
                        more.push((n, start, hi));
                        continue;
                    }
                    self.windows.note(used.max(reach));
                    if condition {
                        // The function keeps it for when it wakes.
                        for slot in self.places.pointers_of(&self.binary, roles::COND, frames, bases) {
                            let at = slot.wrapping_sub(start.sp) as usize;
                            batch.conditions.push((n, word(bytes, at)));
                        }
                    }
                    if let Some(arguments) = &mut self.arguments {
                        batch.arguments[n] = arguments.keep(start.sp, frames, bases, bytes);
                    }
                    if batch.gs[n].1.is_some_and(|s| self.family(&s) == Family::Io) {
                        let bytes = self.pieces.item(i, len as usize).unwrap_or_default();
                        self.descriptors.note(n, bytes, (start.sp, hi));
                    }
                    let begin = batch.frames.len();
                    batch.frames.extend_from_slice(&self.scratch);
                    batch.stacks[n] = (begin..batch.frames.len(), end);
                }
                rest += done;
            }
            open = more;
            window = (window * 8).min(LAST_WINDOW);
        }
        Ok(())
    }

    fn wants_stack(&self, options: Options, seen: &Seen) -> bool {
        let entry = seen.entry_pc.wrapping_sub(self.bias);
        options.stacks || options.callees && self.binary.callee_word(entry).is_some()
    }

    /// Whether a goroutine waits on a `sync.Cond` that nothing but its stack refers to.
    fn is_in_condition(&self, seen: Option<Seen>) -> bool {
        self.layout.locks_are_apart
            && seen.is_some_and(|s| {
                s.status.is_waiting() && self.families.get(usize::from(s.wait_reason)) == Some(&Family::Cond)
            })
    }

    /// Threads of those that have one: by (g, m) for the `m` that runs it, by (0, m) for every `m`.
    fn threads(
        &mut self,
        memory: &dyn ReadMemory,
        batch: &Batch,
    ) -> Result<HashMap<(u64, u64), u32, FixedState>, ProcessError> {
        let mut threads = HashMap::default();
        let of = |seen: &Seen| [seen.m, seen.locked_m];
        let mut ms: Vec<u64> =
            batch.gs.iter().filter_map(|(_, s)| s.as_ref()).flat_map(of).filter(|&m| m != 0).collect();
        ms.sort_unstable();
        ms.dedup();
        let (first, last) =
            (self.layout.m_procid.min(self.layout.m_curg), self.layout.m_procid.max(self.layout.m_curg));
        let len = last + 8 - first;
        let items: Vec<(u64, u32)> = ms.iter().map(|m| (m.wrapping_add(first as u64), len as u32)).collect();
        let mut rest = 0;
        while rest < items.len() {
            let done = self.pieces.read(memory, &items[rest..], 0)?;
            for i in 0..done {
                let Some(bytes) = self.pieces.item(i, len) else { continue };
                let thread = word(bytes, self.layout.m_procid - first);
                let Some(thread) = u32::try_from(thread).ok().filter(|&t| t <= 1 << 22) else { continue };
                let m = ms[rest + i];
                threads.insert((word(bytes, self.layout.m_curg - first), m), thread);
                threads.insert((0, m), thread);
            }
            rest += done;
        }
        Ok(threads)
    }

    /// What a goroutine waits for, if it does.
    fn family(&self, seen: &Seen) -> Family {
        let reason = self.families.get(usize::from(seen.wait_reason)).filter(|_| seen.status.is_waiting());
        reason.copied().unwrap_or(Family::Other)
    }

    /// Adds a goroutine of a batch to the snapshot.
    #[expect(clippy::too_many_arguments, reason = "one goroutine's parts, which are in several rooms")]
    fn add(
        &mut self,
        memory: &dyn ReadMemory,
        options: Options,
        batch: &Batch,
        n: usize,
        torn: bool,
        thread_id: u32,
        snapshot: &mut Snapshot,
    ) -> Result<(), ProcessError> {
        let (g, Some(seen)) = batch.gs[n] else { return Ok(()) };
        let mut flags = if seen.locked_m != 0 { Goroutine::LOCKED } else { 0 };
        let counts = &mut snapshot.counts;
        let torn = torn && !seen.runs();
        let status = if torn { Status::Running } else { seen.status };
        let (range, end) = batch.stacks.get(n).cloned().unwrap_or((0..0, End::Incomplete));
        let wants_stack = self.wants_stack(options, &seen);
        let frames = if torn || !wants_stack { &[] } else { batch.frames.get(range).unwrap_or_default() };
        let mut stack = None;
        if torn || seen.runs() {
            counts.torn += u64::from(torn);
            counts.running += 1;
        } else if wants_stack {
            stack = if frames.is_empty() { None } else { self.interner.intern(&mut snapshot.stacks, frames) };
            counts.stacks_missing += u64::from(stack.is_none());
            if stack.is_some() && end == End::Complete {
                flags |= Goroutine::COMPLETE;
            }
            counts.stacks_incomplete += u64::from(stack.is_some() && end != End::Complete);
            if let (Some(arguments), Some(kept), Some(_)) =
                (&mut self.arguments, batch.arguments.get(n), stack)
            {
                arguments.add(g, *kept);
                counts.arguments_unreadable += kept.unreadable;
            }
        }
        let kind = self.entries.get(&seen.entry_pc).copied().flatten();
        let system = match kind {
            Some(EntryKind::System) => true,
            Some(EntryKind::Runner) => {
                let entry = self.binary.function_at(seen.entry_pc.wrapping_sub(self.bias));
                let cleanups = entry.is_some_and(|f| f.name == "runtime.runCleanups");
                flags |= if cleanups { Goroutine::CLEANUPS } else { Goroutine::FINALIZERS };
                !self.places.leaves_runtime(&self.binary, frames)
            }
            _ => false,
        };
        if system {
            flags |= Goroutine::SYSTEM;
            counts.system += 1;
        }
        let waiting = status.is_waiting();
        let begin = snapshot.waits.len();
        if waiting && options.waits {
            let family = self.family(&seen);
            let roles = self.places.roles(&self.binary, frames);
            if family == Family::Io && self.places.is_transport_reader(&self.binary, frames) {
                flags |= Goroutine::TRANSPORT_READER;
            }
            let descriptors = &self.descriptors;
            self.waits.add(n, family, roles, descriptors, &mut snapshot.waits, &mut snapshot.objects);
        }
        let mut labels = None;
        if options.labels && seen.labels != 0 {
            let sets = &mut snapshot.labels;
            labels = self.labels.get(memory, &self.layout, seen.labels, sets, &mut snapshot.counts)?;
        }
        snapshot.goroutines.push(Goroutine {
            goid: seen.goid,
            g,
            parent_goid: seen.parent,
            // The first is made by the start code, of which its field tells nothing useful.
            created_pc: if seen.goid == 1 { 0 } else { seen.created_pc },
            entry_pc: seen.entry_pc,
            wait_since_ns: seen.wait_since,
            park_mark: seen.park_mark(),
            thread_id,
            stack,
            waits: WaitRange {
                begin: u32::try_from(begin).unwrap_or(u32::MAX),
                len: u32::try_from(snapshot.waits.len() - begin).unwrap_or(0),
            },
            labels,
            status,
            wait_reason: if waiting { seen.wait_reason } else { 0 },
            flags,
        });
        Ok(())
    }
}
