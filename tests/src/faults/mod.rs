//! System calls of gotrace that fail: `gotrace` under a supervisor that knows each place from which it calls the
//! kernel, and lets the first call of one of them fail.
//!
//! A place is a system call and the functions of gotrace that led to it ([`place`]). The supervisor ([`supervise`]) is
//! the command `fault`: a tracer (ptrace(2)) of `gotrace`, which a filter (seccomp(2), [`filter`]) stops at each call
//! that may fail. It either records all places, or makes one of them fail once with an error, without the kernel
//! doing anything; only close(2) closes all the same, as the kernel does when it fails. Standard streams, signals and
//! exit status of the command are those of `gotrace`, so that it stands wherever `gotrace` would; [`trial`] runs it
//! and judges.

pub mod filter;
pub mod place;
pub mod registers;
pub mod supervise;
pub mod trial;
