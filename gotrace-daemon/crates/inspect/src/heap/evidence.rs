//! What was done and counted, so that a doubter can follow.

use super::waiting::Addresses;

/// What one pass saw. Bytes and numbers of things; all of them as of that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassEvidence {
    /// How long it took.
    pub duration_ns: u64,
    /// Spans of objects.
    pub spans: u64,
    /// Spans that could not be read, or were just being taken or given up.
    pub spans_unreadable: u64,
    /// Bytes of all objects that there is room for.
    pub heap_bytes: u64,
    /// Modules of the program: itself, and its plugins.
    pub modules: u64,
    /// Goroutines.
    pub goroutines: u64,
    /// The runtime's records of goroutines that hold none; what they refer to does not count.
    pub unused: u64,
    /// Goroutines that another one must end the wait of.
    pub candidates: u64,
    /// What was marked from.
    pub roots: RootEvidence,
    /// Objects that were reached from what can run, and their bytes.
    pub reached_objects: u64,
    /// See there.
    pub reached_bytes: u64,
    /// Objects that were looked through of which the runtime says which words are pointers.
    pub objects_exact: u64,
    /// Objects that were looked through word by word, as it does not say, or what it says was not understood.
    pub objects_whole: u64,
    /// Candidates of which something was reached that they wait on.
    pub woken: u64,
    /// Candidates that moved while the pass was going on.
    pub moved: u64,
    /// Candidates that nothing can let run, by this pass.
    pub unreached: u64,
    /// Bytes of the process's memory that were read.
    pub bytes_read: u64,
    /// Bytes that were wanted and not readable.
    pub bytes_unreadable: u64,
}

/// What a pass marked from, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootEvidence {
    /// Bytes of variables with a value.
    pub data_bytes: u64,
    /// Of those, the ones of which the collector's own mask told the pointers; of the others, every word.
    pub data_exact_bytes: u64,
    /// Bytes of variables without one.
    pub bss_bytes: u64,
    /// Of those, the ones with a mask.
    pub bss_exact_bytes: u64,
    /// Goroutines that can run, with their `g` and stack.
    pub goroutines: u64,
    /// Bytes of their stacks.
    pub stack_bytes: u64,
    /// Stacks of those that wait or are in a system call of which just the words were taken that will still be used, by the program's own
    /// tables; of the others, every word.
    pub stacks_exact: u64,
    /// Finalizers.
    pub finalizers: u64,
    /// Weak handles.
    pub weak_handles: u64,
    /// Cleanups.
    pub cleanups: u64,
    /// Lists of these that could not be followed to their end.
    pub specials_cut: u64,
    /// Blocks outside of the heap in which finalizers and cleanups wait to be run.
    pub blocks: u64,
    /// Spans that were taken while the pass was going on; everything in them counts as reached.
    pub fresh_spans: u64,
    /// Objects that were free at first and in use at last, and seemed to be referred to.
    pub fresh_objects: u64,
    /// Goroutines that came or moved while the pass was going on, and were looked at again.
    pub goroutines_again: u64,
    /// Of those, the ones of which just the words were taken that will still be used.
    pub again_exact: u64,
}

/// What became of a candidate in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something that it waits on was reached from what can run.
    Reached,
    /// It moved while the pass was going on.
    Moved,
    /// Nothing was reached.
    Unreached,
    /// Nothing was reached, and it is the main goroutine in a select without cases, which keeps a program alive on
    /// purpose.
    Hidden,
}

impl Outcome {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Moved => "moved",
            Self::Unreached => "unreached",
            Self::Hidden => "hidden",
        }
    }
}

/// A goroutine that another one must end the wait of, and what a pass found. Addresses are of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CandidateEvidence {
    /// Its id.
    pub goid: u64,
    /// Its `g`.
    pub g: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// One of these must be reached for it to run.
    pub waits_on: Addresses,
    /// The runtime's records of its wait.
    pub records: Addresses,
}
