//! Kernels for the virtual machines: Debian's cloud kernels for both architectures, fetched with an
//! apt state of its own under the cache directory, so that the machine's own sources stay as they are.
//!
//! Leaves `vm/<series>-<arch>/{vmlinuz,release}` and `vm/busybox-<arch>` in the cache directory, where
//! the virtual-machine tests look for them. Fetches only what is missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::util::{apt_install, cache_dir, capture, run};

/// Series (the directory's name) and the beginning of the versions that belong to it.
const SERIES: [(&str, &str); 4] = [("5.10", "5.10."), ("6.1", "6.1."), ("6.12", "6.12."), ("7", "7.")];

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// Suites that together hold the kernels.
const SUITES: [(&str, &str); 7] = [
    ("debian", "bookworm"),
    ("debian", "bullseye"),
    ("debian", "trixie"),
    ("debian", "trixie-backports"),
    ("debian-security", "bullseye-security"),
    ("debian-security", "bookworm-security"),
    ("debian-security", "trixie-security"),
];

/// Fetches kernels and busybox, and installs qemu.
pub fn setup() -> Result<()> {
    apt_install(&["qemu-system-x86", "qemu-system-arm", "busybox-static"])?;
    let vm = cache_dir().join("vm");
    fs::create_dir_all(&vm).with_context(|| format!("making {}", vm.display()))?;
    for arch in ARCHITECTURES {
        let busybox = vm.join(format!("busybox-{arch}"));
        if !busybox.exists() {
            let tree = Apt::open()?.unpacked(&format!("busybox-static:{arch}"))?;
            let from = ["bin/busybox", "usr/bin/busybox"].map(|p| tree.path().join(p));
            let from = from.iter().find(|p| p.exists()).context("busybox-static has no busybox")?;
            copy(from, &busybox)?;
        }
        for (series, begin) in SERIES {
            let dir = vm.join(format!("{series}-{arch}"));
            if !dir.join("vmlinuz").exists() {
                fetch(&Apt::open()?, begin, arch, &dir)
                    .with_context(|| format!("fetching a kernel {series} for {arch}"))?;
            }
        }
    }
    Ok(())
}

fn fetch(apt: &Apt, begin: &str, arch: &str, dir: &Path) -> Result<()> {
    let meta = format!("linux-image-cloud-{arch}:{arch}");
    let listed = apt.cache(&["madison", &meta])?;
    // Newest first, as apt lists them. The archive may announce a version that it does not hold.
    let versions =
        listed.lines().filter_map(|l| l.split('|').nth(1).map(str::trim)).filter(|v| v.starts_with(begin));
    let mut last = None;
    for version in versions {
        match fetch_version(apt, &format!("{meta}={version}"), arch, dir) {
            Ok(()) => return Ok(()),
            Err(e) => {
                println!("{meta} {version} cannot be had ({e:#})");
                last = Some(e);
            }
        }
    }
    Err(last.unwrap_or_else(|| anyhow!("Debian has no {meta} {begin}x now; it has:\n{listed}")))
}

fn fetch_version(apt: &Apt, meta: &str, arch: &str, dir: &Path) -> Result<()> {
    let image = apt
        .depends(meta, "linux-image-")?
        .into_iter()
        .next()
        .with_context(|| format!("{meta} names no kernel"))?;
    let release = image.trim_start_matches("linux-image-").to_owned();
    println!("fetching kernel {release}");
    let name = format!("{image}:{arch}");
    let mut trees = vec![apt.unpacked(&name)?];
    // From 7.x on the image is split, and this package is empty.
    for part in apt.depends(&name, "linux-b")?.iter().chain(&apt.depends(&name, "linux-modules-")?) {
        if !part.contains(&release) || find(&trees, &release).is_some() {
            continue;
        }
        trees.push(apt.unpacked(&format!("{part}:{arch}"))?);
    }
    let vmlinuz = find(&trees, &release).with_context(|| format!("{image} holds no vmlinuz"))?;
    fs::create_dir_all(dir)?;
    fs::write(dir.join("release"), &release)?;
    copy(&vmlinuz, &dir.join("vmlinuz"))
}

fn find(trees: &[Tree], release: &str) -> Option<PathBuf> {
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    trees.iter().flat_map(|t| places.iter().map(|p| t.path().join(p))).find(|p| p.exists())
}

/// Copies so that a broken run leaves no half of a file under the final name.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("copying {}", from.display()))?;
    fs::rename(&new, to).with_context(|| format!("moving to {}", to.display()))
}

/// Apt makes its index anew, which takes a while, whenever one of its files looks newer.
fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Debian's archive, seen through an apt state of our own.
pub struct Apt {
    config: PathBuf,
    dir: PathBuf,
}

/// An unpacked package; removed when dropped.
pub struct Tree(PathBuf);

impl Tree {
    /// Its top.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // What stays behind lies in the cache and is overwritten by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Apt {
    /// Makes the state, and brings its lists up to date where they are older than a day.
    pub fn open() -> Result<Self> {
        let dir = cache_dir().join("apt");
        for sub in ["lists/partial", "cache/archives/partial", "state", "unpacked"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).with_context(|| format!("making {}", sub.display()))?;
        }
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        if !keyring.exists() {
            apt_install(&["debian-archive-keyring"])?;
        }
        let mut sources = String::new();
        for (archive, suite) in SUITES {
            sources += &format!(
                "deb [signed-by={}] http://deb.debian.org/{archive} {suite} main\n",
                keyring.display()
            );
        }
        write_if_changed(&dir.join("sources.list"), &sources)?;
        write_if_changed(&dir.join("status"), "")?;
        let config = dir.join("apt.conf");
        let d = dir.display();
        write_if_changed(
            &config,
            &format!(
                "Dir::Etc::sourcelist \"{d}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::State::lists \"{d}/lists\";\nDir::State \"{d}/state\";\nDir::State::status \"{d}/status\";\n\
                 Dir::Cache \"{d}/cache\";\nAPT::Architectures {{\"amd64\";\"arm64\";}};\n\
                 APT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
            ),
        )?;
        let this = Self { config, dir };
        let stamp = this.dir.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age < Duration::from_secs(86_400)));
        if !fresh {
            println!("reading Debian's package lists");
            run(this.command("apt-get").args(["-qq", "update"]))?;
            fs::write(&stamp, "")?;
        }
        Ok(this)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    fn cache(&self, args: &[&str]) -> Result<String> {
        capture(self.command("apt-cache").args(args))
    }

    /// Packages that the package depends on and whose names begin so.
    fn depends(&self, package: &str, begin: &str) -> Result<Vec<String>> {
        let shown = self.cache(&["show", "--no-all-versions", package])?;
        let line = shown.lines().find_map(|l| l.strip_prefix("Depends:")).unwrap_or_default();
        let names = line.split([',', '|']).filter_map(|d| d.split_whitespace().next());
        Ok(names.filter(|n| n.starts_with(begin)).map(ToOwned::to_owned).collect())
    }

    /// Downloads a package (`name:arch` or `name:arch=version`) and unpacks it.
    pub fn unpacked(&self, package: &str) -> Result<Tree> {
        let plain: String = package.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let dir = self.dir.join("unpacked").join(format!("{plain}.{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let tree = Tree(dir);
        run(self.command("apt-get").current_dir(tree.path()).args(["-qq", "download", package]))?;
        let mut debs = Vec::new();
        for entry in fs::read_dir(tree.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                debs.push(path);
            }
        }
        let [deb] = &debs[..] else { bail!("apt-get download {package} left {} files", debs.len()) };
        run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(tree.path()))?;
        fs::remove_file(deb)?;
        ensure!(tree.path().exists(), "{package} is empty");
        Ok(tree)
    }
}
