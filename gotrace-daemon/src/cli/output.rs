//! Results on stdout: buffered, and quiet when the reader goes away. Files of results that others are to read.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::Duration,
};

use gotrace_process::private;

/// Buffered stdout. Flush it: what is left when it is dropped is written, but its errors are lost.
#[derive(Debug)]
pub struct Stdout(BufWriter<StdoutLock<'static>>);

impl Stdout {
    /// Locks stdout.
    #[must_use]
    pub fn lock() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whether results on stdout may have colours: on a terminal, unless `NO_COLOR` says otherwise.
pub(super) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Makes a file that is meant for others: a CI server, or whoever ran gotrace by `sudo`. Like [`private::create`], but that
/// all may read it.
///
/// # Errors
/// As there.
pub fn create_shared(path: &Path) -> io::Result<File> {
    let file = private::create(path)?;
    // Not what a descriptor leads to (`/dev/stdout`).
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        file.set_permissions(Permissions::from_mode(0o644))?;
    }
    Ok(file)
}

/// For so long at most, a reader of stderr that takes nothing is waited for: so many times that long.
const WAITED_FOR: (u32, Duration) = (50, Duration::from_millis(10));

/// Writes to stderr. A reader that is slow is waited for; of other errors nobody can be told.
pub fn say(words: &str) {
    say_bytes(words.as_bytes());
}

/// The same of bytes.
pub(super) fn say_bytes(mut bytes: &[u8]) {
    let mut waits = WAITED_FOR.0;
    while !bytes.is_empty() {
        match io::stderr().write(bytes) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && waits > 0 => {
                waits -= 1;
                thread::sleep(WAITED_FOR.1);
            }
            Err(_) => return,
        }
    }
}

/// Whether the reader of a pipe has gone, which ends the work but is no failure.
#[must_use]
pub fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_others_is_readable_and_written_through_no_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("leaks.xml");
        for _ in 0..2 {
            create_shared(&file).and_then(|mut f| f.write_all(b"x")).expect("written");
            let found = fs::metadata(&file).expect("there");
            assert_eq!((found.permissions().mode() & 0o777, found.len()), (0o644, 1));
        }
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        assert!(create_shared(&link).is_err());
    }
}
