//! What piles up in reads: of connections that were opened or accepted, with and without a deadline.

use super::{
    tests::{G, IO, RECEIVE, SLEEP, g, look, names, verdicts, watch_of},
    *,
};
use crate::snapshot::{ObjectKind, Op, Snapshot, Until};
use gotrace_process::{FileKind, OpenFile};

fn reader(n: u64) -> G {
    g(100 + n, 5, IO).reads(0x1000 + n * 512)
}

/// A reader that was made by one that accepts connections.
fn server(n: u64) -> G {
    g(5000 + n, 9, IO).reads(0x10_0000 + n * 512).by(4000)
}

/// A look each second, at which descriptors have a deadline as given, and lead to connections that were accepted where
/// that is told of the address of their `pollDesc`.
fn looks(
    deadline: Until,
    accepted: impl Fn(u64) -> Option<bool>,
    at: impl Fn(u64) -> Vec<G>,
) -> Vec<Snapshot> {
    (0..12)
        .map(|second| {
            let mut snapshot = look(second, &at(second));
            for wait in &mut snapshot.waits {
                wait.until = deadline;
            }
            for (n, object) in
                snapshot.objects.iter_mut().enumerate().filter(|(_, o)| o.kind == ObjectKind::Fd)
            {
                (object.len, object.known) = (n as u64, true);
                let file = OpenFile {
                    kind: FileKind::Tcp,
                    accepted: accepted(object.address),
                    ..OpenFile::default()
                };
                snapshot.outside.set_file(n as u32, file);
            }
            snapshot
        })
        .collect()
}

fn more(at: u64) -> Vec<G> {
    (0..40 + at * 2).map(reader).chain([g(4000, 3, SLEEP)]).collect()
}

#[test]
fn reads_without_a_deadline_that_become_more_are_found() {
    let never = Until::NEVER;
    let found = verdicts(&looks(never, |_| Some(false), more));
    assert_eq!(names(&found), [("growing", 60)], "{found:?}");
    assert!(found[0].why.starts_with(UNANSWERED));
    // As many as there were.
    assert!(verdicts(&looks(never, |_| Some(false), |_| more(0))).is_empty());
    // One that is still to come, or not known.
    assert!(verdicts(&looks(Until::in_ns(9_000_000_000), |_| Some(false), more)).is_empty());
    assert!(verdicts(&looks(Until::default(), |_| Some(false), more)).is_empty());
}

#[test]
fn connections_are_there_for_as_long_as_their_clients_want() {
    let never = Until::NEVER;
    assert!(verdicts(&looks(never, |_| Some(true), more)).is_empty());
    assert!(verdicts(&looks(never, |_| None, more)).is_empty());
    // A proxy opens one for each that it accepts.
    let proxy = |at: u64| more(at).into_iter().chain((0..at * 2).map(server)).collect();
    assert!(verdicts(&looks(never, |address| Some(address >= 0x10_0000), proxy)).is_empty());
    assert_eq!(names(&verdicts(&looks(never, |_| Some(false), more))), [("growing", 60)]);
}

#[test]
fn only_undecided_reads_are_looked_up() {
    let never = Until::NEVER;
    let wanted = |snapshots: &[Snapshot]| {
        descriptors_wanted(&watch_of(snapshots), snapshots.last().expect("a look")).len()
    };
    assert!(wanted(&looks(never, |_| None, more)) >= 60);
    assert_eq!(wanted(&looks(never, |_| None, |_| more(0))), 0);
    assert_eq!(wanted(&looks(Until::default(), |_| None, more)), 0);
}

#[test]
fn who_waits_for_a_timer_that_is_to_come_is_not_stuck() {
    let looks = |until: Until| -> Vec<Snapshot> {
        (0..20_u64)
            .map(|at| {
                let request = g(100 + at, 5, RECEIVE).chan_of(0x5000 + at * 96, Op::Receive, 0, 0);
                let old = g(20, 5, RECEIVE).chan_of(0x1000, Op::Receive, 0, 0);
                let mut snapshot = look(at, &[old, request]);
                // The main goroutine and the one that moves wait for nothing.
                snapshot.waits[0].until = until;
                snapshot
            })
            .collect()
    };
    assert_eq!(names(&verdicts(&looks(Until::default()))), [("stuck", 1)]);
    assert!(verdicts(&looks(Until::in_ns(1))).is_empty());
    assert_eq!(names(&verdicts(&looks(Until::in_ns(-1)))), [("stuck", 1)]);
}
