//! `cargo xtask test`: installs what is missing and runs everything that must hold, from formatting to
//! the virtual machines, in the order in which an error is cheapest to find. Stops at the first stage
//! that fails, with the command that repeats what failed; says at the end what ran and how long it took.
//!
//! On more than one core two lanes run at a time: what only compiles beside the downloads, and libFuzzer and the virtual
//! machines beside what builds and reads Go programs and beside the live tests, which mostly wait. A lane beside is this command again, with stages named; what it
//! prints is kept and shown when it has ended.
//!
//! Live tests run two at a time, for the same reason. One that fails so is run once more, by itself, when all else has
//! ended: failing again fails the run, and passing then is said at its end.
//!
//! One profile and one target serve all stages: the statically linked binary, which is also what runs
//! in the virtual machines.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::Write as _,
    os::unix::{fs::MetadataExt, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    arm64, cluster, collector, ebpf, fuzz, page, setup,
    util::{capture, root, run},
};

/// What to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Run these stages only (comma-separated): setup format clippy docs ebpf build unit programs page live harm robustness fuzz vm; and, only when asked for, cluster, which builds a kube-apiserver, soak, which runs for hours, harm-long, which makes many more of harm's trials, and faults-long, which fails every system call of gotrace's
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

/// Run only when asked for: the first builds a kube-apiserver, which takes minutes, the second runs the agent for two hours and gives each of
/// two servers ten minutes of work, the third makes hundreds of each of the trials of which `harm` makes some, the fourth
/// lets all system calls fail of which `robustness` takes a sample.
const LONG: [&str; 4] = ["cluster", "soak", "harm-long", "faults-long"];

/// The integration tests that `--test` names; empty for all of them.
static CHOSEN: OnceLock<Vec<String>> = OnceLock::new();

/// Live tests that failed beside others.
static FAILED_BESIDE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Live tests that run at a time.
const LIVE_AT_ONCE: usize = 2;

/// What needs nothing but a compiler, and runs beside the setup.
const COMPILING: [&str; 3] = ["clippy", "docs", "build"];

/// What runs beside the tests from `programs` to `live`: what needs a processor, and nothing of this kernel.
const BESIDE_TESTS: [&str; 2] = ["fuzz", "vm"];

type Stage = (&'static str, &'static str, fn() -> Result<()>);

const STAGES: [Stage; 18] = [
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
    ("page", "the page's bundle is that of its sources (seconds, 1 min at first)", page::check),
    ("live", "live tests (about 15 min on two cores)", live),
    ("harm", "who is watched comes to no harm (about 5 min on two cores)", || harm("short")),
    ("robustness", "gotrace stands whatever a node brings (about 4 min on two cores)", robustness),
    ("fuzz", "libFuzzer on everything that parses, 10 s each (about 3 min on two cores)", fuzzing),
    ("vm", "kernels in virtual machines (some 10 min on two cores)", vm),
    (LONG[0], "a real kube-apiserver with etcd (10 min at first)", clusters),
    (LONG[1], "real servers at work for long, and a million goroutines (30 min)", soak),
    (LONG[2], "the same as harm, hundreds of times (hours)", || harm("long")),
    (LONG[3], "every system call of gotrace's that can fail does, with every error (hours)", faults),
];

/// Runs `cargo xtask test`.
pub fn main(options: &Options) -> Result<()> {
    heed_interrupts();
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
    fs::create_dir_all(root().join("target/xtask-test"))?;
    let begin = Instant::now();
    let whole = options.only.is_empty() && !options.quick;
    let mut beside: Option<Beside> = None;
    let mut passed_alone = Vec::new();
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
        if whole && COMPILING.contains(&name) {
            // The first of them is where the lane's end is waited for; the others ran in it.
            if let Some(lane) = beside.take() {
                times.push(lane.finish()?);
            }
            continue;
        }
        if whole && BESIDE_TESTS.contains(&name) {
            continue;
        }
        if whole && name == "setup" {
            setup::compilers()?;
            beside = Some(Beside::start(&COMPILING)?);
        }
        if whole && name == "programs" {
            beside = Some(Beside::start(&BESIDE_TESTS)?);
        }
        println!("\n=== {name}: {what}");
        let start = Instant::now();
        let failed = |error: anyhow::Error| {
            let tests =
                error.downcast_ref::<Failed>().map(|failed| format!(" --test {}", failed.0.join(",")));
            let again = format!("repeat with: cargo xtask test --only {name}{}", tests.unwrap_or_default());
            error.context(format!("stage {name} failed after {:.0?}\n{again}", start.elapsed()))
        };
        stage().map_err(failed)?;
        times.push((name, start.elapsed()));
        if name == "live" {
            // What follows are trials, which are races, and what failed, which gets its chance: both run by themselves.
            let lane = beside.take().map(Beside::finish).transpose();
            passed_alone = alone().map_err(failed)?;
            times.extend(lane?);
        }
    }
    println!("\n=== passed in {:.0} s", begin.elapsed().as_secs_f64());
    let left_out = fs::read_to_string(skipped()).unwrap_or_default();
    for why in left_out.lines().collect::<BTreeSet<_>>() {
        println!("SKIPPED: {why}");
    }
    let _ = fs::remove_file(skipped());
    for (name, time) in &times {
        println!("{:>6.0} s  {name}", time.as_secs_f64());
    }
    if !passed_alone.is_empty() {
        println!("FAILED ONCE, beside others, and passed alone: {}", passed_alone.join(", "));
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

/// A lane beside the one that goes on: some stages, run by this command in a process of their own.
struct Beside {
    stages: String,
    start: Instant,
    output: PathBuf,
    child: Child,
}

impl Beside {
    fn start(stages: &[&'static str]) -> Result<Self> {
        let stages = stages.join(",");
        let directory = root().join("target/xtask-test");
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let output = directory.join(format!("{stages}.log"));
        let file = File::create(&output).with_context(|| format!("making {}", output.display()))?;
        println!("\n=== {stages}: run beside what follows; what they print goes to {}", output.display());
        // It yields to the lane that is waited for.
        let child = Command::new("nice")
            .args(["-n", "5"])
            .arg(std::env::current_exe()?)
            .args(["test", "--only", &stages])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting a lane of its own")?;
        Ok(Self { stages, start: Instant::now(), output, child })
    }

    /// Waits for its end, and shows what it printed.
    fn finish(mut self) -> Result<(&'static str, Duration)> {
        println!("\n=== {}: waiting for what ran beside", self.stages);
        let status = self.child.wait()?;
        let text = fs::read(&self.output).with_context(|| format!("reading {}", self.output.display()))?;
        println!("{}", String::from_utf8_lossy(&text));
        if !status.success() {
            bail!("the stages {} failed: {status}", self.stages);
        }
        Ok((std::mem::take(&mut self.stages).leak(), self.start.elapsed()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a failure elsewhere: it ends with all that it runs.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["--", &format!("-{}", self.child.id())]).status();
            let _ = self.child.wait();
        }
    }
}

/// Leaves something out, aloud; in CI, where everything is expected to run, that is a failure.
fn skip(why: &str) -> Result<()> {
    if std::env::var_os("CI").is_some_and(|v| !v.is_empty()) {
        bail!("nothing is left out in CI, and {why}");
    }
    println!("SKIPPED: {why}");
    let mut file = File::options().create(true).append(true).open(skipped())?;
    writeln!(file, "{why}")?;
    Ok(())
}

/// Where this run, and each test of it that leaves itself out, write that down.
fn skipped() -> PathBuf {
    root().join("target/xtask-test").join(format!("skipped-{}", std::process::id()))
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
pub(crate) fn cargo(arguments: &[&str]) -> Command {
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
    if !is_root() {
        // They say so themselves, which cargo shows of a test that fails only.
        skip("some unit tests need root: files of other users, the verifier, what a hit costs")?;
    }
    if CHOSEN.get().is_none_or(Vec::is_empty) {
        let single = ["--", "--test-threads=1"];
        // Not `--bins`, which takes libFuzzer's program too, whatever its manifest says: it has a `main` of its own.
        let bins = ["--bin", "gotrace", "--bin", "xtask"];
        run(cargo(&["test", "--locked", "--workspace", "--lib"]).args(bins).args(single))?;
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
    let names = ready(names)?;
    let (mut failed, mut times) = (Vec::new(), Vec::new());
    for name in &names {
        let start = Instant::now();
        if run(integration_test(name, threads).envs(environment.iter().copied())).is_err() {
            failed.push(name.clone());
        }
        times.push((start.elapsed(), name.clone()));
    }
    show(times);
    if failed.is_empty() { Ok(()) } else { Err(Failed(failed).into()) }
}

/// Builds those of these that were chosen, and what they run.
fn ready(names: &[String]) -> Result<Vec<String>> {
    // They run the command, also where a single stage is asked for.
    run(&mut cargo(&["build", "--locked", "--workspace", "--bin", "gotrace"]))?;
    let chosen = CHOSEN.get().map_or(&[][..], Vec::as_slice);
    let names: Vec<String> =
        names.iter().filter(|n| chosen.is_empty() || chosen.contains(n)).cloned().collect();
    let tests: Vec<&str> = names.iter().flat_map(|name| ["--test", name.as_str()]).collect();
    run(cargo(&["test", "--locked", "--workspace", "--no-run"]).args(tests))?;
    Ok(names)
}

fn integration_test(name: &str, threads: &str) -> Command {
    let mut command = cargo(&["test", "--locked", "--workspace", "--test", name]);
    command.args(["--", "--test-threads", threads, "--nocapture"]).env("GOTRACE_SKIPPED", skipped());
    command
}

fn show(mut times: Vec<(Duration, String)>) {
    times.sort_by(|a, b| b.cmp(a));
    for (time, name) in times {
        println!("{:>6.0} s  {name}", time.as_secs_f64());
    }
}

/// The same, [`LIVE_AT_ONCE`] at a time; what each prints is shown when it has ended. Gives those that failed.
fn run_beside_each_other(names: &[String]) -> Result<Vec<String>> {
    let names = ready(names)?;
    let directory = root().join("target/xtask-test");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let queue = Mutex::new(names.iter());
    let ended = Mutex::new((Vec::new(), Vec::new()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let one = |name: &str| -> Result<()> {
        let start = Instant::now();
        let output = directory.join(format!("{name}.log"));
        let file = File::create(&output).with_context(|| format!("making {}", output.display()))?;
        let mut command = integration_test(name, "1");
        let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).status()?;
        let text = fs::read(&output).with_context(|| format!("reading {}", output.display()))?;
        let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{}", String::from_utf8_lossy(&text));
        ended.0.push((start.elapsed(), name.to_owned()));
        if !status.success() {
            println!("FAILED: {name}: {status}");
            ended.1.push(name.to_owned());
        }
        Ok(())
    };
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(name) = next() {
                one(name)?;
            }
            Ok(())
        };
        let all: Vec<_> = (0..LIVE_AT_ONCE).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| bail!("running a live test came to no end"))
        })
    })?;
    let (times, failed) = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    show(times);
    Ok(failed)
}

/// Live tests that failed beside others, by themselves. Gives those that pass so.
fn alone() -> Result<Vec<String>> {
    let names = std::mem::take(&mut *FAILED_BESIDE.lock().unwrap_or_else(PoisonError::into_inner));
    if !names.is_empty() {
        println!("\n=== live: once more, alone: {}", names.join(", "));
        run_integration(&names, "1")?;
    }
    Ok(names)
}

fn programs() -> Result<()> {
    let elsewhere = ["live_", "vm_", "cli_", "soak_", "cluster_", "harm_", "robust_"];
    run_integration(&integration(|n| !elsewhere.iter().any(|e| n.starts_with(e)))?, "2")
}

fn live() -> Result<()> {
    if !is_root() {
        return skip("the live tests need root");
    }
    let failed = run_beside_each_other(&integration(|n| n.starts_with("live_"))?)?;
    FAILED_BESIDE.lock().unwrap_or_else(PoisonError::into_inner).extend(failed);
    Ok(())
}

/// Trials of programs under gotrace, `short` or `long`.
fn harm(extent: &str) -> Result<()> {
    if !is_root() {
        return skip("the trials need root");
    }
    let names = integration(|n| n.starts_with("harm_"))?;
    run_integration_with(&names, "1", &[("GOTRACE_HARM", extent)])
}

/// Hostile programs, and systems that have little left.
fn robustness() -> Result<()> {
    if !is_root() {
        return skip("the trials need root");
    }
    run_integration(&integration(|n| n.starts_with("robust_"))?, "1")
}

/// Every place from which gotrace calls the kernel, with every error.
fn faults() -> Result<()> {
    if !is_root() {
        return skip("the trials need root");
    }
    run_integration_with(&["robust_faults".to_owned()], "1", &[("GOTRACE_FAULTS", "long")])
}

/// A short time of `cargo xtask fuzz`, with the same inputs each time: news are for those who ask for them.
fn fuzzing() -> Result<()> {
    fuzz::main(&fuzz::Options { only: Vec::new(), seconds: 10, seed: Some(1) })
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

/// Who is started in the background by a script (`&`, nohup) ignores interrupts, and a Go program that is started so
/// ignores them for good, which tests send to it.
fn heed_interrupts() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: no handler is set.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
