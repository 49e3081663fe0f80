//! What rows and the header say, and what keys do to them.

use gotrace_common::Histogram;
use ratatui::{Terminal, backend::TestBackend};

use super::*;
use gotrace_model::{Leak, Levels};

/// What is drawn of a state on a screen of this size, without the spaces at the ends of lines.
pub(crate) fn screen(state: &mut State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
    terminal.draw(|frame| crate::draw::draw(frame, state)).expect("in memory");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
}

pub(crate) fn interval() -> Interval {
    let location = |function: &str, file: &str, line| {
        Arc::new(Location { function: function.into(), file: file.into(), line })
    };
    let mut resource = Resource::default();
    for (key, value) in
        [("process.executable.path", "/srv/shop/server"), ("process.runtime.version", "go1.24.3")]
    {
        resource.attributes.insert(key.into(), Value::Text(value.into()));
    }
    let mut waits = Histogram::default();
    for ms in 1..=100 {
        waits.add(ms * 1_000_000);
    }
    let site = |entry: &str, alive, waiting: &[(&str, u64)], waits: Histogram| Site {
        entry: location(entry, "/src/main.go", 10),
        created_by: Some(location("main.main", "/src/cmd/main.go", 30)),
        alive,
        born: 50,
        died: 25,
        born_total: 500,
        died_total: 250,
        cpu_ns: (alive == 1000).then_some(840_000_000),
        cpu_total_ns: if alive == 1000 { 840_000_000 } else { 0 },
        throttled_ns: 0,
        throttled_total_ns: 0,
        waiting: waiting.iter().map(|(r, n)| ((*r).into(), *n)).collect(),
        waits,
        lifetimes: Histogram::default(),
        oldest_ns: Some(65_000_000_000),
        oldest_is_lower_bound: entry.starts_with("net/http"),
    };
    Interval {
        requests: None,
        resource: Arc::new(resource),
        pid: 1234,
        start_unix_nano: 1_000_000_000_000,
        end_unix_nano: 1_002_000_000_000,
        alive: 1250,
        alive_is_lower_bound: true,
        born: 100,
        died: 50,
        born_total: 1000,
        died_total: 500,
        lost: BTreeMap::from([("ring_wait", 7)]),
        repaired: BTreeMap::new(),
        sampled_out: BTreeMap::new(),
        events: BTreeMap::new(),
        waiting: BTreeMap::from([("chan receive".into(), 900), ("select".into(), 100)]),
        waits: BTreeMap::new(),
        waits_at: Arc::new(gotrace_model::samples::places()),
        schedule: Histogram::default(),
        syscalls: Histogram::default(),
        sites: vec![
            site(
                "net/http.(*conn).serve",
                1000,
                &[("IO wait", 1), ("select", 5), ("sleep", 3), ("x", 2)],
                waits,
            ),
            site(
                "github.com/example/shop/internal/inventory.(*Pool).worker.func1",
                250,
                &[("chan receive", 250)],
                Histogram::default(),
            ),
        ],
        snapshots: Histogram::default(),
        engine: "events",
        level: "waits",
        level_reason: None,
        levels: Levels::default(),
        leaks: Vec::new(),
        leaks_refuted: 0,
        suspects: Vec::new(),
        collector: gotrace_model::samples::collector(),
        process_cpu_ns: Some(1_000_000_000),
        process_cpu_total_ns: Some(1_000_000_000),
        probe_cost_share: Some(0.0042),
    }
}

#[test]
fn an_interval_becomes_text() {
    let interval = interval();
    let header = header(&interval, 990_000_000_000);
    assert_eq!(
        header.process(80),
        "pid 1234 · /srv/shop/server · go1.24.3 · engine events · level waits · 12s"
    );
    assert_eq!(header.process(40), "pid 1234 · server · events/waits · 12s");
    assert_eq!(header.process(36), "pid 1234 · se…r · events/waits · 12s");
    assert!((0..80).all(|width| header.process(width).chars().count() <= width));
    assert_eq!(header.cost, "0.42%");
    let all = Interval { probe_cost_share: Some(1.0), ..interval.clone() };
    assert_eq!(super::header(&all, 990_000_000_000).cost, "≤100%");
    assert_eq!((header.elapsed.as_str(), header.alive.as_str()), ("12s", "≥1250"));
    assert_eq!((header.born.as_str(), header.died.as_str()), ("50.0", "25.0"));
    assert_eq!(header.lost, "ring_wait 7");
    assert_eq!(header.waiting, "chan receive 900, select 100");
    let sites: Vec<&Site> = interval.sites.iter().collect();
    let rows = rows(&interval, &sites);
    assert_eq!(rows[0].waiting, "select 5, sleep 3, x 2, other 1");
    assert_eq!(rows[0].created_by, "main.go:30");
    assert_eq!((rows[0].max.as_str(), rows[0].oldest.as_str()), ("100ms", "1m05s+"));
    assert_eq!((rows[0].cpu.as_str(), rows[1].cpu.as_str()), ("42%", "-"));
    assert_eq!(rows[1].oldest, "1m05s");
    assert_eq!(rows[1].p99, "-");
}

fn shown() -> State {
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(interval()));
    state.visible = 10;
    state
}

fn entries(state: &State) -> Vec<&str> {
    state.rows.iter().map(|row| &*row.entry).collect()
}

const SERVE: &str = "net/http.(*conn).serve";
const WORKER: &str = "github.com/example/shop/internal/inventory.(*Pool).worker.func1";

#[test]
fn scrolling_stays_within_the_rows() {
    let mut state = shown();
    state.visible = 1;
    state.scroll(50);
    assert_eq!((state.selected, state.top), (1, 1));
    state.scroll(isize::MIN);
    assert_eq!((state.selected, state.top), (0, 0));
    state.visible = 10;
    state.scroll(1);
    assert_eq!((state.selected, state.top), (1, 0));
}

#[test]
fn rows_are_sorted_by_any_column() {
    let mut state = shown();
    assert_eq!(entries(&state), [SERVE, WORKER]);
    let mut last = (*state.last.clone().expect("shown")).clone();
    last.sites[1].cpu_ns = Some(2_000_000_000);
    state.update(&Arc::new(last));
    assert_eq!(entries(&state), [SERVE, WORKER]);
    state.sort_by_next();
    assert_eq!((state.sort.name(), entries(&state)), ("cpu", vec![WORKER, SERVE]));
    (1..Sort::ALL.len()).for_each(|_| state.sort_by_next());
    assert_eq!((state.sort, entries(&state)), (Sort::Alive, vec![SERVE, WORKER]));
}

#[test]
fn a_filter_finds_functions_files_and_reasons() {
    let mut state = shown();
    for (typed, found) in
        [("POOL", vec![WORKER]), ("cmd/main", vec![SERVE, WORKER]), ("sleep", vec![SERVE]), ("zzz", vec![])]
    {
        state.typing = true;
        typed.chars().for_each(|c| state.type_char(c));
        assert_eq!(entries(&state), found, "{typed}");
        assert!(state.back() && state.filter.is_empty() && !state.typing);
    }
    state.typing = true;
    state.type_char('z');
    state.erase();
    state.enter();
    assert_eq!((state.typing, entries(&state).len(), state.detail.len()), (false, 2, 0));
    assert!(!state.back(), "there is nothing to come back from");
}

#[test]
fn what_is_selected_stays_so_and_is_told_more_of() {
    let mut state = shown();
    state.scroll(1);
    state.enter();
    let text = state.detail.join("\n");
    assert!(text.contains(WORKER) && text.contains("500 created, 250 exited"), "{text}");
    state.sort = Sort::Cpu;
    let mut last = (*state.last.clone().expect("shown")).clone();
    last.sites[1].cpu_ns = Some(2_000_000_000);
    state.update(&Arc::new(last));
    assert_eq!((state.selected, entries(&state)), (0, vec![WORKER, SERVE]));
    assert!(state.detail.join("\n").contains(WORKER));
    assert!(state.back() && state.detail.is_empty());
}

#[test]
fn a_picture_can_be_stopped() {
    let mut state = shown();
    state.pause();
    let mut next = interval();
    next.sites.clear();
    state.update(&Arc::new(next.clone()));
    assert_eq!(state.rows.len(), 2);
    state.pause();
    state.update(&Arc::new(next));
    assert_eq!(state.rows.len(), 0);
}

#[test]
fn the_runtimes_own_are_shown_when_wanted() {
    let mut with_runtime = interval();
    let mut worker = with_runtime.sites[1].clone();
    worker.entry = Arc::new(Location { function: "runtime.gcBgMarkWorker".into(), file: "".into(), line: 0 });
    with_runtime.sites.push(worker);
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(with_runtime));
    assert_eq!(state.rows.len(), 2);
    state.switch_system();
    assert_eq!(entries(&state)[2], "runtime.gcBgMarkWorker");
}

#[test]
fn names_that_a_program_chose_steer_nothing() {
    let mut hostile = interval();
    let name = "main.\u{1b}[2J\u{202e}x";
    hostile.sites[0].entry =
        Arc::new(Location { function: name.into(), file: "a\u{9b}b.go".into(), line: 7 });
    hostile.sites[0].created_by = Some(Arc::clone(&hostile.sites[0].entry));
    hostile.leaks.push(Leak {
        entry: Arc::clone(&hostile.sites[0].entry),
        created_by: hostile.sites[0].created_by.clone(),
        waits_at: None,
        reason: "select".into(),
        count: 3,
        growth_per_second: None,
        retained_bytes: None,
        goids: vec![7],
        others: Vec::new(),
        place: None,
        holders: Vec::new(),
        why: name.into(),
        suppressed: None,
    });
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(hostile));
    state.enter();
    let Row { entry, created_by, .. } = &state.rows[0];
    for text in [entry, created_by, &state.problems, &state.detail.concat()] {
        assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
    assert!(state.problems.starts_with("LEAK "), "{}", state.problems);
}
