//! What tests of the formats have in common: a snapshot of a real process, read again from its saved memory,
//! and expected outputs. `GOTRACE_BLESS=1 cargo test` writes those anew.
//!
//! The memory is `tests/images/demo.amd64.img`, of the program `tests/go/demo`.

use std::{fs, io::Read as _, path::PathBuf, sync::Arc};

use flate2::read::GzDecoder;

use super::{Dump, Filter, Header, Mapped};
use gotrace_go::Binary;
use gotrace_inspect::snapshot::{Engine, Image, Names, Options, Snapshot};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The demo's goroutines, at a time and with a duration that are always the same.
pub(crate) fn demo() -> (Snapshot, Names) {
    let packed = fs::read(directory().join("../../demo/demo.amd64.gz")).expect("the program");
    let mut program = Vec::new();
    GzDecoder::new(&*packed).read_to_end(&mut program).expect("a gzip file");
    let binary = Arc::new(Binary::parse(&program).expect("a Go program"));
    let image = fs::read(directory().join("../../../tests/images/demo.amd64.img")).expect("the image");
    let image = Image::read(&image).expect("an image");
    let mut engine = Engine::new(Arc::clone(&binary), image.bias).expect("a program that tells enough");
    let mut snapshot = engine.take(&image, Options::default()).expect("goroutines");
    snapshot.pid = 4711;
    // A minute and a half after the collector last noted who waits.
    let noted = snapshot.goroutines.iter().map(|g| g.wait_since_ns).max().unwrap_or(0);
    snapshot.monotonic_ns = noted + 90_000_000_000;
    snapshot.time_unix_nano = 1_700_000_000_000_000_000;
    snapshot.duration_ns = 1_500_000;
    (snapshot, Names::new(binary, image.bias, None))
}

pub(super) fn header() -> Header<'static> {
    Header {
        executable: "/usr/bin/demo",
        go_version: "go1.24.11",
        mapping: Some(Mapped { start: 0x40_0000, end: 0x50_0000, file_offset: 0 }),
        build_id: "0123abcd",
        ..Header::default()
    }
}

/// What a format writes of the demo.
pub(super) fn written(
    filter: &Filter,
    write: impl FnOnce(&mut Vec<u8>, &Dump<'_>, &mut Names) -> std::io::Result<()>,
) -> Vec<u8> {
    let (snapshot, mut names) = demo();
    let dump = Dump::new(header(), &snapshot, filter, &mut names);
    let mut out = Vec::new();
    write(&mut out, &dump, &mut names).expect("a vector takes it");
    out
}

/// Compares with a file of `dump/golden/`.
pub(super) fn assert_golden(name: &str, text: &[u8]) {
    golden(&format!("dump/golden/{name}"), text);
}

/// Compares with a file, from the crate's sources on.
pub(crate) fn golden(name: &str, text: &[u8]) {
    let path = directory().join("src").join(name);
    if std::env::var_os("GOTRACE_BLESS").is_some() {
        fs::write(&path, text).expect("the golden file");
    }
    let expected = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let expected = String::from_utf8_lossy(&expected);
    for (n, (now, before)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(now, before, "{name}, line {}", n + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{name}: lines");
}
