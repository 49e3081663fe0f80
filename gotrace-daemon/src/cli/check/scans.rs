//! Heap scans within the time of a check, between its looks: one proof from the beginning on, and another one at the end
//! for goroutines that came since, where there is time.
//!
//! Input: an examination whenever there is time until its next look. Output: how far the proofs came ([`Scanned`]). A scan
//! that was begun goes on to its end. Where scans take so long that a proof cannot be completed, no more are made: what
//! only looks can tell is still checked.

use std::time::{Duration, Instant};

use super::coverage::Scanned;
use crate::cli::examine::{Interrupts, Proved, prove};
use gotrace_inspect::{
    examine::Examination,
    heap::{PASSES, Proven},
    leak::Finding,
};

/// Scans that a proof needs where none of them finds anybody.
const PASSES_OF_NOBODY: u32 = 2;
/// A proof that would take longer than this many times what is left is given up.
const HOPELESS: u32 = 2;
/// The share of the time that is left for a second proof of more scans than the first, and by which it may exceed the
/// time of the check.
const SHARE: u32 = 5;

/// The scans of one check.
pub(super) struct Scans<'a> {
    interrupted: &'a Interrupts,
    length: Duration,
    end: Instant,
    /// Scans of the proof that is being made, and how long they have taken.
    made: u32,
    took: Duration,
    /// Of the first proof, and when it was complete.
    first: Proved,
    completed: Option<Instant>,
    given_up: bool,
    /// Of the last one.
    last: Option<Proved>,
}

impl<'a> Scans<'a> {
    pub fn new(interrupted: &'a Interrupts, length: Duration) -> Self {
        Self {
            interrupted,
            length,
            end: Instant::now() + length,
            made: 0,
            took: Duration::ZERO,
            first: Proved::Unfinished,
            completed: None,
            given_up: false,
            last: None,
        }
    }

    /// Scans, once at least if a scan is wanted, until the next look is due; whether there is to be no other look.
    pub fn until(&mut self, examination: &mut Examination, next: Instant) -> bool {
        if self.first == Proved::Unfinished && !self.given_up {
            self.first = self.scan(examination, next);
            self.given_up = self.first == Proved::Unfinished && self.is_hopeless(examination);
        }
        // What is left is for the second proof.
        let ends = self.repeats() && next + self.reserve() > self.end;
        ends || self.interrupted.wait_until(next)
    }

    /// Until when scans may be begun.
    fn deadline(&self) -> Instant {
        self.end + self.length / SHARE
    }

    /// The rest of the first proof, or a second one.
    pub fn finish(&mut self, examination: &mut Examination) {
        let repeats = self.repeats();
        match self.first {
            _ if self.interrupted.came() => {}
            Proved::Unfinished if !self.given_up => {
                self.first = self.scan(examination, self.deadline());
            }
            Proved::Complete if repeats => {
                self.made = 0;
                self.last = Some(self.scan(examination, self.deadline()));
            }
            _ => {}
        }
    }

    /// Whether there is time for a second proof.
    fn repeats(&self) -> bool {
        self.first == Proved::Complete && self.took <= self.length / 2
    }

    /// How much of the time is left for it.
    fn reserve(&self) -> Duration {
        let whole = self.took / self.made.max(1) * PASSES;
        self.took.max(whole.min(self.length / SHARE))
    }

    fn scan(&mut self, examination: &mut Examination, until: Instant) -> Proved {
        let begin = Instant::now();
        let proved = prove(examination, self.interrupted, Some(until), &mut self.made);
        self.took += begin.elapsed();
        if proved == Proved::Complete {
            self.completed = Some(Instant::now());
        }
        proved
    }

    fn is_hopeless(&self, examination: &Examination) -> bool {
        let nobody = examination.prover().is_some_and(|p| p.proof().unreachable.is_empty());
        let needed = if nobody { PASSES_OF_NOBODY } else { PASSES };
        let missing = needed.saturating_sub(self.made).max(1);
        let one = self.took / self.made.max(1);
        one * missing > HOPELESS * self.deadline().saturating_duration_since(Instant::now())
    }

    /// How far proofs came, without what the examination knows.
    pub fn scanned(&self) -> Scanned {
        let begin = self.end - self.length;
        // A second one that was cut short leaves suspects, or there were none.
        let once = self.last.is_none();
        Scanned {
            complete: self.first == Proved::Complete,
            until: self.completed.filter(|_| once).map(|at| at.saturating_duration_since(begin)),
            made: self.made,
            ..Scanned::default()
        }
    }

    /// Goroutines that no scan of an unfinished proof reached, and that no finding tells of.
    pub fn suspects(&self, examination: &Examination, findings: &[Finding]) -> usize {
        let unfinished = self.last.unwrap_or(self.first) == Proved::Unfinished;
        let Some(prover) = examination.prover().filter(|_| unfinished) else { return 0 };
        let proof = prover.proof();
        // Those of a single scan among many are none: the program moved on meanwhile.
        let agreed = |p: &Proven| !p.is_final() && 2 * p.passes >= self.made;
        let told = |goid: u64| findings.iter().any(|f| f.goids.binary_search(&goid).is_ok());
        proof.unreachable.iter().filter(|p| agreed(p) && !told(p.goid())).count()
    }
}
