//! Passes over the heap until enough agree, and what is known of those that are proven.
//!
//! Input: the memory of the running process. Output: whom nothing that can run leads to, which of them wait for each
//! other, and what they retain. Where a pass fails, no more are made, which is logged; what was proven stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::throttled;
use crate::{
    heap::{HeapError, LockHolder, PASSES, Pool, Pools, Proven, Prover, Retained},
    leak::{Finding, Unreached, Verdict},
    snapshot::{Reference, Suspect},
};
use gotrace_process::Memory;

/// Passes that are made at most: more than must agree, as a goroutine whose stack is moved begins anew.
const MAX_PASSES: u32 = 2 * PASSES;
/// Between two passes, at random, in microseconds.
const REST: std::ops::Range<u64> = 15_000..60_000;

/// How passes are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second that are read at most; `None` for as many as there are.
    pub max_read_rate: Option<u64>,
    /// Whether what became of each candidate is to be told.
    pub keeps_candidates: bool,
    /// Whether those are told, too, that as many passes agree on as were made, where these are not enough for a proof.
    pub provisional: bool,
}

/// What marking the heap came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProofSummary {
    /// Passes that were made and told something.
    pub passes: u32,
    /// Passes that must agree.
    pub needed: u32,
    /// Passes that told nothing, as the list of goroutines was being changed.
    pub void: u32,
    /// Goroutines that were proven, and have run or vanished all the same.
    pub refuted: u64,
    /// What the leaked goroutines keep alive.
    pub retained: Retained,
}

/// What is to be done after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another one, after a rest of this long at least.
    More(Duration),
    /// Enough agree, or there is nobody.
    Done,
}

/// A proof that is being made.
#[derive(Debug)]
pub(super) struct Proving {
    pid: u32,
    prover: Prover,
    memory: Memory,
    pace: Pace,
    random: fastrand::Rng,
    /// Why no more passes are made.
    failed: Option<String>,
    /// Passes of the proof that is being made.
    made: u32,
    /// Proven ones that ran or vanished all the same.
    refuted: u64,
    /// Goids that a complete proof has found.
    confirmed: Vec<u64>,
    /// Goids that were told as refuted, and are not to be told as proven again.
    distrusted: BTreeSet<u64>,
    /// Goroutines that wait for each other, as of the last pass.
    sets: Vec<Vec<u64>>,
    /// What each set of goroutines was found to retain.
    retained_by: BTreeMap<Vec<u64>, u64>,
    retained: Retained,
}

impl Proving {
    pub fn new(pid: u32, mut prover: Prover, memory: Memory, pace: Pace) -> Self {
        if pace.keeps_candidates {
            prover.keep_candidates();
        }
        Self {
            pid,
            prover,
            memory,
            pace,
            random: fastrand::Rng::new(),
            failed: None,
            made: 0,
            refuted: 0,
            confirmed: Vec::new(),
            distrusted: BTreeSet::new(),
            sets: Vec::new(),
            retained_by: BTreeMap::new(),
            retained: Retained::default(),
        }
    }

    pub fn prover(&self) -> &Prover {
        &self.prover
    }

    pub fn set_max_read_rate(&mut self, rate: Option<u64>) {
        self.pace.max_read_rate = rate;
    }

    /// As [`Prover::bound`].
    pub fn bound(&mut self, goroutines: u64, bytes: u64) {
        self.prover.bound(goroutines, bytes);
    }

    /// Why no more passes are made; `None` where they are.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    pub fn drop_evidence(&mut self) {
        self.prover.drop_evidence();
    }

    /// One pass more, and whether it was the last of this proof.
    pub fn pass(&mut self) -> Result<Step, HeapError> {
        let memory = throttled(&self.memory, &self.pace);
        if let Err(e) = self.prover.pass(&memory) {
            if e.is_for_memory() {
                tracing::warn!(pid = self.pid, "leaks are not proven for now: {e}");
                self.made = 0;
            } else {
                self.fail(&e);
            }
            return Err(e);
        }
        self.made += 1;
        let proof = self.prover.proof();
        // With nobody left, no further pass can find anybody proven.
        let nobody = proof.unreachable.is_empty() && proof.void < proof.passes && self.made >= 2;
        if nobody || self.made >= MAX_PASSES || self.made >= PASSES && proof.is_settled() {
            self.made = 0;
            // In place of those that are refuted.
            self.confirmed.retain(|&goid| proof.unreachable.get(goid).is_some());
            self.confirmed.extend(proof.proven().map(Proven::goid));
            self.confirmed.sort_unstable();
            self.confirmed.dedup();
            return Ok(Step::Done);
        }
        Ok(Step::More(Duration::from_micros(self.random.u64(REST))))
    }

    fn fail(&mut self, e: &HeapError) {
        self.failed = Some(e.to_string());
        // That the process is gone is said by those who look at it next.
        if !e.is_of_process() {
            tracing::warn!(pid = self.pid, "leak proof disabled: {e}");
        }
    }

    /// Looks whether those that are proven still stand; who does not.
    pub fn check(&mut self) -> Vec<u64> {
        match self.prover.refuted(&self.memory) {
            Ok(refuted) => {
                for goid in &refuted {
                    tracing::error!(
                        pid = self.pid,
                        goid,
                        "goroutine {goid} was proven unreachable and has run or vanished all the same: this is an error \
                         of gotrace; please report it with what `gotrace leaks --evidence` writes"
                    );
                }
                self.refuted += refuted.len() as u64;
                self.distrusted.extend(&refuted);
                refuted
            }
            Err(e) => {
                self.fail(&e);
                Vec::new()
            }
        }
    }

    /// Whom no pass reached: those that enough agree on; where the user ended it early, all of them.
    pub fn unreached(&self) -> Unreached {
        let proof = self.prover.proof();
        let passes = proof.passes - proof.void;
        let none = Unreached { needed: PASSES, passes, ..Unreached::default() };
        if self.failed.is_some() && !proof.unreachable.iter().any(Proven::is_final) {
            return none;
        }
        let early = self.pace.provisional && passes < PASSES;
        let goids = proof
            .unreachable
            .iter()
            .filter(|p| {
                let known = proof.never_stopped.is_none() || self.confirmed.binary_search(&p.goid()).is_ok();
                !self.distrusted.contains(&p.goid()) && known && (p.is_final() || early)
            })
            .map(|p| (p.goid(), p.passes.min(PASSES)))
            .collect();
        Unreached { goids, ..none }
    }

    /// Sets the bounds of the objects in which locks are that suspects wait for: pointers into these count as
    /// references, and those to neighbours do not. What is in no object of the heap stays as it is.
    pub fn find_objects(&mut self, suspects: &mut [Suspect]) {
        let fields = |r: &&mut Reference| r.begin < r.address;
        let mut fields: Vec<&mut Reference> =
            suspects.iter_mut().flat_map(|s| &mut s.waits_on).filter(fields).collect();
        if fields.is_empty() || self.failed.is_some() {
            return;
        }
        let addresses: Vec<u64> = fields.iter().map(|r| r.address).collect();
        match self.prover.objects(&self.memory, &addresses) {
            Ok(objects) => {
                for (reference, object) in fields.iter_mut().zip(objects) {
                    if let Some((begin, size)) = object {
                        (reference.begin, reference.end) = (begin, begin.saturating_add(size));
                    }
                }
            }
            Err(e) => tracing::debug!(pid = self.pid, "cannot read object sizes: {e}"),
        }
    }

    /// Who holds each of these locks, in their order; nobody where that cannot be told. `waits`: by goid, the lock that
    /// a goroutine waits for.
    pub fn holders(&mut self, locks: &[u64], waits: &HashMap<u64, u64, FixedState>) -> Vec<Vec<LockHolder>> {
        let found = self.prover.holders(&self.memory, locks, waits);
        found.unwrap_or_else(|e| {
            tracing::warn!(pid = self.pid, "cannot find lock holders: {e}");
            Vec::new()
        })
    }

    /// The pools that goroutines wait for, and who keeps their members; `None` where that cannot be told.
    pub fn keepers(&mut self, of: &Pools<'_>) -> Option<Vec<Pool>> {
        let found = self.prover.keepers(&self.memory, of);
        found.inspect_err(|e| tracing::warn!(pid = self.pid, "cannot find connection holders: {e}")).ok()
    }

    /// Whether what the last pass of a complete proof marked is at hand.
    fn has_marks(&self) -> bool {
        self.failed.is_none() && self.prover.has_marks() && (self.made == 0 || self.pace.provisional)
    }

    /// The goroutines of findings that wait for each other.
    pub fn sets(&mut self, findings: &[Finding]) -> Vec<Vec<u64>> {
        let unreachable = findings.iter().filter(|f| f.verdict == Verdict::Unreachable);
        let mut goids: Vec<u64> = unreachable.flat_map(|f| f.goids.iter().copied()).collect();
        goids.sort_unstable();
        goids.dedup();
        if goids.len() >= 2 && self.has_marks() {
            match self.prover.together(&throttled(&self.memory, &self.pace), &goids) {
                Ok(sets) => self.sets = sets,
                Err(e) => tracing::warn!(pid = self.pid, "cannot find wait cycles of leaked goroutines: {e}"),
            }
        }
        self.sets.clone()
    }

    /// Adds to findings what their goroutines keep alive. Nothing of that is let go as long as they are: what an earlier
    /// pass found stays.
    pub fn retain(&mut self, findings: &mut [Finding]) {
        let proven = |f: &&mut Finding| f.verdict == Verdict::Unreachable;
        let groups: Vec<Vec<u64>> = findings.iter_mut().filter(proven).map(|f| f.goids.clone()).collect();
        if self.has_marks() {
            match self.prover.retained(&throttled(&self.memory, &self.pace), &groups) {
                Ok(found) => {
                    let mut by = BTreeMap::new();
                    for (goids, bytes) in groups.iter().zip(&found.by_group) {
                        let before = self.retained_by.get(goids).copied();
                        if let Some(bytes) =
                            bytes.map(|b| before.map_or(b, |before| b.max(before))).or(before)
                        {
                            by.insert(goids.clone(), bytes);
                        }
                    }
                    self.retained_by = by;
                    self.retained = found;
                }
                Err(e) => {
                    tracing::warn!(
                        pid = self.pid,
                        "cannot compute the heap retained by leaked goroutines: {e}"
                    );
                }
            }
        }
        for finding in findings.iter_mut().filter(proven) {
            finding.retained_bytes = self.retained_by.get(&finding.goids).copied();
        }
    }

    /// What the passes came to.
    pub fn summary(&self) -> ProofSummary {
        let proof = self.prover.proof();
        ProofSummary {
            passes: proof.passes - proof.void,
            needed: PASSES,
            void: proof.void,
            refuted: self.refuted,
            retained: self.retained.clone(),
        }
    }
}
