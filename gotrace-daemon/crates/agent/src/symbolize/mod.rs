//! Addresses of a process to places in its source.
//!
//! Input: a parsed [`Binary`] and addresses as the kernel side saw them. Output: [`Location`]s, which
//! [`tracee`](crate::tracee) keeps.

use std::sync::Arc;

use foldhash::fast::FixedState;
use gotrace_go::{Binary, Frame, origin, waits_for_others};
use gotrace_model::Location;
use gotrace_process::Executable;
use hashbrown::HashMap;

use crate::{
    decode::ClosureWords,
    tracee::{Frame as Called, Names},
};

/// Names the addresses of one program in one process.
#[derive(Debug)]
pub struct Symbolizer {
    binary: Arc<Binary>,
    file: Option<Arc<Executable>>,
    bias: u64,
    /// By what a wrapper calls, what that runs; both are entries of functions, at link time.
    callees: HashMap<u64, u64, FixedState>,
}

impl Symbolizer {
    /// `file`: the executable, to look into the wrappers that the compiler makes. `bias`: mapped address
    /// less link-time address; 0 unless position-independent.
    #[must_use]
    pub fn new(binary: Arc<Binary>, file: Option<Arc<Executable>>, bias: u64) -> Self {
        Self { binary, file, bias, callees: HashMap::default() }
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Arc<Binary> {
        &self.binary
    }

    /// The program, to be shared.
    #[must_use]
    pub fn shared_binary(&self) -> &Arc<Binary> {
        &self.binary
    }

    /// Mapped address less link-time address.
    #[must_use]
    pub fn bias(&self) -> u64 {
        self.bias
    }

    /// Where the program is mapped became known. Whether that is news: answers until now were wrong.
    pub fn set_bias(&mut self, bias: u64) -> bool {
        std::mem::replace(&mut self.bias, bias) != bias
    }

    /// Where the function begins that a goroutine runs, by its entry and what the first variable of its closure points
    /// to: another one where the entry is a wrapper whose callee only the closure tells.
    pub fn runs(&mut self, entry: u64, words: &ClosureWords) -> u64 {
        let word = self.binary.callee_word(self.link_time(entry));
        let Some(called) = word.and_then(|n| words.get(usize::from(n))) else { return entry };
        let called = self.link_time(*called);
        let Self { binary, file, callees, .. } = self;
        let runs = callees.get(&called).copied().or_else(|| {
            let runs =
                binary.goroutine_entry(called, &|offset, length| read(file.as_deref(), offset, length))?;
            // As many as the program has functions.
            callees.insert(called, runs);
            Some(runs)
        });
        runs.map_or(entry, |runs| runs.wrapping_add(self.bias))
    }

    fn link_time(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }
}

fn read(file: Option<&Executable>, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut code = vec![0; length];
    file?.read_exact_at(&mut code, offset).ok()?;
    Some(code)
}

impl Names for Symbolizer {
    fn is_function_entry(&self, address: u64) -> bool {
        let address = self.link_time(address);
        self.binary.function_at(address).is_some_and(|f| f.entry == address)
    }

    /// The wrapper that the compiler makes of `go f(x)` is seen through.
    fn entry(&self, address: u64) -> Option<Location> {
        let file = self.file.as_deref();
        let read = |offset, length| read(file, offset, length);
        let frame = self.binary.goroutine_function(self.link_time(address), &read);
        frame.map(location)
    }

    fn call(&self, return_address: u64) -> Option<Location> {
        self.binary.lookup(self.link_time(return_address), true).into_iter().next().map(location)
    }

    fn site(&self, return_address: u64) -> Option<Location> {
        let frames = self.binary.lookup(self.link_time(return_address), true);
        frames.into_iter().find(|f| !waits_for_others(&f.function) && !f.wrapper).map(location)
    }

    fn frames(&self, return_address: u64) -> Vec<Called> {
        let frames = self.binary.lookup(self.link_time(return_address), true);
        let module = self.binary.build().module.as_deref();
        let called =
            |frame: Frame| Called { origin: origin(&frame.function, module), at: Arc::new(location(frame)) };
        frames.into_iter().filter(|f| !f.wrapper).map(called).collect()
    }
}

fn location(frame: Frame) -> Location {
    Location { function: frame.function.into(), file: frame.file.into(), line: frame.line }
}
