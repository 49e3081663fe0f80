//! Commands of bpf(2) that aya lacks: kprobe programs loaded for another kind of attachment, and links of
//! many uprobes (`BPF_TRACE_UPROBE_MULTI`, Linux 6.6). Layouts are those of the kernel's
//! `include/uapi/linux/bpf.h`; what is not given is 0, and the kernel takes it so.
//!
//! Nothing here decides: instructions, paths and offsets come from [`super::multi`] and [`super::way`],
//! descriptors and the kernel's errors go back.

use std::{
    ffi::CStr,
    io,
    num::NonZeroU32,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use super::error::{again, is_passing};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;

/// Bytes for what the verifier says. A kernel since 6.4 keeps the end of it, which is what counts.
const VERIFIER_LOG: usize = 1 << 20;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

const _: () = {
    assert!(size_of::<MapElement>() == 32);
    assert!(size_of::<ProgramLoad>() == 72);
    assert!(size_of::<LinkCreate>() == 64);
};

/// An instruction of a program: `struct bpf_insn`, in the order of a little-endian machine.
pub(super) fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_ne_bytes([code, source << 4 | destination, low, high, a, b, c, d])
}

/// Runs a command; what it returns. It is run again where the kernel gives up ([`again`]).
///
/// # Safety
/// `A` must be laid out as the command wants it, and every address in it must be good for what the
/// command does there, until it returns.
unsafe fn bpf<A>(command: libc::c_long, attributes: &A) -> io::Result<libc::c_long> {
    again(|| {
        // SAFETY: the kernel reads as many bytes as it is told; the caller answers for what they mean.
        match unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<A>()) } {
            result @ 0.. => Ok(result),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// As [`bpf`], for commands that return a new descriptor.
///
/// # Safety
/// As [`bpf`].
unsafe fn bpf_fd<A>(command: libc::c_long, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { bpf(command, attributes)? };
    let fd = i32::try_from(fd).map_err(|_| io::Error::other("bpf(2) returned no descriptor"))?;
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn length<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}

/// Makes an array of one number.
pub(super) fn one_number() -> io::Result<OwnedFd> {
    let attributes = MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size: 8, max_entries: 1 };
    // SAFETY: laid out as BPF_MAP_CREATE wants it; there are no addresses in it.
    unsafe { bpf_fd(BPF_MAP_CREATE, &attributes) }
}

/// The number in an array that [`one_number`] made.
pub(super) fn read_number(map: BorrowedFd<'_>) -> io::Result<u64> {
    let (key, mut value) = (0u32, 0u64);
    let attributes = MapElement {
        map_fd: number(map),
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..MapElement::default()
    };
    // SAFETY: laid out as BPF_MAP_LOOKUP_ELEM wants it; key and value are as long as the map's and live
    // until it returns.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attributes)? };
    Ok(value)
}

/// Why a program could not be loaded, and what the verifier said; nothing where it was not asked.
pub(super) struct Refused {
    pub error: io::Error,
    pub log: String,
}

/// Loads a program for links of many uprobes. The kernel keeps the first 15 bytes of its name.
pub(super) fn load_for_multi(name: &str, instructions: &[u64], license: &CStr) -> Result<OwnedFd, Refused> {
    let mut attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: length(instructions),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        ..ProgramLoad::default()
    };
    // The last byte stays 0.
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: laid out as BPF_PROG_LOAD wants it; instructions and license live until it returns.
    let error = match unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    if is_passing(&error) {
        return Err(Refused { error, log: String::new() });
    }
    // Once more, for the verifier's reasons.
    let mut log = vec![0u8; VERIFIER_LOG];
    attributes.log_level = 1;
    attributes.log_size = length(&log);
    attributes.log_buffer = log.as_mut_ptr() as u64;
    // SAFETY: as above; the log has room for as many bytes as stated.
    match unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) } {
        Ok(program) => Ok(program),
        Err(_) => {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            log.truncate(end);
            Err(Refused { error, log: String::from_utf8_lossy(&log).into_owned() })
        }
    }
}

/// Runs a program at places of a file, given by offset and cookie: in one process, whichever of its threads, or in all that run it.
/// `pid` is a thread group id in this program's PID namespace. The link, and with it the probes, goes with
/// its descriptor; closing it waits until nobody runs the program any more.
pub(super) fn link_multi(
    program: BorrowedFd<'_>,
    file: &CStr,
    places: &[(u64, u64)],
    pid: Option<NonZeroU32>,
) -> io::Result<OwnedFd> {
    let (offsets, cookies): (Vec<u64>, Vec<u64>) = places.iter().copied().unzip();
    let attributes = LinkCreate {
        program_fd: number(program),
        attach_type: BPF_TRACE_UPROBE_MULTI,
        path: file.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        cookies: cookies.as_ptr() as u64,
        count: length(places),
        pid: pid.map_or(0, NonZeroU32::get),
        ..LinkCreate::default()
    };
    // SAFETY: laid out as BPF_LINK_CREATE wants it for this type; path, offsets and cookies live until it
    // returns, the latter with `count` entries each.
    unsafe { bpf_fd(BPF_LINK_CREATE, &attributes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        let bytes = instruction(0x18, 1, 2, -2, 0x0403_0201).to_ne_bytes();
        assert_eq!(bytes, [0x18, 0x21, 0xfe, 0xff, 1, 2, 3, 4]);
    }

    #[test]
    fn live_a_program_that_is_refused_comes_with_the_verifiers_reasons() {
        if !rustix::process::geteuid().is_root() {
            crate::not_tested("what the verifier says");
            return;
        }
        // It ends without a result.
        let program = [instruction(0x95, 0, 0, 0, 0)];
        let refused = load_for_multi("no_result", &program, c"GPL").expect_err("refused");
        let said = Error::refused("load the program no_result", &refused.error, &refused.log).to_string();
        assert!(said.starts_with("cannot load the program no_result: Permission denied"), "{said}");
        assert!(said.contains("verifier log:\n") && said.contains("R0 !read_ok"), "{said}");
    }
}
