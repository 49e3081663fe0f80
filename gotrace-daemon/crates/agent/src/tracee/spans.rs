//! What the table says has ended, as spans: ids, times and places of one process.
//!
//! Input: the table's outputs. Output: spans of the model; no errors.

use std::sync::Arc;

use super::{Facts, Names, Tracee};
use crate::table::{Ended, Life, Waited, Waker as TableWaker};
use gotrace_model::{GoroutineSpan, SpanContext, WaitSpan, Waker};

impl Tracee {
    pub(super) fn goroutine_span(&mut self, ended: Ended, names: &dyn Names) -> GoroutineSpan {
        let Facts { key, clock, mode, .. } = &self.facts;
        let lifetime_ns = ended.exit_ns.saturating_sub(ended.birth_ns);
        let waits = mode.saw_all_waits(ended.birth_ns);
        GoroutineSpan {
            resource: Arc::clone(&self.resource),
            context: key.context(ended.root, ended.goid),
            parent: (ended.root != ended.goid).then(|| key.span_id(ended.parent_goid)),
            creator_link: ended.creator_root.map(|root| key.context(root, ended.parent_goid)),
            start_unix_nano: clock.unix_nano(ended.birth_ns),
            end_unix_nano: clock.unix_nano(ended.exit_ns),
            entry: self.symbols.entry(ended.entry_pc, names),
            created_by: self.symbols.created_by(ended.created_pc, names),
            goid: ended.goid,
            parent_goid: ended.parent_goid,
            wait_total_ns: waits.then_some(ended.wait_total_ns),
            run_total_ns: waits.then_some(lifetime_ns.saturating_sub(ended.wait_total_ns)),
            wait_count: waits.then_some(ended.wait_count),
            cpu_ns: (waits && ended.cpu.cpu_ns > 0).then_some(ended.cpu.cpu_ns),
            life: ended.life.filter(|_| mode.was_full_since(ended.birth_ns)).map(|life| {
                let Life { running_ns, run_queue_ns, syscall_ns, blocked_ns } = life;
                [running_ns, run_queue_ns, syscall_ns, blocked_ns]
            }),
            throttled_ns: (waits && ended.cpu.throttled_ns > 0).then_some(ended.cpu.throttled_ns),
            waits_by_reason: ended
                .waits_by_reason
                .iter()
                .map(|(reason, ns)| (self.reason(*reason), *ns))
                .collect(),
        }
    }

    pub(super) fn wait_span(&mut self, waited: Waited, names: &dyn Names) -> WaitSpan {
        let Facts { key, clock, .. } = &self.facts;
        let trace_id = key.trace_id(waited.root);
        let span_id = key.wait_span_id(waited.goid, waited.start_ns);
        let site = self.symbols.wait_site(&waited.frames, names);
        let own_code = self.symbols.own_code(&waited.frames, names).map(|frame| frame.at);
        WaitSpan {
            resource: Arc::clone(&self.resource),
            context: SpanContext { trace_id, span_id },
            parent: key.span_id(waited.goid),
            goid: waited.goid,
            reason: self.reason(waited.reason),
            start_unix_nano: clock.unix_nano(waited.start_ns),
            end_unix_nano: clock.unix_nano(waited.end_ns),
            scheduling_delay_ns: waited.wake_ns.map(|wake_ns| waited.end_ns.saturating_sub(wake_ns)),
            own_code: own_code.filter(|own| site.as_ref() != Some(own)),
            site,
            waker: match waited.waker {
                TableWaker::Unknown => Waker::Unknown,
                TableWaker::Goroutine { goid, root } => Waker::Goroutine(goid, key.context(root, goid)),
                TableWaker::Netpoll => Waker::Netpoll,
                TableWaker::Timer => Waker::Timer,
                TableWaker::Gc => Waker::Gc,
            },
            peer: waited.peer,
        }
    }
}
