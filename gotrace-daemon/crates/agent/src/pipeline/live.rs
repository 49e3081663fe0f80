//! A tracee that a living process feeds: whatever reaches it goes through here, and into the recording where there is
//! one, so that a replay computes what this computes.
//!
//! A recording has the answers that an input needed (names of addresses) in front of it.

use std::{ops::Deref, sync::Arc};

use crate::{
    decode::{ClosureWords, Event, with_path},
    recording::Recorder,
    symbolize::Symbolizer,
    tracee::{Counted, Input, Outputs, Tracee, redacted},
};
use gotrace_go::Binary;
use gotrace_model::Interval;
use gotrace_process::Executable;

/// A tracee with what its inputs need.
pub(super) struct LiveTracee {
    tracee: Tracee,
    symbolizer: Symbolizer,
    recorder: Option<Recorder>,
}

impl Deref for LiveTracee {
    type Target = Tracee;

    fn deref(&self) -> &Tracee {
        &self.tracee
    }
}

impl LiveTracee {
    pub fn new(tracee: Tracee, binary: Arc<Binary>, file: Option<Arc<Executable>>, bias: u64) -> Self {
        Self { tracee, symbolizer: Symbolizer::new(binary, file, bias), recorder: None }
    }

    /// Takes what reaches it; what that comes to goes to `out`.
    pub fn apply(&mut self, input: &Input<'_>, out: &mut Outputs) {
        self.tracee.apply(input, &self.symbolizer, out);
        self.record(input);
    }

    /// The same of something that comes to nothing by itself.
    pub fn tell(&mut self, input: &Input<'_>) {
        self.apply(input, &mut Outputs::default());
    }

    /// The same of a record of the ring, and what it was decoded to; whether it could be believed.
    pub fn event(&mut self, event: &Event<'_>, bytes: &[u8], out: &mut Outputs) -> bool {
        let believed = self.tracee.event(event, &self.symbolizer, out);
        if self.recorder.is_some() {
            // What looks like a secret leaves no trace.
            match event {
                Event::Request(end) if end.path.length != 0 => {
                    self.record(&Input::Record(&with_path(bytes, &redacted(&end.path))));
                }
                _ => self.record(&Input::Record(bytes)),
            }
        }
        believed
    }

    /// The state now, and what changed since the last call.
    pub fn report(&mut self, counted: Counted) -> Arc<Interval> {
        let interval = self.tracee.interval(&counted, &self.symbolizer);
        self.record(&Input::Report(Box::new(counted)));
        Arc::new(interval)
    }

    fn record(&mut self, input: &Input<'_>) {
        let Some(recorder) = &self.recorder else { return };
        let fresh = self.tracee.take_fresh_symbols();
        let number = self.tracee.number();
        if !fresh.is_empty() {
            recorder.write(number, &Input::Symbols(fresh));
        }
        recorder.write(number, input);
    }

    /// From now on it is recorded, as it is now and whatever reaches it.
    pub fn record_to(&mut self, recorder: &Recorder) {
        self.tracee.keep_fresh_symbols();
        self.recorder = Some(recorder.clone());
        self.record_state();
    }

    /// Puts into the recording how it is now, so that it can be read from here on.
    pub fn record_state(&mut self) {
        let Some(recorder) = &self.recorder else { return };
        // They are part of the state.
        drop(self.tracee.take_fresh_symbols());
        let number = self.tracee.number();
        self.tracee.write_state(|input| recorder.write(number, input));
    }

    /// Where the function begins that a goroutine runs ([`Symbolizer::runs`]).
    pub fn runs(&mut self, entry: u64, words: &ClosureWords) -> u64 {
        self.symbolizer.runs(entry, words)
    }

    /// What names its addresses.
    pub fn symbolizer(&self) -> &Symbolizer {
        &self.symbolizer
    }

    /// Where its program is mapped became known.
    pub fn set_bias(&mut self, bias: u64) {
        if self.symbolizer.set_bias(bias) {
            self.tell(&Input::Moved);
        }
    }
}
