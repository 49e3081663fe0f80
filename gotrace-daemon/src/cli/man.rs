//! `gotrace man DIR`: hidden; `cargo xtask dist` calls it. One page a subcommand.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory, builder::Resettable};
use clap_mangen::Man;

use super::{Cli, CliError, Exit};

/// Arguments of `man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Directory to write the pages to; created if missing
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> Result<Exit, CliError> {
    let directory = &args.directory;
    write_pages(directory)
        .map_err(|e| CliError::failure(format!("cannot write man pages to {}: {e}", directory.display())))?;
    Ok(Exit::DONE)
}

fn write_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let shown = root.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
    for command in std::iter::once(root.clone()).chain(shown) {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (notes, examples) = after.split_once("Examples:\n").unwrap_or((&after, ""));
        let man = Man::new(command.after_help(Resettable::Reset));
        let mut page = Vec::new();
        man.render(&mut page)?;
        page.extend_from_slice((section("NOTES", notes) + &section("EXAMPLES", examples)).as_bytes());
        fs::write(directory.join(man.get_filename()), page)?;
    }
    Ok(())
}

/// What the help ends with, as it stands: lines are not filled. Nothing where there is nothing to say.
fn section(title: &str, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut section = format!(".SH {title}\n.nf\n");
    for line in text.trim_end().lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A line that begins so would be a request.
        if line.starts_with(['.', '\'']) {
            section += "\\&";
        }
        section += &line;
        section.push('\n');
    }
    section + ".fi\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_with_examples() {
        let directory = tempfile::tempdir().expect("a directory");
        write_pages(directory.path()).expect("written");
        for name in ["gotrace", "gotrace-attach", "gotrace-exec", "gotrace-inspect", "gotrace-doctor"] {
            let page = fs::read_to_string(directory.path().join(format!("{name}.1"))).expect("a page");
            assert!(page.contains(".SH OPTIONS") && page.contains(".SH EXAMPLES\n.nf\n  gotrace "), "{page}");
        }
        assert!(!directory.path().join("gotrace-man.1").exists());
    }

    #[test]
    fn lines_stay_as_they_are() {
        assert_eq!(section("NOTES", ".a \\ --b\n\n"), ".SH NOTES\n.nf\n\\&.a \\e \\-\\-b\n.fi\n");
        assert_eq!(section("NOTES", ""), "");
    }
}
