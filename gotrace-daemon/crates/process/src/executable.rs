//! The file that a process runs.
//!
//! It is named by a descriptor that opens nothing ([`OFlags::PATH`]), and what is known of it is what the kernel knows
//! anyway. Only when its content is wanted it is opened; one that a user process or another machine serves never is: a
//! helper process opens it for each read, as whoever opens, reads or closes such a file waits for the server.
//!
//! Input: an open `/proc/PID`. Output: bytes, and what tells the file from others. Errors: what the system answers;
//! [`io::ErrorKind::TimedOut`] where nobody answers, or where too much time went into such answers already.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};

use super::{
    helper::{self, Process},
    mounts::{Device, FileSystem, Mounts, by_magic},
    passing::again,
    target::read_own,
};

/// What tells a file from every other one, and from itself before it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number, major and minor.
    pub device: Device,
    /// Inode number.
    pub inode: u64,
    /// Time of the last change of content or attributes: seconds and nanoseconds. Unlike the time of modification it
    /// cannot be set.
    pub changed: (i64, u32),
    /// Bytes.
    pub size: u64,
}

/// A file as all processes that run it see it, whatever mounts they see it through: an overlay shows a file of one of its
/// layers under that one's inode number, on a device of its own for each mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileNode {
    /// Device number; 0 on overlays.
    device: Device,
    inode: u64,
    size: u64,
}

/// File systems stamp changes to a tick, a second, or (FAT) two: a change after a younger one may leave no trace.
const GRAIN: Duration = Duration::from_secs(3);

impl FileIdentity {
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

/// A file that a process runs.
#[derive(Debug)]
pub struct Executable {
    of: Process,
    /// `/proc/PID`.
    directory: Option<Arc<OwnedFd>>,
    /// Which file it is; not to be read by.
    place: File,
    file_system: OnceLock<FileSystem>,
    opened: OnceLock<File>,
}

impl Executable {
    /// What a process runs.
    pub(super) fn run_by(of: Process, directory: &Arc<OwnedFd>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = again("exe", || Ok(openat(&**directory, "exe", flags, Mode::empty())?))?;
        Ok(Self { of, directory: Some(Arc::clone(directory)), ..Self::of(place.into()) })
    }

    /// An open file.
    #[must_use]
    pub fn of(place: File) -> Self {
        let (file_system, opened) = (OnceLock::new(), OnceLock::new());
        Self { of: (std::process::id(), 0), directory: None, place, file_system, opened }
    }

    /// What tells it from others.
    ///
    /// # Errors
    /// What statx(2) answers.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        Ok(look(&self.place, "")?.0)
    }

    /// The same for all processes that run it.
    ///
    /// # Errors
    /// What statx(2) answers.
    pub fn node(&self) -> io::Result<FileNode> {
        let FileIdentity { device, inode, size, .. } = self.identity()?;
        // An overlay is on no device of the machine's.
        let on_overlay = device.0 == 0 && *self.file_system()? == FileSystem::Overlay;
        Ok(FileNode { device: if on_overlay { (0, 0) } else { device }, inode, size })
    }

    /// Whether it is the file that the process with this `/proc/PID` runs.
    pub(super) fn is_run_by(&self, directory: &OwnedFd) -> bool {
        let same = |a: FileIdentity, b: FileIdentity| (a.device, a.inode) == (b.device, b.inode);
        matches!((self.identity(), look(directory, "exe")), (Ok(held), Ok((runs, _))) if same(held, runs))
    }

    /// Who serves it, if that is not the kernel itself.
    ///
    /// # Errors
    /// What the system answers.
    pub fn served_by(&self) -> io::Result<Option<&str>> {
        Ok(match self.file_system()? {
            FileSystem::Served(by) => Some(by),
            FileSystem::Local | FileSystem::Overlay => None,
        })
    }

    fn file_system(&self) -> io::Result<&FileSystem> {
        if let Some(known) = self.file_system.get() {
            return Ok(known);
        }
        let (FileIdentity { device, .. }, mount) = look(&self.place, "")?;
        let mounts = Mounts::of(self.directory.as_deref());
        let found = mount.or_else(|| self.mount_id()).and_then(|id| mounts.mount(id));
        let found = match found.or_else(|| mounts.device(device)) {
            Some(found) => found,
            // Of a mount that is gone.
            None => by_magic(helper::file_system(self.of, &self.place)?),
        };
        Ok(self.file_system.get_or_init(|| found))
    }

    /// Before Linux 5.8 statx(2) does not tell the mount.
    fn mount_id(&self) -> Option<u64> {
        let info = read_own(&format!("/proc/self/fdinfo/{}", self.place.as_raw_fd()));
        info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
    }

    /// Another descriptor of it, to read by; of one that is served there is none.
    ///
    /// # Errors
    /// What open(2) answers.
    pub(super) fn open(&self) -> io::Result<File> {
        if self.served_by()?.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        again("an executable", || File::open(by_descriptor(&self.place)))
    }

    /// Reads some of it, from an offset on; 0 bytes from its end on.
    ///
    /// # Errors
    /// What the system answers, and where nobody does.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(file) = self.opened.get() {
            return file.read_at(buffer, offset);
        }
        if let Some(by) = self.served_by()? {
            return patiently(by, || helper::read_served(self.of, &self.place, offset, buffer));
        }
        let opened = self.open()?;
        self.opened.get_or_init(|| opened).read_at(buffer, offset)
    }

    /// Fills the buffer with what is at an offset.
    ///
    /// # Errors
    /// As [`Self::read_at`]; [`io::ErrorKind::UnexpectedEof`] where it ends before.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buffer = buffer.get_mut(n..).unwrap_or_default();
                    offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What the kernel knows of a file without asking anybody, and the number of its mount. An empty name: the descriptor's.
pub(super) fn look(at: impl AsFd, name: &str) -> io::Result<(FileIdentity, Option<u64>)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = again("exe", || Ok(statx(&at, name, flags, wanted)?))?;
    let told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    let identity = FileIdentity {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        changed: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        size: found.stx_size,
    };
    Ok((identity, told.then_some(found.stx_mnt_id)))
}

/// Time that all files which are served may take, of each minute: whoever waits for their servers does nothing else
/// meanwhile.
#[derive(Debug)]
struct Patience {
    since: Option<Instant>,
    waited: Duration,
}

impl Patience {
    const EACH: Duration = Duration::from_secs(60);
    const MOST: Duration = Duration::from_secs(10);

    fn is_exhausted(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Self::EACH) {
            *self = Self { since: Some(now), waited: Duration::ZERO };
        }
        self.waited >= Self::MOST
    }
}

/// Does what waits for a server, unless too much time went into that lately.
fn patiently<T>(by: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    static PATIENCE: Mutex<Patience> = Mutex::new(Patience { since: None, waited: Duration::ZERO });
    // Whole values: a panic elsewhere leaves none half made.
    let patience = || PATIENCE.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    if patience().is_exhausted(begun) {
        let why = format!(
            "it is on {by}, and gotrace waited {} s for servers of such files within a minute",
            Patience::MOST.as_secs()
        );
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    }
    let result = work();
    patience().waited += begun.elapsed();
    result
}

pub(super) fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_file_is_what_stat_says() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(7).expect("longer");
        let metadata = file.as_file().metadata().expect("known");
        let executable = Executable::of(file.reopen().expect("readable"));
        let found = executable.identity().expect("known");
        let device = std::os::unix::fs::MetadataExt::dev(&metadata);
        assert_eq!(found.device, (rustix::fs::major(device), rustix::fs::minor(device)));
        assert_eq!((found.inode, found.size), (std::os::unix::fs::MetadataExt::ino(&metadata), 7));
        assert_eq!(executable.served_by().expect("a mount"), None);
        let mut bytes = [1; 8];
        assert_eq!(executable.read_at(&mut bytes, 0).expect("readable"), 7);
        assert_eq!(
            executable.read_exact_at(&mut bytes, 0).expect_err("ends").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn patience_with_servers_comes_back_each_minute() {
        let now = Instant::now();
        let mut patience = Patience { since: None, waited: Duration::ZERO };
        assert!(!patience.is_exhausted(now));
        patience.waited += Duration::from_secs(9);
        assert!(!patience.is_exhausted(now));
        patience.waited += Duration::from_secs(1);
        assert!(patience.is_exhausted(now + Duration::from_secs(59)));
        assert!(!patience.is_exhausted(now + Duration::from_secs(60)));
    }
}
