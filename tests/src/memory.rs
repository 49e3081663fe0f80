//! A memory cgroup that a command runs in, of whichever version has the controller on this machine, and what a process
//! has taken.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    daemon::{Daemon, Place, of},
    gobuild::{Arch, Mode, build},
    gotrace::binary,
};

/// A cgroup with a bound on memory, removed when dropped.
#[derive(Debug)]
pub struct MemoryGroup {
    directory: PathBuf,
    unified: bool,
}

impl MemoryGroup {
    /// Makes one for so many bytes, page cache and kernel memory included.
    ///
    /// # Errors
    /// Where no hierarchy has the memory controller, or it cannot be made.
    pub fn new(name: &str, bytes: u64) -> Result<Self> {
        let (root, unified) = hierarchy()?;
        let directory = root.join(format!("{name}-{}", process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let this = Self { directory, unified };
        let limit = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(this.directory.join(limit), bytes.to_string())
            .with_context(|| format!("writing {limit}"))?;
        Ok(this)
    }

    /// A command that runs another one inside.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$1\" && shift && exec \"$@\"", "sh"]);
        command.arg(self.directory.join("cgroup.procs")).arg(program);
        command
    }

    /// Processes of it that the kernel has killed for want of memory.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn killed(&self) -> Result<u64> {
        let file = self.directory.join(if self.unified { "memory.events" } else { "memory.oom_control" });
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        killed.and_then(|n| n.trim().parse().ok()).with_context(|| format!("{text} tells of no kills"))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Refused while a process is in it, which then fails the test for a reason of its own.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// The root of the hierarchy with the memory controller, and whether that is cgroup v2.
fn hierarchy() -> Result<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = PathBuf::from(path);
        if kind == "cgroup" && options.split(',').any(|o| o == "memory") {
            return Ok((path, false));
        }
        let has = |file: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|t| t.split_whitespace().any(|c| c == "memory"))
        };
        if kind == "cgroup2" && has("cgroup.controllers") {
            if !has("cgroup.subtree_control") {
                fs::write(path.join("cgroup.subtree_control"), "+memory")
                    .context("enabling the controller")?;
            }
            return Ok((path, true));
        }
    }
    bail!(
        "no cgroup hierarchy with the memory controller is mounted: mount one, e.g. `mount -t cgroup -o memory …`"
    )
}

/// A figure of a process in KiB, such as `VmHWM`.
///
/// # Errors
/// When it is gone.
pub fn kib(pid: u32, figure: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading its status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
    let number = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
    number.with_context(|| format!("{status} has no {figure}"))
}

/// What `gotrace daemon` took while it watched a program with many parked goroutines and proved half of them leaked.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Its peak before there was the program, in bytes.
    pub base: u64,
    /// And in the end.
    pub peak: u64,
    /// What it has for the data of processes, by its own account.
    pub kept: u64,
}

/// Watches such a program with the shipped limits in a memory cgroup of 512 MiB, until the proof is complete.
///
/// # Errors
/// When that does not come within the time, or the kernel kills it.
pub fn watch_parked(goroutines: u64, within: Duration) -> Result<Watched> {
    let place = Place::new()?;
    let program = place.path().join("parked");
    fs::copy(build("parked", "1.27.3", Mode::Plain, Arch::HOST)?, &program)?;
    let group = MemoryGroup::new("gotrace-parked", 512 << 20)?;
    // Sooner than shipped, which is a matter of time, not of memory.
    let pace = "limits: {prove_after: 1s, proof_rest: 1, max_read_rate: off, suspect_every: 2s}\n";
    let daemon = Daemon::start_by(group.command(&binary()?), &place.config("level: waits", pace), &[])?;
    let base = kib(daemon.pid(), "VmHWM")? << 10;
    let leaked = goroutines / 2;
    let mut child = Command::new(&program)
        .args(["-n", &goroutines.to_string(), "-leaked", &leaked.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let label = of(child.id());
    let proven = |d: &Daemon| Ok(d.metrics()?.sum("gotrace_leak_proven", &[&label]) as u64 == leaked);
    let found = daemon.until("half of them are proven leaked", within, proven);
    let (peak, killed) = (kib(daemon.pid(), "VmHWM"), group.killed()?);
    let kept = daemon.metrics().map(|m| m.sum("gotrace_memory_kept_bytes", &[]) as u64);
    // Both fail only where it has ended.
    let _ = child.kill();
    let _ = child.wait();
    found?;
    ensure!(killed == 0, "the kernel killed {killed} processes of the cgroup");
    let (status, _, said) = daemon.finish()?;
    ensure!(status.success() && !said.contains("panicked"), "{status}: {said}");
    Ok(Watched { base, peak: peak? << 10, kept: kept? })
}
