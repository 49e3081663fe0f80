//! Waits by reason and stack: how many, how long, and what of that is new since the last report.
//!
//! A wait costs one hash of its stack and one lookup; addresses are named when a report is made, not here. At most
//! [`MAX_STACKS`] stacks of a process are kept, first come, first served, and for good; what finds no room is summed up.
//! A stack takes some 120 bytes and 8 a frame, and 12 more for each bucket of its histogram that is filled.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use gotrace_common::{BUCKETS, DEEP_FRAMES, Histogram, bucket_of};
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use super::peers::{PeerNumber, Peers};
use crate::{decode::Socket, tracee::serial};

/// Stacks of one process.
pub(crate) const MAX_STACKS: usize = 4096;

/// Durations, by the buckets that are filled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Durations {
    count: u64,
    sum_ns: u64,
    max_ns: u64,
    buckets: Vec<(u8, u32)>,
}

impl Durations {
    fn add(&mut self, ns: u64) {
        self.count = self.count.saturating_add(1);
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
        let bucket = u8::try_from(bucket_of(ns)).unwrap_or(u8::MAX);
        match self.buckets.iter_mut().find(|(known, _)| *known == bucket) {
            Some((_, n)) => *n = n.saturating_add(1),
            None => self.buckets.push((bucket, 1)),
        }
    }

    fn add_to(&self, histogram: &mut Histogram) {
        histogram.count = histogram.count.saturating_add(self.count);
        histogram.sum_ns = histogram.sum_ns.saturating_add(self.sum_ns);
        histogram.max_ns = histogram.max_ns.max(self.max_ns);
        for (bucket, n) in &self.buckets {
            if let Some(sum) = histogram.buckets.get_mut(usize::from(*bucket)) {
                *sum = sum.saturating_add(u64::from(*n));
            }
        }
    }
}

/// Waits of one reason with one stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// Number of the wait reason.
    pub reason: u8,
    /// Return addresses, innermost first.
    pub frames: Box<[u64]>,
    /// Whom they waited for; restored by [`Stacks::restore_peers`].
    #[serde(skip)]
    pub peer: Option<PeerNumber>,
    waits: Durations,
    /// How many were reported, and how long they took.
    reported: (u64, u64),
}

impl Stack {
    /// The longest of its waits.
    pub fn max_ns(&self) -> u64 {
        self.waits.max_ns
    }

    /// How many waits it has had, and how long they took together.
    pub fn sum(&self) -> (u64, u64) {
        (self.waits.count, self.waits.sum_ns)
    }

    /// Adds its waits.
    pub fn add_to(&self, histogram: &mut Histogram) {
        self.waits.add_to(histogram);
    }

    /// How many there were since this was last called, and how long they took.
    pub fn report(&mut self) -> (u64, u64) {
        let now = (self.waits.count, self.waits.sum_ns);
        let (count, ns) = std::mem::replace(&mut self.reported, now);
        (now.0.saturating_sub(count), now.1.saturating_sub(ns))
    }
}

/// Waits of a process by reason and stack.
#[derive(Debug, Default)]
pub(crate) struct Stacks {
    /// In the order in which they came.
    stacks: Vec<Stack>,
    index: HashTable<u32>,
    peers: Peers,
    others: Histogram,
    min_wait_ns: Option<u64>,
}

/// `Stacks` as a value that can be written and read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StacksState {
    stacks: Vec<Stack>,
    #[serde(with = "serial::histogram")]
    others: Histogram,
    min_wait_ns: Option<u64>,
}

fn hash(reason: u8, frames: &[u64], peer: Option<PeerNumber>) -> u64 {
    FixedState::default().hash_one((reason, frames, peer))
}

impl Stacks {
    /// A wait has ended.
    pub fn add(&mut self, reason: u8, frames: &[u64], socket: Option<&Socket>, duration_ns: u64) {
        let peer = socket.and_then(|socket| self.peers.number(socket));
        let hash = hash(reason, frames, peer);
        let Self { stacks, index, others, .. } = self;
        let is_it = |at: &u32| {
            stacks
                .get(*at as usize)
                .is_some_and(|known| known.reason == reason && known.peer == peer && *known.frames == *frames)
        };
        if let Some(known) = index.find(hash, is_it).and_then(|at| stacks.get_mut(*at as usize)) {
            known.waits.add(duration_ns);
            return;
        }
        if stacks.len() >= MAX_STACKS {
            others.add(duration_ns);
            return;
        }
        let mut waits = Durations::default();
        waits.add(duration_ns);
        self.push(hash, Stack { reason, frames: frames.into(), peer, waits, reported: (0, 0) });
    }

    fn push(&mut self, hash_of_it: u64, stack: Stack) {
        let Ok(at) = u32::try_from(self.stacks.len()) else { return };
        self.stacks.push(stack);
        let stacks = &self.stacks;
        self.index.insert_unique(hash_of_it, at, |at| {
            stacks.get(*at as usize).map_or(0, |known| hash(known.reason, &known.frames, known.peer))
        });
    }

    /// All of them, in the order in which they came.
    pub fn seen(&self) -> &[Stack] {
        &self.stacks
    }

    /// The same, to be reported.
    pub fn stacks(&mut self) -> impl Iterator<Item = &mut Stack> {
        self.stacks.iter_mut()
    }

    /// Whom their goroutines waited for.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Waits that found no room.
    pub fn others(&self) -> &Histogram {
        &self.others
    }

    /// The shortest wait that is sent, in nanoseconds.
    pub fn min_wait_ns(&self) -> Option<u64> {
        self.min_wait_ns
    }

    /// From now on no shorter ones are sent.
    pub fn set_min_wait_ns(&mut self, ns: u64) {
        self.min_wait_ns = Some(ns);
    }

    /// Whether there is anything to write.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty() && self.min_wait_ns.is_none()
    }

    /// All of it.
    pub fn state(&self) -> StacksState {
        let Self { stacks, index: _, peers: _, others, min_wait_ns } = self;
        StacksState { stacks: stacks.clone(), others: *others, min_wait_ns: *min_wait_ns }
    }

    /// What this is the state of. It needs not come from here: what is too long or too much is left out.
    pub fn from_state(state: &StacksState) -> Self {
        let mut this = Self { others: state.others, min_wait_ns: state.min_wait_ns, ..Self::default() };
        let fits = |stack: &&Stack| stack.frames.len() <= DEEP_FRAMES && stack.waits.buckets.len() <= BUCKETS;
        for stack in state.stacks.iter().filter(fits).take(MAX_STACKS) {
            this.push(hash(stack.reason, &stack.frames, stack.peer), stack.clone());
        }
        this
    }

    /// Whom its waits were for, and numbers of stacks of such.
    pub fn of_peers(&self) -> (Peers, Vec<(u32, PeerNumber)>) {
        let numbered = (0..).zip(&self.stacks);
        (self.peers.clone(), numbered.filter_map(|(number, stack)| Some((number, stack.peer?))).collect())
    }

    /// What [`Self::of_peers`] gave.
    pub fn restore_peers(&mut self, peers: &Peers, of: &[(u32, PeerNumber)]) {
        self.peers = peers.clone();
        self.peers.truncate();
        for (number, peer) in of {
            if let Some(stack) = self.stacks.get_mut(*number as usize) {
                stack.peer = Some(*peer);
            }
        }
        self.index.clear();
        for stack in std::mem::take(&mut self.stacks) {
            self.push(hash(stack.reason, &stack.frames, stack.peer), stack);
        }
    }

    /// Bytes that all of it takes.
    pub fn bytes(&self) -> usize {
        let of = |stack: &Stack| {
            stack.frames.len() * size_of::<u64>() + stack.waits.buckets.capacity() * size_of::<(u8, u32)>()
        };
        self.stacks.capacity() * size_of::<Stack>()
            + self.index.allocation_size()
            + self.stacks.iter().map(of).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::*;

    /// Reason, frames and figures.
    type Told = (u8, Vec<u64>, u64, u64, (u64, u64));

    fn told(stacks: &mut Stacks) -> Vec<Told> {
        let tell = |s: &mut Stack| {
            let mut histogram = Histogram::default();
            s.add_to(&mut histogram);
            (s.reason, s.frames.to_vec(), histogram.sum_ns, s.max_ns(), s.report())
        };
        stacks.stacks().map(tell).collect()
    }

    #[test]
    fn waits_are_told_apart_by_reason_and_stack() {
        let mut stacks = Stacks::default();
        for (reason, frames, ns) in
            [(1, &[8, 9][..], 10), (2, &[8, 9], 20), (1, &[8, 9], 5), (1, &[8], 7), (1, &[], 1)]
        {
            stacks.add(reason, frames, None, ns);
        }
        let expected = [
            (1, vec![8, 9], 15, 10, (2, 15)),
            (2, vec![8, 9], 20, 20, (1, 20)),
            (1, vec![8], 7, 7, (1, 7)),
            (1, vec![], 1, 1, (1, 1)),
        ];
        assert_eq!(told(&mut stacks), expected);
        stacks.add(1, &[8, 9], None, 100);
        let now = told(&mut stacks);
        assert_eq!(now[0], (1, vec![8, 9], 115, 100, (1, 100)));
        assert_eq!(now[1].4, (0, 0), "what was reported is not new");
    }

    #[test]
    fn durations_are_those_of_a_histogram() {
        let (mut stacks, mut expected) = (Stacks::default(), Histogram::default());
        for n in 0..1000_u64 {
            let ns = n * n * n * 17;
            stacks.add(3, &[1, 2, 3], None, ns);
            expected.add(ns);
        }
        stacks.add(3, &[1], None, u64::MAX);
        let mut all: Vec<Histogram> = Vec::new();
        for stack in stacks.stacks() {
            let mut histogram = Histogram::default();
            stack.add_to(&mut histogram);
            all.push(histogram);
        }
        assert_eq!(all[0], expected);
        assert_eq!((all[1].count, all[1].max_ns), (1, u64::MAX));
    }

    #[test]
    fn what_finds_no_room_is_summed_up() {
        let mut stacks = Stacks::default();
        for n in 0..MAX_STACKS as u64 + 100 {
            stacks.add(1, &[n, 7], None, 10);
        }
        stacks.add(1, &[0, 7], None, 5);
        assert_eq!(stacks.stacks().count(), MAX_STACKS);
        assert_eq!((stacks.others().count, stacks.others().sum_ns), (100, 1000));
        let bytes = stacks.bytes();
        assert!((MAX_STACKS * 100..MAX_STACKS * 250).contains(&bytes), "{bytes} bytes");
        // With stacks as deep as they get, and waits of all lengths.
        let mut stacks = Stacks::default();
        for n in 0..MAX_STACKS as u64 {
            for power in 10..30 {
                stacks.add(1, &[n; DEEP_FRAMES], None, 1 << power);
            }
        }
        assert!(stacks.bytes() < 3 << 20, "{} bytes", stacks.bytes());
    }

    #[test]
    fn what_was_written_goes_on_where_it_was() {
        let mut stacks = Stacks::default();
        stacks.set_min_wait_ns(1_000_000);
        (0..50).for_each(|n| stacks.add(1, &[n % 7, 3], None, n));
        let socket = |port: u16| Socket {
            peer: Some(SocketAddr::from(([10, 0, 0, 1], port))),
            local_port: 50_000,
            listens: false,
        };
        (0..3).for_each(|port| stacks.add(1, &[6, 3], Some(&socket(port)), 9));
        stacks.stacks().next().expect("one").report();
        let mut read = Stacks::from_state(&stacks.state());
        let (peers, of) = stacks.of_peers();
        assert_eq!(of.len(), 3);
        read.restore_peers(&peers, &of);
        assert_eq!((read.min_wait_ns(), read.is_empty()), (Some(1_000_000), false));
        assert_eq!(read.state(), stacks.state());
        for both in [&mut stacks, &mut read] {
            both.add(1, &[6, 3], None, 77);
            both.add(1, &[6, 3], Some(&socket(2)), 77);
            both.add(1, &[6, 3], Some(&socket(4)), 77);
            both.add(9, &[6, 3], None, 1);
        }
        assert_eq!(read.state(), stacks.state());
        assert_eq!(told(&mut read), told(&mut stacks));
        // What no table wrote.
        let stack = Stack {
            reason: 1,
            frames: vec![1; 99].into(),
            peer: None,
            waits: Durations::default(),
            reported: (9, 9),
        };
        let mut made_up = StacksState { stacks: vec![stack.clone(); 3], ..StacksState::default() };
        assert_eq!(Stacks::from_state(&made_up).stacks.len(), 0);
        made_up.stacks = vec![Stack { frames: vec![1].into(), ..stack }; MAX_STACKS + 5];
        let mut read = Stacks::from_state(&made_up);
        assert_eq!(read.stacks().count(), MAX_STACKS);
        assert_eq!(read.stacks().next().map(Stack::report), Some((0, 0)));
    }
}
