//! Looking through a segment: those of its spans that have open objects are read by address, in one call; what points
//! to a neighbour is followed at once, and the bytes are dropped.

use std::{ops::Range, sync::atomic::Ordering};

use super::{
    super::{
        layout::{MAP, Pointers},
        objects,
        table::{Entry, Place},
    },
    Batch, KERNEL_PAGE, Marker, SEGMENT,
};
use gotrace_process::{Piece, ProcessError, ReadMemory};

/// Spans of so many bytes are always read as a whole: to find and lock each piece takes the kernel as long as to copy
/// some thousand bytes.
const SHORT: u64 = 16 << 10;
/// As much is read though nothing is there.
const LITTLE: u64 = 1 << 10;

/// What a thread needs.
#[derive(Default)]
pub(super) struct Worker {
    plan: Vec<Planned>,
    pieces: Vec<Piece>,
    buffer: Vec<u8>,
    failed: Vec<usize>,
    batch: Batch,
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
    /// Looks through all open objects of a segment, and through what they open in it.
    pub(super) fn segment(
        &self,
        memory: &dyn ReadMemory,
        n: usize,
        worker: &mut Worker,
    ) -> Result<(), ProcessError> {
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
