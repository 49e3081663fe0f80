//! One examination of a process for what will not finish: looks at its goroutines, passes over its heap, and what both
//! come to. `gotrace leaks` and the agent make the same one, each at its own pace.
//!
//! Input: the memory of the running process. Output: [`Finding`]s, the worst first, with places in plain words, what
//! leaked goroutines retain, what locks say of themselves, and who holds them. When to look and when to pass is up to
//! the caller: nothing here waits. A goroutine that was proven to be leaked is told until it is refuted, by having run
//! or vanished.
//!
//! Invariant: what is told rests on what was read; what could not be read is not told, and logged.

mod explain;
mod pools;
mod proving;
mod waits;

use std::sync::Arc;

pub use pools::holders;
use proving::Proving;
pub use proving::{Pace, ProofSummary, Step};
pub use waits::{WaitGraph, wait_graph};

use gotrace_go::Binary;
use gotrace_process::{Memory, Target, is_stopped};

use crate::{
    heap::{HeapError, Prover, Throttled},
    leak::{Awaited, Finding, Settings, Unreached, Watch, descriptors_wanted, judge, suspects, together},
    snapshot::{Live, Names, Options, References, Snapshot, SnapshotError, StackFrame, Suspect},
};

/// Bytes for each goroutine at the end of a proof, when most is known of them: measured, 303 where half of them are
/// leaked, each at a channel of its own.
const BYTES_EACH: u64 = 320;

/// What is examined, and how.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A goroutine that has not moved for this long may be stuck.
    pub stuck_after_ns: u64,
    /// Goroutines whose references are looked for.
    pub max_suspects: usize,
    /// Whether it is told who is at the other end of connections.
    pub tells_peers: bool,
    /// Looks that are kept; beyond, old ones are thinned out.
    pub max_looks: usize,
}

/// What an examination comes to.
#[derive(Clone, Debug, Default)]
pub struct Conclusion {
    /// The worst first.
    pub findings: Vec<Finding>,
    /// Whether who refers to what could be looked for everywhere.
    pub references_complete: bool,
}

/// The examination of one process.
#[derive(Debug)]
pub struct Examination {
    live: Live,
    names: Names,
    watch: Watch,
    limits: Limits,
    proving: Option<Proving>,
    /// Why nothing can be proven of the program, where proofs are wanted.
    unprovable: Option<String>,
    /// Who refers to what suspects for channels and for locks waited on: at the last search, and as of both of the last.
    searched: Option<(References, References)>,
    held: (References, References),
    /// Whether it was stopped at the last look.
    stopped: bool,
}

impl Examination {
    /// Prepares. `proofs`: how the heap is marked; `None` for never. Where nothing can be proven of the program, that is
    /// logged.
    ///
    /// # Errors
    /// When the process is gone, its maps may not be read, or the program does not tell what is needed.
    pub fn new(
        target: &Target,
        binary: Arc<Binary>,
        limits: Limits,
        proofs: Option<Pace>,
    ) -> Result<Self, SnapshotError> {
        let live = Live::new(target, Arc::clone(&binary))?;
        let settings = Settings { stuck_after_ns: limits.stuck_after_ns };
        let pid = target.pid();
        let mut unprovable = None;
        let proving = proofs.and_then(|pace| match Prover::new(Arc::clone(&binary), live.bias()) {
            Ok(prover) => Some(Proving::new(pid, prover, target.memory(), pace)),
            Err(e) => {
                tracing::warn!(pid, "leak proof disabled: {e}");
                unprovable = Some(e.to_string());
                None
            }
        });
        Ok(Self {
            names: live.names(target),
            watch: Watch::new(settings, binary.wait_reasons()),
            live,
            limits,
            proving,
            unprovable,
            searched: None,
            held: (References::default(), References::default()),
            stopped: false,
        })
    }

    /// From now on goroutines that have not moved for so long may be stuck, and the heap is read no faster than this.
    pub fn set_pace(&mut self, stuck_after_ns: u64, max_read_rate: Option<u64>) {
        self.watch.set_settings(Settings { stuck_after_ns });
        if let Some(proving) = &mut self.proving {
            proving.set_max_read_rate(max_read_rate);
        }
    }

    /// From now on it takes so many bytes at most, beside what it keeps; a process that takes more is refused.
    pub fn set_room(&mut self, bytes: u64) {
        let goroutines = bytes / BYTES_EACH;
        self.live.set_most(goroutines);
        if let Some(proving) = &mut self.proving {
            proving.bound(goroutines, bytes);
        }
    }

    /// Entries of the runtime's list of goroutines; 0 where that cannot be read.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.live.listed()
    }

    /// Looks once more.
    ///
    /// # Errors
    /// As [`Live::take`].
    pub fn look(&mut self) -> Result<Snapshot, SnapshotError> {
        let snapshot = self.live.take(Options { labels: false, ..Options::default() })?;
        // In a stopped process nothing runs, though a goroutine that it was stopped in looks as if it did: how long others
        // have stood meanwhile says nothing of them.
        let stopped = is_stopped(snapshot.pid);
        if stopped && !std::mem::replace(&mut self.stopped, stopped) {
            tracing::warn!(
                pid = snapshot.pid,
                "the process is stopped, by a signal or a debugger: verdicts that need time are not judged until it runs"
            );
        }
        self.stopped = stopped;
        if self.watch.looks() == 0 || !stopped {
            self.watch.observe(&snapshot);
        }
        let names = &mut self.names;
        self.watch.know_places(|stack| place(names, stack));
        if self.watch.looks() >= self.limits.max_looks {
            self.watch.thin();
        }
        Ok(snapshot)
    }

    /// Looks for who refers to what suspects wait on. What is found counts if it was so at the search before, too.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn search(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let (mut others, mut locks) = suspects(&self.watch, snapshot);
        if let Some(proving) = &mut self.proving {
            proving.find_objects(&mut others);
            proving.find_objects(&mut locks);
        }
        let now = (self.references(snapshot, &others)?, self.references(snapshot, &locks)?);
        self.held = match self.searched.take() {
            None => now.clone(),
            Some((others, locks)) => (others.agree(&now.0), locks.agree(&now.1)),
        };
        self.searched = Some(now);
        Ok(())
    }

    /// Who refers to what these wait on.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn references(&self, snapshot: &Snapshot, suspects: &[Suspect]) -> Result<References, SnapshotError> {
        if suspects.is_empty() {
            return Ok(References { complete: true, ..References::default() });
        }
        if suspects.len() > self.limits.max_suspects {
            return Ok(References::default());
        }
        Ok(self.live.find_references(snapshot, suspects)?)
    }

    /// What all looks, searches and passes come to, as of the last look.
    pub fn conclude(&mut self, snapshot: &mut Snapshot) -> Conclusion {
        self.check();
        let wanted = descriptors_wanted(&self.watch, snapshot);
        if !wanted.is_empty() {
            self.live.look_outside(snapshot, wanted);
        }
        let unreached = self.unreached();
        let stalls = pools::stalls(self, snapshot);
        let (others, locks) = &self.held;
        let mut findings = judge(&self.watch, snapshot, (others, locks), &unreached, &stalls);
        if let Some(proving) = &mut self.proving {
            let sets = proving.sets(&findings);
            findings = together(findings, &sets);
            findings.sort_by_cached_key(Finding::by_impact);
            proving.retain(&mut findings);
        }
        explain::explain(&self.live, self.proving.as_mut(), snapshot, &mut findings);
        findings.sort_by_cached_key(Finding::by_impact);
        if self.limits.tells_peers {
            explain::look_outside(&self.live, snapshot, &mut findings);
        }
        Conclusion { findings, references_complete: others.complete && locks.complete }
    }

    /// What is known of a process that can be read no more, as of the last look.
    #[must_use]
    pub fn conclude_without(&self, snapshot: &Snapshot) -> Vec<Finding> {
        let none = References::default();
        judge(&self.watch, snapshot, (&none, &none), &self.unreached(), &[])
    }

    /// One pass over the heap more; `None` where none are made.
    pub fn pass(&mut self) -> Option<Result<Step, HeapError>> {
        self.proving.as_mut().filter(|p| p.failure().is_none()).map(Proving::pass)
    }

    /// Looks whether those that are proven still stand, and tells the goids of those that have run or vanished.
    pub fn check(&mut self) -> Vec<u64> {
        self.proving.as_mut().map(Proving::check).unwrap_or_default()
    }

    fn unreached(&self) -> Unreached {
        self.proving.as_ref().map(Proving::unreached).unwrap_or_default()
    }

    /// Why no passes are made, or no more; `None` where they are, or are not wanted.
    #[must_use]
    pub fn proof_failure(&self) -> Option<&str> {
        self.unprovable.as_deref().or_else(|| self.proving.as_ref().and_then(Proving::failure))
    }

    /// What the passes came to; `None` where none were made.
    #[must_use]
    pub fn proof_summary(&self) -> Option<ProofSummary> {
        self.proving.as_ref().map(Proving::summary)
    }

    /// Who makes the passes.
    #[must_use]
    pub fn prover(&self) -> Option<&Prover> {
        self.proving.as_ref().map(Proving::prover)
    }

    /// Gives up what only the last pass is needed for.
    pub fn drop_evidence(&mut self) {
        if let Some(proving) = &mut self.proving {
            proving.drop_evidence();
        }
    }

    /// What is kept of looks.
    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Names for the program's addresses.
    pub fn names(&mut self) -> &mut Names {
        &mut self.names
    }
}

/// What goroutines with this stack wait for, if that is a known place.
pub fn place(names: &mut Names, stack: &[StackFrame]) -> Option<Awaited> {
    let frames = names.stack(stack);
    Awaited::of(frames.iter().map(|f| f.frame.function.as_str()))
}

fn throttled<'a>(memory: &'a Memory, pace: &Pace) -> Throttled<'a> {
    Throttled::new(memory, pace.max_read_rate)
}
