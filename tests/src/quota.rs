//! A control group with a CPU quota, in the hierarchy that governs CPU time here.

use std::{
    fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::fixture::PATIENCE;

/// The group; removed when this is dropped and nobody is in it.
#[derive(Debug)]
pub struct Quota(PathBuf);

impl Quota {
    /// So many percent of a CPU, in periods of 100 ms.
    ///
    /// # Errors
    /// Where no group can be made.
    pub fn new(percent: u32) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("gotrace-quota-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let quota = percent * 1000;
        let v1 = PathBuf::from("/sys/fs/cgroup/cpu").join(&name);
        if v1.parent().is_some_and(|p| p.join("cpu.cfs_quota_us").exists() || p.join("cpu.stat").exists()) {
            fs::create_dir(&v1)?;
            fs::write(v1.join("cpu.cfs_quota_us"), quota.to_string())?;
            return Ok(Self(v1));
        }
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu")?;
        let v2 = PathBuf::from("/sys/fs/cgroup").join(&name);
        fs::create_dir(&v2)?;
        fs::write(v2.join("cpu.max"), format!("{quota} 100000"))?;
        Ok(Self(v2))
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn limit(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    /// The group's own name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Once nobody is in it; what is left has a name of its own.
        let begin = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
    }
}
