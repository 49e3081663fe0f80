//! Real servers that were not written here: started with everything in a directory of their own, and ended by their
//! ids. Input is what `cargo xtask setup` has fetched.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::ports;

/// How long a server may take to begin, and to answer.
const PATIENCE: Duration = Duration::from_secs(180);

/// A server; ended by its id when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts one, and waits until it answers.
    fn start(name: &str, arguments: impl FnOnce(&Path, [u16; 2]) -> Result<Vec<String>>) -> Result<Self> {
        let program = cache_dir().join("servers").join(name);
        ensure!(program.exists(), "{} is missing: `cargo xtask setup` fetches it", program.display());
        let dir = tempfile::tempdir()?;
        let ports = ports::free()?;
        let log = dir.path().join("log");
        let output = fs::File::create(&log)?;
        let child = Command::new(&program)
            .args(arguments(dir.path(), ports)?)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut this = Self { child, port: ports[0], log, _dir: dir };
        let begin = Instant::now();
        while this.get("/debug/pprof/goroutine?debug=2").is_err() {
            let ended = this.child.try_wait()?;
            let said = fs::read_to_string(&this.log).unwrap_or_default();
            ensure!(ended.is_none(), "{name} ended with {ended:?}:\n{said}");
            ensure!(begin.elapsed() < PATIENCE, "{name} does not answer:\n{said}");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }

    /// Prometheus, which scrapes itself once a second.
    ///
    /// # Errors
    /// Where it is missing, or does not start.
    pub fn prometheus() -> Result<Self> {
        Self::start("prometheus", |dir, [port, _]| {
            let config = format!(
                "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: self\n  static_configs:\n  - targets: \
                 ['127.0.0.1:{port}']\n"
            );
            fs::write(dir.join("prometheus.yml"), config)?;
            let data = dir.join("data");
            Ok(vec![
                "--config.file=prometheus.yml".into(),
                format!("--storage.tsdb.path={}", data.display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ])
        })
    }

    /// etcd, alone.
    ///
    /// # Errors
    /// Where it is missing, or does not start.
    pub fn etcd() -> Result<Self> {
        Self::start("etcd", |dir, [port, peers]| {
            let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
            Ok(vec![
                "--enable-pprof".into(),
                format!("--data-dir={}", dir.join("data").display()),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=default={peers}"),
            ])
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens, on the loopback interface.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What it answers to a request.
    ///
    /// # Errors
    /// Where it does not, or not with success.
    pub fn get(&self, path: &str) -> Result<String> {
        request(self.port, "GET", path, "")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request to a server on the loopback interface, over a connection of its own; gives the answer's body.
///
/// # Errors
/// Where it does not answer, or not with success.
pub fn request(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Without chunks, and closed at the end.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.lines().next().is_some_and(|l| l.contains(" 200 ")), "the answer is {head}");
    Ok(body.to_owned())
}

/// Where `cargo xtask setup` keeps what it fetches.
fn cache_dir() -> PathBuf {
    std::env::var_os("GOTRACE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache/gotrace"),
        PathBuf::from,
    )
}
