//! Goroutines that may never run again, and what each waits on: for which objects to be reached it takes to
//! let it run.
//!
//! Only waits that another goroutine must end count: channels, `select`, locks, `sync.WaitGroup`,
//! `sync.Cond`. Whatever is not understood of one makes it a goroutine that can run. Up to Go 1.25 a wait for
//! a lock has no record that its goroutine leads to: it is found in the runtime's table of semaphores or in the
//! condition's list.

use std::{ops::Deref, sync::Arc};

use super::HeapError;
use crate::snapshot::{Engine, Record, Standing};
use gotrace_go::Binary;
use gotrace_process::ReadMemory;

/// The main goroutine.
const MAIN: u64 = 1;

/// What a wait reason means for a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For one channel.
    Channel,
    /// For several.
    Select,
    /// For a semaphore of the runtime.
    Semaphore,
    /// For a `sync.Cond`.
    Cond,
    /// For nothing that can come, as a channel is nil.
    Never,
    /// In a select without cases.
    NoCases,
    /// To be switched to, as a coroutine or by one.
    Coroutine,
    /// For something else: the goroutine can run.
    Other,
}

impl Kind {
    /// By the runtime's name. In a `testing/synctest` bubble time itself may end a wait.
    fn of(reason: &str) -> Self {
        match reason {
            "chan receive" | "chan send" => Self::Channel,
            "select" => Self::Select,
            "semacquire"
            | "sync.Mutex.Lock"
            | "sync.RWMutex.RLock"
            | "sync.RWMutex.Lock"
            | "sync.WaitGroup.Wait" => Self::Semaphore,
            "sync.Cond.Wait" => Self::Cond,
            "coroutine" => Self::Coroutine,
            "chan receive (nil chan)" | "chan send (nil chan)" => Self::Never,
            "select (no cases)" => Self::NoCases,
            _ => Self::Other,
        }
    }
}

/// A goroutine that may never run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub standing: Standing,
    /// It can run when any of these is reached. Empty: never.
    pub waits_on: Addresses,
    /// Records of the runtime that name it.
    pub records: Addresses,
    /// It is not to be told: the main goroutine is in a select without cases, which is how a program is kept alive
    /// on purpose. The runtime's own profile leaves out the same one (`runtime/mgc.go`, `findGoroutineLeaks`).
    pub hidden: bool,
    /// What the pass that is being made found of it.
    pub came: Came,
}

/// What became of a candidate so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Nothing was reached that it waits on.
    Unreached,
    /// The same, and it was seen to stand where it stood at first.
    Still,
    /// Something was reached: it can run.
    Woken,
    /// It moved, or may have.
    Moved,
}

/// Some addresses: of a million goroutines, nearly all have one each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The only one.
    One(u64),
    /// None, or several.
    Many(Arc<[u64]>),
}

impl From<Vec<u64>> for Addresses {
    fn from(addresses: Vec<u64>) -> Self {
        match addresses[..] {
            [one] => Self::One(one),
            _ => Self::Many(addresses.into()),
        }
    }
}

impl Deref for Addresses {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// All goroutines, by address of their `g`s.
pub(super) struct Split {
    /// Those that may never run again.
    pub candidates: Vec<Candidate>,
    pub others: Vec<Standing>,
    /// Addresses of the `g`s that hold no goroutine, ascending.
    pub unused: Vec<u64>,
    /// Entries of the runtime's list that could not be read or held nonsense.
    pub unknown: u64,
}

/// Looks at all goroutines, and tells candidates from others. Of a million of them nothing is kept twice.
pub(super) fn split(engine: &mut Engine, memory: &dyn ReadMemory) -> Result<Split, HeapError> {
    let binary = Arc::clone(engine.binary());
    let may_be = |s: &Standing| kind_of(&binary, s) != Kind::Other && s.sp.is_some() && s.mark != 0;
    let in_condition = |s: &Standing| match kind_of(&binary, s) {
        Kind::Semaphore => Some(false),
        Kind::Cond => Some(true),
        _ => None,
    };
    let unlisted = |s: &Standing| s.waiting == 0 && in_condition(s).is_some();
    let mut survey = engine.survey(memory)?;
    // Room is not memory before it is used.
    let candidates = Vec::with_capacity(survey.len());
    let mut split = Split { candidates, others: Vec::new(), unused: Vec::new(), unknown: 0 };
    let mut apart: Vec<Standing> = Vec::new();
    let mut part = Vec::new();
    while survey.next(engine, memory, &mut part)? {
        split.others.extend(part.extract_if(.., |s| !may_be(s)));
        apart.extend(part.extract_if(.., |s| unlisted(s)));
        for (standing, list) in part.iter().zip(engine.records(memory, &part)?) {
            split.add(engine, memory, standing, list)?;
        }
        let found = split.candidates.len() + split.others.len() + apart.len();
        engine.bound(found, survey.len() as u64)?;
    }
    let records = engine.records_apart(memory, &apart, in_condition)?;
    for (standing, record) in apart.iter().zip(records) {
        let list = Some(record.into_iter().collect());
        split.add(engine, memory, standing, list)?;
    }
    (split.unused, split.unknown) = survey.finish();
    split.others.sort_unstable_by_key(|s| s.g);
    // Sorted but for those that were looked at again, or apart.
    split.candidates.sort_unstable_by_key(|c| c.standing.g);
    Ok(split)
}

impl Split {
    fn add(
        &mut self,
        engine: &mut Engine,
        memory: &dyn ReadMemory,
        standing: &Standing,
        list: Option<Vec<Record>>,
    ) -> Result<(), HeapError> {
        let kind = kind_of(engine.binary(), standing);
        let found = if kind == Kind::Coroutine {
            let waits_on = engine.coroutines(memory, standing)?;
            (!waits_on.is_empty()).then(|| (waits_on, Vec::new()))
        } else {
            waits_on(kind, list)
        };
        match found {
            Some((waits_on, records)) => self.candidates.push(Candidate {
                standing: *standing,
                waits_on: waits_on.into(),
                records: records.into(),
                hidden: standing.goid == MAIN && kind == Kind::NoCases,
                came: Came::Unreached,
            }),
            None => self.others.push(*standing),
        }
        Ok(())
    }
}

fn kind_of(binary: &Binary, standing: &Standing) -> Kind {
    if !standing.status.is_waiting() || standing.system || standing.from_c {
        return Kind::Other;
    }
    binary.wait_reasons().get(usize::from(standing.wait_reason)).map_or(Kind::Other, |name| Kind::of(name))
}

/// Whether what a goroutine waits on is one channel or several.
pub(super) fn is_for_channels(binary: &Binary, standing: &Standing) -> bool {
    matches!(kind_of(binary, standing), Kind::Channel | Kind::Select)
}

/// Whether it waits to be switched to.
pub(super) fn is_in_coroutine(binary: &Binary, standing: &Standing) -> bool {
    kind_of(binary, standing) == Kind::Coroutine
}

/// What must be reached, and the records; `None` when that is not known.
fn waits_on(kind: Kind, list: Option<Vec<Record>>) -> Option<(Vec<u64>, Vec<u64>)> {
    let list = list?;
    let sudogs: Vec<u64> = list.iter().map(|r| r.sudog).collect();
    match kind {
        Kind::Never | Kind::NoCases => Some((Vec::new(), sudogs)),
        // All of its channels are nil.
        Kind::Select if list.is_empty() => Some((Vec::new(), sudogs)),
        Kind::Channel | Kind::Select => {
            let channels: Vec<u64> = list.iter().map(|r| r.chan).collect();
            (!channels.is_empty() && channels.iter().all(|&c| c != 0)).then_some((channels, sudogs))
        }
        Kind::Semaphore | Kind::Cond => {
            let first = list.first().filter(|r| r.chan == 0 && r.elem != 0)?;
            Some((vec![first.elem], sudogs))
        }
        Kind::Coroutine | Kind::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_that_others_must_end_count() {
        assert_eq!(Kind::of("chan receive"), Kind::Channel);
        assert_eq!(Kind::of("select (no cases)"), Kind::NoCases);
        assert_eq!(Kind::of("semacquire"), Kind::Semaphore);
        for other in ["sleep", "IO wait", "select (durable)", "GC worker (idle)", ""] {
            assert_eq!(Kind::of(other), Kind::Other, "{other}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_wait_makes_no_candidate() {
        let record = |chan, elem| Record { sudog: 8, chan, elem };
        assert_eq!(waits_on(Kind::Channel, None), None, "a list that was torn");
        assert_eq!(waits_on(Kind::Channel, Some(vec![])), None, "a channel that is not known");
        assert_eq!(waits_on(Kind::Channel, Some(vec![record(0, 0)])), None);
        assert_eq!(waits_on(Kind::Semaphore, Some(vec![])), None, "a lock that is not known");
        assert_eq!(waits_on(Kind::Semaphore, Some(vec![record(0, 0)])), None);
        assert_eq!(waits_on(Kind::Select, Some(vec![record(16, 0), record(0, 0)])), None);
        assert_eq!(waits_on(Kind::Semaphore, Some(vec![record(0, 32)])), Some((vec![32], vec![8])));
        assert_eq!(waits_on(Kind::Never, Some(vec![])), Some((vec![], vec![])));
    }
}
