//! Results on stdout: buffered, and quiet when the reader goes away.

use std::io::{self, BufWriter, StdoutLock, Write};

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

/// Whether the reader of a pipe has gone, which ends the work but is no failure.
#[must_use]
pub fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
