//! Writes a recording while tracing goes on.
//!
//! The pipeline's thread encodes inputs into a block; a thread of its own packs blocks and gives them to where they go
//! ([`super::sink`]), at least each second. Nothing waits for the disk: where it cannot follow, or says no, the
//! recording ends with what was written so far, that is said once, and tracing goes on.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, write::DeflateEncoder};

use super::{BLOCK_HEAD, End, Head, MAX_BLOCK, kind, sink::Sink};
use crate::tracee::Input;

/// Bytes of a block before it is packed, from which on it goes.
const BLOCK: usize = 256 << 10;
/// And how long an input waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of blocks that may wait to be packed and written.
const QUEUED: u64 = 64 << 20;
/// Room for what is kept in memory, where nothing else is said.
const KEPT: u64 = 256 << 20;
/// A state is put into the recording so often within what is kept.
const STATES: u32 = 4;

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// Everything.
    #[default]
    None,
    /// The first so many bytes.
    Stop(u64),
    /// The last so many bytes.
    DropOldest(u64),
    /// So much of the time until now, in memory; written when it is asked for, on findings, and at the end.
    Keep {
        /// How long.
        time: Duration,
        /// Bytes of memory that it may take; `None` for 256 MiB.
        bytes: Option<u64>,
    },
}

/// Why a recording is not complete.
#[derive(Debug, thiserror::Error)]
#[error("cannot record to {path}: {error}")]
pub struct RecordingError {
    /// The file.
    pub path: String,
    /// What went wrong.
    pub error: std::io::Error,
}

/// Records what reaches tracees. Clones record into the same file.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    limit: Limit,
    /// Whether it still takes anything.
    open: AtomicBool,
    /// Bytes that were given to the sink since a state was last put in.
    since_state: AtomicU64,
    /// Bytes of blocks that wait to be packed and written.
    queued: AtomicU64,
    /// What it is to be written for, where what is kept is in memory.
    asked: [AtomicBool; 2],
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    block: Vec<u8>,
    kind: u32,
    /// When the first input of the block came.
    begun: Option<Instant>,
    /// When a state was last put in.
    state: Instant,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

#[derive(Debug)]
enum Order {
    Block(u32, Vec<u8>),
    Write(&'static str),
}

/// What it can be asked to be written for.
const ASKED: [&str; 2] = ["signal", "finding"];

impl Recorder {
    /// Makes the file, where there is to be one at once.
    ///
    /// # Errors
    /// When it cannot be made, or the system gives no thread.
    pub fn create(path: &Path, head: &Head, limit: Limit) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError { path: path.display().to_string(), error };
        let json = serde_json::to_vec(head).map_err(|error| failed(error.into()))?;
        let sink = frame(kind::HEAD, &json).and_then(|head| Sink::create(path, limit.with_defaults(), head));
        let sink = sink.map_err(failed)?;
        let (orders, taken) = channel();
        let inner = Inner {
            block: Vec::new(),
            kind: kind::STATE,
            begun: None,
            state: Instant::now(),
            orders: Some(orders),
            thread: None,
        };
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            limit: limit.with_defaults(),
            open: AtomicBool::new(true),
            since_state: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            asked: Default::default(),
            inner: Mutex::new(inner),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("gotrace-record".into())
                .spawn(move || write_all(&shared, sink, &taken))
                .map_err(failed)?
        };
        let this = Self(shared);
        this.inner().thread = Some(thread);
        Ok(this)
    }

    /// Records an input of the tracee with this number.
    pub fn write(&self, number: u32, input: &Input<'_>) {
        if !self.0.open.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.inner();
        let before = inner.block.len();
        let written = postcard::to_io(&(number, input), &mut inner.block).is_ok();
        if !written || inner.block.len() > MAX_BLOCK {
            inner.block.truncate(before);
            self.end("an input is too large");
            return;
        }
        inner.begun.get_or_insert_with(Instant::now);
        if inner.block.len() >= BLOCK {
            self.send(&mut inner);
        }
    }

    /// Whether the state of all tracees is to be recorded now: what comes before may be thrown away.
    pub(crate) fn wants_state(&self, now: Instant) -> bool {
        let mut inner = self.inner();
        let age = now.duration_since(inner.state);
        let bytes = self.0.since_state.load(Ordering::Relaxed);
        let wants = match self.0.limit {
            Limit::None | Limit::Stop(_) => false,
            Limit::DropOldest(most) => bytes >= most / u64::from(2 * STATES),
            Limit::Keep { time, bytes: most } => {
                age >= (time / STATES).max(LINGER)
                    || bytes >= most.unwrap_or(KEPT) / u64::from(2 * STATES) && age >= LINGER
            }
        };
        if wants {
            self.send(&mut inner);
            inner.kind = kind::STATE;
            inner.state = now;
            self.0.since_state.store(0, Ordering::Relaxed);
        }
        wants
    }

    /// Has written what has waited long enough, and what was asked for.
    pub(crate) fn tend(&self, now: Instant) {
        let asked = ASKED.iter().zip(&self.0.asked).find(|(_, asked)| asked.swap(false, Ordering::Relaxed));
        let mut inner = self.inner();
        if asked.is_some() || inner.begun.is_some_and(|begun| now.duration_since(begun) >= LINGER) {
            self.send(&mut inner);
        }
        if let (Some((why, _)), Some(orders)) = (asked, &inner.orders) {
            // Refused where the thread has ended, which is said elsewhere.
            let _ = orders.send(Order::Write(why));
        }
    }

    /// What is kept in memory is to be written soon; nothing otherwise.
    pub fn ask(&self) {
        self.0.asked[0].store(true, Ordering::Relaxed);
    }

    /// Something was found: as [`Self::ask`].
    pub(crate) fn note_finding(&self) {
        self.0.asked[1].store(true, Ordering::Relaxed);
    }

    /// Waits until what was given to the thread is written.
    #[cfg(test)]
    pub fn settle(&self) {
        while self.0.queued.load(Ordering::Acquire) > 0 && self.0.open.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }

    /// Writes what is left and ends.
    ///
    /// # Errors
    /// When anything is missing.
    pub fn finish(&self) -> Result<(), RecordingError> {
        let thread = {
            let mut inner = self.inner();
            self.send(&mut inner);
            inner.orders = None;
            inner.thread.take()
        };
        let failed = |error| RecordingError { path: self.0.path.display().to_string(), error };
        match thread.map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(failed(error)),
            Some(Err(_)) => Err(failed(std::io::Error::other("the writer thread panicked"))),
        }
    }

    fn send(&self, inner: &mut MutexGuard<'_, Inner>) {
        if inner.begun.take().is_none() {
            return;
        }
        let block = std::mem::replace(&mut inner.block, Vec::with_capacity(BLOCK + (BLOCK >> 3)));
        let kind = std::mem::replace(&mut inner.kind, kind::INPUTS);
        let Some(orders) = &inner.orders else { return };
        let bytes = block.len() as u64;
        if self.0.queued.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUED {
            self.end("the disk is too slow");
            // What waits is written, and nothing behind the gap.
            inner.orders = None;
            return;
        }
        // Refused where the thread has ended, which is said elsewhere.
        let _ = orders.send(Order::Block(kind, block));
    }

    fn end(&self, why: &str) {
        if self.0.open.swap(false, Ordering::Relaxed) {
            let path = self.0.path.display();
            tracing::error!("recording {path} stopped, tracing continues: {why}");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves whole inputs, as what was written by half is cut off.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limit {
    fn with_defaults(self) -> Self {
        match self {
            Self::Keep { time, bytes } => Self::Keep { time, bytes: Some(bytes.unwrap_or(KEPT)) },
            other => other,
        }
    }
}

impl Head {
    /// Of a run that begins now, on this host.
    #[must_use]
    pub fn now(configuration: std::collections::BTreeMap<String, String>) -> Self {
        let name = rustix::system::uname();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            gotrace: env!("CARGO_PKG_VERSION").into(),
            created_unix_nano: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            kernel: name.release().to_string_lossy().into_owned(),
            architecture: name.machine().to_string_lossy().into_owned(),
            configuration,
            ..Self::default()
        }
    }
}

/// The recorder's thread.
fn write_all(shared: &Shared, mut sink: Sink, orders: &Receiver<Order>) -> std::io::Result<()> {
    let mut end = "ended";
    let result = loop {
        let done = match orders.recv() {
            Err(_) => break Ok(()),
            Ok(Order::Block(kind, bytes)) => {
                let done = frame(kind, &bytes).and_then(|frame| {
                    shared.since_state.fetch_add(frame.len() as u64, Ordering::Relaxed);
                    sink.block(kind, frame)
                });
                shared.queued.fetch_sub(bytes.len() as u64, Ordering::Release);
                done
            }
            Ok(Order::Write(why)) => sink.write_kept(&end_frame(why)?).map(|()| true),
        };
        match done {
            Ok(true) => {}
            Ok(false) => {
                shared.open.store(false, Ordering::Relaxed);
                tracing::warn!(
                    "recording {} stopped at --max-size, tracing continues",
                    shared.path.display()
                );
                end = "max_size";
                break Ok(());
            }
            Err(error) => break Err(error),
        }
    };
    let cut_off = !shared.open.swap(false, Ordering::Relaxed) && end == "ended";
    match result.and_then(|()| if cut_off { Err(std::io::Error::other("it stopped early")) } else { Ok(()) })
    {
        Ok(()) => sink.finish(&end_frame(end)?),
        Err(error) => {
            tracing::error!("recording {} stopped, tracing continues: {error}", shared.path.display());
            Err(error)
        }
    }
}

fn end_frame(why: &str) -> std::io::Result<Vec<u8>> {
    frame(kind::END, &serde_json::to_vec(&End { why: why.into() })?)
}

/// A block as it stands in the file.
pub(super) fn frame(kind: u32, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packer = DeflateEncoder::new(vec![0; BLOCK_HEAD], Compression::fast());
    packer.write_all(bytes)?;
    let mut frame = packer.finish()?;
    let length = |n: usize| u32::try_from(n).map_err(|_| std::io::Error::other("a block is too large"));
    let (packed, unpacked) = (length(frame.len() - BLOCK_HEAD)?, length(bytes.len())?);
    for (offset, word) in [(0, kind), (4, packed), (8, unpacked)] {
        frame[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..12]);
    crc.update(&frame[BLOCK_HEAD..]);
    frame[12..BLOCK_HEAD].copy_from_slice(&crc.finalize().to_le_bytes());
    Ok(frame)
}
