//! `gotrace dump` as its users see it: the text equals what the program's own runtime prints, line by line,
//! arguments included, but for how long a goroutine waits; `go tool pprof` opens the profile and counts the same
//! goroutines; a dump does not differ from its process. Needs root and `go`.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use gotrace_tests::{
    gobuild::{Arch, CORNER_VERSIONS, Mode, build},
    gotrace::{binary, privileged},
    stacks::Stacks,
    traceback::arguments,
};
use serde_json::Value;

fn gotrace(args: &[&str]) -> Result<String> {
    let output = Command::new(binary()?).args(args).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && errors.is_empty(), "{args:?}: {}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn each_version(check: impl Fn(&mut Stacks, &str) -> Result<()>) {
    if !privileged("live_dump") {
        return;
    }
    for version in CORNER_VERSIONS {
        let program = build("stacks", version, Mode::Plain, Arch::HOST).expect("a program");
        let mut stacks = Stacks::start(&program, None).expect("it starts");
        let pid = stacks.pid().to_string();
        if let Err(e) = check(&mut stacks, &pid) {
            panic!("go{version}: {e:#}");
        }
    }
}

/// Goroutines of a traceback by goid, each as its lines, without minutes, and with arguments or without.
fn goroutines(text: &str, with_arguments: bool) -> BTreeMap<u64, Vec<String>> {
    let plain = |line: &str| match arguments(line) {
        Some(open) if !with_arguments => format!("{}(...)", &line[..open]),
        _ => line.to_owned(),
    };
    let mut all = BTreeMap::new();
    for block in text.trim().split("\n\n") {
        let mut lines = block.lines();
        let header = lines.next().expect("a header");
        let goid = header.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a goid");
        // Go has nothing of what it waits for outside of the process, which comes last.
        let header: Vec<&str> = header
            .split(", ")
            .filter(|part| !part.trim_end_matches("]:").ends_with(" minutes"))
            .enumerate()
            .take_while(|(n, part)| *n == 0 || part.trim_end_matches("]:") == "locked to thread")
            .map(|(_, part)| part)
            .collect();
        let header = header.join(", ");
        let header = header.strip_suffix("]:").unwrap_or(&header).to_owned() + "]:";
        all.insert(goid, std::iter::once(header).chain(lines.map(plain)).collect());
    }
    all
}

#[test]
fn text_is_the_programs_own_traceback() {
    each_version(|stacks, pid| {
        let ours = goroutines(&gotrace(&["dump", "--pid", pid])?, false);
        let own = goroutines(&stacks.own_text()?, false);
        ensure!(ours.len() > 35, "only {} goroutines", ours.len());
        ensure!(ours.keys().eq(own.keys()), "goids: {:?} and {:?}", ours.keys(), own.keys());
        for (goid, own) in own {
            // It runs while it prints.
            if goid == 1 {
                continue;
            }
            agree(goid, &ours[&goid], &own)?;
        }
        Ok(())
    });
}

/// Holds a goroutine's lines against those that the program printed.
fn agree(goid: u64, ours: &[String], own: &[String]) -> Result<()> {
    // The runtime leaves out the middle of deep stacks, or, up to Go 1.20, their outer end.
    let created = own.iter().position(|l| l.starts_with("created by")).unwrap_or(own.len());
    let gap = own.iter().position(|l| l.starts_with("...")).map(|gap| (gap, gap + 1));
    let (inner, outer) =
        gap.unwrap_or(if own.len() < ours.len() { (created, created) } else { (own.len(), own.len()) });
    ensure!(ours.len() > 200 || inner == own.len(), "goroutine {goid} is cut: {own:?}");
    let outer = &own[outer..];
    ensure!(ours.starts_with(&own[..inner]), "goroutine {goid}:\n{ours:#?}\n{own:#?}");
    ensure!(ours.ends_with(outer), "goroutine {goid}:\n{ours:#?}\n{own:#?}");
    Ok(())
}

#[test]
fn arguments_are_those_of_the_programs_own_traceback() {
    each_version(|stacks, pid| {
        // The collector, which the first makes work, may move stacks, and with them what points to them.
        stacks.own_text()?;
        let before = goroutines(&stacks.own_text()?, true);
        let ours = goroutines(&gotrace(&["dump", "--pid", pid, "--args"])?, true);
        let lines = gotrace(&["dump", "--pid", pid, "--args", "--format", "json"])?;
        let after = goroutines(&stacks.own_text()?, true);
        let (mut still, mut printed) = (0, Vec::new());
        for (goid, own) in &before {
            if *goid == 1 || after.get(goid) != Some(own) {
                continue;
            }
            still += 1;
            let ours = ours.get(goid).with_context(|| format!("no goroutine {goid}"))?;
            agree(*goid, ours, own)?;
            printed.extend(ours.iter().filter_map(|l| arguments(l).map(|open| l[open..].to_owned())));
        }
        ensure!(still > 30, "only {still} goroutines stood still");
        let several = [
            ("numbers", "(0x"),
            ("dead ones", "0x0?"),
            ("composites", "{0x"),
            ("none", "()"),
            ("inlined functions", "(...)"),
        ];
        for (what, text) in several {
            ensure!(printed.iter().any(|p| p.contains(text)), "no {what} ({text}) among {printed:?}");
        }
        arguments_in_json(&lines, &ours)
    });
}

/// The frames that Go shows have in JSON the arguments that they have in the text.
fn arguments_in_json(lines: &str, text: &BTreeMap<u64, Vec<String>>) -> Result<()> {
    let mut frames = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line)?;
        if let Some(summary) = line.get("summary") {
            ensure!(summary["args_unreadable"] == 0, "{summary}");
        }
        let Some(goid) = line["goid"].as_u64() else { continue };
        let printed = text[&goid].iter().filter_map(|l| arguments(l).map(|open| &l[open..]));
        let stack = line["stack"].as_array().context("a stack")?;
        let shown: Vec<String> = stack
            .iter()
            .filter(|f| f["internal"] == false)
            .map(|f| match (&f["args"], &f["inlined"]) {
                (Value::Null, Value::Bool(true)) => "(...)".to_owned(),
                (Value::String(args), Value::Bool(false)) => format!("({args})"),
                (args, inlined) => format!("{args} of a frame with inlined: {inlined}"),
            })
            .collect();
        frames += shown.len();
        ensure!(printed.eq(shown.iter().map(String::as_str)), "goroutine {goid}: {shown:?}");
    }
    ensure!(frames > 100, "only {frames} frames");
    Ok(())
}

#[test]
fn go_tool_pprof_counts_the_same_goroutines() {
    each_version(|_, pid| {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("goroutines.pb.gz");
        let file = file.to_str().context("a path")?;
        gotrace(&["dump", "--pid", pid, "--format", "pprof", "--output", file])?;
        let pprof = |report: &str| {
            let output = Command::new("go").args(["tool", "pprof", report, file]).output()?;
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "go tool pprof {report}: {errors}");
            Ok(String::from_utf8(output.stdout)?)
        };
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        let lines = gotrace(&["dump", "--pid", pid, "--format", "json"])?;
        let mut total = 0;
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line)?;
            if line.get("goid").is_none() {
                continue;
            }
            total += 1;
            for key in ["state", "wait_reason"] {
                if let Some(value) = line[key].as_str() {
                    *counts.entry((key.to_owned(), value.to_owned())).or_insert(0) += 1;
                }
            }
            for (key, value) in line["labels"].as_object().context("labels")? {
                let value = value.as_str().context("a label")?.to_owned();
                *counts.entry((key.clone(), value)).or_insert(0) += 1;
            }
        }
        let top = pprof("-top")?;
        ensure!(top.contains(&format!("Total samples = {total} ")), "{total} goroutines, but:\n{top}");
        ensure!(top.contains("main.forever") && top.contains("(inline)"), "{top}");
        // ` state: Total 41 of 41 (  100%)`, then `39 (95.12%): waiting`.
        let mut tags: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut key = String::new();
        for line in pprof("-tags")?.lines().map(str::trim) {
            if let Some((name, _)) = line.split_once(": Total ") {
                key = name.to_owned();
            } else if let Some((count, value)) = line.split_once("%): ") {
                let count = count.split(' ').next().and_then(|n| n.parse().ok()).context("a count")?;
                tags.insert((key.clone(), value.to_owned()), count);
            }
        }
        ensure!(
            tags.keys().any(|(key, value)| key == "created_by" && value.starts_with("main.spawn (main.go:"))
        );
        tags.retain(|(key, _), _| key != "created_by");
        ensure!(tags == counts, "pprof counts {tags:?}\nand the dump {counts:?}");
        let traces = pprof("-traces")?;
        ensure!(traces.contains("tenant:  blue"), "{traces}");
        Ok(())
    });
}

#[test]
fn a_process_that_stands_still_does_not_differ_from_its_dump() {
    each_version(|_, pid| {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("dump.json");
        let file = file.to_str().context("a path")?;
        let old = ["dump", "--pid", pid, "--format", "json", "-o", file, "--min-age", "300ms"];
        gotrace(&old)?;
        gotrace(&["dump", "--pid", pid, "--format", "json", "--group", "-o", &format!("{file}.group")])?;
        for (a, b) in
            [(file.to_owned(), format!("pid:{pid}")), (format!("{file}.group"), format!("pid:{pid}"))]
        {
            // The filters differ, which it says on stderr.
            let output = Command::new(binary()?).args(["diff", &a, &b, "--format", "json"]).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let lines = String::from_utf8(output.stdout)?;
            ensure!(lines.lines().count() == 2, "{lines}");
            let last: Value = serde_json::from_str(lines.lines().last().context("a summary")?)?;
            let goroutines = &last["summary"]["goroutines"];
            ensure!(
                goroutines["before"] == goroutines["after"] && goroutines["after"].as_u64() > Some(35),
                "{last}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_goroutine_that_does_not_exist_is_an_error() {
    if !privileged("live_dump") {
        return;
    }
    let program = build("stacks", "1.27.3", Mode::Plain, Arch::HOST).expect("a program");
    let stacks = Stacks::start(&program, None).expect("it starts");
    let pid = stacks.pid().to_string();
    for (goids, shown, said) in [
        ("999999", false, "has no goroutine 999999"),
        ("1,999999", true, "has no goroutine 999999"),
        ("999998,999999", false, "has no goroutines 999998, 999999"),
    ] {
        let output =
            Command::new(binary().expect("built")).args(["dump", "--pid", &pid, "--goid", goids]).output();
        let output = output.expect("gotrace runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{goids}: {errors}");
        assert!(errors.contains(said), "{goids}: {errors}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).contains("goroutine 1 ["), shown, "{goids}");
    }
}
