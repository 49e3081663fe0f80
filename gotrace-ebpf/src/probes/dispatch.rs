//! One program for all places of an attachment: the lower half of a place's cookie names what is run there. A link
//! then holds all probes of a level, so that a process takes as many links as levels (Linux 6.6).

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{kind, program};

use crate::{
    go_abi::{argument, closure_context, current_g, read_word},
    probes::{coroutine, lifecycle, syscall, wait, wake},
    process::program_of,
};

/// The most frequent first: the choice is a chain of comparisons.
#[uprobe]
pub fn dispatch(ctx: ProbeContext) -> u32 {
    let ctx = &ctx;
    match program_of(ctx) {
        program::RUN => wait::on_run(ctx, argument::<0>(ctx)),
        program::PARK => wait::on_park(ctx, argument::<0>(ctx)),
        program::READY => wake::on_ready(ctx, argument::<0>(ctx)),
        program::SYSCALL_ENTER => syscall::on_enter(ctx, current_g(ctx)),
        program::SYSCALL_EXIT => syscall::on_exit(ctx, current_g(ctx)),
        program::CREATE_1 => lifecycle::create(ctx, argument::<1>(ctx), kind::CREATE),
        program::EXIT => lifecycle::on_exit(ctx, argument::<0>(ctx)),
        program::NETPOLL => wake::on_netpoll(ctx, argument::<1>(ctx), argument::<2>(ctx) as u32),
        program::GIVE_WAY => wake::on_yield(ctx, argument::<0>(ctx)),
        program::INJECT_LIST => wake::on_inject_list(ctx, argument::<0>(ctx)),
        program::COROUTINE_SWITCH => coroutine::on_switch(ctx, argument::<0>(ctx)),
        program::READY_CLOSURE => read_word(closure_context(ctx) + 8).and_then(|g| wake::on_ready(ctx, g)),
        program::CREATE_0 => lifecycle::create(ctx, argument::<0>(ctx), kind::CREATE),
        program::CREATE_2 => lifecycle::create(ctx, argument::<2>(ctx), kind::CREATE),
        program::CREATE_BY_STATUS => lifecycle::on_status_change(ctx),
        program::CREATE_COROUTINE_0 => lifecycle::create(ctx, argument::<0>(ctx), kind::CREATE_COROUTINE),
        program::CREATE_COROUTINE_1 => lifecycle::create(ctx, argument::<1>(ctx), kind::CREATE_COROUTINE),
        program::CREATE_COROUTINE_2 => lifecycle::create(ctx, argument::<2>(ctx), kind::CREATE_COROUTINE),
        _ => None,
    };
    0
}
