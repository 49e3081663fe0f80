//! The profile of a real process's goroutines, decoded again.

use std::collections::BTreeMap;

use super::{super::Filter, super::testing::*, *};

#[test]
fn a_profile_has_every_goroutine() {
    let bytes = written(&Filter::default(), |out, dump, names| write(out, dump, names));
    let profile = Profile::read(&bytes);
    let text = |n: i64| &*profile.string_table[usize::try_from(n).expect("a number of a string")];
    assert_eq!(text(0), "");
    assert_eq!(profile.sample_type.len(), 1);
    assert_eq!(
        (text(profile.sample_type[0].r#type), text(profile.sample_type[0].unit)),
        ("goroutine", "count")
    );
    assert_eq!((profile.time_nanos, profile.duration_nanos), (1_700_000_000_000_000_000, 1_500_000));
    let mapping = profile.mapping[0];
    assert_eq!((text(mapping.filename), text(mapping.build_id)), ("/usr/bin/demo", "0123abcd"));

    let (snapshot, mut names) = demo();
    let filter = Filter::default();
    let goroutines = filter.select(&snapshot, &mut names);
    assert_eq!(profile.sample.iter().map(|s| s.value[0]).sum::<i64>(), goroutines.len() as i64);
    let mut counted: BTreeMap<String, i64> = BTreeMap::new();
    for sample in &profile.sample {
        assert!(!sample.location_id.is_empty() && sample.value.len() == 1);
        let labels: BTreeMap<_, _> = sample.label.iter().map(|l| (text(l.key), text(l.str))).collect();
        let mut stack = String::new();
        for id in &sample.location_id {
            let location = &profile.location[usize::try_from(*id).expect("small") - 1];
            assert_eq!((location.id, location.mapping_id), (*id, 1));
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
            for line in &location.line {
                let function = profile.function[usize::try_from(line.function_id).expect("small") - 1];
                assert_ne!(text(function.name), "runtime.goexit");
                stack.push_str(&format!("{}:{} ", text(function.name), line.line));
            }
        }
        let of = |key| labels.get(key).copied().unwrap_or("-");
        let key = format!("{} {} {} {stack}", of("state"), of("wait_reason"), of("created_by"));
        *counted.entry(key).or_insert(0) += sample.value[0];
    }
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for g in goroutines {
        let reason = wait_reason(g, &names).unwrap_or("-".into());
        let created = names.created_by(g.created_pc).first().map_or("-".to_owned(), |f| {
            format!("{} ({}:{})", f.function, f.file.rsplit('/').next().unwrap_or(""), f.line)
        });
        let frames = names.stack(snapshot.frames(g));
        let frames = frames.iter().map(|f| f.frame).filter(|f| f.function != "runtime.goexit");
        let stack: String = frames.map(|f| format!("{}:{} ", f.function, f.line)).collect();
        *expected.entry(format!("{} {reason} {created} {stack}", g.status.name())).or_insert(0) += 1;
    }
    assert_eq!(counted, expected);
}

#[test]
fn the_same_is_kept_once() {
    let (snapshot, mut names) = demo();
    let filter = Filter { system: true, ..Filter::default() };
    let dump = Dump::new(header(), &snapshot, &filter, &mut names);
    let profile = make(&dump, &mut names);
    let distinct = |mut all: Vec<String>| {
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    };
    distinct(profile.string_table.clone());
    distinct(profile.function.iter().map(|f| format!("{} {}", f.name, f.filename)).collect());
    distinct(profile.sample.iter().map(|s| format!("{:?} {:?}", s.location_id, s.label)).collect());
}
