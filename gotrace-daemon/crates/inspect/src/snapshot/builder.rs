//! Snapshots made by hand, for the tests of those who read them.

use super::{
    Goroutine, ObjectId, ObjectKind, Op, Snapshot, StackFrame, Status, Until, Wait, WaitObject, WaitRange,
    unwind::Interner,
};

/// Collects goroutines of a snapshot, which must come by ascending goid.
pub(crate) struct Builder {
    snapshot: Snapshot,
    interner: Interner,
}

impl Builder {
    /// Begun at this time (`CLOCK_MONOTONIC`), and read for so long.
    pub fn new(monotonic_ns: u64, duration_ns: u64) -> Self {
        let snapshot = Snapshot { monotonic_ns, duration_ns, ..Snapshot::default() };
        Self { snapshot, interner: Interner::default() }
    }

    /// Adds one: id, parent's id, (entry, creation) addresses, (status, reason, mark), return addresses,
    /// what it waits on as (address, kind, operation, element size, capacity).
    pub fn goroutine(
        &mut self,
        goid: u64,
        parent: u64,
        site: (u64, u64),
        (status, wait_reason, park_mark): (Status, u8, u64),
        stack: &[u64],
        waits: &[(u64, ObjectKind, Op, u16, u64)],
    ) {
        let frames: Vec<StackFrame> = stack.iter().map(|pc| StackFrame::returning_to(*pc)).collect();
        let stack = self.interner.intern(&mut self.snapshot.stacks, &frames);
        let begin = self.snapshot.waits.len() as u32;
        for &(address, kind, op, elem_size, cap) in waits {
            let objects = &mut self.snapshot.objects;
            let known = objects.iter().position(|o| o.address == address && o.kind == kind);
            let n = known.unwrap_or_else(|| {
                objects.push(WaitObject {
                    address,
                    // Who waits to send finds a full buffer.
                    len: if op == Op::Send { cap } else { 0 },
                    cap,
                    senders: 0,
                    receivers: 0,
                    elem_size,
                    kind,
                    closed: false,
                    known: kind == ObjectKind::Chan,
                    timer: kind == ObjectKind::Chan && elem_size == 24 && cap == 1,
                });
                objects.len() - 1
            });
            if op == Op::Send {
                objects[n].senders += 1;
            } else {
                objects[n].receivers += 1;
            }
            let until = Until::default();
            self.snapshot.waits.push(Wait { object: ObjectId(n as u32), op: Some(op), until });
        }
        self.snapshot.goroutines.push(Goroutine {
            goid,
            g: 0xc000_0000 + goid * 512,
            parent_goid: Some(parent),
            created_pc: site.1,
            entry_pc: site.0,
            wait_since_ns: 0,
            park_mark,
            thread_id: 0,
            stack,
            waits: WaitRange { begin, len: waits.len() as u32 },
            labels: None,
            status,
            wait_reason,
            flags: Goroutine::COMPLETE,
        });
    }

    /// The snapshot.
    pub fn finish(self) -> Snapshot {
        self.snapshot
    }
}
