//! Records of the ring buffer.
//!
//! Every record begins with a [`Header`]; its `kind` gives the type, and the type its size. A reader
//! that meets an unknown kind or another size must count it as a decoding error and go on.

/// Numbers of record kinds ([`Header::kind`]).
pub mod kind {
    /// [`super::CreateRecord`]
    pub const CREATE: u8 = 1;
    /// [`super::ExitRecord`]
    pub const EXIT: u8 = 2;
    /// [`super::WaitRecord`]
    pub const WAIT: u8 = 3;
    /// [`super::WaitDeepRecord`]
    pub const WAIT_DEEP: u8 = 4;
    /// [`super::ExecRecord`]: a process executed another program.
    pub const EXEC: u8 = 5;
    /// [`super::ExecRecord`]: the last thread of a process is gone.
    pub const PROCESS_EXIT: u8 = 6;
    /// [`super::OpenWaitRecord`]: written by user space when it reads the table of parked goroutines.
    pub const OPEN_WAIT: u8 = 7;
    /// [`super::CoroutineRecord`]: a goroutine made by `runtime.newcoro` (`iter.Pull`).
    pub const CREATE_COROUTINE: u8 = 8;
    /// [`super::CreateClosureRecord`]: a goroutine whose closure may tell what it runs.
    pub const CREATE_CLOSURE: u8 = 9;
    /// [`super::PauseRecord`]
    pub const PAUSE: u8 = 10;
    /// [`super::AssistRecord`]
    pub const ASSIST: u8 = 11;
    /// [`super::CpuRecord`]
    pub const CPU: u8 = 12;
    /// [`crate::RequestRecord`]
    pub const REQUEST: u8 = 13;
    /// [`super::WaitPeerRecord`]
    pub const WAIT_PEER: u8 = 14;
    /// [`super::WaitPeerDeepRecord`]
    pub const WAIT_PEER_DEEP: u8 = 15;
}

/// Frames in a [`WaitRecord`].
pub const FRAMES: usize = 8;
/// Frames in a [`WaitDeepRecord`], for `--stack-depth` above [`FRAMES`].
pub const DEEP_FRAMES: usize = 32;
/// Words in a [`CreateClosureRecord`]: enough for a func value, and for interfaces with 13 methods.
pub const CLOSURE_WORDS: usize = 16;

/// Who made a waiting goroutine runnable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WakerKind {
    /// Not seen: woken on a way that no probe covers, or the level does not include wakes.
    Unknown = 0,
    /// Another goroutine; its id is in `waker_goid`.
    Goroutine = 1,
    /// The network poller.
    Netpoll = 2,
    /// A timer, run by the scheduler.
    Timer = 3,
    /// The garbage collector.
    Gc = 4,
}

impl WakerKind {
    /// The kind with this number; numbers of a newer kernel side become [`WakerKind::Unknown`].
    #[must_use]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Goroutine,
            2 => Self::Netpoll,
            3 => Self::Timer,
            4 => Self::Gc,
            _ => Self::Unknown,
        }
    }
}

/// What every record begins with (16 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u8,
    /// Kind-specific small number; for waits the runtime's wait reason.
    pub arg: u8,
    /// Kind-specific small number; for waits the count of valid frames.
    pub count: u8,
    /// Kind-specific small number; for waits the [`WakerKind`].
    pub waker: u8,
    /// The process, as [`crate::ProcessConfig::process`] numbers it: never reused, unlike a pid.
    pub process: u32,
    /// When it happened.
    pub time_ns: u64,
}

/// A goroutine was made (48 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CreateRecord {
    /// [`kind::CREATE`] or [`kind::CREATE_COROUTINE`].
    pub header: Header,
    /// The new goroutine.
    pub goid: u64,
    /// Its creator; 0 when the runtime made it on a scheduler stack (timers, bootstrap).
    pub parent_goid: u64,
    /// Return address of the `go` statement (`g.gopc`).
    pub created_pc: u64,
    /// Entry of the goroutine's function (`g.startpc`).
    pub entry_pc: u64,
}

/// A goroutine was made whose entry calls what its closure holds (176 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CreateClosureRecord {
    /// Its creation; `kind` is [`kind::CREATE_CLOSURE`].
    pub create: CreateRecord,
    /// What the first variable of its closure points to: a func value, which begins with the address of its code, or
    /// the table of an interface, with those of methods from the fourth word on. Words that could not be read are 0.
    pub words: [u64; CLOSURE_WORDS],
}

/// A coroutine's creation has the shape of any other.
pub type CoroutineRecord = CreateRecord;

/// A goroutine ended (80 bytes; 64 or 48 in earlier recordings, without the last two or four fields). `arg` is 1 where the
/// sums are those of its whole life at level `full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ExitRecord {
    /// [`kind::EXIT`]
    pub header: Header,
    /// The goroutine.
    pub goid: u64,
    /// Sum of all its waits, short ones included; 0 below level `waits`.
    pub wait_total_ns: u64,
    /// Sum of the times in which it was runnable and did not run; 0 below level `full`.
    pub schedule_total_ns: u64,
    /// Number of all its waits, short ones included.
    pub wait_count: u64,
    /// Processor time that it has used; 0 where that is not known.
    pub cpu_ns: u64,
    /// For how long its thread stood still, as the CPU quota was used up; 0 where that is not known.
    pub throttled_ns: u64,
    /// Sum of the times between a park and becoming runnable, or running where that was not seen.
    pub blocked_total_ns: u64,
    /// Sum of its times in system calls.
    pub syscall_total_ns: u64,
}

/// What all wait records begin with (56 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WaitHead {
    /// `kind` is one of `kind::WAIT…`; `time_ns` is the wait's end (the goroutine's
    /// next run), `arg` the wait reason, `count` the number of frames, `waker` the [`WakerKind`].
    pub header: Header,
    /// The goroutine that waited.
    pub goid: u64,
    /// When it parked.
    pub start_ns: u64,
    /// When it became runnable; 0 when not seen.
    pub wake_ns: u64,
    /// The goroutine that woke it; 0 unless `waker` is [`WakerKind::Goroutine`].
    pub waker_goid: u64,
    /// Processor time that it has used up to then; 0 where that is not known.
    pub cpu_ns: u64,
}

/// A wait of at least the threshold, with up to `N` frames, and of its socket, where it waited for one, `P` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct WaitOf<const P: usize, const N: usize> {
    /// The wait.
    pub head: WaitHead,
    /// See [`Peer`].
    pub peer: [u64; P],
    /// Program counters, innermost first: the saved pc, then return addresses.
    pub frames: [u64; N],
}

/// A wait (120 bytes).
pub type WaitRecord = WaitOf<0, FRAMES>;
/// A wait, for `--stack-depth` above [`FRAMES`] (312 bytes).
pub type WaitDeepRecord = WaitOf<0, DEEP_FRAMES>;
/// A wait for a socket (144 bytes).
pub type WaitPeerRecord = WaitOf<PEER_WORDS, FRAMES>;
/// A wait for a socket, for `--stack-depth` above [`FRAMES`] (336 bytes).
pub type WaitPeerDeepRecord = WaitOf<PEER_WORDS, DEEP_FRAMES>;

/// Words of a [`Peer`].
pub const PEER_WORDS: usize = 3;

/// An internet socket that a goroutine waited for, as it was when the wait ended (24 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub family: u16,
    /// The other end's port, in network byte order; 0 for none.
    pub port: u16,
    /// This end's port, in the machine's byte order.
    pub local_port: u16,
    /// The connection's state (`TCP_ESTABLISHED` is 1, `TCP_LISTEN` 10); for UDP 1 where it is connected.
    pub state: u8,
    /// Reserved, 0.
    pub reserved: u8,
    /// The other end's address, in network byte order; of version 4 in the first four bytes.
    pub address: [u8; 16],
}

/// A process executed another program, or ended (24 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ExecRecord {
    /// [`kind::EXEC`] or [`kind::PROCESS_EXIT`]; `process` is 0 when the process was not traced.
    pub header: Header,
    /// Its thread group id in the agent's PID namespace.
    pub pid: u32,
    /// The count of executions of its slot, this one included (modulo 2^32); 0 when it was not traced.
    pub generation: u32,
}

/// A goroutine that is parked now, as read from the kernel's table (40 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OpenWaitRecord {
    /// `time_ns` is when the table was read, `arg` the wait reason.
    pub header: Header,
    /// The goroutine.
    pub goid: u64,
    /// When it parked.
    pub start_ns: u64,
    /// Address of its `g`, good only while it stays parked.
    pub g: u64,
}

/// The world was stopped and runs again (104 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PauseRecord {
    /// `kind` is [`kind::PAUSE`]; `time_ns` is when all processors were woken again, `arg` the runtime's reason
    /// (0 before Go 1.21), `count` the number of frames.
    pub header: Header,
    /// The goroutine that stopped it; 0 when none did.
    pub goid: u64,
    /// When it began to stop the others.
    pub start_ns: u64,
    /// When goroutines that still had a processor could go on.
    pub restart_ns: u64,
    /// Program counters of that goroutine, innermost first: return addresses.
    pub frames: [u64; FRAMES],
}

/// A goroutine that allocated has done some of the collector's work (48 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AssistRecord {
    /// `kind` is [`kind::ASSIST`]; `time_ns` is the end.
    pub header: Header,
    /// The goroutine.
    pub goid: u64,
    /// When it began.
    pub start_ns: u64,
    /// Return address of the `go` statement that made the goroutine (`g.gopc`).
    pub created_pc: u64,
    /// Entry of its function (`g.startpc`).
    pub entry_pc: u64,
}

/// A goroutine has used the processors, or was throttled, for a while without a wait that is told (40 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CpuRecord {
    /// [`kind::CPU`]
    pub header: Header,
    /// The goroutine.
    pub goid: u64,
    /// Processor time that it has used, since it is known.
    pub cpu_ns: u64,
    /// For how long its thread stood still, as the CPU quota was used up.
    pub throttled_ns: u64,
}

const _: () = {
    assert!(size_of::<CpuRecord>() == 40);
    assert!(size_of::<PauseRecord>() == 104);
    assert!(size_of::<AssistRecord>() == 48);
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<CreateRecord>() == 48);
    assert!(size_of::<CreateClosureRecord>() == 176);
    assert!(size_of::<ExitRecord>() == 80);
    assert!(size_of::<WaitHead>() == 56);
    assert!(size_of::<WaitRecord>() == 120);
    assert!(size_of::<WaitDeepRecord>() == 312);
    assert!(size_of::<WaitPeerRecord>() == 144);
    assert!(size_of::<WaitPeerDeepRecord>() == 336);
    assert!(size_of::<Peer>() == 8 * PEER_WORDS);
    assert!(size_of::<ExecRecord>() == 24);
    assert!(size_of::<OpenWaitRecord>() == 40);
};
