//! What the kernel itself counts of gotrace's programs: how often they ran, and for how long. Other work on the machine
//! hardly moves it, which it does samples of a server; it lacks what a hit costs before and behind a program.

use std::{collections::HashMap, fs};

use anyhow::{Context as _, Result};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The kernel counts while this lives.
pub struct Counting {
    before: String,
}

impl Counting {
    /// Has the kernel count; needs root.
    pub fn begin() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("reading {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("writing {SWITCH}"))?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Nobody is harmed where it stays on.
        let _ = fs::write(SWITCH, self.before.trim());
    }
}

/// Runs of programs, and nanoseconds in them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    pub count: u64,
    pub ns: u64,
}

impl Runs {
    /// Of all programs that a process holds, so far.
    pub fn of(pid: u32) -> Result<Self> {
        let directory = format!("/proc/{pid}/fdinfo");
        // A program can have several descriptors.
        let mut by_id = HashMap::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
            // One that was closed meanwhile.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let field = |name: &str| -> Option<u64> {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            if let (Some(id), Some(ns), Some(count)) =
                (field("prog_id:"), field("run_time_ns:"), field("run_cnt:"))
            {
                by_id.insert(id, Self { count, ns });
            }
        }
        Ok(by_id
            .values()
            .fold(Self::default(), |sum, runs| Self { count: sum.count + runs.count, ns: sum.ns + runs.ns }))
    }

    /// Those since it was as `before`.
    pub fn since(self, before: Self) -> Self {
        Self { count: self.count.saturating_sub(before.count), ns: self.ns.saturating_sub(before.ns) }
    }
}
