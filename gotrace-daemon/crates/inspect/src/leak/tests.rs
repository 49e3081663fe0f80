//! Verdicts on series made by hand: for each the leak, and the healthy program that looks like it.

use super::*;
use crate::snapshot::{Builder, ObjectKind, Op, References, Snapshot, Status};

pub(super) const SECOND: u64 = 1_000_000_000;
const REASONS: [&str; 10] = [
    "",
    "chan receive",
    "chan send",
    "select",
    "sync.Mutex.Lock",
    "sync.WaitGroup.Wait",
    "IO wait",
    "sleep",
    "chan receive (nil chan)",
    "select (no cases)",
];
pub(super) const RECEIVE: u8 = 1;
pub(super) const SEND: u8 = 2;
pub(super) const SELECT: u8 = 3;
pub(super) const MUTEX: u8 = 4;
const GROUP: u8 = 5;
pub(super) const IO: u8 = 6;
pub(super) const SLEEP: u8 = 7;
const NIL: u8 = 8;
const NO_CASES: u8 = 9;

/// A goroutine as tests say it.
#[derive(Clone)]
pub(super) struct G {
    goid: u64,
    parent: u64,
    site: u64,
    reason: u8,
    pub mark: u64,
    waits: Vec<(u64, ObjectKind, Op, u16, u64)>,
}

pub(super) fn g(goid: u64, site: u64, reason: u8) -> G {
    G { goid, parent: 1, site, reason, mark: 7, waits: Vec::new() }
}

impl G {
    /// Made by a goroutine that has ended.
    fn orphan(mut self) -> Self {
        self.parent = 99_999;
        self
    }

    pub fn by(mut self, parent: u64) -> Self {
        self.parent = parent;
        self
    }

    /// Waits on a channel of integers.
    pub fn chan(self, address: u64, op: Op) -> Self {
        self.chan_of(address, op, 8, 0)
    }

    pub fn chan_of(mut self, address: u64, op: Op, elem_size: u16, cap: u64) -> Self {
        self.waits.push((address, ObjectKind::Chan, op, elem_size, cap));
        self
    }

    /// Reads from a descriptor.
    pub fn reads(mut self, address: u64) -> Self {
        self.waits.push((address, ObjectKind::Fd, Op::Read, 0, 0));
        self
    }

    pub fn on(mut self, address: u64, kind: ObjectKind) -> Self {
        let op = if kind == ObjectKind::Mutex { Op::Lock } else { Op::Wait };
        self.waits.push((address, kind, op, 0, 0));
        self
    }

    pub fn mark(mut self, mark: u64) -> Self {
        self.mark = mark;
        self
    }
}

/// A look at second `at`. There is always a main goroutine that waits for nobody, and one that moves.
pub(super) fn look(at: u64, goroutines: &[G]) -> Snapshot {
    let mut builder = Builder::new(at * SECOND, 1_000_000);
    let mut all = vec![g(1, 1, NO_CASES).by(0), g(2, 2, SLEEP).mark(at)];
    all.retain(|a| goroutines.iter().all(|b| b.goid != a.goid));
    all.extend_from_slice(goroutines);
    all.sort_by_key(|g| g.goid);
    for g in &all {
        builder.goroutine(
            g.goid,
            g.parent,
            (g.site, g.site + 1),
            (Status::Waiting, g.reason, g.mark),
            &[g.site * 16, u64::from(g.reason)],
            &g.waits,
        );
    }
    builder.finish()
}

pub(super) fn watch_of(looks: &[Snapshot]) -> Watch {
    let mut watch = Watch::new(Settings { stuck_after_ns: 5 * SECOND }, &REASONS);
    for look in looks {
        watch.observe(look);
    }
    watch
}

/// Verdicts where nobody refers to anything but what `stacks` says: (address, goids).
fn verdicts_with(looks: &[Snapshot], stacks: &[(u64, &[u64])]) -> Vec<Finding> {
    let watch = watch_of(looks);
    let last = looks.last().expect("a look");
    let (others, locks) = suspects(&watch, last);
    let unheld = |s: &[crate::snapshot::Suspect]| References {
        unheld: s.iter().map(|s| s.goid).collect(),
        stacks: stacks.iter().map(|(a, g)| (*a, g.to_vec())).collect(),
        complete: true,
    };
    judge(&watch, last, (&unheld(&others), &unheld(&locks)), &Unreached::default(), &[])
}

pub(super) fn verdicts(looks: &[Snapshot]) -> Vec<Finding> {
    verdicts_with(looks, &[])
}

/// The same goroutines at each of so many seconds.
pub(super) fn still(seconds: u64, goroutines: &[G]) -> Vec<Snapshot> {
    (0..=seconds).map(|at| look(100 + at, goroutines)).collect()
}

pub(super) fn names(findings: &[Finding]) -> Vec<(&'static str, usize)> {
    findings.iter().map(|f| (f.verdict.name(), f.count())).collect()
}

#[test]
fn a_nil_channel_is_for_ever_at_once() {
    let found = verdicts(&[look(1, &[g(20, 5, NIL), g(21, 5, NIL)])]);
    assert_eq!(names(&found), [("deadlock", 2)]);
    assert_eq!(found[0].oldest, AtLeastAtMost { at_least_ns: 0, at_most_ns: None });
    // `var forever chan struct{}; <-forever` in main keeps a program alive on purpose.
    assert!(verdicts(&[look(1, &[g(1, 1, NIL).by(0)])]).is_empty());
    // So does `select {}`, anywhere.
    assert!(verdicts(&still(20, &[g(20, 5, NO_CASES)])).is_empty());
}

#[test]
fn locks_in_a_circle_are_a_deadlock() {
    let (a, b) =
        (g(20, 5, MUTEX).on(0x1000, ObjectKind::Mutex), g(21, 6, MUTEX).on(0x9000, ObjectKind::Mutex));
    let looks = still(8, &[a.clone(), b.clone()]);
    let found = verdicts_with(&looks, &[(0x1000, &[20, 21]), (0x9000, &[20, 21])]);
    assert_eq!(names(&found), [("deadlock", 1), ("deadlock", 1)]);
    assert!(found[0].why.contains("inferred") && found[0].why.contains("goroutine 21"), "{}", found[0].why);
    // Without the circle they are stuck only.
    let found = verdicts_with(&looks, &[(0x1000, &[20, 21]), (0x9000, &[21])]);
    assert_eq!(names(&found), [("stuck", 1), ("stuck", 1)]);
    // Not long enough.
    assert!(verdicts_with(&still(3, &[a, b]), &[(0x1000, &[20, 21]), (0x9000, &[20, 21])]).is_empty());
}

#[test]
fn two_that_wait_for_one_lock_are_no_circle() {
    let both = [20, 21].map(|n| g(n, 5, MUTEX).on(0x1000, ObjectKind::Mutex));
    let found = verdicts_with(&still(8, &both), &[(0x1000, &[20, 21])]);
    assert_eq!(names(&found), [("stuck", 2)]);
}

#[test]
fn locks_that_others_may_hold_are_no_deadlock() {
    let (a, b) =
        (g(20, 5, MUTEX).on(0x1000, ObjectKind::Mutex), g(21, 6, MUTEX).on(0x9000, ObjectKind::Mutex));
    let looks = still(8, &[a, b]);
    let watch = watch_of(&looks);
    let last = looks.last().expect("looks");
    let stacks = [(0x1000, vec![20, 21]), (0x9000, vec![20, 21])].into_iter().collect();
    // Somebody outside refers to one lock of the two: the circle is named all the same.
    let held = References { unheld: vec![21], stacks, complete: true };
    let found = judge(&watch, last, (&References::default(), &held), &Unreached::default(), &[]);
    assert_eq!(names(&found), [("stuck", 1), ("stuck", 1)]);
    assert!(found.iter().all(|f| f.why.contains("goroutine 20 waits for the lock at 0x1000")), "{found:?}");
    assert!(found[0].why.contains("and may unlock them"), "{}", found[0].why);
    // Proven, it is that.
    let goids = [(20, 10), (21, 10)].into();
    let unreached = Unreached { goids, needed: 10, passes: 10 };
    let found = judge(&watch, last, (&References::default(), &held), &unreached, &[]);
    assert_eq!(names(&found), [("unreachable", 1), ("unreachable", 1)]);
    assert!(found[0].why.contains("in a cycle: goroutine 20 waits"), "{}", found[0].why);
}

#[test]
fn a_lock_that_is_contended_moves() {
    let looks: Vec<_> =
        (0..20).map(|at| look(at, &[g(20, 5, MUTEX).on(0, ObjectKind::Mutex).mark(at)])).collect();
    assert!(verdicts(&looks).is_empty());
}

#[test]
fn a_program_in_which_nothing_moves_is_not_stuck() {
    let frozen: Vec<_> =
        (0..20).map(|at| look(at, &[g(2, 2, SLEEP), g(20, 5, MUTEX).on(0, ObjectKind::Mutex)])).collect();
    assert!(verdicts(&frozen).is_empty(), "stopped by a signal, or without work");
}

#[test]
fn handlers_that_leave_one_behind_each_are_growing() {
    let looks: Vec<_> = (0..12)
        .map(|at| {
            let left: Vec<G> =
                (0..at * 3).map(|n| g(100 + n, 5, SEND).chan(0x1000 + n * 96, Op::Send).orphan()).collect();
            look(at, &left)
        })
        .collect();
    let found = verdicts(&looks);
    assert_eq!(names(&found)[0], ("growing", 30), "{found:?}");
    let growth = found[0].growth.expect("it grows");
    assert!(growth.low <= 3.0 && growth.high >= 3.0 && growth.low > 2.0, "{growth:?}");
    assert_eq!(found[0].oldest.at_most_ns, Some(11 * SECOND + 1_000_000));
    // The youngest three have not been seen twice: orphaned is all that can be said of them, not yet.
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].waits_on_total, 30);
    assert_eq!(found[0].waits_on.len(), Finding::MAX_WAITS);
}

#[test]
fn requests_that_come_and_go_do_not_grow() {
    // A rising load: more at once each second, each for less than a second.
    let looks: Vec<_> = (0..20_u64)
        .map(|at| {
            let now: Vec<G> = (0..at * 5)
                .map(|n| g(1000 * (at + 1) + n, 5, RECEIVE).chan(0x1000 + n * 96, Op::Receive))
                .collect();
            look(at, &now)
        })
        .collect();
    assert!(verdicts(&looks).is_empty());
}

#[test]
fn a_pool_that_filled_up_does_not_grow() {
    let looks: Vec<_> = (0..20_u64)
        .map(|at| {
            let workers: Vec<G> =
                (0..(at * 2).min(16)).map(|n| g(100 + n, 5, RECEIVE).chan(0x1000, Op::Receive)).collect();
            look(at, &workers)
        })
        .collect();
    for seen in 6..looks.len() {
        assert!(verdicts(&looks[..seen]).is_empty(), "after {seen} looks");
    }
}

#[test]
fn one_burst_is_no_growth() {
    let looks: Vec<_> = (0..20_u64)
        .map(|at| {
            let n = if at < 10 { 2 } else { 40 };
            let some: Vec<G> =
                (0..n).map(|n| g(100 + n, 5, RECEIVE).chan_of(0x1000 + n * 96, Op::Receive, 0, 0)).collect();
            look(at, &some)
        })
        .collect();
    assert!(verdicts(&looks).is_empty());
}

#[test]
fn connections_are_their_clients_to_keep() {
    // One more connection each second: a reader in IO wait, and a writer that it made.
    let looks: Vec<_> = (0..20_u64)
        .map(|at| {
            let all: Vec<G> = (0..at)
                .flat_map(|n| {
                    let reader = g(100 + 2 * n, 5, IO).by(3);
                    let writer = g(101 + 2 * n, 6, SELECT).chan(0x1000 + n * 96, Op::Receive).by(100 + 2 * n);
                    [reader, writer]
                })
                .collect();
            look(at, &all)
        })
        .collect();
    assert!(verdicts(&looks).is_empty());
}

#[test]
fn what_an_acceptor_leaves_behind_grows_when_its_connections_do_not() {
    let looks = |connections: bool| -> Vec<Snapshot> {
        (0..12_u64)
            .map(|at| {
                let mut all = vec![g(3, 4, IO)];
                for n in 0..at * 2 {
                    all.push(g(101 + 2 * n, 6, RECEIVE).chan(0x1000 + n * 96, Op::Receive).by(3));
                    if connections {
                        all.push(g(100 + 2 * n, 5, IO).by(101 + 2 * n));
                    }
                }
                look(at, &all)
            })
            .collect()
    };
    assert!(verdicts(&looks(true)).is_empty());
    assert_eq!(names(&verdicts(&looks(false))), [("growing", 20)]);
}

#[test]
fn without_known_creators_what_grows_with_connections_is_theirs() {
    let looks = |connections: bool| -> Vec<Snapshot> {
        (0..12_u64)
            .map(|at| {
                let mut all: Vec<G> = Vec::new();
                for n in 0..at * 2 {
                    all.push(g(101 + 2 * n, 6, RECEIVE).chan(0x1000 + n * 96, Op::Receive));
                    if connections {
                        all.push(g(100 + 2 * n, 5, IO));
                    }
                }
                let mut snapshot = look(at, &all);
                snapshot.goroutines.iter_mut().for_each(|g| g.parent_goid = None);
                snapshot
            })
            .collect()
    };
    assert!(verdicts(&looks(true)).is_empty());
    assert_eq!(names(&verdicts(&looks(false))), [("growing", 20)]);
}

#[test]
fn a_sender_that_nobody_refers_to_is_orphaned() {
    let one = g(20, 5, SEND).chan(0x1000, Op::Send).orphan();
    let looks = still(1, std::slice::from_ref(&one));
    let found = verdicts(&looks);
    assert_eq!(names(&found), [("orphaned", 1)]);
    assert!(
        found[0].why.contains("Suspected, not proven") && found[0].why.contains("heap was not searched"),
        "{}",
        found[0].why
    );
    assert_eq!(found[0].oldest.at_least_ns, SECOND - 1_000_000);
    // One look says nothing: whoever will receive may be running.
    assert!(verdicts(&[look(1, std::slice::from_ref(&one))]).is_empty());
    let watch = watch_of(&looks);
    // The heap was searched.
    let unheld = References { complete: true, unheld: vec![20], ..References::default() };
    let searched = Unreached { passes: 10, needed: 10, ..Unreached::default() };
    let found = judge(&watch, &looks[1], (&unheld, &unheld), &searched, &[]);
    let why = &found[0].why;
    assert!(why.contains("but an object on the heap does") && !why.contains("not searched"), "{why}");
    // Somebody refers to it.
    let held = References { complete: true, ..References::default() };
    assert!(judge(&watch, &looks[1], (&held, &held), &Unreached::default(), &[]).is_empty());
    // Not everything was searched.
    let torn = References { unheld: vec![20], ..References::default() };
    assert!(judge(&watch, &looks[1], (&torn, &torn), &Unreached::default(), &[]).is_empty());
    // Its creator lives, and may hold the channel on the heap.
    assert!(verdicts(&still(1, &[g(20, 5, SEND).chan(0x1000, Op::Send)])).is_empty());
}

#[test]
fn receivers_are_orphaned_when_it_happens_again() {
    let receiver = |n: u64| g(20 + n, 5, RECEIVE).chan(0x1000 + n * 96, Op::Receive).orphan();
    assert_eq!(names(&verdicts(&still(1, &[receiver(0), receiver(1)]))), [("orphaned", 2)]);
    // A single worker of a structure on the heap looks the same.
    assert!(verdicts(&still(60, &[receiver(0)])).is_empty());
    // Idle workers of a pool, whoever started them.
    let pool: Vec<G> = (0..8).map(|n| g(20 + n, 5, RECEIVE).chan(0x1000, Op::Receive).orphan()).collect();
    assert!(verdicts(&still(60, &pool)).is_empty());
}

#[test]
fn selects_are_orphaned_unless_something_may_end_them() {
    let select = |n: u64| g(20 + n, 5, SELECT).chan(0x1000 + n * 960, Op::Receive).orphan();
    let twice = |f: &dyn Fn(u64) -> G| still(2, &[f(0), f(1)]);
    let dead = |n: u64| select(n).chan(0x1100 + n * 960, Op::Receive);
    assert_eq!(names(&verdicts(&twice(&dead))), [("orphaned", 2)]);
    // A timer's channel.
    let timer = |n: u64| select(n).chan_of(0x1100 + n * 960, Op::Receive, 24, 1);
    assert!(verdicts(&twice(&timer)).is_empty());
    // A context's, or another signal to stop.
    let context = |n: u64| select(n).chan_of(0x1100 + n * 960, Op::Receive, 0, 0);
    assert!(verdicts(&twice(&context)).is_empty());
    // In a pool's function: it is the pool that refers to what they wait on.
    let looks = twice(&dead);
    let mut watch = watch_of(&looks);
    assert_eq!(suspects(&watch, &looks[2]).0.len(), 2);
    watch.know_places(|_| Some(Awaited::SqlConnection));
    assert!(suspects(&watch, &looks[2]).0.is_empty());
}

#[test]
fn a_sender_is_stuck_when_it_has_stood_long() {
    let sender = g(20, 5, SEND).chan(0x1000, Op::Send);
    assert_eq!(names(&verdicts(&still(8, std::slice::from_ref(&sender)))), [("stuck", 1)]);
    assert!(verdicts(&still(4, std::slice::from_ref(&sender))).is_empty(), "not long enough");
    let slow: Vec<_> = (0..20).map(|at| look(at, &[sender.clone().mark(at / 4)])).collect();
    assert!(verdicts(&slow).is_empty(), "a slow consumer");
}

#[test]
fn a_waiter_for_a_group_is_stuck_when_nobody_refers_to_it() {
    let waiter = g(20, 5, GROUP).on(0x1000, ObjectKind::WaitGroup);
    assert_eq!(names(&verdicts(&still(8, std::slice::from_ref(&waiter)))), [("stuck", 1)]);
    // Main waits for its workers, as main does.
    assert!(verdicts(&still(60, &[g(1, 1, GROUP).by(0).on(0x1000, ObjectKind::WaitGroup)])).is_empty());
    // Where there is no address, only those that outlive their like are told.
    let unknown = g(20, 5, GROUP).on(0, ObjectKind::WaitGroup);
    assert!(verdicts(&still(60, std::slice::from_ref(&unknown))).is_empty());
    let looks: Vec<_> = (0..20_u64)
        .map(|at| look(at, &[unknown.clone().orphan(), g(100 + at, 5, GROUP).on(0, ObjectKind::WaitGroup)]))
        .collect();
    let found = verdicts(&looks);
    assert_eq!(names(&found), [("stuck", 1)]);
    assert!(found[0].why.contains("no search for what references it"), "{}", found[0].why);
}

#[test]
fn who_outlives_its_siblings_by_far_is_stuck() {
    let looks: Vec<_> = (0..20_u64)
        .map(|at| {
            let request = g(100 + at, 5, RECEIVE).chan_of(0x5000 + at * 96, Op::Receive, 0, 0);
            look(at, &[g(20, 5, RECEIVE).chan_of(0x1000, Op::Receive, 0, 0), request])
        })
        .collect();
    let found = verdicts(&looks);
    assert_eq!(names(&found), [("stuck", 1)], "{found:?}");
    assert!(found[0].why.contains("of the same creation site exited meanwhile"), "{}", found[0].why);
    assert!(verdicts(&looks[..9]).is_empty(), "five times as long as the longest-lived");
    // Without siblings that end, a receiver may be meant to wait: for a signal, for the end of the program.
    assert!(verdicts(&still(60, &[g(20, 5, RECEIVE).chan_of(0x1000, Op::Receive, 0, 0)])).is_empty());
}

#[test]
fn what_wakes_by_itself_or_from_outside_is_healthy() {
    let healthy: Vec<G> =
        (0..40).map(|n| g(20 + n, 5, if n % 2 == 0 { IO } else { SLEEP }).orphan()).collect();
    assert!(verdicts(&still(60, &healthy)).is_empty());
    let growing: Vec<_> = (0..20_u64)
        .map(|at| look(at, &(0..at * 4).map(|n| g(20 + n, 5, IO).orphan()).collect::<Vec<_>>()))
        .collect();
    assert!(verdicts(&growing).is_empty(), "connections");
}

#[test]
fn the_worst_comes_first_and_nobody_is_told_twice() {
    let looks: Vec<_> = (0..12)
        .map(|at| {
            let mut all: Vec<G> =
                (0..at * 3).map(|n| g(100 + n, 5, SEND).chan(0x10_000 + n * 96, Op::Send).orphan()).collect();
            all.push(g(20, 6, NIL));
            all.push(g(21, 7, MUTEX).on(0x1000, ObjectKind::Mutex));
            all.push(g(22, 8, SEND).chan(0x2000, Op::Send).orphan());
            look(at, &all)
        })
        .collect();
    let found = verdicts(&looks);
    assert_eq!(names(&found), [("deadlock", 1), ("growing", 30), ("stuck", 1), ("stuck", 1)]);
    assert!(found[3].why.contains("that created it has exited"), "{}", found[3].why);
    let mut goids: Vec<u64> = found.iter().flat_map(|f| f.goids.clone()).collect();
    let many = goids.len();
    goids.sort_unstable();
    goids.dedup();
    assert_eq!(goids.len(), many);
}

#[test]
fn without_knowing_who_moves_nobody_is_accused() {
    let unknown: Vec<G> = [
        g(20, 5, MUTEX).on(0x1000, ObjectKind::Mutex),
        g(21, 6, SEND).chan(0x2000, Op::Send).orphan(),
        g(22, 7, NIL),
    ]
    .map(|g| g.mark(0))
    .to_vec();
    assert_eq!(names(&verdicts(&still(60, &unknown))), [("deadlock", 1)]);
}

#[test]
fn looks_out_of_order_and_reused_ids_do_no_harm() {
    let mut watch = watch_of(&still(3, &[g(20, 5, SEND).chan(0x1000, Op::Send)]));
    let before = watch.looks();
    watch.observe(&look(50, &[]));
    assert_eq!(watch.looks(), before, "older than the last");
    watch.observe(&Snapshot { monotonic_ns: 900 * SECOND, ..Snapshot::default() });
    let empty = Snapshot::default();
    assert!(
        judge(&watch, &empty, (&References::default(), &References::default()), &Unreached::default(), &[])
            .is_empty()
    );
}

#[test]
fn the_graph_puts_equal_ones_together() {
    let mut all: Vec<G> = (0..100).map(|n| g(100 + n, 5, SEND).chan(0x10_000 + n * 96, Op::Send)).collect();
    all.extend((0..3).map(|n| g(20 + n, 6, RECEIVE).chan(0x1000, Op::Receive)));
    let snapshot = look(1, &all);
    let references = References {
        stacks: [(0x1000, vec![1, 20, 21, 22])].into_iter().collect(),
        complete: true,
        ..References::default()
    };
    let graph = Graph::new(&snapshot, Some(&references));
    assert_eq!(graph.groups.len(), 3, "senders, receivers, and main, which refers to their channel");
    let mut objects: Vec<usize> = graph.objects.iter().map(|o| o.count).collect();
    objects.sort_unstable();
    assert_eq!(objects, [1, 100]);
    let mut edges: Vec<(EdgeKind, usize)> = graph.edges.iter().map(|e| (e.kind, e.count)).collect();
    edges.sort_unstable();
    assert_eq!(
        edges,
        [
            (EdgeKind::Waits(Some(Op::Send)), 100),
            (EdgeKind::Waits(Some(Op::Receive)), 3),
            (EdgeKind::Refers, 1)
        ]
    );
}

#[test]
fn verdicts_have_names_in_the_order_of_impact() {
    assert!(Verdict::Unreachable < Verdict::Deadlock && Verdict::Stuck < Verdict::Orphaned);
    for verdict in Verdict::ALL {
        assert_eq!(Verdict::from_name(verdict.name()), Some(verdict));
    }
    assert_eq!(Verdict::from_name("leak"), None);
}

#[test]
fn a_watch_that_is_thinned_out_comes_to_the_same_verdicts() {
    // One leaks every ten seconds, one is there from the beginning, one handler comes and goes.
    let at = |n: u64| {
        let mut all = vec![g(3, 9, SEND).orphan().chan(0xc000, Op::Send), g(1000 + n, 5, RECEIVE).mark(n)];
        all.extend((0..n / 10).map(|k| g(10 + k, 3, RECEIVE).chan(0xd000 + k, Op::Receive).mark(k + 1)));
        look(n, &all)
    };
    let mut whole = Watch::new(Settings { stuck_after_ns: 30 * SECOND }, &REASONS);
    let mut thinned = Watch::new(Settings { stuck_after_ns: 30 * SECOND }, &REASONS);
    for n in 0..600 {
        whole.observe(&at(n));
        thinned.observe(&at(n));
        if thinned.looks() >= 64 {
            thinned.thin();
        }
    }
    let last = at(599);
    let none = References::default();
    let judged = |watch: &Watch| judge(watch, &last, (&none, &none), &Unreached::default(), &[]);
    let (of_whole, of_thinned) = (judged(&whole), judged(&thinned));
    assert!(thinned.looks() < 64 && whole.looks() == 600, "{} looks", thinned.looks());
    assert_eq!(names(&of_whole), names(&of_thinned));
    assert_eq!(names(&of_whole), [("growing", 59)]);
    for (a, b) in of_whole.iter().zip(&of_thinned) {
        assert_eq!((a.entry_pc, &a.stack), (b.entry_pc, &b.stack));
        assert!(b.oldest.at_least_ns <= a.oldest.at_least_ns, "{b:?}");
        assert!(b.oldest.at_least_ns * 4 >= a.oldest.at_least_ns * 3, "{b:?}");
        assert!(b.oldest.at_most_ns >= a.oldest.at_most_ns, "{b:?}");
        let (a, b) = (a.growth.expect("grows"), b.growth.expect("grows"));
        assert!(b.low > 0.05 && b.high < 0.2 && a.low <= 0.1 && a.high >= 0.1, "{a:?} {b:?}");
    }
    // The handlers' places are all the same; those of a site that is gone are forgotten.
    let before = thinned.places();
    for n in 600..700 {
        thinned.observe(&look(n, &[g(5000 + n, 100 + n, RECEIVE).mark(n)]));
        if thinned.looks() >= 64 {
            thinned.thin();
        }
    }
    assert!(thinned.places() < before + 64, "{} places", thinned.places());
}
