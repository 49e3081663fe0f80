//! Many passes, and what they agree on.
//!
//! A single pass over a running program misses a pointer that is moved at the wrong time with a chance of at
//! most a quarter, if it is moved as fast as can be between two places of which one is read before the
//! other, in an order that the program cannot know. [`PASSES`] of them miss it with one of less than one in a
//! million. All of them must find the goroutine unmoved: same id, same saved registers, same stack, same
//! records, and the runtime's own count of its stops.
//!
//! Registers of a thread cannot be read without stopping it. The runtime stops every goroutine that runs for
//! ten milliseconds, which saves its registers on its stack, where a pass finds them; where one runs through
//! all passes without a stop, nothing is proven.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CandidateEvidence, HeapError, PassEvidence, holders::object, layout::Layout, modules, pass::Marked,
    spans, types::Types,
};
use crate::{
    gobin::Binary,
    process::ReadMemory,
    snapshot::{Engine, FrameMaps, Standing},
};

/// Passes that must agree: 4^-10 is less than 10^-6.
pub const PASSES: u32 = 10;

/// A goroutine that no pass could reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// How many passes in a row agree.
    pub passes: u32,
    /// How it stood in all of them.
    pub standing: Standing,
}

impl Proven {
    /// Whether enough agree.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.passes >= PASSES
    }
}

/// What passes agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// By goid: those that the last pass could not reach.
    pub unreachable: BTreeMap<u64, Proven>,
    /// Passes that were made.
    pub passes: u32,
    /// Of those, the ones that told nothing, as the list of goroutines was being changed.
    pub void: u32,
    /// A goroutine that ran through all passes without a stop, so that its registers are not known.
    pub never_stopped: Option<u64>,
}

impl Proof {
    /// Whether nothing is left to be told by another pass.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.passes >= PASSES + self.void && self.unreachable.values().all(Proven::is_final)
    }

    /// Those that enough passes agree on.
    pub fn proven(&self) -> impl Iterator<Item = (u64, &Proven)> {
        let known = self.never_stopped.is_none();
        self.unreachable.iter().filter(move |(_, p)| known && p.is_final()).map(|(&goid, p)| (goid, p))
    }
}

/// Marks the heap of one process again and again.
#[derive(Debug)]
pub struct Prover {
    pub(super) engine: Engine,
    pub(super) layout: Layout,
    /// Address of the program's module data.
    pub(super) first_module: u64,
    pub(super) version: String,
    /// Address of the list of spans, once it was found.
    pub(super) list: Option<u64>,
    pub(super) random: fastrand::Rng,
    /// Descriptions of the program's types, as far as they were needed.
    pub(super) types: Arc<Types>,
    /// Maps of the program's frames, as far as they were needed.
    pub(super) maps: FrameMaps,
    proof: Proof,
    evidence: Vec<PassEvidence>,
    /// Those of the last pass, if they are to be told.
    pub(super) keeps_candidates: bool,
    pub(super) candidates: Vec<CandidateEvidence>,
    /// Goroutines that ran at every look so far, and how often each had stopped.
    running: Option<Vec<(u64, Option<u8>)>>,
    pub(super) last: Option<Marked>,
}

impl Prover {
    /// For a program that is mapped with this bias (mapped address less link-time address).
    ///
    /// # Errors
    /// When the program, or its version of Go, does not tell what is needed.
    pub fn new(binary: Arc<Binary>, bias: u64) -> Result<Self, HeapError> {
        let layout = Layout::new(&binary)?;
        let module = binary.moduledata().ok_or(HeapError::NoModule)?;
        Ok(Self {
            layout,
            first_module: module.wrapping_add(bias),
            version: binary.go_version().text.clone(),
            types: Arc::new(Types::new(binary.go_version().minor)),
            engine: Engine::new(binary, bias)?,
            list: None,
            random: fastrand::Rng::new(),
            maps: FrameMaps::default(),
            proof: Proof::default(),
            evidence: Vec::new(),
            keeps_candidates: false,
            candidates: Vec::new(),
            running: None,
            last: None,
        })
    }

    /// Makes one pass more.
    ///
    /// # Errors
    /// When the memory cannot be read, or does not look like the heap of this program's version of Go.
    pub fn pass(&mut self, memory: &dyn ReadMemory) -> Result<&Proof, HeapError> {
        self.last = None;
        self.proof.passes += 1;
        let Some(marked) = self.mark(memory)? else {
            self.proof.void += 1;
            return Ok(&self.proof);
        };
        self.evidence.push(marked.evidence);
        let mut running = marked.running.clone();
        if let Some(before) = &self.running {
            running.retain(|r| before.contains(r));
        }
        self.proof.never_stopped = running.first().map(|&(goid, _)| goid);
        self.running = Some(running);
        // In place, as there may be very many.
        let leaked = &marked.leaked;
        let mut now: Vec<(u64, usize)> =
            leaked.iter().enumerate().map(|(n, c)| (c.standing.goid, n)).collect();
        now.retain(|&(_, n)| !leaked[n].hidden);
        now.sort_unstable();
        let unreachable = &mut self.proof.unreachable;
        unreachable.retain(|goid, known| {
            let n = now.binary_search_by_key(goid, |&(goid, _)| goid).ok().map(|n| now[n].1);
            let same = n.map(|n| leaked[n].standing).filter(|s| s.mark == known.standing.mark);
            if let Some(standing) = same {
                *known = Proven { passes: known.passes + 1, standing };
            }
            same.is_some()
        });
        for (goid, n) in now {
            unreachable.entry(goid).or_insert(Proven { passes: 1, standing: leaked[n].standing });
        }
        self.last = Some(marked);
        Ok(&self.proof)
    }

    /// The objects of the heap that hold these addresses, in their order: address and bytes; `None` for an address that
    /// is in none.
    ///
    /// # Errors
    /// When the memory cannot be read, or does not look like the heap of this program's version of Go.
    pub fn objects(
        &mut self,
        memory: &dyn ReadMemory,
        addresses: &[u64],
    ) -> Result<Vec<Option<(u64, u64)>>, HeapError> {
        let list = self.list(memory)?;
        let spans = spans::read(memory, &self.layout, list, &self.version)?.objects;
        Ok(addresses.iter().map(|&address| object(&spans, address)).collect())
    }

    /// Where the list of spans is.
    pub(super) fn list(&mut self, memory: &dyn ReadMemory) -> Result<u64, HeapError> {
        if let Some(list) = self.list {
            return Ok(list);
        }
        let modules = modules::read(memory, self.first_module, self.layout.types, &self.version)?;
        let first = modules.first().ok_or(HeapError::NoModule)?;
        let list = spans::find(memory, &self.layout, first, &self.version)?;
        self.list = Some(list);
        Ok(list)
    }

    /// What the passes so far agree on.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Looks again at those that are proven, and gives the goids of those that have run or vanished since,
    /// which none of them should. They are proven no more.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn refuted(&mut self, memory: &dyn ReadMemory) -> Result<Vec<u64>, HeapError> {
        if self.proof.unreachable.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.engine.standings(memory)?;
        let by_goid: BTreeMap<u64, &Standing> = now.goroutines.iter().map(|s| (s.goid, s)).collect();
        // Where the list could not be read whole, one that is not in it may still be there.
        let gone = |p: &Proven| match by_goid.get(&p.standing.goid) {
            Some(later) => p.standing.has_run(later),
            None => now.unknown == 0,
        };
        let goids: Vec<u64> =
            self.proof.unreachable.iter().filter(|(_, p)| gone(p)).map(|(&g, _)| g).collect();
        let was_final = |goid: &u64| self.proof.unreachable.get(goid).is_some_and(Proven::is_final);
        let refuted = goids.iter().copied().filter(was_final).collect();
        self.proof.unreachable.retain(|goid, _| !goids.contains(goid));
        Ok(refuted)
    }

    /// What each pass counted.
    #[must_use]
    pub fn evidence(&self) -> &[PassEvidence] {
        &self.evidence
    }

    /// Forgets what passes counted: nobody will ask. What they agree on stays.
    pub fn drop_evidence(&mut self) {
        self.evidence = Vec::new();
        self.candidates = Vec::new();
        self.last = None;
    }

    /// From now on [`Self::candidates`] are told, which takes a hundred bytes for each; [`Self::why`] needs them.
    pub fn keep_candidates(&mut self) {
        self.keeps_candidates = true;
    }

    /// The candidates of the last pass, if they were to be kept.
    #[must_use]
    pub fn candidates(&self) -> &[CandidateEvidence] {
        &self.candidates
    }

    /// The version of Go of the program.
    #[must_use]
    pub fn go_version(&self) -> &str {
        &self.version
    }

    /// Begins anew: what was agreed on until now counts no more.
    pub fn forget(&mut self) {
        self.proof = Proof::default();
        self.running = None;
        self.last = None;
    }
}
