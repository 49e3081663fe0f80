//! What `gotrace` prints about itself is what is written down: help output and usage errors
//! (`tests/cmd/*.trycmd`), and every command line that the README, the help's examples and the documents
//! show is one that gotrace takes. Runs without root and Go.
//!
//! After a change of the help: `TRYCMD=overwrite cargo test -p gotrace-tests --test cli_help`.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{CommandFactory as _, Parser as _};
use gotrace::cli::Cli;
use gotrace_tests::gotrace::binary;

#[test]
fn help_is_as_written_down() {
    trycmd::TestCases::new()
        .register_bin("gotrace", binary().expect("built"))
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .case("cmd/*.trycmd");
}

/// The command lines in a text: from `gotrace` on, without comment, redirection and pipe.
fn command_lines(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim_start().trim_start_matches("$ ");
            let line = line.starts_with("gotrace ").then_some(line)?;
            let line = line.split(" #").next()?;
            // Behind two spaces the help's examples say what they do.
            let line = line.split("  ").next()?;
            Some(
                line.split([' ', '\t'])
                    .take_while(|w| !matches!(*w, ">" | "|"))
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        })
        .collect()
}

#[test]
fn command_lines_that_are_shown_are_taken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the workspace");
    let mut lines = BTreeSet::new();
    let documents = ["formats", "telemetry", "dump", "leaks", "daemon"]
        .map(|name| format!("gotrace-daemon/docs/{name}.md"));
    for file in documents.into_iter().chain(["README.md".to_owned()]) {
        let text = fs::read_to_string(root.join(file)).expect("a document");
        // Every other piece is between fences.
        for block in text.split("```").skip(1).step_by(2) {
            lines.extend(command_lines(block));
        }
    }
    let mut command = Cli::command();
    lines.extend(command_lines(&command.render_long_help().to_string()));
    for subcommand in command.get_subcommands_mut() {
        lines.extend(command_lines(&subcommand.render_long_help().to_string()));
    }
    assert!(lines.len() >= 15, "{lines:?}");
    for line in lines {
        if let Err(error) = Cli::try_parse_from(line.split(' ')) {
            panic!("{line}\n{error}");
        }
    }
}
