//! The OpenTelemetry Collector, made by its own builder of what `deploy/collector/gotrace.yaml` uses: for the
//! tests of that configuration and for measuring what a collector takes for gotrace's spans. Takes a minute
//! or two, once; leaves `cluster/otelcol` in the cache directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::util::{cache_dir, run};

const VERSION: &str = "0.161.0";
const GO: &str = "go1.26.6";
const COMPONENTS: [(&str, &[&str]); 3] = [
    ("receivers", &["receiver/otlpreceiver"]),
    ("processors", &["processor/batchprocessor", "processor/memorylimiterprocessor"]),
    ("exporters", &["exporter/otlpexporter"]),
];

/// The collector's executable; builds it when it is not there.
///
/// # Errors
/// When `go` is missing, or the module proxy is out of reach.
pub fn setup() -> Result<PathBuf> {
    let place = cache_dir().join("cluster");
    let wanted = place.join("otelcol");
    if wanted.exists() {
        return Ok(wanted);
    }
    println!("building the OpenTelemetry Collector {VERSION}: this takes a minute or two, once");
    let making = place.join("otelcol-making");
    if making.exists() {
        fs::remove_dir_all(&making)?;
    }
    fs::create_dir_all(&making).with_context(|| format!("making {}", making.display()))?;
    let mut text = format!(
        "dist:\n  name: otelcol\n  module: otelcol\n  version: {VERSION}\n  output_path: {}\n",
        making.join("build").display()
    );
    for (kind, modules) in COMPONENTS {
        text += &format!("{kind}:\n");
        for module in modules {
            text += &format!("  - gomod: go.opentelemetry.io/collector/{module} v{VERSION}\n");
        }
    }
    fs::write(making.join("builder.yaml"), text)?;
    let builder = format!("go.opentelemetry.io/collector/cmd/builder@v{VERSION}");
    run(go(&making).args(["install", &builder]).env("GOBIN", &making))?;
    run(Command::new(making.join("builder"))
        .args(["--config", "builder.yaml"])
        .current_dir(&making)
        .envs(environment(&making)))?;
    fs::rename(making.join("build/otelcol"), &wanted).context("the builder made no otelcol")?;
    fs::remove_dir_all(&making)?;
    Ok(wanted)
}

fn environment(place: &Path) -> [(&'static str, std::ffi::OsString); 4] {
    [
        ("GOTOOLCHAIN", GO.into()),
        // Used once, and removed with the rest.
        ("GOCACHE", place.join("go-build").into()),
        ("CGO_ENABLED", "0".into()),
        ("GOFLAGS", "-buildvcs=false -modcacherw".into()),
    ]
}

fn go(place: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(place).envs(environment(place));
    go
}
