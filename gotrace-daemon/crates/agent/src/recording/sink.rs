//! Where the blocks of a recording go: into a file, whole or up to a size, the newest of them, or into memory until
//! they are asked for.
//!
//! A file has whole blocks at all times, but for a crash; after an error it is cut back to them. Files are of the user
//! alone ([`private`]).

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gotrace_process::private;

use super::{Limit, MAGIC, VERSION, kind};

/// Files that one run writes of what it keeps in memory; further occasions are left out, but for the end.
const MAX_FILES: u32 = 16;

/// Takes blocks.
#[derive(Debug)]
pub(super) enum Sink {
    File(Whole),
    Newest(Newest),
    Memory(Kept),
}

impl Sink {
    /// `head`: the block that each file begins with.
    pub fn create(path: &Path, limit: Limit, head: Vec<u8>) -> io::Result<Self> {
        Ok(match limit {
            Limit::None => Self::File(Whole::create(path, &head, u64::MAX)?),
            Limit::Stop(most) => Self::File(Whole::create(path, &head, most)?),
            Limit::DropOldest(most) => Self::Newest(Newest::create(path, head, most)?),
            Limit::Keep { time, bytes } => Self::Memory(Kept::create(path, head, time, bytes)?),
        })
    }

    /// Takes a block; `false` where there is no room for it, and it was the last.
    pub fn block(&mut self, kind: u32, block: Vec<u8>) -> io::Result<bool> {
        match self {
            Self::File(file) => file.block(&block),
            Self::Newest(newest) => newest.block(kind, &block).map(|()| true),
            Self::Memory(kept) => {
                kept.take(kind, block, Instant::now());
                Ok(true)
            }
        }
    }

    /// Writes what is kept in memory, with this end.
    pub fn write_kept(&mut self, end: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(kept) if kept.files < MAX_FILES => kept.write(end),
            _ => Ok(()),
        }
    }

    /// Writes the end.
    pub fn finish(self, end: &[u8]) -> io::Result<()> {
        match self {
            Self::File(mut file) => file.write(end),
            Self::Newest(Newest { mut file, .. }) => file.write(end),
            Self::Memory(mut kept) => kept.write(end),
        }
    }
}

/// A file that grows.
#[derive(Debug)]
pub(super) struct Whole {
    file: File,
    length: u64,
    most: u64,
}

impl Whole {
    fn create(path: &Path, head: &[u8], most: u64) -> io::Result<Self> {
        let mut this = Self { file: private::create(path)?, length: 0, most };
        let mut begin = MAGIC.to_vec();
        begin.extend(VERSION.to_le_bytes());
        begin.extend(head);
        this.write(&begin)?;
        Ok(this)
    }

    fn block(&mut self, block: &[u8]) -> io::Result<bool> {
        if self.length + block.len() as u64 > self.most {
            return Ok(false);
        }
        self.write(block).map(|()| true)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).inspect_err(|_| {
            // What is no regular file cannot be cut back; a reader says where it ends.
            let _ = self.file.set_len(self.length);
        })?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// A file of which the oldest blocks are left out when it grows too large.
#[derive(Debug)]
pub(super) struct Newest {
    path: PathBuf,
    head: Vec<u8>,
    file: Whole,
    most: u64,
    /// Where blocks begin that reading can begin with.
    states: Vec<u64>,
}

impl Newest {
    fn create(path: &Path, head: Vec<u8>, most: u64) -> io::Result<Self> {
        let file = Whole::create(path, &head, u64::MAX)?;
        if !file.file.metadata()?.is_file() {
            let why = "--when-full drop-oldest needs a regular file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Self { path: path.to_owned(), head, file, most, states: Vec::new() })
    }

    fn block(&mut self, kind: u32, block: &[u8]) -> io::Result<()> {
        if kind == kind::STATE {
            self.states.push(self.file.length);
        }
        self.file.write(block)?;
        if self.file.length > self.most { self.shrink() } else { Ok(()) }
    }

    /// Writes the newest half into another file, which takes the place of this one.
    fn shrink(&mut self) -> io::Result<()> {
        let length = self.file.length;
        let from = self.states.iter().find(|from| length - **from <= self.most / 2).or(self.states.last());
        let Some(from) = from.copied().filter(|from| self.states.first() < Some(from)) else { return Ok(()) };
        let mut name = OsString::from(&self.path);
        name.push(".new");
        let mut newer = Whole::create(Path::new(&name), &self.head, u64::MAX)?;
        let moved = from - newer.length;
        // It was opened to be written only.
        let mut older = File::open(format!("/proc/self/fd/{}", self.file.file.as_raw_fd()))?;
        older.seek(SeekFrom::Start(from))?;
        newer.length += io::copy(&mut older.take(length - from), &mut newer.file)?;
        std::fs::rename(&name, &self.path)?;
        self.file = newer;
        self.states.retain(|state| *state >= from);
        self.states.iter_mut().for_each(|state| *state -= moved);
        Ok(())
    }
}

/// What is kept in memory.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    head: Vec<u8>,
    time: Duration,
    most: u64,
    blocks: VecDeque<(Instant, u32, Vec<u8>)>,
    bytes: u64,
    files: u32,
}

impl Kept {
    fn create(path: &Path, head: Vec<u8>, time: Duration, bytes: Option<u64>) -> io::Result<Self> {
        // That it cannot be made is to be said now.
        drop(Whole::create(path, &head, u64::MAX)?);
        let most = bytes.unwrap_or(u64::MAX);
        let path = path.to_owned();
        Ok(Self { path, head, time, most, blocks: VecDeque::new(), bytes: 0, files: 0 })
    }

    fn take(&mut self, kind: u32, block: Vec<u8>, now: Instant) {
        self.bytes += block.len() as u64;
        self.blocks.push_back((now, kind, block));
        // Reading begins with a state: what is in front of one goes at once.
        while let Some(next) = self.blocks.iter().skip(1).position(|(_, kind, _)| *kind == kind::STATE) {
            let next = next + 1;
            let is_old = self.blocks.get(next).is_some_and(|(at, ..)| now.duration_since(*at) >= self.time);
            if !is_old && self.bytes <= self.most {
                break;
            }
            self.bytes -= self.blocks.drain(..next).map(|(.., block)| block.len() as u64).sum::<u64>();
        }
    }

    fn write(&mut self, end: &[u8]) -> io::Result<()> {
        self.files += 1;
        let path = numbered(&self.path, self.files);
        let mut file = Whole::create(&path, &self.head, u64::MAX)?;
        for (.., block) in &self.blocks {
            file.write(block)?;
        }
        file.write(end)?;
        tracing::info!("recording written to {}", path.display());
        Ok(())
    }
}

/// `run.gtr`, `run-2.gtr`, `run-3.gtr`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let (Some(stem), 2..) = (path.file_stem(), number) else { return path.to_owned() };
    let mut name = stem.to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}
