//! What `gotrace` prints about itself is what is written down: help output and usage errors
//! (`tests/cmd/*.trycmd`), and every command line that the README, the help's examples and the documents
//! show is one that gotrace takes; links between documents lead somewhere. Runs without root and Go.
//!
//! After a wanted change of words: `GOTRACE_BLESS=1 cargo test -p gotrace-tests --test cli_help`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Parser as _};
use gotrace::cli::Cli;
use gotrace_tests::gotrace::binary;

#[test]
fn help_is_as_written_down() {
    if std::env::var_os("GOTRACE_BLESS").is_some() {
        // SAFETY: other threads read variables by std alone, which holds a lock.
        unsafe { std::env::set_var("TRYCMD", "overwrite") };
    }
    trycmd::TestCases::new()
        .register_bin("gotrace", binary().expect("built"))
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .case("cmd/*.trycmd");
}

/// What stands before a command line where a shell or a job of a CI has it.
const BEFORE: [&str; 8] = ["$ ", "- ", "run: ", "script: ", "sudo ", "-E ", "env ", "\"PATH=$PATH\" "];

/// The command lines in a text: from `gotrace` on, without comment, redirection and pipe.
fn command_lines(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| {
            let mut line = line.trim_start();
            while let Some(rest) = BEFORE.iter().find_map(|before| line.strip_prefix(before)) {
                line = rest;
            }
            let line = line.starts_with("gotrace ").then_some(line)?;
            let line = line.split(" #").next()?;
            // Behind two spaces the help's examples say what they do.
            let line = line.split("  ").next()?;
            Some(
                line.split([' ', '\t'])
                    .take_while(|w| !matches!(*w, ">" | "|" | "&&"))
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        })
        .collect()
}

/// The pieces of a document between fences, and what is between backticks outside of them.
fn code(text: &str) -> (String, Vec<String>) {
    let (mut blocks, mut inline, mut fenced) = (String::new(), Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            blocks.push_str(line);
            blocks.push('\n');
        } else {
            inline.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    (blocks, inline)
}

/// What a command line of a sentence has that gotrace does not: its subcommand, or a flag. Of such a line the rest may
/// stand for something (`gotrace why --pid P`).
fn unknown(command: &clap::Command, line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip(1).map(|word| word.trim_end_matches([',', ';', '.']));
    let name = words.next()?;
    if name.starts_with('-') || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let Some(subcommand) = command.find_subcommand(name) else { return Some(name.to_owned()) };
    let known = |flag: &str| {
        let name = flag.split('=').next().unwrap_or(flag);
        subcommand
            .get_arguments()
            .any(|a| a.get_long_and_visible_aliases().is_some_and(|l| l.contains(&name)))
    };
    words
        .take_while(|word| *word != "--")
        .filter_map(|word| word.strip_prefix("--"))
        .find(|flag| !known(flag))
        .map(|flag| format!("--{flag}"))
}

#[test]
fn command_lines_that_are_shown_are_taken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the workspace");
    let mut command = Cli::command();
    command.build();
    let (mut found, mut lines, mut sentences) = (Vec::new(), BTreeSet::new(), 0);
    documents(root, &mut found);
    for document in found {
        let (blocks, inline) = code(&fs::read_to_string(&document).expect("a document"));
        lines.extend(command_lines(&blocks));
        for line in inline.iter().filter(|line| line.starts_with("gotrace ")) {
            let unknown = unknown(&command, line);
            assert!(unknown.is_none(), "{}: {line}: there is no {unknown:?}", document.display());
            sentences += 1;
        }
    }
    lines.extend(command_lines(&command.render_long_help().to_string()));
    for subcommand in command.get_subcommands_mut() {
        lines.extend(command_lines(&subcommand.render_long_help().to_string()));
    }
    assert!(lines.len() >= 80 && sentences >= 100, "{sentences} in sentences, and {lines:#?}");
    for line in lines {
        if let Err(error) = Cli::try_parse_from(line.split(' ')) {
            panic!("{line}\n{error}");
        }
    }
}

/// The documents of the repository, without what is built.
fn documents(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if entry.is_dir() && !matches!(name, "target" | ".git" | "node_modules") {
            documents(&entry, found);
        } else if name.ends_with(".md") {
            found.push(entry);
        }
    }
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '_' | '-'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the workspace");
    let (mut found, mut links) = (Vec::new(), 0);
    documents(root, &mut found);
    for document in &found {
        let text = fs::read_to_string(document).expect("text");
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            let (path, heading) = link.split_once('#').map_or((link, None), |(p, h)| (p, Some(h)));
            let to = match path {
                "" => document.clone(),
                path => document.parent().expect("a directory").join(path),
            };
            assert!(to.exists(), "{}: {link} leads nowhere", document.display());
            links += 1;
            let Some(heading) = heading.filter(|_| to.extension().is_some_and(|e| e == "md")) else {
                continue;
            };
            let text = fs::read_to_string(&to).expect("text");
            let has = text
                .lines()
                .filter(|line| line.starts_with('#'))
                .any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
            assert!(has, "{}: {link}: no such heading", document.display());
        }
    }
    assert!(found.len() > 15 && links > 50, "{} documents, {links} links", found.len());
}
