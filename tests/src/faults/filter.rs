//! Which system calls stop for the tracer: a filter for seccomp(2), which a process puts on itself and on all that it
//! starts.
//!
//! Needs CAP_SYS_ADMIN, so that `no_new_privs` stays as it was.

use std::io;

use syscalls::Sysno;

/// Calls that are never made to fail, and why. Beside these, all calls from within the allocator
/// ([`super::place::OUTSIDE`]).
pub const LEFT_OUT: [(Sysno, &str); 25] = [
    (Sysno::brk, "the allocator's"),
    (Sysno::mremap, "the allocator's"),
    (Sysno::futex, "locks: none of these errors is one of its own, and the standard library aborts"),
    (Sysno::rt_sigaction, "cannot fail so"),
    (Sysno::rt_sigprocmask, "cannot fail so"),
    (Sysno::rt_sigreturn, "returns to no caller"),
    (Sysno::sigaltstack, "cannot fail so"),
    (Sysno::exit, "does not return"),
    (Sysno::exit_group, "does not return"),
    (Sysno::restart_syscall, "the kernel's own"),
    (Sysno::set_tid_address, "the C library's, at the start of a process; cannot fail"),
    (Sysno::set_robust_list, "the C library's, at the start of a thread; cannot fail so"),
    (Sysno::rseq, "the C library's, at the start of a thread; cannot fail so, and it aborts"),
    (Sysno::clock_nanosleep, "cannot fail so, and the standard library aborts"),
    (Sysno::nanosleep, "cannot fail so, and the standard library aborts"),
    (Sysno::clock_gettime, "cannot fail so"),
    (Sysno::sched_yield, "cannot fail"),
    (Sysno::getpid, "cannot fail"),
    (Sysno::gettid, "cannot fail"),
    (Sysno::getuid, "cannot fail"),
    (Sysno::geteuid, "cannot fail"),
    (Sysno::uname, "cannot fail so, and rustix panics"),
    (Sysno::prlimit64, "cannot fail so, and rustix panics"),
    (Sysno::getrandom, "cannot fail so once a host has booted, and the standard library panics"),
    #[cfg(target_arch = "x86_64")]
    (Sysno::arch_prctl, "the C library's, at the start of a process; cannot fail so"),
    #[cfg(not(target_arch = "x86_64"))]
    (Sysno::getppid, "cannot fail"),
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

// Of <linux/bpf_common.h>.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Has this process stop for its tracer before each call that is not left out, or only before those of one number.
///
/// # Errors
/// Where the kernel does not take the filter.
pub fn install(only: Option<u32>) -> io::Result<()> {
    let code = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let (allow, trace) =
        (code(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0), code(RETURN, libc::SECCOMP_RET_TRACE, 0, 0));
    // Offsets are those of `struct seccomp_data`: the number, then the architecture.
    let mut program =
        vec![code(LOAD, 4, 0, 0), code(JUMP_EQUAL, ARCHITECTURE, 1, 0), allow, code(LOAD, 0, 0, 0)];
    if let Some(only) = only {
        program.extend([code(JUMP_EQUAL, only, 1, 0), allow]);
    } else {
        for (call, _) in LEFT_OUT {
            program.extend([code(JUMP_EQUAL, call as u32, 0, 1), allow]);
        }
    }
    program.push(trace);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program outlives the call, and has as many instructions as it says.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
