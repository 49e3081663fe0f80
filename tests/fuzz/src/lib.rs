//! Targets for libFuzzer: everything in gotrace that parses what a watched program, a file or a user chose.
//!
//! Input: bytes. Where a format is held together by checksums or is too large to be found by chance, they stand for
//! damage to a valid one. Invariant: no input makes a target panic, hang or take memory without bound. What libFuzzer
//! found is kept under `corpus/TARGET/`, and taken again by this crate's own test, which needs no fuzzer.

mod files;
mod input;
mod memory;
mod programs;
mod recordings;
mod reports;
mod texts;

pub use programs::{places, use_program};

/// A target: its name, and what takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("program", programs::damaged),
    ("dwarf", programs::dwarf),
    ("image", memory::image),
    ("heap", memory::heap),
    ("proc", texts::proc),
    ("config", texts::config),
    ("dump", texts::dump),
    ("recording", recordings::recording),
    ("reports", reports::reports),
    ("spool", files::spool),
];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::TARGETS;

    #[test]
    fn kept_inputs_do_no_harm() {
        for (name, target) in TARGETS {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let inputs: Vec<_> = fs::read_dir(&corpus).expect("kept inputs").collect();
            assert!(!inputs.is_empty(), "{name} has none");
            for input in inputs {
                let path = input.expect("a kept input").path();
                println!("{}", path.display());
                target(&fs::read(path).expect("readable"));
            }
        }
    }
}
