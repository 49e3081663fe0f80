//! Files and directories that gotrace writes: of its user alone.
//!
//! What gotrace tells of programs (stacks, arguments, addresses, names) is not for everybody on the machine,
//! and a name in a directory that others can write to may be one that they made. So a file is new, or one
//! that was the user's own already: a regular file of one name, never a symbolic link, whose mode becomes
//! 0600 before anything is written. Character devices (`/dev/null`, a terminal) and FIFOs of the user's own
//! are written to as they are, and so is a descriptor that gotrace was started with (`/dev/stdout`,
//! `/dev/fd/N`, what a shell makes of `>(…)`), wherever it leads: whoever opened it has decided. Of a path only the
//! last component is looked at: directories on the way may be links.
//!
//! Errors are the system's, or of kind [`io::ErrorKind::InvalidInput`] with what is wrong and what to do; the
//! caller adds the path.

use std::{
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, openat},
    io::{Errno, FdFlags, fcntl_getfd},
    process::geteuid,
};

/// Read and write, for the user alone.
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);
/// The same of a directory.
const DIRECTORY: Mode = Mode::RWXU;

/// Makes a file to write to, or empties it.
///
/// # Errors
/// When it cannot be made or opened, or is not gotrace's to write to.
pub fn create(path: &Path) -> io::Result<File> {
    if let Some(number) = descriptor(path) {
        return inherited(number);
    }
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, path, create, FILE) {
        Err(Errno::EXIST) => {}
        made => return Ok(made?.into()),
    }
    let (found, stat) = find(path)?;
    let write = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            is_own(&stat, "file")?;
            let file = reopen(&found, write)?;
            fchmod(&file, FILE)?;
            let file = File::from(file);
            file.set_len(0)?;
            Ok(file)
        }
        FileType::CharacterDevice => Ok(reopen(&found, write)?.into()),
        FileType::Fifo => {
            is_own(&stat, "FIFO")?;
            // Waits for a reader, as any other program does.
            Ok(reopen(&found, write)?.into())
        }
        other => Err(refused(format!("it is {}; use another file", name(other)))),
    }
}

/// Makes a file to write to where there is nothing of that name.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or when it cannot be made.
pub fn create_new(path: &Path) -> io::Result<File> {
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, create, FILE)?.into())
}

/// Opens a regular file of one's own to read and write; where there is none, and it is wished for, it is made.
///
/// # Errors
/// As [`create`], and [`io::ErrorKind::NotFound`]. What is no regular file is refused.
pub fn open(path: &Path, make: bool) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    if make {
        match openat(CWD, path, flags | OFlags::CREATE | OFlags::EXCL, FILE) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?.into()),
        }
    }
    let (found, stat) = find(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => is_own(&stat, "file")?,
        other => return Err(refused(format!("it is {}; remove it", name(other)))),
    }
    let file = reopen(&found, flags - OFlags::NOFOLLOW)?;
    fchmod(&file, FILE)?;
    Ok(file.into())
}

/// Makes a directory, with those above it, or takes one that is the user's own; nobody else may enter it
/// from then on.
///
/// # Errors
/// When it cannot be made, is a link, or belongs to somebody else.
pub fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY.bits()).create(path)?;
    let (found, stat) = find(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        other => return Err(refused(format!("it is {}; give the directory itself", name(other)))),
    }
    is_owned(&stat, "directory")?;
    if Mode::from_raw_mode(stat.st_mode) != DIRECTORY {
        fchmod(reopen(&found, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)?, DIRECTORY)?;
    }
    Ok(())
}

/// What has a name, itself where it is a link; not opened, as opening alone can have effects.
fn find(path: &Path) -> io::Result<(OwnedFd, Stat)> {
    let found = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&found)?;
    Ok((found, stat))
}

/// Opens what was found, whatever its name leads to by now.
fn reopen(found: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty())?)
}

fn is_owned(stat: &Stat, what: &str) -> io::Result<()> {
    let own = geteuid().as_raw();
    if stat.st_uid == own {
        return Ok(());
    }
    let owner = stat.st_uid;
    Err(refused(format!(
        "the {what} belongs to user {owner}, and gotrace runs as user {own}; use another one, or remove it"
    )))
}

fn is_own(stat: &Stat, what: &str) -> io::Result<()> {
    is_owned(stat, what)?;
    if stat.st_nlink > 1 {
        let names = stat.st_nlink;
        return Err(refused(format!("the {what} has {names} hard links; use another one, or remove it")));
    }
    Ok(())
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

const fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link, which is not followed",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown kind",
    }
}

/// The number of a descriptor that is named by a path.
fn descriptor(path: &Path) -> Option<i32> {
    match path.to_str()? {
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        path => {
            let number = path.strip_prefix("/dev/fd/").or_else(|| path.strip_prefix("/proc/self/fd/"))?;
            number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok())?
        }
    }
}

/// A descriptor that gotrace was started with, as its own are closed on execution.
fn inherited(number: i32) -> io::Result<File> {
    let none = || refused(format!("file descriptor {number} is not open"));
    // SAFETY: only asked about, which fails where there is none, and copied; not closed.
    let given = unsafe { BorrowedFd::borrow_raw(number) };
    match fcntl_getfd(given) {
        Ok(flags) if !flags.contains(FdFlags::CLOEXEC) => {}
        _ => return Err(none()),
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(given.as_fd(), 3)?.into())
}

#[cfg(test)]
#[path = "private_tests.rs"]
mod tests;
