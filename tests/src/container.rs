//! Containers started by `runc`, with cgroup paths as Docker, Kubernetes and ECS make them, on both
//! hierarchies. Needs root, and runc (`cargo xtask setup` installs it).
//!
//! A bundle is `runc spec`'s, with resource limits taken out (they cannot be raised in a sandbox). The
//! unified hierarchy is had on a host with the old ones by a mount namespace whose `/sys/fs/cgroup` is
//! cgroup v2 alone. `runc delete` leaves the parents of a cgroup behind; they are removed here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// Which cgroups runc uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// The host's: v1, v2 or both.
    Host,
    /// v2 alone.
    Unified,
}

/// What a container is to be.
#[derive(Clone, Debug)]
pub struct Shape<'a> {
    /// Its cgroup's path.
    pub cgroup: &'a str,
    /// Which cgroups.
    pub hierarchy: Hierarchy,
    /// Whether it has a cgroup namespace of its own, in which that path reads `/`.
    pub hidden: bool,
    /// Files bound into it: the path of the source below a directory of this container's own, and where.
    pub bound: &'a [(&'a str, &'a str)],
    /// A process whose PID namespace it shares.
    pub pid_namespace: Option<u32>,
}

/// A running container; it ends when dropped.
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: u32,
    hierarchy: Hierarchy,
    cgroup: PathBuf,
    directory: tempfile::TempDir,
}

/// Puts cgroup v2 alone at `/sys/fs/cgroup` of a mount namespace, and runs a command there.
const UNIFIED: &str = "mount --make-rprivate / && umount -R -l /sys/fs/cgroup && \
     mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";

fn runc(hierarchy: Hierarchy) -> Command {
    match hierarchy {
        Hierarchy::Host => Command::new("runc"),
        Hierarchy::Unified => {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", UNIFIED, "runc"]);
            command
        }
    }
}

/// A bundle: a directory with `rootfs` and `config.json`.
fn bundle(command: &[&str], capabilities: Option<&[&str]>, shape: &Shape<'_>) -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir().context("making a bundle")?;
    let bundle = directory.path();
    for sub in ["rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/tmp", "rootfs/etc", "host"] {
        fs::create_dir_all(bundle.join(sub))?;
    }
    let spec = Command::new("runc").arg("spec").current_dir(bundle).output();
    let spec = spec.context("running runc: `cargo xtask setup` installs it")?;
    ensure!(spec.status.success(), "runc spec: {}", String::from_utf8_lossy(&spec.stderr));
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(command);
    config["process"].as_object_mut().context("a process")?.remove("rlimits");
    if let Some(capabilities) = capabilities {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(capabilities);
        }
    }
    config["linux"]["cgroupsPath"] = json!(shape.cgroup);
    let namespaces = config["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|n| n["type"] != "cgroup");
    if shape.hidden {
        namespaces.push(json!({"type": "cgroup"}));
    }
    if let Some(pid) = shape.pid_namespace {
        let own = namespaces.iter_mut().find(|n| n["type"] == "pid").context("a PID namespace")?;
        own["path"] = json!(format!("/proc/{pid}/ns/pid"));
    }
    let mounts = config["mounts"].as_array_mut().context("mounts")?;
    for (source, target) in shape.bound {
        let source = bundle.join("host").join(source.trim_start_matches('/'));
        fs::create_dir_all(source.parent().context("a file")?)?;
        fs::write(&source, "")?;
        let inside = bundle.join("rootfs").join(target.trim_start_matches('/'));
        if !target.starts_with("/dev/") {
            fs::create_dir_all(inside.parent().context("a file")?)?;
            fs::write(inside, "")?;
        }
        mounts.push(json!({
            "destination": target, "type": "bind", "source": source, "options": ["rbind", "rw"],
        }));
    }
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(directory)
}

/// A name that no other container has.
fn fresh_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("gotrace-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Runs a command in a container whose root file system is a layer of an image, read-only, and returns how
/// it ended and what it printed.
///
/// # Errors
/// Where runc is missing or refuses.
pub fn run_image(
    layer: &Path,
    command: &[&str],
    capabilities: &[&str],
    shape: &Shape<'_>,
) -> Result<(std::process::ExitStatus, String)> {
    let directory = bundle(command, Some(capabilities), shape)?;
    let rootfs = directory.path().join("rootfs");
    let unpacked = Command::new("tar").arg("-xf").arg(layer).arg("-C").arg(&rootfs).status()?;
    ensure!(unpacked.success(), "tar cannot unpack {}", layer.display());
    // Removes the cgroup when the container has ended.
    let container = Container {
        id: fresh_name(),
        pid: 0,
        hierarchy: shape.hierarchy,
        cgroup: PathBuf::from(shape.cgroup.trim_start_matches('/')),
        directory,
    };
    let output = runc(shape.hierarchy)
        .args(["run", "--bundle"])
        .arg(container.directory.path())
        .arg(&container.id)
        .stdin(Stdio::null())
        .output()?;
    let text = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    Ok((output.status, text))
}

impl Container {
    /// Runs `program` with `arguments` in one.
    ///
    /// # Errors
    /// Where runc is missing or refuses, with its words.
    pub fn start(program: &Path, arguments: &[&str], shape: &Shape<'_>) -> Result<Self> {
        let directory = bundle(&[&["/program"], arguments].concat(), None, shape)?;
        fs::copy(program, directory.path().join("rootfs/program")).context("copying the program")?;
        let pid_file = directory.path().join("pid");
        let output = directory.path().join("output");
        let told = fs::File::create(&output)?;
        let mut this = Self {
            id: fresh_name(),
            pid: 0,
            hierarchy: shape.hierarchy,
            cgroup: PathBuf::from(shape.cgroup.trim_start_matches('/')),
            directory,
        };
        let status = runc(shape.hierarchy)
            .args(["run", "--detach", "--bundle"])
            .arg(this.directory.path())
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&this.id)
            .stdin(Stdio::null())
            .stdout(told.try_clone()?)
            .stderr(told)
            .status()?;
        if !status.success() {
            bail!("runc run: {}", fs::read_to_string(&output).unwrap_or_default());
        }
        this.pid = fs::read_to_string(&pid_file)?.trim().parse().context("the container's pid")?;
        Ok(this)
    }

    /// Its first process, as the host numbers it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it printed.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What cannot be removed stays in the host's list of containers, under a name of its own.
        for arguments in [&["kill", "--all", &self.id, "KILL"][..], &["delete", "--force", &self.id]] {
            let _ = runc(self.hierarchy).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let Ok(roots) = fs::read_dir("/sys/fs/cgroup") else { return };
        let roots: Vec<PathBuf> =
            roots.flatten().map(|e| e.path()).chain([PathBuf::from("/sys/fs/cgroup")]).collect();
        for root in roots {
            let mut path = self.cgroup.as_path();
            // An empty cgroup's directory can be removed, one in use refuses.
            while path.parent().is_some()
                && fs::remove_dir(root.join(path)).is_ok() | !root.join(path).exists()
            {
                path = path.parent().unwrap_or(Path::new(""));
                if path.as_os_str().is_empty() {
                    break;
                }
            }
        }
    }
}
