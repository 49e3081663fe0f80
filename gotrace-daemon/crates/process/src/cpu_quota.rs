//! CPU quotas: how much CPU time the control groups of a process may use, and how often they had to stand still for it.
//!
//! A group that has used up its quota runs no thread until its next period (100 ms by default): the Go runtime sees
//! nothing of it, requests see gaps. Input: `/proc/PID/cgroup`, mount tables, and the groups' own files: `cpu.max` and
//! `cpu.stat` of cgroup v2, `cpu.cfs_quota_us`, `cpu.cfs_period_us` and `cpu.stat` of v1 (Linux,
//! `Documentation/admin-guide/cgroup-v2.rst`, `Documentation/scheduler/sched-bwc.rst`). Output: the quotas of the
//! process's group and of those around it, as far as they can be seen. `throttled_usec` and `throttled_time` are left
//! out: they are sums over CPUs, not times.

use std::{fs, path::Path};

use super::{Target, mounts::unescape, target::read_own};

/// Control groups within each other.
const MAX_LEVELS: usize = 32;

/// The quota of a control group, and what it has cost so far.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuQuota {
    /// The group, as gotrace's cgroup namespace has it.
    pub group: String,
    /// CPUs that it may use: CPU time a period, over the period.
    pub cpus: f64,
    /// Periods in which the group ran.
    pub periods: u64,
    /// Those in which it had to stand still.
    pub throttled: u64,
}

/// Which hierarchy governs CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Whose mount table and files they are.
enum Seen<'a> {
    ByGotrace,
    ByProcess(&'a Target),
}

impl Target {
    /// The quotas of its control groups, its own first; empty where none is limited. `None` where the groups cannot be
    /// seen: no cgroup file system that shows them is mounted, neither for gotrace nor for the process.
    #[must_use]
    pub fn cpu_quotas(&self) -> Option<Vec<CpuQuota>> {
        let (version, group) = group(&self.cgroup()?)?;
        // Gotrace's own view shows the groups around a container, where there is one.
        [Seen::ByGotrace, Seen::ByProcess(self)].iter().find_map(|seen| {
            let table = match seen {
                Seen::ByGotrace => read_own("/proc/self/mountinfo"),
                Seen::ByProcess(target) => target.mount_info()?,
            };
            let (mount, below) = place(&table, version, &group)?;
            let path = |below: &str, file: &str| format!("{mount}{below}/{file}");
            // A group of another namespace may have the same name.
            seen.read(&path(&below, "cpu.stat"))?;
            let levels = std::iter::successors(Some(below.as_str()), |below| {
                below.rsplit_once('/').map(|(above, _)| above)
            });
            let around = group.strip_suffix(&below).unwrap_or_default();
            let quota = |below: &str| {
                let cpus = cpus(version, |file| seen.read(&path(below, file)))?;
                let stat = seen.read(&path(below, "cpu.stat"))?;
                let of = |name: &str| number_after(&stat, name);
                let group = format!("{around}{below}");
                Some(CpuQuota { group, cpus, periods: of("nr_periods")?, throttled: of("nr_throttled")? })
            };
            Some(levels.take(MAX_LEVELS).filter_map(quota).collect())
        })
    }
}

impl Seen<'_> {
    fn read(&self, path: &str) -> Option<String> {
        let bytes = match self {
            Self::ByGotrace => fs::read(Path::new(path)).ok()?,
            Self::ByProcess(target) => target.read_in_its_root(path.trim_start_matches('/'))?,
        };
        String::from_utf8(bytes).ok()
    }
}

/// The group that governs a process's CPU time, by `/proc/PID/cgroup`.
fn group(cgroup: &str) -> Option<(Version, String)> {
    let mut v2 = None;
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = path.trim_end_matches('/').to_owned();
        if controllers.split(',').any(|c| c == "cpu") {
            return Some((Version::V1, path));
        }
        if number == "0" && controllers.is_empty() {
            v2 = Some((Version::V2, path));
        }
    }
    v2
}

/// Where a group's directory is, by a mount table: the mount, and the path below it.
fn place(table: &str, version: Version, group: &str) -> Option<(String, String)> {
    table
        .lines()
        .filter_map(|line| {
            // id parent device root mount options [optional…] - type source options
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ').skip(3);
            let (root, mount) = (unescape(front.next()?), unescape(front.next()?));
            let mut back = back.split(' ');
            let (kind, options) = (back.next()?, back.nth(1)?);
            let fits = match version {
                Version::V1 => kind == "cgroup" && options.split(',').any(|o| o == "cpu"),
                Version::V2 => kind == "cgroup2",
            };
            let below = group.strip_prefix(root.trim_end_matches('/')).filter(|_| fits)?;
            let within =
                (below.is_empty() || below.starts_with('/')) && !below.split('/').any(|part| part == "..");
            within.then(|| (mount.trim_end_matches('/').to_owned(), below.to_owned()))
        })
        .next()
}

/// CPUs that a group may use; `None` where it has no limit.
fn cpus(version: Version, read: impl Fn(&str) -> Option<String>) -> Option<f64> {
    let (quota, period) = match version {
        Version::V2 => {
            let text = read("cpu.max")?;
            let mut fields = text.split_whitespace();
            (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?)
        }
        Version::V1 => {
            let number = |file| read(file).and_then(|text| text.trim().parse::<u64>().ok());
            (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
        }
    };
    (quota > 0 && period > 0).then_some(quota as f64 / period as f64)
}

/// The number behind a name at the beginning of a line.
fn number_after(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_that_of_the_hierarchy_with_the_controller() {
        let v2 = group("0::/kubepods.slice/pod7/cri-containerd-a.scope\n");
        assert_eq!(v2, Some((Version::V2, "/kubepods.slice/pod7/cri-containerd-a.scope".into())));
        let hybrid = "12:pids:/a\n4:cpu,cpuacct:/docker/b\n3:cpuset:/c\n0::/d\n";
        assert_eq!(group(hybrid), Some((Version::V1, "/docker/b".into())));
        assert_eq!(group("0::/\n"), Some((Version::V2, String::new())));
        assert_eq!(group("3:cpuset:/c\nnonsense\n"), None);
    }

    #[test]
    fn a_directory_is_found_below_the_mount_that_shows_the_group() {
        let host = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let container = "900 800 0:26 /pod7/a /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let found = |table: &str, group: &str| place(table, Version::V2, group);
        let some = |mount: &str, below: &str| Some((mount.to_owned(), below.to_owned()));
        assert_eq!(found(host, "/pod7/a"), some("/sys/fs/cgroup", "/pod7/a"));
        assert_eq!(found(host, ""), some("/sys/fs/cgroup", ""));
        assert_eq!(found(container, "/pod7/a"), some("/sys/fs/cgroup", ""));
        assert_eq!(found(container, "/pod7/a/worker"), some("/sys/fs/cgroup", "/worker"));
        assert_eq!(found(container, "/pod7/ab"), None);
        // Of what lies outside of gotrace's namespace a mount of gotrace's shows nothing, the process's own does.
        assert_eq!(found(host, "/../pod7/a"), None);
        assert_eq!(found("9 8 0:26 /../pod7/a /c ro - cgroup2 c rw\n", "/../pod7/a/b"), some("/c", "/b"));
        let v1 = "5 4 0:7 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                  6 4 0:8 / /sys/fs/cgroup/cpu\\040x rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(place(v1, Version::V1, "/b"), some("/sys/fs/cgroup/cpu x", "/b"));
        assert_eq!(place("a b c\n", Version::V1, "/b"), None);
    }

    #[test]
    fn limits_are_cpus_and_no_limit_is_none() {
        let v2 = |text: &str| cpus(Version::V2, |file| (file == "cpu.max").then(|| text.to_owned()));
        assert_eq!((v2("50000 100000\n"), v2("max 100000\n"), v2("")), (Some(0.5), None, None));
        let v1 = |quota: &str| {
            cpus(Version::V1, |file| {
                Some(if file == "cpu.cfs_quota_us" { quota } else { "100000\n" }.to_owned())
            })
        };
        assert_eq!((v1("250000\n"), v1("-1\n")), (Some(2.5), None));
        let stat = "nr_periods 61\nnr_throttled 28\nthrottled_time 4744\n";
        assert_eq!(
            (number_after(stat, "nr_periods"), number_after(stat, "nr_throttled")),
            (Some(61), Some(28))
        );
        assert_eq!(number_after(stat, "nr_period"), None);
    }
}
