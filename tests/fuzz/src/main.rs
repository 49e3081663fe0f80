//! libFuzzer's program: `GOTRACE_FUZZ=TARGET gotrace-fuzz …`, with libFuzzer's own arguments. `cargo xtask fuzz` builds and
//! runs it. Input: bytes. It ends by a signal where a target panics, and libFuzzer writes down what it was given.

#![no_main]

use std::sync::OnceLock;

use gotrace_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

fn target() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        // libFuzzer's hook ends the program at each panic; gotrace contains some, which are no findings.
        let _ = std::panic::take_hook();
        let name = std::env::var("GOTRACE_FUZZ").unwrap_or_default();
        TARGETS.into_iter().find(|(known, _)| *known == name).unwrap_or_else(|| {
            eprintln!("error: GOTRACE_FUZZ names no target: {}", TARGETS.map(|(name, _)| name).join(", "));
            std::process::exit(2)
        })
    })
}

fuzz_target!(|data: &[u8]| target().1(data));
