//! For the fuzzer alone: every parser of a text of `/proc` that has no public name.

use crate::{
    clock, file_locks, open_files,
    proc_text::{self, Stat, Status},
    sockets,
    system_calls::RawCall,
};

/// Parses a text as each of them.
pub fn texts(bytes: &[u8]) {
    let _ = (Stat::parse(bytes), Status::parse(bytes));
    let _ = proc_text::read_maps(bytes, |line| assert!(line.range.start <= line.range.end));
    let _ = (proc_text::split_deleted(bytes), proc_text::escape_newlines(bytes));
    let text = String::from_utf8_lossy(bytes);
    file_locks::fuzz(&text);
    open_files::fuzz(&text);
    sockets::fuzz(&text);
    if let Some(call) = RawCall::parse(&text) {
        let _ = call.named();
    }
    let _ = clock::offset_of(&text);
}
