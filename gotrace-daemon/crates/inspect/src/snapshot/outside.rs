//! What goroutines wait for outside of their process: what their descriptors lead to, and their system calls.
//!
//! Input: a snapshot, goroutines of it, the process's memory and its `/proc` directory. Output: [`Outside`]. The process
//! runs on meanwhile: what was read of `/proc` is kept only if the goroutine waits for the same descriptor, or is in the
//! same call, after that. What is not known is left out.

use std::collections::BTreeSet;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Engine, Op, Snapshot, Status, WaitObject,
    pieces::Pieces,
    seen::{Holds, Seen},
};
use gotrace_process::{OpenFile, OpenFiles, ProcessError, RawCall, ReadMemory, SystemCall};

/// Waits for descriptors that are looked into at once.
const MAX_WAITS: usize = 1 << 17;
/// System calls that are looked into at once: a few reads of `/proc` each.
const MAX_CALLS: usize = 1 << 12;
/// Bytes of a path that are shown.
const MAX_PATH: usize = 512;
const PAGE: u64 = 4096;

/// What descriptors and system calls lead to.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    files: HashMap<u32, OpenFile, FixedState>,
    calls: HashMap<u64, SystemCall, FixedState>,
    /// The process, in gotrace's PID namespace.
    pub pid: u32,
    /// Whether the network namespace has so many sockets that some were not looked for.
    pub sockets_cut: bool,
    /// Waits that were beyond the bounds.
    pub left_out: u64,
}

impl Outside {
    /// What the descriptor is that a goroutine waits for.
    #[must_use]
    pub fn file(&self, object: &WaitObject) -> Option<&OpenFile> {
        self.files.get(&object.descriptor()?)
    }

    /// The system call that a goroutine is in.
    #[must_use]
    pub fn call(&self, goid: u64) -> Option<&SystemCall> {
        self.calls.get(&goid)
    }

    /// Adds a descriptor, as if it had been looked up.
    pub fn set_file(&mut self, descriptor: u32, file: OpenFile) {
        self.files.insert(descriptor, file);
    }

    /// Adds a goroutine's system call, as if it had been looked up.
    pub fn set_call(&mut self, goid: u64, call: SystemCall) {
        self.calls.insert(goid, call);
    }
}

/// A goroutine that waits for a descriptor.
#[derive(Clone, Copy)]
struct Waiter {
    g: u64,
    descriptor: u32,
    /// Address of the `pollDesc`, and what the goroutine wants.
    address: u64,
    op: Op,
}

/// A goroutine in a system call.
struct Caller {
    goid: u64,
    g: u64,
    thread: u32,
    seen: Seen,
    raw: RawCall,
}

impl Engine {
    /// Looks up what descriptors and system calls of some goroutines lead to, and adds it to the snapshot.
    pub(super) fn look_outside(
        &self,
        memory: &dyn ReadMemory,
        files: &OpenFiles,
        snapshot: &mut Snapshot,
        goids: &mut dyn Iterator<Item = u64>,
    ) -> Result<(), ProcessError> {
        let (mut waiters, mut calls, mut left_out) = (Vec::new(), Vec::new(), 0);
        for goroutine in goids.filter_map(|goid| snapshot.goroutine(goid)) {
            if goroutine.status == Status::Syscall && goroutine.thread_id != 0 {
                calls.push((goroutine.goid, goroutine.g, goroutine.thread_id));
            }
            for wait in snapshot.waits_of(goroutine) {
                let object = snapshot.object(wait.object);
                let Some((object, op)) = object.zip(wait.op) else { continue };
                let Some(descriptor) = object.descriptor() else { continue };
                waiters.push(Waiter { g: goroutine.g, descriptor, address: object.address, op });
            }
        }
        for (len, most) in [(waiters.len(), MAX_WAITS), (calls.len(), MAX_CALLS)] {
            left_out += len.saturating_sub(most) as u64;
        }
        waiters.truncate(MAX_WAITS);
        calls.truncate(MAX_CALLS);
        let callers = self.callers(memory, files, &calls)?;
        let of_calls = callers.iter().filter_map(|c| files.descriptor_of(&c.raw));
        let wanted: BTreeSet<u32> = waiters.iter().map(|w| w.descriptor).chain(of_calls).collect();
        let described = files.describe(&wanted);
        let still = self.still_wait(memory, &waiters)?;
        let pid = snapshot.pid;
        let outside = &mut snapshot.outside;
        outside.pid = pid;
        outside.left_out += left_out;
        outside.sockets_cut |= described.sockets_cut;
        for (waiter, _) in waiters.iter().zip(still).filter(|(_, still)| *still) {
            if let Some(file) = described.files.get(&waiter.descriptor) {
                outside.files.entry(waiter.descriptor).or_insert_with(|| file.clone());
            }
        }
        for caller in callers {
            let mut call = files.explain(&caller.raw, &described.files);
            if let Some(address) = caller.raw.path() {
                call.file = path(memory, address)?.map(|path| OpenFile::with_path(&path));
            }
            let same = files.raw_call(caller.thread) == Some(caller.raw)
                && self
                    .in_call(memory, caller.goid, caller.g)?
                    .is_some_and(|now| caller.seen.stood_still(&now) && caller.seen.m == now.m);
            if same {
                outside.calls.insert(caller.goid, call);
            }
        }
        Ok(())
    }

    /// The calls that goroutines are in, each with what was seen of it before.
    fn callers(
        &self,
        memory: &dyn ReadMemory,
        files: &OpenFiles,
        calls: &[(u64, u64, u32)],
    ) -> Result<Vec<Caller>, ProcessError> {
        let threads = if calls.is_empty() { None } else { files.threads() };
        let mut callers = Vec::new();
        for &(goid, g, own) in calls {
            let thread = threads.as_ref().map_or(Some(own), |t| t.get(&own).copied());
            let (Some(thread), Some(seen)) = (thread, self.in_call(memory, goid, g)?) else { continue };
            if let Some(raw) = files.raw_call(thread) {
                callers.push(Caller { goid, g, thread, seen, raw });
            }
        }
        Ok(callers)
    }

    /// A goroutine that is in a system call, and on its thread.
    fn in_call(&self, memory: &dyn ReadMemory, goid: u64, g: u64) -> Result<Option<Seen>, ProcessError> {
        let mut bytes = vec![0; self.layout.g_len];
        if !memory.read_at(g, &mut bytes)? {
            return Ok(None);
        }
        let Holds::Goroutine(seen) = Seen::parse(&bytes, &self.layout) else { return Ok(None) };
        let mut current = [0; 8];
        let on_thread = memory.read_at(seen.m.wrapping_add(self.layout.m_curg as u64), &mut current)?
            && u64::from_le_bytes(current) == g;
        Ok((seen.goid == goid && seen.status == Status::Syscall && on_thread).then_some(seen))
    }

    /// Of each whether it waits for its descriptor, and that is open.
    fn still_wait(&self, memory: &dyn ReadMemory, waiters: &[Waiter]) -> Result<Vec<bool>, ProcessError> {
        let (Some(fd), Some(rg), Some(wg)) = (self.layout.poll_fd, self.layout.poll_rg, self.layout.poll_wg)
        else {
            return Ok(vec![false; waiters.len()]);
        };
        let at = |address: u64, field: usize| address.wrapping_add(field as u64);
        let of = |w: &Waiter| [at(w.address, fd), at(w.address, if w.op == Op::Write { wg } else { rg })];
        let addresses: Vec<u64> = waiters.iter().flat_map(of).collect();
        let words = Pieces::default().words(memory, &addresses)?;
        let same =
            |(w, words): (&Waiter, &[Option<u64>])| words == [Some(u64::from(w.descriptor)), Some(w.g)];
        Ok(waiters.iter().zip(words.chunks_exact(2)).map(same).collect())
    }
}

/// The path at an address, which ends with a zero byte; `None` where it cannot be read.
fn path(memory: &dyn ReadMemory, address: u64) -> Result<Option<String>, ProcessError> {
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < MAX_PATH {
        // The next page need not be there.
        let here = usize::try_from(PAGE - at % PAGE).unwrap_or(0).min(MAX_PATH - text.len());
        let mut bytes = vec![0; here];
        if !memory.read_at(at, &mut bytes)? {
            return Ok(None);
        }
        if let Some(end) = bytes.iter().position(|&b| b == 0) {
            text.extend_from_slice(&bytes[..end]);
            return Ok((!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned()));
        }
        text.append(&mut bytes);
        at = at.wrapping_add(here as u64);
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned() + "…"))
}
