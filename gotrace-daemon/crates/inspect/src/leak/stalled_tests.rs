//! Pools that hand out nothing, and those that serve.

use super::{
    tests::{G, RECEIVE, SELECT, SEND, SLEEP, g, look, still, watch_of},
    *,
};
use crate::{
    heap::Evidence,
    snapshot::{Op, References, Snapshot, StackFrame, Status},
};

/// Creation site of those that wait for a connection, and of those that keep one.
const CALLER: u64 = 5;
const KEEPER: u64 = 6;

fn caller(n: u64) -> G {
    g(100 + n, CALLER, SELECT).chan(0x1000 + n * 96, Op::Receive)
}

fn keeper(n: u64) -> G {
    g(50 + n, KEEPER, RECEIVE).chan(0x9000 + n * 96, Op::Receive)
}

/// Two keep the connections, ten wait for one.
fn dry() -> Vec<G> {
    (0..2).map(keeper).chain((0..10).map(caller)).collect()
}

/// Pools of a watch in which callers stand at a known place.
fn stalls_of(looks: &[Snapshot]) -> (Watch, Vec<Stall>) {
    let mut watch = watch_of(looks);
    watch.know_places(|stack| {
        (stack.first().map(|f| f.pc()) == Some(CALLER * 16)).then_some(Awaited::SqlConnection)
    });
    let stalls = stalls(&watch, looks.last().expect("a look"));
    (watch, stalls)
}

fn holder(goid: u64, evidence: Evidence) -> Holder {
    Holder {
        goid,
        entry_pc: KEEPER,
        stack: Vec::new(),
        frame: StackFrame::at(KEEPER),
        status: Status::Waiting,
        wait_reason: Some(RECEIVE),
        evidence,
        waits_for: None,
        waits_on: Vec::new(),
    }
}

/// Who is left to be told where these keep the members.
fn unserved(looks: &[Snapshot], holders: &[(u64, Evidence)]) -> Vec<Stall> {
    let (watch, mut stalls) = stalls_of(looks);
    for stall in &mut stalls {
        stall.holders = holders.iter().map(|&(goid, evidence)| holder(goid, evidence)).collect();
        stall.searched = true;
    }
    stalls.retain_mut(|stall| !is_served(&watch, looks.last().expect("a look"), stall));
    stalls
}

#[test]
fn a_pool_that_hands_out_nothing_is_told_with_who_keeps_its_members() {
    let looks = still(8, &dry());
    let stalls = unserved(&looks, &[(50, Evidence::Refers), (51, Evidence::Refers)]);
    assert_eq!(stalls.len(), 1);
    assert_eq!(stalls[0].goids, (100..110).collect::<Vec<_>>());
    let (watch, _) = stalls_of(&looks);
    let none = References::default();
    let last = looks.last().expect("a look");
    let found = judge(&watch, last, (&none, &none), &Unreached::default(), &stalls);
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = &found[0];
    assert_eq!((finding.verdict, finding.count()), (Verdict::Stalled, 10));
    assert_eq!(finding.awaited.map(Awaited::text), Some("waits for a database connection"));
    assert_eq!(finding.holders.len(), 2);
    assert_eq!(
        finding.why,
        "10 goroutines wait for a database connection, and none of them has got one for at least 8.0 s. The 2 \
         goroutines found to hold its connections have not run either."
    );
    // Where nobody was found that keeps one, one alone is not told.
    assert_eq!(unserved(&looks, &[]).len(), 1);
    assert!(unserved(&still(8, &[keeper(0), caller(0)]), &[]).is_empty());
}

#[test]
fn a_pool_serves_where_one_got_a_member_or_who_keeps_one_moves() {
    // One of them is gone in the fifth second.
    let looks: Vec<Snapshot> =
        (0..9).map(|at| look(100 + at, &dry()[..if at < 5 { 12 } else { 11 }])).collect();
    assert!(stalls_of(&looks).1.is_empty());
    // One has run, and waits again.
    let ran = |at: u64| dry().into_iter().map(|g| if at < 5 { g } else { g.mark(at) }).collect::<Vec<_>>();
    let looks: Vec<Snapshot> = (0..9).map(|at| look(100 + at, &ran(at))).collect();
    assert!(stalls_of(&looks).1.is_empty());
    // Not for long yet.
    assert!(stalls_of(&still(3, &dry())).1.is_empty());
    // Who keeps a member works.
    let works = |at: u64| [&dry()[1..], &[g(50, KEEPER, SLEEP).mark(at)]].concat();
    let looks: Vec<Snapshot> = (0..9).map(|at| look(100 + at, &works(at))).collect();
    assert_eq!(stalls_of(&looks).1.len(), 1);
    assert!(unserved(&looks, &[(50, Evidence::Refers), (51, Evidence::Refers)]).is_empty());
}

#[test]
fn a_semaphore_is_told_where_as_many_stand_as_it_lets_in() {
    let sender = |n: u64| g(200 + n, 7, SEND).chan_of(0x5000, Op::Send, 0, 2);
    let all: Vec<G> = (0..2).map(keeper).chain((0..3).map(sender)).collect();
    let looks = still(8, &all);
    let may = |goids: &[u64]| goids.iter().map(|&goid| (goid, Evidence::Candidate)).collect::<Vec<_>>();
    let told = unserved(&looks, &may(&[2, 50, 51]));
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].awaited, told[0].channel), (Awaited::Token, Some((0x5000, 2))));
    let holders: Vec<u64> = told[0].holders.iter().map(|h| h.goid).collect();
    assert_eq!(holders, [50, 51], "the one that moves is none");
    assert!(unserved(&looks, &may(&[2, 50])).is_empty(), "who took the other token is not known");
    // A channel of values is no semaphore.
    let sender = |n: u64| g(200 + n, 7, SEND).chan_of(0x5000, Op::Send, 8, 2);
    assert!(stalls_of(&still(8, &[sender(0), sender(1)])).1.is_empty());
}
