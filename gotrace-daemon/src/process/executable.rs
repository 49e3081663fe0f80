//! The executable file that probes go into: held open, and kept from being changed while they are in it.
//!
//! A breakpoint that the kernel puts into a file's pages is right for one content only. So nothing here is named by
//! a path: the file is the descriptor that was opened (and parsed), and while probes are in it its content cannot
//! change: it cannot be written at all (a read-only mount), or a read lease on it says when somebody is about to
//! write ([`Guard`]). ETXTBSY does not do that: between two programs nothing holds it, and some kernels lack it.
//!
//! Refuses ([`Unguarded`]) files that a user process or another machine serves: to put a probe in place the kernel
//! reads the file's page under a lock that every fork of the node needs, and such a server need not answer.
//!
//! Input: an open file, the mounts that its process sees. Output: a [`Guard`], which the probes own.

use std::{
    fmt, fs,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::event::{EventfdFlags, eventfd};

/// What tells a file from every other one, and from itself before it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Time of the last change of content or attributes: seconds and nanoseconds. Unlike the time of modification it
    /// cannot be set.
    pub changed: (i64, i64),
    /// Bytes.
    pub size: u64,
}

/// A file as all processes that run it see it, whatever mounts they see it through: an overlay shows a file of one of its
/// layers under that one's inode number, on a device of its own for each mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileNode {
    /// Device number; 0 on overlays.
    device: u64,
    inode: u64,
    size: u64,
}

impl FileNode {
    /// Of an open file.
    ///
    /// # Errors
    /// What fstat(2) and fstatfs(2) answer.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let on_overlay = magic_of(&rustix::fs::fstatfs(file)?) == OVERLAY;
        Ok(Self {
            device: if on_overlay { 0 } else { metadata.dev() },
            inode: metadata.ino(),
            size: metadata.size(),
        })
    }
}

/// File systems stamp changes to a tick, a second, or (FAT) two: a change after a younger one may leave no trace.
const GRAIN: Duration = Duration::from_secs(3);

impl FileIdentity {
    /// Of an open file.
    ///
    /// # Errors
    /// What fstat(2) answers.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
        })
    }

    /// Whether a change from now on would show in the time of change: the last one is older than the grain of file
    /// systems' clocks.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(changed))
            .and_then(|changed| SystemTime::now().duration_since(changed).ok())
            .is_some_and(|age| age > GRAIN)
    }
}

/// Why no probe may be put into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unguarded {
    /// It lies on a file system whose server need not answer.
    Served {
        /// The type of the file system.
        by: String,
    },
    /// It can be written, and a read lease is not to be had.
    NoLease {
        /// Why not.
        why: String,
        /// Whether it is for want of CAP_LEASE.
        permission: bool,
    },
    /// It cannot be looked at.
    Failed {
        /// What the system said.
        why: String,
    },
}

impl fmt::Display for Unguarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served { by } => write!(
                f,
                "its file is served by {by}, and a server that does not answer would hold up every fork of this host"
            ),
            Self::NoLease { why, .. } => {
                write!(f, "its file could be rewritten while probes are in it: no read lease on it ({why})")
            }
            Self::Failed { why } => write!(f, "its file cannot be looked at: {why}"),
        }
    }
}

/// Keeps a file as it is while probes are in it. Dropping it lets a writer that waits go on.
#[derive(Debug)]
pub struct Guard {
    /// An open file description of its own, which the lease belongs to.
    file: File,
    leased: bool,
}

impl Guard {
    /// Takes a read lease on the file, unless it cannot be written. `mount_info` tells the mounts that the process which
    /// runs it sees (`/proc/PID/mountinfo`), to find what an overlay is made of.
    ///
    /// # Errors
    /// See [`Unguarded`].
    pub fn new(file: &File, mount_info: impl FnOnce() -> Option<String>) -> Result<Self, Unguarded> {
        let failed = |e: io::Error| Unguarded::Failed { why: e.to_string() };
        if let Some(by) = served_by(file, mount_info).map_err(failed)? {
            return Err(Unguarded::Served { by });
        }
        let file = File::open(by_descriptor(file)).map_err(failed)?;
        match lease(&file) {
            Ok(()) => Ok(Self { file, leased: true }),
            Err(_) if is_read_only(&file) => Ok(Self { file, leased: false }),
            Err(error) => {
                let permission = matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM));
                let why = match error.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => "it requires CAP_LEASE".into(),
                    Some(libc::EAGAIN) => "it is open for writing".into(),
                    Some(libc::EINVAL) => "its file system has none".into(),
                    _ => error.to_string(),
                };
                Err(Unguarded::NoLease { why, permission })
            }
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the kernel is to attach to: the file, whatever its name means by now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        by_descriptor(&self.file)
    }

    /// Whether it is a lease that keeps the file; else it cannot be written at all.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.leased
    }

    /// Whether somebody waits to write the file: the probes are to come off and the guard to be dropped.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        if !self.leased {
            return false;
        }
        // SAFETY: no pointer is passed, and the descriptor is open.
        let lease = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) };
        lease != libc::F_RDLCK
    }
}

fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Not in libc for every target; the same on all (include/uapi/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;
/// The kernel breaks a lease by force after this time; with less there would be none to take probes off.
const LEAST_BREAK_SECONDS: u64 = 5;

/// Takes a read lease, of which a break is told by [`take_notice`].
fn lease(file: &File) -> io::Result<()> {
    let Notice { signal, .. } = notice()?;
    let break_time = fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap_or_default();
    if break_time.trim().parse().is_ok_and(|seconds: u64| seconds < LEAST_BREAK_SECONDS) {
        return Err(io::Error::other(format!("fs.lease-break-time is below {LEAST_BREAK_SECONDS} s")));
    }
    let fd = file.as_raw_fd();
    // SAFETY: no pointer is passed, and the descriptor is open.
    let set = |command, argument: libc::c_int| match unsafe { libc::fcntl(fd, command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // First: the signal that is sent without this ends a process.
    set(F_SETSIG, *signal)?;
    set(libc::F_SETLEASE, libc::F_RDLCK)
}

/// How breaks of leases are told.
struct Notice {
    signal: libc::c_int,
    event: OwnedFd,
}

static BROKEN: AtomicBool = AtomicBool::new(false);

fn notice() -> io::Result<&'static Notice> {
    static NOTICE: OnceLock<Result<Notice, i32>> = OnceLock::new();
    let notice = NOTICE.get_or_init(|| {
        let set_up = || -> io::Result<Notice> {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let write = event.as_raw_fd();
            // One that neither libc nor Go nor a common library takes.
            let signal = libc::SIGRTMIN() + 5;
            let told = move || {
                BROKEN.store(true, Ordering::Release);
                let one = 1u64.to_ne_bytes();
                // SAFETY: write(2) may be called in a handler; the descriptor is never closed, as it is in a static.
                // A counter that is full is readable, which is what is wanted.
                let _ = unsafe { libc::write(write, one.as_ptr().cast(), one.len()) };
            };
            // SAFETY: the handler stores to an atomic and calls write(2), both safe in a signal handler.
            unsafe { signal_hook_registry::register(signal, told)? };
            Ok(Notice { signal, event })
        };
        set_up().map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL))
    });
    notice.as_ref().map_err(|errno| io::Error::from_raw_os_error(*errno))
}

/// Can be read when a lease is to be broken; `None` where none was ever taken.
#[must_use]
pub fn lease_notice() -> Option<std::os::fd::BorrowedFd<'static>> {
    notice().ok().map(|n| std::os::fd::AsFd::as_fd(&n.event))
}

/// Whether any lease was broken since this was last asked. Costs nothing where none was.
#[must_use]
pub fn take_lease_notice() -> bool {
    if !BROKEN.swap(false, Ordering::AcqRel) {
        return false;
    }
    if let Ok(notice) = notice() {
        // Without a count it is refused.
        let _ = rustix::io::read(&notice.event, &mut [0u8; 8]);
    }
    true
}

fn is_read_only(file: &File) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Magic numbers of file systems that a user process or another machine serves (include/uapi/linux/magic.h and the
/// file systems' own sources).
const SERVED: [(u64, &str); 13] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
];
const OVERLAY: u64 = 0x794c_7630;
/// The same, by the names that mount tables have for them.
const SERVED_TYPES: [&str; 11] =
    ["fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "coda", "lustre"];

fn served(magic: u64) -> Option<&'static str> {
    SERVED.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

fn magic_of(stat: &rustix::fs::StatFs) -> u64 {
    // Of the type's 32 bits; some targets have it signed.
    #[expect(clippy::cast_sign_loss, reason = "a magic number")]
    let magic = stat.f_type as u64;
    magic & 0xffff_ffff
}

/// Who serves the file: the file system that it lies on, or a layer of the overlay that it lies on.
fn served_by(file: &File, mount_info: impl FnOnce() -> Option<String>) -> io::Result<Option<String>> {
    let magic = magic_of(&rustix::fs::fstatfs(file)?);
    if let Some(name) = served(magic) {
        return Ok(Some(name.into()));
    }
    if magic != OVERLAY {
        return Ok(None);
    }
    let mount = mount_id(file);
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The mount is of gotrace's namespace or of the process's.
    let its = mount_info().unwrap_or_default();
    let line = [&its, &own].into_iter().find_map(|text| {
        text.lines().find(|line| mount.is_some_and(|id| line.split(' ').next() == Some(&*id.to_string())))
    });
    let Some(line) = line else { return Ok(None) };
    let host = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    for layer in layers(line) {
        for root in ["", "/proc/1/root"] {
            let at = if layer.is_absolute() {
                Path::new(root).join(layer.strip_prefix("/").unwrap_or(&layer))
            } else {
                break;
            };
            let at = if root.is_empty() { Path::new("/").join(&at) } else { at };
            if let Ok(stat) = rustix::fs::statfs(&at) {
                if let Some(name) = served(magic_of(&stat)) {
                    return Ok(Some(format!("{name} (a layer of its overlay)")));
                }
                break;
            }
        }
        // A layer that is named relative to a directory of its container engine's: by the end of its path.
        let suffix_of_served = |text: &str| {
            text.lines().any(|line| {
                is_served_type(line)
                    && line.split(' ').nth(4).is_some_and(|at| Path::new(at).ends_with(&layer))
            })
        };
        if !layer.is_absolute() && (suffix_of_served(&own) || suffix_of_served(&host)) {
            return Ok(Some("a layer of its overlay that a user process or another machine serves".into()));
        }
    }
    Ok(None)
}

/// Whether a line of a mount table is of a file system that is served: what stands behind the ` - `.
fn is_served_type(line: &str) -> bool {
    let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
    SERVED_TYPES.contains(&kind) || kind.starts_with("fuse.")
}

/// The number of the mount that the file was opened on.
fn mount_id(file: &File) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// The directories that an overlay is made of, as its line in a mount table has them.
fn layers(line: &str) -> Vec<PathBuf> {
    let options = line.split_once(" - ").and_then(|(_, rest)| rest.splitn(3, ' ').nth(2)).unwrap_or_default();
    let mut layers = Vec::new();
    for option in options.split(',') {
        let Some((name, value)) = option.split_once('=') else { continue };
        if matches!(name, "lowerdir" | "upperdir" | "lowerdir+" | "datadir+") {
            // Colons part layers; one within a name stands behind a backslash, itself escaped in the table.
            layers.extend(
                value
                    .replace("\\134:", "\u{1}")
                    .split(':')
                    .filter(|l| !l.is_empty())
                    .map(|l| PathBuf::from(unescape(&l.replace('\u{1}', ":")))),
            );
        }
    }
    layers
}

/// A name as mount tables write it: space, tab, newline and backslash as three octal digits.
fn unescape(name: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(name.to_owned(), |name, (escape, character)| name.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, time::Instant};

    use super::*;

    #[test]
    fn a_writer_is_told_of_and_waits_until_the_guard_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("program");
        fs::write(&path, "content").expect("written");
        let file = File::open(&path).expect("readable");
        let guard = Guard::new(&file, || None).expect("a lease");
        assert!(!guard.is_broken());
        let at_once = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(at_once.expect_err("must wait").raw_os_error(), Some(libc::EWOULDBLOCK));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !guard.is_broken() {
            assert!(Instant::now() < deadline, "nothing was told");
            std::thread::sleep(Duration::from_millis(1));
        }
        let writer = std::thread::spawn(move || OpenOptions::new().write(true).open(path));
        drop(guard);
        writer.join().expect("ends").expect("may write now");
    }

    #[test]
    fn a_file_that_is_open_for_writing_cannot_be_guarded() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reading = File::open(file.path()).expect("readable");
        let refused = Guard::new(&reading, || None).expect_err("somebody can write");
        assert!(matches!(&refused, Unguarded::NoLease { permission: false, .. }), "{refused}");
    }

    #[test]
    fn layers_are_read_as_the_kernel_writes_them() {
        let line =
            "54 29 0:49 / /m rw - overlay overlay rw,lowerdir=/a\\040b:l/X:/c\\134:d,upperdir=/u,workdir=/w";
        let expected = ["/a b", "l/X", "/c:d", "/u"].map(PathBuf::from);
        assert_eq!(layers(line), expected);
        assert!(is_served_type("1 2 0:3 / /x rw - fuse.bindfs bindfs rw"));
        assert!(!is_served_type(line));
    }
}
