//! gotrace's kernel side: small programs on probes in the Go runtime.
//!
//! A probe reads what it needs of the runtime's `g`, pairs beginnings with ends in `GOROUTINES`, and
//! sends records into the ring `EVENTS`. It trusts nothing that user space did not tell it through
//! `PROCESSES`: a process that has no entry there costs one lookup. It never writes to the traced
//! process. What cannot be sent or read is counted in `COUNTERS`.
//!
//! A program may be preempted by another task's run of the same program (uprobe programs run with
//! migration off but preemption on), so there is no per-CPU scratch memory, and all counters are
//! added to atomically.
#![no_std]
#![no_main]
// Atomic additions are written in assembly: see `process`.
#![feature(asm_experimental_arch)]

mod diagnostics;
mod emit;
mod go_abi;
mod kernel;
mod maps;
mod process;
mod probes {
    pub mod account;
    pub mod children;
    pub mod collector;
    pub mod coroutine;
    pub mod cpu;
    pub mod dispatch;
    pub mod function;
    pub mod grpc;
    pub mod headers;
    pub mod lifecycle;
    pub mod program;
    pub mod quota;
    pub mod request;
    pub mod route;
    pub mod router;
    pub mod socket;
    pub mod span;
    pub mod syscall;
    pub mod wait;
    pub mod wake;
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are GPL-only. This declares the object to the kernel; the source is licensed
/// Apache-2.0 OR MIT, and MIT is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
