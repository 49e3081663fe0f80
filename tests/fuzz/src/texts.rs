//! Texts: those of `/proc`, the configuration, dumps.

use std::path::Path;

use gotrace::config::Config;
use gotrace_export::dump::read::{Places, Tally};
use gotrace_metadata::container::Placement;

/// All that is read of `/proc`, from the same text: much of it is chosen by whoever runs the process.
pub(crate) fn proc(input: &[u8]) {
    gotrace_process::fuzzing::texts(input);
    let text = String::from_utf8_lossy(input);
    let (cgroup, mounts) = text.split_once('\0').unwrap_or((&text, ""));
    let _ = Placement::parse(cgroup, mounts).attributes();
}

/// A configuration.
pub(crate) fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(error) = Config::parse(text, Path::new("gotrace.yaml")) {
        assert!(!error.to_string().is_empty());
    }
}

/// A dump, as `gotrace diff` reads it.
pub(crate) fn dump(input: &[u8]) {
    let mut places = Places::default();
    if let Err(error) = Tally::read("dump.json", &mut &*input, true, &mut places) {
        assert!(!error.to_string().is_empty());
    }
}
