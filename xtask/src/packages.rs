//! The packages made of the binary: a `.deb` with unit and configuration, and a container image that holds
//! the binary and nothing of a distribution; and the Helm chart as a package.
//!
//! The image is an OCI layout (image-spec 1.1) as a `.tar`, which `docker load`, `podman load`, `skopeo` and
//! `ctr image import` take; no container engine makes it. All come out the same, bit for bit, of the same
//! binary and time (`SOURCE_DATE_EPOCH`, else that of the last commit).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::util::{capture, root, run};

/// The version of all of it.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Where the machine keeps the certificates that it trusts; a collector may be reached by TLS.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The time that everything is from, in seconds since 1970.
pub fn time() -> Result<String> {
    let time = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => time,
        Err(_) => capture(Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]))
            .context("SOURCE_DATE_EPOCH is not set, and git does not tell the time of the last commit")?,
    };
    Ok(time.trim().to_owned())
}

/// A directory's entries as an archive without anything that differs between machines.
pub fn archive(within: &Path, names: &[&str], time: &str) -> Result<Vec<u8>> {
    let mut tar = Command::new("tar");
    tar.current_dir(within)
        .args(["--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u=rwX,go=rX", &format!("--mtime=@{time}"), "--create"])
        .args(names);
    let output = tar.output().context("cannot run tar")?;
    if !output.status.success() {
        bail!("tar failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// Compressed, with nothing of the moment in the header.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    std::io::Write::write_all(&mut packer, bytes)?;
    Ok(packer.finish()?)
}

/// In hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Go's and Debian's name of the architecture.
pub fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no packages are made for {other}"),
    }
}

/// Puts a file there, with its mode.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let parent = to.parent().context("a file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// A directory of our own below `work`, empty.
fn fresh(work: &Path, name: &str) -> Result<PathBuf> {
    let directory = work.join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// `gotrace_<version>_<arch>.deb`. `dist` is the directory of the archive, with man pages and documents.
pub fn deb(binary: &Path, dist: &Path, output: &Path) -> Result<PathBuf> {
    let arch = architecture()?;
    let tree = fresh(output, "deb")?;
    place(binary, &tree.join("usr/bin/gotrace"), 0o755)?;
    place(
        &root().join("deploy/systemd/gotrace.service"),
        &tree.join("usr/lib/systemd/system/gotrace.service"),
        0o644,
    )?;
    place(&root().join("deploy/systemd/gotrace.yaml"), &tree.join("etc/gotrace/gotrace.yaml"), 0o644)?;
    for (from, to) in [
        ("completions/gotrace.bash", "usr/share/bash-completion/completions/gotrace"),
        ("completions/_gotrace", "usr/share/zsh/vendor-completions/_gotrace"),
        ("completions/gotrace.fish", "usr/share/fish/vendor_completions.d/gotrace.fish"),
        ("README.md", "usr/share/doc/gotrace/README.md"),
        ("CHANGELOG.md", "usr/share/doc/gotrace/CHANGELOG.md"),
        ("gotrace.example.yaml", "usr/share/doc/gotrace/gotrace.example.yaml"),
        ("THIRD-PARTY-LICENSES", "usr/share/doc/gotrace/THIRD-PARTY-LICENSES"),
        ("LICENSE-MIT", "usr/share/doc/gotrace/copyright"),
    ] {
        place(&dist.join(from), &tree.join(to), 0o644)?;
    }
    for page in fs::read_dir(dist.join("man"))? {
        let page = page?.path();
        let name = page.file_name().and_then(|n| n.to_str()).context("a man page's name")?;
        let to = tree.join("usr/share/man/man1").join(format!("{name}.gz"));
        fs::create_dir_all(to.parent().context("a directory")?)?;
        fs::write(to, compress(&fs::read(&page)?)?)?;
    }
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control)?;
    let size = fs::metadata(tree.join("usr/bin/gotrace"))?.len() / 1024;
    fs::write(
        control.join("control"),
        format!(
            "Package: gotrace\nVersion: {VERSION}\nArchitecture: {arch}\nMaintainer: The gotrace developers\n\
             Installed-Size: {size}\nSection: utils\nPriority: optional\nRecommends: ca-certificates\n\
             Description: traces the goroutines of running Go programs from outside\n \
             Watches which goroutines there are, who made them, and what they wait for, with eBPF or\n \
             from memory alone, and exports spans and metrics over OTLP.\n"
        ),
    )?;
    fs::write(control.join("conffiles"), "/etc/gotrace/gotrace.yaml\n")?;
    // The daemon looks at every Go program of the machine: it is started when its owner says so. DPKG_ROOT is set where
    // the package is installed for another machine than the one that dpkg runs on.
    let here = "[ -z \"$DPKG_ROOT\" ] && [ -d /run/systemd/system ]";
    let reload = format!("if {here}; then systemctl daemon-reload; fi\n");
    for (name, text) in [
        ("postinst", format!("#!/bin/sh\nset -e\n{reload}")),
        (
            "prerm",
            format!(
                "#!/bin/sh\nset -e\nif [ \"$1\" = remove ] && {here}; then\n    \
                 systemctl disable --now gotrace.service || true\nfi\n"
            ),
        ),
        ("postrm", format!("#!/bin/sh\nset -e\n{reload}")),
    ] {
        fs::write(control.join(name), text)?;
        fs::set_permissions(control.join(name), fs::Permissions::from_mode(0o755))?;
    }
    run(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(&tree))?;
    let package = output.join(format!("gotrace_{VERSION}_{arch}.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zgzip", "--build"])
        .arg(&tree)
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", time()?)
        .stdout(std::process::Stdio::null()))?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// What the image's container is by itself.
fn image_config(arch: &str, created: &str, layer: &str) -> Value {
    json!({
        "created": created,
        "architecture": arch,
        "os": "linux",
        "config": {
            "User": "0",
            "Env": ["PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            "Entrypoint": ["/usr/bin/gotrace"],
            "Cmd": ["daemon"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "gotrace",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": created, "created_by": "cargo xtask dist"}],
    })
}

/// `gotrace-<version>-<arch>.image.tar`.
pub fn image(binary: &Path, dist: &Path, output: &Path) -> Result<PathBuf> {
    let (arch, time) = (architecture()?, time()?);
    let tree = fresh(output, "rootfs")?;
    place(binary, &tree.join("usr/bin/gotrace"), 0o755)?;
    for file in ["gotrace.yaml", "sidecar.yaml"] {
        place(&root().join("deploy/docker").join(file), &tree.join("etc/gotrace").join(file), 0o644)?;
    }
    place(&root().join("deploy/docker/passwd"), &tree.join("etc/passwd"), 0o644)?;
    place(Path::new(CERTIFICATES), &tree.join(CERTIFICATES.trim_start_matches('/')), 0o644)
        .context("the image trusts what this machine trusts: apt-get install ca-certificates")?;
    place(
        &dist.join("THIRD-PARTY-LICENSES"),
        &tree.join("usr/share/doc/gotrace/THIRD-PARTY-LICENSES"),
        0o644,
    )?;
    for empty in ["proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(tree.join(empty))?;
    }
    let layer = archive(&tree, &["."], &time)?;
    fs::remove_dir_all(&tree)?;

    let layout = fresh(output, "image")?;
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |media_type: &str, bytes: &[u8]| -> Result<Value> {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let created =
        capture(Command::new("date").args(["-u", "-d", &format!("@{time}"), "+%Y-%m-%dT%H:%M:%SZ"]))?;
    let config = serde_json::to_vec(&image_config(arch, created.trim(), &sha256(&layer)))?;
    let config = put("application/vnd.oci.image.config.v1+json", &config)?;
    let layer = put("application/vnd.oci.image.layer.v1.tar+gzip", &compress(&layer)?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = put("application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(&manifest)?)?;
    manifest["platform"] = json!({"architecture": arch, "os": "linux"});
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": VERSION,
        "io.containerd.image.name": format!("ghcr.io/gotrace/gotrace:{VERSION}"),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let image = output.join(format!("gotrace-{VERSION}-{arch}.image.tar"));
    fs::write(&image, archive(&layout, &["oci-layout", "index.json", "blobs"], &time)?)?;
    fs::remove_dir_all(&layout)?;
    Ok(image)
}

/// `gotrace-chart-<version>.tgz`: the Helm chart, laid out as `helm package` does it.
pub fn chart(output: &Path) -> Result<PathBuf> {
    let tree = fresh(output, "chart")?;
    run(Command::new("cp").arg("-R").arg(root().join("deploy/kubernetes/chart")).arg(tree.join("gotrace")))?;
    let package = output.join(format!("gotrace-chart-{VERSION}.tgz"));
    fs::write(&package, compress(&archive(&tree, &["gotrace"], &time()?)?)?)?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}
