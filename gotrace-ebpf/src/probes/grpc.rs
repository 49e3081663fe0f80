//! Calls of gRPC: a stream is a request.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    Account, Hit, Lost, RequestKey,
    request::{ended, family, protocol, status},
};

use crate::{
    go_abi::{argument, current_g, follow, read_word},
    maps::REQUESTS,
    probes::request::{begin, config, end, hit, open_http},
    process::{Probe, Process},
};

/// `(*Server).handleStream` of gRPC.
#[uprobe]
pub fn grpc_begin(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_grpc_begin(ctx);
    0
}

/// `(*http2Server).writeStatus` of gRPC.
#[uprobe]
pub fn grpc_end(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_grpc_end(ctx);
    0
}

/// `(*Server).ServeHTTP` of gRPC.
#[uprobe]
pub fn http_carries_grpc(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_carries_grpc(ctx);
    0
}

/// `(*Server).handleStream` of gRPC: the stream is the fourth argument.
#[inline(always)]
pub fn on_grpc_begin(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestBegin)?;
    let object = argument::<3>(ctx);
    let key = RequestKey { id: object, process: process.process, family: family::GRPC };
    begin(&process, current_g(ctx), goid, key, object, protocol::GRPC)?;
    Some(())
}

/// `(*http2Server).writeStatus` of gRPC: the stream is the second argument, the status the third.
#[inline(always)]
pub fn on_grpc_end(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestEnd)?;
    let key = RequestKey { id: argument::<1>(ctx), process: process.process, family: family::GRPC };
    let open = REQUESTS.get_ptr_mut(key)?;
    // No status is OK.
    let code = argument::<2>(ctx);
    let code = match follow(code, config(&process)?.grpc_code).and_then(read_word) {
        Some(code) => code as u16,
        None if code == 0 => 0,
        None => status::NONE,
    };
    end(&process, key, open, goid, code, ended::NORMAL)
}

/// `(*Server).ServeHTTP` of gRPC: a call that comes by way of `net/http`'s server is told once, as gRPC.
#[inline(always)]
pub fn on_http_carries_grpc(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestStep)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe { (*open_http(&process, goid)?).carries = 1 };
    Some(())
}

/// The end of the stream that a goroutine serves was not seen, and is not going to be.
#[inline(always)]
pub fn forget_stream(process: &Process, account: *mut Account) {
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let stream = unsafe { core::mem::take(&mut (*account).stream) };
    let key = RequestKey { id: stream, process: process.process, family: family::GRPC };
    if stream != 0 && REQUESTS.remove(key).is_ok() {
        process.lost(Lost::RequestUnended);
        // SAFETY: as above.
        unsafe { (*account).open = (*account).open.saturating_sub(1) };
    }
}
