//! Reading and writing maps in batches (Linux 5.6), which aya lacks: a system call for thousands of entries instead of
//! one or two for each.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use gotrace_common::Histogram;

use super::Error;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// Bytes of a hash map's entries that are read at once.
const BYTES: usize = 1 << 19;

/// The part of `union bpf_attr` that batch commands use (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Runs a batch command; `attr.count` is how many entries it has done, also where it fails.
///
/// # Safety
/// Keys and values must be as long as the map's, `attr.count` times, and live until it returns.
unsafe fn run(command: libc::c_long, map: BorrowedFd<'_>, attr: &mut BatchAttr) -> io::Result<()> {
    attr.map_fd = map.as_raw_fd().cast_unsigned();
    // SAFETY: `attr` is laid out as the command wants it and as long as stated; the rest is the caller's.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, mem::size_of::<BatchAttr>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn length<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}

/// Reads rows of an array of histograms, from `first` on.
pub(super) fn read_rows(array: BorrowedFd<'_>, first: u32, rows: &mut [Histogram]) -> io::Result<()> {
    let mut keys = vec![0u32; rows.len()];
    // The kernel goes on behind this one.
    let before = first.wrapping_sub(1);
    let mut last = 0u32;
    let mut attr = BatchAttr {
        in_batch: if first == 0 { 0 } else { (&raw const before) as u64 },
        out_batch: (&raw mut last) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: rows.as_mut_ptr() as u64,
        count: length(rows),
        ..BatchAttr::default()
    };
    // SAFETY: keys are indexes, values histograms, and there is room for `count` of each.
    unsafe { run(BPF_MAP_LOOKUP_BATCH, array, &mut attr) }
}

/// Writes rows of an array of histograms, from `first` on.
pub(super) fn write_rows(array: BorrowedFd<'_>, first: u32, rows: &[Histogram]) -> io::Result<()> {
    let keys: Vec<u32> = (first..).take(rows.len()).collect();
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: rows.as_ptr() as u64,
        count: length(rows),
        ..BatchAttr::default()
    };
    // SAFETY: keys are indexes and values histograms, `count` of each.
    unsafe { run(BPF_MAP_UPDATE_BATCH, array, &mut attr) }
}

/// What keys and values of a map can be read into.
pub(super) trait Entry: aya::Pod + Default {}

impl<T: aya::Pod + Default> Entry for T {}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// The part of `union bpf_attr` that commands on one element use.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Runs a command on one element; whether it was there.
///
/// # Safety
/// `value` must have room for a value of the map, where the command writes one.
unsafe fn on_one<K: Entry>(command: libc::c_long, map: BorrowedFd<'_>, key: &K, value: u64) -> bool {
    let map_fd = map.as_raw_fd().cast_unsigned();
    let attr = ElementAttr { map_fd, reserved: 0, key: std::ptr::from_ref(key) as u64, value, flags: 0 };
    // SAFETY: `attr` is laid out as the command wants it, and `key` lives until it returns; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ElementAttr>()) };
    result == 0
}

/// Takes one entry out; whether it was there.
pub(super) fn delete<K: Entry>(map: BorrowedFd<'_>, key: &K) -> bool {
    // SAFETY: nothing is written.
    unsafe { on_one(BPF_MAP_DELETE_ELEM, map, key, 0) }
}

/// The value of one entry, where it is there.
pub(super) fn lookup<K: Entry, V: Entry>(map: BorrowedFd<'_>, key: &K) -> Option<V> {
    let mut value = V::default();
    // SAFETY: the value is of the map's type.
    unsafe { on_one(BPF_MAP_LOOKUP_ELEM, map, key, (&raw mut value) as u64) }.then_some(value)
}

/// Reads a whole hash map; `what` it is, in words.
pub(super) fn for_each<K: Entry, V: Entry>(
    map: BorrowedFd<'_>,
    what: &str,
    mut f: impl FnMut(&K, &V),
) -> Result<(), Error> {
    let entries = (BYTES / (size_of::<K>() + size_of::<V>())).max(1);
    let mut keys = vec![K::default(); entries];
    let mut values = vec![V::default(); entries];
    // Where the kernel stopped: opaque, a bucket number for hash maps.
    let (mut from, mut to) = (0u64, 0u64);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { (&raw const from) as u64 },
            out_batch: (&raw mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: length(&keys),
            ..BatchAttr::default()
        };
        // SAFETY: the buffers have room for `count` entries of the map's key and value types.
        let error = unsafe { run(BPF_MAP_LOOKUP_BATCH, map, &mut attr) }.err();
        match error.as_ref().map(io::Error::raw_os_error) {
            // The end: what was found until there is valid.
            None | Some(Some(libc::ENOENT)) => {}
            // A bucket with more entries than there is room for.
            Some(Some(libc::ENOSPC)) if keys.len() < entries << 8 => {
                keys.resize(keys.len() * 2, K::default());
                values.resize(values.len() * 2, V::default());
                continue;
            }
            Some(_) => {
                let reason = error.map(|e| e.to_string()).unwrap_or_default();
                return Err(Error::Failed { what: format!("read the table of {what}"), reason });
            }
        }
        let count = attr.count as usize;
        for (key, value) in keys.iter().zip(&values).take(count) {
            f(key, value);
        }
        if error.is_some() {
            return Ok(());
        }
        from = to;
        first = false;
    }
}
