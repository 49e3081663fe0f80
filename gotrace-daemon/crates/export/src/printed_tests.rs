//! What `attach`, `top`, `leaks`, `check` and `why` print, whole: a change of words shows as a difference of `golden/*.txt`.
//! `GOTRACE_BLESS=1 cargo test` writes those anew.
//!
//! Input: made-up states, and goroutines of a real process ([`crate::dump::testing::demo`]).

use std::io::{self, Write as _};

use gotrace_inspect::{
    examine::ProofSummary,
    heap::{Evidence, Holder, Link, Path, Retained, What, Why},
    leak::{Accepted, AtLeastAtMost, Finding, Growth, Holder as LockHolder, Verdict},
    snapshot::{Goroutine, Names, Snapshot, Status},
};
use gotrace_model::{Interval, Leak, Summary, Suspected, WorldStop, samples};

use crate::{
    check::{self, Coverage, NotChecked},
    collector,
    dump::testing::{demo, golden},
    leaks::{self, Header, When, why::Answer, why::State},
    text::{self, tests::lowered, tests::sample},
    top::{self, Node},
};

/// A state with a leak and a suspicion, each suppressed or not.
fn leaking() -> Interval {
    let mut leaking = sample();
    let site = &leaking.sites[0];
    let (entry, created_by) = (site.entry.clone(), site.created_by.clone());
    for suppressed in [None, Some("by design".into())] {
        leaking.leaks.push(Leak {
            entry: entry.clone(),
            created_by: created_by.clone(),
            waits_at: created_by.clone(),
            reason: "chan receive".into(),
            count: 256,
            retained_bytes: Some(65_536),
            goids: vec![7, 8, 9],
            growth_per_second: None,
            others: Vec::new(),
            place: None,
            holders: Vec::new(),
            why: "why".into(),
            suppressed: suppressed.clone(),
        });
        leaking.suspects.push(Suspected {
            verdict: "growing",
            entry: entry.clone(),
            created_by: created_by.clone(),
            waits_at: None,
            reason: "select".into(),
            count: 4,
            growth_per_second: Some((0.5, 1.25)),
            standing_ns: 1,
            why: "why".into(),
            goids: Vec::new(),
            place: None,
            holders: Vec::new(),
            suppressed,
        });
    }
    leaking.leaks_refuted = 1;
    leaking.collector = samples::collector();
    leaking
}

fn summary_of(last: Interval, ended: &str) -> Summary {
    Summary {
        last,
        cost_ns_per_event: Some(548.0),
        spans: 2726,
        spans_dropped: [("unreachable", 2)].into(),
        points_dropped: [("unreachable", 1)].into(),
        logs_dropped: [].into(),
        ended: ended.into(),
    }
}

#[test]
fn gc_prints_what_is_written_down() -> io::Result<()> {
    let mut out = Vec::new();
    let mut interval = leaking();
    collector::header(&mut out, &interval.resource, 42)?;
    let mut called = interval.collector.recent[0].clone();
    called.number = 4;
    called.trigger = "call";
    called.called_from = Some(samples::location("main.collectNow", "/src/stats.go", 46));
    (called.assist_ns, called.mark_ns, called.sweep_pause_ns) = (0, None, None);
    called.assisted_by.clear();
    let mut unknown = interval.collector.longest[0].clone();
    (unknown.reason, unknown.goid, unknown.function, unknown.called_from) = ("GOMAXPROCS", 0, None, None);
    interval.collector.recent.push(called);
    let shorter = WorldStop { duration_ns: 9_000, ..interval.collector.longest[0].clone() };
    interval.collector.longest.extend([unknown, shorter]);
    (interval.collector.recent_left_out, interval.collector.longest_left_out) = (3, 2);
    collector::interval(&mut out, &interval)?;
    let quota = check::Throttling::Quota { group: "/pod".into(), cpus: 0.5, periods: 80, throttled: 31 };
    interval.levels = lowered().levels;
    interval.levels.ns.insert("sampled", 500_000_000);
    collector::interval(&mut out, &interval)?;
    let summary = summary_of(interval, "duration");
    for (cpu_ns, throttling) in [(Some(50_000_000), Some(quota)), (None, None)] {
        collector::Run { last: &summary.last, ended: &summary.ended, cpu_ns, throttling }
            .write_text(&mut out)?;
    }
    golden("golden/gc.txt", &out);
    Ok(())
}

#[test]
fn attach_prints_what_is_written_down() -> io::Result<()> {
    let mut raised = lowered();
    if let Some(change) = &mut raised.levels.change {
        (change.from, change.to) = ("lifecycle", "waits");
    }
    let mut sampled = lowered();
    sampled.levels.ns.insert("sampled", 2_000_000_000);
    sampled.snapshots.add(3_000_000);
    sampled.repaired = [("birth", 1), ("death", 2)].into();
    let mut full = sample();
    full.lost.clear();
    full.sampled_out.clear();
    full.schedule.add(110_000);
    full.syscalls.add(1_400);
    full.sites[0].oldest_is_lower_bound = true;
    full.probe_cost_share = Some(0.15);
    let mut out = Vec::new();
    for interval in [&sample(), &lowered(), &raised, &leaking()] {
        text::interval(&mut out, interval, false)?;
    }
    for (last, ended) in [
        (full, "duration"),
        (leaking(), "interrupted"),
        (lowered(), "the process ended"),
        (sampled, "the command ended"),
    ] {
        text::summary(&mut out, &summary_of(last, ended), false)?;
    }
    golden("golden/attach.txt", &out);
    Ok(())
}

#[test]
fn top_prints_what_is_written_down() -> io::Result<()> {
    let mut other = leaking();
    (other.pid, other.alive_is_lower_bound, other.probe_cost_share) = (7, false, Some(0.012));
    let rows = top::rows([&lowered(), &other].into_iter());
    let mut out = Vec::new();
    for (refused, unreadable) in [(0, 0), (1, 1), (2, 3)] {
        top::table(&mut out, &Node { rows: rows.clone(), refused, unreadable, awaited: None })?;
    }
    golden("golden/top.txt", &out);
    Ok(())
}

/// A goroutine that waits for a channel, and one that does something else.
fn two(snapshot: &Snapshot, names: &Names) -> [Goroutine; 2] {
    let reason = |g: &Goroutine| names.binary().wait_reasons().get(usize::from(g.wait_reason)).copied();
    let waits = |g: &&Goroutine| g.status.is_waiting() && !g.is_system() && reason(g) == Some("chan receive");
    let sleeps = |g: &&Goroutine| g.status.is_waiting() && !g.is_system() && reason(g) == Some("sleep");
    [&waits as &dyn Fn(&&Goroutine) -> bool, &sleeps]
        .map(|is| *snapshot.goroutines.iter().find(|g| is(g)).expect("the demo has one"))
}

#[test]
fn leaks_and_check_print_what_is_written_down() -> io::Result<()> {
    let (snapshot, mut names) = demo();
    let [waits, sleeps] = two(&snapshot, &names);
    let stack = snapshot.frames(&waits).to_vec();
    let waits_on: Vec<_> = snapshot
        .waits_of(&waits)
        .iter()
        .map(|w| (*w, *snapshot.object(w.object).expect("it is there")))
        .collect();
    let holder = LockHolder {
        goid: sleeps.goid,
        entry_pc: sleeps.entry_pc,
        stack: snapshot.frames(&sleeps).to_vec(),
        frame: snapshot.frames(&sleeps)[0],
        status: Status::Waiting,
        wait_reason: Some(sleeps.wait_reason),
        evidence: Evidence::Refers,
        waits_for: None,
        waits_on: Vec::new(),
    };
    let finding = |verdict, goids: Vec<u64>| Finding {
        entry_pc: waits.entry_pc,
        created_pc: waits.created_pc,
        wait_reason: Some(waits.wait_reason),
        stack: stack.clone(),
        waits_on: waits_on.clone(),
        ..finding(verdict, goids)
    };
    let mut leaked = finding(Verdict::Unreachable, vec![19, 20, 21]);
    leaked.retained_bytes = Some(2867);
    leaked.growth = Some(Growth { low: 0.5, high: 1.25 });
    let mut stuck = finding(Verdict::Stuck, vec![22]);
    stuck.holders = vec![holder];
    stuck.accepted = Accepted { suppressed: Some("by design".into()), in_baseline: Some(true) };
    let mut behind = finding(Verdict::LeftBehind, vec![23]);
    behind.test = Some("shop.TestX".into());
    behind.lives = true;
    let proof = proof();
    let mut out = Vec::new();
    for (when, findings) in [
        (When::Once, &[][..]),
        (When::Watched, &[leaked.clone(), stuck.clone()]),
        (When::AtItsEnd, &[behind]),
    ] {
        leaks::text::write(&mut out, header(when, Some(&proof)), findings, &mut names)?;
    }
    golden("golden/leaks.txt", &out);

    let gap = NotChecked {
        what: "growing, stalled".into(),
        why: "only 3 snapshots over 10s".into(),
        inconclusive: true,
    };
    let complete = Coverage {
        checked: Verdict::ALL[..6].to_vec(),
        not_checked: vec![NotChecked {
            what: "slow requests".into(),
            why: "only with --requests, which attaches probes to the process".into(),
            inconclusive: false,
        }],
        stuck_after_ns: 5_000_000_000,
        throttling: Some(check::Throttling::NoQuota),
    };
    let checked = [Verdict::Unreachable, Verdict::Deadlock, Verdict::Stuck, Verdict::Orphaned];
    let throttling = Some(check::Throttling::Quota {
        group: "/kubepods/pod7/a`b<c".into(),
        cpus: 0.5,
        periods: 100,
        throttled: 38,
    });
    let incomplete =
        Coverage { checked: checked.to_vec(), not_checked: vec![gap], throttling, ..complete.clone() };
    let requested = requested();
    let no_gap = Coverage { not_checked: Vec::new(), ..complete.clone() };
    let next = [("gotrace leaks --pid 4711 --watch 60s".to_owned(), "look for longer")];
    let mut out = Vec::new();
    let orphaned = finding(Verdict::Orphaned, vec![24]);
    let concerns: Vec<check::Concern> =
        Verdict::ALL[..5].iter().copied().map(check::Concern::Verdict).collect();
    let with_slow = [&concerns[..], &[check::Concern::Slow]].concat();
    for (findings, coverage, fail_on, requests) in [
        (&[][..], &complete, &concerns, None),
        (&[], &incomplete, &concerns, None),
        (&[leaked, stuck, orphaned], &complete, &concerns, None),
        (&[], &no_gap, &with_slow, Some(&requested)),
    ] {
        let header = header(When::Watched, Some(&proof));
        let report = check::Report { header, fail_on, findings, coverage, requests, next: &next };
        for line in ["text", "markdown", "json"] {
            writeln!(out, "--- {line}")?;
            match line {
                "text" => check::text::write(&mut out, report, &mut names, false)?,
                "markdown" => check::markdown::write(&mut out, report, &mut names)?,
                _ => check::json::write(&mut out, report, &mut names)?,
            }
        }
    }
    golden("golden/check.txt", &out);
    Ok(())
}

/// Requests that were traced: of one route a slow one, of another one none.
fn requested() -> check::Requested {
    let mut interval = samples::interval(&samples::resource(), 10, Vec::new());
    let mut requests = samples::requests(&[4, 5, 6, 250]);
    let mut fast = requests.routes[0].clone();
    fast.name.route = Some("/fast".into());
    (fast.slow, fast.total.slow, fast.open, fast.oldest_open_ns) = (0, 0, 0, None);
    requests.routes.push(fast);
    let mut requested =
        check::Requested { slow_ns: 100_000_000, probe_cost: Some(0.0125), ..check::Requested::default() };
    requests.slow.iter().for_each(|request| requested.keep(request));
    interval.requests = Some(requests.into());
    requested.gathered.add(&interval, true);
    requested
}

/// Goroutines of which no address is known.
pub(crate) fn finding(verdict: Verdict, goids: Vec<u64>) -> Finding {
    Finding {
        verdict,
        growth: None,
        oldest: AtLeastAtMost { at_least_ns: 24_700_000_000, at_most_ns: None },
        entry_pc: 0,
        created_pc: 0,
        wait_reason: None,
        stack: Vec::new(),
        waits_on: Vec::new(),
        waits_on_total: goids.len(),
        goids,
        others: Vec::new(),
        passes: None,
        came_and_exited: None,
        lives: false,
        awaited: None,
        holders: Vec::new(),
        retained_bytes: None,
        why: "what is known of it.".into(),
        test: None,
        accepted: Accepted::default(),
    }
}

fn proof() -> ProofSummary {
    ProofSummary {
        passes: 10,
        needed: 10,
        void: 0,
        refuted: 0,
        retained: Retained { leaked_bytes: Some(2867), heap_bytes: Some(165_000), ..Retained::default() },
    }
}

/// What is said beside findings.
pub(crate) fn header(when: When, proof: Option<&ProofSummary>) -> Header<'_> {
    Header {
        pid: 4711,
        executable: "/usr/bin/demo",
        go_version: "go1.24.11",
        engine: "snapshot",
        time_unix_nano: 0,
        duration_ns: 22_000_000_000,
        looks: 19,
        goroutines: 52,
        came_and_exited: (14, 0),
        when,
        references_complete: true,
        proof,
        outside: None,
    }
}

#[test]
fn why_prints_what_is_written_down() -> io::Result<()> {
    let (snapshot, mut names) = demo();
    let [waits, sleeps] = two(&snapshot, &names);
    let link = |address, what: Option<What>, field: Option<&str>| Link {
        address,
        size: 112,
        entered_at: 0,
        through: None,
        what,
        what_at: 0,
        field: field.map(str::to_owned),
    };
    let channel = || link(0xc000_1000, Some(What::Channel { element: "main.order".into() }), None);
    let held = |holder, links| Why::Held(Some(Path { holder, links }));
    let frame = snapshot.frames(&sleeps)[0];
    let on_stack = Holder::Stack { goid: sleeps.goid, address: 0xc000_0000, frame: Some(frame) };
    let object = Link { entered_at: 8, what_at: 8, ..link(0xc000_2000, None, Some(".orders")) };
    let mut through = channel();
    through.through = Some((sleeps.goid, Some(frame)));
    let variable = Holder::Variable { address: 0x9d_33d4, module: 0, offset: 0x3d4, has_value: true };
    let answers = [
        (held(on_stack, vec![object, channel()]), None),
        (held(Holder::Goroutine { goid: 7 }, vec![channel()]), None),
        (held(variable, vec![link(0xc000_3000, None, None), through]), None),
        (held(Holder::Runtime, vec![channel()]), Some("chan receive")),
        (Why::Held(None), None),
        (Why::Variable(0x9d_33d4), None),
        (Why::Unreached, None),
        (Why::OnPurpose, None),
        (Why::Other, None),
        (Why::Unknown, Some("select")),
    ];
    let mut out = Vec::new();
    for (why, moved_on) in &answers {
        let answer = Answer {
            pid: snapshot.pid,
            go_version: "go1.24.11",
            goid: waits.goid,
            entry_pc: waits.entry_pc,
            stack: snapshot.frames(&waits),
            wait_reason: Some("chan receive"),
            place: None,
            state: State::Waits,
            moved_on: *moved_on,
            why,
            holders: &[],
            snapshot: &snapshot,
            variable: None,
        };
        leaks::why::text(&mut out, answer, &mut names)?;
    }
    golden("golden/why.txt", &out);
    Ok(())
}
