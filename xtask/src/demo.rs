//! `cargo xtask demo`: builds gotrace, starts a small Go program that leaks, and shows what gotrace says of it: at a
//! glance, as a verdict, and live. On a terminal the program runs on until Ctrl-C, for whoever wants to look on.
//!
//! Needs rustup's stable Rust, a C compiler and root; neither Go nor anything of the eBPF toolchain: the
//! Go program is kept prebuilt beside its source (`tests/go/demo`), and the eBPF object is committed.

use std::{
    fs,
    io::{IsTerminal as _, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::util::{root, run};

/// As long as it takes until there is a leak to see.
const LEAKS: Duration = Duration::from_secs(3);

/// How to show it.
#[derive(Debug, Args)]
pub struct Options {
    /// How long to watch it live
    #[arg(long, default_value = "10s")]
    duration: String,
}

/// Runs `cargo xtask demo`.
pub fn main(options: &Options) -> Result<()> {
    println!("building gotrace");
    run(Command::new("cargo").current_dir(root()).args(["build", "--locked", "-p", "gotrace-daemon"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = unpack(&target)?;
    let export = target.join("demo.otlp.jsonl");
    if export.exists() {
        fs::remove_file(&export).with_context(|| format!("removing the old {}", export.display()))?;
    }
    let mut shop = Running::start(&program)?;
    let pid = shop.0.id().to_string();
    println!(
        "started {} as process {pid}; its goroutines in main.waitForever are never to end",
        program.display()
    );
    thread::sleep(LEAKS);
    let gotrace = target.join("debug/gotrace");
    show(&gotrace, &["ps"], &[0])?;
    show(&gotrace, &["check", &pid, "--watch", "5s"], &[0, 10])?;
    let mut attach = vec![
        "attach",
        &pid,
        "--duration",
        &options.duration,
        "--export",
        export.to_str().unwrap_or_default(),
    ];
    let on_terminal = std::io::stdout().is_terminal();
    if !on_terminal {
        // Each interval would be a table of its own.
        attach.push("--quiet");
    }
    show(&gotrace, &attach, &[0])?;
    println!(
        "the trace is in {}: OTLP as JSON lines, which any OpenTelemetry collector reads",
        export.display()
    );
    if !on_terminal {
        let group = ["dump", &pid, "--group", "--function", "main.waitForever"];
        return show(&gotrace, &group, &[0]);
    }
    let name = gotrace.display();
    println!(
        "\nThe shop runs on until Ctrl-C. In another terminal:\n\
         \x20 {name} attach {pid} --level full       watch it\n\
         \x20 {name} leaks {pid} --watch 30s         the leak, proven\n\
         \x20 {name} dump {pid} --group              every goroutine\n\
         \x20 {name} check {pid} --html leak.html    a report to send"
    );
    shop.0.wait().context("waiting for the shop")?;
    Ok(())
}

/// Says what is run, and runs it.
fn show(gotrace: &Path, arguments: &[&str], codes: &[i32]) -> Result<()> {
    println!("\n$ gotrace {}", arguments.join(" "));
    let status = Command::new(gotrace).args(arguments).status().context("starting gotrace")?;
    ensure!(
        status.code().is_some_and(|code| codes.contains(&code)),
        "gotrace ended with {status}; `target/debug/gotrace doctor` tells what this machine lacks"
    );
    Ok(())
}

/// The prebuilt program of this architecture, checked and made executable.
pub(crate) fn unpack(target: &Path) -> Result<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("the demo's Go program is kept for amd64 and arm64, and this machine is {other}"),
    };
    let dir = root().join("tests/go/demo");
    let packed = dir.join(format!("demo.{arch}.gz"));
    let bytes = fs::read(&packed).with_context(|| format!("reading {}", packed.display()))?;
    let sums = fs::read_to_string(dir.join("SHA256SUMS")).context("reading the demo's SHA256SUMS")?;
    let name = format!("demo.{arch}.gz");
    let want = sums.lines().find_map(|l| l.strip_suffix(&name)).map(str::trim);
    let got: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(
        want == Some(&got),
        "{} has another SHA-256 than SHA256SUMS says: tests/go/demo/build.sh makes both anew",
        packed.display()
    );
    let mut program = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..])
        .read_to_end(&mut program)
        .with_context(|| format!("unpacking {}", packed.display()))?;
    let path = target.join("demo-shop");
    // Another demo may be running: its file is replaced, not overwritten.
    let new = target.join("demo-shop.new");
    fs::write(&new, program).with_context(|| format!("writing {}", new.display()))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// The Go program; ended when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(program: &Path) -> Result<Self> {
        let child = Command::new(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
