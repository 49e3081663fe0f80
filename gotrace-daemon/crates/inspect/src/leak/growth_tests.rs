//! What becomes more, and the pools and connections that look like it.

use super::{
    tests::{G, IO, RECEIVE, SECOND, SELECT, SLEEP, g, look, names, verdicts},
    *,
};
use crate::snapshot::{Op, Snapshot};

/// A look each second, with the goroutines of that second.
fn looks(seconds: u64, at: impl Fn(u64) -> Vec<G>) -> Vec<Snapshot> {
    (0..seconds).map(|second| look(second, &at(second))).collect()
}

fn request(n: u64) -> G {
    g(100 + n, 5, SELECT).chan(0x1000 + n * 96, Op::Receive).chan_of(0x900, Op::Receive, 0, 0)
}

#[test]
fn those_that_wait_for_one_stop_signal_are_no_pool() {
    let found = verdicts(&looks(12, |at| (0..100 + at * 2).map(request).collect()));
    assert_eq!(names(&found), [("growing", 120)], "{found:?}");
    assert_eq!(found[0].came_and_exited, Some((22, 0)));
    // Those that stood there from the start on are not among those that came.
    let said = "blocked here: 100 at the start, 120 after 10.0 s; 20 came since, and 0 left";
    assert!(found[0].why.starts_with(said), "{}", found[0].why);
    assert!(verdicts(&looks(12, |_| (0..100).map(request).collect())).is_empty());
    // Workers that wait for work and for the stop.
    let worker = |n: u64| g(100 + n, 5, SELECT).chan(0x1000, Op::Receive).chan_of(0x900, Op::Receive, 0, 0);
    assert!(verdicts(&looks(12, |at| (0..10 + at * 2).map(worker).collect())).is_empty());
}

#[test]
fn goroutines_of_two_creation_sites_at_one_channel_are_no_pool() {
    let both = |at: u64| -> Vec<G> {
        (0..8 + at * 2).map(|n| g(100 + n, 5 + n % 2 * 4, RECEIVE).chan(0x1000, Op::Receive)).collect()
    };
    assert_eq!(names(&verdicts(&looks(12, both))), [("growing", 14), ("growing", 14)]);
    // One of them is given work between.
    let busy = |at: u64| -> Vec<G> {
        let mut all = both(at);
        for g in all.iter_mut().take(2) {
            g.mark = at;
        }
        all
    };
    assert!(verdicts(&looks(12, busy)).is_empty());
}

#[test]
fn what_has_piled_up_for_long_is_found_though_few_come() {
    // One of a hundred stays, and there are many already; one more comes during the watch.
    let stays = |n: u64| g(1000 + n * 100, 5, RECEIVE).chan(0x1000 + n * 96, Op::Receive);
    let found = verdicts(&looks(12, |at| (0..60 + u64::from(at > 5)).map(stays).collect()));
    assert_eq!(names(&found), [("growing", 61)], "{found:?}");
    assert!(found[0].why.contains("one came to block here in") && found[0].why.contains("came steadily"));
    // They were made together when the program started.
    let together = |n: u64| g(1000 + n, 5, RECEIVE).chan(0x1000 + n * 96, Op::Receive);
    let burst = |at: u64| -> Vec<G> { (0..60).map(together).chain((at > 5).then(|| stays(300))).collect() };
    assert!(verdicts(&looks(12, burst)).is_empty());
    // The older they are the fewer there are left: they end one day.
    let ages = (0..60).scan(500, |age, n| {
        *age = *age * 108 / 100;
        Some((n, *age))
    });
    let sessions: Vec<G> =
        ages.map(|(n, age)| g(100_000 - age, 5, RECEIVE).chan(0x1000 + n * 96, Op::Receive)).collect();
    let ending = |at: u64| -> Vec<G> {
        let mut all = sessions.clone();
        all.extend((at > 5).then(|| stays(1000)));
        all
    };
    assert!(verdicts(&looks(12, ending)).is_empty());
    // One left.
    let left = |at: u64| -> Vec<G> { (u64::from(at > 7)..60 + u64::from(at > 5)).map(stays).collect() };
    assert!(verdicts(&looks(12, left)).is_empty());
}

#[test]
fn those_that_wake_now_and_then_and_never_end_are_growing() {
    let sleeper = |at: u64| move |n: u64| g(100 + n, 5, SLEEP).mark(at + n);
    let found = verdicts(&looks(12, |at| (0..at * 2).map(sleeper(at)).collect()));
    assert_eq!(names(&found), [("growing", 22)], "{found:?}");
    assert!(found[0].why.starts_with("none of the 22 created in 11.0 s has exited"), "{}", found[0].why);
    assert!(found[0].lives);
    assert_eq!(
        found[0].oldest,
        AtLeastAtMost { at_least_ns: 10 * SECOND - 1_000_000, at_most_ns: Some(11 * SECOND + 1_000_000) }
    );
    // Each ends after some seconds.
    assert!(verdicts(&looks(20, |at| ((at.max(4) - 4) * 2..at * 2).map(sleeper(at)).collect())).is_empty());
    // They came at once.
    assert!(
        verdicts(&looks(12, |at| (0..if at < 6 { 0 } else { 20 }).map(sleeper(at)).collect())).is_empty()
    );
    // Workers of a pool that have something to do.
    let busy = |at: u64| -> Vec<G> {
        (0..at * 2).map(|n| g(100 + n, 5, RECEIVE).chan(0x1000, Op::Receive).mark(at + n)).collect()
    };
    assert!(verdicts(&looks(12, busy)).is_empty());
    // The heartbeat of each connection, that a handler made together with its reader.
    let connection = |at: u64| -> Vec<G> {
        let both = |n: u64| {
            [g(100 + 3 * n, 6, IO).by(102 + 3 * n), g(101 + 3 * n, 5, SLEEP).mark(at).by(102 + 3 * n)]
        };
        (0..at * 2).flat_map(both).collect()
    };
    assert!(verdicts(&looks(12, connection)).is_empty());
}

#[test]
fn who_receives_from_a_channel_that_is_no_timers_does_not_end_by_itself() {
    let waiter = |n: u64| g(100 + n, 5, SELECT).chan_of(0x1000 + n * 960, Op::Receive, 24, 1);
    let mut all = looks(12, |at| (0..at * 2).map(waiter).collect());
    assert!(verdicts(&all).is_empty());
    for snapshot in &mut all {
        snapshot.objects.iter_mut().for_each(|o| o.timer = false);
    }
    assert_eq!(names(&verdicts(&all)), [("growing", 20)]);
}
