//! Memory that need not answer: mappings of files that a user process or another machine serves (FUSE, NFS, …). To read
//! a page of those that is not there yet has the kernel ask that server, without end and whatever signal comes.
//!
//! Invariants: where it is not known what a mapping's file lies on, it is held to be served; of what is served only pages
//! that are in memory are read. Input: an open `/proc/PID`. Output: whether a range may be read. Errors: none; where the
//! memory map cannot be read, or has no end, all of the memory is held to be served. A page can go, or a file be mapped,
//! between the look and the reading.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rustix::fs::{MemfdFlags, memfd_create};

use super::{
    helper::{self, Patient, Process},
    mounts::{Device, FileSystem, Mounts},
    passing::again,
    proc_text::read_maps,
    target::open_again,
};

/// How long a look at the memory map is good for.
const FRESH: Duration = Duration::from_secs(2);
/// Ranges that are told apart; what is beyond is put together with the last, and what lies between.
const MAX_RANGES: usize = 1 << 12;
/// Entries of the page map that are read at once.
const PAGES: usize = 512;

/// Bits of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// What is known of the memory of one process.
#[derive(Debug)]
pub(super) struct Resident {
    process: Process,
    looked: Mutex<Looked>,
}

#[derive(Debug, Default)]
struct Looked {
    at: Option<Instant>,
    served: Served,
    /// Whether what lies on these devices, of which there were mappings at the last look, is served.
    devices: HashMap<Device, bool>,
}

/// What is served, by address, and a page map where there is any.
#[derive(Clone, Debug, Default)]
pub(super) struct Served {
    process: Process,
    ranges: Arc<[Range<u64>]>,
    pagemap: Option<Arc<File>>,
}

impl Served {
    /// Whether reading so many bytes at an address asks nobody but the kernel.
    pub fn allows(&self, address: u64, len: usize) -> bool {
        if self.ranges.is_empty() {
            return true;
        }
        let end = address.saturating_add(len as u64);
        let first = self.ranges.partition_point(|range| range.end <= address);
        if self.ranges.get(first).is_none_or(|range| range.start >= end) {
            return true;
        }
        let in_memory = |pagemap| in_memory(self.process, pagemap, address..end).unwrap_or(false);
        self.pagemap.as_deref().is_some_and(in_memory)
    }
}

impl Resident {
    pub fn of(process: Process) -> Self {
        Self { process, looked: Mutex::default() }
    }

    /// What is served, as of [`FRESH`] ago at most.
    pub fn served(&self, directory: &OwnedFd) -> Served {
        // Whole values: a panic elsewhere leaves none half written.
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.is_none_or(|at| at.elapsed() > FRESH) {
            looked.look(self.process, directory);
            looked.at = Some(Instant::now());
        }
        looked.served.clone()
    }
}

impl Looked {
    fn look(&mut self, process: Process, directory: &OwnedFd) {
        let ranges: Arc<[Range<u64>]> = match again("maps", || self.served_ranges(process, directory)) {
            Ok(ranges) => ranges.into(),
            // Without leave nothing is read either, and of a process that is gone there is nothing.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EPERM | libc::EACCES | libc::ENOENT | libc::ESRCH)
                ) =>
            {
                Arc::default()
            }
            Err(_) => std::iter::once(0..u64::MAX).collect(),
        };
        let pagemap = if ranges.is_empty() { None } else { open(directory, "pagemap").ok().map(Arc::new) };
        self.served = Served { process, ranges, pagemap };
    }

    fn served_ranges(&mut self, process: Process, directory: &OwnedFd) -> io::Result<Vec<Range<u64>>> {
        // By address, those side by side on the same device as one.
        let mut files: Vec<(Device, Range<u64>)> = Vec::new();
        read_maps(Patient::new(process, open(directory, "maps")?), |line| {
            if line.inode == 0 && line.device == (0, 0) {
                return;
            }
            let full = files.len() >= MAX_RANGES;
            match files.last_mut() {
                Some((device, last)) if *device == line.device && last.end == line.range.start => {
                    last.end = line.range.end;
                }
                // Of no device: of any.
                Some((device, last)) if full => (*device, last.end) = (UNKNOWN, line.range.end),
                _ => files.push((line.device, line.range.clone())),
            }
        })?;
        let mut known = std::mem::take(&mut self.devices);
        known.retain(|device, _| files.iter().any(|(of, _)| of == device));
        let mut mounts = None;
        for (device, _) in &files {
            if !known.contains_key(device) {
                let mounts = mounts.get_or_insert_with(|| Mounts::of(Some(directory)));
                known.insert(*device, is_served(mounts, *device));
            }
        }
        self.devices = known;
        let served = |device: &Device| self.devices.get(device).is_none_or(|served| *served);
        Ok(files.into_iter().filter(|(device, _)| served(device)).map(|(_, range)| range).collect())
    }
}

const UNKNOWN: Device = (u32::MAX, u32::MAX);

/// Whether what lies on the device is served, or it is not known what it is.
fn is_served(mounts: &Mounts<'_>, device: Device) -> bool {
    if Some(device) == shared_memory() {
        return false;
    }
    !matches!(mounts.device(device), Some(FileSystem::Local | FileSystem::Overlay))
}

/// The device of memory that is shared by descriptor, by key, or with children, and lies on no mount.
fn shared_memory() -> Option<Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let of_new = || Ok(File::from(memfd_create("gotrace", MemfdFlags::CLOEXEC)?).metadata()?.dev());
        let device = again("a file in memory", of_new).ok()?;
        Some((rustix::fs::major(device), rustix::fs::minor(device)))
    })
}

/// Whether all pages of the range are there, or can be had back without asking anybody.
fn in_memory(process: Process, pagemap: &File, range: Range<u64>) -> io::Result<bool> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let (mut next, end) = (range.start / page, range.end.div_ceil(page));
    let mut bytes = [0; PAGES * 8];
    while next < end {
        let count = usize::try_from(end - next).unwrap_or(PAGES).min(PAGES);
        let entries = bytes.get_mut(..count * 8).unwrap_or_default();
        if helper::read_file(process, pagemap, Some(next.saturating_mul(8)), entries)? != entries.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = entries
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .all(|entry| entry & PRESENT != 0 || (entry & SWAPPED != 0 && entry & OF_FILE == 0));
        if !there {
            return Ok(false);
        }
        next += count as u64;
    }
    Ok(true)
}

fn open(directory: impl AsFd, name: &str) -> io::Result<File> {
    open_again(directory, name)
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    use super::*;
    use crate::Target;

    #[test]
    fn nothing_of_this_process_is_held_to_be_served() {
        let target = Target::open(std::process::id()).expect("this process lives");
        let mut looked = Looked::default();
        looked.look(target.process(), &target.directory);
        let served = &looked.served;
        let own_code = nothing_of_this_process_is_held_to_be_served as fn() as usize as u64;
        assert!(served.allows(own_code, 16), "{:?} {:?}", looked.devices, served.ranges);
    }

    #[test]
    fn of_what_is_served_only_what_is_in_memory_is_read() {
        let target = Target::open(std::process::id()).expect("this process lives");
        let pagemap = Some(Arc::new(open(&target.directory, "pagemap").expect("its own")));
        let page = rustix::param::page_size();
        // SAFETY: a new mapping, which nothing else refers to.
        let memory = unsafe {
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            mmap_anonymous(std::ptr::null_mut(), 60 * page, protection, flags).expect("mapped")
        };
        let first = memory as u64;
        let all = first..first + 60 * page as u64;
        let served =
            Served { process: target.process(), ranges: Arc::from([0x1000..0x2000, all.clone()]), pagemap };
        assert!(served.allows(0x2000, 0x1000), "it is not served");
        assert!(!served.allows(0x1ff8, 16), "not there, and half of it served");
        assert!(!served.allows(all.start, 60 * page), "never touched");
        // SAFETY: within the mapping, which can be written.
        unsafe { memory.cast::<u8>().add(3 * page).write_volatile(1) };
        let at = first + 3 * page as u64;
        assert!(served.allows(at, page));
        assert!(!served.allows(at, page + 1) || !served.allows(at - 1, 2));
    }

    #[test]
    fn what_lies_on_no_known_device_is_held_to_be_served() {
        let mounts = Mounts::of(None);
        assert!(is_served(&mounts, UNKNOWN));
        assert!(!is_served(&mounts, shared_memory().expect("Linux 3.17")));
    }
}
