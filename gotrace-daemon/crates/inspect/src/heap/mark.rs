//! Marking: from words that may be pointers to all objects that can be reached through them, by one or two
//! threads.
//!
//! Two bits an object: reached, and reached but not looked through yet. Spans are put together to segments
//! of about a mebibyte; a segment in which something is to be looked through waits in a queue, from which
//! each thread takes the next.
//!
//! A pointer is one to anywhere in an object; which words may be pointers, [`super::objects`] tells. Spans without
//! pointers are not looked through. What is not readable holds nothing: the program could not read it either.

mod segment;

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use self::segment::Worker;
use super::{
    bits::{Bits, Group},
    modules::Variables,
    objects::Objects,
    table::{Entry, Place, Table},
    variables,
};
use crate::snapshot::Pieces;
use crossbeam_deque::{Injector, Steal};
use gotrace_process::{ProcessError, ReadMemory};

/// Spans of about so many bytes are one segment, and so much is read at once.
const SEGMENT: u64 = 1 << 20;
/// Threads that mark.
const MAX_THREADS: usize = 2;
/// From so many bytes of heap on a second thread helps.
const TWO_THREADS: u64 = 32 << 20;
/// Words that are looked up together.
const BATCH: usize = 64;
/// What is not readable as a whole is read by pages of the kernel.
const KERNEL_PAGE: u64 = 4096;
/// Ranges of roots are read in parts of this many bytes.
const PART: u64 = 1 << 16;

/// The state of a marking.
#[derive(Debug)]
pub(super) struct Marker {
    pub table: Table,
    /// Of 64 objects each; those of a last one, which is no object's, are reached from the beginning.
    groups: Vec<Group>,
    /// What tells pointers from other words.
    pub objects: Objects,
    /// Spans of each segment, and the segment of each span.
    segments: Vec<Range<usize>>,
    segment_of: Vec<u32>,
    queued: Vec<AtomicBool>,
    queue: Injector<u32>,
    /// Segments that are queued or being looked through.
    pending: AtomicUsize,
    /// Objects that are not looked through: the records of goroutines that may never run again.
    skipped: Skipped,
    /// Bytes that were read.
    pub bytes_read: AtomicU64,
    /// Bytes of objects and roots that could not be read.
    pub bytes_unreadable: AtomicU64,
    /// Objects that were looked through, by what the runtime says of their pointers, and word by word.
    pub exact: AtomicU64,
    pub whole: AtomicU64,
}

/// Of a span without such objects.
const NONE: u32 = u32::MAX;

/// A set of objects: a bit each in the spans that have any.
#[derive(Debug, Default)]
struct Skipped {
    /// Of each span, where its bits begin, or [`NONE`].
    first: Vec<u32>,
    bits: Vec<u64>,
}

impl Skipped {
    #[inline]
    fn is_in(&self, entry: u32) -> bool {
        self.first.get(entry as usize).is_some_and(|&first| first != NONE)
    }

    fn word(&self, place: Place) -> Option<usize> {
        let first = *self.first.get(place.entry as usize).filter(|&&first| first != NONE)?;
        Some(first as usize + place.index as usize / 64)
    }

    /// `words`: how many the bits of its span have.
    fn add(&mut self, place: Place, words: usize) {
        let Some(first) = self.first.get_mut(place.entry as usize) else { return };
        if *first == NONE {
            *first = u32::try_from(self.bits.len()).unwrap_or(NONE);
            self.bits.resize(self.bits.len() + words, 0);
        }
        if let Some(word) = self.word(place).and_then(|n| self.bits.get_mut(n)) {
            *word |= 1 << (place.index % 64);
        }
    }

    fn has(&self, place: Place) -> bool {
        let word = self.word(place).and_then(|n| self.bits.get(n)).copied().unwrap_or(0);
        word & 1 << (place.index % 64) != 0
    }

    /// Whether it was there.
    fn remove(&mut self, place: Place) -> bool {
        let was = self.has(place);
        if let Some(word) = self.word(place).and_then(|n| self.bits.get_mut(n)) {
            *word &= !(1 << (place.index % 64));
        }
        was
    }
}

/// Words that may be pointers, to be looked up together.
struct Batch {
    words: [u64; BATCH],
    len: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { words: [0; BATCH], len: 0 }
    }
}

impl Marker {
    /// Nothing is marked. `free`: objects that are not to be. `offset`: how many spans the first segment has fewer than the others, so that a
    /// heap is cut differently each time.
    pub fn new(table: Table, free: &Bits, offset: usize) -> Self {
        let count = usize::try_from(table.objects / 64).unwrap_or(0);
        let groups: Vec<Group> = (0..=count).map(|_| Group::default()).collect();
        for (n, group) in groups.iter().enumerate() {
            group.free.add(free.word(n));
        }
        if let Some(last) = groups.last() {
            last.marks.add(u64::MAX);
        }
        let mut segments: Vec<Range<usize>> = Vec::new();
        let mut segment_of = Vec::with_capacity(table.entries.len());
        let mut bytes = SEGMENT.saturating_sub(offset as u64 % SEGMENT);
        for (n, entry) in table.entries.iter().enumerate() {
            match segments.last_mut() {
                Some(last) if bytes + entry.span.bytes <= SEGMENT => last.end = n + 1,
                _ => {
                    if !segments.is_empty() {
                        bytes = 0;
                    }
                    segments.push(n..n + 1);
                }
            }
            bytes += entry.span.bytes;
            segment_of.push(u32::try_from(segments.len() - 1).unwrap_or(u32::MAX));
        }
        Self {
            groups,
            objects: Objects::default(),
            queued: segments.iter().map(|_| AtomicBool::new(false)).collect(),
            segments,
            segment_of,
            queue: Injector::new(),
            pending: AtomicUsize::new(0),
            skipped: Skipped { first: vec![NONE; table.entries.len()], bits: Vec::new() },
            bytes_read: AtomicU64::new(0),
            bytes_unreadable: AtomicU64::new(0),
            exact: AtomicU64::new(0),
            whole: AtomicU64::new(0),
            table,
        }
    }

    /// From now on the object at an address is marked, but not looked through. Gives its number.
    pub fn skip(&mut self, address: u64) -> Option<u64> {
        let place = self.table.find(address)?;
        self.skipped.add(place, self.table.entry(place)?.words().len());
        Some(self.table.number(place))
    }

    /// What was skipped is not any more; it is looked through if it was reached already.
    pub fn unskip(&mut self, address: u64) {
        let Some(place) = self.table.find(address) else { return };
        let number = self.table.number(place);
        if self.skipped.remove(place) && self.group(number).is_some_and(|g| g.marks.has(number)) {
            self.reopen(place);
        }
    }

    #[inline]
    fn group(&self, number: u64) -> Option<&Group> {
        self.groups.get((number / 64) as usize)
    }

    fn reopen(&self, place: Place) {
        let number = self.table.number(place);
        let scanned = !self.table.is_noscan(place.entry);
        if scanned && self.group(number).is_some_and(|g| g.open.set(number)) {
            self.enqueue(place.entry);
        }
    }

    /// Whether an object is not looked through.
    pub fn skips(&self, place: Place) -> bool {
        self.skipped.has(place)
    }

    /// Whether the object at an address was reached; what is not in the heap counts as reached.
    pub fn is_reached(&self, address: u64) -> bool {
        // One that is waited on is in use: that it looks free says that it was not read well.
        let reached = |n| self.group(n).is_some_and(|g| g.marks.has(n) || g.free.has(n));
        self.table.find(address).is_none_or(|place| reached(self.table.number(place)))
    }

    /// Objects that looked free when something looked like a pointer to them are looked at again: those that
    /// are not free by `now` are reached. From here on only those are free that are free now as well: what was handed
    /// out meanwhile may lead to more of the kind. Gives the number of those reached.
    pub fn settle_free(&self, now: &Bits) -> u64 {
        let mut used = 0;
        for (n, entry) in self.table.entries.iter().enumerate() {
            for w in entry.words() {
                let Some(group) = self.groups.get(w) else { continue };
                let mut bits = group.doubted.get() & !now.word(w);
                group.free.keep(now.word(w));
                while bits != 0 {
                    let index = ((w - entry.words().start) * 64) as u32 + bits.trailing_zeros();
                    bits &= bits - 1;
                    let number = entry.first + u64::from(index);
                    group.doubted.clear(number);
                    if group.marks.set(number) {
                        self.reopen(Place { entry: n as u32, index });
                    }
                    used += 1;
                }
            }
        }
        used
    }

    /// Takes in a word that may be a pointer.
    #[inline]
    pub fn word(&self, word: u64) {
        let entry = self.table.span_of(word);
        let number = self.table.number_of(entry, word);
        if self.group(number).is_some_and(|g| !g.marks.has(number)) {
            self.reach(entry, number);
        }
    }

    /// Takes in words.
    pub fn words(&self, bytes: &[u8]) {
        let mut batch = Batch::default();
        self.collect(bytes, &mut batch);
        self.look_up(&mut batch);
    }

    /// Adds words to a batch.
    fn collect(&self, bytes: &[u8], batch: &mut Batch) {
        for chunk in bytes.chunks_exact(8) {
            self.add(chunk.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)), batch);
        }
    }

    /// Adds a word to a batch, which is looked up whenever it is full.
    #[inline]
    fn add(&self, word: u64, batch: &mut Batch) {
        // Without a branch: whether the next word is a pointer cannot be foretold.
        batch.words[batch.len % BATCH] = word;
        batch.len += usize::from(word.wrapping_sub(self.table.low) < self.table.high - self.table.low);
        if batch.len == BATCH {
            self.look_up(batch);
        }
    }

    /// Takes in a batch, and empties it. One step for all words before the next step, so that the processor fetches
    /// from memory for many of them at once.
    fn look_up(&self, batch: &mut Batch) {
        let words = &batch.words[..batch.len.min(BATCH)];
        let (mut entries, mut numbers) = ([0; BATCH], [0; BATCH]);
        for (entry, &word) in entries.iter_mut().zip(words) {
            *entry = self.table.span_of(word);
        }
        for ((number, &entry), &word) in numbers.iter_mut().zip(&entries).zip(words) {
            *number = self.table.number_of(entry, word);
        }
        let (mut fresh, mut count) = ([0_u8; BATCH], 0);
        for (n, &number) in numbers.iter().enumerate().take(words.len()) {
            fresh[count % BATCH] = n as u8;
            count += usize::from(self.group(number).is_some_and(|g| !g.marks.has(number)));
        }
        for &n in &fresh[..count] {
            self.reach(entries[usize::from(n)], numbers[usize::from(n)]);
        }
        batch.len = 0;
    }

    /// Marks an object, by the place of its span and its number.
    fn reach(&self, entry: u32, number: u64) {
        let Some(group) = self.group(number) else { return };
        if group.free.has(number) {
            group.doubted.set(number);
            return;
        }
        if !group.marks.set(number) || self.table.is_noscan(entry) {
            return;
        }
        if self.skipped.is_in(entry) {
            let first = self.table.entries.get(entry as usize).map_or(0, |e| e.first);
            if self.skipped.has(Place { entry, index: (number - first) as u32 }) {
                return;
            }
        }
        if group.open.set(number) {
            self.enqueue(entry);
        }
    }

    fn enqueue(&self, entry: u32) {
        let Some(&segment) = self.segment_of.get(entry as usize) else { return };
        let Some(queued) = self.queued.get(segment as usize) else { return };
        // In one order with the bits: see `bits`.
        if !queued.load(Ordering::SeqCst) && !queued.swap(true, Ordering::SeqCst) {
            self.pending.fetch_add(1, Ordering::AcqRel);
            self.queue.push(segment);
        }
    }

    /// Takes in all words of ranges (first address, length). Those that cannot be read as a whole are read by
    /// pages. Gives the bytes that could be read.
    pub fn ranges(&self, memory: &dyn ReadMemory, ranges: &[(u64, u64)]) -> Result<u64, ProcessError> {
        let mut items = Vec::new();
        for &(begin, len) in ranges {
            let end = begin.saturating_add(len) & !7;
            let mut at = begin.saturating_add(7) & !7;
            while at < end {
                let size = (end - at).min(PART);
                items.push((at, size as u32));
                at += size;
            }
        }
        let (mut rest, mut pieces, mut read) = (&items[..], Pieces::default(), 0);
        while !rest.is_empty() {
            let done = pieces.read(memory, rest, 0)?;
            for (n, &(address, len)) in rest.iter().enumerate().take(done) {
                match pieces.item(n, len as usize) {
                    Some(bytes) => {
                        self.words(bytes);
                        read += u64::from(len);
                    }
                    None => read += self.by_pages(memory, address, u64::from(len))?,
                }
            }
            rest = &rest[done..];
        }
        self.bytes_read.fetch_add(read, Ordering::Relaxed);
        Ok(read)
    }

    /// Takes in those words of variables that may be pointers. Gives the bytes that could be read, and those of
    /// them whose pointers are known.
    pub fn variables(&self, memory: &dyn ReadMemory, of: Variables) -> Result<(u64, u64), ProcessError> {
        let looked = variables::each(memory, of, &mut |_, word| {
            self.word(word);
            true
        })?;
        self.bytes_read.fetch_add(looked.bytes, Ordering::Relaxed);
        self.bytes_unreadable.fetch_add(looked.unreadable, Ordering::Relaxed);
        Ok((looked.bytes, looked.exact))
    }

    fn by_pages(&self, memory: &dyn ReadMemory, address: u64, len: u64) -> Result<u64, ProcessError> {
        let mut page = vec![0; KERNEL_PAGE as usize];
        let (mut at, end, mut read) = (address, address.saturating_add(len), 0);
        while at < end {
            let size = (KERNEL_PAGE - at % KERNEL_PAGE).min(end - at);
            let bytes = &mut page[..size as usize];
            if memory.read_at(at, bytes)? {
                self.words(bytes);
                read += size;
            } else {
                self.bytes_unreadable.fetch_add(size, Ordering::Relaxed);
            }
            at += size;
        }
        Ok(read)
    }

    /// Follows everything that was taken in, until nothing new is reached.
    pub fn drain(&self, memory: &dyn ReadMemory) -> Result<(), ProcessError> {
        if self.pending.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let bytes: u64 = self.table.entries.iter().map(|e| e.span.bytes).sum();
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = if bytes >= TWO_THREADS { MAX_THREADS.min(processors) } else { 1 };
        let failed: Mutex<Option<ProcessError>> = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let work = || {
            let mut worker = Worker::default();
            while !stop.load(Ordering::Acquire) {
                match self.queue.steal() {
                    Steal::Success(segment) => {
                        if let Err(e) = self.segment(memory, segment as usize, &mut worker) {
                            stop.store(true, Ordering::Release);
                            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                        }
                        self.pending.fetch_sub(1, Ordering::AcqRel);
                        // A goroutine that has just been woken is not to wait until this thread's time is up.
                        thread::yield_now();
                    }
                    Steal::Retry => {}
                    Steal::Empty if self.pending.load(Ordering::Acquire) == 0 => break,
                    Steal::Empty => thread::sleep(Duration::from_micros(20)),
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // Where no thread can be had, one does it all.
                let _ = thread::Builder::new().name("marking".into()).spawn_scoped(scope, work);
            }
            work();
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Bytes and number of the objects that were reached.
    pub fn reached(&self) -> (u64, u64) {
        let of = |e: &Entry| {
            let groups = self.groups.get(e.words()).unwrap_or_default();
            let count: u64 = groups.iter().map(|g| u64::from(g.marks.get().count_ones())).sum();
            (count * e.span.size, count)
        };
        self.table.entries.iter().map(of).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }

    /// Whether an object was reached.
    pub fn has(&self, place: Place) -> bool {
        let number = self.table.number(place);
        self.group(number).is_some_and(|g| g.marks.has(number))
    }
}
