//! The container, pod and task of a process, from its cgroup path and its mounts.
//!
//! Input: the texts of `/proc/PID/cgroup` (cgroup v1, v2 and both at once, cgroups(7)) and, where the path
//! tells nothing because a cgroup namespace hides it, of `/proc/PID/mountinfo` (proc(5)): runtimes bind
//! `/etc/hosts`, `/etc/hostname` and `/dev/termination-log` from directories named after the container or
//! the pod. [`Placement::parse`] is pure and total; [`Placement::of`] reads the two files.
//!
//! Where the shapes of paths are from: Docker and Podman with the cgroupfs and systemd drivers; the
//! kubelet's `pkg/kubelet/cm` (`kubepods`, `-pod<uid>`, `_` for `-` in a slice's name); containerd's CRI
//! plugin (`cri-containerd-`, or `slice:cri-containerd:id` when the drivers disagree); CRI-O (`crio-`;
//! `crio-conmon-` is its monitor, no container); the ECS agent (`/ecs/<task>/<container>`, in a slice
//! `ecstasks-<task>.slice`); Fargate, whose container ids are `<task>-<number>`.

use std::{fmt, sync::Arc};

use super::attributes::{Attributes, set, set_some};
use gotrace_process::Target;

/// Who runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman.
    Podman,
}

impl Runtime {
    /// As `container.runtime.name` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
        }
    }

    /// By the word before the id in a scope's name, or as the directory above it.
    fn of_prefix(prefix: &str) -> Option<Self> {
        Some(match prefix {
            "docker" => Self::Docker,
            "cri-containerd" | "containerd" | "nerdctl" | "k8s.io" => Self::Containerd,
            "crio" | "cri-o" => Self::CriO,
            "libpod" => Self::Podman,
            _ => return None,
        })
    }

    /// By the scheme of a pod's `containerID` (`containerd://…`).
    #[must_use]
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        Self::of_prefix(scheme)
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a process runs. Everything `None` or empty: in no container that is known by its path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The innermost container's id: 64 hexadecimal digits, or Fargate's `<task>-<number>`.
    pub container_id: Option<Arc<str>>,
    /// Containers around it, innermost last.
    pub outer: Vec<Arc<str>>,
    /// Who runs it.
    pub runtime: Option<Runtime>,
    /// The pod's uid, with `-`; of a static pod the 32 digits of its configuration's hash.
    pub pod_uid: Option<Arc<str>>,
    /// The container's name within its pod, where a mount tells it.
    pub pod_container: Option<Arc<str>>,
    /// The ECS task's id.
    pub ecs_task: Option<Arc<str>>,
}

impl Placement {
    /// Where `target` runs. Reads two files of `/proc`; empty when they cannot be read.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        let cgroup = target.cgroup().unwrap_or_default();
        let placement = Self::parse(&cgroup, "");
        if placement.container_id.is_some() && (placement.pod_uid.is_some() || !cgroup.contains("/..")) {
            return placement;
        }
        Self::parse(&cgroup, &target.mount_info().unwrap_or_default())
    }

    /// Whether it is in a container, pod or task.
    #[must_use]
    pub fn is_contained(&self) -> bool {
        self.container_id.is_some() || self.pod_uid.is_some() || self.ecs_task.is_some()
    }

    /// From the texts of `/proc/PID/cgroup` and `/proc/PID/mountinfo`. Takes any text.
    #[must_use]
    pub fn parse(cgroup: &str, mount_info: &str) -> Self {
        let mut best = Self::default();
        for line in cgroup.lines() {
            // `hierarchy:controllers:path`; the path may hold colons.
            if let Some(path) = line.splitn(3, ':').nth(2) {
                best = best.or(Self::of_path(path));
            }
        }
        if best.container_id.is_none() || best.pod_uid.is_none() {
            best = best.or(Self::of_mounts(mount_info));
        }
        best
    }

    /// What is known here, and from `other` what is not. An id comes with its own surroundings.
    fn or(self, other: Self) -> Self {
        if self.container_id.is_none() && other.container_id.is_some() {
            return Self {
                pod_uid: other.pod_uid.or(self.pod_uid),
                pod_container: other.pod_container.or(self.pod_container),
                ecs_task: other.ecs_task.or(self.ecs_task),
                ..other
            };
        }
        Self {
            runtime: self.runtime.or(other.runtime),
            pod_uid: self.pod_uid.or(other.pod_uid),
            pod_container: self.pod_container.or(other.pod_container),
            ecs_task: self.ecs_task.or(other.ecs_task),
            ..self
        }
    }

    /// From a cgroup's path.
    fn of_path(path: &str) -> Self {
        let mut found = Self::default();
        let mut above = "";
        let mut within_ecs = false;
        for segment in path.split('/').filter(|s| !s.is_empty() && *s != "." && *s != "..") {
            // containerd, told of a slice while it drives cgroupfs: `slice:prefix:name` as one directory.
            let mut parts = segment.split(':');
            if let (Some(slice), Some(prefix), Some(id), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            {
                found.enter_slice(slice.strip_suffix(".slice").unwrap_or(slice));
                if is_container_id(id) {
                    found.enter(id, Runtime::of_prefix(prefix));
                }
                above = segment;
                continue;
            }
            let name = segment.strip_suffix(".scope").unwrap_or(segment);
            if let Some(slice) = segment.strip_suffix(".slice") {
                found.enter_slice(slice);
            } else if let Some(uid) = name.strip_prefix("pod").and_then(pod_uid) {
                found.pod_uid = Some(uid);
            } else if within_ecs && found.ecs_task.is_none() && is_task_id(name) {
                found.ecs_task = Some(name.into());
            } else if is_container_id(name) {
                let runtime = Runtime::of_prefix(above).or(found.ecs_task.as_ref().map(|_| Runtime::Docker));
                found.enter(name, runtime);
            } else if is_fargate_id(name) {
                found.enter(name, None);
            } else if let Some((prefix, id)) = name.rsplit_once('-')
                && is_container_id(id)
                && !prefix.ends_with("conmon")
            {
                found.enter(id, Runtime::of_prefix(prefix));
            }
            within_ecs = segment == "ecs" || within_ecs;
            above = segment;
        }
        found
    }

    fn enter(&mut self, id: &str, runtime: Option<Runtime>) {
        self.outer.extend(self.container_id.replace(id.into()));
        self.runtime = runtime;
    }

    /// `kubepods-burstable-pod<uid>`, `ecstasks-<task>`.
    fn enter_slice(&mut self, slice: &str) {
        if slice.contains("kubepods") {
            if let Some(uid) = slice.rsplit_once("-pod").and_then(|(_, uid)| pod_uid(uid)) {
                self.pod_uid = Some(uid);
            }
        } else if let Some(task) = slice.strip_prefix("ecstasks-")
            && is_task_id(task)
        {
            self.ecs_task = Some(task.into());
        }
    }

    /// From the mounts of its namespace.
    fn of_mounts(mount_info: &str) -> Self {
        let mut found = Self::default();
        let mut libpod: Option<Arc<str>> = None;
        for line in mount_info.lines() {
            // proc(5): id, parent, major:minor, root, mount point, options, optional fields, `-`, type.
            let mut fields = line.split(' ');
            let (Some(root), Some(point)) = (fields.nth(3), fields.next()) else { continue };
            let kind = fields.skip_while(|f| *f != "-").nth(1).unwrap_or_default();
            if kind == "cgroup" || kind == "cgroup2" {
                found = found.or(Self::of_path(root));
                continue;
            }
            if !BOUND_FILES.contains(&point) {
                continue;
            }
            let segments: Vec<&str> = root.split('/').collect();
            for (at, pair) in segments.windows(2).enumerate() {
                match *pair {
                    // The kubelet's: pods/<uid>/etc-hosts, pods/<uid>/containers/<name>/<file>.
                    ["pods", uid] => {
                        found.pod_uid = found.pod_uid.take().or_else(|| pod_uid(uid));
                        let within = segments.get(at + 2) == Some(&"containers");
                        if let Some(name) = segments.get(at + 3).filter(|_| within) {
                            found.pod_container.get_or_insert_with(|| Arc::from(*name));
                        }
                    }
                    ["containers", id] if is_container_id(id) => {
                        found = found.or(Self {
                            container_id: Some(id.into()),
                            runtime: Some(Runtime::Docker),
                            ..Self::default()
                        });
                    }
                    // nerdctl's: containers/<namespace>/<id>/resolv.conf.
                    ["containers", _] if segments.get(at + 2).is_some_and(|id| is_container_id(id)) => {
                        found = found.or(Self {
                            container_id: segments.get(at + 2).map(|id| Arc::from(*id)),
                            runtime: Some(Runtime::Containerd),
                            ..Self::default()
                        });
                    }
                    ["overlay-containers", id] if is_container_id(id) => libpod = Some(id.into()),
                    _ => {}
                }
            }
        }
        // In a pod (CRI-O) that directory is the sandbox's, whose id is not the container's.
        if let Some(id) = libpod.filter(|_| found.pod_uid.is_none()) {
            found =
                found.or(Self { container_id: Some(id), runtime: Some(Runtime::Podman), ..Self::default() });
        }
        found
    }

    /// `container.id`, `container.runtime.name`, `k8s.pod.uid`, `k8s.container.name`, as far as known here.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        set_some(&mut attributes, "container.id", self.container_id.as_deref());
        if let Some(runtime) = self.runtime {
            set(&mut attributes, "container.runtime.name", runtime.name());
        }
        // A static pod's uid in the API is another than the hash in its path.
        set_some(&mut attributes, "k8s.pod.uid", self.pod_uid.as_deref().filter(|uid| uid.contains('-')));
        set_some(&mut attributes, "k8s.container.name", self.pod_container.as_deref());
        attributes
    }
}

/// Files that runtimes and the kubelet bind into a container.
const BOUND_FILES: [&str; 5] =
    ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/run/.containerenv"];

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_container_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

/// 32 digits, or the older form, a UUID.
fn is_task_id(text: &str) -> bool {
    (text.len() == 32 && is_hex(text)) || is_uuid(text)
}

/// `cd189a933e5849daa93386466019ab50-2495160603`.
fn is_fargate_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(task, number)| {
        task.len() == 32
            && is_hex(task)
            && (1..=20).contains(&number.len())
            && number.bytes().all(|b| b.is_ascii_digit())
    })
}

fn is_uuid(text: &str) -> bool {
    let mut parts = text.split('-');
    [8, 4, 4, 4, 12].iter().all(|len| parts.next().is_some_and(|p| p.len() == *len && is_hex(p)))
        && parts.next().is_none()
}

/// A pod's uid as directories have it.
fn pod_uid(text: &str) -> Option<Arc<str>> {
    let uid = text.replace('_', "-");
    (is_uuid(&uid) || (uid.len() == 32 && is_hex(&uid))).then(|| uid.into())
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
