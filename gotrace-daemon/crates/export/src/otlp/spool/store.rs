//! The spool's directory: segments in the order of their numbers, a queue of them for each signal, bounded
//! all together.
//!
//! Files are `NUMBER.SIGNAL`; `lock` is locked by the gotrace whose directory it is. When there is no room
//! the oldest segment goes, of the signal that takes the most. A file of which nothing can be read is renamed to
//! `NUMBER.SIGNAL.damaged` and counted as one lost, which is the least that it was. Refuses a directory that another gotrace has,
//! or that is a link or somebody else's ([`private`]).

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

use super::segment::{MAGIC, Next, Packed, Segment};
use crate::otlp::{config::Signal, stats::Dropped};
use gotrace_process::private;

/// Segments that a full spool has, and how large they are at least and at most.
const SEGMENTS: u64 = 16;
const SMALLEST: u64 = 256 << 10;
const LARGEST: u64 = 16 << 20;

/// Something that will not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub signal: Signal,
    pub why: Dropped,
    /// Whose it was, where this gotrace wrote it.
    pub process: Option<u64>,
    /// Spans, points or records.
    pub count: u64,
}

/// Tells one record from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::otlp) struct Ticket {
    signal: Signal,
    sequence: u64,
    at: u64,
}

/// A request out of the spool.
#[derive(Debug)]
pub(in crate::otlp) struct Record {
    pub ticket: Ticket,
    pub count: u64,
    pub bytes: Bytes,
    /// Whether its file is gone: then nobody else counts what becomes of it.
    pub gone: Arc<AtomicBool>,
}

/// The directory, open.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    /// Locked while it is open.
    _lock: File,
    limit: u64,
    next: u64,
    bytes: u64,
    queues: [VecDeque<Segment>; Signal::ALL.len()],
}

impl Store {
    /// Opens a directory, and makes it where there is none. What others left in it comes first.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when in use by another gotrace; else what the system says.
    pub fn open(directory: &Path, limit: u64, lost: &mut dyn FnMut(Lost)) -> io::Result<Self> {
        private::directory(directory)?;
        let lock = private::open(&directory.join("lock"), true)
            .map_err(|error| io::Error::new(error.kind(), format!("lock: {error}")))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                io::Error::new(io::ErrorKind::ResourceBusy, "in use by another gotrace")
            } else {
                error.into()
            }
        })?;
        let mut this = Self {
            directory: directory.to_owned(),
            _lock: lock,
            limit,
            next: 1,
            bytes: 0,
            queues: Default::default(),
        };
        let mut found: Vec<(u64, Signal, PathBuf)> = fs::read_dir(directory)?
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let name = entry.file_name();
                let (number, signal) = name.to_str()?.split_once('.')?;
                let signal = Signal::ALL.into_iter().find(|s| s.name() == signal)?;
                Some((number.parse().ok()?, signal, entry.path()))
            })
            .collect();
        found.sort_unstable_by_key(|(number, ..)| *number);
        for (number, signal, path) in found {
            this.next = number.saturating_add(1);
            match Segment::open(&path, number) {
                Ok((segment, torn)) => {
                    if torn > 0 {
                        lost(Lost { signal, why: Dropped::SpoolDamaged, process: None, count: torn });
                    }
                    this.bytes += segment.size;
                    this.queues[signal as usize].push_back(segment);
                    this.tidy(signal);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // How much was in it nobody knows: something.
                    lost(Lost { signal, why: Dropped::SpoolDamaged, process: None, count: 1 });
                    set_aside(&path, &error);
                }
                Err(error) => {
                    tracing::warn!("ignoring {}: {error}", path.display());
                }
            }
        }
        this.make_room(0, lost);
        Ok(this)
    }

    /// Adds a request.
    ///
    /// # Errors
    /// When it cannot be written; the spool is as it was, but for room that was made.
    pub fn push(
        &mut self,
        signal: Signal,
        process: u64,
        count: u64,
        request: &[u8],
        lost: &mut dyn FnMut(Lost),
    ) -> io::Result<()> {
        let record = Packed::new(process, count, request)?;
        let needed = record.length() + MAGIC.len() as u64;
        if needed > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a request larger than the spool"));
        }
        self.make_room(needed, lost);
        let longest = (self.limit / SEGMENTS).clamp(SMALLEST, LARGEST);
        let queue = &mut self.queues[signal as usize];
        let fits = queue.back().is_some_and(|s| s.own && s.size + record.length() <= longest);
        if !fits {
            if let Some(full) = queue.back().filter(|s| s.own) {
                full.sync()?;
            }
            let path = self.directory.join(format!("{:020}.{}", self.next, signal.name()));
            let segment = Segment::create(path, self.next)?;
            self.next += 1;
            self.bytes += segment.size;
            queue.push_back(segment);
        }
        if let Some(segment) = queue.back_mut() {
            match segment.append(&record, count) {
                Ok(()) => self.bytes += record.length(),
                Err(error) => {
                    self.tidy(signal);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Removes the oldest until so many more bytes fit.
    fn make_room(&mut self, needed: u64, lost: &mut dyn FnMut(Lost)) {
        while self.bytes + needed > self.limit {
            let size = |queue: &VecDeque<Segment>| queue.iter().map(|s| s.size).sum::<u64>();
            let most = Signal::ALL.into_iter().max_by_key(|signal| size(&self.queues[*signal as usize]));
            let Some(signal) = most else { return };
            let Some(oldest) = self.queues[signal as usize].pop_front() else { return };
            let (left, damaged) = oldest.left();
            for (process, count) in left {
                let process = oldest.own.then_some(process);
                lost(Lost { signal, why: Dropped::SpoolFull, process, count });
            }
            if damaged > 0 {
                lost(Lost { signal, why: Dropped::SpoolDamaged, process: None, count: damaged });
            }
            self.remove(oldest);
        }
    }

    fn remove(&mut self, segment: Segment) {
        self.bytes = self.bytes.saturating_sub(segment.size);
        if let Err(error) = segment.remove() {
            tracing::debug!(%error, "a file of the spool");
        }
    }

    /// The oldest of a signal that waits and is not under way.
    pub fn take(&mut self, signal: Signal, lost: &mut dyn FnMut(Lost)) -> Option<Record> {
        for index in 0..self.queues[signal as usize].len() {
            while let Some(segment) = self.queues[signal as usize].get_mut(index) {
                match segment.take() {
                    Next::End => break,
                    Next::Damaged(count) => {
                        lost(Lost { signal, why: Dropped::SpoolDamaged, process: None, count });
                    }
                    Next::Record(at, head, bytes) => {
                        return Some(Record {
                            ticket: Ticket { signal, sequence: segment.sequence, at },
                            count: head.count.into(),
                            bytes,
                            gone: Arc::clone(&segment.gone),
                        });
                    }
                }
            }
        }
        self.tidy(signal);
        None
    }

    /// A record is not needed any more.
    pub fn done(&mut self, ticket: Ticket) {
        let Ticket { signal, sequence, at } = ticket;
        if let Some(segment) = self.queues[signal as usize].iter_mut().find(|s| s.sequence == sequence) {
            segment.done(at);
        }
        self.tidy(signal);
    }

    /// Removes files in which nothing waits any more.
    fn tidy(&mut self, signal: Signal) {
        let queue = &mut self.queues[signal as usize];
        if queue.iter().all(|s| s.records > 0) {
            return;
        }
        let (empty, rest): (Vec<_>, Vec<_>) = std::mem::take(queue).into_iter().partition(|s| s.records == 0);
        *queue = rest.into();
        empty.into_iter().for_each(|segment| self.remove(segment));
    }

    /// Spans, points or records of a signal that are not done.
    pub fn items(&self, signal: Signal) -> u64 {
        self.queues[signal as usize].iter().map(|s| s.items).sum()
    }

    /// Whether any of a signal is not done.
    pub fn holds(&self, signal: Signal) -> bool {
        self.queues[signal as usize].iter().any(|s| s.records > 0)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sees to it that the disk has all of it.
    pub fn sync(&self) {
        for segment in self.queues.iter().flatten().filter(|s| s.own) {
            if let Err(error) = segment.sync() {
                tracing::warn!("{}: {error}", self.directory.display());
            }
        }
    }
}

/// Gives a file of which nothing can be read a name that is not looked for, so that it is counted once.
fn set_aside(path: &Path, error: &io::Error) {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    match fs::rename(path, &name) {
        Ok(()) => {
            tracing::warn!("{} is set aside as {}: {error}", path.display(), Path::new(&name).display());
        }
        Err(refusal) => tracing::warn!("{} cannot be set aside: {error}; {refusal}", path.display()),
    }
}
