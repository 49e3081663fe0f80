//! Records of the ring, from bytes to events.
//!
//! Total: no input can make it panic. An unknown kind or a wrong size is an error that the caller
//! counts; the record after it is read as if nothing had happened.

mod socket;

use gotrace_common::{
    AssistRecord, CLOSURE_WORDS, CpuRecord, CreateClosureRecord, CreateRecord, DEEP_FRAMES, ExecRecord,
    ExitRecord, FRAMES, OpenWaitRecord, PEER_WORDS, PauseRecord, RequestRecord, RouteKey, WaitDeepRecord,
    WaitHead, WaitPeerDeepRecord, WaitPeerRecord, WaitRecord, WakerKind, kind,
    request::{self, Children, Path, TIMES, TRACEPARENT_BYTES, Times},
};

pub use socket::Socket;

/// Why a record could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than a header.
    #[error("a record of {0} bytes has no header")]
    NoHeader(usize),
    /// A kind that this version does not know.
    #[error("unknown record kind {0}")]
    UnknownKind(u8),
    /// Not as long as its kind.
    #[error("a record of kind {kind} has {length} bytes")]
    WrongLength {
        /// The kind.
        kind: u8,
        /// The length found.
        length: usize,
    },
}

/// Program counters of a wait, innermost first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    /// Program counters, 8 bytes each.
    #[cfg(test)]
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The program counters.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.0.chunks_exact(8).map(|b| word(b, 0))
    }
}

/// What the first variable of a closure points to ([`CreateClosureRecord::words`]).
pub type ClosureWords = [u64; CLOSURE_WORDS];

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on its way to where it is applied")]
pub enum Event<'a> {
    /// A goroutine was made.
    Create(Create),
    /// The same, with what may tell what it runs.
    CreateClosure(Create, ClosureWords),
    /// A goroutine ended.
    Exit(Exit),
    /// A wait ended.
    Wait(Wait<'a>),
    /// A goroutine waits.
    OpenWait(OpenWait),
    /// The world was stopped and runs again.
    Pause(Pause<'a>),
    /// A goroutine has done some of the collector's work.
    Assist(Assist),
    /// A goroutine has used the processors.
    Cpu(Cpu),
    /// A request has ended that was slow.
    Request(RequestEnd),
    /// A process executed another program; `process` is 0 when it was not traced.
    Exec {
        /// Number of the process.
        process: u32,
        /// Its thread group id.
        pid: u32,
        /// When.
        time_ns: u64,
    },
}

impl Event<'_> {
    /// Number of the process.
    #[must_use]
    pub fn process(&self) -> u32 {
        match self {
            Self::Create(e) | Self::CreateClosure(e, _) => e.process,
            Self::Exit(e) => e.process,
            Self::Wait(e) => e.process,
            Self::OpenWait(e) => e.process,
            Self::Pause(e) => e.process,
            Self::Assist(e) => e.process,
            Self::Cpu(e) => e.process,
            Self::Request(e) => e.process,
            Self::Exec { process, .. } => *process,
        }
    }
}

/// See [`CreateRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct Create {
    pub process: u32,
    pub time_ns: u64,
    pub goid: u64,
    pub parent_goid: u64,
    pub created_pc: u64,
    pub entry_pc: u64,
    /// Made by `runtime.newcoro`.
    pub coroutine: bool,
}

/// See [`ExitRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct Exit {
    pub process: u32,
    pub time_ns: u64,
    pub goid: u64,
    pub wait_total_ns: u64,
    pub schedule_total_ns: u64,
    pub wait_count: u64,
    /// 0 where it is not known.
    pub cpu_ns: u64,
    pub throttled_ns: u64,
    pub blocked_total_ns: u64,
    pub syscall_total_ns: u64,
    /// Whether the sums are those of its whole life at level `full`.
    pub whole: bool,
}

/// See [`WaitHead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct Wait<'a> {
    pub process: u32,
    pub goid: u64,
    pub start_ns: u64,
    pub end_ns: u64,
    /// When it became runnable; 0 when not seen.
    pub wake_ns: u64,
    pub reason: u8,
    pub waker: WakerKind,
    pub waker_goid: u64,
    /// 0 where it is not known.
    pub cpu_ns: u64,
    /// What it waited for, where that was an internet socket.
    pub socket: Option<Socket>,
    pub frames: Frames<'a>,
}

/// See [`OpenWaitRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct OpenWait {
    pub process: u32,
    pub time_ns: u64,
    pub goid: u64,
    pub start_ns: u64,
    pub reason: u8,
    pub g: u64,
}

/// See [`PauseRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct Pause<'a> {
    pub process: u32,
    pub goid: u64,
    /// The runtime's number; 0 before Go 1.21.
    pub reason: u8,
    pub start_ns: u64,
    pub restart_ns: u64,
    pub woken_ns: u64,
    pub frames: Frames<'a>,
}

/// See [`AssistRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct Assist {
    pub process: u32,
    pub goid: u64,
    pub start_ns: u64,
    pub end_ns: u64,
    pub created_pc: u64,
    pub entry_pc: u64,
}

/// See [`CpuRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct Cpu {
    pub process: u32,
    pub time_ns: u64,
    pub goid: u64,
    pub cpu_ns: u64,
    pub throttled_ns: u64,
}

/// See [`RequestRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the record's")]
pub struct RequestEnd {
    pub process: u32,
    pub goid: u64,
    pub start_ns: u64,
    pub end_ns: u64,
    /// One of [`gotrace_common::request::ended`].
    pub ended: u8,
    /// Waits of it could not be sent.
    pub waits_lost: bool,
    /// `caller` begins with a span of the program's own.
    pub has_own_span: bool,
    pub key: RouteKey,
    pub times: Times,
    pub caller: [u8; TRACEPARENT_BYTES],
    /// `None` in recordings of earlier versions.
    pub children: Option<Children>,
    /// Nothing in recordings of earlier versions.
    pub path: Path,
}

/// The word at `offset`; 0 beyond the end, which the length checks before it rule out.
fn word(bytes: &[u8], offset: usize) -> u64 {
    match bytes.get(offset..offset + 8).and_then(|b| b.try_into().ok()) {
        Some(b) => u64::from_ne_bytes(b),
        None => 0,
    }
}

/// The bytes at `offset`; 0 beyond the end.
fn part<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn half(bytes: &[u8], offset: usize) -> u32 {
    match bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok()) {
        Some(b) => u32::from_ne_bytes(b),
        None => 0,
    }
}

/// Where a record of a request has its last two fields.
const PATH_AT: usize = size_of::<RequestRecord>() - size_of::<Path>();
const CHILDREN_AT: usize = PATH_AT - size_of::<Children>();

/// A record of a request, with another path.
#[must_use]
pub fn with_path(bytes: &[u8], path: &Path) -> Vec<u8> {
    let kept = bytes.get(..PATH_AT).unwrap_or(bytes);
    [kept, &path.length.to_ne_bytes(), &path.text].concat()
}

/// Decodes a record.
///
/// # Errors
/// [`DecodeError`] when it is none that this version knows.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let [kind, arg, count, waker, ..] = *bytes else { return Err(DecodeError::NoHeader(bytes.len())) };
    let expected = match kind {
        kind::CREATE | kind::CREATE_COROUTINE => size_of::<CreateRecord>(),
        kind::CREATE_CLOSURE => size_of::<CreateClosureRecord>(),
        // Those of earlier recordings lack the last two words, or four, which are read as 0 then.
        kind::EXIT if matches!(size_of::<ExitRecord>().checked_sub(bytes.len()), Some(16 | 32)) => {
            bytes.len()
        }
        kind::EXIT => size_of::<ExitRecord>(),
        kind::WAIT => size_of::<WaitRecord>(),
        kind::WAIT_DEEP => size_of::<WaitDeepRecord>(),
        kind::WAIT_PEER => size_of::<WaitPeerRecord>(),
        kind::WAIT_PEER_DEEP => size_of::<WaitPeerDeepRecord>(),
        kind::EXEC => size_of::<ExecRecord>(),
        kind::OPEN_WAIT => size_of::<OpenWaitRecord>(),
        kind::PAUSE => size_of::<PauseRecord>(),
        kind::ASSIST => size_of::<AssistRecord>(),
        kind::CPU => size_of::<CpuRecord>(),
        // Those of recordings of earlier versions end with the children, or with the caller.
        kind::REQUEST if matches!(bytes.len(), CHILDREN_AT | PATH_AT) => bytes.len(),
        kind::REQUEST => size_of::<RequestRecord>(),
        other => return Err(DecodeError::UnknownKind(other)),
    };
    if bytes.len() != expected {
        return Err(DecodeError::WrongLength { kind, length: bytes.len() });
    }
    let process = half(bytes, 4);
    let time_ns = word(bytes, 8);
    Ok(match kind {
        kind::CREATE | kind::CREATE_COROUTINE => Event::Create(create(bytes)),
        kind::CREATE_CLOSURE => {
            let words = std::array::from_fn(|n| word(bytes, size_of::<CreateRecord>() + 8 * n));
            Event::CreateClosure(create(bytes), words)
        }
        kind::EXIT => Event::Exit(Exit {
            process,
            time_ns,
            goid: word(bytes, 16),
            wait_total_ns: word(bytes, 24),
            schedule_total_ns: word(bytes, 32),
            wait_count: word(bytes, 40),
            cpu_ns: word(bytes, 48),
            throttled_ns: word(bytes, 56),
            blocked_total_ns: word(bytes, 64),
            syscall_total_ns: word(bytes, 72),
            whole: arg == 1,
        }),
        kind::WAIT | kind::WAIT_DEEP | kind::WAIT_PEER | kind::WAIT_PEER_DEEP => {
            let room = if matches!(kind, kind::WAIT | kind::WAIT_PEER) { FRAMES } else { DEEP_FRAMES };
            let peer = size_of::<WaitHead>()..expected - 8 * room;
            let frames = peer.end..peer.end + 8 * room.min(usize::from(count));
            Event::Wait(Wait {
                process,
                goid: word(bytes, 16),
                start_ns: word(bytes, 24),
                end_ns: time_ns,
                wake_ns: word(bytes, 32),
                reason: arg,
                waker: WakerKind::from_u8(waker),
                waker_goid: word(bytes, 40),
                cpu_ns: word(bytes, 48),
                socket: bytes.get(peer).filter(|peer| peer.len() == 8 * PEER_WORDS).and_then(Socket::of),
                frames: Frames(bytes.get(frames).unwrap_or_default()),
            })
        }
        kind::OPEN_WAIT => Event::OpenWait(OpenWait {
            process,
            time_ns,
            goid: word(bytes, 16),
            start_ns: word(bytes, 24),
            reason: arg,
            g: word(bytes, 32),
        }),
        kind::PAUSE => {
            let begin = size_of::<PauseRecord>() - 8 * FRAMES;
            Event::Pause(Pause {
                process,
                goid: word(bytes, 16),
                reason: arg,
                start_ns: word(bytes, 24),
                restart_ns: word(bytes, 32),
                woken_ns: time_ns,
                frames: Frames(
                    bytes.get(begin..begin + 8 * FRAMES.min(usize::from(count))).unwrap_or_default(),
                ),
            })
        }
        kind::ASSIST => Event::Assist(Assist {
            process,
            goid: word(bytes, 16),
            start_ns: word(bytes, 24),
            end_ns: time_ns,
            created_pc: word(bytes, 32),
            entry_pc: word(bytes, 40),
        }),
        kind::CPU => Event::Cpu(Cpu {
            process,
            time_ns,
            goid: word(bytes, 16),
            cpu_ns: word(bytes, 24),
            throttled_ns: word(bytes, 32),
        }),
        kind::REQUEST => Event::Request(RequestEnd {
            process,
            goid: word(bytes, 16),
            start_ns: word(bytes, 24),
            end_ns: time_ns,
            ended: count,
            waits_lost: arg & request::record::WAITS_LOST != 0,
            has_own_span: arg & request::record::OWN_SPAN != 0,
            key: RouteKey {
                process: half(bytes, 32),
                status: (half(bytes, 36) & 0xffff) as u16,
                protocol: part::<1>(bytes, 38)[0],
                length: part::<1>(bytes, 39)[0],
                handler: word(bytes, 40),
                method: part(bytes, 48),
                route: part(bytes, 56),
            },
            times: std::array::from_fn(|n| word(bytes, 160 + 8 * n)),
            caller: part(bytes, 160 + 8 * TIMES),
            children: bytes.get(CHILDREN_AT..PATH_AT).and_then(children),
            path: Path { length: word(bytes, PATH_AT), text: part(bytes, PATH_AT + 8) },
        }),
        _ => Event::Exec { process, pid: half(bytes, 16), time_ns },
    })
}

/// Goroutines that were started for a request; `None` where nothing is told of them.
fn children(bytes: &[u8]) -> Option<Children> {
    let times = std::array::from_fn(|n| word(bytes, 24 + 8 * n));
    (bytes.len() == size_of::<Children>()).then(|| Children {
        started: word(bytes, 0),
        unseen: word(bytes, 8),
        ending: word(bytes, 16),
        times,
        ended: word(bytes, 24 + 8 * TIMES),
    })
}

/// What all records of a creation begin with.
fn create(bytes: &[u8]) -> Create {
    Create {
        process: half(bytes, 4),
        time_ns: word(bytes, 8),
        goid: word(bytes, 16),
        parent_goid: word(bytes, 24),
        created_pc: word(bytes, 32),
        entry_pc: word(bytes, 40),
        coroutine: bytes.first() == Some(&kind::CREATE_COROUTINE),
    }
}

/// The record of a creation, as if the kernel side had found this entry and nothing had to be looked for: without words
/// of the process's memory.
#[must_use]
pub fn plain_creation(bytes: &[u8], entry_pc: u64) -> [u8; size_of::<CreateRecord>()] {
    let mut plain = [0; size_of::<CreateRecord>()];
    let kept = plain.len().min(bytes.len());
    plain[..kept].copy_from_slice(&bytes[..kept]);
    plain[0] = kind::CREATE;
    plain[40..].copy_from_slice(&entry_pc.to_ne_bytes());
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of<T>(record: &T) -> Vec<u8> {
        // SAFETY: records are repr(C) without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast::<u8>(), size_of::<T>()) }
            .to_vec()
    }

    fn header(kind: u8, count: u8) -> gotrace_common::Header {
        gotrace_common::Header { kind, arg: 14, count, waker: 1, process: 3, time_ns: 99 }
    }

    #[test]
    fn each_kind_is_read_field_by_field() {
        let create = CreateRecord {
            header: header(kind::CREATE, 0),
            goid: 7,
            parent_goid: 1,
            created_pc: 0x10,
            entry_pc: 0x20,
        };
        assert_eq!(
            decode(&bytes_of(&create)),
            Ok(Event::Create(Create {
                process: 3,
                time_ns: 99,
                goid: 7,
                parent_goid: 1,
                created_pc: 0x10,
                entry_pc: 0x20,
                coroutine: false
            }))
        );
        let mut frames = [0; FRAMES];
        frames[0] = 5;
        frames[1] = 6;
        let head = WaitHead {
            header: header(kind::WAIT, 2),
            goid: 7,
            start_ns: 50,
            wake_ns: 90,
            waker_goid: 8,
            cpu_ns: 77,
        };
        let bytes = bytes_of(&WaitRecord { head, peer: [], frames });
        let Ok(Event::Wait(wait)) = decode(&bytes) else { panic!("a wait") };
        assert_eq!((wait.goid, wait.start_ns, wait.end_ns, wait.wake_ns, wait.reason), (7, 50, 99, 90, 14));
        assert_eq!((wait.waker, wait.waker_goid, wait.cpu_ns), (WakerKind::Goroutine, 8, 77));
        assert_eq!((wait.frames.iter().collect::<Vec<_>>(), wait.socket), (vec![5, 6], None));
        let pause =
            PauseRecord { header: header(kind::PAUSE, 1), goid: 7, start_ns: 50, restart_ns: 90, frames };
        let bytes = bytes_of(&pause);
        let Ok(Event::Pause(pause)) = decode(&bytes) else { panic!("a pause") };
        assert_eq!(
            (pause.goid, pause.reason, pause.start_ns, pause.restart_ns, pause.woken_ns),
            (7, 14, 50, 90, 99)
        );
        assert_eq!(pause.frames.iter().collect::<Vec<_>>(), [5]);
        let assist = AssistRecord {
            header: header(kind::ASSIST, 0),
            goid: 7,
            start_ns: 50,
            created_pc: 0x10,
            entry_pc: 0x20,
        };
        assert_eq!(
            decode(&bytes_of(&assist)),
            Ok(Event::Assist(Assist {
                process: 3,
                goid: 7,
                start_ns: 50,
                end_ns: 99,
                created_pc: 0x10,
                entry_pc: 0x20
            }))
        );
        let exit = ExitRecord {
            header: gotrace_common::Header { arg: 1, ..header(kind::EXIT, 0) },
            goid: 7,
            wait_total_ns: 1,
            schedule_total_ns: 2,
            wait_count: 3,
            cpu_ns: 4,
            throttled_ns: 5,
            blocked_total_ns: 6,
            syscall_total_ns: 7,
        };
        let mut bytes = bytes_of(&exit);
        let exit = Exit {
            process: 3,
            time_ns: 99,
            goid: 7,
            wait_total_ns: 1,
            schedule_total_ns: 2,
            wait_count: 3,
            cpu_ns: 4,
            throttled_ns: 5,
            blocked_total_ns: 6,
            syscall_total_ns: 7,
            whole: true,
        };
        assert_eq!(decode(&bytes), Ok(Event::Exit(exit)));
        // Of earlier versions.
        bytes[1] = 0;
        let exit = Exit { blocked_total_ns: 0, syscall_total_ns: 0, whole: false, ..exit };
        assert_eq!(decode(&bytes[..64]), Ok(Event::Exit(exit)));
        assert_eq!(decode(&bytes[..48]), Ok(Event::Exit(Exit { cpu_ns: 0, throttled_ns: 0, ..exit })));
        assert!(decode(&bytes[..56]).is_err() && decode(&bytes[..32]).is_err());
        let cpu = CpuRecord { header: header(kind::CPU, 0), goid: 7, cpu_ns: 5, throttled_ns: 6 };
        let told = Cpu { process: 3, time_ns: 99, goid: 7, cpu_ns: 5, throttled_ns: 6 };
        assert_eq!(decode(&bytes_of(&cpu)), Ok(Event::Cpu(told)));
    }

    #[test]
    fn a_creation_with_words_becomes_a_plain_one() {
        let create = CreateRecord {
            header: header(kind::CREATE_CLOSURE, 0),
            goid: 7,
            parent_goid: 1,
            created_pc: 0x10,
            entry_pc: 0x20,
        };
        let words = std::array::from_fn(|n| 0x100 + n as u64);
        let bytes = bytes_of(&CreateClosureRecord { create, words });
        let Ok(Event::CreateClosure(made, found)) = decode(&bytes) else { panic!("a creation") };
        assert_eq!((made.goid, made.entry_pc, found), (7, 0x20, words));
        let plain = plain_creation(&bytes, 0x30);
        assert_eq!(decode(&plain), Ok(Event::Create(Create { entry_pc: 0x30, ..made })));
        assert_eq!(
            decode(&bytes[..48]),
            Err(DecodeError::WrongLength { kind: kind::CREATE_CLOSURE, length: 48 })
        );
        let _ = plain_creation(&[], 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn any_count_of_frames_stays_within_the_record(count: u8, deep: bool, peer: bool) {
            let (kind, length) = match (deep, peer) {
                (false, false) => (kind::WAIT, 120),
                (true, false) => (kind::WAIT_DEEP, 312),
                (false, true) => (kind::WAIT_PEER, 144),
                (true, true) => (kind::WAIT_PEER_DEEP, 336),
            };
            let mut bytes = vec![0; length];
            bytes[0] = kind;
            bytes[2] = count;
            let Ok(Event::Wait(wait)) = decode(&bytes) else { panic!("a wait") };
            let room = if deep { DEEP_FRAMES } else { FRAMES };
            prop_assert_eq!(wait.frames.iter().len(), room.min(usize::from(count)));
        }
    }
}
