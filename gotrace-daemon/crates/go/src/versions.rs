//! What differs between versions of Go and cannot be read from a stripped binary: offsets in the
//! runtime's structures and a few numbers. One row a class of versions; a test of the workspace holds it
//! against the debug information of a binary built by each version.
//!
//! Sources: `runtime/runtime2.go`, `runtime/mheap.go`, `runtime/netpoll.go`, `runtime/time.go`,
//! `runtime/symtab.go`, `internal/abi/symtab.go`.
//! The offsets are the same on amd64 and arm64, with and without race detector and cgo.

use std::collections::BTreeMap;

/// The oldest version with a row.
pub(super) const OLDEST: u32 = 18;
/// The newest version with a row; later ones are read with its row.
pub(super) const NEWEST: u32 = 27;

const NONE: u32 = u32::MAX;

/// Columns of [`ROWS`].
const COLUMNS: usize = 62;

/// Names of the fields, in the order of the columns of [`ROWS`], and behind them those of the module data.
pub(super) const FIELDS: [&str; COLUMNS + 2] = [
    "g.stack.lo",
    "g.stack.hi",
    "g.m",
    "g.sched.sp",
    "g.sched.pc",
    "g.sched.lr",
    "g.sched.bp",
    "g.syscallsp",
    "g.syscallpc",
    "g.syscallbp",
    "g.atomicstatus",
    "g.goid",
    "g.schedlink",
    "g.waitsince",
    "g.waitreason",
    "g.coroexit",
    "g.lockedm",
    "g.parentGoid",
    "g.gopc",
    "g.startpc",
    "g.waiting",
    "g.labels",
    "g.coroarg",
    "m.g0",
    "m.procid",
    "m.curg",
    "m.p",
    "m.id",
    "sudog.g",
    "sudog.elem",
    "sudog.elem.vu",
    "sudog.waitlink",
    "sudog.c",
    "sudog.c.vu",
    "hchan.qcount",
    "hchan.dataqsiz",
    "hchan.elemsize",
    "hchan.closed",
    "hchan.recvq",
    "hchan.sendq",
    "pollDesc.fd",
    "pollDesc.rg",
    "pollDesc.wg",
    "g.trackingSeq",
    "mspan.startAddr",
    "mspan.npages",
    "mspan.nelems",
    "mspan.spanclass",
    "mspan.state",
    "mspan.elemsize",
    "mspan.specials",
    "mspan.freeindex",
    "mspan.allocBits",
    "mspan.largeType",
    "special.next",
    "special.offset",
    "special.kind",
    "pollDesc.rd",
    "pollDesc.wd",
    "timer.when",
    "g.timer",
    "g.sleepWhen",
    "moduledata.types",
    "moduledata.etypes",
];

/// (first version, offsets in the order of [`FIELDS`], as many as there are columns).
#[rustfmt::skip]
const ROWS: [(u32, [u32; COLUMNS]); 7] = [
    (18, [0, 8, 48, 56, 64, 96, 104, 112, 120, NONE, 144, 152, 160, 168, 176, NONE, 232, NONE, 296, 312, 328, 360, NONE,
          0, 72, 192, 208, 232,
          0, 24, NONE, 64, 80, NONE, 0, 8, 24, 28, 56, 72, 8, 24, 32, 189,
          24, 32, 56, 98, 99, 104, 128, 48, 72, NONE, 0, 8, 10,
          136, 224, 8, 368, NONE]),
    (21, [0, 8, 48, 56, 64, 96, 104, 112, 120, NONE, 144, 152, 160, 168, 176, NONE, 208, 272, 280, 296, 312, 344, NONE,
          0, 72, 192, 208, 232,
          0, 24, NONE, 64, 80, NONE, 0, 8, 24, 28, 56, 72, 8, 32, 40, 188,
          24, 32, 56, 106, 107, 112, 136, 48, 72, NONE, 0, 8, 10,
          144, 232, 8, 352, NONE]),
    (22, [0, 8, 48, 56, 64, 96, 104, 112, 120, NONE, 144, 152, 160, 168, 176, 187, 208, 272, 280, 296, 312, 344, 368,
          0, 72, 192, 208, 232,
          0, 24, NONE, 64, 80, NONE, 0, 8, 24, 28, 56, 72, 8, 32, 40, 191,
          24, 32, 50, 98, 99, 104, 128, 48, 64, 152, 0, 8, 10,
          144, 232, 8, 352, NONE]),
    (23, [0, 8, 48, 56, 64, 96, 104, 112, 120, 128, 152, 160, 168, 176, 184, 195, 216, 280, 288, 304, 320, 352, 384,
          0, 72, 192, 208, 232,
          0, 24, NONE, 64, 80, NONE, 0, 8, 24, 28, 64, 80, 8, 32, 40, 199,
          24, 32, 50, 98, 99, 104, 128, 48, 64, 152, 0, 8, 10,
          160, 264, 16, 360, 368]),
    (24, [0, 8, 48, 56, 64, 96, 104, 112, 120, 128, 152, 160, 168, 176, 184, 195, 216, 280, 288, 304, 320, 352, 384,
          0, 72, 192, 208, 232,
          0, 24, NONE, 64, 80, NONE, 0, 8, 24, 28, 64, 80, 8, 32, 40, 199,
          24, 32, 50, 98, 99, 104, 128, 48, 64, 152, 0, 8, 16,
          160, 264, 16, 360, 368]),
    (25, [0, 8, 48, 56, 64, 88, 96, 104, 112, 120, 144, 152, 160, 168, 176, 187, 208, 272, 280, 296, 312, 344, 376,
          0, 64, 184, 200, 224,
          0, 24, NONE, 64, 80, NONE, 0, 8, 24, 28, 64, 80, 8, 32, 40, 191,
          24, 32, 50, 98, 99, 104, 128, 48, 64, 152, 0, 8, 16,
          168, 280, 24, 352, 360]),
    (26, [0, 8, 48, 56, 64, 88, 96, 104, 112, 120, 144, 152, 160, 168, 176, 187, 208, 280, 288, 304, 320, 352, 384,
          0, 64, 184, 208, 232,
          0, 24, 32, 72, 88, 96, 0, 8, 24, 28, 64, 80, 8, 32, 40, 191,
          24, 32, 50, 98, 99, 104, 128, 48, 64, 152, 0, 8, 16,
          168, 280, 24, 360, 368]),
];

/// Offsets of a version's fields, those that it has.
pub(super) fn offsets(minor: u32) -> impl Iterator<Item = (&'static str, u32)> {
    let row = ROWS.iter().rev().find(|(first, _)| *first <= minor).unwrap_or(&ROWS[0]);
    let all = row.1.into_iter().chain(types_offsets(minor));
    FIELDS.iter().copied().zip(all).filter(|&(_, offset)| offset != NONE)
}

/// The newest version that has all these fields, `g.goid` among them, at these offsets.
pub(super) fn by_offsets(told: &[(&str, u32)]) -> Option<u32> {
    if !told.iter().any(|(field, _)| *field == "g.goid") {
        return None;
    }
    (OLDEST..=NEWEST).rev().find(|minor| {
        let known: BTreeMap<&str, u32> = offsets(*minor).collect();
        told.iter().all(|(field, value)| known.get(field) == Some(value))
    })
}

/// Offsets of `moduledata.types` and `moduledata.etypes`: where descriptions of types begin and end.
const fn types_offsets(minor: u32) -> [u32; 2] {
    match minor {
        ..=19 => [280, 288],
        20..=26 => [296, 304],
        _ => [296, 312],
    }
}

/// The first version of each class of versions, oldest first.
pub(super) fn classes() -> impl Iterator<Item = u32> {
    ROWS.iter().map(|&(first, _)| first)
}

/// Offset of `moduledata.gofunc`.
pub(super) const fn gofunc_offset(minor: u32) -> u64 {
    match minor {
        ..=19 => 304,
        20..=26 => 320,
        _ => 344,
    }
}

/// Where the module data (`moduledata`) tell where type descriptors begin and end: first as this version has
/// it, then as others have it. The reader sees which is right by what is there.
pub(super) fn type_ranges(minor: u32) -> [(u64, u64); 3] {
    let mut all = [(280, 288), (296, 304), (296, 312)];
    let first = match minor {
        ..=19 => 0,
        20..=26 => 1,
        _ => 2,
    };
    all.swap(0, first);
    all
}

/// Numbers of what the runtime keeps beside an object: a finalizer, a weak handle, a cleanup
/// (`runtime/mheap.go`, `_KindSpecialFinalizer` and the following); `None` where the version has none.
pub(super) const fn special_kinds(minor: u32) -> (u8, Option<u8>, Option<u8>) {
    match minor {
        ..=22 => (1, None, None),
        23 => (1, Some(2), None),
        24 => (1, Some(2), Some(6)),
        _ => (2, Some(3), Some(7)),
    }
}

/// Number of a compiler-made wrapper among function kinds (`abi.FuncIDWrapper`).
pub(super) const fn wrapper_id(minor: u32) -> u8 {
    match minor {
        ..=21 => 21,
        22..=24 => 22,
        _ => 23,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_known_by_where_its_fields_are() {
        // The newest of those that have the same offsets.
        for (minor, found) in [(18, 19), (20, 20), (22, 22), (23, 23), (24, 24), (25, 25), (26, 26), (27, 27)]
        {
            let told: Vec<_> = offsets(minor).collect();
            assert_eq!(by_offsets(&told), Some(found), "{minor}");
        }
        assert_eq!(by_offsets(&[("g.goid", 160), ("g.parentGoid", 280)]), Some(24));
        assert_eq!(by_offsets(&[("g.goid", 161)]), None);
        assert_eq!(by_offsets(&[("m.curg", 184)]), None);
    }
}
