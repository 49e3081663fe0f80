//! What a snapshot tells others: goroutines, their stacks, what they wait on, and how sure it is.
//!
//! Plain data, small: a process may have a million goroutines. Whatever repeats is kept once and named by
//! an id (stacks, wait objects, labels). Addresses are those of the living process; a link-time address is
//! that less [`Snapshot::bias`].

use std::num::NonZeroU32;

use super::{Arguments, Outside, Until};

/// Every goroutine of a process at about one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The process, as gotrace's PID namespace numbers it; 0 for a saved image that does not say.
    pub pid: u32,
    /// When reading began, since Unix epoch.
    pub time_unix_nano: u64,
    /// When reading began, `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// How far the process's `CLOCK_MONOTONIC` is ahead of that; `None` where it is not known.
    pub clock_offset_ns: Option<i64>,
    /// How long reading took. What was true of one goroutine was true at some time within it.
    pub duration_ns: u64,
    /// Mapped address less link-time address; 0 unless position-independent.
    pub bias: u64,
    /// Goroutines by ascending goid, no goid twice, the runtime's own included ([`Goroutine::is_system`]).
    pub goroutines: Vec<Goroutine>,
    /// Their stacks.
    pub stacks: Stacks,
    /// What each waits on, in the ranges that [`Goroutine::waits`] names.
    pub waits: Vec<Wait>,
    /// The objects that [`Wait::object`] names.
    pub objects: Vec<WaitObject>,
    /// Sets of pprof labels that [`Goroutine::labels`] names.
    pub labels: Vec<LabelSet>,
    /// What functions were called with, where that was asked for.
    pub arguments: Option<Arguments>,
    /// What descriptors and system calls lead to, of goroutines for which that was asked.
    pub outside: Outside,
    /// What was seen and what was not.
    pub counts: Counts,
}

impl Snapshot {
    /// When reading began by the process's own `CLOCK_MONOTONIC`, where that is known.
    #[must_use]
    pub fn process_clock(&self) -> Option<i64> {
        self.monotonic_ns.cast_signed().checked_add(self.clock_offset_ns?)
    }

    /// The goroutine with a goid.
    #[must_use]
    pub fn goroutine(&self, goid: u64) -> Option<&Goroutine> {
        self.goroutines.binary_search_by_key(&goid, |g| g.goid).ok().and_then(|i| self.goroutines.get(i))
    }

    /// What a goroutine waits on: one entry for a channel or lock, one a case for a select. Empty when it
    /// waits for nothing that has an address, or when that could not be read.
    #[must_use]
    pub fn waits_of(&self, goroutine: &Goroutine) -> &[Wait] {
        let begin = goroutine.waits.begin as usize;
        self.waits.get(begin..begin.saturating_add(goroutine.waits.len as usize)).unwrap_or_default()
    }

    /// The object of a wait.
    #[must_use]
    pub fn object(&self, id: ObjectId) -> Option<&WaitObject> {
        self.objects.get(id.0 as usize)
    }

    /// A goroutine's frames, innermost first; empty when there is no stack.
    #[must_use]
    pub fn frames(&self, goroutine: &Goroutine) -> &[StackFrame] {
        goroutine.stack.map_or(&[], |id| self.stacks.frames(id))
    }

    /// What a traceback has between the parentheses of each of a goroutine's [`Snapshot::frames`] but the
    /// inlined ones: `0xc000012120, {0x4b2c3d, 0x5}`; `None` where that is not known. Empty when it was not
    /// asked for.
    #[must_use]
    pub fn arguments_of(&self, goroutine: &Goroutine) -> Vec<Option<String>> {
        let of = |a: &Arguments| a.of(goroutine.g, self.frames(goroutine));
        self.arguments.as_ref().map(of).unwrap_or_default()
    }

    /// A goroutine's pprof labels, in the order of the program or, up to Go 1.23, of keys.
    #[must_use]
    pub fn labels_of(&self, goroutine: &Goroutine) -> &[(Box<str>, Box<str>)] {
        goroutine.labels.and_then(|id| self.labels.get(id.index())).map_or(&[], |set| &set.0)
    }
}

/// One goroutine. At most 88 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// Its id, never 0. Unique in the process's life.
    pub goid: u64,
    /// Address of the runtime's `g`, which later goroutines reuse.
    pub g: u64,
    /// Goid of the goroutine that made it: `Some(0)` when the runtime did; `None` when the version of Go
    /// does not record it (before 1.21).
    pub parent_goid: Option<u64>,
    /// Return address of the `go` statement that made it; 0 when there is none.
    pub created_pc: u64,
    /// Its entry function's first instruction; 0 for a C thread's call into Go.
    pub entry_pc: u64,
    /// `g.waitsince`, `CLOCK_MONOTONIC`; 0 when not set. Set only by the collector's scan, to the time of
    /// the cycle *before*: it can lie before the wait began, and before the goroutine was made, so that
    /// now less this is no lower bound of the wait. Not 0 says only that the goroutine waited already when
    /// the last scan came by.
    pub wait_since_ns: u64,
    /// Differs between two snapshots if the goroutine ran between them, but for one chance in 256: it
    /// holds the place it is parked at and `g.trackingSeq`, in which the runtime counts, modulo 256, how
    /// often a goroutine stopped running (`runtime/proc.go`, `casgstatus`, Go 1.17 to 1.27; a switch of
    /// coroutines is not counted). Means something only for the same goid, and only while it waits; 0 where
    /// the version of Go is not known, so that nothing can be said.
    pub park_mark: u64,
    /// The thread that runs it or is in a system call for it, else the one that it is locked to, as the
    /// process's own PID namespace numbers threads; 0 for none.
    pub thread_id: u32,
    /// Its stack; `None` when it runs, or could not be read consistently.
    pub stack: Option<StackId>,
    /// What it waits on, in [`Snapshot::waits`].
    pub waits: WaitRange,
    /// Its pprof labels; `None` when it has none, or they could not be read (counted).
    pub labels: Option<LabelsId>,
    /// What it does.
    pub status: Status,
    /// Number of its wait reason ([`gotrace_go::Binary::wait_reasons`]). Meaningful only when
    /// [`Status::is_waiting`]; 0 otherwise.
    pub wait_reason: u8,
    /// See [`Goroutine::is_system`] and the others.
    pub(super) flags: u8,
}

impl Goroutine {
    pub(super) const SYSTEM: u8 = 1;
    pub(super) const LOCKED: u8 = 2;
    pub(super) const COMPLETE: u8 = 4;
    pub(super) const FINALIZERS: u8 = 8;
    pub(super) const CLEANUPS: u8 = 16;
    pub(super) const TRANSPORT_READER: u8 = 32;

    /// Whether it is the runtime's own, which Go's tracebacks leave out.
    #[must_use]
    pub const fn is_system(&self) -> bool {
        self.flags & Self::SYSTEM != 0
    }

    /// Whether it runs the program's finalizers, of which there is one goroutine; not a system goroutine while it is in
    /// one of them.
    #[must_use]
    pub const fn runs_finalizers(&self) -> bool {
        self.flags & Self::FINALIZERS != 0
    }

    /// Whether it is one of those that run the program's cleanups (Go 1.25 and later).
    #[must_use]
    pub const fn runs_cleanups(&self) -> bool {
        self.flags & Self::CLEANUPS != 0
    }

    /// Whether it is locked to its thread (`runtime.LockOSThread`, or a C thread's call into Go).
    #[must_use]
    pub const fn is_locked_to_thread(&self) -> bool {
        self.flags & Self::LOCKED != 0
    }

    /// Whether it waits for what comes on a connection of HTTP or gRPC, which requests share or which is kept for the
    /// next one.
    #[must_use]
    pub const fn is_transport_reader(&self) -> bool {
        self.flags & Self::TRANSPORT_READER != 0
    }

    /// Without a stack.
    pub(super) const fn forget_stack(&mut self) {
        self.stack = None;
        self.flags &= !Self::COMPLETE;
    }

    /// Whether its stack was followed to the goroutine's first function. `false` without a stack.
    #[must_use]
    pub const fn is_stack_complete(&self) -> bool {
        self.flags & Self::COMPLETE != 0
    }
}

/// What a goroutine does (`runtime/runtime2.go`, `_Grunnable` and the following).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Status {
    /// Could run, and waits for a thread.
    Runnable = 1,
    /// Runs now: it has no saved stack.
    Running = 2,
    /// In a system call, or in C code.
    Syscall = 3,
    /// Parked, for the reason that [`Goroutine::wait_reason`] gives.
    Waiting = 4,
    /// Its stack is being moved.
    CopyStack = 8,
    /// Stopped itself to be suspended.
    Preempted = 9,
    /// Parked for ever by the runtime's own finding (Go 1.26 and later); has a wait reason.
    Leaked = 10,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Runnable,
        Self::Running,
        Self::Syscall,
        Self::Waiting,
        Self::CopyStack,
        Self::Preempted,
        Self::Leaked,
    ];

    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Syscall => "syscall",
            Self::Waiting => "waiting",
            Self::CopyStack => "copystack",
            Self::Preempted => "preempted",
            Self::Leaked => "leaked",
        }
    }

    /// Whether the wait reason says something.
    #[must_use]
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::Waiting | Self::Leaked)
    }
}

/// A stack in [`Stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackId(NonZeroU32);

impl StackId {
    /// The n-th stack.
    pub(super) fn new(n: usize) -> Option<Self> {
        u32::try_from(n).ok()?.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    /// Its number, from 0, below [`Stacks::len`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A physical frame: an address in the living process, and how to look it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackFrame(u64);

impl StackFrame {
    /// User addresses of both architectures have at most 52 bits.
    const EXACT: u64 = 1 << 63;

    /// The instruction behind a call: what is meant is the call.
    #[must_use]
    pub const fn returning_to(pc: u64) -> Self {
        Self(pc & !Self::EXACT)
    }

    /// The instruction that is meant: a function that has not begun, one that a signal interrupted.
    #[must_use]
    pub const fn at(pc: u64) -> Self {
        Self(pc | Self::EXACT)
    }

    /// The address.
    #[must_use]
    pub const fn pc(self) -> u64 {
        self.0 & !Self::EXACT
    }

    /// Whether the address is behind the call that is meant.
    #[must_use]
    pub const fn is_return_address(self) -> bool {
        self.0 & Self::EXACT == 0
    }
}

/// Distinct stacks, each once.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    pub(super) frames: Vec<StackFrame>,
    /// Where each ends in `frames`.
    pub(super) ends: Vec<u32>,
}

impl Stacks {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// A stack's frames, innermost first.
    #[must_use]
    pub fn frames(&self, id: StackId) -> &[StackFrame] {
        let n = id.index();
        let begin = n.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(n).copied().unwrap_or(begin);
        self.frames.get(begin as usize..end as usize).unwrap_or_default()
    }

    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = StackId> + use<> {
        (0..self.len()).filter_map(StackId::new)
    }
}

/// A range of [`Snapshot::waits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitRange {
    pub(super) begin: u32,
    pub(super) len: u32,
}

impl WaitRange {
    /// Number of objects.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// An object in [`Snapshot::objects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(super) u32);

impl ObjectId {
    /// Its number, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One thing that a goroutine waits on, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What.
    pub object: ObjectId,
    /// What it wants to do with it; `None` when that could not be told.
    pub op: Option<Op>,
    /// When the wait ends by itself: the deadline of a descriptor, the end of a sleep, the time of a channel's timer.
    pub until: Until,
}

/// What a goroutine wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Send to a channel.
    Send,
    /// Receive from a channel.
    Receive,
    /// Take a lock for writing.
    Lock,
    /// Take a lock for reading.
    ReadLock,
    /// Wait for a `sync.WaitGroup` or `sync.Cond`.
    Wait,
    /// Take a semaphore.
    Acquire,
    /// Sleep.
    Sleep,
    /// Read from a descriptor.
    Read,
    /// Write to a descriptor, or connect it.
    Write,
}

impl Op {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Lock => "lock",
            Self::ReadLock => "rlock",
            Self::Wait => "wait",
            Self::Acquire => "acquire",
            Self::Sleep => "sleep",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What goroutines wait on. The same object once, however many wait on it, if its address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitObject {
    /// Address: of the channel (`runtime.hchan`), of the `sync` object itself where the kind is known,
    /// else of the semaphore word, of the descriptor's `runtime.pollDesc`; 0 when unknown (timers, some
    /// descriptors, and before Go 1.26 a lock that was begun to be waited for while the snapshot was taken).
    /// Objects whose address is unknown are one entry a kind, and are not the same object.
    pub address: u64,
    /// Elements in the channel's buffer; of a descriptor see [`WaitObject::descriptor`].
    pub len: u64,
    /// Size of the channel's buffer, in elements.
    pub cap: u64,
    /// Goroutines of this snapshot that wait to send; for other kinds 0.
    pub senders: u32,
    /// Goroutines of this snapshot that wait to receive, or, for other kinds, that wait at all.
    pub receivers: u32,
    /// Size of an element in bytes.
    pub elem_size: u16,
    /// What it is.
    pub kind: ObjectKind,
    /// Whether the channel is closed.
    pub closed: bool,
    /// Whether the fields of a channel (`len`, `cap`, `elem_size`, `closed`) were read, or the number of a
    /// descriptor.
    pub known: bool,
    /// Whether a timer may send to the channel (`time.After`, `time.Ticker`).
    pub timer: bool,
}

impl WaitObject {
    /// The number of a descriptor; `None` where it is not known, and for other kinds.
    #[must_use]
    pub fn descriptor(&self) -> Option<u32> {
        if self.kind == ObjectKind::Fd && self.known { u32::try_from(self.len).ok() } else { None }
    }
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A channel.
    Chan,
    /// A `sync.Mutex`.
    Mutex,
    /// A `sync.RWMutex`.
    RwMutex,
    /// A `sync.WaitGroup`.
    WaitGroup,
    /// A `sync.Cond`.
    Cond,
    /// A semaphore of the runtime or of a library.
    Semaphore,
    /// A timer (`time.Sleep`).
    Timer,
    /// A file descriptor in the network poller.
    Fd,
}

impl ObjectKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Chan,
        Self::Mutex,
        Self::RwMutex,
        Self::WaitGroup,
        Self::Cond,
        Self::Semaphore,
        Self::Timer,
        Self::Fd,
    ];

    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chan => "chan",
            Self::Mutex => "mutex",
            Self::RwMutex => "rwmutex",
            Self::WaitGroup => "waitgroup",
            Self::Cond => "cond",
            Self::Semaphore => "semaphore",
            Self::Timer => "timer",
            Self::Fd => "fd",
        }
    }
}

/// A set in [`Snapshot::labels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelsId(NonZeroU32);

impl LabelsId {
    /// The n-th set.
    pub(super) fn new(n: usize) -> Option<Self> {
        u32::try_from(n).ok()?.checked_add(1).and_then(NonZeroU32::new).map(Self)
    }

    /// Its number, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// The pprof labels of a goroutine (`runtime/pprof.Do`): key and value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSet(pub Vec<(Box<str>, Box<str>)>);

/// How much was seen. Nothing is left out without being counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of the runtime's list of all `g`s, the dead included.
    pub allgs: u64,
    /// `g`s that hold no goroutine: idle, dead, or kept for C threads.
    pub dead: u64,
    /// Goroutines that the snapshot has.
    pub goroutines: u64,
    /// Of those, the runtime's own.
    pub system: u64,
    /// Of those, the ones that ran when looked at, or that never stood still; they have no stack.
    pub running: u64,
    /// Stacks that were read but not followed to the goroutine's first function.
    pub stacks_incomplete: u64,
    /// Goroutines that have no stack though they do not run: it could not be read.
    pub stacks_missing: u64,
    /// Goroutines that moved while they were read, and were read again.
    pub reread: u64,
    /// Of those, the ones that still moved at the last try: reported as running, without a stack.
    pub torn: u64,
    /// `g`s whose memory could not be read.
    pub unreadable: u64,
    /// `g`s whose contents cannot be right; left out.
    pub implausible: u64,
    /// `g`s with a goid that another one has as well (one was reused while being read); left out.
    pub duplicates: u64,
    /// Wait objects that could not be read, and waits cut short.
    pub waits_unreadable: u64,
    /// Label sets that could not be read, or whose form is not known.
    pub labels_unreadable: u64,
    /// Frames whose arguments were asked for and could not be read.
    pub arguments_unreadable: u64,
}

impl Counts {
    /// Adds what was counted of other goroutines.
    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            allgs,
            dead,
            goroutines,
            system,
            running,
            stacks_incomplete,
            stacks_missing,
            reread,
            torn,
            unreadable,
            implausible,
            duplicates,
            waits_unreadable,
            labels_unreadable,
            arguments_unreadable,
        } = other;
        self.allgs += allgs;
        self.dead += dead;
        self.goroutines += goroutines;
        self.system += system;
        self.running += running;
        self.stacks_incomplete += stacks_incomplete;
        self.stacks_missing += stacks_missing;
        self.reread += reread;
        self.torn += torn;
        self.unreadable += unreadable;
        self.implausible += implausible;
        self.duplicates += duplicates;
        self.waits_unreadable += waits_unreadable;
        self.labels_unreadable += labels_unreadable;
        self.arguments_unreadable += arguments_unreadable;
    }
}

const _: () = assert!(size_of::<Goroutine>() <= 88);
const _: () = assert!(size_of::<WaitObject>() <= 48);
const _: () = assert!(size_of::<Wait>() <= 16);
