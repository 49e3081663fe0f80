//! Reports that a daemon hands to a command: as a stream, behind a right header, in pieces.

use gotrace_export::reports::{Reader, header};

/// A byte: 0 for a stream, else a frame of what follows, which comes in pieces of so many bytes.
pub(crate) fn reports(input: &[u8]) {
    let Some((piece, rest)) = input.split_first() else { return };
    let mut reader = Reader::default();
    let frame;
    let bytes = match piece {
        0 => rest,
        _ => {
            frame = [&header()[..], &(rest.len() as u32).to_le_bytes(), rest].concat();
            &frame
        }
    };
    for piece in bytes.chunks(usize::from(*piece).max(1)) {
        reader.take(piece);
        loop {
            match reader.next_told() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return;
                }
            }
        }
    }
}
