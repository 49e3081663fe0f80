//! Goroutines that may never run again, and what each waits on: for which objects to be reached it takes to
//! let it run.
//!
//! Only waits that another goroutine must end count: channels, `select`, locks, `sync.WaitGroup`,
//! `sync.Cond`. Whatever is not understood of one makes it a goroutine that can run. Up to Go 1.25 a wait for
//! a lock has no record that its goroutine leads to: it is found in the runtime's table of semaphores or in the
//! condition's list.

use std::{ops::Deref, sync::Arc};

use hashbrown::HashMap;

use super::{HeapError, stacks::AT_ONCE};
use crate::{
    gobin::Binary,
    process::ReadMemory,
    snapshot::{Engine, Record, Standing},
};

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

/// The candidates among goroutines, and the others. Of a million of them little is kept twice.
pub(super) fn split(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    standings: Vec<Standing>,
) -> Result<(Vec<Candidate>, Vec<Standing>), HeapError> {
    let binary = Arc::clone(engine.binary());
    let may_be = |s: &Standing| kind_of(&binary, s) != Kind::Other && s.sp.is_some() && s.mark != 0;
    let in_condition = |s: &Standing| match kind_of(&binary, s) {
        Kind::Semaphore => Some(false),
        Kind::Cond => Some(true),
        _ => None,
    };
    let unlisted = |s: &&Standing| s.waiting == 0 && may_be(s) && in_condition(s).is_some();
    let unlisted: Vec<Standing> = standings.iter().filter(unlisted).copied().collect();
    let apart = engine.records_apart(memory, &unlisted, in_condition)?;
    let apart: HashMap<u64, Record> =
        unlisted.iter().zip(apart).filter_map(|(s, record)| Some((s.g, record?))).collect();
    let mut candidates = Vec::with_capacity(standings.iter().filter(|s| may_be(s)).count());
    let mut others = Vec::with_capacity(standings.len() - candidates.capacity());
    for part in standings.chunks(AT_ONCE) {
        let maybe: Vec<Standing> = part.iter().filter(|s| may_be(s)).copied().collect();
        others.extend(part.iter().filter(|s| !may_be(s)));
        for (standing, list) in maybe.iter().zip(engine.records(memory, &maybe)?) {
            if kind_of(&binary, standing) == Kind::Coroutine {
                match engine.coroutines(memory, standing)? {
                    waits_on if waits_on.is_empty() => others.push(*standing),
                    waits_on => candidates.push(Candidate {
                        standing: *standing,
                        waits_on: waits_on.into(),
                        records: Vec::new().into(),
                        hidden: false,
                    }),
                }
                continue;
            }
            let apart = apart.get(&standing.g);
            let list =
                list.map(|list| if list.is_empty() { apart.into_iter().copied().collect() } else { list });
            match waits_on(kind_of(&binary, standing), list) {
                Some((waits_on, records)) => {
                    let (waits_on, records) = (waits_on.into(), records.into());
                    let hidden = standing.goid == MAIN && kind_of(&binary, standing) == Kind::NoCases;
                    candidates.push(Candidate { standing: *standing, waits_on, records, hidden });
                }
                None => others.push(*standing),
            }
        }
    }
    Ok((candidates, others))
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
