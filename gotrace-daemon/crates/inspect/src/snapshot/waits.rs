//! What goroutines wait on: from `g.waiting`, a list of the runtime's `sudog`s, to channels and semaphores
//! (`runtime/runtime2.go`, `runtime/chan.go`, `runtime/sema.go`; `sync/*.go` for where in a lock its
//! semaphore is).
//!
//! A channel operation and each case of a select have one `sudog` with the channel's address. Waits for
//! locks have one with the semaphore's address; from Go 1.26 on the goroutine points to it, before it is found
//! in the runtime's table or in the condition's list (`semaphores`), and where it is not, only the kind is told.
//! The lists are untrusted: each entry must name its goroutine, and their number is bounded.

use std::{hash::BuildHasher as _, ops::Range, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{
    Counts, ObjectId, ObjectKind, Op, Wait, WaitObject,
    descriptors::Descriptors,
    layout::{Layout, half, word},
    pieces::Pieces,
    seen::Seen,
    semaphores::{COND_LIST, Conditions, Semaphores},
    times::{self, Times},
    until::{Sleeps, Until},
    unwind::roles,
};
use gotrace_process::{ProcessError, ReadMemory};

/// `reflect.Select` allows 65,536 cases.
const MAX_CASES: usize = 1 << 16;
/// Entries of all lists together, beyond a few for each goroutine.
const MAX_ENTRIES: usize = 1 << 22;

/// Room for objects that is kept from one snapshot to the next.
const KEPT: usize = 1 << 15;

/// Kinds of wait reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Send,
    Receive,
    Select,
    Sleep,
    Io,
    Semaphore,
    Mutex,
    RwRead,
    RwWrite,
    WaitGroup,
    Cond,
    Other,
}

impl Family {
    /// By name; " (durable)" and the like say nothing here. On a nil channel there is nothing to wait on.
    pub fn of(reason: &str) -> Self {
        let plain = reason.strip_suffix(" (durable)").or_else(|| reason.strip_suffix(" (synctest)"));
        match plain.unwrap_or(reason) {
            "chan send" => Self::Send,
            "chan receive" => Self::Receive,
            "select" => Self::Select,
            "sleep" => Self::Sleep,
            "IO wait" => Self::Io,
            "semacquire" => Self::Semaphore,
            "sync.Mutex.Lock" => Self::Mutex,
            "sync.RWMutex.RLock" => Self::RwRead,
            "sync.RWMutex.Lock" => Self::RwWrite,
            "sync.WaitGroup.Wait" => Self::WaitGroup,
            "sync.Cond.Wait" => Self::Cond,
            _ => Self::Other,
        }
    }
}

/// An entry of a goroutine's list.
#[derive(Clone, Copy, Debug)]
struct Entry {
    sudog: u64,
    chan: u64,
    elem: u64,
}

/// A channel as it was read.
#[derive(Clone, Copy, Debug)]
struct Chan {
    len: u64,
    cap: u64,
    elem_size: u16,
    closed: bool,
    /// The description of its elements' type.
    elem_type: u64,
    /// A timer sends to it, by its own account.
    timer: bool,
    /// Address of that timer, 0 for none or not known, and when it fires.
    timer_at: u64,
    fires: Until,
    /// First and last of those that wait to receive, and to send.
    receivers: (u64, u64),
    senders: (u64, u64),
}

/// Reads lists and channels of a batch, and collects objects of a whole snapshot.
#[derive(Debug, Default)]
pub(super) struct Waits {
    entries: Vec<Entry>,
    ranges: Vec<Range<usize>>,
    /// Channels of the batch, by address.
    chans: Vec<(u64, Option<Chan>)>,
    pieces: Pieces,
    /// Objects of the snapshot, by address and kind.
    objects: HashTable<ObjectId>,
    hasher: FixedState,
    times: Times,
    pub sleeps: Sleeps,
    /// The process's clock when the snapshot began, where it is known.
    pub now: Option<i64>,
    budget: usize,
    /// Of this snapshot, where goroutines do not point to their entries.
    pub waiters: Arc<Semaphores>,
    conditions: Conditions,
    /// Channels of which a queue has a first but no last, or the reverse: never for longer than an
    /// instruction, if the structure is known.
    pub odd_queues: u64,
}

impl Waits {
    /// Forgets the objects of the last snapshot; as many entries as goroutines may have.
    pub fn begin(&mut self, goroutines: usize) {
        self.objects.clear();
        self.odd_queues = 0;
        self.conditions.begin();
        self.budget = goroutines.saturating_mul(2).saturating_add(MAX_ENTRIES);
    }

    /// Gives up what only a snapshot of very many needs.
    pub fn end(&mut self) {
        if self.objects.capacity() > KEPT {
            self.objects = HashTable::new();
        }
        self.waiters = Arc::default();
    }

    /// Reads the lists of a batch (address of the `g`, what was seen of it), and the channels in them.
    /// `conditions`: which of the batch may wait on a `sync.Cond` at which address.
    pub fn read(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        batch: &[(u64, Option<Seen>)],
        conditions: &[(usize, u64)],
        counts: &mut Counts,
    ) -> Result<(), ProcessError> {
        self.entries.clear();
        self.ranges.clear();
        self.chans.clear();
        // (goroutine, its next entry, entries so far), all lists one step at a time.
        let mut open: Vec<(usize, u64, usize)> = batch
            .iter()
            .enumerate()
            .filter_map(|(n, (g, seen))| {
                let seen = seen.filter(|s| s.status.is_waiting())?;
                let apart = || self.waiters.of(*g).map_or(0, |(sudog, _)| sudog);
                Some((n, if seen.waiting == 0 { apart() } else { seen.waiting }, 0))
            })
            .filter(|&(_, sudog, _)| sudog != 0)
            .collect();
        let mut found: Vec<(usize, Entry)> = Vec::with_capacity(open.len());
        let len = layout.sudog_len;
        while !open.is_empty() {
            open.sort_unstable_by_key(|&(_, sudog, _)| sudog);
            let items: Vec<(u64, u32)> = open.iter().map(|&(_, sudog, _)| (sudog, len as u32)).collect();
            let done = self.pieces.read(memory, &items, 64)?;
            let mut next = open.split_off(done);
            for (i, (n, sudog, count)) in open.into_iter().enumerate() {
                let valid = self.pieces.item(i, len).filter(|b| word(b, layout.sudog_g) == batch[n].0);
                let Some(bytes) = valid else {
                    // One that was found elsewhere may have been left since.
                    let apart = self.waiters.of(batch[n].0).is_some_and(|(of, _)| of == sudog);
                    counts.waits_unreadable += u64::from(!apart);
                    continue;
                };
                if self.budget == 0 || count == MAX_CASES {
                    counts.waits_unreadable += 1;
                    continue;
                }
                self.budget -= 1;
                let chan = word(bytes, layout.sudog_c);
                found.push((n, Entry { sudog, chan, elem: word(bytes, layout.sudog_elem) }));
                let following = word(bytes, layout.sudog_waitlink);
                // Of a semaphore's list, `waitlink` names the next goroutine, not the next case.
                if chan != 0 && following != 0 {
                    next.push((n, following, count + 1));
                }
            }
            open = next;
        }
        for &(n, condition) in conditions {
            let Some(&(g, _)) = batch.get(n) else { continue };
            if found.last().is_some_and(|&(of, e)| of == n && e.chan == 0) {
                continue;
            }
            if let Some(sudog) = self.conditions.find(memory, layout, condition, g)? {
                found.push((n, Entry { sudog, chan: 0, elem: condition.wrapping_add(COND_LIST) }));
            }
        }
        // Stable: the cases of each in the order of its list.
        found.sort_by_key(|&(n, _)| n);
        let mut at = 0;
        for n in 0..batch.len() {
            let begin = at;
            while found.get(at).is_some_and(|&(of, _)| of == n) {
                at += 1;
            }
            self.ranges.push(begin..at);
        }
        self.entries.extend(found.into_iter().map(|(_, e)| e));
        self.read_chans(memory, layout, counts)
    }

    fn read_chans(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        counts: &mut Counts,
    ) -> Result<(), ProcessError> {
        let mut addresses: Vec<u64> = self.entries.iter().map(|e| e.chan).filter(|&c| c != 0).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let len = layout.chan_len;
        let items: Vec<(u64, u32)> = addresses.into_iter().map(|a| (a, len as u32)).collect();
        let mut rest = &items[..];
        while !rest.is_empty() {
            let done = self.pieces.read(memory, rest, 64)?;
            let (now, later) = rest.split_at(done);
            for (i, &(address, _)) in now.iter().enumerate() {
                let mut chan = self.pieces.item(i, len).and_then(|b| Chan::parse(b, layout));
                if let Some(chan) = chan.as_mut().filter(|c| c.may_carry_times()) {
                    chan.timer |= self.times.carries(memory, chan.elem_type)?;
                }
                counts.waits_unreadable += u64::from(chan.is_none());
                self.odd_queues += u64::from(chan.is_some_and(|c| c.has_odd_queue()));
                self.chans.push((address, chan));
            }
            rest = later;
        }
        self.read_timers(memory, layout)
    }

    /// When the timers of the batch's channels fire.
    fn read_timers(&mut self, memory: &dyn ReadMemory, layout: &Layout) -> Result<(), ProcessError> {
        let Some(when) = layout.timer_when else { return Ok(()) };
        let chans = self.chans.iter_mut().filter_map(|(_, c)| c.as_mut());
        let mut fired: Vec<&mut Chan> = chans.filter(|c| c.timer_at != 0).collect();
        let addresses: Vec<u64> = fired.iter().map(|c| c.timer_at.wrapping_add(when as u64)).collect();
        let words = self.pieces.words(memory, &addresses)?;
        for (chan, word) in fired.iter_mut().zip(words) {
            chan.fires = word.map_or(Until::default(), |w| Until::timer(w, self.now));
        }
        Ok(())
    }

    /// Adds what the n-th goroutine of the batch waits on. `roles`: those of its innermost frames.
    pub fn add(
        &mut self,
        n: usize,
        family: Family,
        roles: u16,
        descriptors: &Descriptors,
        waits: &mut Vec<Wait>,
        objects: &mut Vec<WaitObject>,
    ) {
        let range = self.ranges.get(n).cloned().unwrap_or_default();
        let is_channel = matches!(family, Family::Send | Family::Receive | Family::Select);
        if !is_channel {
            let address = self.entries.get(range.start).filter(|_| !range.is_empty()).map_or(0, |e| e.elem);
            if let Some((kind, op, distance)) = lock(family, roles) {
                let descriptor = match op {
                    Some(Op::Read) => descriptors.of(n, false),
                    Some(Op::Write) => descriptors.of(n, true),
                    _ => None,
                };
                let address = match descriptor {
                    Some(d) => d.address,
                    None if address == 0 => 0,
                    None => address.saturating_sub(distance),
                };
                let object = self.object(address, kind, None, false, objects);
                if let (Some(d), Some(o)) = (descriptor, objects.get_mut(object.index())) {
                    (o.len, o.known) = (u64::from(d.number), true);
                }
                if let Some(o) = objects.get_mut(object.index()) {
                    o.receivers += 1;
                }
                let until = descriptor.map_or_else(|| self.sleeps.of(n), |d| d.deadline);
                waits.push(Wait { object, op, until });
            }
            return;
        }
        for i in range {
            let Some(&entry) = self.entries.get(i) else { break };
            if entry.chan == 0 {
                continue;
            }
            let known = self.chans.binary_search_by_key(&entry.chan, |&(address, _)| address);
            let chan = known.ok().and_then(|i| self.chans[i].1);
            let op = match family {
                Family::Send => Some(Op::Send),
                Family::Receive => Some(Op::Receive),
                _ => chan.and_then(|c| c.op(entry.sudog)),
            };
            let alone = chan.is_some_and(|c| c.has_only(entry.sudog));
            let object = self.object(entry.chan, ObjectKind::Chan, chan, alone, objects);
            if let Some(o) = objects.get_mut(object.index()) {
                match op {
                    Some(Op::Send) => o.senders += 1,
                    Some(_) => o.receivers += 1,
                    None => {}
                }
            }
            waits.push(Wait { object, op, until: chan.map_or(Until::default(), |c| c.fires) });
        }
    }

    /// The object at an address. `alone`: nobody else waited on it, so that it is new and not looked for,
    /// which would cost more than all else; see [`Waits::merge`].
    fn object(
        &mut self,
        address: u64,
        kind: ObjectKind,
        chan: Option<Chan>,
        alone: bool,
        objects: &mut Vec<WaitObject>,
    ) -> ObjectId {
        let hash = |address: u64, kind: ObjectKind| self.hasher.hash_one(address ^ kind as u64);
        let of = |id: &ObjectId| objects.get(id.index()).map(|o| (o.address, o.kind));
        let this = hash(address, kind);
        let id = ObjectId(u32::try_from(objects.len()).unwrap_or(u32::MAX));
        if !alone {
            if let Some(&id) = self.objects.find(this, |id| of(id) == Some((address, kind))) {
                return id;
            }
            self.objects
                .insert_unique(this, id, |id| of(id).map_or(0, |(address, kind)| hash(address, kind)));
        }
        objects.push(WaitObject {
            address,
            len: chan.map_or(0, |c| c.len),
            cap: chan.map_or(0, |c| c.cap),
            senders: 0,
            receivers: 0,
            elem_size: chan.map_or(0, |c| c.elem_size),
            kind,
            closed: chan.is_some_and(|c| c.closed),
            known: chan.is_some(),
            timer: kind == ObjectKind::Chan && chan.is_none_or(|c| c.timer),
        });
        id
    }

    /// Adds the objects that another has collected from other goroutines of the same process. Gives what
    /// each is now.
    pub fn adopt(
        &mut self,
        other: &Self,
        objects: &mut Vec<WaitObject>,
        theirs: &[WaitObject],
    ) -> Vec<ObjectId> {
        let hash = |o: &WaitObject| self.hasher.hash_one(o.address ^ o.kind as u64);
        let same = |a: &WaitObject, b: &WaitObject| (a.address, a.kind) == (b.address, b.kind);
        let mut ids = Vec::with_capacity(theirs.len());
        for o in theirs {
            let of = |id: &ObjectId| objects.get(id.index()).is_some_and(|known| same(known, o));
            let known = self.objects.find(hash(o), of).copied();
            match known.and_then(|id| objects.get_mut(id.index())) {
                Some(known) => {
                    known.senders += o.senders;
                    known.receivers += o.receivers;
                }
                None => objects.push(*o),
            }
            ids.push(known.unwrap_or(ObjectId(u32::try_from(objects.len() - 1).unwrap_or(u32::MAX))));
        }
        // Those that the other saw more than one wait on: the first may have seen one alone.
        for id in &other.objects {
            let Some((&id, o)) = ids.get(id.index()).zip(theirs.get(id.index())) else { continue };
            let of = |id: &ObjectId| objects.get(id.index()).is_some_and(|known| same(known, o));
            if self.objects.find(hash(o), of).is_none() {
                self.objects.insert_unique(hash(o), id, |id| objects.get(id.index()).map_or(0, hash));
            }
        }
        ids
    }

    /// Puts entries of the same channel together: somebody may have come to one while the snapshot was
    /// taken, after it was seen with one goroutine alone.
    pub fn merge(&self, waits: &mut [Wait], objects: &mut [WaitObject]) {
        let mut moved: Vec<(ObjectId, ObjectId)> = Vec::new();
        if self.objects.is_empty() {
            return;
        }
        for n in 0..objects.len() {
            let WaitObject { address, kind, senders, receivers, .. } = objects[n];
            let this = ObjectId(u32::try_from(n).unwrap_or(u32::MAX));
            let hash = self.hasher.hash_one(address ^ kind as u64);
            let same = |id: &ObjectId| {
                objects.get(id.index()).is_some_and(|o| (o.address, o.kind) == (address, kind))
            };
            let Some(&id) = self.objects.find(hash, same).filter(|&&id| id != this) else { continue };
            if let Some(o) = objects.get_mut(id.index()) {
                o.senders += senders;
                o.receivers += receivers;
            }
            // Nothing names it any more.
            objects[n].senders = 0;
            objects[n].receivers = 0;
            moved.push((this, id));
        }
        if moved.is_empty() {
            return;
        }
        for wait in waits {
            if let Ok(at) = moved.binary_search_by_key(&wait.object, |&(from, _)| from) {
                wait.object = moved[at].1;
            }
        }
    }
}

impl Chan {
    /// `None` for what is not a channel.
    fn parse(bytes: &[u8], layout: &Layout) -> Option<Self> {
        let closed = half(bytes, layout.chan_closed);
        let queue = |at: usize| (word(bytes, at), word(bytes, at + 8));
        let timer_at = layout.chan_timer.map_or(0, |at| word(bytes, at));
        let this = Self {
            len: word(bytes, layout.chan_count),
            cap: word(bytes, layout.chan_size),
            elem_size: half(bytes, layout.chan_elem_size) as u16,
            closed: closed == 1,
            elem_type: word(bytes, layout.chan_elem_type),
            timer: timer_at != 0,
            timer_at,
            fires: Until::default(),
            receivers: queue(layout.chan_recvq),
            senders: queue(layout.chan_sendq),
        };
        (this.len <= this.cap && closed <= 1).then_some(this)
    }

    /// Whether it has the form of a timer's: up to Go 1.22, and later where timers are as they were
    /// (`asynctimerchan=1`), nothing in it leads to the timer.
    fn may_carry_times(&self) -> bool {
        !self.timer && self.cap == 1 && self.elem_size == times::SIZE
    }

    fn has_odd_queue(&self) -> bool {
        [self.receivers, self.senders].iter().any(|&(first, last)| (first == 0) != (last == 0))
    }

    /// Whether this entry is the only one on either side.
    fn has_only(&self, sudog: u64) -> bool {
        let sole = (sudog, sudog);
        let none = |(first, _): (u64, u64)| first == 0;
        self.receivers == sole && none(self.senders) || self.senders == sole && none(self.receivers)
    }

    /// What the owner of an entry wants of the channel.
    fn op(&self, sudog: u64) -> Option<Op> {
        let within = |(first, last): (u64, u64)| sudog == first || sudog == last;
        match (self.receivers.0, self.senders.0) {
            (0, 0) => None,
            (_, 0) => Some(Op::Receive),
            (0, _) => Some(Op::Send),
            // Only goroutines that select on both sides wait on both.
            _ if within(self.receivers) => Some(Op::Receive),
            _ if within(self.senders) => Some(Op::Send),
            _ => None,
        }
    }
}

/// The kind of what is waited on that is no channel, what for, and how far into it the address points
/// that the runtime waits at (`sync`, Go 1.18 to 1.27).
fn lock(family: Family, frames: u16) -> Option<(ObjectKind, Option<Op>, u64)> {
    let has = |role| frames & role != 0;
    let rw_write = (ObjectKind::RwMutex, Some(Op::Lock), 8);
    let rw_read = (ObjectKind::RwMutex, Some(Op::ReadLock), 12);
    // A writer that waits for another writer stands in the mutex that a RWMutex begins with.
    let rw_behind_writer = (ObjectKind::RwMutex, Some(Op::Lock), 4);
    let mutex = (ObjectKind::Mutex, Some(Op::Lock), 4);
    let group = (ObjectKind::WaitGroup, Some(Op::Wait), 8);
    Some(match family {
        Family::Mutex if has(roles::RW_LOCK) => rw_behind_writer,
        Family::Mutex => mutex,
        Family::RwRead => rw_read,
        Family::RwWrite => rw_write,
        Family::WaitGroup => group,
        // A sync.Cond begins with its Locker, an interface.
        Family::Cond if has(roles::COND) => (ObjectKind::Cond, Some(Op::Wait), 16),
        Family::Cond => (ObjectKind::Cond, Some(Op::Wait), 0),
        Family::Semaphore if has(roles::MUTEX) && has(roles::RW_LOCK) => rw_behind_writer,
        Family::Semaphore if has(roles::MUTEX) => mutex,
        Family::Semaphore if has(roles::RW_LOCK) => rw_write,
        Family::Semaphore if has(roles::RW_RLOCK) => rw_read,
        Family::Semaphore if has(roles::WAIT_GROUP) => group,
        Family::Semaphore => (ObjectKind::Semaphore, Some(Op::Acquire), 0),
        Family::Sleep => (ObjectKind::Timer, Some(Op::Sleep), 0),
        Family::Io => {
            let op = match (has(roles::READ), has(roles::WRITE)) {
                (true, false) => Some(Op::Read),
                (false, true) => Some(Op::Write),
                _ => None,
            };
            (ObjectKind::Fd, op, 0)
        }
        Family::Send | Family::Receive | Family::Select | Family::Other => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_have_collected_becomes_one() {
        let chan = |waits: &mut Waits, address, alone, objects: &mut Vec<WaitObject>| {
            let id = waits.object(address, ObjectKind::Chan, None, alone, objects);
            objects[id.index()].receivers += 1;
            Wait { object: id, op: Some(Op::Receive), until: Until::default() }
        };
        let (mut first, mut second) = (Waits::default(), Waits::default());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        // One that both see shared, one that only the second sees shared, one that each has alone.
        let mut waits: Vec<Wait> = [(8, false), (16, true), (24, true)]
            .map(|(at, alone)| chan(&mut first, at, alone, &mut a))
            .into();
        let theirs =
            [(8, false), (16, false), (32, true)].map(|(at, alone)| chan(&mut second, at, alone, &mut b));
        let ids = first.adopt(&second, &mut a, &b);
        waits.extend(theirs.map(|w| Wait { object: ids[w.object.index()], ..w }));
        first.merge(&mut waits, &mut a);
        let of = |n: usize| (a[waits[n].object.index()].address, a[waits[n].object.index()].receivers);
        assert_eq!([0, 3].map(of), [(8, 2), (8, 2)]);
        assert_eq!([1, 4].map(of), [(16, 2), (16, 2)]);
        assert_eq!([2, 5].map(of), [(24, 1), (32, 1)]);
    }

    #[test]
    fn families_are_told_by_name_in_every_version() {
        assert_eq!(Family::of("select (durable)"), Family::Select);
        assert_eq!(Family::of("chan receive (synctest)"), Family::Receive);
        assert_eq!(Family::of("chan receive (nil chan)"), Family::Other);
        assert_eq!(Family::of("select (no cases)"), Family::Other);
        assert_eq!(Family::of("sync.WaitGroup.Wait (durable)"), Family::WaitGroup);
        assert_eq!(Family::of("GC worker (idle)"), Family::Other);
    }

    #[test]
    fn locks_are_told_by_reason_and_frames() {
        let kind = lock;
        assert_eq!(kind(Family::Mutex, roles::MUTEX), Some((ObjectKind::Mutex, Some(Op::Lock), 4)));
        let behind = Some((ObjectKind::RwMutex, Some(Op::Lock), 4));
        assert_eq!(kind(Family::Mutex, roles::MUTEX | roles::RW_LOCK), behind);
        assert_eq!(kind(Family::Semaphore, roles::MUTEX | roles::RW_LOCK), behind);
        assert_eq!(
            kind(Family::Semaphore, roles::WAIT_GROUP),
            Some((ObjectKind::WaitGroup, Some(Op::Wait), 8))
        );
        assert_eq!(kind(Family::Semaphore, 0), Some((ObjectKind::Semaphore, Some(Op::Acquire), 0)));
        assert_eq!(kind(Family::Io, roles::READ), Some((ObjectKind::Fd, Some(Op::Read), 0)));
        assert_eq!(kind(Family::Other, 0), None);
    }
}
