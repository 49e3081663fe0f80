//! A log of what the ring delivered: records behind their lengths. Read again, it takes the same path
//! as the ring: `replay`, benchmarks and tests run on it without a kernel.
//!
//! Format: the 8 bytes `GOTRLOG1`, then for each record its length (u32, little endian) and its bytes.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
};

use crate::private;

const MAGIC: &[u8; 8] = b"GOTRLOG1";

/// Writes a log.
#[derive(Debug)]
pub struct EventLog {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl EventLog {
    /// Makes the file, or empties it ([`private`]).
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, private::create(path)?);
        file.write_all(MAGIC)?;
        Ok(Self { file, failed: None })
    }

    /// Adds a record. The first error is reported and ends the log, not the tracing.
    pub fn write(&mut self, record: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let length = u32::try_from(record.len()).unwrap_or(0).to_le_bytes();
        let result = self.file.write_all(&length).and_then(|()| self.file.write_all(record));
        self.note(result);
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The first one of the whole log, which ended it.
    pub fn finish(mut self) -> io::Result<()> {
        if self.failed.is_none() {
            let result = self.file.flush();
            self.note(result);
        }
        self.failed.map_or(Ok(()), Err)
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::error!(%error, "the event log ends here: it could not be written");
            self.failed = Some(error);
        }
    }
}

/// The records of a log in memory.
///
/// # Errors
/// When `bytes` is no event log. A log that is cut short gives the records before the cut.
pub fn records(bytes: &[u8]) -> io::Result<impl Iterator<Item = &[u8]>> {
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an event log of gotrace"));
    };
    Ok(std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let record = behind.get(..length)?;
        rest = &behind[length..];
        Some(record)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_cut_log_gives_its_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut log = EventLog::create(&path).expect("a log");
        log.write(b"one");
        log.write(b"three");
        log.finish().expect("room");
        let bytes = std::fs::read(&path).expect("the log");
        assert_eq!(records(&bytes).expect("a log").collect::<Vec<_>>(), [&b"one"[..], b"three"]);
        let cut = &bytes[..bytes.len() - 1];
        assert_eq!(records(cut).expect("a log").collect::<Vec<_>>(), [&b"one"[..]]);
        assert!(records(b"something else").is_err());
    }
}
