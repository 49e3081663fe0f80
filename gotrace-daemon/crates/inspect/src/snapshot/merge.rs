//! Puts together what two readers have read of one process: disjoint sets of its goroutines.

use super::{Snapshot, model::LabelsId, reader::Reader};

/// Adds what `second` has read to what `first` has. Stacks and objects that both have become one.
pub(super) fn merge(first: &mut Reader, second: &Reader, into: &mut Snapshot, other: Snapshot) {
    let Snapshot { goroutines, stacks, mut waits, objects, labels, counts, arguments, .. } = other;
    // What the first has no room for any more is counted as missing.
    let stack_ids: Vec<_> =
        stacks.ids().map(|id| first.interner.intern(&mut into.stacks, stacks.frames(id))).collect();
    let object_ids = first.waits.adopt(&second.waits, &mut into.objects, &objects);
    for wait in &mut waits {
        if let Some(&id) = object_ids.get(wait.object.index()) {
            wait.object = id;
        }
    }
    let waits_before = u32::try_from(into.waits.len()).unwrap_or(u32::MAX);
    into.waits.extend(waits);
    let labels_before = into.labels.len();
    into.labels.extend(labels);
    into.counts.add(&counts);
    if let (Some(mine), Some(others)) = (&mut into.arguments, arguments) {
        mine.adopt(others);
    }
    for mut goroutine in goroutines {
        if let Some(id) = goroutine.stack {
            goroutine.stack = stack_ids.get(id.index()).copied().flatten();
            if goroutine.stack.is_none() {
                into.counts.stacks_missing += 1;
                goroutine.forget_stack();
            }
        }
        goroutine.waits.begin = goroutine.waits.begin.saturating_add(waits_before);
        goroutine.labels = goroutine.labels.and_then(|id| LabelsId::new(labels_before + id.index()));
        into.goroutines.push(goroutine);
    }
}
