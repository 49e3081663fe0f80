//! rotel: an OpenTelemetry collector that is not ours, as the judge of what gotrace sends.
//!
//! It comes from PyPI (`rotel==0.0.1a15`) into `target/tools/rotel`; python3 with its `venv` module is
//! needed. It decodes OTLP over gRPC and HTTP and prints what it received. A machine on which it cannot
//! be installed fails the test with pip's own words: nothing is skipped.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{fixture::PATIENCE, ports};

/// What pip is asked for.
pub const REQUIREMENT: &str = "rotel==0.0.1a15";

/// The collector's executable; installs it when it is not there.
///
/// # Errors
/// When python3 or its venv module is missing, or PyPI is out of reach.
pub fn install() -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/rotel");
    if let Some(agent) = find(&directory) {
        return Ok(agent);
    }
    // Made beside its place and renamed, so that a half installation is never taken for a whole one.
    let making = directory.with_extension(format!("making-{}", std::process::id()));
    let _ = fs::remove_dir_all(&making);
    fs::create_dir_all(&making)?;
    run(Command::new("python3").args(["-m", "venv"]).arg(&making))
        .context("python3 with its venv module is needed (Debian: python3-venv)")?;
    run(Command::new(making.join("bin/python")).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        REQUIREMENT,
    ]))
    .context("rotel comes from PyPI: is the package index reachable?")?;
    if fs::rename(&making, &directory).is_err() {
        // Another test was faster.
        fs::remove_dir_all(&making)?;
    }
    find(&directory).context("rotel's package holds no rotel-agent for this machine")
}

/// `lib/python3.*/site-packages/rotel/rotel-agent`.
fn find(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory.join("lib"))
        .ok()?
        .filter_map(Result::ok)
        .map(|e| e.path().join("site-packages/rotel/rotel-agent"))
        .find(|p| p.is_file())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A running rotel; it ends when dropped.
#[derive(Debug)]
pub struct Rotel {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub grpc: String,
    /// `http://127.0.0.1:PORT`.
    pub http: String,
    output: Arc<Mutex<String>>,
    _directory: tempfile::TempDir,
}

impl Rotel {
    /// Starts it at free ports and waits until it listens. `signal`: `traces` or `metrics`, what it
    /// prints.
    ///
    /// # Errors
    /// When it cannot be installed or does not come up within ten seconds.
    pub fn start(signal: &str) -> Result<Self> {
        let agent = install()?;
        let directory = tempfile::tempdir()?;
        let [grpc, http] = ports::free()?.map(|port| format!("127.0.0.1:{port}"));
        let mut child = Command::new(agent)
            .args(["start", "--exporter", "blackhole", "--debug-log", signal])
            .args(["--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &grpc, "--otlp-http-endpoint", &http])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = Arc::new(Mutex::new(String::new()));
        let pipes: [Option<Box<dyn std::io::Read + Send>>; 2] =
            [child.stdout.take().map(|p| Box::new(p) as _), child.stderr.take().map(|p| Box::new(p) as _)];
        for pipe in pipes.into_iter().flatten() {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                    output.push_str(&line);
                    output.push('\n');
                }
            });
        }
        let mut rotel = Self {
            child,
            grpc: format!("http://{grpc}"),
            http: format!("http://{http}"),
            output,
            _directory: directory,
        };
        let begin = Instant::now();
        while TcpStream::connect(&grpc).is_err() || TcpStream::connect(&http).is_err() {
            if begin.elapsed() > PATIENCE || rotel.child.try_wait()?.is_some() {
                bail!("rotel does not listen at {grpc} and {http}; it said:\n{}", rotel.output());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(rotel)
    }

    /// What it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until what it printed fulfils a condition, at most [`PATIENCE`], and gives it back.
    #[must_use]
    pub fn wait_for(&self, condition: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let output = self.output();
            if condition(&output) || begin.elapsed() > PATIENCE {
                return output;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
