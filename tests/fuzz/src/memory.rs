//! The memory of a process that says anything: the demo's, saved, with words that lead elsewhere.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use gotrace_go::Binary;
use gotrace_inspect::{
    heap::Prover,
    snapshot::{Engine, Image, Names, Options},
};
use gotrace_process::{Piece, ProcessError, ReadMemory, read_one_by_one};

use crate::{input::Input, programs::demo};

struct Saved {
    binary: Arc<Binary>,
    image: Image,
    /// Where structures are: goroutines, and the variables of their list.
    places: Vec<u64>,
}

fn saved(architecture: usize) -> &'static Saved {
    static SAVED: OnceLock<[Saved; 2]> = OnceLock::new();
    let saved = SAVED.get_or_init(|| {
        [(0, "amd64"), (1, "arm64")].map(|(n, name)| {
            let binary = Arc::new(Binary::parse(&demo(n)).expect("a Go program"));
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../images/demo.{name}.img"));
            let image = Image::read(&fs::read(path).expect("committed")).expect("an image");
            let snapshot = Engine::new(Arc::clone(&binary), image.bias)
                .and_then(|mut engine| engine.take(&image, Options::default()))
                .expect("undamaged");
            let allgs = binary.allgs().expect("known");
            let lists = [allgs.length, allgs.pointer].map(|a| a.wrapping_add(image.bias));
            let places = snapshot.goroutines.iter().map(|g| g.g).chain(lists).collect();
            Saved { binary, image, places }
        })
    });
    &saved[architecture % 2]
}

/// An image, and beyond it what follows from the address: zeros, words that lead back into it, noise. No more of that than
/// [`MOST`]: how much there is to do is bounded by what a process has.
struct Beyond<'a> {
    image: &'a Image,
    places: &'a [u64],
    seed: u64,
    /// Bytes that were read of it.
    read: AtomicUsize,
}

/// Bytes beyond an image.
const MOST: usize = 8 << 20;

impl ReadMemory for Beyond<'_> {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        read_one_by_one(pieces, buffer, failed, |address, to| {
            if self.image.read_at(address, to).is_ok_and(|read| read) {
                return true;
            }
            if self.read.fetch_add(to.len(), Ordering::Relaxed) > MOST {
                return false;
            }
            for (to, n) in to.iter_mut().zip(0..) {
                let at = address.wrapping_add(n);
                let word = at & !7;
                let noise = (word ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let value = match noise >> 61 {
                    0..=2 => 0,
                    3 => noise >> 32 & 0xff,
                    4 => self.places[(noise >> 32) as usize % self.places.len()],
                    5 => word.wrapping_add(noise >> 32 & 0xfff8),
                    6 => noise,
                    _ => u64::MAX,
                };
                *to = value.to_le_bytes()[(at & 7) as usize];
            }
            noise_is_there(address, self.seed)
        });
        Ok(())
    }
}

/// Some pages are not mapped.
fn noise_is_there(address: u64, seed: u64) -> bool {
    !((address >> 12) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).is_multiple_of(16)
}

/// Damage: which structure, which word of it, what it is: another place, a small or large number, a bit, anything.
fn damage(input: &mut Input<'_>, saved: &Saved) -> Image {
    let mut image = saved.image.clone();
    while !input.is_empty() {
        let word = 8 * input.below(1, 64) as u64;
        let place = saved.places[input.below(1, saved.places.len())].wrapping_add(word);
        let value = match input.number(1) % 5 {
            0 => saved.places[input.below(1, saved.places.len())].wrapping_add(8 * input.number(1)),
            1 => input.number(2),
            2 => u64::MAX - input.number(2),
            3 => 1 << (input.number(1) % 64),
            _ => input.number(8),
        };
        image.set(place, &value.to_le_bytes());
    }
    image
}

/// A snapshot, with all that is read of goroutines, and how it is named.
pub(crate) fn image(input: &[u8]) {
    let mut input = Input(input);
    let saved = saved(input.number(1) as usize);
    let seed = input.number(4);
    let image = damage(&mut input, saved);
    let beyond = Beyond { image: &image, places: &saved.places, seed, read: AtomicUsize::new(0) };
    let memory: &dyn ReadMemory = if seed == 0 { &image } else { &beyond };
    let options = Options { stacks: true, waits: true, labels: true, arguments: true, callees: false };
    let Ok(mut engine) = Engine::new(Arc::clone(&saved.binary), image.bias) else { return };
    let Ok(snapshot) = engine.take(memory, options) else { return };
    let mut names = Names::new(Arc::clone(&saved.binary), image.bias, None);
    for g in &snapshot.goroutines {
        names.stack(snapshot.frames(g));
        names.entry(g.entry_pc);
        names.created_by(g.created_pc);
        assert!(snapshot.waits_of(g).iter().all(|wait| snapshot.object(wait.object).is_some()));
    }
}

/// Three passes over what calls itself the heap.
pub(crate) fn heap(input: &[u8]) {
    let mut input = Input(input);
    let saved = saved(input.number(1) as usize);
    let seed = input.number(4);
    let image = damage(&mut input, saved);
    let memory = Beyond { image: &image, places: &saved.places, seed, read: AtomicUsize::new(0) };
    let Ok(mut prover) = Prover::new(Arc::clone(&saved.binary), image.bias) else { return };
    for _ in 0..3 {
        if prover.pass(&memory).is_err() {
            return;
        }
    }
    let _ = prover.refuted(&memory);
}
