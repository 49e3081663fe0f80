//! One file of the spool: encoded requests one after the other, each behind a head with its length and
//! checksums.
//!
//! A file begins with [`MAGIC`]. A record's head is [`HEAD`] bytes, little-endian: state (`W` waits, `D`
//! done), encoding (0 as it is, 1 zlib), two bytes 0, then as `u32` the length of what follows, spans or
//! points or records in it, its CRC-32, then the process (`u64`), the length when unpacked, and the CRC-32
//! of the head behind its first byte. That byte alone is written again, when the record is done.
//! Refuses nothing: what cannot be read is told as damage, with what of it is known.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use gotrace_process::private;

/// What a file begins with. Another version would have another one.
pub(super) const MAGIC: &[u8; 8] = b"gotrace1";
/// Bytes of a record's head.
pub(super) const HEAD: u64 = 32;
/// The longest request that is believed in.
const LONGEST: u32 = 64 << 20;
/// Bytes behind a damaged place in which the next record is looked for at once.
const SEARCHED: usize = 1 << 20;

const WAITS: u8 = b'W';
const DONE: u8 = b'D';
const PLAIN: u8 = 0;
const ZLIB: u8 = 1;

/// What a record's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    waits: bool,
    encoding: u8,
    stored: u32,
    /// Spans, points or records.
    pub count: u32,
    checksum: u32,
    /// [`gotrace_model::Resource::process`] of the gotrace that wrote it.
    pub process: u64,
    unpacked: u32,
}

impl Head {
    fn write(&self) -> [u8; HEAD as usize] {
        let mut bytes = [0; HEAD as usize];
        bytes[0] = if self.waits { WAITS } else { DONE };
        bytes[1] = self.encoding;
        bytes[4..8].copy_from_slice(&self.stored.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.process.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.unpacked.to_le_bytes());
        let own = crc32fast::hash(&bytes[1..28]);
        bytes[28..32].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8; HEAD as usize]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(28) != crc32fast::hash(&bytes[1..28]) || !matches!(bytes[0], WAITS | DONE) {
            return None;
        }
        let head = Self {
            waits: bytes[0] == WAITS,
            encoding: bytes[1],
            stored: word(4),
            count: word(8),
            checksum: word(12),
            process: u64::from(word(16)) | u64::from(word(20)) << 32,
            unpacked: word(24),
        };
        (head.stored <= LONGEST && head.unpacked <= LONGEST).then_some(head)
    }

    /// Bytes of the record.
    fn length(&self) -> u64 {
        HEAD + u64::from(self.stored)
    }
}

/// A record made ready to be written.
pub(super) struct Packed(Vec<u8>);

impl Packed {
    /// Packs a request.
    ///
    /// # Errors
    /// When it is longer than any request is.
    pub fn new(process: u64, count: u64, request: &[u8]) -> io::Result<Self> {
        let length = |n: usize| {
            u32::try_from(n)
                .ok()
                .filter(|n| *n <= LONGEST)
                .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "the request is too long"))
        };
        let unpacked = length(request.len())?;
        // Spans of one program are much alike: they take a fifth of the room or less.
        let mut record = vec![0; HEAD as usize];
        let mut zlib = flate2::write::ZlibEncoder::new(record, flate2::Compression::fast());
        zlib.write_all(request)?;
        record = zlib.finish()?;
        let mut encoding = ZLIB;
        if record.len() - HEAD as usize >= request.len() {
            encoding = PLAIN;
            record.truncate(HEAD as usize);
            record.extend_from_slice(request);
        }
        let payload = &record[HEAD as usize..];
        let head = Head {
            waits: true,
            encoding,
            stored: length(payload.len())?,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            checksum: crc32fast::hash(payload),
            process,
            unpacked,
        };
        record[..HEAD as usize].copy_from_slice(&head.write());
        Ok(Self(record))
    }

    /// Bytes that it takes.
    pub fn length(&self) -> u64 {
        self.0.len() as u64
    }
}

/// What came of reading the next record.
#[derive(Debug)]
pub(super) enum Next {
    /// A request, at this place.
    Record(u64, Head, Bytes),
    /// So many spans, points or records that cannot be read.
    Damaged(u64),
    /// There is no other.
    End,
}

/// A file.
#[derive(Debug)]
pub(super) struct Segment {
    /// Where it stands among all.
    pub sequence: u64,
    /// Whether this gotrace wrote it.
    pub own: bool,
    /// Bytes.
    pub size: u64,
    /// Records that are not done, and what is in them.
    pub records: u64,
    pub items: u64,
    /// Whether it is gone, for those who have a record of it under way.
    pub gone: Arc<AtomicBool>,
    path: PathBuf,
    file: File,
    /// Where the next record to be taken begins.
    next: u64,
    /// Records that were taken and are not done: where they are, and what is in them.
    under_way: Vec<(u64, u64)>,
}

impl Segment {
    /// Makes an empty one.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: PathBuf, sequence: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all_at(MAGIC, 0) {
            // An empty file would be no harm, but where there is no room there should not be many.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(Self::with(path, file, sequence, true))
    }

    fn with(path: PathBuf, file: File, sequence: u64, own: bool) -> Self {
        let begin = MAGIC.len() as u64;
        Self {
            sequence,
            own,
            size: begin,
            records: 0,
            items: 0,
            gone: Arc::default(),
            path,
            file,
            next: begin,
            under_way: Vec::new(),
        }
    }

    /// Opens one that another gotrace left. A torn end is cut off, and what is damaged is passed over: what was lost with
    /// it, at least.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when nothing in it can be read, [`io::ErrorKind::Unsupported`] when another version
    /// wrote it; else what the system says.
    pub fn open(path: &Path, sequence: u64) -> io::Result<(Self, u64)> {
        let file = private::open(path, false)?;
        let length = file.metadata()?.len();
        let mut this = Self::with(path.to_owned(), file, sequence, false);
        let mut magic = Vec::new();
        (&this.file).take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic.len() < MAGIC.len() && MAGIC.starts_with(&magic) {
            // Nothing was written into it.
            return Ok((this, 0));
        }
        let mut lost = 0;
        if magic != MAGIC {
            if magic.starts_with(MAGIC.get(..7).unwrap_or_default()) {
                let error = "written by another version of gotrace";
                return Err(io::Error::new(io::ErrorKind::Unsupported, error));
            }
            if this.find(this.size, length)?.is_none() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "nothing in it can be read"));
            }
            // Its beginning was overwritten: what follows is here.
        }
        while this.size < length {
            let Some((at, head)) = this.find(this.size, length)? else {
                lost += 1;
                break;
            };
            // Whatever was there, it was something.
            lost += u64::from(at > this.size);
            this.size = at;
            if at + head.length() > length {
                // What it says of itself can be believed, but it is not all there.
                lost += u64::from(head.count) * u64::from(head.waits);
                break;
            }
            if head.waits {
                this.records += 1;
                this.items += u64::from(head.count);
            }
            this.size += head.length();
        }
        if this.size < length {
            this.file.set_len(this.size)?;
        }
        Ok((this, lost))
    }

    /// The record at a place of a file of this length or, where that is damaged, the next whole one behind it.
    fn find(&self, at: u64, length: u64) -> io::Result<Option<(u64, Head)>> {
        match self.head(at, length) {
            Ok(head) => return Ok(Some((at, head))),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(error),
        }
        let mut begin = at + 1;
        let mut bytes = vec![0; SEARCHED + HEAD as usize - 1];
        while begin < length {
            let end = usize::try_from(length - begin).map_or(bytes.len(), |left| left.min(bytes.len()));
            let piece = bytes.get_mut(..end).unwrap_or_default();
            self.file.read_exact_at(piece, begin)?;
            for (offset, head) in (begin..).zip(piece.array_windows::<{ HEAD as usize }>()) {
                // Most are told by their state and their reserved bytes.
                if matches!(head, [WAITS | DONE, _, 0, 0, ..])
                    && let Some(head) = Head::read(head)
                    && offset + head.length() <= length
                {
                    return Ok(Some((offset, head)));
                }
            }
            begin += SEARCHED as u64;
        }
        Ok(None)
    }

    /// The head at a place of a file of this length.
    fn head(&self, at: u64, length: u64) -> io::Result<Head> {
        let torn = || io::Error::new(io::ErrorKind::InvalidData, "torn");
        if length.saturating_sub(at) < HEAD {
            return Err(torn());
        }
        let mut bytes = [0; HEAD as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        Head::read(&bytes).ok_or_else(torn)
    }

    /// Adds a record; leaves the file as it was when that fails.
    ///
    /// # Errors
    /// What the system says.
    pub fn append(&mut self, record: &Packed, count: u64) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(&record.0, self.size) {
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += record.length();
        self.records += 1;
        self.items += count;
        Ok(())
    }

    /// Takes the next record that waits. Whoever has it says when it is [`Self::done`].
    pub fn take(&mut self) -> Next {
        while self.next < self.size {
            let found = self.find(self.next, self.size).ok().flatten();
            let at = found.as_ref().map_or(self.size, |(at, _)| *at);
            if at > self.next {
                self.next = at;
                // What was damaged when it was opened is counted; the disk has changed the rest since.
                match self.pass_over() {
                    0 => continue,
                    lost => return Next::Damaged(lost),
                }
            }
            let Some((_, head)) = found else { break };
            self.next += head.length();
            if !head.waits {
                continue;
            }
            self.under_way.push((at, head.count.into()));
            match self.payload(at, &head) {
                Ok(request) => return Next::Record(at, head, request),
                Err(error) => {
                    tracing::debug!(path = %self.path.display(), at, %error, "a record of the spool");
                    self.done(at);
                    return Next::Damaged(head.count.into());
                }
            }
        }
        Next::End
    }

    /// What is known to be there and is neither under way nor to be found behind this place is lost: how much that is.
    fn pass_over(&mut self) -> u64 {
        let (mut records, mut items) = (self.under_way.len() as u64, self.under_way_items());
        for head in self.heads(self.next).map(|(_, head)| head).filter(|head| head.waits) {
            records += 1;
            items += u64::from(head.count);
        }
        let lost = self.items.saturating_sub(items);
        (self.records, self.items) = (records, items);
        lost
    }

    fn under_way_items(&self) -> u64 {
        self.under_way.iter().map(|(_, count)| count).sum()
    }

    /// Where records begin from a place on, and their heads.
    fn heads(&self, mut at: u64) -> impl Iterator<Item = (u64, Head)> + '_ {
        std::iter::from_fn(move || {
            let (place, head) = self.find(at, self.size).ok().flatten()?;
            at = place + head.length();
            Some((place, head))
        })
    }

    fn payload(&self, at: u64, head: &Head) -> io::Result<Bytes> {
        let mut stored = vec![0; head.stored as usize];
        self.file.read_exact_at(&mut stored, at + HEAD)?;
        if crc32fast::hash(&stored) != head.checksum {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another checksum"));
        }
        if head.encoding == PLAIN {
            return Ok(stored.into());
        }
        let mut request = Vec::with_capacity(head.unpacked as usize);
        flate2::read::ZlibDecoder::new(stored.as_slice())
            .take(head.unpacked.into())
            .read_to_end(&mut request)?;
        if request.len() != head.unpacked as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another length"));
        }
        Ok(request.into())
    }

    /// The record at this place is not needed any more.
    pub fn done(&mut self, at: u64) {
        let Some(index) = self.under_way.iter().position(|(place, _)| *place == at) else { return };
        let (_, count) = self.under_way.swap_remove(index);
        self.records = self.records.saturating_sub(1);
        self.items = self.items.saturating_sub(count);
        if let Err(error) = self.file.write_all_at(&[DONE], at) {
            tracing::debug!(path = %self.path.display(), at, %error, "it will be sent again after a restart");
        }
    }

    /// What waits in it and is not under way, by process, and what of it cannot be found any more: lost when the file is
    /// removed now.
    pub fn left(&self) -> (Vec<(u64, u64)>, u64) {
        let under_way = |at: u64| self.under_way.iter().any(|(place, _)| *place == at);
        let left: Vec<(u64, u64)> = self
            .heads(MAGIC.len() as u64)
            .filter(|(at, head)| head.waits && !under_way(*at))
            .map(|(_, head)| (head.process, head.count.into()))
            .collect();
        let found: u64 = left.iter().map(|(_, count)| count).sum();
        let damaged = self.items.saturating_sub(self.under_way_items() + found);
        (left, damaged)
    }

    /// Sees to it that the disk has it.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Removes the file. What is under way is finished all the same.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(self) -> io::Result<()> {
        self.gone.store(true, Ordering::Release);
        std::fs::remove_file(&self.path)
    }
}
