//! The steps that live tests share: attach to the program, let it run, hold the accounts against each
//! other.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::{
    compare::{Counted, Rules, compare},
    fixture::{Account, Fixture},
    gotrace::{Gotrace, Outcome},
};

/// Arguments under which the program runs all scenarios whose account is exact.
pub const EXACT: [&str; 4] = ["-scenario", "all", "-nap", "20ms"];

/// Attaches at level `full`, runs every scenario, and holds gotrace's account against the program's.
///
/// # Errors
/// Every disagreement, one a line; anything that goes wrong on the way.
pub fn exact(program: &Path) -> Result<Counted> {
    let fixture = Fixture::start(program, &EXACT)?;
    let gotrace = Gotrace::attach(fixture.pid(), &[])?;
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

/// Leaves both accounts where the person who looks for the error asked for them.
fn keep(dir: &Path, account: &Account, outcome: &Outcome) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let name = format!("{}-{}", account.go_version, std::process::id());
    std::fs::write(dir.join(format!("{name}.account")), format!("{account:#?}"))?;
    std::fs::write(dir.join(format!("{name}.export")), format!("{:#?}", outcome.export))?;
    Ok(())
}
