//! Reading a hash map in batches (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya lacks: a system call
//! for thousands of entries instead of two for each.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use gotrace_common::{GoroutineKey, GoroutineState};

use super::Error;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const ENTRIES: usize = 4096;

/// The part of `union bpf_attr` that batch commands use (include/uapi/linux/bpf.h).
#[repr(C)]
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

/// Takes one entry out; whether it was there.
pub(super) fn delete(map: BorrowedFd<'_>, key: &GoroutineKey) -> bool {
    let attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: `attr` is laid out as the command wants it, and `key` lives until it returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_DELETE_ELEM, &raw const attr, size_of::<ElementAttr>())
    };
    result == 0
}

pub(super) fn for_each(
    map: BorrowedFd<'_>,
    mut f: impl FnMut(&GoroutineKey, &GoroutineState),
) -> Result<(), Error> {
    let fd = map.as_raw_fd();
    let mut keys = vec![GoroutineKey::default(); ENTRIES];
    let mut values = vec![GoroutineState::default(); ENTRIES];
    // Where the kernel stopped: opaque, a bucket number for hash maps.
    let (mut from, mut to) = (0u64, 0u64);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { (&raw const from) as u64 },
            out_batch: (&raw mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            #[expect(clippy::cast_sign_loss, reason = "an open descriptor is not negative")]
            map_fd: fd as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `attr` is as long as stated; the buffers have room for `count` entries of the map's
        // key and value types and live until after the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, mem::size_of::<BatchAttr>())
        };
        let error = (result != 0).then(io::Error::last_os_error);
        match error.as_ref().map(io::Error::raw_os_error) {
            // The end: what was found until there is valid.
            None | Some(Some(libc::ENOENT)) => {}
            // A bucket with more entries than there is room for.
            Some(Some(libc::ENOSPC)) if keys.len() < ENTRIES << 8 => {
                keys.resize(keys.len() * 2, GoroutineKey::default());
                values.resize(values.len() * 2, GoroutineState::default());
                continue;
            }
            Some(_) => {
                let reason = error.map(|e| e.to_string()).unwrap_or_default();
                return Err(Error::Failed { what: "read the table of parked goroutines".into(), reason });
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
