//! Applies the inputs of a recording to tracees, as the run did.
//!
//! Input: blocks that were read. Output: what tracees come to, told to a [`Listener`] in the order of the run. What does
//! not fit together (a tracee that never began, an input that cannot be decoded) is an error that says where.

use std::{
    collections::BTreeMap,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use gotrace_model::{Interval, Summary};

use super::{
    Block, End, ReadError, Reader,
    read::{damaged, inputs},
};
use crate::tracee::{Input, NoNames, Outputs, Tracee};

/// Tracees that may live at once; gotrace itself traces far fewer.
const MAX_TRACEES: usize = 1 << 12;
/// Goroutines of all of them.
const MAX_GOROUTINES: u64 = 1 << 24;
/// Spans after which the listener is told.
const BATCH: usize = 1024;

/// Is told what a replay comes to.
pub trait Listener {
    /// A process is traced from now on, or was when the recording began.
    fn began(&mut self, tracee: &Tracee);
    /// There is something new. Takes it.
    fn told(&mut self, out: &mut Outputs);
    /// A process is traced no more.
    fn ended(&mut self, summary: Summary);
    /// Whether nothing more is wanted.
    fn is_done(&self) -> bool {
        false
    }
}

/// Tracees that a recording feeds.
#[derive(Debug, Default)]
pub struct Replay {
    tracees: BTreeMap<u32, Replayed>,
    out: Outputs,
}

#[derive(Debug)]
struct Replayed {
    tracee: Tracee,
    /// Whether goroutines that follow belong to the state that it began with.
    restoring: bool,
    last: Option<Arc<Interval>>,
}

impl Replay {
    /// Applies the inputs of a block, and tells what they come to.
    ///
    /// # Errors
    /// [`ReadError::Damaged`]; what was in front of it is told.
    pub fn apply(&mut self, at: u64, bytes: &[u8], to: &mut dyn Listener) -> Result<(), ReadError> {
        // Whoever makes up a recording with right checksums can have counters overflow.
        let result = catch_unwind(AssertUnwindSafe(|| self.inputs(at, bytes, to)))
            .unwrap_or_else(|_| Err(damaged(at, "inconsistent contents")));
        to.told(&mut self.out);
        result
    }

    fn inputs(&mut self, at: u64, bytes: &[u8], to: &mut dyn Listener) -> Result<(), ReadError> {
        let mut goroutines: u64 = self.tracees.values().map(|t| t.tracee.table().alive()).sum();
        for input in inputs(at, bytes) {
            let (number, input) = input?;
            goroutines += match &input {
                Input::Goroutines(some) => some.len() as u64,
                Input::Sightings(some) => some.len() as u64,
                _ => 1,
            };
            if goroutines > MAX_GOROUTINES {
                // Counted from above; few of them live.
                goroutines = self.tracees.values().map(|t| t.tracee.table().alive()).sum();
                if goroutines > MAX_GOROUTINES / 2 {
                    return Err(damaged(at, "too many live goroutines"));
                }
            }
            self.input(at, number, input, to)?;
            if self.out.spans.len() >= BATCH || !self.out.intervals.is_empty() {
                to.told(&mut self.out);
                if to.is_done() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn input(
        &mut self,
        at: u64,
        number: u32,
        input: Input<'_>,
        to: &mut dyn Listener,
    ) -> Result<(), ReadError> {
        if let Input::State(state) = input {
            if let Some(known) = self.tracees.get_mut(&number) {
                // For those who begin to read here.
                known.restoring = false;
                return Ok(());
            }
            if self.tracees.len() >= MAX_TRACEES {
                return Err(damaged(at, "too many processes"));
            }
            let tracee = Tracee::from_state(*state);
            to.began(&tracee);
            self.tracees.insert(number, Replayed { tracee, restoring: true, last: None });
            return Ok(());
        }
        let Some(replayed) = self.tracees.get_mut(&number) else {
            return Err(damaged(at, format!("process {number} was never started")));
        };
        match &input {
            Input::Goroutines(_) if !replayed.restoring => {}
            Input::End { why } => {
                if let Some(last) = &replayed.last {
                    to.told(&mut self.out);
                    to.ended(replayed.tracee.summary(last, why));
                }
                self.tracees.remove(&number);
            }
            input => {
                replayed.tracee.apply(input, &NoNames, &mut self.out);
                if let Some(last) = self.out.intervals.last() {
                    replayed.last = Some(Arc::clone(last));
                }
            }
        }
        Ok(())
    }

    /// Those that are traced now.
    pub fn tracees(&self) -> impl Iterator<Item = &Tracee> {
        self.tracees.values().map(|replayed| &replayed.tracee)
    }
}

/// Applies a whole recording.
///
/// # Errors
/// See [`ReadError`]; what was in front of the place is told.
pub fn replay<R: Read>(reader: &mut Reader<R>, to: &mut dyn Listener) -> Result<End, ReadError> {
    let mut replay = Replay::default();
    loop {
        match reader.next_block()? {
            Block::Inputs { at, bytes, .. } => replay.apply(at, &bytes, to)?,
            Block::End(end) => return Ok(end),
        }
        if to.is_done() {
            return Ok(End::default());
        }
    }
}
