//! The whole snapshot engine without a process: from memory saved of the demo's program, for amd64 and
//! arm64, as it was and damaged in every way that chance finds. No root, no Go, no kernel.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use flate2::read::GzDecoder;
use gotrace_go::Binary;
use gotrace_inspect::snapshot::{Engine, Image, Names, ObjectKind, Options, Snapshot, SnapshotError, Status};
use gotrace_process::{Piece, ProcessError, ReadMemory};
use gotrace_tests::gobuild::workspace;
use proptest::prelude::*;

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

type Saved = (Arc<Binary>, Image);

static SAVED: LazyLock<[Saved; 2]> = LazyLock::new(|| ARCHITECTURES.map(load));

fn load(arch: &str) -> Saved {
    let read = |path: &str| fs::read(workspace().join(path)).expect("committed");
    let mut program = Vec::new();
    let packed = read(&format!("gotrace-daemon/demo/demo.{arch}.gz"));
    GzDecoder::new(&packed[..]).read_to_end(&mut program).expect("packed");
    let binary = Binary::parse(&program).expect("a Go program");
    let image = Image::read(&read(&format!("tests/images/demo.{arch}.img"))).expect("an image");
    (Arc::new(binary), image)
}

fn take((binary, image): &Saved) -> Result<Snapshot, SnapshotError> {
    Engine::new(Arc::clone(binary), image.bias)?.take(image, Options::default())
}

/// A goroutine in one line: state or reason, entry, creator, functions that Go's traceback shows.
fn line(snapshot: &Snapshot, names: &mut Names, goid: u64) -> String {
    let g = snapshot.goroutine(goid).expect("there");
    let reason = names.binary().wait_reasons()[usize::from(g.wait_reason)];
    let state = if g.status.is_waiting() { reason } else { g.status.name() };
    let entry = names.entry(g.entry_pc).map(|f| f.function.clone()).unwrap_or_default();
    let shown: Vec<String> = names
        .stack(snapshot.frames(g))
        .iter()
        .filter(|f| !f.internal)
        .map(|f| format!("{}:{}", f.frame.function, f.frame.line))
        .collect();
    format!("{state}; {entry}; {}", shown.join(" "))
}

#[test]
fn saved_memory_tells_what_the_process_had() {
    for (arch, saved) in ARCHITECTURES.iter().zip(&*SAVED) {
        let snapshot = take(saved).unwrap_or_else(|e| {
            panic!("{arch}: {e}; was tests/go/demo built anew without tests/images/record.sh?")
        });
        let mut names = Names::new(Arc::clone(&saved.0), saved.1.bias, None);
        let counts = snapshot.counts;
        assert!(counts.goroutines > 25 && counts.system > 3, "{arch}: {counts:?}");
        assert_eq!(
            counts.stacks_incomplete + counts.implausible + counts.unreadable,
            0,
            "{arch}: {counts:?}"
        );
        let lines: BTreeSet<String> =
            snapshot.goroutines.iter().map(|g| line(&snapshot, &mut names, g.goid)).collect();
        for expected in [
            "sleep; runtime.main; time.Sleep:338 main.main:48",
            "chan receive; main.cook; main.cook:101",
            "chan receive; main.waitForever; main.waitForever:122",
            "IO wait; main.main.gowrap1; internal/poll.runtime_pollWait:351 internal/poll.(*pollDesc).wait:84 \
             internal/poll.(*pollDesc).waitRead:89 internal/poll.(*FD).Accept:620 net.(*netFD).accept:172 \
             net.(*TCPListener).accept:159 net.(*TCPListener).Accept:380 main.openShop:54",
            "finalizer wait; runtime.runfinq; ",
        ] {
            assert!(lines.contains(expected), "{arch}: no `{expected}` in {lines:#?}");
        }
        let leaked: Vec<_> = snapshot
            .goroutines
            .iter()
            .filter(|g| names.entry(g.entry_pc).is_some_and(|f| f.function == "main.waitForever"))
            .collect();
        let mut channels = BTreeSet::new();
        for g in &leaked {
            let [wait] = snapshot.waits_of(g) else { panic!("{arch}: waits on {:?}", snapshot.waits_of(g)) };
            let object = snapshot.object(wait.object).expect("there");
            assert_eq!(
                (object.kind, object.known, object.cap, object.receivers),
                (ObjectKind::Chan, true, 0, 1)
            );
            assert!(channels.insert(object.address), "each waits on a channel of its own");
        }
        assert!(leaked.len() > 5, "{arch}: {} leaked", leaked.len());
    }
}

#[test]
fn another_programs_memory_is_refused() {
    let [amd64, arm64] = &*SAVED;
    for (binary, image) in [(&amd64.0, &arm64.1), (&arm64.0, &amd64.1)] {
        let mut engine = Engine::new(Arc::clone(binary), 0).expect("knows its own");
        for result in [engine.take(image, Options::default()).map(|_| ()), engine.check_layout(image)] {
            assert!(matches!(result, Err(SnapshotError::Implausible { .. })), "{result:?}");
        }
        let mut shifted = Engine::new(Arc::clone(binary), 0x1000).expect("knows its own");
        assert!(shifted.take(image, Options::default()).is_err());
    }
}

/// What must hold of every snapshot, whatever was read.
fn is_sound(snapshot: &Snapshot) {
    let goroutines = &snapshot.goroutines;
    assert!(goroutines.windows(2).all(|w| w[0].goid < w[1].goid));
    assert!(goroutines.len() as u64 <= snapshot.counts.allgs);
    for g in goroutines {
        let _ = snapshot.frames(g);
        for wait in snapshot.waits_of(g) {
            assert!(snapshot.object(wait.object).is_some());
        }
        assert!(g.status != Status::Running || g.stack.is_none());
        assert!(!g.is_stack_complete() || g.stack.is_some());
    }
}

fn survives(saved: &Saved) {
    let begin = Instant::now();
    if let Ok(snapshot) = take(saved) {
        is_sound(&snapshot);
        let mut names = Names::new(Arc::clone(&saved.0), saved.1.bias, None);
        for g in &snapshot.goroutines {
            names.stack(snapshot.frames(g));
            names.entry(g.entry_pc);
            names.created_by(g.created_pc);
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(120), "took {:?}", begin.elapsed());
}

/// Addresses of all goroutines' `g`s and of the list's variables.
fn interesting((binary, image): &Saved) -> (Vec<u64>, [u64; 2]) {
    let allgs = binary.allgs().expect("known");
    let snapshot = Engine::new(Arc::clone(binary), 0)
        .and_then(|mut e| e.take(image, Options::default()))
        .expect("undamaged");
    (snapshot.goroutines.iter().map(|g| g.g).collect(), [allgs.length, allgs.pointer])
}

#[test]
fn absurd_lists_are_refused() {
    for saved in &*SAVED {
        let (gs, [length, pointer]) = interesting(saved);
        for (address, value) in [
            (length, 0),
            (length, 1 << 20),
            (length, 1 << 40),
            (length, u64::MAX),
            (pointer, 0),
            (pointer, 8),
            (pointer, u64::MAX - 7),
            (pointer, gs[0] + 1),
            (pointer, length),
        ] {
            let mut damaged = saved.clone();
            damaged.1.set(address, &u64::to_le_bytes(value));
            let result = take(&damaged);
            assert!(matches!(result, Err(SnapshotError::Implausible { .. })), "{value:#x} at {address:#x}");
        }
    }
}

#[test]
fn cyclic_wait_lists_end() {
    for saved in &*SAVED {
        let offsets = saved.0.offsets();
        let field = |name| u64::from(offsets.get(name).expect("known"));
        let mut damaged = saved.clone();
        for g in interesting(saved).0 {
            let mut sudog = [0; 8];
            assert!(saved.1.read_at(g + field("g.waiting"), &mut sudog).expect("an image"));
            let sudog = u64::from_le_bytes(sudog);
            if sudog != 0 {
                damaged.1.set(sudog + field("sudog.waitlink"), &sudog.to_le_bytes());
            }
        }
        let snapshot = take(&damaged).expect("the rest is right");
        assert!(snapshot.counts.waits_unreadable > 0);
        is_sound(&snapshot);
    }
}

/// An image, and noise wherever it has nothing: the tables of arguments are not in it.
struct Noisy<'a>(&'a Image, u64);

impl ReadMemory for Noisy<'_> {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        let mut rest = buffer;
        failed.clear();
        for piece in pieces {
            let (now, later) = rest.split_at_mut(piece.len);
            rest = later;
            if self.0.read_at(piece.address, now)? {
                continue;
            }
            for (address, byte) in (piece.address..).zip(now) {
                let noise = (address ^ self.1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
                // Half of them stand for something else than an offset, and one in eight ends a table.
                *byte = match noise % 8 {
                    0 => 0xff,
                    1..=3 => 0xfb + (noise >> 3) as u8 % 4,
                    _ => (noise >> 8) as u8,
                };
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Tables of arguments that say anything.
    #[test]
    fn noise_for_arguments(arch in 0usize..2, seed: u64) {
        let (binary, image) = &SAVED[arch];
        let options = Options { arguments: true, ..Options::default() };
        let snapshot = Engine::new(Arc::clone(binary), image.bias)
            .and_then(|mut e| e.take(&Noisy(image, seed), options))
            .expect("goroutines are as they were");
        is_sound(&snapshot);
        let (mut known, mut frames) = (0, 0);
        for g in &snapshot.goroutines {
            let arguments = snapshot.arguments_of(g);
            prop_assert_eq!(arguments.len(), snapshot.frames(g).len());
            frames += arguments.len() as u64;
            known += arguments.iter().flatten().count() as u64;
        }
        prop_assert!(known > 0);
        prop_assert_eq!(frames - known, snapshot.counts.arguments_unreadable);
    }

    /// Bytes anywhere.
    #[test]
    fn damaged_bytes(arch in 0usize..2, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200)) {
        let mut saved = SAVED[arch].clone();
        let len = saved.1.len();
        let mut at: Vec<(usize, u8)> = damage.iter().map(|(i, b)| (i.index(len), *b)).collect();
        at.sort_unstable();
        at.dedup_by_key(|(i, _)| *i);
        let mut next = at.into_iter().peekable();
        for (n, byte) in saved.1.bytes_mut().enumerate() {
            if let Some((_, value)) = next.next_if(|(i, _)| *i == n) {
                *byte = value;
            }
        }
        survives(&saved);
    }

    /// Words of the structures, with values that point to others, beyond the end, or to themselves.
    #[test]
    fn damaged_structures(
        arch in 0usize..2,
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), 0u64..57, any::<prop::sample::Index>(), 0u64..64, 0u8..4),
            1..60,
        ),
    ) {
        let mut saved = SAVED[arch].clone();
        let (gs, _) = interesting(&saved);
        for (g, word, other, offset, kind) in damage {
            let value = match kind {
                0 => gs[other.index(gs.len())] + 8 * offset,
                1 => offset,
                2 => u64::MAX - offset,
                _ => 1 << offset,
            };
            saved.1.set(gs[g.index(gs.len())] + 8 * word, &value.to_le_bytes());
        }
        survives(&saved);
    }
}
