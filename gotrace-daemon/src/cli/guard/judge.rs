//! From what the line knows of programs that have ended to what is told of them: names for addresses, and what is known
//! of each finding beforehand.

use std::{collections::BTreeMap, io};

use super::{Found, Judgement, Program, Unjudged};
use crate::cli::{Format, args::FailOn};
use gotrace_agent::pipeline::{self, LeftProcess, ProvenProcess};
use gotrace_export::{
    json,
    leaks::{self, Header, When},
    text,
};
use gotrace_inspect::{
    leak::{Acceptance, Finding, Identity},
    snapshot::{Names, Outside},
};
use gotrace_model::{Leak, Level, Levels, printable::printable};

/// What programs came to that have ended. `proven`: `None` where proofs are not asked for, and likewise `left`.
///
/// # Errors
/// What the writer of text says: none.
pub fn judge(
    left: Option<Vec<LeftProcess>>,
    proven: Option<&[ProvenProcess]>,
    acceptance: &Acceptance,
    format: Format,
) -> io::Result<Vec<Program>> {
    let mut programs: BTreeMap<u32, Program> = BTreeMap::new();
    for process in left.into_iter().flatten() {
        let LeftProcess { pid, is_test, .. } = process;
        let (executable, package) = (process.executable.clone(), process.package.clone());
        let judgement = left_behind(process, acceptance, format)?;
        let new = || Program { pid, executable, package, is_test, judgements: Vec::new() };
        programs.entry(pid).or_insert_with(new).judgements.push(judgement);
    }
    for process in proven.into_iter().flatten() {
        let ProvenProcess { pid, is_test, .. } = *process;
        let judgement = unreachable(process, acceptance, format)?;
        let new = || Program {
            pid,
            executable: process.executable.clone(),
            package: process.package.clone(),
            is_test,
            judgements: Vec::new(),
        };
        programs.entry(pid).or_insert_with(new).judgements.push(judgement);
    }
    Ok(programs.into_values().collect())
}

impl Unjudged {
    fn of(level: Level, levels: &Levels) -> Option<Self> {
        let below_ns = levels.below_ns(level.name());
        (below_ns > 0).then(|| Self {
            level_needed: level.name().to_owned(),
            below_ns,
            budget: levels.budget,
        })
    }
}

fn left_behind(mut process: LeftProcess, acceptance: &Acceptance, format: Format) -> io::Result<Judgement> {
    if process.unknown > 0 || process.lossy {
        tracing::warn!(
            pid = process.pid,
            created_unseen = process.unknown,
            events_lost = process.lossy,
            "cannot tell exactly what the program left behind"
        );
    }
    let mut findings = Vec::new();
    for finding in &mut process.findings {
        let identity = Identity::of(finding, &mut process.names);
        finding.accepted = acceptance.of(&identity);
        findings.push(found(finding, identity, None, &mut process.names)?);
    }
    // A goroutine that was woken is not left behind, and only level `full` tells.
    let unjudged = Unjudged::of(Level::Full, &process.levels);
    let header = Header {
        pid: process.pid,
        executable: &process.executable,
        go_version: &process.go_version,
        engine: "events",
        time_unix_nano: process.time_unix_nano,
        duration_ns: 0,
        looks: 0,
        goroutines: process.alive,
        came_and_exited: (0, 0),
        when: When::AtItsEnd,
        references_complete: true,
        proof: None,
        outside: None,
    };
    let mut printed = Vec::new();
    // Of what could not be judged none is not said to be none.
    let (none, names) = (process.findings.is_empty(), &mut process.names);
    match format {
        Format::Table if none => {}
        Format::Table => leaks::text::write(&mut printed, header, &process.findings, names)?,
        Format::Json if none && unjudged.is_some() => {}
        Format::Json => leaks::json::write(&mut printed, header, &process.findings, names)?,
    }
    Ok(Judgement {
        verdict: FailOn::LeftBehind,
        findings,
        not_judged: process.not_judged + process.unknown,
        unjudged,
        proof_age: None,
        printed: String::from_utf8_lossy(&printed).into_owned(),
    })
}

/// A finding with names for its addresses. `outside`: as its text has it.
///
/// # Errors
/// What the writer of text says: none.
pub fn found(
    finding: &Finding,
    identity: Identity,
    outside: Option<&Outside>,
    names: &mut Names,
) -> io::Result<Found> {
    let mut block = Vec::new();
    leaks::text::finding(&mut block, finding, outside, names)?;
    let created = names.created_by(finding.created_pc).first().cloned();
    let place = created.or_else(|| names.entry(finding.entry_pc).cloned());
    let place = place.filter(|p| !p.file.is_empty());
    let reason = finding.wait_reason.and_then(|r| names.binary().wait_reasons().get(usize::from(r)).copied());
    Ok(Found {
        identity,
        accepted: finding.accepted.clone(),
        count: finding.count() as u64,
        file: place.as_ref().map(|p| p.file.clone()),
        line: place.map_or(0, |p| p.line),
        wait_reason: reason.filter(|r| !r.is_empty()).map(str::to_owned),
        test: finding.test.clone(),
        text: String::from_utf8_lossy(&block).into_owned(),
    })
}

/// A process's memory is gone when it has ended, so that there is no proof as of its end.
fn unreachable(process: &ProvenProcess, acceptance: &Acceptance, format: Format) -> io::Result<Judgement> {
    let ProvenProcess { pid, executable, last, before_the_end, .. } = process;
    let findings: Vec<Found> = last.leaks.iter().map(|leak| proven(leak, acceptance)).collect();
    let mut out = Vec::new();
    match format {
        Format::Json => json::proven(&mut out, last)?,
        Format::Table => {
            use std::io::Write as _;
            let name = printable(executable.rsplit('/').next().unwrap_or(executable)).into_owned();
            if !last.leaks.is_empty() {
                writeln!(out, "pid {pid} ({name}): leaked goroutines")?;
                text::leaks(&mut out, last)?;
            }
            for known in findings.iter().filter(|f| f.accepted.in_baseline == Some(true)) {
                writeln!(out, "  known: {} is in the baseline", printable(&known.identity.function))?;
            }
            match before_the_end {
                Some(before) => writeln!(
                    out,
                    "pid {pid} ({name}): the last leak check began {:.1} s before exit; later leaks are not covered",
                    before.as_secs_f64()
                )?,
                None => writeln!(
                    out,
                    "pid {pid} ({name}): exited before the leak check finished: result unknown"
                )?,
            }
        }
    }
    Ok(Judgement {
        verdict: FailOn::Unreachable,
        findings,
        not_judged: 0,
        // Proofs are made where goroutines wait, and level `lifecycle` does not tell.
        unjudged: Unjudged::of(Level::Waits, &last.levels),
        proof_age: before_the_end.map(|before| before.as_secs_f64()),
        printed: String::from_utf8_lossy(&out).into_owned(),
    })
}

fn proven(leak: &Leak, acceptance: &Acceptance) -> Found {
    let identity = pipeline::identity(leak);
    let place = Some(leak.created_by.as_ref().unwrap_or(&leak.entry)).filter(|p| !p.file.is_empty());
    let at = leak
        .waits_at
        .as_ref()
        .map_or_else(String::new, |at| format!("\nblocked in {} ({}:{})", at.function, at.file, at.line));
    let retained = leak.retained_bytes.map_or_else(String::new, |n| format!("\nretaining {n} bytes of heap"));
    Found {
        accepted: acceptance.of(&identity),
        count: leak.count,
        file: place.map(|p| p.file.to_string()),
        line: place.map_or(0, |p| p.line),
        wait_reason: Some(leak.reason.to_string()),
        test: None,
        text: format!("{} goroutines of {}: {}{at}{retained}", leak.count, identity.function, leak.reason),
        identity,
    }
}
