//! Real servers that were not written here, with their own profile endpoint as the truth: every goroutine
//! that stands still between two of their own tracebacks is in the dump that was taken in between, with the
//! same state, frames, lines and creator. Needs root, and the servers where `cargo xtask setup` puts them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gotrace_tests::{
    dump::{Dump, disagreements},
    gotrace::privileged,
    traceback::{Goroutine, parse},
};

/// How long a server may take to begin, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Least goroutines that must have stood still: a server has that many that do nothing.
const LEAST: usize = 10;

/// A server; ended by its id when dropped.
struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(name: &str, arguments: impl FnOnce(&Path, [u16; 2]) -> Result<Vec<String>>) -> Result<Self> {
        let program = cache_dir().join("servers").join(name);
        ensure!(program.exists(), "{} is missing: `cargo xtask setup` fetches it", program.display());
        let dir = tempfile::tempdir()?;
        let ports = [free_port()?, free_port()?];
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
        while this.tracebacks().is_err() {
            let ended = this.child.try_wait()?;
            let said = fs::read_to_string(&this.log).unwrap_or_default();
            ensure!(ended.is_none(), "{name} ended with {ended:?}:\n{said}");
            ensure!(begin.elapsed() < PATIENCE, "{name} does not answer:\n{said}");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }

    /// What it says of its goroutines itself.
    fn tracebacks(&self) -> Result<BTreeMap<u64, Goroutine>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // Without chunks, and closed at the end.
        stream.write_all(b"GET /debug/pprof/goroutine?debug=2 HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.lines().next().is_some_and(|l| l.contains(" 200 ")), "the answer is {head}");
        Ok(parse(body))
    }

    /// Takes a dump between two tracebacks, and judges it by what stood still. Gives the number of
    /// goroutines and frames that agree.
    fn judge(&self) -> Result<(usize, usize)> {
        let before = self.tracebacks()?;
        let dump = Dump::take(self.child.id(), &[], false)?;
        let after = self.tracebacks()?;
        let mut wrong = Vec::new();
        // What was alive before and after must be there, though it moved.
        let alive = before.keys().filter(|goid| after.contains_key(goid));
        let missing = alive.filter(|goid| !dump.goroutines.contains_key(goid));
        wrong.extend(missing.map(|goid| format!("goroutine {goid} is missing")));
        let mut still = after;
        still.retain(|goid, goroutine| {
            goroutine.state != "running" && before.get(goid).is_some_and(|earlier| earlier == goroutine)
        });
        ensure!(still.len() >= LEAST, "only {} goroutines stood still", still.len());
        let frames = disagreements(&dump.goroutines, &still, false, &mut wrong);
        ensure!(wrong.is_empty(), "{} disagreements:\n  {}", wrong.len(), wrong.join("\n  "));
        ensure!(dump.unread() == 0, "stacks were cut short: {}", dump.summary);
        Ok((still.len(), frames))
    }

    /// Up to three times: a goroutine may move between two tracebacks and come back, unseen by both.
    fn agrees(&self, name: &str) {
        for attempt in 1..=3 {
            match self.judge() {
                Ok((goroutines, frames)) => {
                    eprintln!("{name}: {goroutines} goroutines with {frames} frames agree");
                    return;
                }
                Err(e) => eprintln!("{name}, attempt {attempt}: {e:#}"),
            }
        }
        panic!("{name}: no dump agrees with the server's own tracebacks");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free just now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where `cargo xtask setup` keeps what it fetches.
fn cache_dir() -> PathBuf {
    std::env::var_os("GOTRACE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache/gotrace"),
        PathBuf::from,
    )
}

#[test]
fn prometheus() {
    if !privileged("live_foreign") {
        return;
    }
    let server = Server::start("prometheus", |dir, [port, _]| {
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
    .expect("prometheus starts");
    // It has not begun everything when it first answers.
    thread::sleep(Duration::from_secs(1));
    server.agrees("prometheus");
}

#[test]
fn etcd() {
    if !privileged("live_foreign") {
        return;
    }
    let server = Server::start("etcd", |dir, [port, peers]| {
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
    .expect("etcd starts");
    server.agrees("etcd");
}
