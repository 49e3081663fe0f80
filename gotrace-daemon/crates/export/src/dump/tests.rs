//! Every format of a real process's goroutines against expected outputs, and against each other.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use super::{
    Filter,
    group::groups,
    select::MinAge,
    testing::{assert_golden, demo, written},
    *,
};
use gotrace_inspect::snapshot::Status;

fn goids(filter: &Filter) -> Vec<u64> {
    let (snapshot, mut names) = demo();
    filter.select(&snapshot, &mut names).iter().map(|g| g.goid).collect()
}

fn regex(text: &str) -> regex::Regex {
    regex::Regex::new(text).expect("a regular expression")
}

#[test]
fn text_is_a_traceback() {
    let text = written(&Filter::default(), |out, dump, names| text::write(out, dump, names));
    assert_golden("demo.txt", &text);
    let system = Filter { system: true, states: vec![Status::Waiting], ..Filter::default() };
    let text =
        written(&system, |out, dump, names| text::write_groups(out, dump, &groups(&dump.goroutines), names));
    assert_golden("demo.group.txt", &text);
}

#[test]
fn json_lines_are_complete() {
    let some = regex(r"^main\.(main|radio|janitor|serve|clerk)$");
    let some = Filter { function: Some(some), ..Filter::default() };
    let lines = written(&some, |out, dump, names| json::write(out, dump, names));
    assert_golden("demo.json", &lines);
    let grouped = Filter { function: Some(regex(r"^main\.")), ..Filter::default() };
    let lines =
        written(&grouped, |out, dump, names| json::write_groups(out, dump, &groups(&dump.goroutines), names));
    assert_golden("demo.group.json", &lines);
    let counted: u64 = String::from_utf8_lossy(&lines)
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).expect("JSON")["group"]["count"].as_u64())
        .sum();
    assert_eq!(counted, goids(&grouped).len() as u64);
}

#[test]
fn folded_and_speedscope_count_the_same() {
    let folded = written(&Filter::default(), |out, dump, names| folded::write(out, dump, names));
    assert_golden("demo.folded", &folded);
    let folded = String::from_utf8(folded).expect("text");
    let folded: BTreeMap<&str, u64> = folded
        .lines()
        .map(|line| line.rsplit_once(' ').expect("a count"))
        .map(|(stack, count)| (stack, count.parse().expect("a number")))
        .collect();
    let file = written(&Filter::default(), |out, dump, names| speedscope::write(out, dump, names));
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    assert_eq!(file["$schema"], "https://www.speedscope.app/file-format-schema.json");
    let profile = &file["profiles"][0];
    assert_eq!((&profile["type"], &profile["unit"]), (&"sampled".into(), &"none".into()));
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    let samples = profile["samples"].as_array().expect("samples");
    let weights = profile["weights"].as_array().expect("weights");
    assert_eq!(samples.len(), weights.len());
    for (sample, weight) in samples.iter().zip(weights) {
        let stack: Vec<&str> = sample
            .as_array()
            .expect("a stack")
            .iter()
            .map(|n| {
                let n = usize::try_from(n.as_u64().expect("a number")).expect("a small number");
                file["shared"]["frames"][n]["name"].as_str().expect("a name")
            })
            .collect();
        *counted.entry(stack.join(";")).or_insert(0) += weight.as_u64().expect("a weight");
    }
    let counted: BTreeMap<&str, u64> = counted.iter().map(|(s, n)| (&**s, *n)).collect();
    assert_eq!(counted, folded);
    assert_eq!(profile["endValue"].as_u64(), Some(counted.values().sum()));
    assert_eq!(counted.values().sum::<u64>(), goids(&Filter::default()).len() as u64);
}

#[test]
fn filters_let_through_what_is_asked_for() {
    let all = goids(&Filter { system: true, ..Filter::default() });
    let users = goids(&Filter::default());
    assert!(users.len() > 20 && all.len() > users.len(), "{users:?} of {all:?}");
    let one = |filter: Filter| goids(&filter);
    let (snapshot, _) = demo();
    let goid = |is: fn(&&Goroutine) -> bool| snapshot.goroutines.iter().find(is).expect("one").goid;
    let locked = goid(|g| g.is_locked_to_thread() && !g.is_system());
    let syscall = goid(|g| g.status == Status::Syscall);
    // Goroutine 2 is the runtime's own: named, it is meant.
    assert_eq!(one(Filter { goids: vec![2, locked], ..Filter::default() }), [2, locked]);
    assert_eq!(one(Filter { states: vec![Status::Syscall], ..Filter::default() }), [syscall]);
    let sleep = one(Filter { reasons: vec!["sleep".into()], ..Filter::default() });
    assert!(sleep.contains(&1) && sleep.contains(&locked) && !sleep.contains(&syscall), "{sleep:?}");
    let neither =
        Filter { reasons: vec!["sleep".into()], states: vec![Status::Syscall], ..Filter::default() };
    assert_eq!(one(neither), [0; 0]);
    let leaks = one(Filter { function: Some(regex(r"^main\.leakyHandler")), ..Filter::default() });
    assert!(leaks.len() > 5 && leaks.len() < users.len(), "{leaks:?}");
    // By entry: goroutine 1's is runtime.main, which other stacks do not have.
    assert_eq!(one(Filter { function: Some(regex(r"^runtime\.main$")), ..Filter::default() }), [1]);
    let min_age = Some(MinAge { age: Duration::from_secs(1), goids: vec![1, locked, 999_999] });
    assert_eq!(one(Filter { min_age, ..Filter::default() }), [1, locked]);
}

#[test]
fn a_picture_has_every_stack() {
    let svg = written(&Filter::default(), |out, dump, names| svg::write(out, dump, names));
    let svg = String::from_utf8(svg).expect("text");
    assert!(svg.starts_with("<?xml") && svg.ends_with("</svg>\n"));
    let total = goids(&Filter::default()).len();
    assert!(svg.contains(&format!("data-s=\"0\" data-c=\"{total}\" data-n=\"all\"")), "{svg}");
    // Leaves, which say what goroutines do, are as many as there are goroutines.
    let leaves = svg.lines().filter(|l| l.starts_with("<g class=\"f\"") && l.contains("data-n=\"["));
    let counts = leaves.map(|l| {
        let count = l.split("data-c=\"").nth(1).and_then(|r| r.split('"').next()).expect("a count");
        count.parse::<usize>().expect("a number")
    });
    assert_eq!(counts.sum::<usize>(), total);
    assert!(svg.contains("data-n=\"main.waitForever\""));
    assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
}

#[test]
fn nothing_wanted_is_written_as_nothing() {
    let nothing = Filter { goids: vec![u64::MAX], ..Filter::default() };
    assert_eq!(written(&nothing, |out, dump, names| text::write(out, dump, names)), b"");
    assert_eq!(written(&nothing, |out, dump, names| folded::write(out, dump, names)), b"");
    let svg = written(&nothing, |out, dump, names| svg::write(out, dump, names));
    assert!(String::from_utf8_lossy(&svg).contains("no goroutine is wanted"));
    let lines = written(&nothing, |out, dump, names| json::write(out, dump, names));
    assert_eq!(String::from_utf8_lossy(&lines).lines().count(), 2);
}
