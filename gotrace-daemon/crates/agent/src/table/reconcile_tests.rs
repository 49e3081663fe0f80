//! Tests of snapshots held against the table, in every order that events and snapshots can have.

use super::*;
use crate::{
    decode::{Create, Event, Exit, OpenWait, Wait},
    table::{Output, Totals},
};
use gotrace_common::WakerKind;

const MS: u64 = 1_000_000;

fn create(goid: u64, time_ns: u64) -> Event<'static> {
    Event::Create(Create {
        process: 1,
        time_ns,
        goid,
        parent_goid: 1,
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
        wait_total_ns: 0,
        schedule_total_ns: 0,
        wait_count: 0,
        cpu_ns: 0,
        throttled_ns: 0,
        blocked_total_ns: 0,
        syscall_total_ns: 0,
        whole: false,
    })
}

fn open_wait(goid: u64, start_ns: u64) -> Event<'static> {
    Event::OpenWait(OpenWait { process: 1, time_ns: start_ns, goid, start_ns, reason: 14, g: 0 })
}

fn sighting(goid: u64) -> Sighting {
    Sighting { goid, parent_goid: 1, created_pc: 0x100, entry_pc: 0x200, wait: None }
}

fn sightings(goids: impl IntoIterator<Item = u64>) -> Vec<Sighting> {
    goids.into_iter().map(sighting).collect()
}

/// A snapshot of a millisecond, the n-th, each 100 ms after the last.
fn look(n: u64) -> Look {
    Look { began_ns: n * 100 * MS, ended_ns: (n * 100 + 1) * MS, complete: true }
}

fn table() -> (Table, Vec<Output>) {
    (Table::new(10_000 * MS), Vec::new())
}

#[test]
fn the_first_snapshot_seeds_and_makes_up_no_births() {
    let (mut table, mut out) = table();
    table.watch_exits();
    assert!(!table.is_seeded());
    table.reconcile(look(1), &sightings([1, 5, 6]));
    assert!(table.is_seeded());
    assert_eq!(table.alive(), 3);
    assert_eq!(table.totals(), Totals::default());
    let site = &table.sites()[1];
    assert_eq!((site.alive, site.born, site.oldest_is_lower_bound), (3, 0, true));
    assert_eq!(site.oldest_birth_ns, Some(101 * MS), "alive since then at the latest");
    // A death of it is a death, but no span: its birth was not seen.
    table.apply(&exit(5, 150 * MS), &mut out);
    assert!(out.is_empty());
    assert_eq!((table.alive(), table.totals().died, table.totals().died_unknown), (2, 1, 0));
    // Its child begins a trace.
    table.apply(&create(9, 160 * MS), &mut out);
    table.apply(&exit(9, 170 * MS), &mut out);
    assert!(
        matches!(&out[..], [Output::Ended(e)] if e.goid == 9 && e.root == 9 && e.creator_root == Some(1))
    );
}

#[test]
fn who_died_during_the_snapshot_does_not_come_back() {
    let (mut table, mut out) = table();
    table.watch_exits();
    table.apply(&exit(5, 100 * MS + 10), &mut out); // read, then gone: never known
    table.apply(&create(7, 100 * MS + 20), &mut out);
    table.apply(&exit(7, 100 * MS + 30), &mut out); // born, read, gone
    table.begin_reconcile(look(1));
    table.sight(&sightings([1, 5]), true);
    table.apply(&exit(8, 101 * MS), &mut out); // between two parts of the sightings
    table.sight(&sightings([7, 8]), true);
    table.end_reconcile();
    assert_eq!(table.alive(), 1);
    assert!(table.goroutines.contains_key(&1));
    // What was remembered is forgotten.
    table.apply(&exit(9, 120 * MS), &mut out);
    assert!(table.reconciling.is_none());
}

#[test]
fn who_was_born_during_the_snapshot_stays_whether_seen_or_not() {
    let (mut table, mut out) = table();
    for n in 1..4 {
        table.watch_exits();
        // Not in the list yet when it was read.
        table.apply(&create(100 + n, n * 100 * MS + 10), &mut out);
        table.apply(&create(200 + n, n * 100 * MS + 20), &mut out);
        let seen = (1..n).map(|m| 100 + m).chain((1..=n).map(|m| 200 + m));
        table.reconcile(look(n), &sightings(seen));
    }
    assert_eq!(table.alive(), 6);
    assert!(!table.doubts());
    assert_eq!((table.totals().births_mended, table.totals().deaths_mended), (0, 0));
    table.apply(&exit(101, 350 * MS), &mut out);
    assert!(matches!(&out[..], [Output::Ended(e)] if e.birth_ns == 100 * MS + 10), "the birth that was seen");
}

#[test]
fn a_lost_death_is_mended_by_the_second_snapshot_that_misses_it() {
    let (mut table, mut out) = table();
    table.reconcile(look(0), &[]);
    table.apply(&create(5, 10 * MS), &mut out);
    table.apply(&create(6, 10 * MS), &mut out);
    table.reconcile(look(1), &sightings([6]));
    assert_eq!(table.alive(), 2, "one look may have been wrong");
    assert!(table.doubts());
    table.reconcile(look(2), &sightings([6]));
    assert_eq!(table.alive(), 1);
    assert!(!table.doubts());
    let totals = table.totals();
    assert_eq!((totals.born, totals.died, totals.deaths_mended), (2, 1, 1));
    assert_eq!((table.sites()[1].alive, table.sites()[1].died), (1, 1));
    assert!(out.is_empty(), "nobody saw when it died");
}

#[test]
fn who_died_before_the_last_probe_was_in_place_was_not_lost() {
    let (mut table, mut out) = table();
    table.apply(&create(5, 10 * MS), &mut out);
    table.apply(&create(6, 10 * MS), &mut out);
    table.begin(20 * MS);
    for n in 1..3 {
        table.reconcile(look(n), &sightings([6]));
    }
    assert_eq!((table.alive(), table.totals().died, table.totals().deaths_mended), (1, 1, 0));
    for n in 3..5 {
        table.reconcile(look(n), &[]);
    }
    assert_eq!((table.alive(), table.totals().died, table.totals().deaths_mended), (0, 2, 1));
}

#[test]
fn a_sign_of_life_takes_the_doubt_away() {
    let (mut table, mut out) = table();
    table.reconcile(look(0), &[]);
    for goid in [5, 6] {
        table.apply(&create(goid, 10 * MS), &mut out);
    }
    table.reconcile(look(1), &[]);
    table.apply(&open_wait(5, 150 * MS), &mut out);
    let wait = Wait {
        process: 1,
        goid: 6,
        start_ns: 150 * MS,
        end_ns: 160 * MS,
        reason: 14,
        waker: WakerKind::Unknown,
        waker_goid: 0,
        cpu_ns: 0,
        wake_ns: 0,
        socket: None,
        frames: crate::decode::Frames::default(),
    };
    table.apply(&Event::Wait(wait), &mut out);
    table.reconcile(look(2), &[]);
    assert_eq!(table.alive(), 2, "missed once since it was heard of");
    table.reconcile(look(3), &sightings([5, 6]));
    table.reconcile(look(4), &[]);
    assert_eq!(table.alive(), 2, "two misses in a row");
}

#[test]
fn a_death_that_comes_late_is_not_mended_too() {
    let (mut table, mut out) = table();
    table.reconcile(look(0), &[]);
    table.apply(&create(5, 10 * MS), &mut out);
    table.reconcile(look(1), &[]);
    table.apply(&exit(5, 120 * MS), &mut out);
    assert_eq!(out.len(), 1, "its span");
    table.reconcile(look(2), &[]);
    assert_eq!((table.totals().died, table.totals().deaths_mended), (1, 0));
}

#[test]
fn a_lost_birth_is_mended_and_counted_but_makes_no_span() {
    let (mut table, mut out) = table();
    table.reconcile(look(1), &sightings([1]));
    table.watch_exits();
    table.reconcile(look(2), &sightings([1, 5]));
    let totals = table.totals();
    assert_eq!((table.alive(), totals.born, totals.births_mended), (2, 1, 1));
    table.apply(&exit(5, 250 * MS), &mut out);
    assert!(out.is_empty());
    assert_eq!((table.totals().died, table.totals().deaths_mended), (1, 0));
}

#[test]
fn a_birth_that_comes_late_is_the_birth() {
    let (mut table, mut out) = table();
    table.reconcile(look(1), &sightings([1, 5]));
    table.apply(&create(5, 100 * MS), &mut out);
    assert_eq!((table.alive(), table.totals().repaired), (2, 0));
    assert_eq!((table.sites()[1].alive, table.sites()[1].died), (2, 0));
    table.apply(&exit(5, 150 * MS), &mut out);
    assert!(matches!(&out[..], [Output::Ended(e)] if e.birth_ns == 100 * MS));
}

#[test]
fn who_was_met_in_a_wait_gets_its_place() {
    let (mut table, mut out) = table();
    table.apply(&open_wait(5, 50 * MS), &mut out);
    assert_eq!(table.alive_birth_unseen(), 1);
    table.reconcile(look(1), &sightings([5]));
    assert_eq!((table.alive(), table.alive_birth_unseen()), (1, 0));
    let site = &table.sites()[1];
    assert_eq!((site.alive, site.born, site.oldest_birth_ns), (1, 0, Some(50 * MS)));
    // When everyone was known before, its birth was lost.
    table.apply(&open_wait(6, 150 * MS), &mut out);
    table.reconcile(look(2), &sightings([5, 6]));
    let site = &table.sites()[1];
    assert_eq!((site.alive, site.born, site.oldest_birth_ns), (2, 1, Some(50 * MS)));
    assert_eq!((table.alive(), table.totals().born, table.totals().births_mended), (2, 1, 1));
}

#[test]
fn waits_of_snapshots_are_shown_until_the_kernel_side_knows_better() {
    let (mut table, mut out) = table();
    let waiting = |goid| Sighting { wait: Some(14), ..sighting(goid) };
    table.apply(&create(7, 10 * MS), &mut out);
    table.reconcile(look(1), &[waiting(5), waiting(6), waiting(7)]);
    table.begin_open_waits();
    assert_eq!(table.sites()[1].waiting.get(&14), Some(&2), "events tell of the one whose birth they saw");
    assert_eq!(table.waiting().collect::<Vec<_>>(), [(14, 2)]);
    table.begin_open_waits();
    table.apply(&open_wait(5, 150 * MS), &mut out);
    assert_eq!(table.sites()[1].waiting.get(&14), Some(&2), "none twice");
    // It runs now, and the kernel side would know if it waited.
    table.reconcile(look(2), &[waiting(5), sighting(6), sighting(7)]);
    table.begin_open_waits();
    assert_eq!(table.sites()[1].waiting.get(&14), None);
}

#[test]
fn who_is_in_a_system_call_is_told_by_snapshots_where_events_do_not() {
    let syscall = u8::try_from(ROW_SYSCALL).expect("fits");
    let within = |goid| Sighting { wait: Some(syscall), ..sighting(goid) };
    for (syscalls_told, expected) in [(true, 1), (false, 3)] {
        let (mut table, mut out) = table();
        // The birth of one was seen, and a wait of another; a third is older than the attachment.
        table.apply(&create(7, 10 * MS), &mut out);
        table.apply(&open_wait(6, 20 * MS), &mut out);
        let see = |table: &mut Table, n, sightings: &[Sighting]| {
            table.begin_reconcile(look(n));
            table.sight(sightings, syscalls_told);
            table.end_reconcile();
            table.begin_open_waits();
            table.sites();
            table.waiting().collect::<Vec<_>>()
        };
        let in_calls = [within(5), within(6), within(7)];
        assert_eq!(see(&mut table, 1, &in_calls), [(syscall, expected)]);
        assert_eq!(see(&mut table, 2, &in_calls), [(syscall, expected)]);
        // One waits for another goroutine now, which events tell.
        table.begin_open_waits();
        table.apply(&open_wait(7, 250 * MS), &mut out);
        table.sites();
        let mut now: Vec<_> = table.waiting().collect();
        now.sort_unstable();
        assert_eq!(now, [(14, 1), (syscall, expected.min(2))]);
        assert_eq!(see(&mut table, 3, &sightings([5, 6, 7])), []);
    }
}

#[test]
fn threads_of_c_come_and_go_without_births_and_deaths() {
    let (mut table, _) = table();
    let visitor = Sighting { entry_pc: 0, created_pc: 0, ..sighting(9) };
    table.reconcile(look(1), &sightings([1]));
    table.reconcile(look(2), &[sighting(1), visitor]);
    assert_eq!(table.alive(), 2);
    for n in 3..5 {
        table.reconcile(look(n), &sightings([1]));
    }
    assert_eq!(table.alive(), 1);
    assert_eq!(table.totals(), Totals::default());
    assert_eq!(table.alive_birth_unseen(), 0);
}

#[test]
fn an_incomplete_snapshot_seeds_but_leaves_a_lower_bound() {
    let (mut table, _) = table();
    table.reconcile(Look { complete: false, ..look(1) }, &sightings([1]));
    assert!(!table.is_seeded());
    table.reconcile(look(2), &sightings([1, 5]));
    assert!(table.is_seeded());
    assert_eq!(table.totals(), Totals::default(), "5 was there from the beginning on, for all that is known");
}

#[test]
fn without_events_births_and_deaths_are_differences() {
    let (mut table, _) = table();
    table.become_sampled();
    table.reconcile(look(1), &sightings([1, 5]));
    table.reconcile(look(2), &sightings([1, 6, 7]));
    let totals = table.totals();
    assert_eq!((table.alive(), totals.born, totals.died), (3, 2, 1));
    assert_eq!((totals.births_mended, totals.deaths_mended), (0, 0));
    // Who is missed by one that did not see all may be there still.
    table.reconcile(Look { complete: false, ..look(3) }, &sightings([1, 6]));
    assert_eq!(table.alive(), 3);
    table.reconcile(look(4), &sightings([1, 6]));
    assert_eq!((table.alive(), table.totals().died), (2, 2));
}

#[test]
fn snapshots_beyond_the_255th_are_told_apart() {
    let (mut table, mut out) = table();
    table.reconcile(look(0), &[]);
    table.apply(&create(5, 10 * MS), &mut out);
    table.reconcile(look(1), &sightings([5]));
    for n in 2..600 {
        table.watch_exits();
        let seen = if n < 590 { vec![sighting(5)] } else { vec![] };
        table.reconcile(look(n), &seen);
        assert_eq!(table.alive(), u64::from(n < 591), "{n}");
    }
}

#[test]
fn what_finds_no_room_is_counted_once_however_many_snapshots_show_it() {
    let mut table = Table::new(1_000_000_000).with_room_for(3);
    table.become_sampled();
    table.reconcile(look(1), &sightings(1..6));
    table.reconcile(look(2), &sightings(1..6));
    assert_eq!((table.alive(), table.totals().refused), (3, 2));
    table.reconcile(look(3), &sightings(1..9));
    assert_eq!((table.alive(), table.totals().refused), (3, 5));
    table.set_room(10);
    table.reconcile(look(4), &sightings(1..9));
    assert_eq!((table.alive(), table.totals().refused), (8, 5));
    // What is given back is what nobody needs.
    let before = table.bytes();
    table.reconcile(look(5), &sightings(1..2));
    table.give_back();
    assert!(table.bytes() < before && table.alive() == 1);
}

#[test]
fn a_full_table_is_known_to_leave_some_out_until_a_snapshot_shows_that_it_has_all() {
    let mut out = Vec::new();
    let mut table = Table::new(1_000_000_000).with_room_for(3);
    table.reconcile(look(0), &sightings(1..3));
    assert!(!table.leaves_out());
    // Births: the third fills it, the fourth finds no room, and lives on when there is room again.
    table.apply(&create(3, 10 * MS), &mut out);
    assert!(table.leaves_out(), "full");
    table.apply(&create(4, 11 * MS), &mut out);
    table.apply(&exit(3, 12 * MS), &mut out);
    table.apply(&exit(2, 12 * MS), &mut out);
    assert_eq!((table.alive(), table.leaves_out()), (1, true));
    // A snapshot that does not show all shows nothing; another one is refused while a whole one is taken.
    table.reconcile(Look { complete: false, ..look(1) }, &sightings([1]));
    assert!(table.leaves_out());
    table.set_room(1);
    table.watch_exits();
    table.apply(&create(5, 130 * MS), &mut out);
    table.set_room(3);
    table.reconcile(look(2), &sightings([1, 4]));
    assert_eq!((table.alive(), table.leaves_out()), (2, true), "5 is not in it");
    table.set_room(4);
    table.watch_exits();
    table.reconcile(look(3), &sightings([1, 4, 5]));
    assert_eq!((table.alive(), table.leaves_out()), (3, false));
    // What events counted is counted once, however many snapshots show it.
    let refused = table.totals().refused;
    table.set_room(3);
    table.apply(&create(6, 500 * MS), &mut out);
    table.reconcile(look(6), &sightings([1, 4, 5, 6]));
    table.apply(&exit(5, 700 * MS), &mut out);
    assert_eq!((table.alive(), table.leaves_out()), (2, true), "6 lives");
    assert_eq!(table.totals().refused, refused + 1);
    // Written and read, it is as careful.
    assert!(Table::from_state(table.state()).leaves_out());
}

#[test]
fn a_goroutine_that_was_met_as_a_wrapper_gets_the_site_of_what_it_runs() {
    let (mut table, _) = table();
    let runs = |goid, entry_pc| Sighting { entry_pc, ..sighting(goid) };
    table.set_wrappers(&[0x200, 0x280]);
    table.reconcile(look(1), &[runs(5, 0x200), runs(6, 0x300), runs(7, 0x400)]);
    // One was on a processor, and none of the others changes what it runs.
    table.reconcile(look(2), &[runs(5, 0x300), runs(6, 0x200), runs(7, 0x500)]);
    let sites: Vec<_> = table.sites().iter().map(|s| (s.key.entry_pc, s.alive, s.born, s.died)).collect();
    assert_eq!(sites, [(0, 0, 0, 0), (0x200, 0, 0, 0), (0x300, 2, 0, 0), (0x400, 1, 0, 0)]);
    assert_eq!((table.alive(), table.totals()), (3, Totals::default()));
}
