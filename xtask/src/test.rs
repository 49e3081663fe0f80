//! `cargo xtask test`: installs what is missing and runs everything that must hold, from formatting to
//! the virtual machines, in the order in which an error is cheapest to find. Stops at the first stage
//! that fails, with the command that repeats what failed; says at the end what ran and how long it took.
//!
//! One profile and one target serve all stages: the statically linked binary, which is also what runs
//! in the virtual machines.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    arm64, cluster, collector, ebpf, setup,
    util::{capture, root, run},
};

/// What to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Run these stages only (comma-separated): setup format clippy docs ebpf build unit programs live harm vm; and, only when asked for, cluster, which builds a kube-apiserver, soak, which runs for 20 minutes, and harm-long, which makes many more of harm's trials
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Of the stages named by --only, run these integration tests only (comma-separated names of files in tests/tests)
    #[arg(long, value_delimiter = ',', requires = "only", value_name = "NAME")]
    test: Vec<String>,
    /// Run only the stages that need neither Go nor a virtual machine
    #[arg(long, conflicts_with = "only")]
    quick: bool,
}

/// Stages of a run with `--quick`: those that need neither a Go toolchain nor a kernel of their own.
const QUICK: [&str; 4] = ["format", "clippy", "ebpf", "unit"];

/// Run only when asked for: the first builds a kube-apiserver, which takes minutes, the second gives each of
/// two servers ten minutes of work, the third makes hundreds of each of the trials of which `harm` makes some.
const LONG: [&str; 3] = ["cluster", "soak", "harm-long"];

/// The integration tests that `--test` names; empty for all of them.
static CHOSEN: OnceLock<Vec<String>> = OnceLock::new();

type Stage = (&'static str, &'static str, fn() -> Result<()>);

const STAGES: [Stage; 14] = [
    ("setup", "install what is missing (some 10 min at first, then seconds)", setup::main),
    ("format", "rustfmt and gofmt", format),
    ("clippy", "clippy without warnings (some minutes at first)", clippy),
    ("docs", "documentation without warnings", docs),
    ("ebpf", "the committed eBPF objects belong to the sources", ebpf_check),
    ("build", "build everything (some minutes at first)", build),
    ("unit", "unit, property and golden tests (some minutes)", unit),
    (
        "programs",
        "Go programs of every version and mode, read and compared (some minutes, more at first: they are built)",
        programs,
    ),
    ("live", "live tests (about 20 min on two cores)", live),
    ("harm", "who is watched comes to no harm (about 5 min on two cores)", || harm("short")),
    ("vm", "kernels in virtual machines (some 10 min on two cores)", vm),
    (LONG[0], "a real kube-apiserver with etcd (10 min at first)", clusters),
    (LONG[1], "real servers at work for long (20 min)", soak),
    (LONG[2], "the same as harm, hundreds of times (hours)", || harm("long")),
];

/// Runs `cargo xtask test`.
pub fn main(options: &Options) -> Result<()> {
    for name in &options.only {
        if !STAGES.iter().any(|(n, ..)| n == name) {
            bail!("no stage {name}: there are {}", STAGES.map(|s| s.0).join(", "));
        }
    }
    let known = integration(|_| true)?;
    if let Some(name) = options.test.iter().find(|name| !known.contains(name)) {
        bail!("no test {name}: there are {}", known.join(", "));
    }
    CHOSEN.get_or_init(|| options.test.clone());
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let begin = Instant::now();
    for (name, what, stage) in STAGES {
        let wanted = if options.only.is_empty() {
            !LONG.contains(&name) && (!options.quick || QUICK.contains(&name))
        } else {
            options.only.iter().any(|n| n == name)
        };
        if !wanted {
            println!("NOT RUN: {name}: {what}");
            continue;
        }
        println!("\n=== {name}: {what}");
        let start = Instant::now();
        stage().map_err(|error| {
            let tests =
                error.downcast_ref::<Failed>().map(|failed| format!(" --test {}", failed.0.join(",")));
            let again = format!("repeat with: cargo xtask test --only {name}{}", tests.unwrap_or_default());
            error.context(format!("stage {name} failed after {:.0?}\n{again}", start.elapsed()))
        })?;
        times.push((name, start.elapsed()));
    }
    println!("\n=== passed in {:.0} s", begin.elapsed().as_secs_f64());
    for (name, time) in &times {
        println!("{:>6.0} s  {name}", time.as_secs_f64());
    }
    let ran = |name: &str| times.iter().any(|(n, _)| *n == name);
    if ran("live") && is_root() {
        println!("Go versions, live: {}", setup::GO_VERSIONS.join(" "));
        println!("build modes, live: plain stripped pie pie-stripped cgo static race pgo trimpath noinline");
        println!("kernel, live: {}", capture(Command::new("uname").arg("-rm"))?.trim());
    }
    if ran("vm") && is_root() && cfg!(target_arch = "x86_64") {
        println!("kernels, in virtual machines:{}", kernels_present());
    }
    Ok(())
}

/// Leaves something out, aloud; in CI, where everything is expected to run, that is a failure.
fn skip(why: &str) -> Result<()> {
    if std::env::var_os("CI").is_some_and(|v| !v.is_empty()) {
        bail!("nothing is left out in CI, and {why}");
    }
    println!("SKIPPED: {why}");
    Ok(())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn kernels_present() -> String {
    let mut all = Vec::new();
    for entry in fs::read_dir(crate::util::cache_dir().join("vm")).into_iter().flatten().flatten() {
        if let Ok(release) = fs::read_to_string(entry.path().join("release")) {
            all.push(release.trim().to_owned());
        }
    }
    all.sort();
    all.iter().fold(String::new(), |text, r| text + " " + r)
}

/// A cargo command in the workspace, for the statically linked target. Packages are chosen by `--workspace` and the
/// names of their targets: with `-p` cargo takes other features of the dependencies, and compiles all of it again.
fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(arguments);
    let target =
        if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
    cargo
        .env("CARGO_BUILD_TARGET", target)
        .env(
            format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_")),
            "-C target-feature=+crt-static",
        )
        .env_remove("RUSTFLAGS");
    cargo
}

fn format() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    if capture(Command::new("gofmt").arg("-h")).is_err()
        && !std::path::Path::new("/usr/local/go/bin/gofmt").exists()
    {
        return skip("gofmt is not here");
    }
    let unformatted = capture(Command::new("gofmt").arg("-l").arg(root().join("tests/go")))?;
    if !unformatted.trim().is_empty() {
        bail!("gofmt would change:\n{unformatted}");
    }
    Ok(())
}

fn clippy() -> Result<()> {
    run(&mut cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn docs() -> Result<()> {
    run(cargo(&["doc", "--locked", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn ebpf_check() -> Result<()> {
    ebpf::main(ebpf::Action::Check)
}

fn build() -> Result<()> {
    run(&mut cargo(&["test", "--locked", "--workspace", "--no-run"]))?;
    run(&mut cargo(&["build", "--locked", "--workspace", "--bin", "gotrace"]))
}

fn unit() -> Result<()> {
    if CHOSEN.get().is_none_or(Vec::is_empty) {
        let single = ["--", "--test-threads=1"];
        run(cargo(&["test", "--locked", "--workspace", "--lib", "--bins"]).args(single))?;
        run(&mut cargo(&["test", "--locked", "--workspace", "--test", "architecture"]))?;
    }
    // The command line's own tests run the command.
    run(&mut cargo(&["build", "--locked", "--workspace", "--bin", "gotrace"]))?;
    run_integration(&integration(|n| n.starts_with("cli_"))?, "2")
}

/// The integration tests in `tests/tests` whose names begin, or do not begin, so.
fn integration(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("tests/tests"))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|e| e == "rs") && wanted(stem) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Integration tests that failed.
#[derive(Debug)]
struct Failed(Vec<String>);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: {}", self.0.join(", "))
    }
}

impl std::error::Error for Failed {}

/// Runs those of these that were chosen, each by itself; says how long each took, and at the end all that failed.
fn run_integration(names: &[String], threads: &str) -> Result<()> {
    run_integration_with(names, threads, &[])
}

fn run_integration_with(names: &[String], threads: &str, environment: &[(&str, &str)]) -> Result<()> {
    let chosen = CHOSEN.get().map_or(&[][..], Vec::as_slice);
    let names: Vec<&String> = names.iter().filter(|n| chosen.is_empty() || chosen.contains(n)).collect();
    let tests: Vec<&str> = names.iter().flat_map(|name| ["--test", name.as_str()]).collect();
    let test = ["test", "--locked", "--workspace"];
    run(cargo(&test).arg("--no-run").args(tests))?;
    let (mut failed, mut times) = (Vec::new(), Vec::new());
    for name in names {
        let start = Instant::now();
        let mut command = cargo(&test);
        let arguments = ["--test", name, "--", "--test-threads", threads, "--nocapture"];
        if run(command.args(arguments).envs(environment.iter().copied())).is_err() {
            failed.push(name.clone());
        }
        times.push((start.elapsed(), name));
    }
    times.sort_by(|a, b| b.cmp(a));
    for (time, name) in times {
        println!("{:>6.0} s  {name}", time.as_secs_f64());
    }
    if failed.is_empty() { Ok(()) } else { Err(Failed(failed).into()) }
}

fn programs() -> Result<()> {
    let elsewhere = ["live_", "vm_", "cli_", "soak_", "cluster_", "harm_"];
    run_integration(&integration(|n| !elsewhere.iter().any(|e| n.starts_with(e)))?, "2")
}

fn live() -> Result<()> {
    if !is_root() {
        return skip("the live tests need root");
    }
    // One after the other: what they measure is time.
    run_integration(&integration(|n| n.starts_with("live_"))?, "1")
}

/// Trials of programs under gotrace, `short` or `long`.
fn harm(extent: &str) -> Result<()> {
    if !is_root() {
        return skip("the trials need root");
    }
    let names = integration(|n| n.starts_with("harm_"))?;
    run_integration_with(&names, "1", &[("GOTRACE_HARM", extent)])
}

fn clusters() -> Result<()> {
    if !is_root() {
        return skip("the tests with a cluster need root");
    }
    cluster::setup_server()?;
    collector::setup()?;
    run_integration(&integration(|n| n.starts_with("cluster_"))?, "1")
}

fn soak() -> Result<()> {
    if !is_root() {
        return skip("the long tests need root");
    }
    run_integration(&integration(|n| n.starts_with("soak_"))?, "1")
}

fn vm() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        return skip("the virtual machines run on x86-64 only");
    }
    arm64::build()?;
    run_integration(&integration(|n| n.starts_with("vm_"))?, "1")
}
