//! Tests of the goroutine table: lives, traces, losses, size.

use super::*;
use crate::decode::{Frames, decode};
use gotrace_common::{CreateRecord, Header, kind};

const SECOND: u64 = 1_000_000_000;

fn create(goid: u64, parent_goid: u64, time_ns: u64) -> Event<'static> {
    Event::Create(Create {
        process: 1,
        time_ns,
        goid,
        parent_goid,
        created_pc: 0x100,
        entry_pc: 0x200,
        coroutine: false,
    })
}

fn exit(goid: u64, time_ns: u64) -> Event<'static> {
    Event::Exit(Exit {
        process: 1,
        time_ns,
        goid,
        wait_total_ns: 5,
        schedule_total_ns: 0,
        wait_count: 2,
        cpu_ns: 0,
        throttled_ns: 0,
        blocked_total_ns: 0,
        syscall_total_ns: 0,
        whole: false,
    })
}

fn ended(out: &[Output]) -> &Ended {
    match out.last() {
        Some(Output::Ended(ended)) => ended,
        other => panic!("expected the end of a goroutine, got {other:?}"),
    }
}

#[test]
fn a_life_is_reported_once_with_its_parent_and_site() {
    let (mut table, mut out) = (Table::new(10 * SECOND), Vec::new());
    table.apply(&create(1, 0, 100), &mut out);
    table.apply(&create(7, 1, 200), &mut out);
    assert_eq!(table.alive(), 2);
    table.apply(&exit(7, 900), &mut out);
    assert_eq!(out.len(), 1);
    let e = ended(&out);
    assert_eq!(
        (e.goid, e.parent_goid, e.birth_ns, e.exit_ns, e.created_pc, e.entry_pc),
        (7, 1, 200, 900, 0x100, 0x200)
    );
    assert_eq!((e.wait_total_ns, e.wait_count), (5, 2));
    assert_eq!(table.alive(), 1);
    assert_eq!(table.totals(), Totals { born: 2, died: 1, ..Totals::default() });
}

#[test]
fn traces_begin_at_main_at_old_creators_and_at_the_unknown() {
    let (mut table, mut out) = (Table::new(10 * SECOND), Vec::new());
    table.apply(&create(1, 0, 0), &mut out);
    table.apply(&create(2, 1, 1), &mut out); // by main: begins
    table.apply(&create(3, 2, 2), &mut out); // by 2: child
    table.apply(&create(4, 3, 3), &mut out); // by 3: same trace
    table.apply(&create(5, 2, 11 * SECOND), &mut out); // by 2, old by now: begins, links
    table.apply(&create(6, 99, 4), &mut out); // by one that was never seen: begins
    let roots: Vec<u64> = [1, 2, 3, 4, 5, 6].into_iter().map(|g| table.trace_root(g)).collect();
    assert_eq!(roots, [1, 2, 2, 2, 5, 6]);
    for (goid, creator_root) in [(1, None), (2, Some(1)), (4, None), (5, Some(2)), (6, Some(99))] {
        table.apply(&exit(goid, 20 * SECOND), &mut out);
        assert_eq!(ended(&out).creator_root, creator_root, "goroutine {goid}");
    }
}

#[test]
fn deaths_of_strangers_are_counted_and_make_no_span() {
    let (mut table, mut out) = (Table::new(SECOND), Vec::new());
    table.apply(&exit(9, 5), &mut out);
    assert!(out.is_empty());
    assert_eq!(table.totals().died_unknown, 1);
}

#[test]
fn a_lost_death_is_mended_by_the_next_birth_of_its_id() {
    let (mut table, mut out) = (Table::new(SECOND), Vec::new());
    table.apply(&create(9, 1, 5), &mut out);
    table.apply(&create(9, 1, 6), &mut out);
    assert_eq!((table.alive(), table.totals().repaired), (1, 1));
    assert_eq!(table.sites()[1].alive, 1);
}

#[test]
fn who_waits_is_counted_by_reason_and_site() {
    let (mut table, mut out) = (Table::new(SECOND), Vec::new());
    table.apply(&create(2, 1, 5), &mut out);
    for goid in [2, 77] {
        let wait = OpenWait { process: 1, time_ns: 50, goid, start_ns: 9, reason: 14, g: 0 };
        table.apply(&Event::OpenWait(wait), &mut out);
    }
    assert_eq!(table.waiting().collect::<Vec<_>>(), [(14, 2)]);
    assert_eq!(table.sites()[1].waiting.get(&14), Some(&1));
    assert_eq!((table.alive(), table.alive_birth_unseen()), (2, 1));
    table.begin_open_waits();
    assert_eq!(table.waiting().count(), 0);
}

#[test]
fn what_finds_no_room_is_counted_and_its_waits_are_told_by_reason() {
    let (mut table, mut out) = (Table::new(SECOND).with_room_for(1), Vec::new());
    let wait = |goid| {
        Event::Wait(Wait {
            process: 1,
            goid,
            start_ns: 10,
            end_ns: 30,
            wake_ns: 0,
            reason: 14,
            waker: WakerKind::Unknown,
            waker_goid: 0,
            cpu_ns: 0,
            socket: None,
            frames: Frames::default(),
        })
    };
    table.apply(&create(2, 1, 5), &mut out);
    table.apply(&create(3, 1, 5), &mut out);
    table.apply(&wait(2), &mut out);
    table.apply(&wait(3), &mut out);
    assert_eq!((table.totals().refused, out.len()), (2, 1), "a birth and a wait");
    assert_eq!(table.waits().map(|(reason, h)| (reason, h.count)).collect::<Vec<_>>(), [(14, 2)]);
}

#[test]
fn a_million_goroutines_take_less_than_200_bytes_each() {
    let (mut table, mut out) = (Table::new(SECOND), Vec::new());
    for goid in 0..1_000_000 {
        table.apply(&create(goid, 1, 5), &mut out);
    }
    let bytes = table.memory_bytes() as u64 / table.alive();
    assert!(bytes <= 200, "{bytes} bytes");
}

#[test]
fn records_and_events_agree() {
    let header = Header { kind: kind::CREATE, arg: 0, count: 0, waker: 0, process: 1, time_ns: 5 };
    let record = CreateRecord { header, goid: 3, parent_goid: 1, created_pc: 1, entry_pc: 2 };
    // SAFETY: the record is repr(C) without padding.
    let bytes =
        unsafe { std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<CreateRecord>()) };
    let (mut table, mut out) = (Table::new(SECOND), Vec::new());
    table.apply(&decode(bytes).expect("a record"), &mut out);
    assert_eq!(table.alive(), 1);
}
