//! Who is at the other end of what a goroutine waits for. Looked at when the wait ends: as long as a goroutine waits for a
//! descriptor, the program cannot give its number to another one (`internal/poll.fdMutex`).

use core::ptr;

use aya_ebpf::helpers::generated;
use gotrace_common::{PEER_WORDS, SocketLayout};

use crate::{
    go_abi::read_word,
    kernel::{self, read},
    process::Process,
};

/// Where things are in the kernel's structures, by its BTF; all 0 where that is not known.
#[unsafe(no_mangle)]
static SOCKETS: SocketLayout = SocketLayout::NONE;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Of a file's mode: what it is, and that of a socket.
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// Where something is that `SOCKETS` tells.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
        u64::from(unsafe { ptr::read_volatile(&raw const SOCKETS.$field) })
    };
}

/// What a goroutine that is about to park waits on: the lock that it gave to `gopark`, `pollDesc.rg` or `.wg`; 0 where
/// that is not readable, or nobody wants to know.
#[inline(always)]
pub fn poll(process: &Process, g: u64) -> u64 {
    if offset!(task_files) == 0 || process.layout.waitlock == 0 {
        return 0;
    }
    let m = read_word(g + u64::from(process.layout.m)).unwrap_or(0);
    if m == 0 { 0 } else { read_word(m + u64::from(process.layout.waitlock)).unwrap_or(0) }
}

/// The internet socket whose `pollDesc` has `poll` within it, as a [`gotrace_common::Peer`].
#[inline(always)]
pub fn peer(process: &Process, poll: u64) -> Option<[u64; PEER_WORDS]> {
    let descriptor = |half: u16| {
        read_word((poll - u64::from(half)).wrapping_add(u64::from(process.layout.poll_fd)))
            .filter(|fd| (1..1 << 31).contains(fd))
    };
    // Where it is `rg` this one takes for a descriptor what is before `pollDesc.fd`: a pointer, or 0.
    let descriptor = match descriptor(process.layout.poll_wg) {
        Some(descriptor) => descriptor,
        None => descriptor(process.layout.poll_rg)?,
    };
    // SAFETY: the helper has no precondition.
    let task = unsafe { generated::bpf_get_current_task() };
    let table: u64 = read(kernel::follow(task, offset!(task_files)), offset!(files_table));
    if descriptor >= u64::from(read::<u32>(table, offset!(table_length))) {
        return None;
    }
    let file: u64 = read(kernel::follow(table, offset!(table_files)), 8 * descriptor);
    let mode: u16 = read(kernel::follow(file, offset!(file_inode)), offset!(inode_mode));
    if file == 0 || mode & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket = kernel::follow(kernel::follow(file, offset!(file_private)), offset!(socket_sock));
    let family: u16 = read(socket, offset!(family));
    let address = match family {
        AF_INET => [u64::from(read::<u32>(socket, offset!(address))), 0],
        AF_INET6 if offset!(address6) != 0 => read(socket, offset!(address6)),
        _ => return None,
    };
    let (port, local_port): (u16, u16) = (read(socket, offset!(port)), read(socket, offset!(local_port)));
    let state: u8 = read(socket, offset!(state));
    let first =
        u64::from(family) | u64::from(port) << 16 | u64::from(local_port) << 32 | u64::from(state) << 48;
    Some([first, address[0], address[1]])
}
