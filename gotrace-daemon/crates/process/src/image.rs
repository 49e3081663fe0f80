//! The memory of one execution of a process: of the program that ran when it was opened, and of no later one.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::Arc,
};

use super::{
    Target,
    helper::{self, Process},
    target::open_again,
};

/// A handle on it, which neither reads nor keeps it.
#[derive(Clone, Debug)]
pub struct Image {
    process: Process,
    directory: Arc<OwnedFd>,
    /// `/proc/PID/pagemap`, which stays that of the program that ran when it was opened.
    pagemap: Arc<File>,
}

impl Image {
    /// Of the program that a process runs now; `None` without permission, or when it is gone.
    pub(super) fn open(process: Process, directory: &Arc<OwnedFd>) -> Option<Self> {
        let pagemap = Arc::new(open_again(&**directory, "pagemap").ok()?);
        Some(Self { process, directory: Arc::clone(directory), pagemap })
    }

    /// Whether the program runs no more. Waits for nobody: a read of less than an entry is an error of a program that
    /// runs, found before its memory map is locked, and nothing of one that has gone (`fs/proc/task_mmu.c`,
    /// `pagemap_read`).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.pagemap.read_at(&mut [0; 1], 0), Ok(0))
    }

    /// What it is read by.
    ///
    /// # Errors
    /// Without permission; [`io::ErrorKind::NotFound`] when the program runs no more.
    pub fn memory(&self) -> io::Result<ImageMemory> {
        let file = open_again(&*self.directory, "mem");
        // It is of the program that runs now; the one that was opened before runs still, so that is this one.
        if self.is_gone() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = file?;
        Ok(ImageMemory { process: self.process, file })
    }
}

/// Reads it.
#[derive(Debug)]
pub struct ImageMemory {
    process: Process,
    file: File,
}

impl ImageMemory {
    /// Fills the buffer as far as there is something at the address; 0 bytes of a program that runs no more.
    ///
    /// # Errors
    /// What the kernel says, and where nobody answers for too long.
    pub fn read_at(&self, buffer: &mut [u8], address: u64) -> io::Result<usize> {
        helper::read_file(self.process, &self.file, Some(address), buffer)
    }

    /// The file `/proc/PID/mem`.
    pub(super) fn into_file(self) -> File {
        self.file
    }
}

impl Target {
    /// Of the program that it ran when it was opened.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::{stack_start, wait_for_program};

    #[test]
    fn is_that_of_one_execution() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; exec sh -c 'read y; :'"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        wait_for_program(child.id());
        let target = Target::open(child.id()).expect("lives");
        let image = target.image().expect("our own").clone();
        let at = stack_start(child.id());
        assert!(!image.is_gone());
        assert_eq!(image.memory().expect("readable").read_at(&mut [0; 8], at).expect("mapped"), 8);
        assert!(image.memory().expect("readable").read_at(&mut [0; 8], 0).is_err());
        child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("it reads");
        while !image.is_gone() {
            std::thread::yield_now();
        }
        assert_eq!(image.memory().expect_err("of another program").kind(), io::ErrorKind::NotFound);
        let later = Target::open(child.id()).expect("lives");
        assert!(!later.image().expect("our own").is_gone());
        child.kill().expect("can be ended");
        child.wait().expect("ends");
        assert!(later.image().expect("our own").is_gone());
    }
}
