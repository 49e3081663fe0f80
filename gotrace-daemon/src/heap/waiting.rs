//! Goroutines that may never run again, and what each waits on: for which objects to be reached it takes to
//! let it run.
//!
//! Only waits that another goroutine must end count: channels, `select`, locks, `sync.WaitGroup`,
//! `sync.Cond`. Whatever is not understood of one makes it a goroutine that can run. Up to Go 1.25 a wait for
//! a lock has no record that its goroutine leads to; the record is on the stack of
//! `runtime.semacquire1` or `runtime.notifyListWait`, which need it when they are woken, and names its
//! goroutine.

use super::{HeapError, table::Table};
use crate::{
    gobin::Binary,
    process::{ProcessError, ReadMemory},
    snapshot::{Engine, Pieces, Record, Standing, word_at},
};

/// Bytes of a stack in which the frames of the runtime and of `sync` are that wait for a lock.
const WINDOW: u64 = 1024;
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
    /// For nothing that can come.
    Never,
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
            "chan receive (nil chan)" | "chan send (nil chan)" | "select (no cases)" => Self::Never,
            _ => Self::Other,
        }
    }
}

/// A goroutine that may never run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub standing: Standing,
    /// It can run when any of these is reached. Empty: never.
    pub waits_on: Vec<u64>,
    /// Records of the runtime that name it.
    pub records: Vec<u64>,
    /// It is not to be told: the main goroutine parks for ever on purpose.
    pub hidden: bool,
}

/// The candidates among goroutines, and the others.
pub(super) fn split(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    table: &Table,
    standings: Vec<Standing>,
) -> Result<(Vec<Candidate>, Vec<Standing>), HeapError> {
    let binary = std::sync::Arc::clone(engine.binary());
    let (mut maybe, mut others): (Vec<Standing>, Vec<Standing>) =
        standings.into_iter().partition(|s| kind_of(&binary, s) != Kind::Other);
    maybe.retain(|s| {
        let stands = s.sp.is_some() && s.mark != 0;
        if !stands {
            others.push(*s);
        }
        stands
    });
    let records = engine.records(memory, &maybe)?;
    let on_stacks = records_on_stacks(engine, memory, table, &binary, &maybe)?;
    let mut candidates = Vec::with_capacity(maybe.len());
    for ((standing, list), on_stack) in maybe.into_iter().zip(records).zip(on_stacks) {
        match waits_on(kind_of(&binary, &standing), list, on_stack) {
            Some((waits_on, records)) => {
                let hidden = standing.goid == MAIN && waits_on.is_empty();
                candidates.push(Candidate { standing, waits_on, records, hidden });
            }
            None => others.push(standing),
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

/// What must be reached, and the records; `None` when that is not known.
fn waits_on(
    kind: Kind,
    list: Option<Vec<Record>>,
    on_stack: Option<OnStack>,
) -> Option<(Vec<u64>, Vec<u64>)> {
    let list = list?;
    let sudogs: Vec<u64> = list.iter().map(|r| r.sudog).collect();
    match kind {
        Kind::Never => Some((Vec::new(), sudogs)),
        // All of its channels are nil.
        Kind::Select if list.is_empty() => Some((Vec::new(), sudogs)),
        Kind::Channel | Kind::Select => {
            let channels: Vec<u64> = list.iter().map(|r| r.chan).collect();
            (!channels.is_empty() && channels.iter().all(|&c| c != 0)).then_some((channels, sudogs))
        }
        Kind::Semaphore | Kind::Cond if !list.is_empty() => {
            let first = list.first().filter(|r| r.chan == 0 && r.elem != 0)?;
            Some((vec![first.elem], sudogs))
        }
        Kind::Semaphore | Kind::Cond => {
            let OnStack { record, waits_on } = on_stack?;
            (!waits_on.is_empty()).then_some((waits_on, vec![record]))
        }
        Kind::Other => None,
    }
}

/// A record that was found on a goroutine's stack, and what it waits on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OnStack {
    record: u64,
    waits_on: Vec<u64>,
}

/// For those of these that wait for a lock or `sync.Cond` without a record that they lead to.
fn records_on_stacks(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    table: &Table,
    binary: &Binary,
    standings: &[Standing],
) -> Result<Vec<Option<OnStack>>, ProcessError> {
    let mut found: Vec<Option<OnStack>> = vec![None; standings.len()];
    let mut wanted: Vec<(usize, u64, u32)> = standings
        .iter()
        .enumerate()
        .filter(|(_, s)| s.waiting == 0 && matches!(kind_of(binary, s), Kind::Semaphore | Kind::Cond))
        .filter_map(|(n, s)| Some((n, s.sp?, s.stack.1.checked_sub(s.sp?)?.min(WINDOW) as u32)))
        .collect();
    wanted.sort_unstable_by_key(|&(_, sp, _)| sp);
    let items: Vec<(u64, u32)> = wanted.iter().map(|&(_, sp, len)| (sp, len)).collect();
    let (mut first, mut pieces) = (0, Pieces::default());
    while first < items.len() {
        let done = pieces.read(memory, &items[first..], 0)?;
        let mut stacks = Vec::new();
        for i in 0..done {
            let (n, _, len) = wanted[first + i];
            if let Some(bytes) = pieces.item(i, len as usize) {
                stacks.push((n, bytes.to_vec()));
            }
        }
        for (n, bytes) in stacks {
            let Some(standing) = standings.get(n) else { continue };
            found[n] = match kind_of(binary, standing) {
                Kind::Semaphore => semaphore(engine, memory, table, standing, &bytes)?,
                _ => cond(engine, memory, table, standing, &bytes)?,
            };
        }
        first += done;
    }
    Ok(found)
}

/// The records on a stack that name its goroutine: address, what it waits on.
fn own_records(
    engine: &Engine,
    memory: &dyn ReadMemory,
    table: &Table,
    standing: &Standing,
    bytes: &[u8],
) -> Result<Vec<(u64, u64)>, ProcessError> {
    let (g_at, elem_at, len) = engine.record_layout();
    let mut records: Vec<(u64, u64)> = Vec::new();
    let mut record = vec![0; len];
    for chunk in bytes.chunks_exact(8) {
        let address = word_at(chunk, 0);
        let Some(place) = table.find(address) else { continue };
        let (base, size) = table.object(place);
        let known = records.iter().any(|&(r, _)| r == address);
        if base != address || size < len as u64 || size > 256 || known {
            continue;
        }
        if memory.read_at(address, &mut record)? && word_at(&record, g_at) == standing.g {
            records.push((address, word_at(&record, elem_at)));
        }
    }
    Ok(records)
}

/// A wait for a semaphore: its record has the semaphore's address, which the runtime clears when the wait
/// is over.
fn semaphore(
    engine: &Engine,
    memory: &dyn ReadMemory,
    table: &Table,
    standing: &Standing,
    bytes: &[u8],
) -> Result<Option<OnStack>, ProcessError> {
    let mut records = own_records(engine, memory, table, standing, bytes)?;
    records.retain(|&(_, elem)| elem != 0);
    Ok(match records[..] {
        [(record, semaphore)] => Some(OnStack { record, waits_on: vec![semaphore] }),
        _ => None,
    })
}

/// A wait for a `sync.Cond`: its record does not say for which. `sync.(*Cond).Wait` needs it when it is
/// woken, so that it is among the pointers that its frame still uses: all of them are taken for it.
fn cond(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    table: &Table,
    standing: &Standing,
    bytes: &[u8],
) -> Result<Option<OnStack>, ProcessError> {
    let Some(words) = engine.live_words(standing, bytes, "sync.(*Cond).Wait") else { return Ok(None) };
    // Records of waits that are over look the same: only one that is still used counts.
    let Some(used) = engine.live_words(standing, bytes, "sync.runtime_notifyListWait") else {
        return Ok(None);
    };
    let mut records = own_records(engine, memory, table, standing, bytes)?;
    records.retain(|&(record, elem)| elem == 0 && used.contains(&record));
    let [(record, _)] = records[..] else { return Ok(None) };
    let mut waits_on: Vec<u64> = words.into_iter().filter(|&w| table.find(w).is_some()).collect();
    waits_on.dedup();
    Ok(Some(OnStack { record, waits_on }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_that_others_must_end_count() {
        assert_eq!(Kind::of("chan receive"), Kind::Channel);
        assert_eq!(Kind::of("select (no cases)"), Kind::Never);
        assert_eq!(Kind::of("semacquire"), Kind::Semaphore);
        for other in ["sleep", "IO wait", "select (durable)", "coroutine", "GC worker (idle)", ""] {
            assert_eq!(Kind::of(other), Kind::Other, "{other}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_wait_makes_no_candidate() {
        let record = |chan, elem| Record { sudog: 8, chan, elem };
        assert_eq!(waits_on(Kind::Channel, None, None), None, "a list that was torn");
        assert_eq!(waits_on(Kind::Channel, Some(vec![]), None), None, "a channel that is not known");
        assert_eq!(waits_on(Kind::Channel, Some(vec![record(0, 0)]), None), None);
        assert_eq!(waits_on(Kind::Semaphore, Some(vec![]), None), None, "a lock that is not known");
        assert_eq!(waits_on(Kind::Semaphore, Some(vec![record(0, 0)]), None), None);
        assert_eq!(waits_on(Kind::Select, Some(vec![record(16, 0), record(0, 0)]), None), None);
        assert_eq!(waits_on(Kind::Semaphore, Some(vec![record(0, 32)]), None), Some((vec![32], vec![8])));
        assert_eq!(waits_on(Kind::Never, Some(vec![]), None), Some((vec![], vec![])));
    }
}
