//! The packages that users install, made of the binary under test: the Debian package, and the container
//! image, which runs by runc as a sidecar would. Needs root, runc and dpkg-deb.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use gotrace_tests::{
    container::{Container, Hierarchy, Shape, run_image},
    demo::unpack_demo,
    gotrace::{binary, privileged},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn output_of(program: &str, arguments: &[&str], within: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(within).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The file that ends so.
fn find(directory: &Path, end: &str) -> PathBuf {
    let mut files = fs::read_dir(directory).expect("a directory").map(|e| e.expect("an entry").path());
    files.find(|p| p.to_string_lossy().ends_with(end)).unwrap_or_else(|| panic!("no file *{end}"))
}

/// Makes the packages.
fn make(directory: &Path) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new("cargo")
        .current_dir(workspace)
        .args(["run", "--quiet", "--locked", "--package", "xtask", "--", "dist", "--binary"])
        .arg(binary().expect("built"))
        .arg("--output")
        .arg(directory)
        .status()
        .expect("cargo runs");
    assert!(status.success());
}

#[test]
fn packages_hold_what_they_should_and_the_image_runs() {
    if !privileged("live_packages") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let made = directory.path();
    make(made);
    output_of("sha256sum", &["--check", "--quiet", "SHA256SUMS"], made);
    materials(&find(made, ".cdx.json"));
    debian(&find(made, ".deb"), made);
    let layer = image(&find(made, ".image.tar"), made);
    sidecar(&layer);
}

/// The bill of materials has the binary, each crate that the notices name, and what all of it is under.
fn materials(file: &Path) {
    let said: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON");
    assert_eq!((&said["bomFormat"], &said["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let hash = Sha256::digest(fs::read(binary().expect("built")).expect("a file"));
    let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(said["metadata"]["component"]["hashes"][0]["content"], hash);
    let components = said["components"].as_array().expect("components");
    for component in components {
        assert!(
            component["licenses"][0]["expression"].as_str().is_some_and(|l| !l.contains('/')),
            "{component}"
        );
        let is_crate = component["purl"].as_str().expect("an address").starts_with("pkg:cargo/");
        assert_eq!(
            component["hashes"][0]["content"].as_str().map(str::len),
            is_crate.then_some(64),
            "{component}"
        );
    }
    for name in ["glibc", "aya", "aya-ebpf", "tokio", "object"] {
        assert!(components.iter().any(|c| c["name"] == name), "no {name}");
    }
    // For tests and tools alone.
    for name in ["trycmd", "proptest"] {
        assert!(components.iter().all(|c| c["name"] != name), "{name}");
    }
}

fn debian(package: &Path, made: &Path) {
    let package = package.to_string_lossy();
    let contents = output_of("dpkg-deb", &["--contents", &package], made);
    for file in [
        "-rwxr-xr-x root/root",
        "./usr/bin/gotrace",
        "./usr/lib/systemd/system/gotrace.service",
        "./etc/gotrace/gotrace.yaml",
        "./usr/share/man/man1/gotrace.1.gz",
        "./usr/share/man/man1/gotrace-attach.1.gz",
        "./usr/share/bash-completion/completions/gotrace",
    ] {
        assert!(contents.contains(file), "{file} is not in\n{contents}");
    }
    assert!(!contents.contains("rwxrwx") && !contents.contains("drwx------"), "{contents}");
    let tree = made.join("unpacked");
    output_of("dpkg-deb", &["--raw-extract", &package, &tree.to_string_lossy()], made);
    let unit = fs::read_to_string(tree.join("usr/lib/systemd/system/gotrace.service")).expect("the unit");
    let started = unit.lines().find_map(|l| l.strip_prefix("ExecStart=/")).expect("it starts something");
    for path in started.split(' ').filter(|w| w.starts_with("usr/") || w.starts_with("/etc/")) {
        assert!(tree.join(path.trim_start_matches('/')).exists(), "the unit names {path}");
    }
    assert_eq!(
        fs::read_to_string(tree.join("DEBIAN/conffiles")).expect("read"),
        "/etc/gotrace/gotrace.yaml\n"
    );
    let version = output_of(&tree.join("usr/bin/gotrace").to_string_lossy(), &["--version"], made);
    assert!(version.starts_with("gotrace "), "{version}");
}

/// Checks the image as image-spec has it; returns its layer.
fn image(image: &Path, made: &Path) -> PathBuf {
    let layout = made.join("layout");
    fs::create_dir(&layout).expect("made");
    output_of("tar", &["-xf", &image.to_string_lossy()], &layout);
    let blob = |descriptor: &Value| {
        let digest =
            descriptor["digest"].as_str().expect("a digest").strip_prefix("sha256:").expect("sha256");
        let path = layout.join("blobs/sha256").join(digest);
        let bytes = fs::read(&path).expect("the blob");
        assert_eq!(hex::encode(Sha256::digest(&bytes)), digest);
        assert_eq!(descriptor["size"], bytes.len());
        (path, bytes)
    };
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
    let index = json(&fs::read(layout.join("index.json")).expect("an index"));
    let manifest = json(&blob(&index["manifests"][0]).1);
    let config = json(&blob(&manifest["config"]).1);
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/bin/gotrace"]));
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 1);
    let (path, packed) = blob(&layers[0]);
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).expect("gzip");
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&unpacked)));
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([diff_id]));
    let files = output_of("tar", &["-tf", &path.to_string_lossy()], &layout);
    for file in ["./usr/bin/gotrace", "./etc/gotrace/sidecar.yaml", "./etc/ssl/certs/ca-certificates.crt"] {
        assert!(files.lines().any(|l| l == file), "{file} is not in\n{files}");
    }
    assert!(!files.contains("/bin/sh"), "{files}");
    path
}

/// As on Fargate: the same PID namespace, SYS_PTRACE and no other capability, a read-only file system.
fn sidecar(layer: &Path) {
    let programs = tempfile::tempdir().expect("a directory");
    let demo = unpack_demo(programs.path()).expect("the demo is there");
    let (task, a) = ("cd189a933e5849daa93386466019ab50", "a".repeat(64));
    let cgroup = format!("/ecs/{task}/{a}");
    let shape =
        Shape { cgroup: &cgroup, hierarchy: Hierarchy::Host, hidden: true, bound: &[], pid_namespace: None };
    let target = Container::start(&demo, &["-for", "60s"], &shape).expect("it starts");
    let own = format!("/ecs/{task}/{}", "b".repeat(64));
    let shape = Shape { cgroup: &own, pid_namespace: Some(target.pid()), ..shape };
    let (status, told) =
        run_image(layer, &["/usr/bin/gotrace", "dump", "--pid", "1", "--group"], &["CAP_SYS_PTRACE"], &shape)
            .expect("runc runs it");
    assert!(status.success() && told.contains("main."), "{status}: {told}");
    let attach = [
        "/usr/bin/gotrace",
        "attach",
        "--pid",
        "1",
        "--duration",
        "2s",
        "--format",
        "json",
        "--interval",
        "1s",
    ];
    let (status, told) = run_image(layer, &attach, &["CAP_SYS_PTRACE"], &shape).expect("runc runs it");
    assert!(status.success() && told.contains(r#""engine":"snapshot""#), "{status}: {told}");
    let (status, told) =
        run_image(layer, &["/usr/bin/gotrace", "dump", "--pid", "1"], &[], &shape).expect("runc runs it");
    assert!(!status.success() && told.contains("SYS_PTRACE"), "without the capability: {status}: {told}");
}
