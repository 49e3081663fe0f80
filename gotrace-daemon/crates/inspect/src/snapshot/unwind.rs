//! From saved registers and a stack's bytes to its frames: exact, by Go's own tables, as the runtime's own
//! traceback does it (`runtime/traceback.go`, `unwinder`, Go 1.18 to 1.27). Each distinct address is
//! looked up once.
//!
//! Input is memory of a running process, untrusted: every stack ends after a bounded number of frames.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};

use super::{StackFrame, StackId, Stacks, layout::word};
use gotrace_go::Binary;

/// Frames of one stack that are kept. Deeper recursion is cut, and the stack counts as incomplete.
pub(super) const MAX_FRAMES: usize = 1 << 16;
/// Frames of all distinct stacks together: 256 MiB.
const MAX_ALL_FRAMES: usize = 1 << 25;

/// What one address says; see [`gotrace_go::Unwind`].
#[derive(Clone, Copy, Debug)]
struct Place {
    pc: u64,
    delta: u32,
    flags: u8,
    /// What its functions are to locks and descriptors: [`roles`].
    roles: u16,
}

const GO_CODE: u8 = 1;
const HAS_DELTA: u8 = 2;
const OUTERMOST: u8 = 4;
const WRITES_SP: u8 = 8;
const INJECTED: u8 = 16;
const EXACT_CALLER: u8 = 32;
const ENTRY: u8 = 64;
/// A function of the program's, not the runtime's.
const OUTSIDE_RUNTIME: u8 = 128;

/// Functions that tell what a goroutine waits on, as bits.
pub(super) mod roles {
    pub const RW_LOCK: u16 = 1;
    pub const RW_RLOCK: u16 = 2;
    pub const MUTEX: u16 = 4;
    pub const WAIT_GROUP: u16 = 8;
    pub const COND: u16 = 16;
    pub const READ: u16 = 32;
    pub const WRITE: u16 = 64;
    /// Reads what comes on a connection of HTTP or gRPC, whoever waits for it: it is there for as long as the connection.
    pub const TRANSPORT_READER: u16 = 128;

    pub(super) fn of(function: &str) -> u16 {
        let in_http2 = |name: &str| function.strip_suffix(name).is_some_and(|p| p.ends_with("http2."));
        match function {
            "net/http.(*persistConn).readLoop"
            | "net/http.(*connReader).backgroundRead"
            | "net/http.(*http2ClientConn).readLoop"
            | "net/http.(*http2serverConn).readFrames"
            | "google.golang.org/grpc/internal/transport.(*http2Client).reader"
            | "google.golang.org/grpc/internal/transport.(*http2Server).HandleStreams" => TRANSPORT_READER,
            _ if in_http2("(*ClientConn).readLoop") || in_http2("(*serverConn).readFrames") => {
                TRANSPORT_READER
            }
            "sync.(*RWMutex).Lock" => RW_LOCK,
            "sync.(*RWMutex).RLock" => RW_RLOCK,
            "sync.(*Mutex).Lock" | "sync.(*Mutex).lockSlow" | "internal/sync.(*Mutex).lockSlow" => MUTEX,
            "sync.(*WaitGroup).Wait" => WAIT_GROUP,
            "sync.(*Cond).Wait" => COND,
            "internal/poll.(*pollDesc).waitRead" => READ,
            "internal/poll.(*pollDesc).waitWrite" => WRITE,
            _ => 0,
        }
    }
}

/// Innermost frames that may be those of a lock or descriptor.
const ROLE_FRAMES: usize = 8;
/// Outermost frames that may be those of a transport's reader.
const OUTER_FRAMES: usize = 4;
/// Slots of the small table before the large one.
const HOT: usize = 1 << 12;

/// What is known of a program's addresses.
#[derive(Debug)]
pub(super) struct Places {
    bias: u64,
    arm64: bool,
    hot: Box<[Place]>,
    all: HashMap<u64, Place, FixedState>,
}

/// Where unwinding starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub pc: u64,
    pub sp: u64,
    /// Return address that is in a register: arm64, not in a system call.
    pub lr: u64,
    pub in_syscall: bool,
}

/// How unwinding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the goroutine's first function.
    Complete,
    /// Before it.
    Incomplete,
    /// At the end of the bytes that were given.
    NeedsMore,
}

impl Places {
    pub fn new(bias: u64, arm64: bool) -> Self {
        let none = Place { pc: 0, delta: 0, flags: 0, roles: 0 };
        Self { bias, arm64, hot: vec![none; HOT].into_boxed_slice(), all: HashMap::default() }
    }

    fn get(&mut self, binary: &Binary, pc: u64) -> Place {
        // Low bits differ most, and instructions of both architectures spread over them.
        let slot = (pc ^ (pc >> 12)) as usize % HOT;
        let hot = self.hot[slot];
        if hot.pc == pc {
            return hot;
        }
        let bias = self.bias;
        let place = *self.all.entry(pc).or_insert_with(|| look_up(binary, pc, bias));
        self.hot[slot] = place;
        place
    }

    /// Follows a stack; `bytes` is what is at `start.sp` and above. The frames replace those in `frames`.
    /// Tells as well how many of the bytes were behind it at the end. `bases`: where each frame's arguments
    /// begin, where that is asked for.
    pub fn unwind(
        &mut self,
        binary: &Binary,
        start: Start,
        bytes: &[u8],
        frames: &mut Vec<StackFrame>,
        bases: Option<&mut Vec<u64>>,
    ) -> (End, u64) {
        let mut sp = start.sp;
        let end = self.follow(binary, start, &mut sp, bytes, frames, bases);
        (end, sp.saturating_sub(start.sp))
    }

    fn follow(
        &mut self,
        binary: &Binary,
        start: Start,
        top: &mut u64,
        bytes: &[u8],
        frames: &mut Vec<StackFrame>,
        mut bases: Option<&mut Vec<u64>>,
    ) -> End {
        frames.clear();
        if let Some(bases) = bases.as_deref_mut() {
            bases.clear();
        }
        let Start { mut pc, mut sp, mut lr, .. } = start;
        let base = sp;
        let at = |address: u64| {
            let offset = usize::try_from(address.checked_sub(base)?).ok()?;
            bytes.get(offset..offset.checked_add(8)?).map(|b| word(b, 0))
        };
        // A call of a nil function: begin with its caller.
        if pc == 0 {
            let Some(caller) = at(sp) else { return End::NeedsMore };
            pc = caller;
            lr = 0;
            if !self.arm64 {
                sp = sp.wrapping_add(8);
            }
        }
        let (mut innermost, mut exact) = (true, false);
        while frames.len() < MAX_FRAMES {
            *top = sp;
            let place = self.get(binary, pc);
            if place.flags & GO_CODE == 0 {
                return End::Incomplete;
            }
            let exact_here = exact || place.flags & ENTRY != 0;
            frames.push(if exact_here { StackFrame::at(pc) } else { StackFrame::returning_to(pc) });
            if let Some(bases) = bases.as_deref_mut() {
                // Behind the return address: amd64 pushes it, arm64 keeps a word for it.
                bases.push(sp.wrapping_add(u64::from(place.delta)).wrapping_add(8));
            }
            if place.flags & OUTERMOST != 0 {
                return End::Complete;
            }
            let unknown_sp = place.flags & WRITES_SP != 0 && !(innermost && start.in_syscall);
            if place.flags & HAS_DELTA == 0 || unknown_sp {
                return End::Incomplete;
            }
            let Some(frame_end) = sp.checked_add(u64::from(place.delta)) else { return End::Incomplete };
            let caller = if self.arm64 {
                if innermost && place.delta > 0 || lr == 0 {
                    let Some(saved) = at(sp) else { return End::NeedsMore };
                    lr = saved;
                }
                sp = frame_end;
                std::mem::take(&mut lr)
            } else {
                let Some(saved) = at(frame_end) else { return End::NeedsMore };
                sp = frame_end.wrapping_add(8);
                saved
            };
            if caller == 0 {
                return End::Incomplete;
            }
            exact = place.flags & EXACT_CALLER != 0;
            innermost = false;
            pc = caller;
            // A signal handler saved the interrupted function's return address before it pretended a call.
            if self.arm64 && place.flags & INJECTED != 0 {
                let Some(saved) = at(sp) else { return End::NeedsMore };
                sp = sp.wrapping_add(16);
                let next = self.get(binary, pc);
                if next.flags & GO_CODE == 0 {
                    pc = saved;
                } else if next.flags & HAS_DELTA != 0 && next.delta == 0 {
                    lr = saved;
                }
            }
        }
        End::Incomplete
    }

    /// Roles of the innermost frames of a stack ([`roles`]).
    pub fn roles(&mut self, binary: &Binary, frames: &[StackFrame]) -> u16 {
        frames.iter().take(ROLE_FRAMES).fold(0, |bits, f| bits | self.get(binary, f.pc()).roles)
    }

    /// Whether a stack is that of a transport's reader ([`roles::TRANSPORT_READER`]).
    pub fn is_transport_reader(&mut self, binary: &Binary, frames: &[StackFrame]) -> bool {
        let mut outer = frames.iter().rev().take(OUTER_FRAMES);
        outer.any(|f| self.get(binary, f.pc()).roles & roles::TRANSPORT_READER != 0)
    }

    /// Addresses of the words of the innermost frame with a role that hold pointers which the function still
    /// uses. `bases`: where each frame's arguments begin.
    pub fn pointers_of(
        &mut self,
        binary: &Binary,
        role: u16,
        frames: &[StackFrame],
        bases: &[u64],
    ) -> Vec<u64> {
        let mut inner = frames.iter().zip(bases).take(ROLE_FRAMES);
        let found = inner.find(|(f, _)| self.get(binary, f.pc()).roles & role != 0);
        let Some((frame, &base)) = found else { return Vec::new() };
        let Some(map) = binary.stack_map(frame.pc().wrapping_sub(self.bias)) else {
            return Vec::new();
        };
        // The arguments are behind the return address: amd64 counts it to the frame.
        let sp = base.wrapping_sub(u64::from(map.end) + if self.arm64 { 8 } else { 0 });
        map.slots.iter().map(|&slot| sp.wrapping_add(u64::from(slot))).collect()
    }

    /// Whether any frame is of a function outside of the runtime.
    pub fn leaves_runtime(&mut self, binary: &Binary, frames: &[StackFrame]) -> bool {
        frames.iter().any(|f| self.get(binary, f.pc()).flags & OUTSIDE_RUNTIME != 0)
    }
}

fn look_up(binary: &Binary, pc: u64, bias: u64) -> Place {
    let link_time = pc.wrapping_sub(bias);
    let Some(unwind) = binary.unwind(link_time) else { return Place { pc, delta: 0, flags: 0, roles: 0 } };
    let mut flags = GO_CODE;
    for (bit, set) in [
        (HAS_DELTA, unwind.stack_delta.is_some()),
        (OUTERMOST, unwind.outermost),
        (WRITES_SP, unwind.writes_stack_pointer),
        (INJECTED, unwind.injected),
        (EXACT_CALLER, unwind.exact_caller),
        (ENTRY, unwind.entry == link_time),
    ] {
        flags |= if set { bit } else { 0 };
    }
    let frames = binary.lookup(link_time, true);
    if frames.last().is_some_and(|f| !f.function.starts_with("runtime.") && f.function != "reflectcall") {
        flags |= OUTSIDE_RUNTIME;
    }
    let roles = frames.iter().fold(0, |bits, f| bits | roles::of(&f.function));
    Place { pc, delta: unwind.stack_delta.unwrap_or(0), flags, roles }
}

/// Finds a stack among those already known.
#[derive(Debug)]
pub(super) struct Interner {
    table: HashTable<(u64, StackId)>,
    hasher: FixedState,
    most_frames: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self::within(MAX_ALL_FRAMES)
    }
}

impl Interner {
    /// Keeps no more frames than this, of all stacks.
    pub fn within(frames: usize) -> Self {
        let most_frames = frames.min(MAX_ALL_FRAMES);
        Self { table: HashTable::default(), hasher: FixedState::default(), most_frames }
    }

    /// The id of a stack; `None` when there are too many distinct ones.
    pub fn intern(&mut self, stacks: &mut Stacks, frames: &[StackFrame]) -> Option<StackId> {
        let hash = self.hasher.hash_one(frames);
        let same = |&(h, id): &(u64, StackId)| h == hash && stacks.frames(id) == frames;
        if let Some(&(_, id)) = self.table.find(hash, same) {
            return Some(id);
        }
        if stacks.frames.len() + frames.len() > self.most_frames {
            return None;
        }
        let id = StackId::new(stacks.ends.len())?;
        stacks.frames.extend_from_slice(frames);
        stacks.ends.push(u32::try_from(stacks.frames.len()).ok()?);
        self.table.insert_unique(hash, (hash, id), |&(h, _)| h);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Interner, StackFrame, Stacks,
        roles::{self, of},
    };

    #[test]
    fn stacks_beyond_the_bound_are_missing() {
        let stack = |n: u64, len| vec![StackFrame::at(n); len];
        let (mut interner, mut stacks) = (Interner::within(5), Stacks::default());
        let first = interner.intern(&mut stacks, &stack(1, 3));
        assert!(first.is_some());
        assert_eq!(interner.intern(&mut stacks, &stack(2, 3)), None);
        assert!(interner.intern(&mut stacks, &stack(3, 2)).is_some(), "there is room");
        assert_eq!(interner.intern(&mut stacks, &stack(1, 3)), first, "it is known");
    }

    #[test]
    fn readers_of_transports_are_told_by_their_functions() {
        for reader in [
            "net/http.(*persistConn).readLoop",
            "net/http.(*http2ClientConn).readLoop",
            "net/http/internal/http2.(*ClientConn).readLoop",
            "golang.org/x/net/http2.(*serverConn).readFrames",
            "google.golang.org/grpc/internal/transport.(*http2Client).reader",
        ] {
            assert_eq!(of(reader), roles::TRANSPORT_READER, "{reader}");
        }
        for other in
            ["net/http.(*conn).serve", "main.(*ClientConn).readLoop", "net/http.(*persistConn).writeLoop"]
        {
            assert_eq!(of(other), 0, "{other}");
        }
    }
}
