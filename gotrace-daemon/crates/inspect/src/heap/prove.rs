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

use std::sync::Arc;

use super::{
    CandidateEvidence, HeapError, PassEvidence, holders::object, layout::Layout, modules, pass::Marked,
    spans, types::Types, waiting::Candidate,
};
use crate::snapshot::{Engine, Standing, Stood};
use gotrace_go::Binary;
use gotrace_process::ReadMemory;

/// Passes that must agree: 4^-10 is less than 10^-6.
pub const PASSES: u32 = 10;

/// A goroutine that no pass could reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// How many passes in a row agree.
    pub passes: u32,
    /// How it stood in all of them, until its stack was moved.
    stood: Stood,
    mark: u64,
}

impl Proven {
    fn new(standing: &Standing) -> Self {
        Self { passes: 1, stood: standing.stood(), mark: standing.mark }
    }

    /// Its id.
    #[must_use]
    pub const fn goid(&self) -> u64 {
        self.stood.goid
    }

    /// Whether enough agree.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.passes >= PASSES
    }

    /// Takes in another pass, by which it stands so if it was not reached; whether it stays. What is proven does: a later
    /// pass that reaches it was led there by a stale word.
    fn agrees(&mut self, unreached: Option<&Standing>) -> bool {
        if let Some(standing) = unreached.filter(|s| s.mark == self.mark) {
            *self = Self { passes: self.passes.saturating_add(1), ..Self::new(standing) };
            return true;
        }
        self.is_final()
    }
}

/// Goroutines that no pass could reach, by goid: there may be a million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreachable(Vec<Proven>);

impl Unreachable {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is known of one.
    #[must_use]
    pub fn get(&self, goid: u64) -> Option<&Proven> {
        self.find(goid).and_then(|n| self.0.get(n))
    }

    fn find(&self, goid: u64) -> Option<usize> {
        self.0.binary_search_by_key(&goid, Proven::goid).ok()
    }

    /// All of them, by goid.
    pub fn iter(&self) -> std::slice::Iter<'_, Proven> {
        self.0.iter()
    }

    /// Takes in whom another pass could not reach, by goid.
    fn take_in(&mut self, now: &[&Standing]) {
        let mut now = now.iter().copied().peekable();
        let mut fresh: Vec<Proven> = Vec::new();
        self.0.retain_mut(|known| {
            while let Some(new) = now.next_if(|s| s.goid < known.goid()) {
                fresh.push(Proven::new(new));
            }
            let same = now.next_if(|s| s.goid == known.goid());
            let stays = known.agrees(same);
            fresh.extend(same.filter(|_| !stays).map(Proven::new));
            stays
        });
        fresh.extend(now.map(Proven::new));
        if !fresh.is_empty() {
            self.0.reserve_exact(fresh.len());
            self.0.append(&mut fresh);
            self.0.sort_unstable_by_key(Proven::goid);
        }
    }
}

impl<'a> IntoIterator for &'a Unreachable {
    type Item = &'a Proven;
    type IntoIter = std::slice::Iter<'a, Proven>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What passes agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Those that the last pass could not reach.
    pub unreachable: Unreachable,
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
        self.passes >= PASSES + self.void && self.unreachable.iter().all(Proven::is_final)
    }

    /// Those that enough passes agree on.
    pub fn proven(&self) -> impl Iterator<Item = &Proven> {
        let known = self.never_stopped.is_none();
        self.unreachable.iter().filter(move |p| known && p.is_final())
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
    proof: Proof,
    evidence: Vec<PassEvidence>,
    /// Those of the last pass, if they are to be told.
    pub(super) keeps_candidates: bool,
    pub(super) candidates: Vec<CandidateEvidence>,
    /// Goroutines that ran at every look so far, and how often each had stopped.
    running: Option<Vec<(u64, Option<u8>)>>,
    pub(super) last: Option<Marked>,
    /// Bytes that a pass may take.
    room: u64,
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
            proof: Proof::default(),
            evidence: Vec::new(),
            keeps_candidates: false,
            candidates: Vec::new(),
            running: None,
            last: None,
            room: u64::MAX,
        })
    }

    /// From now on a process is refused that has more goroutines, or a heap that takes more bytes to be marked.
    pub fn bound(&mut self, goroutines: u64, bytes: u64) {
        self.engine.set_most(goroutines);
        self.room = bytes;
    }

    /// Refuses to mark a heap of so many spans and objects where that takes too much memory.
    pub(super) fn check_room(&self, spans: u64, objects: u64) -> Result<(), HeapError> {
        // Of a span its record, its place in the table and its page; of 64 objects four words of bits, and one of free
        // ones.
        let needed = spans.saturating_mul(256).saturating_add(objects / 64 * 40);
        if needed <= self.room {
            return Ok(());
        }
        Err(HeapError::TooLarge { needed: needed >> 20, room: self.room >> 20 })
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
        let told = |c: &&Candidate| !c.hidden;
        let mut now: Vec<&Standing> = marked.leaked.iter().filter(told).map(|c| &c.standing).collect();
        now.sort_unstable_by_key(|s| s.goid);
        now.dedup_by_key(|s| s.goid);
        self.proof.unreachable.take_in(&now);
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
        let mut survey = self.engine.survey(memory)?;
        // Of each, whether it has run; `None` for one that was not seen.
        let mut has_run: Vec<Option<bool>> = vec![None; self.proof.unreachable.len()];
        let (known, mut part) = (&self.proof.unreachable, Vec::new());
        while survey.next(&self.engine, memory, &mut part)? {
            for later in &part {
                let Some(n) = known.find(later.goid) else { continue };
                if let (Some(has_run), Some(p)) = (has_run.get_mut(n), known.0.get(n)) {
                    *has_run = Some(p.stood.has_run(later));
                }
            }
        }
        // Where the list could not be read whole, one that is not in it may still be there.
        let (_, unknown) = survey.finish();
        let mut gone = has_run.into_iter().map(|has_run| has_run.unwrap_or(unknown == 0));
        let mut refuted = Vec::new();
        self.proof.unreachable.0.retain(|p| {
            let gone = gone.next().unwrap_or(false);
            refuted.extend((gone && p.is_final()).then(|| p.goid()));
            !gone
        });
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

    /// Whether what the last pass marked is at hand.
    #[must_use]
    pub const fn has_marks(&self) -> bool {
        self.last.is_some()
    }

    /// Begins anew: what was agreed on until now counts no more.
    pub fn forget(&mut self) {
        self.proof = Proof::default();
        self.running = None;
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Status;

    const STANDING: Standing = Standing {
        g: 8,
        goid: 7,
        status: Status::Waiting,
        wait_reason: 14,
        stack: (0x1000, 0x2000),
        sp: Some(0x1800),
        pc: 1,
        waiting: 0,
        from_c: false,
        system: false,
        mark: 3,
        stops: Some(1),
    };

    #[test]
    fn what_is_proven_stays_when_a_later_pass_reaches_it() {
        let standing = STANDING;
        let mut known = Proven::new(&standing);
        for n in 2..=PASSES {
            assert!(known.agrees(Some(&standing)) && known.passes == n);
        }
        assert!(known.agrees(None) && known.is_final(), "proven, and then reached by chance");
        let mut open = Proven { passes: PASSES - 1, ..Proven::new(&standing) };
        assert!(!open.agrees(None), "begins anew");
    }

    #[test]
    fn who_moves_begins_anew_and_who_comes_is_added() {
        let standing = |goid, mark| Standing { goid, mark, ..STANDING };
        let mut all = Unreachable::default();
        let passes =
            |all: &Unreachable| -> Vec<(u64, u32)> { all.iter().map(|p| (p.goid(), p.passes)).collect() };
        all.take_in(&[&standing(3, 1), &standing(7, 1), &standing(8, 1)]);
        all.take_in(&[&standing(3, 1), &standing(5, 1), &standing(7, 2), &standing(9, 1)]);
        assert_eq!(passes(&all), [(3, 2), (5, 1), (7, 1), (9, 1)], "8 was reached");
        for _ in 2..PASSES {
            all.take_in(&[&standing(3, 1), &standing(7, 2)]);
        }
        all.take_in(&[&standing(2, 4), &standing(3, 2)]);
        assert_eq!(passes(&all), [(2, 1), (3, PASSES)], "what is proven stays as it stood");
        assert_eq!((all.get(2).map(|p| p.passes), all.get(4), all.len()), (Some(1), None, 2));
    }
}
