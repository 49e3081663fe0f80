//! The code of programs under trial: where it is not that of their file, and whether gotrace may have changed it there.
//!
//! Input: a process and its file. Output: offsets in the file; an error when a process is gone or a byte is changed where
//! `gotrace inspect` has no probe.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{gobuild::Arch, gotrace::binary};

/// Offsets in the file at which the code of a process is not that of its executable, which has these
/// contents.
///
/// # Errors
/// When the process is gone.
pub fn changed(pid: u32, file: &Path) -> Result<Vec<u64>> {
    changed_from(pid, &fs::read(file).with_context(|| format!("reading {}", file.display()))?)
}

fn changed_from(pid: u32, own: &[u8]) -> Result<Vec<u64>> {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).context("the process is gone")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("the process is gone")?;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).context("the process is gone")?;
    let (mut found, mut code) = (Vec::new(), 0);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, rights, offset, _, _, path @ ..] = &words[..] else { continue };
        if !rights.contains('x') || path.join(" ") != executable.to_string_lossy() {
            continue;
        }
        let number = |text: &str| u64::from_str_radix(text, 16).with_context(|| format!("maps: {line}"));
        let (from, to) = range.split_once('-').with_context(|| format!("maps: {line}"))?;
        let (from, to, offset) = (number(from)?, number(to)?, number(offset)?);
        let mut bytes = vec![0; usize::try_from(to - from)?];
        memory.read_exact_at(&mut bytes, from).context("reading its memory")?;
        // Beyond the file's end the last page is zeros.
        let theirs = own.get(usize::try_from(offset)?..).unwrap_or_default();
        code += bytes.len();
        let pairs = (offset..).zip(bytes.iter().zip(theirs));
        found.extend(pairs.filter(|(_, (a, b))| a != b).map(|(at, _)| at));
    }
    ensure!(code > 0, "no code of {} in:\n{maps}", executable.display());
    Ok(found)
}

/// What the code of programs is, and where gotrace may change it: where `gotrace inspect` says.
#[derive(Debug, Default)]
pub struct Code(Vec<(PathBuf, Vec<u8>, BTreeSet<u64>)>);

impl Code {
    /// Knows one more, which is run from there and has the contents of `build`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn with(mut self, at: &Path, build: &Path) -> Result<Self> {
        let mut inspect = Command::new(binary()?);
        inspect.args(["inspect", "--level", "full", "--format", "json"]).arg(build);
        let told = inspect.output().context("starting gotrace inspect")?;
        let mut planned = BTreeSet::new();
        // It is silent of what is no Go program, and has no probes.
        if let Ok(told) = serde_json::from_slice::<serde_json::Value>(&told.stdout) {
            let probes = told["probes"].as_array().context("probes")?;
            // A breakpoint is as long as an instruction of arm64, or one byte.
            let length = if Arch::HOST == Arch::Arm64 { 4 } else { 1 };
            for probe in probes {
                let offset = probe["file_offset"].as_str().and_then(|text| text.strip_prefix("0x"));
                let offset = u64::from_str_radix(offset.context("an offset")?, 16)?;
                planned.extend(offset..offset + length);
            }
        }
        self.0.push((at.into(), fs::read(build)?, planned));
        Ok(self)
    }

    /// The process, and whoever it has started, runs one of them, or another, and has no probes but those that
    /// belong there.
    ///
    /// # Errors
    /// When it has.
    pub fn check(&self, pid: u32) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.check_one(pid)?;
        // Each thread has its children.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            children.split_whitespace().filter_map(|c| c.parse().ok()).try_for_each(|c| self.check(c))?;
        }
        Ok(())
    }

    fn check_one(&self, pid: u32) -> Result<()> {
        let runs = || fs::read_link(format!("/proc/{pid}/exe")).ok();
        let Some(path) = runs() else { return Ok(()) };
        let Some((_, own, planned)) = self.0.iter().find(|(at, ..)| *at == path) else { return Ok(()) };
        // It may end, or execute another program, while it is looked at.
        let Ok(changed) = changed_from(pid, own) else { return Ok(()) };
        let stray: Vec<_> = changed.into_iter().filter(|offset| !planned.contains(offset)).collect();
        ensure!(
            stray.is_empty() || runs().as_ref() != Some(&path),
            "in the code of {} there are breakpoints that belong to another program, at {stray:x?}",
            path.display()
        );
        Ok(())
    }
}
