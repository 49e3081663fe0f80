//! What is shown, as a file: intervals as `attach --format json` writes them (`gotrace.attach/1`).
//!
//! All views are in it, not sorted nor filtered, and with a mark both intervals, so that what grew can be computed; what was
//! read last for the views that are read when they are asked for comes after that. The file is new, of its user alone, in a directory that the caller names; its name says of which process and when.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use gotrace_export::{check::markdown::utc, json, reading};
use gotrace_model::{Interval, printable::printable};
use gotrace_process::private;

use super::{reading::Readings, state::State};

/// Files of one process and second.
const MOST: u32 = 100;

impl State {
    /// Writes what is shown into a file of the directory, and has the last line say so.
    pub(super) fn export(&mut self, directory: &Path) {
        self.said = match &self.last {
            None => "nothing to export yet".into(),
            Some(last) => {
                let told = match write(directory, self.mark.as_deref(), last, &self.readings) {
                    Ok(path) => format!("wrote {}", path.display()),
                    Err(error) => format!("cannot write to {}: {error}", directory.display()),
                };
                printable(&told).into_owned()
            }
        };
    }
}

fn write(
    directory: &Path,
    mark: Option<&Interval>,
    last: &Interval,
    readings: &Readings,
) -> io::Result<PathBuf> {
    let time = utc(last.end_unix_nano).replace(" UTC", "Z").replace(' ', "T").replace(':', "");
    let mut tries = (1..=MOST).map(|n| {
        let number = if n == 1 { String::new() } else { format!("-{n}") };
        let path = directory.join(format!("gotrace-{}-{time}{number}.jsonl", last.pid));
        private::create_new(&path).map(|file| (file, path))
    });
    let is_taken = |made: &io::Result<_>| matches!(made, Err(e) if e.kind() == io::ErrorKind::AlreadyExists);
    let (file, path) = tries.find(|made| !is_taken(made)).unwrap_or_else(|| {
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "there are a hundred files of this second"))
    })?;
    let mut out = BufWriter::new(file);
    let time = mark.unwrap_or(last).end_unix_nano;
    json::header_at(&mut out, &last.resource, last.pid, (last.engine, last.level), time)?;
    for interval in mark.into_iter().chain([last]) {
        json::interval(&mut out, interval)?;
    }
    let (goroutines, locks) = readings.known();
    if let Some(goroutines) = goroutines {
        reading::json(&mut out, "goroutines_read", goroutines)?;
    }
    if let Some(locks) = locks {
        reading::json(&mut out, "locks_read", locks)?;
    }
    out.flush()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

    use super::*;
    use crate::state::tests::interval;

    #[test]
    fn what_is_shown_becomes_new_files_of_the_users_own() {
        let directory = tempfile::tempdir().expect("made");
        let mut state = State::new(String::new(), false, false);
        state.export(directory.path());
        assert_eq!(state.said, "nothing to export yet");
        state.update(&Arc::new(interval()));
        state.export(directory.path());
        let first = directory.path().join("gotrace-1234-1970-01-01T001642Z.jsonl");
        assert_eq!(state.said, format!("wrote {}", first.display()));
        let text = fs::read_to_string(&first).expect("read");
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("gotrace.attach/1") && lines[1].contains("inventory.(*Pool).worker"),
            "{text}"
        );
        assert_eq!(
            (lines.len(), fs::metadata(&first).expect("there").permissions().mode() & 0o777),
            (2, 0o600)
        );
        // With a mark both, into another file.
        state.mark();
        state.export(directory.path());
        let second = directory.path().join("gotrace-1234-1970-01-01T001642Z-2.jsonl");
        assert_eq!(fs::read_to_string(&second).expect("read").lines().count(), 3);
        assert_eq!(fs::read_to_string(&first).expect("read"), text, "the first is as it was");
        state.export(&directory.path().join("none"));
        assert!(
            state.said.starts_with("cannot write to ") && state.said.contains("No such file"),
            "{}",
            state.said
        );
    }
}
