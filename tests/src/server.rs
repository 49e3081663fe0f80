//! Real servers that were not written here: started with everything in a directory of their own, and ended by their
//! ids. Input is what `cargo xtask setup` has fetched.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::ports;

/// How long a server may take to begin, and to answer.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a server answers that has begun, and has its profiles over HTTP.
const PROFILE: &str = "/debug/pprof/goroutine?debug=2";

/// A server; ended by its id when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    /// Where it answers clients over TLS, and its certificate.
    secure: Option<(u16, Vec<u8>)>,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts one, and waits until it answers this.
    fn start(
        name: &str,
        path: &str,
        arguments: impl FnOnce(&Path, [u16; 3]) -> Result<Vec<String>>,
    ) -> Result<Self> {
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
        let mut this = Self { child, port: ports[0], secure: None, log, _dir: dir };
        let begin = Instant::now();
        while this.get(path).is_err() {
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
        Self::prometheus_with(|port| {
            format!(
                "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: self\n  static_configs:\n  - targets: \
                 ['127.0.0.1:{port}']\n"
            )
        })
    }

    /// Prometheus, which scrapes nobody.
    ///
    /// # Errors
    /// As [`Self::prometheus`].
    pub fn quiet_prometheus() -> Result<Self> {
        Self::prometheus_with(|_| "global: {}\n".into())
    }

    fn prometheus_with(config: impl FnOnce(u16) -> String) -> Result<Self> {
        Self::start("prometheus", PROFILE, |dir, [port, ..]| {
            let config = config(port);
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
        Self::start("etcd", PROFILE, |dir, [port, peers, _]| {
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

    /// etcd that answers clients over TLS alone, and serves gRPC by way of `net/http`.
    ///
    /// # Errors
    /// As [`Self::etcd`].
    pub fn secure_etcd() -> Result<Self> {
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let mut clients = 0;
        let mut this = Self::start("etcd", "/metrics", |dir, [port, peers, secure]| {
            clients = secure;
            fs::write(dir.join("cert.pem"), own.cert.pem())?;
            fs::write(dir.join("key.pem"), own.signing_key.serialize_pem())?;
            let (clients, peers) =
                (format!("https://127.0.0.1:{secure}"), format!("http://127.0.0.1:{peers}"));
            Ok(vec![
                "--cert-file=cert.pem".into(),
                "--key-file=key.pem".into(),
                format!("--listen-metrics-urls=http://127.0.0.1:{port}"),
                format!("--data-dir={}", dir.join("data").display()),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=default={peers}"),
            ])
        })?;
        this.secure = Some((clients, own.cert.der().to_vec()));
        Ok(this)
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

    /// The same of a client, over TLS where it answers clients over that; with the status, whatever it is.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let Some((port, certificate)) = &self.secure else {
            return exchange(connect(self.port)?, method, path, body);
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone().into())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connection = rustls::ClientConnection::new(Arc::new(config), "127.0.0.1".try_into()?)?;
        exchange(rustls::StreamOwned::new(connection, connect(*port)?), method, path, body)
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
    let (status, body) = exchange(connect(port)?, method, path, body)?;
    ensure!(status == 200, "the answer's status is {status}");
    Ok(body)
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request over a connection; gives the answer's status and body.
fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
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
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("the answer is {head}"))?, body.to_owned()))
}

/// Where `cargo xtask setup` keeps what it fetches.
fn cache_dir() -> PathBuf {
    std::env::var_os("GOTRACE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache/gotrace"),
        PathBuf::from,
    )
}
