//! Recordings: as they are, and with blocks whose checksums are right.

use std::io::Write as _;

use flate2::{Compression, write::DeflateEncoder};
use gotrace_agent::{
    recording::{Listener, Reader, replay},
    tracee::{Outputs, Tracee},
};
use gotrace_model::Summary;

/// Takes what it is told, so that it does not gather.
struct Nobody;

impl Listener for Nobody {
    fn began(&mut self, _: &Tracee) {}

    fn told(&mut self, out: &mut Outputs) {
        *out = Outputs::default();
    }

    fn ended(&mut self, _: Summary) {}
}

/// A block as `gotrace_agent::recording` documents it.
fn block(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let mut packer = DeflateEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).expect("memory");
    let packed = packer.finish().expect("memory");
    let mut block: Vec<u8> =
        [kind, packed.len() as u32, bytes.len() as u32].iter().flat_map(|n| n.to_le_bytes()).collect();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&block);
    sum.update(&packed);
    block.extend(sum.finalize().to_le_bytes());
    block.extend(packed);
    block
}

/// A byte: 0 for the bytes of a file, 1 for inputs, else for inputs that begin with a state.
pub(crate) fn recording(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let made_up;
    let bytes = match kind {
        0 => rest,
        _ => {
            let begin = b"\x89GTR\r\n\x1a\n\x01\0\0\0";
            made_up = [&begin[..], &block(1, b"{}"), &block(if *kind == 1 { 2 } else { 3 }, rest)].concat();
            &made_up
        }
    };
    let result = Reader::new(bytes).and_then(|mut reader| replay(&mut reader, &mut Nobody));
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
}
