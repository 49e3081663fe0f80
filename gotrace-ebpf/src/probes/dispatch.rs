//! One program for all places of an attachment: the lower half of a place's cookie names what is run there. A link
//! then holds all probes of a level, so that a process takes as many links as levels (Linux 6.6). Each level has a
//! program of its own, which chooses among few. Each is one function: a tail call in a called one is refused
//! ([`crate::process::Probe::dispatched`]).

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{kind, program};

use crate::{
    go_abi::{argument, closure_context, current_g, first_arguments, read_word},
    probes::{collector, coroutine, function, grpc, lifecycle, request, router, span, syscall, wait, wake},
    process::Probe,
};

/// Births and deaths, and what the collector costs.
#[inline(always)]
#[uprobe]
pub fn dispatch_lifecycle(ctx: ProbeContext) -> u32 {
    let (ctx, number) = &Probe::dispatched(ctx);
    let [first, second, third] = first_arguments(ctx);
    // Chosen here, so that what follows is there once.
    let (g, kind) = match *number {
        program::CREATE_0 => (first, kind::CREATE),
        program::CREATE_1 => (second, kind::CREATE),
        program::CREATE_2 => (third, kind::CREATE),
        program::CREATE_BY_STATUS if lifecycle::is_made(ctx) => (first, kind::CREATE),
        program::CREATE_COROUTINE_0 => (first, kind::CREATE_COROUTINE),
        program::CREATE_COROUTINE_1 => (second, kind::CREATE_COROUTINE),
        program::CREATE_COROUTINE_2 => (third, kind::CREATE_COROUTINE),
        _ => (0, 0),
    };
    if g != 0 {
        lifecycle::create(ctx, g, kind);
        return 0;
    }
    match *number {
        program::EXIT => lifecycle::on_exit(ctx, argument::<0>(ctx)),
        program::ASSIST_BEGIN => collector::on_assist_begin(ctx),
        program::ASSIST_END => collector::on_assist_end(ctx),
        program::STOP_WORLD => collector::on_stop(ctx),
        program::START_WORLD => collector::on_start(ctx),
        program::WORLD_STARTED => collector::on_started(ctx),
        _ => None,
    };
    0
}

/// Waits.
#[inline(always)]
#[uprobe]
pub fn dispatch_waits(ctx: ProbeContext) -> u32 {
    let (ctx, number) = &Probe::dispatched(ctx);
    match *number {
        program::RUN => wait::on_run(ctx, argument::<0>(ctx)),
        program::PARK => wait::on_park(ctx, argument::<0>(ctx)),
        _ => None,
    };
    0
}

/// Requests.
#[inline(always)]
#[uprobe]
pub fn dispatch_requests(ctx: ProbeContext) -> u32 {
    let (ctx, number) = &Probe::dispatched(ctx);
    match *number {
        program::HTTP_BEGIN => request::on_http_begin(ctx),
        program::HTTP_ROUTE => request::on_http_route(ctx),
        program::HTTP_HANDLER => request::on_http_handler(ctx),
        program::HTTP_HIJACK => request::on_http_hijack(ctx),
        program::HTTP1_END | program::HTTP2_END | program::X_HTTP2_END => request::on_http_end(ctx, *number),
        program::GRPC_BEGIN => grpc::on_grpc_begin(ctx),
        program::GRPC_END => grpc::on_grpc_end(ctx),
        program::HTTP_CARRIES_GRPC => grpc::on_http_carries_grpc(ctx),
        program::PANIC => request::on_panic(ctx),
        program::SPAN_BEGIN => span::on_begin(ctx),
        program::SPAN_END => span::on_end(ctx),
        program::X_HTTP2_BEGIN | program::WRAPPED_HTTP2_BEGIN => request::on_http2_begin(ctx, *number),
        program::HTTP_CARRIES_HTTP2 => request::on_http_carries_http2(ctx),
        program::GIN_ROUTE => router::on_gin(ctx),
        program::ECHO_LOOKUP => router::on_echo_lookup(ctx),
        program::ECHO_ROUTE => router::on_echo(ctx),
        program::CHI_ROUTE => router::on_chi(ctx),
        program::GORILLA_ROUTE => router::on_gorilla(ctx),
        program::GORILLA_VALUE => router::on_gorilla_value(ctx),
        _ => None,
    };
    0
}

/// Functions that the user has named: apart, as the verifier looks at a bounded number of instructions of a program.
#[inline(always)]
#[uprobe]
pub fn dispatch_functions(ctx: ProbeContext) -> u32 {
    let (ctx, number) = &Probe::dispatched(ctx);
    match *number {
        program::FUNCTION_BEGIN => function::on_begin(ctx),
        program::FUNCTION_END | program::FUNCTION_RECOVERED => function::on_end(ctx, *number),
        _ => None,
    };
    0
}

/// Wakes, yields, coroutine switches, system calls. The most frequent first.
#[inline(always)]
#[uprobe]
pub fn dispatch_full(ctx: ProbeContext) -> u32 {
    let (ctx, number) = &Probe::dispatched(ctx);
    match *number {
        program::READY => wake::on_ready(ctx, argument::<0>(ctx)),
        program::SYSCALL_ENTER => syscall::on_enter(ctx, current_g(ctx)),
        program::SYSCALL_EXIT => syscall::on_exit(ctx, current_g(ctx)),
        program::NETPOLL => wake::on_netpoll(ctx, argument::<1>(ctx), argument::<2>(ctx) as u32),
        program::GIVE_WAY => wake::on_yield(ctx, argument::<0>(ctx)),
        program::INJECT_LIST => wake::on_inject_list(ctx, argument::<0>(ctx)),
        program::COROUTINE_SWITCH => coroutine::on_switch(ctx, argument::<0>(ctx)),
        program::READY_CLOSURE => read_word(closure_context(ctx) + 8).and_then(|g| wake::on_ready(ctx, g)),
        _ => None,
    };
    0
}
