//! A spool whose file was written by anybody.

use std::{fs, sync::OnceLock};

use gotrace_export::otlp::spool;
use tempfile::TempDir;

use crate::input::Input;

/// A record as the spool's files have them: what the head says comes from the input, its checksums are right.
fn record(input: &mut Input<'_>) -> Vec<u8> {
    let state = if input.number(1).is_multiple_of(4) { b'D' } else { b'W' };
    let mut head = vec![state, (input.number(1) % 3) as u8, 0, 0];
    let (stored, count, unpacked) = (input.number(3), input.number(4), input.number(3));
    let length = input.number(2) as usize;
    let body = input.bytes(length);
    // Mostly the length is what is there.
    let stored = if stored & 1 == 0 { body.len() as u64 } else { stored };
    for word in [stored, count, crc32fast::hash(body).into(), 7, 0, unpacked] {
        head.extend((word as u32).to_le_bytes());
    }
    head.extend(crc32fast::hash(&head[1..]).to_le_bytes());
    [&head, body].concat()
}

/// A byte: even for the bytes of a file, odd for records.
pub(crate) fn spool(input: &[u8]) {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    // In memory, where there is such a place.
    let directory = DIRECTORY.get_or_init(|| {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
    });
    let mut input = Input(input);
    let mut file = Vec::new();
    if input.number(1).is_multiple_of(2) {
        file.extend(input.0);
    } else {
        file.extend(b"gotrace1");
        while !input.is_empty() {
            file.extend(record(&mut input));
        }
    }
    let place = directory.path().join("spool");
    fs::create_dir_all(&place).expect("a directory");
    fs::write(place.join("1.traces"), file).expect("a file");
    spool::fuzzing::take_all(&place);
    fs::remove_dir_all(&place).expect("it goes");
}
