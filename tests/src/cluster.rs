//! A real Kubernetes API server with etcd, for as long as a test runs. Needs what `cargo xtask setup` puts
//! into the cache directory (`cluster/{etcd,kube-apiserver}`).
//!
//! RBAC is on, certificates are checked, service accounts have real tokens. There is no controller and no
//! kubelet: nothing makes pods of a Deployment, and a pod's status is what the test writes. Both listen on
//! the loopback address, at ports that were free; both are ended by their pids when dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{gobuild::cache_dir, ports};

/// How long the server may take to be ready.
const PATIENCE: Duration = Duration::from_secs(180);
const ADMIN_TOKEN: &str = "an-administrator-of-this-test";

/// A running control plane.
#[derive(Debug)]
pub struct Cluster {
    etcd: Child,
    server: Option<Child>,
    ports: [u16; 3],
    directory: tempfile::TempDir,
}

fn program(name: &str) -> Result<PathBuf> {
    let path = cache_dir().join("cluster").join(name);
    ensure!(path.exists(), "{} is not there: `cargo xtask setup` puts it there", path.display());
    Ok(path)
}

impl Cluster {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// Where a program is missing or ends, with its last words.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let ports = ports::free()?;
        write_keys(directory.path())?;
        let [_, client, peer] = ports;
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = Command::new(program("etcd")?)
            .args(["--name", "t", "--unsafe-no-fsync", "--data-dir"])
            .arg(directory.path().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("t={peer}")])
            .stdin(Stdio::null())
            .stdout(log(directory.path(), "etcd")?)
            .stderr(log(directory.path(), "etcd")?)
            .spawn()
            .context("starting etcd")?;
        let mut this = Self { etcd, server: None, ports, directory };
        fs::write(this.kubeconfig_path("admin"), this.kubeconfig(ADMIN_TOKEN)?)?;
        this.start_server().await?;
        Ok(this)
    }

    /// Starts the API server, which [`Self::stop_server`] has stopped.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_server(&mut self) -> Result<()> {
        let [port, etcd, _] = self.ports;
        let keys = |name: &str| self.directory.path().join(name);
        let server = Command::new(program("kube-apiserver")?)
            .arg(format!("--etcd-servers=http://127.0.0.1:{etcd}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"))
            .arg("--tls-cert-file")
            .arg(keys("server.crt"))
            .arg("--tls-private-key-file")
            .arg(keys("server.key"))
            .arg("--token-auth-file")
            .arg(keys("tokens.csv"))
            .arg("--service-account-key-file")
            .arg(keys("accounts.pub"))
            .arg("--service-account-signing-key-file")
            .arg(keys("accounts.key"))
            .args(["--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC"])
            .args(["--service-cluster-ip-range=10.96.0.0/24", "--endpoint-reconciler-type=none"])
            // It waits for a controller to make accounts, and there is none.
            .args(["--disable-admission-plugins=ServiceAccount", "--allow-privileged=true"])
            .arg("--cert-dir")
            .arg(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log(self.directory.path(), "server")?)
            .stderr(log(self.directory.path(), "server")?)
            .spawn()
            .context("starting kube-apiserver")?;
        self.server = Some(server);
        let begin = Instant::now();
        loop {
            if let Some(status) = self.server.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("kube-apiserver ended ({status}):\n{}", self.last_words("server"));
            }
            if let Some(status) = self.etcd.try_wait()? {
                bail!("etcd ended ({status}):\n{}", self.last_words("etcd"));
            }
            if let Ok(client) = self.client().await
                && let Ok(request) = Request::get("/readyz").body(Vec::new())
                && client.request_text(request).await.is_ok_and(|text| text == "ok")
            {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "kube-apiserver is not ready:\n{}",
                self.last_words("server")
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends the API server; what it was told stays in etcd.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            end(&mut server);
        }
    }

    /// Its administrator.
    ///
    /// # Errors
    /// Where the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(self.kubeconfig_path("admin"))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.proxy_url = None;
        Ok(Client::try_from(config)?)
    }

    /// A request by the administrator, answered with JSON.
    ///
    /// # Errors
    /// What the server refuses, in its words.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method.clone()).uri(path).header(CONTENT_TYPE, kind);
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let client = self.client().await?;
        client.request::<Value>(request.body(body)?).await.with_context(|| format!("{method} {path}"))
    }

    /// Makes an object.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.send(Method::POST, path, object).await
    }

    /// Writes a kubeconfig for a service account, with a token that the server makes.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.create(&path, &asked).await?;
        let token = answer["status"]["token"].as_str().context("a token")?;
        let path = self.kubeconfig_path(account);
        fs::write(&path, self.kubeconfig(token)?)?;
        Ok(path)
    }

    /// How many requests the server has answered, by its own count, for objects of this kind (`pods`).
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn requests(&self, resource: &str) -> Result<u64> {
        let client = self.client().await?;
        let page = client.request_text(Request::get("/metrics").body(Vec::new())?).await?;
        let of_it = format!("resource=\"{resource}\"");
        let counts = page.lines().filter(|l| l.starts_with("apiserver_request_total{") && l.contains(&of_it));
        Ok(counts.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    }

    /// A directory of its own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn kubeconfig_path(&self, who: &str) -> PathBuf {
        self.directory.path().join(format!("{who}.kubeconfig"))
    }

    fn kubeconfig(&self, token: &str) -> Result<String> {
        let authority = self.directory.path().join("ca.crt");
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.ports[0]), "certificate-authority": authority,
            }}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        Ok(serde_json::to_string(&file)?)
    }

    fn last_words(&self, of: &str) -> String {
        let text = fs::read_to_string(self.directory.path().join(format!("{of}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_server();
        end(&mut self.etcd);
    }
}

fn end(child: &mut Child) {
    // One that has ended already cannot be ended again.
    let _ = child.kill();
    let _ = child.wait();
}

fn log(directory: &Path, name: &str) -> Result<File> {
    let path = directory.join(format!("{name}.log"));
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("writing {}", path.display()))
}

/// An authority, the server's certificate of it, the key that signs tokens, and the administrator's token.
fn write_keys(directory: &Path) -> Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(String::from);
    let server = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    fs::write(directory.join("ca.crt"), authority.pem())?;
    fs::write(directory.join("server.crt"), server.pem())?;
    fs::write(directory.join("server.key"), key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    fs::write(directory.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(directory.join("accounts.pub"), accounts.public_key_pem())?;
    fs::write(directory.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin-uid,\"system:masters\"\n"))?;
    Ok(())
}
