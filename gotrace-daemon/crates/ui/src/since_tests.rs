//! What is shown between a mark and its end.

use super::*;
use crate::state::{
    View,
    tests::{interval, screen},
};
use gotrace_model::samples;

/// Three seconds later: the first site has grown, of the second there are none any more, and a third is new.
fn later() -> Interval {
    let mut later = interval();
    later.end_unix_nano += 3_000_000_000;
    later.alive = 1030;
    let mut new = later.sites[1].clone();
    new.entry = samples::location("main.added", "/src/main.go", 70);
    (new.alive, new.born_total, new.died_total) = (10, 10, 0);
    new.waiting = BTreeMap::from([("select".into(), 10)]);
    later.sites.truncate(1);
    later.sites.push(new);
    let first = &mut later.sites[0];
    (first.alive, first.born_total, first.died_total, first.cpu_total_ns) = (1020, 530, 260, 2_340_000_000);
    first.waiting.insert("sleep".into(), 23);
    first.waiting.remove("x");
    first.waits.add(3_000_000);
    let places = Arc::make_mut(&mut later.waits_at);
    places.places[2].waits.add(7_000_000);
    later
}

fn marked() -> State {
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(interval()));
    state.visible = 10;
    state.mark();
    state
}

#[test]
fn sites_show_what_grew_and_shrank_since_the_mark() {
    let mut state = marked();
    assert_eq!((&*state.rows[0].alive, &*state.rows[0].born), ("0", "-"), "nothing has passed yet");
    state.update(&Arc::new(later()));
    let rows: Vec<_> = state.rows.iter().map(|r| [&*r.alive, &r.born, &r.died, &r.cpu, &r.waiting]).collect();
    assert_eq!(
        rows,
        [
            ["+20", "10.0", "3.3", "50%", "sleep +20, x -2"],
            ["+10", "3.3", "0", "-", "select +10"],
            ["-250", "0", "83.3", "-", "chan receive -250"]
        ]
    );
    // One wait of 3 ms, although one of 100 ms was before: the bound of its bucket.
    assert_eq!((&*state.rows[0].p50, &*state.rows[0].max), ("3.5ms", "3.5ms"));
    state.mark();
    assert_eq!((state.rows.len(), &*state.rows[0].alive, &*state.rows[0].max), (2, "1020", "100ms"));
    assert_eq!(state.header.as_ref().map(|header| &*header.since), Some(""));
}

#[test]
fn what_shrank_is_last_by_growth_and_is_told_more_of() {
    let mut state = marked();
    state.update(&Arc::new(later()));
    state.scroll(2);
    state.enter();
    assert!(state.detail[0].contains("inventory.(*Pool).worker"), "{:?}", state.detail);
    state.scroll(isize::MIN);
    assert!(state.detail.join("\n").contains("530 created, 260 exited"), "in all: {:?}", state.detail);
}

#[test]
fn places_and_requests_show_what_came_since_the_mark() {
    let mut before = interval();
    before.requests = Some(Arc::new(samples::requests(&[10, 20])));
    let mut after = later();
    after.requests = Some(Arc::new(samples::requests(&[10, 20, 30, 40, 50])));
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(before));
    state.mark();
    state.update(&Arc::new(after));
    state.show(View::Places);
    let first = &state.places[0];
    assert_eq!(
        [&*first.function, &first.count, &first.total, &first.share, &first.rate],
        ["main.serve", "1", "7.0ms", "100%", "0.3"]
    );
    assert_eq!([&*state.places[1].count, &state.places[1].total, &state.places[1].max], ["0", "0", "-"]);
    state.show(View::Requests);
    let told: Vec<_> = state.routes.iter().map(|r| [&*r.count, &r.rate, &r.open]).collect();
    assert_eq!(told, [["3", "1.0", "0"]]);
}

#[test]
fn the_mark_ends_where_it_cannot_be_compared_with() {
    let mut state = marked();
    let mut other = later();
    other.pid += 1;
    state.update(&Arc::new(other));
    assert!(state.mark.is_none() && state.rows[0].alive == "1020");
    let mut state = marked();
    let mut earlier = interval();
    earlier.end_unix_nano -= 1;
    state.update(&Arc::new(earlier));
    assert!(state.mark.is_none(), "a recording was wound back");
    let mut state = State::new(String::new(), false, false);
    state.mark();
    assert!(state.mark.is_none(), "there is nothing to mark yet");
}

#[test]
fn screens_of_four_sizes_say_since_when() {
    for (width, height) in [(80, 24), (100, 30), (160, 50), (200, 60)] {
        let mut state = marked();
        state.update(&Arc::new(later()));
        let text = screen(&mut state, width, height);
        for part in
            ["alive ≥1030 (-220 since 00:16:42 UTC, 3.0s)", "±alive", "+20", "-250", "d ends", "? help"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        state.mark();
        let text = screen(&mut state, width, height);
        assert!(text.contains("d mark") && !text.contains('±') && !text.contains("since"), "{text}");
    }
    for width in 0..90 {
        let mut state = marked();
        state.update(&Arc::new(later()));
        (0..12).for_each(|height| drop(screen(&mut state, width, height)));
    }
}
