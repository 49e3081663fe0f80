//! One pass: marks the heap of a running process from everything that can run, and tells which goroutines
//! are left.
//!
//! The process runs on meanwhile. What it changes is looked for at the end of the pass: spans that were
//! taken, goroutines that came or moved, and all variables again; what is new counts as able to run. A
//! pointer can still escape a single pass, when it is moved from where was not read yet to where was read
//! already; see [`super::Prover`] for how many passes must agree.

use std::{sync::atomic::Ordering, time::Instant};

use super::{
    HeapError, Prover,
    bits::Bits,
    evidence::{CandidateEvidence, Outcome, PassEvidence, RootEvidence},
    free,
    layout::Span,
    mark::Marker,
    modules::{self, Module},
    objects::Objects,
    roots,
    spans::{self, Spans},
    stacks::{self, AT_ONCE, Look},
    table::Table,
    types::Types,
    waiting::{self, Came, Candidate, Split},
};
use crate::snapshot::{Engine, Standing, Status};
use gotrace_process::ReadMemory;

/// What a pass leaves.
#[derive(Debug)]
pub(super) struct Marked {
    pub marker: Marker,
    /// Goroutines that nothing can let run.
    pub leaked: Vec<Candidate>,
    /// The others, as they stood at the pass's end, if candidates are kept: [`Prover::why`] asks for both.
    pub others: Vec<Standing>,
    pub modules: Vec<Module>,
    pub evidence: PassEvidence,
    /// Goroutines that ran at both looks: goid, and how often each had stopped.
    pub running: Vec<(u64, Option<u8>)>,
}

/// What the look at the end of a pass shows.
#[derive(Default)]
struct Later {
    /// Those that do not stand where they stood.
    moved: Vec<Standing>,
    /// Addresses of the `g`s that hold no goroutine, ascending.
    unused: Vec<u64>,
    /// As [`Marked::running`].
    running: Vec<(u64, Option<u8>)>,
    /// All of them, if candidates are kept.
    all: Vec<Standing>,
}

/// Where roots are.
#[derive(Clone, Copy, Debug)]
enum Root {
    Data,
    Bss,
    Stacks,
    Specials,
    Blocks,
}

impl Prover {
    /// Marks once. `None` when the list of goroutines could not be read whole, so that nothing follows.
    pub(super) fn mark(&mut self, memory: &dyn ReadMemory) -> Result<Option<Marked>, HeapError> {
        let begin = Instant::now();
        let modules = modules::read(memory, self.first_module, self.layout.types, &self.version)?;
        self.engine.know_plugins(modules.iter().skip(1).map(|m| m.text).collect());
        let Split { mut candidates, others, unused, unknown } = waiting::split(&mut self.engine, memory)?;
        if unknown > 0 {
            return Ok(None);
        }
        let list = self.list(memory)?;
        self.check_room(spans::count(memory, list)?, 0)?;
        let mut spans = spans::read(memory, &self.layout, list, &self.version)?;
        let table = self.table(&spans.objects)?;
        self.check_room(spans.records.len() as u64, table.objects)?;
        // The table has them.
        spans.objects = Vec::new();
        let free = free::read(memory, &table)?;
        let mut marker = Marker::new(table, &free, self.random.usize(..1 << 20));
        let minor = self.engine.binary().go_version().minor;
        let types = std::mem::take(&mut self.types);
        let mut types = std::sync::Arc::into_inner(types).unwrap_or_else(|| Types::new(minor));
        types.know(&modules);
        self.types = std::sync::Arc::new(types);
        let gs = candidates.iter().map(|c| &c.standing).chain(&others).map(|s| s.g);
        let g_size = gs.filter_map(|g| Some(marker.table.object(marker.table.find(g)?).1)).next();
        marker.objects = Objects::new(std::sync::Arc::clone(&self.types), g_size.unwrap_or(0), &spans.manual);
        // What the pass before told is given up first: there may be very many.
        self.candidates = Vec::new();
        for candidate in &candidates {
            marker.skip(candidate.standing.g);
            for &record in candidate.records.iter() {
                marker.skip(record);
            }
        }
        // What is left in a `g` of the goroutine that it was means nothing.
        for &g in &unused {
            marker.skip(g);
        }
        let mut evidence = PassEvidence {
            spans: marker.table.entries.len() as u64,
            spans_unreadable: spans.unreadable + spans.overlapping,
            heap_bytes: marker.table.entries.iter().map(|e| e.span.size * u64::from(e.span.count)).sum(),
            goroutines: (candidates.len() + others.len()) as u64,
            unused: unused.len() as u64,
            candidates: candidates.len() as u64,
            modules: modules.len() as u64,
            ..PassEvidence::default()
        };
        let mut order = [Root::Data, Root::Bss, Root::Stacks, Root::Specials, Root::Blocks];
        self.random.shuffle(&mut order);
        for root in order {
            let roots = (&modules[..], &spans, &others[..]);
            self.take_in(memory, root, &marker, roots, Look::First, &mut evidence.roots)?;
        }
        marker.drain(memory)?;
        evidence.woken += wake(&mut self.engine, memory, &mut marker, &mut candidates, Look::First)?;

        // What has changed meanwhile.
        let now = spans::read(memory, &self.layout, list, &self.version)?;
        let fresh = fresh(&marker.table, &now);
        let looked_through: Vec<_> = fresh.iter().filter(|s| !s.noscan).map(|s| (s.base, s.bytes)).collect();
        marker.ranges(memory, &looked_through)?;
        evidence.roots.fresh_spans = fresh.len() as u64;
        evidence.roots.fresh_objects = marker.settle_free(&still_free(memory, &marker.table, &now)?);
        let in_fresh = |a: u64| {
            let n = fresh.partition_point(|s| s.base <= a);
            n.checked_sub(1).is_some_and(|n| a - fresh[n].base < fresh[n].bytes)
        };
        let Some(later) = self.look_again(memory, &mut candidates, &others)? else {
            self.tell(&candidates, |_| Outcome::Reached);
            return Ok(None);
        };
        // One that holds a goroutine now, or did in between, may hold anything.
        for &g in unused.iter().filter(|g| later.unused.binary_search(g).is_err()) {
            marker.unskip(g);
        }
        // Of those that moved, how they stand now counts, if they are still there.
        let mut again = later.moved;
        for c in candidates.iter_mut().filter(|c| c.came != Came::Woken) {
            let still = c.came == Came::Still;
            if still && !c.waits_on.iter().chain(c.records.iter()).any(|&a| in_fresh(a)) {
                continue;
            }
            if still {
                again.push(c.standing);
            }
            c.came = Came::Moved;
            evidence.moved += 1;
            unskip(&mut marker, c);
        }
        let mut second = RootEvidence::default();
        for root in [Root::Stacks, Root::Data, Root::Bss] {
            // Those have moved, and may move on.
            self.take_in(memory, root, &marker, (&modules, &now, &again), Look::Last, &mut second)?;
        }
        evidence.roots.goroutines_again = again.len() as u64;
        evidence.roots.again_exact = second.stacks_exact;
        marker.drain(memory)?;
        evidence.woken += wake(&mut self.engine, memory, &mut marker, &mut candidates, Look::Last)?;

        self.tell(&candidates, |c| match c.came {
            Came::Still if c.hidden => Outcome::Hidden,
            Came::Still => Outcome::Unreached,
            Came::Moved => Outcome::Moved,
            Came::Woken | Came::Unreached => Outcome::Reached,
        });
        candidates.retain(|c| c.came == Came::Still);
        candidates.shrink_to_fit();
        (evidence.reached_bytes, evidence.reached_objects) = marker.reached();
        evidence.bytes_read = marker.bytes_read.load(Ordering::Relaxed);
        evidence.objects_exact = marker.exact.load(Ordering::Relaxed);
        evidence.objects_whole = marker.whole.load(Ordering::Relaxed);
        evidence.bytes_unreadable = marker.bytes_unreadable.load(Ordering::Relaxed);
        evidence.unreached = candidates.iter().filter(|c| !c.hidden).count() as u64;
        evidence.duration_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut others = later.all;
        others.retain(|s| candidates.binary_search_by_key(&s.g, |c| c.standing.g).is_err());
        Ok(Some(Marked { marker, leaked: candidates, others, modules, evidence, running: later.running }))
    }

    /// Looks at all goroutines at the end of a pass, and notes which candidates stand where they stood. `None` when the
    /// list could not be read whole.
    fn look_again(
        &mut self,
        memory: &dyn ReadMemory,
        candidates: &mut [Candidate],
        others: &[Standing],
    ) -> Result<Option<Later>, HeapError> {
        let mut later = Later::default();
        let (mut survey, mut part) = (self.engine.survey(memory)?, Vec::new());
        // Both are by address of their `g`s.
        let mut next = 0;
        while survey.next(&self.engine, memory, &mut part)? {
            for s in &part {
                let of = |c: &Candidate| c.standing.g;
                let n = match candidates.get(next) {
                    Some(c) if of(c) == s.g => Some(next),
                    _ => candidates.binary_search_by_key(&s.g, of).ok(),
                };
                next = n.map_or(next, |n| n + 1);
                let before = match n {
                    Some(n) => candidates.get(n).map(|c| &c.standing),
                    None => others.binary_search_by_key(&s.g, |o| o.g).ok().and_then(|n| others.get(n)),
                };
                let before = before.filter(|b| b.goid == s.goid);
                let stands = s.status.is_waiting() && s.mark != 0 && before.is_some_and(|b| b.mark == s.mark);
                let runs = |b: &Standing| b.status == s.status && b.stops == s.stops;
                if s.status == Status::Running && before.is_some_and(runs) {
                    later.running.push((s.goid, s.stops));
                }
                if !stands {
                    later.moved.push(*s);
                } else if let Some(c) = n.and_then(|n| candidates.get_mut(n))
                    && c.came == Came::Unreached
                {
                    c.came = Came::Still;
                }
            }
            if self.keeps_candidates {
                later.all.append(&mut part);
            }
        }
        let unknown;
        (later.unused, unknown) = survey.finish();
        Ok((unknown == 0).then_some(later))
    }

    /// Keeps what became of the candidates, if that is to be told.
    fn tell(&mut self, candidates: &[Candidate], outcome: impl Fn(&Candidate) -> Outcome) {
        if self.keeps_candidates {
            self.candidates = candidates.iter().map(|c| told(c, outcome(c))).collect();
        }
    }

    fn table(&self, spans: &[Span]) -> Result<Table, HeapError> {
        Table::new(spans).ok_or_else(|| HeapError::Implausible {
            version: self.version.clone(),
            why: "its spans are too large or too far apart".into(),
        })
    }

    fn take_in(
        &mut self,
        memory: &dyn ReadMemory,
        root: Root,
        marker: &Marker,
        (modules, spans, goroutines): (&[Module], &Spans, &[Standing]),
        look: Look,
        found: &mut RootEvidence,
    ) -> Result<(), HeapError> {
        match root {
            Root::Data | Root::Bss => {
                let which = usize::from(matches!(root, Root::Bss));
                let (mut bytes, mut exact) = (0, 0);
                for module in modules {
                    let (read, known) = marker.variables(memory, module.variables()[which])?;
                    bytes += read;
                    exact += known;
                }
                match root {
                    Root::Data => (found.data_bytes, found.data_exact_bytes) = (bytes, exact),
                    _ => (found.bss_bytes, found.bss_exact_bytes) = (bytes, exact),
                }
            }
            Root::Stacks => {
                found.goroutines = goroutines.len() as u64;
                let taken = stacks::take_in(&mut self.engine, memory, marker, goroutines, look)?;
                found.stack_bytes = taken.bytes;
                found.stacks_exact = taken.exact;
            }
            Root::Specials => {
                let specials = roots::specials(memory, &self.layout, marker)?;
                found.finalizers = specials.finalizers;
                found.weak_handles = specials.weak;
                found.cleanups = specials.cleanups;
                found.specials_cut += specials.cut;
            }
            Root::Blocks => {
                let minor = self.engine.binary().go_version().minor;
                let blocks = roots::blocks(memory, marker, spans, modules, minor)?;
                found.blocks = blocks.taken;
                found.specials_cut += u64::from(blocks.cut);
            }
        }
        Ok(())
    }
}

fn told(candidate: &Candidate, outcome: Outcome) -> CandidateEvidence {
    CandidateEvidence {
        goid: candidate.standing.goid,
        g: candidate.standing.g,
        outcome,
        waits_on: candidate.waits_on.clone(),
        records: candidate.records.clone(),
    }
}

fn unskip(marker: &mut Marker, candidate: &Candidate) {
    marker.unskip(candidate.standing.g);
    for &record in candidate.records.iter() {
        marker.unskip(record);
    }
}

/// Lets those run of which something is reached that they wait on, until there are none; gives their number.
fn wake(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    marker: &mut Marker,
    candidates: &mut [Candidate],
    look: Look,
) -> Result<u64, HeapError> {
    let mut woken = 0;
    loop {
        let can_run = |c: &Candidate| {
            matches!(c.came, Came::Unreached | Came::Still)
                && c.waits_on.iter().any(|&a| marker.is_reached(a))
        };
        let now: Vec<u32> = (0..).zip(&*candidates).filter(|(_, c)| can_run(c)).map(|(n, _)| n).collect();
        if now.is_empty() {
            return Ok(woken);
        }
        woken += now.len() as u64;
        for &n in &now {
            candidates[n as usize].came = Came::Woken;
        }
        let_run(engine, memory, marker, candidates, &now, look)?;
    }
}

/// Makes these of the candidates roots, and follows them.
pub(super) fn let_run(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    marker: &mut Marker,
    candidates: &[Candidate],
    which: &[u32],
    look: Look,
) -> Result<(), HeapError> {
    for &n in which {
        unskip(marker, &candidates[n as usize]);
    }
    // Some at a time: there may be a million.
    for part in which.chunks(AT_ONCE) {
        let standings: Vec<Standing> = part.iter().map(|&n| candidates[n as usize].standing).collect();
        stacks::take_in(engine, memory, marker, &standings, look)?;
    }
    marker.drain(memory)?;
    Ok(())
}

/// Objects that are free, of spans that are what they were when the pass began.
fn still_free(memory: &dyn ReadMemory, table: &Table, now: &Spans) -> Result<Bits, HeapError> {
    let free = Bits::new(table.objects);
    let same = |s: &Span| {
        let n = table.entries.partition_point(|e| e.span.base < s.base);
        table.entries.get(n).filter(|e| is_same(&e.span, s)).map(|e| (*s, e.first))
    };
    let spans: Vec<(Span, u64)> = now.objects.iter().filter_map(same).collect();
    free::each(memory, &spans, |first, n| {
        free.set(first + u64::from(n));
    })?;
    Ok(free)
}

fn is_same(old: &Span, new: &Span) -> bool {
    let of = |s: &Span| (s.base, s.bytes, s.size, s.count, s.noscan);
    of(old) == of(new)
}

/// Spans that were not there when the pass began, or were something else.
fn fresh(table: &Table, now: &Spans) -> Vec<Span> {
    let known = |s: &Span| {
        let n = table.entries.partition_point(|e| e.span.base < s.base);
        table.entries.get(n).is_some_and(|e| is_same(&e.span, s))
    };
    now.objects.iter().filter(|s| !known(s)).copied().collect()
}
