//! Runs the Go program that leaks in many patterns, each beside a healthy twin, and reads its own account: who is
//! leaked, who waits as well and can be woken, and, from Go 1.27 on, whom the runtime itself calls leaked.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::Receiver,
};

use anyhow::{Context, Result, bail};

use crate::fixture::{PATIENCE, read_lines};

/// What it says of its goroutines.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// By goid, the patterns of those that never run again.
    pub leaked: BTreeMap<u64, String>,
    /// By goid, the patterns of those that wait and that somebody can wake.
    pub healthy: BTreeMap<u64, String>,
    /// Whom its runtime calls leaked; `None` before it was asked, and where the version has no such profile.
    pub profile: Option<BTreeSet<u64>>,
    /// Of the healthy, those that could not be woken; `None` before it tried.
    pub left: Option<Vec<u64>>,
}

impl Told {
    /// Everything that it printed.
    ///
    /// # Errors
    /// Where that is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let mut told = Self::default();
        text.lines().try_for_each(|line| told.line(line).map(drop))?;
        Ok(told)
    }

    /// Takes in a line; whether it has come to rest.
    fn line(&mut self, line: &str) -> Result<bool> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, goids) = named(rest);
        match word {
            "READY" => return Ok(true),
            "LEAKED" => self.leaked.extend(goids.into_iter().map(|g| (g, name.clone()))),
            "HEALTHY" => self.healthy.extend(goids.into_iter().map(|g| (g, name.clone()))),
            "PROFILE" => self.profile = (name != "none").then(|| goids.into_iter().collect()),
            "RELEASED" => self.left = Some(goids),
            _ => bail!("the program said {line:?}"),
        }
        Ok(false)
    }
}

/// The running program, with its account.
#[derive(Debug)]
pub struct Patterns {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// What it has told so far.
    pub told: Told,
}

impl Patterns {
    /// Starts it, and waits until all that is to block has blocked. `rotate` chooses which of the ways to hold
    /// something each healthy twin uses.
    ///
    /// # Errors
    /// Where it does not start, or does not come to rest.
    pub fn start(program: &Path, rotate: usize) -> Result<Self> {
        let mut child = Command::new(program)
            .args(["-rotate", &rotate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let stdin = child.stdin.take().context("a pipe")?;
        let lines = read_lines(child.stdout.take().context("a pipe")?);
        let mut this = Self { child, stdin, lines, told: Told::default() };
        while !this.told.line(&this.lines.recv_timeout(PATIENCE).context("the program says nothing")?)? {}
        Ok(this)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whom its runtime calls leaked; `None` where the version has no such profile.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn profile(&mut self) -> Result<Option<BTreeSet<u64>>> {
        self.ask("profile")?;
        Ok(self.told.profile.clone())
    }

    /// Lets it wake everybody who can be woken; gives those that did not end.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn release(&mut self) -> Result<Vec<u64>> {
        self.ask("release")?;
        self.told.left.clone().context("it told of nobody whom it woke")
    }

    fn ask(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}").context("it does not listen")?;
        let line = self.lines.recv_timeout(PATIENCE).context("the program does not answer")?;
        self.told.line(&line).map(drop)
    }
}

impl Drop for Patterns {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A name of several words, and the numbers behind it.
fn named(text: &str) -> (String, Vec<u64>) {
    let (numbers, words): (Vec<&str>, Vec<&str>) = text.split(' ').partition(|w| w.parse::<u64>().is_ok());
    (words.join(" "), numbers.iter().filter_map(|n| n.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(named("early return 7 12"), ("early return".into(), vec![7, 12]));
        assert_eq!(named(""), (String::new(), vec![]));
        assert_eq!(named("none"), ("none".into(), vec![]));
    }

    #[test]
    fn what_it_prints() {
        let told =
            Told::parse("LEAKED lost cancel 7\nHEALTHY lost cancel 9\nREADY\nPROFILE none\nRELEASED\n");
        let told = told.expect("readable");
        assert_eq!(told.leaked[&7], "lost cancel");
        assert_eq!(told.healthy[&9], "lost cancel");
        assert_eq!((told.profile, told.left), (None, Some(vec![])));
        assert!(Told::parse("UNSETTLED").is_err());
    }
}
