//! What is read when it is asked for becomes rows, and questions are asked one at a time.

use super::*;
use crate::state::tests::{interval, screen};

fn group(count: u64, at: &str, state: &str) -> GoroutineGroup {
    GoroutineGroup {
        count,
        at: at.into(),
        state: state.into(),
        created_by: "main.main (main.go:9)".into(),
        goids: (count, count + 70),
        stack: vec!["runtime.gopark (proc.go:402)".into(), at.into()],
        ..GoroutineGroup::default()
    }
}

fn read() -> Goroutines {
    let system =
        GoroutineGroup { system: true, ..group(2, "runtime.bgsweep (mgcsweep.go:7)", "GC sweep wait") };
    let old =
        GoroutineGroup { waits_ns: Some(90_000_000_000), ..group(3, "main.poll (poll.go:4)", "select") };
    let groups = vec![group(7, "main.worker (pool.go:12)", "chan receive"), old, system];
    Goroutines { total: 12, groups, groups_left_out: 5, ..Goroutines::default() }
}

fn held() -> Locks {
    let waits = LockGroup {
        what: "waits".into(),
        count: 8,
        at: "main.till (till.go:3)".into(),
        goids: vec![51, 52],
        stack: vec!["main.till (till.go:3)".into()],
    };
    let lock = Lock {
        name: "mutex, 0xc000012340".into(),
        count: 1,
        waiting: 8,
        waiters: "8 × main.till (till.go:3)".into(),
        held_by: "held by main.bookkeeper (books.go:5)".into(),
        goid: Some(51),
        groups: vec![waits],
    };
    Locks {
        notes: vec!["who else uses channels was not looked for in all stacks".into()],
        objects: vec![lock],
    }
}

/// A state that shows a view, whose question was answered so.
fn shown(view: View, answer: Answer) -> State {
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(interval()));
    state.show(view);
    assert!(state.readings.busy().is_some_and(|busy| busy.starts_with("reading ")));
    assert!(state.readings.take_wanted().is_some() && state.readings.take_wanted().is_none());
    state.readings.answered(answer);
    assert_eq!(state.readings.busy(), None);
    state.refresh();
    state
}

fn names(state: &State) -> Vec<&str> {
    state.readings.rows.iter().map(|row| &*row.name).collect()
}

#[test]
fn goroutines_are_sorted_filtered_and_told_more_of() {
    let mut state = shown(View::Goroutines, Answer::Goroutines(Ok(read())));
    assert_eq!(names(&state), ["main.worker (pool.go:12)", "main.poll (poll.go:4)"]);
    assert_eq!(state.readings.rows[1].numbers, ["3", "1m30s"]);
    state.sort_by_next();
    assert_eq!((names(&state)[0], state.sorted_by()), ("main.poll (poll.go:4)", "waits≥"));
    state.switch_system();
    assert_eq!(state.len(), 3);
    "SWEEP".chars().for_each(|c| state.type_char(c));
    assert_eq!(names(&state), ["runtime.bgsweep (mgcsweep.go:7)"]);
    state.back();
    state.scroll(isize::MIN);
    state.enter();
    let detail = state.detail.join("\n");
    for part in [
        "state       select",
        "created by  main.main (main.go:9)",
        "goroutines  3 to 73",
        "stack       runtime.",
    ] {
        assert!(detail.contains(part), "{part} in\n{detail}");
    }
    let text = screen(&mut state, 120, 24);
    for part in
        ["goroutines at (own code)", "waits≥", "5 smaller groups are left out", "R reads anew", "4 locks"]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn who_waits_and_who_holds_stand_beside_each_other() {
    let mut state = shown(View::Locks, Answer::Locks(Ok(held())));
    let text = screen(&mut state, 120, 20);
    for part in [
        "mutex, 0xc000012340",
        "8 × main.till (till.go:3)",
        "held by main.bookkeeper (books.go:5)",
        "who else uses channels was not looked for",
        "5 goroutines",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    state.enter();
    assert!(state.detail.iter().any(|line| line.contains("goroutines 51 52 …")), "{:?}", state.detail);
    // Who holds it: asked, shown in place of the row's own, and left again.
    state.ask_why();
    assert_eq!(state.readings.take_wanted(), Some(Question::Why(51)));
    state.readings.answered(Answer::Why(51, Ok(vec!["goroutine 51 waits".into(), "\u{1b}[2J".into()])));
    state.refresh();
    assert_eq!(state.detail[..2], ["who holds what goroutine 51 waits for", "goroutine 51 waits"]);
    assert!(!state.detail[2].contains('\u{1b}'));
    assert!(state.back() && state.detail[0].starts_with("mutex"), "{:?}", state.detail);
}

#[test]
fn what_cannot_be_read_says_why() {
    let mut state = shown(View::Locks, Answer::Locks(Err("the process has ended".into())));
    assert!(screen(&mut state, 90, 20).contains("not known: the process has ended"));
    let mut state = shown(View::Locks, Answer::Locks(Ok(Locks::default())));
    assert!(screen(&mut state, 90, 20).contains("no goroutine waits for a lock or a channel"));
    let mut state = State::new(String::new(), false, false);
    state.readings.refused = "not in a recording".into();
    state.update(&Arc::new(interval()));
    state.show(View::Goroutines);
    assert_eq!(state.readings.take_wanted(), None);
    assert!(screen(&mut state, 90, 20).contains("not in a recording"));
    state.ask_why();
    assert_eq!(state.said, "not in a recording");
}

#[test]
fn it_is_read_anew_when_that_is_asked_for_only() {
    let mut state = shown(View::Goroutines, Answer::Goroutines(Ok(read())));
    state.show(View::Sites);
    state.show(View::Goroutines);
    assert_eq!(state.readings.take_wanted(), None, "it was read just now");
    state.read_again();
    assert_eq!(state.readings.take_wanted(), Some(Question::Goroutines));
    state.read_again();
    assert_eq!(state.readings.take_wanted(), None, "it is being read");
    state.show(View::Places);
    state.read_again();
    assert!(state.said.contains("views 4 and 5"), "{}", state.said);
    state.ask_why();
    assert!(state.said.contains("views 4 and 5"), "{}", state.said);
}

#[test]
fn every_size_of_screen_shows_what_it_has_room_for() {
    let answers: [(View, fn() -> Answer); 2] =
        [(View::Goroutines, || Answer::Goroutines(Ok(read()))), (View::Locks, || Answer::Locks(Ok(held())))];
    for (view, answer) in answers {
        for width in 0..90 {
            let mut state = shown(view, answer());
            state.enter();
            (0..14).for_each(|height| drop(screen(&mut state, width, height)));
        }
    }
}
