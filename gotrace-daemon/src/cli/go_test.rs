//! `gotrace exec --fail-on left_behind -- go test …`: lets `go test` start each test program under a gotrace
//! of its own, by its flag `-exec`, so that nothing is missed from goroutine 1 on. A test program is over in
//! milliseconds, before probes could be put in place from outside.
//!
//! Each of those gotraces leaves what it found in a directory of this run; this one tells it at the end.
//! Go's cache of test results is not used by a run with `-exec`, so that no test is passed over.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum as _;

use super::{
    CliError, ExecArgs, Exit, Format,
    args::{BudgetArg, FailOn},
};
use crate::{
    private,
    process::{Forwarder, Spawned},
};

/// A run of `go test`.
pub(super) struct Run<'a> {
    go: &'a OsStr,
    arguments: &'a [OsString],
    fail_on: &'a [FailOn],
    budget: BudgetArg,
    format: Format,
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
        (!args.fail_on.is_empty() && is_go_test && !has_exec && plain).then_some(Self {
            go,
            arguments,
            fail_on: &args.fail_on,
            budget: args.budget,
            format: args.trace.format,
        })
    }

    /// Runs it and tells what was found.
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let directory = Directory::make()?;
        let own = std::env::current_exe()
            .map_err(|e| CliError::failure(format!("cannot find gotrace's own executable: {e}")))?;
        let format = match self.format {
            Format::Table => "table",
            Format::Json => "json",
        };
        let fail_on: Vec<String> =
            self.fail_on.iter().filter_map(|f| Some(f.to_possible_value()?.get_name().to_owned())).collect();
        let fail_on = fail_on.join(",");
        let exec = format!(
            "{} exec --fail-on {fail_on} --budget {} --quiet --format {format} --left-behind-to {} --",
            quoted(&own)?,
            self.budget,
            quoted(&directory.0)?
        );
        let mut arguments: Vec<OsString> = vec!["test".into(), "-exec".into(), exec.into()];
        arguments.extend_from_slice(self.arguments);
        // Forks, so it comes before there are threads.
        let mut child = Spawned::prepare(self.go, &arguments)?;
        let pid = child.pid();
        let forwarder = Forwarder::start(child.pidfd())
            .map_err(|e| CliError::failure(format!("cannot pass signals on to the command: {e}")))?;
        child.release()?;
        let status = child
            .wait()
            .map_err(|e| CliError::failure(format!("cannot learn how process {pid} ended: {e}")))?;
        drop(forwarder);
        let exit = Exit(Spawned::exit_code(status));
        let found = directory.tell()?;
        Ok(if exit == Exit::DONE && found { Exit::FINDINGS } else { exit })
    }
}

/// Leaves what was found for the gotrace that started `go test`.
pub(super) fn leave(directory: &Path, pid: u32, text: &[u8]) -> Result<(), CliError> {
    let file = directory.join(format!("{pid:010}"));
    private::create(&file).and_then(|mut out| out.write_all(text)).map_err(|e| {
        CliError::failure(format!("cannot write what was left behind to {}: {e}", file.display()))
    })
}

/// A directory of this run only; goes away with it.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self, CliError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let path = std::env::temp_dir().join(format!("gotrace-{}-{now}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| {
            CliError::failure(format!("cannot make the directory {}: {e}", path.display()))
                .help("name another directory for temporary files with TMPDIR")
        })?;
        Ok(Self(path))
    }

    /// On stderr, as stdout belongs to the command.
    fn tell(&self) -> Result<bool, CliError> {
        let read = |e: io::Error| {
            CliError::failure(format!("cannot read what was found from {}: {e}", self.0.display()))
        };
        let entries: Result<Vec<_>, _> = fs::read_dir(&self.0).map_err(read)?.collect();
        let mut files: Vec<PathBuf> = entries.map_err(read)?.into_iter().map(|e| e.path()).collect();
        files.sort();
        let mut out = io::stderr().lock();
        for file in &files {
            out.write_all(&fs::read(file).map_err(read)?)?;
        }
        Ok(!files.is_empty())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "a temporary directory stays");
        }
    }
}

/// A word as `go` takes the value of `-exec` apart (`cmd/internal/quoted`).
fn quoted(path: &Path) -> Result<String, CliError> {
    let odd =
        || CliError::failure(format!("go test cannot be told to run {}: odd characters", path.display()));
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
        let Command::Exec(args) = cli.command else { panic!("exec") };
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
