//! Answers what is asked about a process's waits and proofs, at a turn of the line.
//!
//! Input: questions, which whoever asks leaves beside the line. Output: answers as of now, in figures and addresses: naming
//! and writing is for whoever asks.

use std::{sync::Arc, time::Instant};

use super::{Line, Traced};
use crate::{symbolize::Symbolizer, tracee::Names as _};
use gotrace_export::{
    api::{Answer, CaptureError, Proof},
    contention::Waits,
};

/// A question about a process.
pub(super) enum Question {
    /// Where it waited.
    Waits(u32, Answer<Waits>),
    /// What is proven; and whether a proof is to be made for it.
    Proof(u32, bool, Answer<Proof>),
}

impl Line {
    /// Answers all that was asked.
    pub(super) fn answer_questions(&mut self, now: Instant) {
        for question in self.shown.handle.captures().questions() {
            match question {
                Question::Waits(pid, answer) => answer(self.waits_of(pid)),
                Question::Proof(pid, fresh, answer) => {
                    let traced = self.traced.iter_mut().find(|traced| traced.pid() == pid);
                    answer(traced.ok_or(CaptureError::NotTraced).and_then(|traced| traced.proof(fresh, now)));
                }
            }
        }
    }

    fn waits_of(&self, pid: u32) -> Result<Waits, CaptureError> {
        let traced = self.traced.iter().find(|t| t.pid() == pid).ok_or(CaptureError::NotTraced)?;
        let counted = self.count(traced, None);
        let symbolizer = traced.tracee.symbolizer();
        let names = Symbolizer::new(Arc::clone(symbolizer.shared_binary()), None, symbolizer.bias());
        let names = move |address| names.frames(address).into_iter().map(|frame| frame.at).collect();
        traced.tracee.waits_now(&counted, Box::new(names)).ok_or_else(|| {
            let lowered = traced.tracee.lowered();
            let why = lowered.map_or_else(String::new, |why| format!(" ({})", why.name()));
            CaptureError::Unavailable(format!(
                "waits of process {pid} are not seen at level {}{why}: they are from level waits on (trace.level)",
                traced.level_name()
            ))
        })
    }
}

impl Traced {
    /// What is proven of it; `fresh`: a proof is to be made for that.
    fn proof(&mut self, fresh: bool, now: Instant) -> Result<Proof, CaptureError> {
        let pid = self.pid();
        let Some(examining) = self.examining.as_mut() else {
            return Err(if self.examining_begun {
                let why = "it cannot be examined, or limits.prove_every is 0: the log says why";
                CaptureError::Unavailable(format!("leaks of process {pid} are not looked for: {why}"))
            } else {
                CaptureError::Later(format!(
                    "process {pid} has not been read yet, or limits.prove_every and limits.suspect_every are 0"
                ))
            });
        };
        if !examining.proves() {
            let why = "no leaks are proven as limits.prove_every is 0";
            return Err(CaptureError::Unavailable(format!("process {pid}: {why}")));
        }
        let failed = |why| CaptureError::Later(format!("no proof could be made of process {pid}: {why}"));
        let fresh = fresh && examining.ask(now).map_err(failed)?;
        let age = examining.completed().map(|begun| now.saturating_duration_since(begun));
        let left_out = examining.left_out();
        Ok(Proof { goids: self.tracee.proven(), left_out, age, fresh })
    }
}
