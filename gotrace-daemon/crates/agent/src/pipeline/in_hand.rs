//! Which processes gotrace is just looking at, written down where the next gotrace finds it: a process over which gotrace
//! died three times is left alone.
//!
//! Dying is being killed, by the kernel for want of memory or by whoever found that it hung, with the process in hand; a
//! panic is no death. Input: processes that are taken in hand, and put down. Output: whether one is to be left alone.
//! Invariants: a file of [`SIZE`] bytes; what it says of another boot is forgotten; where it cannot be had, or another
//! gotrace has it, nothing is left alone. Of several in hand the guilty one is not known: all are counted, for
//! [`REMEMBERED`].

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use gotrace_process::private;
use rustix::fs::{FlockOperation, flock};

/// A pid, and its start in clock ticks since boot.
pub(super) type Process = (u32, u64);

/// Deaths after which a process is left alone.
const TOO_MANY: u32 = 3;
/// How long a death counts.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Processes in hand at once, and processes over which gotrace died, that are written down.
const IN_HAND: usize = 32;
const REMEMBER: usize = 256;

const MAGIC: [u8; 16] = *b"gotrace.inhand/1";
const BOOT_ID: usize = 36;
const HELD_AT: usize = 64;
const ENTRY: usize = 24;
const DEATHS_AT: usize = HELD_AT + IN_HAND * ENTRY;
const SIZE: usize = DEATHS_AT + REMEMBER * ENTRY;
const NAME: &str = "in-hand";

/// Where it is written down. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InHand(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    held: Mutex<[bool; IN_HAND]>,
    deaths: Vec<Entry>,
}

/// A process; how often gotrace has died over it, and when it did so last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    process: Process,
    deaths: u32,
    unix_seconds: u64,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..4].copy_from_slice(&self.process.0.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.deaths.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.process.1.to_le_bytes());
        bytes[16..].copy_from_slice(&self.unix_seconds.to_le_bytes());
        bytes
    }

    /// `None` where nothing is written.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (pid, rest) = bytes.split_first_chunk()?;
        let (deaths, rest) = rest.split_first_chunk()?;
        let (start, rest) = rest.split_first_chunk()?;
        let (seconds, _) = rest.split_first_chunk()?;
        let process = (u32::from_le_bytes(*pid), u64::from_le_bytes(*start));
        let (deaths, unix_seconds) = (u32::from_le_bytes(*deaths), u64::from_le_bytes(*seconds));
        (process.0 != 0).then_some(Self { process, deaths, unix_seconds })
    }
}

impl InHand {
    /// Takes up what the last gotrace has left in this directory, which is made where there is none.
    ///
    /// # Errors
    /// What the system answers; a directory that is not gotrace's own; another gotrace that has it.
    pub fn open(directory: &Path) -> io::Result<Self> {
        private::directory(directory)?;
        let file = private::open(&directory.join(NAME), true)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self::take_up(file, boot_id.trim(), now)
    }

    fn take_up(file: File, boot_id: &str, unix_seconds: u64) -> io::Result<Self> {
        let mut head = [0; HELD_AT];
        head[..MAGIC.len()].copy_from_slice(&MAGIC);
        let boot = boot_id.as_bytes().get(..BOOT_ID).unwrap_or_default();
        head[MAGIC.len()..MAGIC.len() + boot.len()].copy_from_slice(boot);
        let mut bytes = vec![0; SIZE];
        let left = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => bytes.starts_with(&head),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(error),
        };
        let entries = |bytes: &[u8]| -> Vec<Entry> {
            if left { bytes.chunks_exact(ENTRY).filter_map(Entry::from_bytes).collect() } else { Vec::new() }
        };
        let mut deaths = entries(&bytes[DEATHS_AT..]);
        deaths.retain(|entry| unix_seconds.saturating_sub(entry.unix_seconds) < REMEMBERED.as_secs());
        let mut held: Vec<Process> = entries(&bytes[HELD_AT..DEATHS_AT]).iter().map(|e| e.process).collect();
        // Two threads may have had one in hand.
        held.sort_unstable();
        held.dedup();
        for process in held {
            match deaths.iter_mut().find(|entry| entry.process == process) {
                Some(entry) => (entry.deaths, entry.unix_seconds) = (entry.deaths + 1, unix_seconds),
                None => deaths.push(Entry { process, deaths: 1, unix_seconds }),
            }
        }
        // The youngest are kept.
        deaths.sort_by_key(|entry| std::cmp::Reverse(entry.unix_seconds));
        deaths.truncate(REMEMBER);
        let mut bytes = vec![0; SIZE];
        bytes[..HELD_AT].copy_from_slice(&head);
        for (to, entry) in bytes[DEATHS_AT..].chunks_exact_mut(ENTRY).zip(&deaths) {
            to.copy_from_slice(&entry.to_bytes());
        }
        file.write_all_at(&bytes, 0)?;
        Ok(Self(Some(Arc::new(Inner { file, held: Mutex::default(), deaths }))))
    }

    /// Whether gotrace died over it too often.
    #[must_use]
    pub(super) fn leaves_alone(&self, process: Process) -> bool {
        let Self(inner) = self;
        let deaths = inner.as_ref().map_or(&[][..], |inner| &inner.deaths);
        deaths.iter().any(|entry| entry.process == process && entry.deaths >= TOO_MANY)
    }

    /// It is being looked at, until what is given back is dropped.
    #[must_use]
    pub(super) fn take(&self, process: Process) -> Held {
        let taken = self.0.as_ref().and_then(|inner| {
            let mut held = inner.held.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = held.iter().position(|held| !held)?;
            held[slot] = true;
            drop(held);
            inner.write(slot, Entry { process, deaths: 0, unix_seconds: 0 }.to_bytes());
            Some((Arc::clone(inner), slot))
        });
        Held(taken)
    }
}

impl Inner {
    fn write(&self, slot: usize, bytes: [u8; ENTRY]) {
        // A full disk takes no more than that a death is not counted: the file has all its bytes from the beginning.
        let _ = self.file.write_all_at(&bytes, (HELD_AT + slot * ENTRY) as u64);
    }
}

/// A process is in hand.
#[derive(Debug)]
pub(super) struct Held(Option<(Arc<Inner>, usize)>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((inner, slot)) = self.0.take() {
            inner.write(slot, [0; ENTRY]);
            if let Some(held) = inner.held.lock().unwrap_or_else(PoisonError::into_inner).get_mut(slot) {
                *held = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "0f1e2d3c-0000-4000-8000-000000000000";
    const GUILTY: Process = (4711, 123_456);
    const INNOCENT: Process = (4712, 123_457);

    #[test]
    fn a_process_over_which_gotrace_died_three_times_is_left_alone() {
        let file = tempfile::tempfile().expect("a file");
        let start = |boot: &str, at: u64| {
            InHand::take_up(file.try_clone().expect("a descriptor"), boot, at).expect("readable")
        };
        for life in 0..4 {
            let in_hand = start(BOOT, 1000 + life);
            assert_eq!(in_hand.leaves_alone(GUILTY), life == 3, "{life}");
            assert!(!in_hand.leaves_alone(INNOCENT));
            drop(in_hand.take(INNOCENT));
            // It is killed: nothing is put down.
            std::mem::forget((in_hand.take(GUILTY), in_hand.take(GUILTY)));
        }
        let next_day = 1000 + REMEMBERED.as_secs() + 60;
        assert!(!start("another", 1004).leaves_alone(GUILTY), "pids are others after a boot");
        let in_hand = start(BOOT, next_day);
        assert!(!in_hand.leaves_alone(GUILTY), "{in_hand:?}");
    }

    #[test]
    fn a_file_that_is_none_is_begun_anew_and_there_is_room_for_some_only() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[0xff; 5000], 0).expect("written");
        let start = |at: u64| InHand::take_up(file.try_clone().expect("a descriptor"), BOOT, at);
        let in_hand = start(5).expect("readable");
        assert!(!in_hand.leaves_alone((u32::MAX, u64::MAX)));
        let all: Vec<Held> = (1..100).map(|pid| in_hand.take((pid, 1))).collect();
        assert_eq!(all.iter().filter(|held| held.0.is_some()).count(), IN_HAND);
        drop(all);
        assert!(in_hand.take(GUILTY).0.is_some());
        let next = start(6).expect("readable");
        let Some(inner) = &next.0 else { panic!("there is none") };
        assert_eq!(inner.deaths, []);
        assert!(InHand::default().take(GUILTY).0.is_none());
    }
}
