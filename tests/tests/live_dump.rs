//! `gotrace dump` as its users see it: the text equals what the program's own runtime prints, line by line,
//! but for arguments and how long a goroutine waits; `go tool pprof` opens the profile and counts the same
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

/// Goroutines of a traceback by goid, each as its lines, without arguments and minutes.
fn goroutines(text: &str) -> BTreeMap<u64, Vec<String>> {
    let plain = |line: &str| match arguments(line) {
        Some(open) => format!("{}(...)", &line[..open]),
        None => line.to_owned(),
    };
    let mut all = BTreeMap::new();
    for block in text.trim().split("\n\n") {
        let mut lines = block.lines();
        let header = lines.next().expect("a header");
        let goid = header.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a goid");
        let header: Vec<&str> =
            header.split(", ").filter(|part| !part.trim_end_matches("]:").ends_with(" minutes")).collect();
        let header = header.join(", ");
        let header = header.strip_suffix("]:").unwrap_or(&header).to_owned() + "]:";
        all.insert(goid, std::iter::once(header).chain(lines.map(plain)).collect());
    }
    all
}

#[test]
fn text_is_the_programs_own_traceback() {
    each_version(|stacks, pid| {
        let ours = goroutines(&gotrace(&["dump", "--pid", pid])?);
        let own = goroutines(&stacks.own_text()?);
        ensure!(ours.len() > 35, "only {} goroutines", ours.len());
        ensure!(ours.keys().eq(own.keys()), "goids: {:?} and {:?}", ours.keys(), own.keys());
        for (goid, own) in own {
            // It runs while it prints.
            if goid == 1 {
                continue;
            }
            let ours = &ours[&goid];
            // The runtime leaves out the middle of deep stacks, or, up to Go 1.20, their outer end.
            let created = own.iter().position(|l| l.starts_with("created by")).unwrap_or(own.len());
            let gap = own.iter().position(|l| l.starts_with("...")).map(|gap| (gap, gap + 1));
            let (inner, outer) = gap.unwrap_or(if own.len() < ours.len() {
                (created, created)
            } else {
                (own.len(), own.len())
            });
            ensure!(ours.len() > 200 || inner == own.len(), "goroutine {goid} is cut: {own:?}");
            let outer = &own[outer..];
            ensure!(ours.starts_with(&own[..inner]), "goroutine {goid}:\n{ours:#?}\n{own:#?}");
            ensure!(ours.ends_with(outer), "goroutine {goid}:\n{ours:#?}\n{own:#?}");
        }
        Ok(())
    });
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
