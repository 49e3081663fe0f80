//! Profiles of waits that are made up: what Go counts as blocking, where stacks begin, and that totals are all there.

use super::*;

/// Functions by address: those from 100 on wait on behalf of others.
const FUNCTIONS: [(u64, &[&str]); 9] = [
    (100, &["runtime.gopark"]),
    (101, &["runtime.chanrecv"]),
    (102, &["runtime.chanrecv1"]),
    (103, &["internal/sync.(*Mutex).lockSlow"]),
    (104, &["internal/sync.(*Mutex).Lock", "sync.(*Mutex).Lock", "main.locked"]),
    (105, &["time.Sleep"]),
    (1, &["main.serve"]),
    (2, &["main.\u{1b}[2Jmain"]),
    (3, &["runtime.goexit"]),
];

fn names(address: u64) -> Vec<Arc<Location>> {
    let found = FUNCTIONS.iter().find(|(at, _)| *at == address).map_or(&[][..], |(_, names)| names);
    let location = |name: &&str| Location { function: (*name).into(), file: "/m.go".into(), line: 7 };
    found.iter().map(|name| Arc::new(location(name))).collect()
}

/// Of each kind of wait some, which took so many milliseconds each.
pub(crate) fn waits(pid: u32, ms: u64) -> Waits {
    let ns = ms * 1_000_000;
    let at = |reason: &str, frames: &[u64], count| WaitsAt {
        reason: reason.into(),
        frames: frames.into(),
        sum: (count * ms, count * ns),
    };
    let stacks = vec![
        at("chan receive", &[100, 101, 102, 1, 3], 2),
        at("sync.Mutex.Lock", &[100, 103, 104, 2, 3], 3),
        at("sleep", &[100, 105, 1], 4),
        at("wait for GC cycle", &[100, 101, 3], 9),
    ];
    let mut by_reason: BTreeMap<Arc<str>, Sum> =
        stacks.iter().map(|at| (Arc::clone(&at.reason), at.sum)).collect();
    // Five short ones.
    by_reason.insert("chan receive".into(), (7 * ms, 2 * ns + 5));
    by_reason.insert("GC worker (idle)".into(), (ms, ns));
    Waits {
        pid,
        began_unix_nano: 1_000_000_000,
        now_unix_nano: 1_000_000_000 + ns,
        seen_ns: ns,
        stacks,
        by_reason,
        without_room: 0,
        lost: 0,
        min_wait_ns: Some(1_000_000),
        names: Box::new(names),
    }
}

fn text(kind: Kind, waits: &Waits) -> String {
    let mut out = Vec::new();
    Contention::new(kind, waits).write_text(&mut out).expect("a vector takes it");
    String::from_utf8(out).expect("text")
}

#[test]
fn text_is_that_of_go() {
    let expected = "\
--- contention:
cycles/second=1000000000
3000000 3 @ 0x68 0x2
#\t0x68\tsync.(*Mutex).Lock\t/m.go:7
#\t0x68\tmain.locked\t/m.go:7
#\t0x2\tmain.\\u{1b}[2Jmain\t/m.go:7

2000000 2 @ 0x66 0x1
#\t0x66\truntime.chanrecv1\t/m.go:7
#\t0x1\tmain.serve\t/m.go:7

5 5 @
#\t[no stack: chan receive]

# gotrace: block profile of process 7, 1.0ms; a delay is from the park to the next run
# gotrace: no stack: waits shorter than 1.0ms (trace.min_wait)
";
    let told = text(Kind::Block { all: false }, &waits(7, 1));
    assert!(!told.contains('\u{1b}'), "nothing steers a terminal");
    assert_eq!(told, expected);
    let all = text(Kind::Block { all: true }, &waits(7, 1));
    assert!(all.contains("4000000 4 @ 0x69 0x1\n#\t0x69\ttime.Sleep"), "{all}");
    assert!(!all.contains("runtime.gopark"), "{all}");
    assert!(!all.contains("GC worker") && all.contains("stacks cut off at trace.stack_depth: 1"), "{all}");
}

#[test]
fn a_profile_has_both_values_and_says_what_is_missing() {
    let mut waits = waits(7, 2000);
    (waits.lost, waits.without_room, waits.seen_ns) = (9, 4, 500_000_000);
    let profile = Contention::new(Kind::Block { all: false }, &waits);
    assert_eq!(
        profile.incomplete().as_deref(),
        Some("the level was below waits for 1.5s of 2.0s, waits lost: 9")
    );
    let mut bytes = Vec::new();
    profile.write(&mut bytes, "/srv/shop").expect("a vector takes it");
    let read = Profile::read(&bytes);
    let string = |n: i64| &*read.string_table[usize::try_from(n).expect("a number")];
    let types: Vec<_> = read.sample_type.iter().map(|t| (string(t.r#type), string(t.unit))).collect();
    assert_eq!(types, [("contentions", "count"), ("delay", "nanoseconds")]);
    assert_eq!((read.time_nanos, read.duration_nanos), (3_000_000_000, 2_000_000_000));
    let values: Vec<_> = read.sample.iter().map(|s| s.value.clone()).collect();
    let s = 2_000_000_000;
    assert_eq!(values, [vec![6000, 3 * s], vec![4000, 2 * s], vec![10_000, 5]]);
    assert_eq!(read.location[0].line.len(), 2, "{:?}", read.location);
    let comments: Vec<_> = read.comment.iter().map(|c| string(*c)).collect();
    assert!(comments[1].contains("and 4 beyond the stacks that are kept"), "{comments:?}");
    assert!(comments[2].starts_with("incomplete: the level was"), "{comments:?}");
}

#[test]
fn a_difference_is_of_what_came_since() {
    let (before, mut now) = (waits(7, 1000), waits(7, 3000));
    now.stacks.push(WaitsAt { reason: "select".into(), frames: [1].into(), sum: (1, 5) });
    now.by_reason.insert("select".into(), (1, 5));
    now.subtract(&before);
    let told = text(Kind::Block { all: false }, &now);
    for line in ["6000000000 6000 @ 0x68", "4000000000 4000 @ 0x66", "5 1 @ 0x1", "process 7, 2.0s"] {
        assert!(told.contains(line), "{line} in {told}");
    }
    let mut none = waits(7, 1000);
    none.subtract(&waits(7, 1000));
    assert!(!text(Kind::Block { all: true }, &none).contains('@'));
}
