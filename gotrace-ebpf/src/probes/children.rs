//! Goroutines that are started for a request: by its own goroutine, or by another one of them. Each has an account from its
//! beginning on, and what it has spent its time on is added to the request when it ends.

use gotrace_common::{
    Account, GoroutineState, OpenRequest, RequestConfig, RequestKey,
    request::{Children, SPANS, TIMES, family, state},
};

use crate::{
    maps::{ACCOUNTS, CHILDREN, GOROUTINES, REQUESTS, ZEROS},
    probes::{account, request},
    process::{Process, increment},
};

/// A goroutine was made by another one. `waits`: it is a coroutine, which waits for its first switch.
#[inline(always)]
pub fn on_create(
    process: &Process,
    parent: u64,
    (goid, goroutine): (u64, Option<*mut GoroutineState>),
    created_pc: u64,
    waits: bool,
) -> Option<()> {
    if !account::wanted(process) || parent == 0 {
        return None;
    }
    // SAFETY: the value of a preallocated map; the parent is the goroutine whose thread this is.
    let of_parent = unsafe { &*GOROUTINES.get_ptr(process.key(parent))? };
    if of_parent.accounted == 0 {
        return None;
    }
    let works = account::of(process, parent)?;
    if is_of_library(request::config(process)?, created_pc) {
        return None;
    }
    let (of, open) = works_for(process, parent, works)?;
    // SAFETY: the value of a preallocated map.
    let of_start_ns = unsafe {
        increment(&raw mut (*open).children.started, 1);
        (*open).start_ns
    };
    let followed = goroutine.and_then(|state| follow(process, (goid, state), of, of_start_ns, waits));
    if followed.is_none() {
        // SAFETY: as above.
        increment(unsafe { &raw mut (*open).children.unseen }, 1);
    }
    followed
}

/// Opens the account of a new goroutine; `None` where there is no room.
#[inline(always)]
fn follow(
    process: &Process,
    (goid, goroutine): (u64, *mut GoroutineState),
    of: RequestKey,
    of_start_ns: u64,
    waits: bool,
) -> Option<()> {
    // SAFETY: the zeros of an array, which are more.
    let zeros = unsafe { &*ZEROS.get_ptr(0)?.cast::<Account>() };
    let (now, most) = (CHILDREN.get_ptr_mut(0)?, CHILDREN.get_ptr(1)?);
    // SAFETY: values of an array, which live as long as the map.
    if unsafe { now.read_volatile() as i64 >= most.read_volatile() as i64 } {
        return None;
    }
    ACCOUNTS.insert(process.key(goid), zeros, 0).ok()?;
    increment(now, 1);
    let account = account::of(process, goid)?;
    // SAFETY: values of preallocated maps, of a goroutine that has not run yet.
    unsafe {
        (*goroutine).accounted = 1;
        (*account).since_ns = process.now_ns;
        (*account).of = of;
        (*account).of_start_ns = of_start_ns;
    }
    account::open(process, account, if waits { state::BLOCKED } else { state::RUNNABLE });
    Some(())
}

/// Whether a goroutine is started by the runtime or a server for itself, or by its like in a client: to collect, to read
/// from a connection or to write to it.
#[inline(always)]
fn is_of_library(config: &RequestConfig, created_pc: u64) -> bool {
    let is_in = |[from, to]: [u64; 2]| created_pc > from && created_pc <= to;
    let [first, second, third, fourth] = config.libraries;
    let is_of_one = is_in(first) || is_in(second) || is_in(third) || is_in(fourth);
    is_of_one && !is_in(config.handler_starts)
}

/// The request that a goroutine works for: that which it serves, else the one that it was started for, as long as that is
/// open.
#[inline(always)]
fn works_for(process: &Process, goid: u64, account: *mut Account) -> Option<(RequestKey, *mut OpenRequest)> {
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let (serves, stream, of) = unsafe { ((*account).open, (*account).stream, (*account).of) };
    let mut key = RequestKey { id: goid, process: process.process, family: family::HTTP };
    if serves != 0 {
        if let Some(open) = REQUESTS.get_ptr_mut(key) {
            return Some((key, open));
        }
        key.family = family::FUNCTION;
        if let Some(open) = REQUESTS.get_ptr_mut(key) {
            return Some((key, open));
        }
        (key.id, key.family) = (stream, family::GRPC);
        return Some((key, REQUESTS.get_ptr_mut(key)?));
    }
    key.id = 0;
    for n in 0..SPANS {
        // SAFETY: as above.
        let at = unsafe { (&raw const (*account).spans).cast::<u64>().add(n).read_volatile() };
        key.id = if at == 0 { key.id } else { at };
    }
    if key.id != 0 {
        key.family = family::SPAN;
        return Some((key, REQUESTS.get_ptr_mut(key)?));
    }
    if of.process == 0 {
        return None;
    }
    Some((of, still(of, account)?))
}

/// The request that a goroutine was started for, where it has not ended.
#[inline(always)]
fn still(of: RequestKey, account: *mut Account) -> Option<*mut OpenRequest> {
    let open = REQUESTS.get_ptr_mut(of)?;
    // SAFETY: values of preallocated maps.
    (unsafe { (*open).start_ns == (*account).of_start_ns }).then_some(open)
}

/// Copies what a request has of them. Others may end at the same time: what has ended is read first, and what has begun to
/// last.
///
/// # Safety
/// Both must be valid, the latter for writing.
#[inline(always)]
pub unsafe fn read(from: *const Children, to: *mut Children) {
    for n in (0..size_of::<Children>() / 8).rev() {
        // SAFETY: as above.
        unsafe { to.cast::<u64>().add(n).write(from.cast::<u64>().add(n).read_volatile()) };
    }
}

/// A goroutine ends. What it was started for has what it spent, as long as it is open.
#[inline(always)]
pub fn on_exit(process: &Process, account: *mut Account) -> Option<()> {
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let of = unsafe { (*account).of };
    if of.process == 0 {
        return None;
    }
    account::close(process, account, true);
    if let Some(now) = CHILDREN.get_ptr_mut(0) {
        // One less.
        increment(now, u64::MAX);
    }
    let open = still(of, account)?;
    // SAFETY: values of preallocated maps. Others may end at the same time: who reads the sums sees by the two counts
    // whether one of them is at it.
    unsafe {
        increment(&raw mut (*open).children.ending, 1);
        for n in 0..TIMES {
            let spent = (&raw const (*account).times).cast::<u64>().add(n).read();
            if spent != 0 {
                increment((&raw mut (*open).children.times).cast::<u64>().add(n), spent);
            }
        }
        increment(&raw mut (*open).children.ended, 1);
    }
    Some(())
}
