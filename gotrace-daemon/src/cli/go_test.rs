//! `gotrace exec --fail-on left_behind -- go test …`: lets `go test` start each test program under a gotrace
//! of its own, by its flag `-exec`, so that nothing is missed from goroutine 1 on. A test program is over in
//! milliseconds, before probes could be put in place from outside.
//!
//! Each of those gotraces leaves what it knows of its programs in a directory of this run; this one tells it at the
//! end ([`guard`]).
//! Go's cache of test results is not used by a run with `-exec`, so that no test is passed over.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CliError, ExecArgs, Exit, Format,
    baseline::absolute,
    guard::{self, Program},
    temporary::Directory,
};
use gotrace_process::{Forwarder, Spawned, private};

/// A run of `go test`.
pub(super) struct Run<'a> {
    go: &'a OsStr,
    arguments: &'a [OsString],
    args: &'a ExecArgs,
}

impl<'a> Run<'a> {
    /// `None` where the command is another, brings its own `-exec`, or is to be traced itself.
    pub(super) fn of(args: &'a ExecArgs) -> Option<Self> {
        let [go, test, arguments @ ..] = args.command.as_slice() else { return None };
        let is_go_test = Path::new(go).file_name() == Some(OsStr::new("go")) && test == "test";
        let has_exec = arguments
            .iter()
            .map_while(|a| a.to_str().filter(|a| *a != "-args"))
            .any(|a| a.trim_start_matches('-').split('=').next() == Some("exec") && a.starts_with('-'));
        let plain = !args.follow_children && args.trace.export.is_none() && args.trace.otlp.otlp.is_none();
        let judged = !args.fail_on.is_empty();
        (judged && is_go_test && !has_exec && plain).then_some(Self { go, arguments, args })
    }

    /// Runs it and tells what was found.
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let directory = Directory::make()?;
        let own = std::env::current_exe()
            .map_err(|e| CliError::failure(format!("cannot find the executable of gotrace: {e}")))?;
        let Self { go, arguments, args } = self;
        let format = match args.trace.format {
            Format::Table => "table",
            Format::Json => "json",
        };
        let fail_on: Vec<&str> = args.fail_on.iter().map(|f| f.name()).collect();
        let mut exec = format!(
            "{} exec --fail-on {} --budget {} --quiet --format {format} --left-behind-to {}",
            quoted(&own)?,
            fail_on.join(","),
            args.budget,
            quoted(directory.path())?
        );
        // Test programs run in their packages' directories.
        let files = [("--suppress", &args.trace.suppress), ("--baseline", &args.baseline.baseline)];
        for (flag, file) in files {
            if let Some(file) = file {
                exec += &format!(" {flag} {}", quoted(&absolute(file)?)?);
            }
        }
        exec += " --";
        let mut words: Vec<OsString> = vec!["test".into(), "-exec".into(), exec.into()];
        words.extend_from_slice(arguments);
        // Forks, so it comes before there are threads.
        let mut child = Spawned::prepare(go, &words)?;
        let pid = child.pid();
        let forwarder = Forwarder::start(child.pidfd())
            .map_err(|e| CliError::failure(format!("cannot forward signals to the command: {e}")))?;
        child.release()?;
        let status = child
            .wait()
            .map_err(|e| CliError::failure(format!("cannot get the exit status of process {pid}: {e}")))?;
        drop(forwarder);
        let exit = Exit(Spawned::exit_code(status));
        guard::conclude(args, &left(directory.path())?, exit)
    }
}

/// Leaves what is known of programs for the gotrace that started `go test`.
pub(super) fn leave(directory: &Path, pid: u32, programs: &[Program]) -> Result<(), CliError> {
    let file = directory.join(format!("{pid:010}"));
    private::create(&file)
        .and_then(|out| serde_json::to_writer(out, programs).map_err(io::Error::from))
        .map_err(|e| CliError::failure(format!("cannot write findings to {}: {e}", file.display())))
}

/// What the gotraces of this run left in a directory ([`leave`]).
fn left(directory: &Path) -> Result<Vec<Program>, CliError> {
    let read =
        |e: io::Error| CliError::failure(format!("cannot read findings from {}: {e}", directory.display()));
    let entries: Result<Vec<_>, _> = fs::read_dir(directory).map_err(read)?.collect();
    let mut files: Vec<PathBuf> = entries.map_err(read)?.into_iter().map(|e| e.path()).collect();
    files.sort();
    let mut programs = Vec::new();
    for file in &files {
        let text = fs::read(file).map_err(read)?;
        programs.extend(serde_json::from_slice::<Vec<Program>>(&text).map_err(|e| read(e.into()))?);
    }
    Ok(programs)
}

/// A word as `go` takes the value of `-exec` apart (`cmd/internal/quoted`).
fn quoted(path: &Path) -> Result<String, CliError> {
    let odd = || {
        CliError::failure(format!(
            "cannot pass {} to `go test -exec`: it contains unsupported characters",
            path.display()
        ))
    };
    let text = path.to_str().ok_or_else(odd)?;
    match (text.contains([' ', '\t', '\n', '"', '\'']), text.contains('\''), text.contains('"')) {
        (false, ..) => Ok(text.to_owned()),
        (true, false, _) => Ok(format!("'{text}'")),
        (true, true, false) => Ok(format!("\"{text}\"")),
        (true, true, true) => Err(odd()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn is_run(line: &str) -> bool {
        let cli = Cli::try_parse_from(line.split(' ')).expect("valid arguments");
        let Some(Command::Exec(args)) = cli.command else { panic!("exec") };
        Run::of(&args).is_some()
    }

    #[test]
    fn go_test_is_recognized() {
        assert!(is_run("gotrace exec --fail-on left_behind -- go test ./..."));
        assert!(is_run(
            "gotrace exec --fail-on left_behind -- /usr/local/go/bin/go test -run exec -args -exec x"
        ));
        for other in [
            "gotrace exec -- go test ./...",
            "gotrace exec --fail-on left_behind -- go build ./...",
            "gotrace exec --fail-on left_behind -- ./server test",
            "gotrace exec --fail-on left_behind -- go test -exec sudo ./...",
            "gotrace exec --fail-on left_behind -- go test --exec=sudo ./...",
            "gotrace exec --fail-on left_behind --follow-children -- go test ./...",
            "gotrace exec --fail-on left_behind --export x.json -- go test ./...",
        ] {
            assert!(!is_run(other), "{other}");
        }
    }

    #[test]
    fn words_are_quoted_as_go_reads_them() {
        let quoted = |s: &str| quoted(Path::new(s)).ok();
        assert_eq!(quoted("/bin/gotrace").as_deref(), Some("/bin/gotrace"));
        assert_eq!(quoted("/my bin/gotrace").as_deref(), Some("'/my bin/gotrace'"));
        assert_eq!(quoted("/it's/gotrace").as_deref(), Some("\"/it's/gotrace\""));
        assert_eq!(quoted("/it's \"x\"/gotrace"), None);
    }
}
