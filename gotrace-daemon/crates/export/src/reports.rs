//! Reports of a process as one gotrace hands them to another: a daemon to `gotrace attach`, for its live table.
//!
//! ```text
//! stream: a header, which is one line of JSON: schema, version of gotrace, layout; then frames
//! frame:  length of what follows (u32); where that is 0, there is no news; else how many reports were left out before
//!         this one (u64), and the report as gotrace_model::wire has it
//! ```
//!
//! Numbers are little endian. It is no stable format: what begins with another header is not read on. Input: bytes as they
//! come, in any pieces. Output: reports. Invariants: a length is looked at before there is room made for it; reading never
//! panics. Errors: [`ReportsError`].

use std::{
    fmt,
    io::{self, Write},
};

use serde::Deserialize;
use serde_json::json;

use crate::text;
use gotrace_model::{Interval, WireError, printable::printable, wire};

/// What a stream begins with. A change of frames needs another number; one of what they carry is seen by its layout.
const SCHEMA: &str = "gotrace.reports/1";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Bytes of a header's line.
const MAX_HEADER: usize = 4096;
/// Bytes of a frame.
const MAX_FRAME: usize = 16 << 20;
/// Bytes of a frame before its report.
const MISSED: usize = size_of::<u64>();

/// Why there are no reports.
#[derive(Debug, PartialEq, Eq)]
pub enum ReportsError {
    /// It is of another build: which one.
    OtherBuild(String),
    /// What no gotrace sends.
    Broken(String),
}

impl fmt::Display for ReportsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherBuild(theirs) => write!(f, "is {theirs}, and this is gotrace {VERSION}"),
            Self::Broken(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ReportsError {}

/// The stream's first line.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Header {
    schema: String,
    #[serde(default)]
    gotrace: String,
    #[serde(default)]
    layout: String,
}

impl Header {
    fn own() -> Self {
        Self { schema: SCHEMA.into(), gotrace: VERSION.into(), layout: wire::layout() }
    }
}

/// What a stream begins with.
#[must_use]
pub fn header() -> Vec<u8> {
    let Header { schema, gotrace, layout } = Header::own();
    format!("{}\n", json!({ "schema": schema, "gotrace": gotrace, "layout": layout })).into_bytes()
}

/// Says that there is no news.
pub const NO_NEWS: [u8; 4] = [0; 4];

/// A report; `missed`: reports that were left out before it.
///
/// # Errors
/// As [`wire::encode`].
pub fn frame(interval: &Interval, missed: u64) -> Result<Vec<u8>, WireError> {
    let head = [&NO_NEWS[..], &missed.to_le_bytes()].concat();
    let mut frame = wire::encode(interval, head)?;
    let length = u32::try_from(frame.len() - NO_NEWS.len()).unwrap_or(u32::MAX);
    if let Some(head) = frame.first_chunk_mut() {
        *head = length.to_le_bytes();
    }
    Ok(frame)
}

/// A report in words; `missed` as there.
///
/// # Errors
/// Those of `out`.
pub fn lines(out: &mut impl Write, interval: &Interval, missed: u64, system: bool) -> io::Result<()> {
    if missed > 0 {
        writeln!(out, "{}", left_out(missed))?;
    }
    text::interval(out, interval, system)
}

/// Says that so many reports are missing.
#[must_use]
pub fn left_out(missed: u64) -> String {
    let reports = if missed == 1 { "report" } else { "reports" };
    format!("{missed} {reports} left out: not read in time")
}

/// Reads a stream.
#[derive(Debug, Default)]
pub struct Reader {
    /// What is not read yet.
    bytes: Vec<u8>,
    has_begun: bool,
}

/// What a stream tells.
#[derive(Debug)]
pub enum Told {
    /// It is one that can be read.
    Begun,
    /// A report.
    Report {
        /// As it was seen.
        interval: Box<Interval>,
        /// Reports that were left out before it.
        missed: u64,
    },
}

impl Reader {
    /// Takes what comes.
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next of what is told; `None` until more has come.
    ///
    /// # Errors
    /// [`ReportsError`]; what comes after it is of no use.
    pub fn next_told(&mut self) -> Result<Option<Told>, ReportsError> {
        if !self.has_begun {
            return Ok(self.begin()?.then_some(Told::Begun));
        }
        while let Some(length) = self.bytes.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) {
            if length > MAX_FRAME {
                return Err(ReportsError::Broken(format!(
                    "sends a report of {length} bytes, and {MAX_FRAME} are the most that is read"
                )));
            }
            let end = NO_NEWS.len() + length;
            let Some(frame) = self.bytes.get(NO_NEWS.len()..end) else { break };
            let told = if length == 0 { None } else { Some(report(frame)?) };
            self.bytes.drain(..end);
            if told.is_some() {
                return Ok(told);
            }
        }
        Ok(None)
    }

    /// Reads the header, once it is there.
    fn begin(&mut self) -> Result<bool, ReportsError> {
        let Some(end) = self.bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n') else {
            return match self.bytes.len() {
                0..MAX_HEADER => Ok(false),
                _ => Err(ReportsError::Broken("sends no header of reports".into())),
            };
        };
        let header: Header = serde_json::from_slice(&self.bytes[..end])
            .map_err(|_| ReportsError::Broken("sends no header of reports".into()))?;
        self.bytes.drain(..=end);
        let own = Header::own();
        if header != own {
            let theirs = if header.gotrace == own.gotrace { "another build of gotrace" } else { "gotrace" };
            let version: String = header.gotrace.chars().take(64).collect();
            return Err(ReportsError::OtherBuild(format!("{theirs} {}", printable(&version))));
        }
        self.has_begun = true;
        Ok(true)
    }
}

fn report(frame: &[u8]) -> Result<Told, ReportsError> {
    let broken = |why: &str| ReportsError::Broken(format!("sends a report that cannot be read: {why}"));
    let (missed, interval) = frame.split_first_chunk::<MISSED>().ok_or_else(|| broken("it is cut short"))?;
    let interval = wire::decode(interval).map_err(|error| broken(&error.to_string()))?;
    Ok(Told::Report { interval: Box::new(interval), missed: u64::from_le_bytes(*missed) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::samples;

    /// What a reader tells of these bytes, which come in pieces of a length.
    fn told(bytes: &[u8], piece: usize) -> Result<Vec<Told>, ReportsError> {
        let (mut reader, mut all) = (Reader::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            reader.take(piece);
            while let Some(told) = reader.next_told()? {
                all.push(told);
            }
        }
        Ok(all)
    }

    #[test]
    fn reports_come_back_in_whatever_pieces() {
        let whole = samples::whole();
        let first = frame(&whole, 0).expect("memory");
        let bytes = [&header()[..], &NO_NEWS, &first, &NO_NEWS, &frame(&whole, 3).expect("memory")].concat();
        for piece in [1, 7, 4096, bytes.len()] {
            let all = told(&bytes, piece).expect("reports");
            let [Told::Begun, Told::Report { interval, missed: 0 }, Told::Report { missed: 3, .. }] =
                &all[..]
            else {
                panic!("{piece}: {all:?}")
            };
            assert_eq!(format!("{interval:?}"), format!("{whole:?}"));
        }
        assert_eq!(told(&bytes[..bytes.len() - 1], 64).expect("so far").len(), 2);
    }

    #[test]
    fn another_build_is_told_of_and_nothing_is_read_of_it() {
        let own = String::from_utf8(header()).expect("text");
        let layout = wire::layout();
        for (from, to, says) in [
            (VERSION, "9.8.7\\u001b[2J", "is gotrace 9.8.7\\u{1b}[2J, and this is gotrace "),
            (SCHEMA, "gotrace.reports/2", "is another build of gotrace "),
            (&*layout, "0123456789abcdef", "is another build of gotrace "),
        ] {
            let theirs = own.replace(from, to) + "\u{ff}what this one does not know";
            let error = told(theirs.as_bytes(), 5).expect_err(to);
            assert!(matches!(error, ReportsError::OtherBuild(_)), "{error:?}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn what_no_gotrace_sends_is_an_error() {
        let of = |frame: &[u8]| [&header()[..], frame].concat();
        let long = u32::try_from(MAX_FRAME + 1).expect("small").to_le_bytes();
        let cut = [&5u32.to_le_bytes()[..], &[0; 5]].concat();
        let garbage = [&100u32.to_le_bytes()[..], &[0xff; 100]].concat();
        for (bytes, says) in [
            (b"HTTP\n".to_vec(), "no header"),
            (vec![b'x'; MAX_HEADER], "no header"),
            (b"{\"schema\":7}\n".to_vec(), "no header"),
            (of(&long), "and 16777216 are the most"),
            (of(&[0xff; 4]), "sends a report of 4294967295 bytes"),
            (of(&cut), "cut short"),
            (of(&garbage), "cannot be read"),
        ] {
            let error = told(&bytes, 1000).expect_err(says);
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
    }
}
