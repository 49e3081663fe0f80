//! The steps that live tests share: attach to the program, let it run, hold the accounts against each
//! other.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};

use serde_json::Value;

use crate::{
    compare::{Counted, Rules, compare},
    export::Export,
    fixture::{Account, Fixture},
    gotrace::{Gotrace, Outcome},
};

/// Arguments under which the program runs all scenarios whose account is exact.
pub const EXACT: [&str; 4] = ["-scenario", "all", "-nap", "20ms"];

/// Frames of a wait that reach from where the runtime waits for the network to the program's own code.
pub const DEEP: [&str; 2] = ["--stack-depth", "16"];

/// Attaches at level `full`, runs every scenario, and holds gotrace's account against the program's.
///
/// # Errors
/// Every disagreement, one a line; anything that goes wrong on the way.
pub fn exact(program: &Path) -> Result<Counted> {
    let fixture = Fixture::start(program, &EXACT)?;
    let gotrace = Gotrace::attach(fixture.pid(), &DEEP)?;
    exact_with(fixture, gotrace)
}

/// The same with a program and a gotrace that were started already.
///
/// # Errors
/// As [`exact`].
pub fn exact_with(mut fixture: Fixture, gotrace: Gotrace) -> Result<Counted> {
    fixture.run()?;
    let account = fixture.account()?;
    fixture.finish()?;
    let outcome = gotrace.wait()?;
    ensure!(
        outcome.status.success(),
        "the target exited, and gotrace ended with {}:\n{}",
        outcome.status,
        outcome.stderr
    );
    judge(&account, &outcome)
}

/// Holds an export against an account.
///
/// # Errors
/// Every disagreement, one a line.
pub fn judge(account: &Account, outcome: &Outcome) -> Result<Counted> {
    let lost = outcome.lost()?;
    ensure!(lost == 0, "gotrace lost {lost} at a rate at which nothing may be lost: {:?}", outcome.summary());
    places(&outcome.export, outcome.summary()?)?;
    match compare(account, &outcome.export.spans, Rules::default()) {
        Ok(counted) => {
            ensure!(counted.goroutines > 0 && counted.waits > 0, "the account is empty");
            Ok(counted)
        }
        Err(wrong) => {
            if let Some(dir) = std::env::var_os("GOTRACE_KEEP") {
                keep(Path::new(&dir), account, outcome)?;
            }
            let many = wrong.len();
            bail!(
                "{many} disagreements:\n  {}\ngotrace said:\n{}",
                wrong.into_iter().take(25).collect::<Vec<_>>().join("\n  "),
                outcome.stderr
            )
        }
    }
}

/// Holds the summary's places of waits against the spans of the same waits: as many, as long, the longest as long.
///
/// # Errors
/// What disagrees.
pub fn places(export: &Export, summary: &Value) -> Result<()> {
    type Sums = BTreeMap<(String, String), (u64, u64, u64)>;
    let add = |sums: &mut Sums, reason: &str, function: &str, (count, total, max): (u64, u64, u64)| {
        let sum = sums.entry((reason.into(), function.into())).or_default();
        *sum = (sum.0 + count, sum.1 + total, max.max(sum.2));
    };
    let (mut of_spans, mut told) = (Sums::new(), Sums::new());
    for span in export.spans.iter().filter(|s| s.is_wait()) {
        let ns = span.end_ns - span.start_ns;
        add(&mut of_spans, span.get("gotrace.wait.reason"), span.own_code(), (1, ns, ns));
    }
    for place in summary["waits_at"].as_array().context("places of waits")? {
        let number = |name: &str| place[name].as_u64().unwrap_or(u64::MAX);
        let figures = (number("count"), number("total_ns"), number("max"));
        let [reason, function] =
            [&place["reason"], &place["frame"]["function"]].map(|v| v.as_str().unwrap_or_default());
        add(&mut told, reason, function, figures);
        let stack = place["stack"].as_array().context("a stack")?;
        ensure!(
            stack.is_empty() || stack.iter().any(|frame| *frame == place["frame"]),
            "a place is not on its own stack: {place}"
        );
    }
    ensure!(summary["waits_at_others"]["count"] == 0, "places found no room: {}", summary["waits_at_others"]);
    ensure!(told == of_spans, "places of waits are\n{told:#?}\ninstead of\n{of_spans:#?}");
    Ok(())
}

/// Leaves both accounts where the person who looks for the error asked for them.
fn keep(dir: &Path, account: &Account, outcome: &Outcome) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let name = format!("{}-{}", account.go_version, std::process::id());
    std::fs::write(dir.join(format!("{name}.account")), format!("{account:#?}"))?;
    std::fs::write(dir.join(format!("{name}.export")), format!("{:#?}", outcome.export))?;
    Ok(())
}
