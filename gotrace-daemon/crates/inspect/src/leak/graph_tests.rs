//! The wait-for graph of goroutines made by hand.

use super::{
    tests::{MUTEX, RECEIVE, SELECT, SEND, g, look},
    *,
};
use crate::{
    heap::{Evidence, LockHolder},
    snapshot::{ObjectKind, Op, References, StackFrame, WaitObject},
};

#[test]
fn the_graph_says_who_holds_a_lock_and_what_of_it_is_left_out() {
    let lock = |goid, lock| g(goid, 7, MUTEX).on(lock, ObjectKind::Mutex);
    let mut all =
        vec![lock(30, 0x500), lock(31, 0x500), lock(32, 0x900), g(40, 8, SEND).chan(0x1000, Op::Send)];
    all.push(g(50, 9, RECEIVE).chan(0x2000, Op::Receive));
    let snapshot = look(1, &all);
    let frame = StackFrame::returning_to(0x77);
    let holder = |goid| LockHolder { goid, frame, evidence: Evidence::Locked };
    let references =
        References { stacks: [(0x500, vec![40, 50])].into_iter().collect(), ..References::default() };
    // 40 holds the lock that 30 and 31 wait for; 50 only refers to it.
    let graph = Graph::with_holders(&snapshot, Some(&references), &[(0x500, vec![holder(40)])]);
    let object = |address| graph.objects.iter().position(|o| o.example.address == address).expect("a node");
    let group = |goid| graph.groups.iter().position(|g| g.goids.contains(&goid)).expect("a group");
    let mut of_lock: Vec<Edge> = graph.edges.iter().copied().filter(|e| e.object == object(0x500)).collect();
    of_lock.sort_by_key(|e| e.kind);
    let edge =
        |goid, kind, count, frame| Edge { group: group(goid), object: object(0x500), kind, count, frame };
    let holds = EdgeKind::Holds(Evidence::Locked);
    let lock = EdgeKind::Waits(Some(Op::Lock));
    let expected =
        [edge(30, lock, 2, None), edge(50, EdgeKind::Refers, 1, None), edge(40, holds, 1, Some(frame))];
    assert_eq!(of_lock, expected);
    // A lock that is held is another node than one of which nobody is known to hold it.
    assert_ne!(object(0x500), object(0x900));

    let locks = |o: &WaitObject| o.kind == ObjectKind::Mutex;
    let (small, left) = graph.clone().bounded(locks, (1, 2));
    assert_eq!(small.objects.iter().map(|o| o.example.address).collect::<Vec<_>>(), [0x500]);
    let goids: Vec<&[u64]> = small.groups.iter().map(|g| &*g.goids).collect();
    assert_eq!(goids, [&[30, 31, 32][..], &[40]], "the holder, and most of those that wait");
    assert_eq!(small.edges.iter().map(|e| (e.group, e.object)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
    assert_eq!(left, LeftOut { objects: 1, groups: 1, goroutines: 1 }, "0x900, and 50");
    let (whole, left) = graph.clone().bounded(|_| true, (100, 100));
    assert_eq!((whole, left), (graph, LeftOut::default()));
}

#[test]
fn one_that_waits_on_several_is_counted_once() {
    let one = g(20, 6, SELECT).chan(0x1000, Op::Receive).chan(0x2000, Op::Receive);
    let graph = Graph::new(&look(1, &[one]), None);
    let [node] = &graph.objects[..] else { panic!("both are alike") };
    assert_eq!((node.count, node.waiting, graph.edges[0].count), (2, 1, 1));
}
