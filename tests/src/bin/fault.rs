//! Runs `gotrace` and lets one of its system calls fail: `fault REPORT -- gotrace …` writes all places from which it
//! calls the kernel; `fault REPORT CALL PLACE ERROR -- gotrace …` has the first call from that place fail.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitCode, exit},
};

use anyhow::{Context as _, Result, bail};
use gotrace_tests::faults::supervise::{Fault, INNER, Order, become_filtered, run};

fn order(words: &[OsString]) -> Result<Order> {
    let end = words.iter().position(|w| w == "--").context("`--` before the command")?;
    let text = |at: usize| words[at].to_str().context("a word");
    let fault = match end {
        1 => None,
        4 => Some(Fault {
            call: text(1)?.parse().context("CALL")?,
            place: text(2)?.to_owned(),
            error: text(3)?.parse().context("ERROR")?,
        }),
        _ => bail!("usage: fault REPORT [CALL PLACE ERROR] -- COMMAND…"),
    };
    Ok(Order { report: PathBuf::from(&words[0]), fault, command: words[end + 1..].to_vec() })
}

fn main() -> Result<ExitCode> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let [inner, only, command @ ..] = &words[..]
        && inner == INNER
    {
        match become_filtered(only.to_str().context("a word")?, command)? {}
    }
    let status = run(order(&words)?)?;
    // Which signal ended it is told as a shell tells it.
    exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}
