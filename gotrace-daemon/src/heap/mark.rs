//! Marking: from words that may be pointers to all objects that can be reached through them, by one or two
//! threads.
//!
//! Two bits an object: reached, and reached but not looked through yet. Spans are put together to segments
//! of about a mebibyte; a segment in which something is to be looked through waits in a queue, from which
//! each thread takes the next. Of a segment those spans are read that have such objects, by address, in one
//! call; what points to a neighbour is followed at once, and the bytes are dropped.
//!
//! A pointer is one to anywhere in an object; which words may be pointers, [`super::objects`] tells. Spans without
//! pointers are not looked through. What is not readable holds nothing: the program could not read it either.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crossbeam_deque::{Injector, Steal};
use foldhash::fast::FixedState;
use hashbrown::HashSet;

use super::{
    bits::{Bits, Group},
    layout::{MAP, Pointers},
    modules::Variables,
    objects::{self, Objects},
    table::{Entry, Place, Table},
    variables,
};
use crate::{
    process::{Piece, ProcessError, ReadMemory},
    snapshot::Pieces,
};

/// Spans of about so many bytes are one segment, and so much is read at once.
const SEGMENT: u64 = 1 << 20;
/// Threads that mark.
const MAX_THREADS: usize = 2;
/// From so many bytes of heap on a second thread helps.
const TWO_THREADS: u64 = 32 << 20;
/// Spans of so many bytes are always read as a whole: to find and lock each piece takes the kernel as long as to copy
/// some thousand bytes.
const SHORT: u64 = 16 << 10;
/// As much is read though nothing is there.
const LITTLE: u64 = 1 << 10;
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
    skipped: HashSet<u64, FixedState>,
    /// Whether a span has such.
    has_skipped: Vec<bool>,
    /// Bytes that were read.
    pub bytes_read: AtomicU64,
    /// Bytes of objects and roots that could not be read.
    pub bytes_unreadable: AtomicU64,
    /// Objects that were looked through, by what the runtime says of their pointers, and word by word.
    pub exact: AtomicU64,
    pub whole: AtomicU64,
}

/// What a thread needs.
#[derive(Default)]
struct Worker {
    plan: Vec<Planned>,
    pieces: Vec<Piece>,
    buffer: Vec<u8>,
    failed: Vec<usize>,
    batch: Batch,
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

/// A part of a segment that is read: a whole span, or one object of it.
#[derive(Clone, Copy)]
struct Planned {
    entry: usize,
    /// `None` for the whole span.
    index: Option<u32>,
    /// Where its bytes are in the buffer, and behind them those of its map, where it has one.
    at: usize,
}

/// How many objects were looked through, and how.
#[derive(Default)]
struct Looked {
    exact: u64,
    whole: u64,
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
            has_skipped: vec![false; table.entries.len()],
            segments,
            segment_of,
            queue: Injector::new(),
            pending: AtomicUsize::new(0),
            skipped: HashSet::default(),
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
        let number = self.table.number(place);
        self.skipped.insert(number);
        *self.has_skipped.get_mut(place.entry as usize)? = true;
        Some(number)
    }

    /// What was skipped is not any more; it is looked through if it was reached already.
    pub fn unskip(&mut self, address: u64) {
        let Some(place) = self.table.find(address) else { return };
        let number = self.table.number(place);
        if self.skipped.remove(&number) && self.group(number).is_some_and(|g| g.marks.has(number)) {
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
        self.skipped.contains(&self.table.number(place))
    }

    /// Whether the object at an address was reached; what is not in the heap counts as reached.
    pub fn is_reached(&self, address: u64) -> bool {
        // One that is waited on is in use: that it looks free says that it was not read well.
        let reached = |n| self.group(n).is_some_and(|g| g.marks.has(n) || g.free.has(n));
        self.table.find(address).is_none_or(|place| reached(self.table.number(place)))
    }

    /// Objects that looked free when something looked like a pointer to them are looked at again: those that
    /// are not free by `now` are reached. Gives their number.
    pub fn settle_free(&self, now: &Bits) -> u64 {
        let mut used = 0;
        for (n, entry) in self.table.entries.iter().enumerate() {
            for w in entry.words() {
                let Some(group) = self.groups.get(w) else { continue };
                let mut bits = group.doubted.get() & !now.word(w);
                while bits != 0 {
                    let index = ((w - entry.words().start) * 64) as u32 + bits.trailing_zeros();
                    bits &= bits - 1;
                    let number = entry.first + u64::from(index);
                    group.free.clear(number);
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
        if self.has_skipped.get(entry as usize).is_some_and(|&has| has) && self.skipped.contains(&number) {
            return;
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
            let mut at = begin.next_multiple_of(8);
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

    /// Looks through all open objects of a segment, and through what they open in it.
    fn segment(&self, memory: &dyn ReadMemory, n: usize, worker: &mut Worker) -> Result<(), ProcessError> {
        if let Some(queued) = self.queued.get(n) {
            // Whatever is opened from here on queues it again.
            queued.swap(false, Ordering::SeqCst);
        }
        let Some(range) = self.segments.get(n) else { return Ok(()) };
        loop {
            self.plan(range.clone(), worker);
            if worker.plan.is_empty() {
                return Ok(());
            }
            if let [Planned { entry, index: Some(index), .. }] = worker.plan[..]
                && self.table.entries[entry].span.size > SEGMENT
            {
                let place = Place { entry: entry as u32, index };
                self.large(memory, place, worker)?;
                continue;
            }
            self.read(memory, worker)?;
            self.look_through(memory, worker)?;
        }
    }

    /// What is to be read of a segment. Single objects are taken out of the open ones, those of whole spans
    /// are not yet.
    fn plan(&self, range: Range<usize>, worker: &mut Worker) {
        worker.plan.clear();
        let mut at = 0;
        for n in range {
            let entry = &self.table.entries[n];
            let groups = self.groups.get(entry.words()).unwrap_or_default();
            let open: u64 = groups.iter().map(|g| u64::from(g.open.get().count_ones())).sum();
            if open == 0 {
                continue;
            }
            let all = u64::from(entry.span.count) * entry.span.size;
            let many = open * entry.span.size * 4 >= all && entry.span.size <= SEGMENT / 16 && all <= SEGMENT;
            if many || entry.span.bytes <= SHORT {
                worker.plan.push(Planned { entry: n, index: None, at });
                at += whole(entry);
                continue;
            }
            for w in entry.words() {
                // A large object is planned alone, as it is read in parts.
                if entry.span.size > SEGMENT && !worker.plan.is_empty() || at as u64 > SEGMENT {
                    break;
                }
                let Some(group) = self.groups.get(w) else { continue };
                let mut bits = group.open.take();
                while bits != 0 {
                    let index = ((w - entry.words().start) * 64) as u32 + bits.trailing_zeros();
                    bits &= bits - 1;
                    worker.plan.push(Planned { entry: n, index: Some(index), at });
                    at += entry.span.size as usize;
                    at += objects::piece_of_map(&entry.span, index).map_or(0, |(_, len, _)| len);
                    if entry.span.size > SEGMENT || at as u64 > SEGMENT {
                        // They do not fit into the buffer.
                        group.open.add(bits);
                        break;
                    }
                }
            }
            if at as u64 > SEGMENT {
                return;
            }
        }
    }

    fn extent(&self, planned: &Planned) -> (u64, usize) {
        let entry = &self.table.entries[planned.entry];
        match planned.index {
            None => (entry.span.base, whole(entry)),
            Some(index) => (entry.span.base + u64::from(index) * entry.span.size, entry.span.size as usize),
        }
    }

    /// Reads what is planned; what is not readable becomes zeros.
    fn read(&self, memory: &dyn ReadMemory, worker: &mut Worker) -> Result<(), ProcessError> {
        let Worker { plan, pieces, buffer, failed, .. } = worker;
        pieces.clear();
        let mut total = 0;
        for planned in &*plan {
            let (address, len) = self.extent(planned);
            total = planned.at + len;
            match pieces.last_mut() {
                Some(last) if last.address + last.len as u64 == address => last.len += len,
                _ => pieces.push(Piece { address, len }),
            }
            let span = &self.table.entries[planned.entry].span;
            let map = planned.index.and_then(|index| objects::piece_of_map(span, index));
            if let Some((offset, len, _)) = map {
                total += len;
                pieces.push(Piece { address: span.base + offset, len });
            }
        }
        buffer.resize(total, 0);
        memory.read_pieces(pieces, buffer, failed)?;
        self.bytes_read.fetch_add(total as u64, Ordering::Relaxed);
        let mut at = 0;
        let mut bad = failed.iter().copied().peekable();
        for (n, piece) in pieces.iter().enumerate() {
            if bad.next_if_eq(&n).is_some() {
                let (mut done, end) = (0, piece.len);
                while done < end {
                    let address = piece.address + done as u64;
                    let size = ((KERNEL_PAGE - address % KERNEL_PAGE) as usize).min(end - done);
                    let bytes = buffer.get_mut(at + done..at + done + size).unwrap_or_default();
                    if !memory.read_at(address, bytes)? {
                        bytes.fill(0);
                        self.bytes_unreadable.fetch_add(size as u64, Ordering::Relaxed);
                    }
                    done += size;
                }
            }
            at += piece.len;
        }
        Ok(())
    }

    fn look_through(&self, memory: &dyn ReadMemory, worker: &mut Worker) -> Result<(), ProcessError> {
        let mut looked = Looked::default();
        let Worker { plan, buffer, batch, .. } = worker;
        for planned in &*plan {
            let Some(index) = planned.index else { continue };
            let (_, len) = self.extent(planned);
            let span = &self.table.entries[planned.entry].span;
            let bytes = buffer.get(planned.at..planned.at + len).unwrap_or_default();
            let bits = objects::piece_of_map(span, index).map_or(0, |(_, map, from)| {
                let map = buffer.get(planned.at + len..planned.at + len + map).unwrap_or_default();
                let words = len / 8;
                objects::bits(map, from, index as usize * words, words)
            });
            self.object(memory, (planned.entry, index), (bytes, bits), batch, &mut looked)?;
        }
        self.look_up(batch);
        let mut any = true;
        while any {
            any = false;
            for planned in plan.iter().filter(|p| p.index.is_none()) {
                let entry = &self.table.entries[planned.entry];
                let size = entry.span.size as usize;
                let map = match entry.span.pointers {
                    Pointers::Bits(at) => {
                        let at = planned.at + at as usize;
                        buffer.get(at..at + MAP as usize).unwrap_or_default()
                    }
                    _ => &[],
                };
                for (n, group) in self.groups.get(entry.words()).unwrap_or_default().iter().enumerate() {
                    let mut open = group.open.take();
                    while open != 0 {
                        any = true;
                        let index = n * 64 + open.trailing_zeros() as usize;
                        open &= open - 1;
                        let at = planned.at + index * size;
                        let bytes = buffer.get(at..at + size).unwrap_or_default();
                        let bits = if map.is_empty() {
                            0
                        } else {
                            objects::bits(map, 0, index * size / 8, size / 8)
                        };
                        let place = (planned.entry, index as u32);
                        self.object(memory, place, (bytes, bits), batch, &mut looked)?;
                    }
                }
            }
            self.look_up(batch);
        }
        self.count(&looked);
        Ok(())
    }

    fn object(
        &self,
        memory: &dyn ReadMemory,
        (entry, index): (usize, u32),
        (bytes, bits): (&[u8], u64),
        batch: &mut Batch,
        looked: &mut Looked,
    ) -> Result<(), ProcessError> {
        let span = &self.table.entries[entry].span;
        let address = span.base + u64::from(index) * span.size;
        let exact = self.objects.each(memory, span, address, bytes, bits, |word| self.add(word, batch))?;
        looked.exact += u64::from(exact);
        looked.whole += u64::from(!exact);
        Ok(())
    }

    fn count(&self, looked: &Looked) {
        self.exact.fetch_add(looked.exact, Ordering::Relaxed);
        self.whole.fetch_add(looked.whole, Ordering::Relaxed);
    }

    /// An object that is longer than a segment, in parts.
    fn large(&self, memory: &dyn ReadMemory, place: Place, worker: &mut Worker) -> Result<(), ProcessError> {
        let Some(entry) = self.table.entry(place) else { return Ok(()) };
        let (address, size) = self.table.object(place);
        let mask = self.objects.large(memory, &entry.span)?;
        let mut at = 0;
        while at < size {
            let len = (size - at).min(SEGMENT);
            worker.buffer.resize(len as usize, 0);
            if memory.read_at(address + at, &mut worker.buffer)? {
                self.bytes_read.fetch_add(len, Ordering::Relaxed);
                match &mask {
                    Some(mask) => mask.each(at, &worker.buffer, |_, word| self.word(word)),
                    None => self.words(&worker.buffer),
                }
            } else {
                self.by_pages(memory, address + at, len)?;
            }
            at += len;
        }
        let exact = u64::from(mask.is_some());
        self.count(&Looked { exact, whole: 1 - exact });
        Ok(())
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

/// As much of a span as is read as a whole: its objects, and their map; what is little behind them too, so that spans
/// that lie next to each other are read as one.
fn whole(entry: &Entry) -> usize {
    let used = match entry.span.pointers {
        Pointers::Bits(at) => u64::from(at) + MAP,
        _ => u64::from(entry.span.count) * entry.span.size,
    };
    let all = entry.span.bytes;
    if all.saturating_sub(used) <= LITTLE { all as usize } else { used as usize }
}
