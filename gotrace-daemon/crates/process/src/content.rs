//! The content of an executable, without a copy of it: mapped while nothing can change it ([`Guard`]), so that of a large
//! file what is looked at alone takes memory, which the kernel can take back. A file that can change, or whose server need
//! not answer, is read, up to a bound.
//!
//! Input: an open file. Output: its bytes. Errors: what the system answers, and files that are too large.

use std::{io, ops::Deref, ptr, slice};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Executable, Guard};

/// Largest executable that is looked at (1 GiB). The largest Go programs known have a third.
pub const MAX_EXECUTABLE_BYTES: u64 = 1 << 30;
/// Largest that is read into memory, where it cannot be mapped.
pub(super) const MAX_READ_BYTES: u64 = 256 << 20;

/// The bytes of a file.
#[derive(Debug)]
pub struct Content(Bytes);

#[derive(Debug)]
enum Bytes {
    Mapped {
        address: *mut u8,
        length: usize,
        /// Dropped after the mapping is gone: until then the file cannot be cut.
        _guard: Guard,
    },
    Read(Vec<u8>),
}

/// Why there is no content.
#[derive(Debug)]
pub enum Unreadable {
    /// The system's answer.
    Failed(io::Error),
    /// It has so many bytes, and more than this bound.
    TooLarge(u64, u64),
}

impl Content {
    /// Of a file.
    ///
    /// # Errors
    /// See [`Unreadable`].
    pub fn of(file: &Executable) -> Result<Self, Unreadable> {
        let size = file.identity().map_err(Unreadable::Failed)?.size;
        if size > MAX_EXECUTABLE_BYTES {
            return Err(Unreadable::TooLarge(size, MAX_EXECUTABLE_BYTES));
        }
        match Self::map(file) {
            Some(content) => Ok(content),
            None if size > MAX_READ_BYTES => Err(Unreadable::TooLarge(size, MAX_READ_BYTES)),
            None => Self::read(file, size).map_err(Unreadable::Failed),
        }
    }

    fn map(file: &Executable) -> Option<Self> {
        let guard = Guard::new(file).ok()?;
        // Once it cannot change.
        let length = usize::try_from(guard.file().metadata().ok()?.len()).ok()?;
        if length == 0 || length as u64 > MAX_EXECUTABLE_BYTES {
            return None;
        }
        // SAFETY: a new mapping, private and read only, of a file that cannot be cut while `guard` lives.
        let address = unsafe {
            mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, guard.file(), 0).ok()?
        };
        Some(Self(Bytes::Mapped { address: address.cast(), length, _guard: guard }))
    }

    fn read(file: &Executable, size: u64) -> io::Result<Self> {
        // Positioned reads: the handle is shared, and reading it twice must give the same.
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self(Bytes::Read(bytes)))
    }

    /// Whether it lies in memory of gotrace's own.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        matches!(self.0, Bytes::Read(_))
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: mapped for as long as `self` lives, never written, and the file cannot become shorter meanwhile.
            Bytes::Mapped { address, length, .. } => unsafe { slice::from_raw_parts(*address, *length) },
            Bytes::Read(bytes) => bytes,
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Bytes::Mapped { address, length, .. } = &self.0 {
            // SAFETY: mapped by `map`, and no reference to it outlives `self`. It cannot fail for a whole mapping.
            let _ = unsafe { munmap(address.cast(), *length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::*;

    /// Once nobody has it open for writing: children of other tests have, until they execute their program.
    fn mapped(file: &Executable) -> Content {
        let begin = std::time::Instant::now();
        loop {
            match Content::of(file) {
                Ok(content) if !content.is_copy() => return content,
                _ => {}
            }
            assert!(begin.elapsed().as_secs() < 120, "it is never mapped");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_that_cannot_change_is_mapped_and_another_is_read() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"content").expect("written");
        let reading = Executable::of(File::open(file.path()).expect("readable"));
        let content = Content::of(&reading).expect("readable");
        assert!(content.is_copy() && &*content == b"content", "it is open for writing");
        drop(content);
        let path = file.into_temp_path();
        let content = mapped(&reading);
        assert_eq!(&*content, b"content");
        drop(content);
        std::fs::write(&path, b"").expect("may be written again");
        assert!(Content::of(&reading).expect("readable").is_empty());
    }

    #[test]
    fn a_large_file_is_not_copied() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(MAX_EXECUTABLE_BYTES).expect("sparse");
        let reading = Executable::of(File::open(file.path()).expect("readable"));
        let refused = Content::of(&reading);
        assert!(matches!(refused, Err(Unreadable::TooLarge(_, MAX_READ_BYTES))), "it is open for writing");
        let path = file.into_temp_path();
        let content = mapped(&reading);
        assert_eq!((content.len() as u64, content.last()), (MAX_EXECUTABLE_BYTES, Some(&0)));
        drop(content);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|f| f.set_len(MAX_EXECUTABLE_BYTES + 1))
            .expect("larger");
        let refused = Content::of(&reading);
        assert!(matches!(refused, Err(Unreadable::TooLarge(_, MAX_EXECUTABLE_BYTES))));
    }
}
