//! What the binary is made of, as a CycloneDX 1.6 document: each crate that is linked into it with its version, licence
//! and the hash by which `Cargo.lock` holds it, the C library, and Go's of the program of `gotrace demo`. Comes out the same from the same sources and time.

use std::{collections::HashMap, fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    demo, licences, packages,
    util::{capture, root},
};

/// The document. `sha256`: of the binary.
pub fn document(sha256: &str) -> Result<String> {
    let hashes = checksums()?;
    let mut components = vec![c_library()?, go_library()?];
    for package in licences::linked()? {
        let purl = format!("pkg:cargo/{}@{}", package.name, package.version);
        let mut component = json!({
            "type": "library",
            "bom-ref": purl,
            "name": package.name,
            "version": package.version,
            "purl": purl,
        });
        if let Some(licence) = package.licence() {
            component["licenses"] = json!([{ "expression": licence }]);
        }
        if let Some(hash) = hashes.get(&(package.name, package.version)) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
        }
        components.push(component);
    }
    let version = env!("CARGO_PKG_VERSION");
    let this = format!("pkg:generic/gotrace@{version}");
    let seconds = packages::time()?;
    let timestamp =
        capture(Command::new("date").args(["--utc", &format!("--date=@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"]))?;
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": timestamp.trim(),
            "component": {
                "type": "application",
                "bom-ref": this,
                "name": "gotrace",
                "version": version,
                "purl": this,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
                "hashes": [{ "alg": "SHA-256", "content": sha256 }],
            },
        },
        "components": components,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// The C library that is linked statically: the one of the machine that builds.
fn c_library() -> Result<Value> {
    let told = capture(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let version =
        told.split_whitespace().nth(1).context("`getconf GNU_LIBC_VERSION` names no version")?.to_owned();
    let purl = format!("pkg:generic/glibc@{version}");
    Ok(json!({
        "type": "library",
        "bom-ref": purl,
        "name": "glibc",
        "version": version,
        "purl": purl,
        "licenses": [{ "expression": "LGPL-2.1-or-later" }],
    }))
}

/// Go's runtime and standard library, in the Go program that is part of the binary.
fn go_library() -> Result<Value> {
    let (version, licence) = demo::go()?;
    let purl = format!("pkg:golang/std@{version}");
    Ok(json!({
        "type": "library",
        "bom-ref": purl,
        "name": "std",
        "version": version,
        "purl": purl,
        "licenses": [{ "expression": licence }],
    }))
}

/// Hashes of crates by name and version, as the lock files have them.
fn checksums() -> Result<HashMap<(String, String), String>> {
    let mut all = HashMap::new();
    for file in ["Cargo.lock", "gotrace-ebpf/Cargo.lock"] {
        let text = fs::read_to_string(root().join(file)).with_context(|| format!("reading {file}"))?;
        for package in text.split("[[package]]").skip(1) {
            let field = |name: &str| {
                let start = format!("{name} = \"");
                package
                    .lines()
                    .find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'))
                    .map(str::to_owned)
            };
            if let (Some(name), Some(version), Some(hash)) =
                (field("name"), field("version"), field("checksum"))
            {
                all.insert((name, version), hash);
            }
        }
    }
    Ok(all)
}
