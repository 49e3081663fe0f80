//! The proof in `gotrace leaks`: passes over the heap until enough agree, and a look at the proven ones for
//! as long as they are watched.

use std::{
    collections::BTreeSet,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{CliError, Interrupts, LeaksArgs};
use crate::{
    heap::{HeapError, LockHolder, PASSES, Prover, Retained, Throttled},
    leak::{Finding, Unreached, Verdict, together},
    private,
    process::{Memory, Target},
    sink::leaks::{ProofSummary, evidence},
    snapshot::{Live, Reference, Suspect},
};

/// Passes that are made at most: more than must agree, as a goroutine whose stack is moved begins anew.
const MAX_PASSES: u32 = 2 * PASSES;
/// Between two passes, at random.
const REST: std::ops::Range<u64> = 15_000..60_000;

/// A proof that is being made.
pub(super) struct Proving {
    pid: u32,
    prover: Prover,
    memory: Memory,
    max_read_rate: Option<u64>,
    evidence: Option<PathBuf>,
    /// Why no more passes are made.
    failed: bool,
    /// Proven ones that ran or vanished all the same.
    refuted: u64,
    /// Goids that were told as refuted, and are not to be told as proven again.
    distrusted: Vec<u64>,
}

impl Proving {
    /// `None` where nothing can be proven of this program, which is said.
    pub fn new(target: &Target, live: &Live, args: &LeaksArgs) -> Option<Self> {
        match Prover::new(Arc::clone(live.binary()), live.bias()) {
            Ok(mut prover) => {
                if args.evidence.is_some() {
                    prover.keep_candidates();
                }
                Some(Self {
                    pid: args.pid,
                    prover,
                    memory: target.memory(),
                    max_read_rate: args.max_read_rate,
                    evidence: args.evidence.clone(),
                    failed: false,
                    refuted: 0,
                    distrusted: Vec::new(),
                })
            }
            Err(e) => {
                tracing::warn!(pid = args.pid, "no goroutine is told as unreachable: {e}");
                None
            }
        }
    }

    fn pass(&mut self) -> Result<(), HeapError> {
        let memory = Throttled::new(&self.memory, self.max_read_rate);
        self.prover.pass(&memory).map(drop)
    }

    fn fail(&mut self, e: &HeapError) {
        self.failed = true;
        // That the process is gone is said by those who look at it next.
        if !e.is_of_process() {
            tracing::warn!(pid = self.pid, "no goroutine is told as unreachable: {e}");
        }
    }

    /// Looks whether those that are proven still stand.
    pub fn check(&mut self) {
        match self.prover.refuted(&self.memory) {
            Ok(refuted) => {
                for goid in &refuted {
                    tracing::error!(
                        pid = self.pid,
                        goid,
                        "goroutine {goid} was proven unreachable and has run or vanished all the same: this is an error \
                         of gotrace; please report it with --evidence"
                    );
                }
                self.refuted += refuted.len() as u64;
                self.distrusted.extend(refuted);
            }
            Err(e) => self.fail(&e),
        }
    }

    /// Whom no pass reached: those that enough agree on; where the user ended it early, all of them.
    pub fn unreached(&self) -> Unreached {
        let proof = self.prover.proof();
        if self.failed && !proof.unreachable.values().any(crate::heap::Proven::is_final) {
            return Unreached { needed: PASSES, ..Unreached::default() };
        }
        let early = proof.passes - proof.void < PASSES;
        let trusted = |goid: &u64| !self.distrusted.contains(goid);
        let goids = proof
            .unreachable
            .iter()
            .filter(|(goid, p)| trusted(goid) && proof.never_stopped.is_none() && (p.is_final() || early))
            .map(|(&goid, p)| (goid, p.passes.min(PASSES)))
            .collect();
        Unreached { goids, needed: PASSES }
    }

    /// Sets the bounds of the objects in which locks are that suspects wait for: pointers into these count as
    /// references, and those to neighbours do not. What is in no object of the heap stays as it is.
    pub fn bound(&mut self, suspects: &mut [Suspect]) {
        let fields = |r: &&mut Reference| r.begin < r.address;
        let mut fields: Vec<&mut Reference> =
            suspects.iter_mut().flat_map(|s| &mut s.waits_on).filter(fields).collect();
        if fields.is_empty() || self.failed {
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
            Err(e) => tracing::debug!(pid = self.pid, "where objects begin and end is not known: {e}"),
        }
    }

    /// Who holds each of these locks, in their order; nobody where that cannot be told. `waits`: by goid, the lock that
    /// a goroutine waits for.
    pub fn holders(&mut self, locks: &[u64], waits: &HashMap<u64, u64, FixedState>) -> Vec<Vec<LockHolder>> {
        let found = self.prover.holders(&self.memory, locks, waits);
        found.unwrap_or_else(|e| {
            tracing::warn!(pid = self.pid, "who holds locks is not known: {e}");
            Vec::new()
        })
    }

    fn put_together(&mut self, findings: &mut Vec<Finding>) {
        let unreachable = findings.iter().filter(|f| f.verdict == Verdict::Unreachable);
        let goids: BTreeSet<u64> = unreachable.flat_map(|f| f.goids.iter().copied()).collect();
        if goids.len() < 2 {
            return;
        }
        let memory = Throttled::new(&self.memory, self.max_read_rate);
        match self.prover.together(&memory, &goids) {
            Ok(sets) => {
                *findings = together(std::mem::take(findings), &sets);
                findings.sort_by_cached_key(Finding::by_impact);
            }
            Err(e) => {
                tracing::warn!(
                    pid = self.pid,
                    "who of the leaked goroutines wait for each other is not known: {e}"
                );
            }
        }
    }

    /// Makes one finding of those that wait for each other, adds to findings what they keep alive, writes the
    /// evidence, and sums up.
    pub fn conclude(&mut self, findings: &mut Vec<Finding>, alive: bool) -> Result<ProofSummary, CliError> {
        if alive && !self.failed {
            self.put_together(findings);
        }
        let proven = |f: &&mut Finding| f.verdict == Verdict::Unreachable;
        let groups: Vec<Vec<u64>> = findings.iter_mut().filter(proven).map(|f| f.goids.clone()).collect();
        let mut retained = Retained::default();
        if alive && !self.failed {
            let memory = Throttled::new(&self.memory, self.max_read_rate);
            match self.prover.retained(&memory, &groups) {
                Ok(found) => retained = found,
                Err(e) => {
                    tracing::warn!(pid = self.pid, "what leaked goroutines keep alive is not known: {e}");
                }
            }
        }
        for (n, finding) in findings.iter_mut().filter(|f| f.verdict == Verdict::Unreachable).enumerate() {
            finding.retained_bytes = retained.by_group.get(n).copied().flatten();
        }
        let proof = self.prover.proof();
        if let Some(goid) = proof.never_stopped {
            tracing::warn!(
                pid = self.pid,
                goid,
                "goroutine {goid} ran through all passes without a stop, so that its registers are not known: nothing is \
                 told as unreachable"
            );
        }
        let summary = ProofSummary {
            passes: proof.passes - proof.void,
            needed: PASSES,
            void: proof.void,
            refuted: self.refuted,
            retained,
        };
        if let Some(path) = &self.evidence {
            let failed = |e: io::Error| {
                CliError::failure(format!("cannot write the evidence to {}: {e}", path.display()))
            };
            let mut out = BufWriter::new(private::create(path).map_err(failed)?);
            evidence::write(&mut out, self.pid, &self.prover, &summary).map_err(failed)?;
            out.flush().map_err(failed)?;
        }
        Ok(summary)
    }
}

/// Makes passes until they agree, there are enough, or the user wants no more.
pub(super) fn prove(proving: &mut Option<Proving>, interrupted: &Interrupts) {
    let Some(proving) = proving.as_mut().filter(|p| !p.failed) else { return };
    let progress = io::stderr().is_terminal();
    let begun = proving.prover.proof().passes;
    let mut random = fastrand::Rng::new();
    loop {
        if let Err(e) = proving.pass() {
            proving.fail(&e);
            break;
        }
        let proof = proving.prover.proof();
        let made = proof.passes - begun;
        if progress {
            eprint!(
                "\r\x1b[Kmarked the heap {made} times, {} goroutines unreachable so far",
                proof.unreachable.len()
            );
        }
        // With nobody left, no further pass can find anybody proven.
        let nobody = proof.unreachable.is_empty() && proof.void < proof.passes && made >= 2;
        if nobody || made >= MAX_PASSES || made >= PASSES && proof.is_settled() {
            break;
        }
        let rest = Duration::from_micros(random.u64(REST));
        if interrupted.wait_until(Instant::now() + rest) {
            break;
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
}
