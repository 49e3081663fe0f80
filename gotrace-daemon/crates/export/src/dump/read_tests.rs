//! Dump files as they are written, cut, changed and made up; and what differs between two.

use std::io::BufReader;

use super::{super::diff::*, super::testing::*, super::*, *};

/// The demo as JSON lines, grouped or not.
fn file(grouped: bool) -> Vec<u8> {
    written(&Filter::default(), |out, dump, names| match grouped {
        true => json::write_groups(out, dump, &groups(&dump.goroutines), names),
        false => json::write(out, dump, names),
    })
}

fn read_with(bytes: &[u8], places: &mut Places) -> Result<Tally, String> {
    Tally::read("a.json", &mut BufReader::new(bytes), false, places).map_err(|e| e.to_string())
}

fn read(bytes: &[u8]) -> Result<Tally, String> {
    read_with(bytes, &mut Places::default())
}

fn diff_of(before: &Tally, after: &Tally, places: &Places) -> (String, String) {
    let diff = Diff::new(before, after, places);
    let (mut text, mut lines) = (Vec::new(), Vec::new());
    write_text(&diff, &mut text).expect("a vector takes it");
    diff.write_json(&mut lines).expect("a vector takes it");
    (String::from_utf8(text).expect("text"), String::from_utf8(lines).expect("text"))
}

#[test]
fn files_and_processes_are_counted_alike() {
    let (snapshot, mut names) = demo();
    let filter = Filter::default();
    let dump = Dump::new(header(), &snapshot, &filter, &mut names);
    let mut places = Places::default();
    let live = Tally::of("pid:4711", &dump, &mut names, &mut places);
    assert_eq!(live.goroutines, dump.goroutines.len() as u64);
    for grouped in [false, true] {
        let from_file = read_with(&file(grouped), &mut places).expect("a dump");
        assert_eq!(from_file.sites, live.sites);
        assert_eq!(from_file.stacks, live.stacks);
        let diff = Diff::new(&from_file, &live, &places);
        assert!(diff.sites.changed.is_empty() && diff.stacks.changed.is_empty());
        assert_eq!(diff.stacks.unchanged, live.stacks.len() as u64);
    }
}

#[test]
fn differences_are_told() {
    let whole = file(false);
    let mut places = Places::default();
    let before = read_with(&whole, &mut places).expect("a dump");
    // Without the leaks, and with one customer twice.
    let mut lines: Vec<String> = String::from_utf8(whole).expect("text").lines().map(str::to_owned).collect();
    lines.retain(|l| !l.contains("main.leakyHandler"));
    let customer = lines.iter().find(|l| l.contains("\"select\"")).expect("a customer").clone();
    lines.push(customer.replace("\"goid\":", "\"goid\":1"));
    let summary = lines.iter().position(|l| l.starts_with("{\"summary\"")).expect("a summary");
    lines.remove(summary);
    let file = lines.join("\n").into_bytes();
    assert_eq!(
        read(&file).expect_err("no summary"),
        format!("a.json, line {}: the file ends here without a summary: it was cut short", lines.len() + 1)
    );
    lines.push("{\"summary\":{}}".into());
    let mut after = read_with(lines.join("\n").as_bytes(), &mut places).expect("a dump");
    after.time_unix_nano = after.time_unix_nano.map(|t| t + 90_000_000_000);
    let (text, json) = diff_of(&before, &after, &places);
    assert_golden("demo.diff.txt", text.as_bytes());
    assert_golden("demo.diff.json", json.as_bytes());
    let (back, _) = diff_of(&after, &before, &places);
    assert!(back.contains("1m30s EARLIER") && back.contains("new"), "{back}");
}

#[test]
fn what_is_no_dump_is_refused_with_its_line() {
    let header = "{\"schema\":\"gotrace.dump/1\"}\n";
    let goroutine = "{\"goid\":1,\"state\":\"running\",\"stack\":[]}\n";
    let with = |rest: &str| format!("{header}{rest}");
    for (text, expected) in [
        (String::new(), "line 1: the file is empty"),
        ("\u{7f}ELF".into(), "line 1: not a header: expected value, at column 1"),
        ("{}\n".into(), "line 1: it has no schema"),
        ("{\"schema\":\"gotrace.attach/1\"}\n".into(), "line 1: its schema is \"gotrace.attach/1\""),
        (with(""), "line 2: the file ends here without a summary"),
        (with(goroutine), "line 3: the file ends here without a summary"),
        (with("\n"), "line 2: not a line of a dump"),
        (with("{\"goid\":1}\n"), "line 2: a goroutine without state or stack"),
        (with("{\"goid\":-1}\n"), "line 2: not a line of a dump: invalid value: integer `-1`"),
        (with("{}\n"), "line 2: neither a goroutine, a group nor a summary"),
        (with("{\"group\":{\"count\":0,\"state\":\"x\",\"stack\":[]}}\n"), "line 2: a group without"),
        (
            with("{\"group\":{\"count\":18446744073709551615,\"state\":\"x\",\"stack\":[]}}\n"),
            "line 2: a group without a possible count",
        ),
        (
            with(&format!("{goroutine}{{\"summary\":{{\"written\":2}}}}\n")),
            "line 3: the summary tells of 2 goroutines, but 1 come before it",
        ),
        (with("{\"summary\":{}}\n{}\n"), "line 3: something follows the summary"),
    ] {
        let error = read(text.as_bytes()).expect_err(&text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    let nested = with(&"{\"group\":".repeat(100_000));
    assert!(read(nested.as_bytes()).expect_err("too deep").contains("line 2: not a line of a dump"));
    let endless = std::io::Read::take(std::io::repeat(b'x'), MAX_LINE_BYTES + 10);
    let error =
        Tally::read("x", &mut BufReader::new(endless), false, &mut Places::default()).expect_err("too long");
    assert!(error.to_string().contains("line 1: longer than"), "{error}");
}

#[test]
fn cut_and_changed_files_do_no_harm() {
    let whole = file(true);
    for end in (0..whole.len().saturating_sub(1)).step_by(97) {
        // Only the line end of the summary may be missing.
        assert!(read(&whole[..end]).is_err(), "{end}");
    }
    let mut changed = whole.clone();
    for at in (0..whole.len()).step_by(61) {
        for byte in [0, b'"', b'9', 0xff] {
            changed[at] = byte;
            let _ = read(&changed);
        }
        changed[at] = whole[at];
    }
}

#[test]
fn places_that_differ_are_told_apart() {
    let place = |function: &'static str, file: Option<&'static str>, line| Place {
        function: function.into(),
        file: file.map(Into::into),
        line,
    };
    let spelled = |places: &[Place<'_>]| {
        let mut text = String::new();
        places.iter().for_each(|p| spell(&mut text, p));
        text
    };
    let all = [
        spelled(&[place("a", Some("b"), Some(1))]),
        spelled(&[place("a", Some("b1"), None)]),
        spelled(&[place("a1:b", None, Some(1))]),
        spelled(&[place("a", None, None), place("b", None, Some(1))]),
    ];
    for (n, one) in all.iter().enumerate() {
        assert!(!all[n + 1..].contains(one), "{all:?}");
    }
}

#[test]
fn what_a_dump_says_is_not_obeyed_by_a_terminal() {
    let whole = String::from_utf8(file(false)).expect("text");
    let hostile = whole
        .replace("main.waitForever", "main.\\u001b[2Jwait")
        .replace("/usr/bin/demo", "/usr/bin/\\u001b]0;title\\u0007")
        .replace("\"chan receive\"", "\"chan\\rreceive\"");
    assert_ne!(hostile, whole);
    let mut places = Places::default();
    let before = read_with(whole.as_bytes(), &mut places).expect("a dump");
    let after = read_with(hostile.as_bytes(), &mut places).expect("a dump");
    let (text, lines) = diff_of(&before, &after, &places);
    assert!(text.contains("main.\\u{1b}[2Jwait") && text.contains("\\u{1b}]0;title"), "{text}");
    for written in [text, lines] {
        assert!(!written.contains(|c: char| c.is_control() && c != '\n'), "{written:?}");
    }
}
