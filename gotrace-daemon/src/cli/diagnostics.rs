//! What gotrace says about its own work, on stderr; held back while the live view owns the terminal.
//!
//! Lines that would be written across the view are kept, up to a bound, and follow it; how many did not
//! fit is told. Where stderr is no terminal nothing is held.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
};

/// Bytes that are held back.
const HELD_BYTES: usize = 64 << 10;

static HELD: Mutex<Option<Held>> = Mutex::new(None);

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    writes_dropped: u64,
}

/// Stderr, but for what is held back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Diagnostics;

impl Write for Diagnostics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A poisoned lock still guards whole values: nothing in between can panic half way.
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_mut() else { return io::stderr().write(bytes) };
        if held.bytes.len() + bytes.len() <= HELD_BYTES {
            held.bytes.extend_from_slice(bytes);
        } else {
            held.writes_dropped += 1;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Holds back what would be written on a terminal, until it is dropped.
#[derive(Debug)]
pub(super) struct HoldBack(());

impl HoldBack {
    pub(super) fn begin() -> Self {
        if io::stderr().is_terminal() {
            *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Held::default());
        }
        Self(())
    }
}

impl Drop for HoldBack {
    fn drop(&mut self) {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Held { bytes, writes_dropped }) = held else { return };
        // Nobody is left to be told where this fails.
        let _ = io::stderr().write_all(&bytes);
        if writes_dropped > 0 {
            let _ = writeln!(io::stderr(), "gotrace: {writes_dropped} more messages came during the view");
        }
    }
}
