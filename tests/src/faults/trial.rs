//! Trials: `gotrace` with one system call that fails, and what is wrong with what came of it.
//!
//! Input: a command of gotrace. Output: the places from which it calls the kernel; of a trial how it ended, what it
//! printed, and whether the place was reached. A trial is judged here only as far as all commands are alike: no panic,
//! no hang, and a result that differs from that of a run without errors has a reason beside it.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::place::Place;
use crate::gotrace::binary;

/// The errors that are tried at each place.
pub const ERRORS: [(i32, &str); 4] =
    [(libc::EAGAIN, "EAGAIN"), (libc::EMFILE, "EMFILE"), (libc::ENOMEM, "ENOMEM"), (libc::EIO, "EIO")];

/// After so long a command that was to end by itself hangs.
const DEADLINE: Duration = Duration::from_secs(90);

/// An error at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// Its number.
    pub error: i32,
}

impl Fault {
    /// All errors at all places, in an order that has nothing to do with what they are, and is the same as long as
    /// the program is: so many of the first are a sample of all, and of another program another.
    #[must_use]
    pub fn all(places: &[Place]) -> Vec<Self> {
        let errors = |place: &Place| ERRORS.map(|(error, _)| Self { place: place.clone(), error });
        let mut all: Vec<Self> = places.iter().flat_map(errors).collect();
        all.sort_by_cached_key(|f| Sha256::digest(format!("{} {}", f.place.text, f.error)).to_vec());
        all
    }

    /// The error's name and the place.
    #[must_use]
    pub fn name(&self) -> String {
        let name = ERRORS.iter().find(|(error, _)| *error == self.error).map_or("?", |(_, name)| name);
        format!("{name} from {}", self.place.text)
    }
}

/// Runs `gotrace` under the supervisor.
#[derive(Debug)]
pub struct Supervisor {
    /// The command `fault`.
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Supervisor {
    /// With this command `fault`.
    ///
    /// # Errors
    /// Where no directory can be made.
    pub fn new(program: &str) -> Result<Self> {
        Ok(Self { program: program.into(), dir: tempfile::tempdir()? })
    }

    /// A command that ends with `gotrace`, which is made to fail so, or watched.
    ///
    /// # Errors
    /// Where gotrace is not built.
    pub fn gotrace(&self, fault: Option<&Fault>) -> Result<Command> {
        let report = self.report();
        // A former trial's.
        let _ = fs::remove_file(&report);
        let mut command = Command::new(&self.program);
        command.arg(report);
        if let Some(fault) = fault {
            command.args([fault.place.call.to_string(), fault.place.id(), fault.error.to_string()]);
        }
        command.arg("--").arg(binary()?);
        Ok(command)
    }

    fn report(&self) -> PathBuf {
        self.dir.path().join("report")
    }

    /// The places in the last report: all that were reached, or the one where the error was.
    ///
    /// # Errors
    /// Where it is none.
    pub fn places(&self) -> Result<Vec<Place>> {
        let text = fs::read_to_string(self.report()).context("reading the supervisor's report")?;
        text.lines()
            .map(|line| {
                let (call, text) = line.split_once(' ').with_context(|| format!("a report: {line}"))?;
                Ok(Place { call: call.parse()?, text: text.to_owned() })
            })
            .collect()
    }

    /// How to make a trial by hand.
    ///
    /// # Errors
    /// Where gotrace is not built.
    pub fn by_hand(&self, fault: &Fault, arguments: &[&str]) -> Result<String> {
        let gotrace = binary()?;
        let (call, place, error) = (fault.place.call, fault.place.id(), fault.error);
        let program = self.program.display();
        Ok(format!(
            "{program} /dev/stderr {call} {place} {error} -- {} {}",
            gotrace.display(),
            arguments.join(" ")
        ))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(&self, fault: Option<&Fault>, arguments: &[&str]) -> Result<Ended> {
        let [mut out, mut err] = [tempfile::tempfile()?, tempfile::tempfile()?];
        let mut command = self.gotrace(fault)?;
        command.args(arguments).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
        let mut child = command.spawn().context("starting the supervisor")?;
        let status = end(&mut child, DEADLINE)?;
        let text = |file: &mut fs::File| -> Result<String> {
            let mut bytes = Vec::new();
            std::io::Seek::rewind(file)?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Ended { status, stdout: text(&mut out)?, stderr: text(&mut err)? })
    }
}

/// Waits for a child's end; after the deadline it is killed, and there is no status.
fn end(child: &mut Child, deadline: Duration) -> Result<Option<i32>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.code().unwrap_or(-1)));
        }
        if begun.elapsed() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code, 128 and more after a signal; `None` where it hung.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Ended {
    /// That it ended as it should: without a panic, in time, and, where it failed, with its reason. Whether it
    /// succeeded.
    ///
    /// # Errors
    /// When not.
    pub fn check(&self) -> Result<bool> {
        no_panic(&self.stderr)?;
        match self.status {
            None => bail!("it hangs"),
            Some(0) => Ok(true),
            Some(code @ 1..=10) => {
                ensure!(
                    self.stderr.lines().any(|l| l.starts_with("error: ")),
                    "it ended with {code} and no word of why"
                );
                Ok(false)
            }
            Some(code) => bail!("it ended with {code}"),
        }
    }

    /// That its result is the one wanted, or it said why not.
    ///
    /// # Errors
    /// When neither is so, with how they differ.
    pub fn check_same(&self, wanted: &str, result: &str) -> Result<()> {
        if wanted == result || has_reason(&self.stderr) {
            return Ok(());
        }
        bail!("its result differs, and it does not say why: {}", difference(wanted, result))
    }
}

/// That nothing panicked.
///
/// # Errors
/// When something did.
pub fn no_panic(said: &str) -> Result<()> {
    let panic = said.lines().find(|l| l.contains("panicked at") || l.contains("memory allocation of"));
    match panic {
        Some(line) => bail!("it panicked: {line}"),
        None => Ok(()),
    }
}

/// Whether a warning was said, to users or in the log.
#[must_use]
pub fn has_reason(said: &str) -> bool {
    said.lines().any(|l| l.starts_with("warning: ") || l.contains(" WARN ") || l.contains(" ERROR "))
}

/// The first lines that differ.
fn difference(wanted: &str, result: &str) -> String {
    let (mut a, mut b) = (wanted.lines(), result.lines());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return "they do not".to_owned(),
            (x, y) if x != y => {
                return format!("\n  wanted {}\n  is     {}", x.unwrap_or("-"), y.unwrap_or("-"));
            }
            _ => {}
        }
    }
}

/// What came of a trial.
#[derive(Debug)]
pub struct Trial {
    /// Whether the place was reached, so that the error was made.
    pub reached: bool,
    /// Whether it succeeded, or what was wrong with it.
    pub came: Result<bool>,
    /// What was said on stderr.
    pub said: String,
}

/// What is wrong, of all trials of a command.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Trials in which the error was made.
    pub tried: usize,
    /// Those in which the place was not reached.
    pub missed: usize,
    /// Those that ended with an error.
    pub failed: usize,
    wrong: Vec<String>,
}

impl Verdicts {
    /// Makes a trial and takes what came of it. One that went wrong is made once more: what an error leads to it leads to
    /// again, and what else goes on beside a trial does not. A panic is wrong at once.
    pub fn take(&mut self, fault: &Fault, by_hand: &str, mut trial: impl FnMut() -> Trial) {
        let mut made = trial();
        if let Err(e) = &made.came
            && no_panic(&made.said).is_ok()
        {
            println!("faults: {}: {e:#}\nfaults: that trial is made once more", fault.name());
            made = trial();
        }
        let Trial { reached, came, said } = made;
        if reached {
            self.tried += 1;
        } else {
            self.missed += 1;
        }
        match came {
            Ok(true) => {}
            Ok(false) => self.failed += 1,
            Err(e) => {
                let said = said.lines().take(12).collect::<Vec<_>>().join("\n    ");
                let wrong = format!("{}: {e:#}\n    {said}\n    repeat with {by_hand}", fault.name());
                eprintln!("faults: {wrong}");
                self.wrong.push(wrong);
            }
        }
    }

    /// Whether so many were tried; never where all are to be. Threads come to other places in another run, so that some
    /// are not reached again.
    #[must_use]
    pub fn are_enough(&self, some: usize) -> bool {
        !is_long() && self.tried >= some
    }

    /// Tells the figures; nothing may be wrong, and so many must have been tried.
    ///
    /// # Panics
    /// Where it is not so.
    pub fn none_wrong(self, name: &str, places: &[Place], least: usize) {
        let Self { tried, missed, failed, wrong } = self;
        if is_long() {
            places.iter().for_each(|place| println!("faults: {name}: place {} {}", place.id(), place.text));
        }
        println!(
            "faults: {name}: {} places, {} errors each; {tried} tried, {missed} not reached again; {failed} \
             ended with an error, {} wrong",
            places.len(),
            ERRORS.len(),
            wrong.len()
        );
        assert!(wrong.is_empty(), "{name}: {} trials are wrong; each is told above", wrong.len());
        assert!(tried >= least, "{name}: {tried} trials are fewer than {least}");
    }
}

/// Whether all is to be tried (`GOTRACE_FAULTS=long`).
#[must_use]
pub fn is_long() -> bool {
    std::env::var("GOTRACE_FAULTS").is_ok_and(|v| v == "long")
}

/// The path of a file as an argument.
///
/// # Errors
/// When it is not UTF-8.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: Option<i32>, stderr: &str) -> Ended {
        Ended { status, stdout: String::new(), stderr: stderr.into() }
    }

    #[test]
    fn panics_hangs_and_silence_are_wrong_and_reasons_are_not() {
        assert!(ended(Some(0), "").check().is_ok_and(|succeeded| succeeded));
        assert!(ended(Some(1), "error: cannot read it\n").check().is_ok_and(|succeeded| !succeeded));
        for (status, said) in [
            (Some(0), "thread 'x' panicked at a.rs:1:2:\n"),
            (Some(1), "error: x\nthread 'x' panicked at a.rs:1:2:\n"),
            (Some(1), "it did not go\n"),
            (Some(101), ""),
            (Some(134), "memory allocation of 8 bytes failed\n"),
            (Some(139), ""),
            (None, ""),
        ] {
            assert!(ended(status, said).check().is_err(), "{status:?} {said}");
        }
    }

    #[test]
    fn what_differs_needs_a_reason() {
        assert!(ended(Some(0), "").check_same("a\nb", "a\nb").is_ok());
        assert!(ended(Some(0), "").check_same("a\nb", "a").is_err());
        assert!(ended(Some(0), "a word\n").check_same("a", "b").is_err());
        assert!(ended(Some(0), "warning: no descriptors\n").check_same("a", "b").is_ok());
        assert!(
            ended(Some(0), "2026-01-01T00:00:00Z  WARN gotrace: no memory\n").check_same("a", "b").is_ok()
        );
    }

    #[test]
    fn all_errors_at_all_places_are_in_the_order_and_none_twice() {
        let place = |text: &str| Place { call: 1, text: text.into() };
        let places = [place("write at a+0x1"), place("write at b+0x1")];
        let all = Fault::all(&places);
        assert_eq!(all.len(), places.len() * ERRORS.len());
        assert!(all.iter().enumerate().all(|(n, fault)| !all[..n].contains(fault)));
        assert_eq!(all, Fault::all(&[places[1].clone(), places[0].clone()]));
    }
}
