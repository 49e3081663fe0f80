//! Which system call a thread is in, and on what: `/proc/PID/task/TID/syscall`, whose numbers are those of the kernel
//! that runs (proc(5); the kernel's `fs/proc/base.c`, `proc_pid_syscall`).
//!
//! Input: that line. Output: the call's name, and which of its arguments is a descriptor, a process or a path. `None`
//! for a thread that runs, or is stopped elsewhere.

use syscalls::Sysno;

use super::{NamedProcess, OpenFile};

/// A call as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCall {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// The thread's stack pointer and program counter.
    pub registers: [u64; 2],
}

/// A call, and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemCall {
    /// Its number, as the architecture has it.
    pub number: u64,
    /// Its name; `None` for one that is newer than gotrace.
    pub name: Option<&'static str>,
    /// The descriptor that it is about.
    pub descriptor: Option<u32>,
    /// What that is, or the file whose path it was given.
    pub file: Option<OpenFile>,
    /// The process that holds the file lock that it waits for.
    pub held_by: Option<NamedProcess>,
    /// The child process that it waits for.
    pub child: Option<NamedProcess>,
}

/// Which process a call waits for, by the numbers of its own PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Child(u32),
    /// By a descriptor of it.
    Descriptor(u32),
}

/// `P_PID` and `P_PIDFD` of waitid(2).
const P_PID: u64 = 1;
const P_PIDFD: u64 = 3;
/// Commands of fcntl(2) that wait for a lock: of the process, and of an open file description.
const F_SETLKW: u64 = 7;
const F_OFD_SETLKW: u64 = 38;

impl RawCall {
    /// Reads the line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let number = fields.next()?.parse().ok()?;
        let mut hex = || u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok();
        let mut values = [0; 8];
        for value in &mut values {
            *value = hex()?;
        }
        let [a, b, c, d, e, f, sp, pc] = values;
        Some(Self { number, arguments: [a, b, c, d, e, f], registers: [sp, pc] })
    }

    fn name(&self) -> Option<&'static str> {
        usize::try_from(self.number).ok().and_then(Sysno::new).map(|call| call.name())
    }

    /// The call, without what its arguments lead to.
    pub(super) fn named(&self) -> SystemCall {
        let descriptor = match (self.name(), self.awaited()) {
            (_, Some(Awaited::Descriptor(fd))) => Some(fd),
            (Some(name), _) if takes_descriptor(name) => descriptor(self.arguments[0]),
            _ => None,
        };
        SystemCall { number: self.number, name: self.name(), descriptor, ..SystemCall::default() }
    }

    /// The child that it waits for, if for one alone.
    pub(super) fn awaited(&self) -> Option<Awaited> {
        let [first, second, ..] = self.arguments;
        match (self.name()?, first) {
            ("wait4", pid) => u32::try_from(pid as i32).ok().filter(|&p| p > 0).map(Awaited::Child),
            ("waitid", P_PID) => u32::try_from(second).ok().filter(|&p| p > 0).map(Awaited::Child),
            ("waitid", P_PIDFD) => descriptor(second).map(Awaited::Descriptor),
            _ => None,
        }
    }

    /// Whether it may wait for a file lock.
    pub(super) fn may_wait_for_lock(&self) -> bool {
        match self.name() {
            Some("flock") => true,
            Some("fcntl") => matches!(self.arguments[1], F_SETLKW | F_OFD_SETLKW),
            _ => false,
        }
    }

    /// Address of the path that it was given.
    #[must_use]
    pub fn path(&self) -> Option<u64> {
        let address = match self.name()? {
            "open" | "creat" | "stat" | "lstat" | "access" | "mkdir" | "rmdir" | "unlink" | "chdir"
            | "truncate" | "statfs" | "execve" | "chmod" | "chown" | "lchown" | "rename" | "umount2"
            | "readlink" => self.arguments[0],
            "openat" | "openat2" | "newfstatat" | "fstatat" | "statx" | "faccessat" | "faccessat2"
            | "mkdirat" | "unlinkat" | "renameat" | "renameat2" | "readlinkat" | "fchmodat" | "fchownat"
            | "mount" => self.arguments[1],
            _ => return None,
        };
        (address != 0).then_some(address)
    }
}

/// Whether the first argument of a call that may take long is a descriptor.
fn takes_descriptor(name: &str) -> bool {
    matches!(
        name,
        "read"
            | "write"
            | "pread64"
            | "pwrite64"
            | "readv"
            | "writev"
            | "preadv"
            | "pwritev"
            | "preadv2"
            | "pwritev2"
            | "recvfrom"
            | "recvmsg"
            | "recvmmsg"
            | "sendto"
            | "sendmsg"
            | "sendmmsg"
            | "accept"
            | "accept4"
            | "connect"
            | "shutdown"
            | "close"
            | "flock"
            | "fcntl"
            | "ioctl"
            | "fsync"
            | "fdatasync"
            | "sync_file_range"
            | "syncfs"
            | "fallocate"
            | "ftruncate"
            | "getdents64"
            | "fstat"
            | "fstatfs"
            | "lseek"
            | "sendfile"
            | "splice"
            | "tee"
            | "vmsplice"
            | "copy_file_range"
            | "epoll_wait"
            | "epoll_pwait"
            | "epoll_pwait2"
    )
}

/// Descriptors are of 32 bits, whatever else is in the register.
fn descriptor(argument: u64) -> Option<u32> {
    u32::try_from(argument as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: Sysno, arguments: &[u64]) -> RawCall {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        RawCall { number: name as u64, arguments: all, registers: [1, 2] }
    }

    #[test]
    fn the_kernels_line_is_read() {
        let line = "73 0x7 0x2 0x0 0xffffffffffffffff 0x0 0x0 0xc00005cd98 0x47e2ae\n";
        let read = RawCall::parse(line).expect("a call");
        assert_eq!(read.arguments, [7, 2, 0, u64::MAX, 0, 0]);
        assert_eq!((read.number, read.registers), (73, [0xc0_0005_cd98, 0x47_e2ae]));
        for other in ["running\n", "-1 0x7ffc 0x47e2ae\n", "", "73 0x7", "73 7 2 0 0 0 0 0 0"] {
            assert_eq!(RawCall::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn arguments_are_told_by_the_call() {
        let named = |raw: RawCall| (raw.named().name, raw.named().descriptor);
        assert_eq!(named(call(Sysno::flock, &[7, 2])), (Some("flock"), Some(7)));
        assert_eq!(named(call(Sysno::read, &[0xffff_ffff_0000_0003, 9])), (Some("read"), Some(3)));
        assert_eq!(named(call(Sysno::read, &[u64::MAX])), (Some("read"), None));
        assert_eq!(named(call(Sysno::futex, &[0xc000, 0])), (Some("futex"), None));
        assert_eq!(named(RawCall { number: 1 << 40, ..call(Sysno::read, &[]) }), (None, None));
        assert_eq!(call(Sysno::wait4, &[4712]).awaited(), Some(Awaited::Child(4712)));
        assert_eq!(call(Sysno::wait4, &[u64::from(u32::MAX)]).awaited(), None);
        assert_eq!(call(Sysno::waitid, &[P_PID, 4712]).awaited(), Some(Awaited::Child(4712)));
        assert_eq!(call(Sysno::waitid, &[0, 4712]).awaited(), None);
        let by_descriptor = call(Sysno::waitid, &[P_PIDFD, 9]);
        assert_eq!(
            (by_descriptor.awaited(), named(by_descriptor).1),
            (Some(Awaited::Descriptor(9)), Some(9))
        );
        assert!(call(Sysno::flock, &[7, 2]).may_wait_for_lock());
        assert!(call(Sysno::fcntl, &[7, F_OFD_SETLKW]).may_wait_for_lock());
        assert!(!call(Sysno::fcntl, &[7, 3]).may_wait_for_lock());
        assert_eq!(call(Sysno::openat, &[5, 0xc000]).path(), Some(0xc000));
        assert_eq!(call(Sysno::openat, &[5]).path(), None);
    }
}
