//! `http`: where the pages are served, on the network and for commands of the node, and who may ask the API.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::Error;
use gotrace_export::api::{AccessRules, Token};

/// Largest file of a token.
const MAX_BYTES: u64 = 8192;
/// Longest path of a socket: what the kernel takes (`sun_path`), less the name that it has at first.
const MAX_SOCKET: usize = 88;
/// Where commands ask by default.
pub const SOCKET: &str = "/run/gotrace/gotrace.sock";

/// The pages for health and Prometheus, and the API.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port; `off` for none. Anybody who reaches it can read names of programs and functions.
    pub listen: String,
    /// Socket of the file system on which commands of the node ask; empty or `off` for none.
    pub socket: PathBuf,
    /// Names by which clients on this host may ask the API, besides `localhost`, `127.0.0.1` and `[::1]`.
    pub hosts: Vec<String>,
    /// File that holds the token which other clients of the API need; without one they are refused.
    pub token_file: Option<PathBuf>,
    /// Whether clients on this host need the token too.
    pub require_token: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9464".into(),
            socket: SOCKET.into(),
            hosts: Vec::new(),
            token_file: None,
            require_token: false,
        }
    }
}

impl Http {
    /// What the types alone do not tell: the field, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { listen, socket: _, hosts, token_file, require_token } = self;
        if let Err(why) = self.socket() {
            return Err(("socket", why));
        }
        if listen != "off" && listen.parse::<SocketAddr>().is_err() {
            return Err((
                "listen",
                "listen must be an address and a port, such as 127.0.0.1:9464, or off".into(),
            ));
        }
        for host in hosts {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let named = !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && (bracketed || b != b':'));
            if !named {
                return Err((
                    "hosts",
                    format!("hosts must be names or addresses without scheme and port, unlike {host:?}"),
                ));
            }
        }
        if *require_token && token_file.is_none() {
            return Err(("require_token", "require_token needs token_file".into()));
        }
        Ok(())
    }

    /// The socket, if there is to be one.
    ///
    /// # Errors
    /// Why it cannot be one.
    pub fn socket(&self) -> Result<Option<&Path>, String> {
        let path = self.socket.as_path();
        if path.as_os_str().is_empty() || path.as_os_str() == "off" {
            return Ok(None);
        }
        if !path.is_absolute() || path.file_name().is_none() || path.as_os_str().len() > MAX_SOCKET {
            return Err(format!(
                "socket must be an absolute path of at most {MAX_SOCKET} bytes, such as {SOCKET}, or off"
            ));
        }
        Ok(Some(path))
    }

    /// Who may ask the API; reads the token.
    ///
    /// # Errors
    /// [`Error::Token`]
    pub fn access(&self) -> Result<AccessRules, Error> {
        let Self { listen: _, socket: _, hosts, token_file, require_token } = self;
        let token = token_file.as_deref().map(|path| {
            let bad = |what| Error::Token { path: path.into(), what };
            let text = read(path).map_err(|e| bad(e.to_string()))?;
            Token::new(&text).map_err(|e| bad(e.to_string()))
        });
        Ok(AccessRules { hosts: hosts.clone(), token: token.transpose()?, require_token: *require_token })
    }
}

/// What the file holds. Waits for nobody: a pipe is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.permissions().mode() & 0o004 != 0 {
        tracing::warn!("every user can read the token of the API: chmod 600 {}", path.display());
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{super::Config, *};

    fn http(yaml: &str) -> Result<Http, Error> {
        Config::parse(&format!("http: {yaml}\n"), Path::new("gotrace.yaml")).map(|config| config.http)
    }

    #[test]
    fn the_token_is_read_and_told_to_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let of = |text: &str| {
            std::fs::write(&path, text).expect("written");
            http(&format!("{{token_file: {}, hosts: [node-a]}}", path.display())).expect("valid").access()
        };
        let rules = of("0123456789abcdef\n").expect("a token");
        assert_eq!(rules.token, Token::new(b"0123456789abcdef").ok());
        assert_eq!((&rules.hosts[..], rules.require_token), (&["node-a".to_owned()][..], false));
        assert!(!format!("{rules:?}").contains("0123"), "{rules:?}");
        for (text, says) in [("", "from 16 to"), ("short", "from 16 to"), ("0123456789 abcdef", "one line")] {
            let error = of(text).expect_err("refused").to_string();
            assert!(error.contains("http.token_file") && error.contains(says), "{error}");
        }
        std::fs::remove_file(&path).expect("removed");
        let gone = http(&format!("{{token_file: {}}}", path.display())).expect("valid").access();
        assert!(gone.expect_err("refused").to_string().contains("No such file"));
    }

    #[test]
    fn a_token_is_read_from_a_regular_file_of_reasonable_size() {
        let dir = tempfile::tempdir().expect("a directory");
        let of = |path: &Path| http(&format!("{{token_file: {}}}", path.display())).expect("valid").access();
        let (file, link) = (dir.path().join("token"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        // A Secret's file is a link to a link.
        std::fs::write(&file, "0123456789abcdef\n").expect("written");
        assert_eq!(of(&link).expect("a token").token, Token::new(b"0123456789abcdef").ok());
        std::fs::write(&file, format!("0123456789abcdef{}x", " ".repeat(9000))).expect("written");
        assert!(of(&file).expect_err("refused").to_string().contains("more than 8192 bytes"));
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        for path in [pipe.as_path(), dir.path(), Path::new("/dev/zero")] {
            assert!(of(path).expect_err("refused").to_string().contains("not a regular file"), "{path:?}");
        }
    }

    #[test]
    fn a_socket_is_an_absolute_path_or_none() {
        let of = |text: &str| http(&format!("{{socket: {text}}}"));
        assert_eq!(Http::default().socket(), Ok(Some(Path::new(SOCKET))));
        for none in ["off", "\"\""] {
            assert_eq!(of(none).expect(none).socket(), Ok(None));
        }
        assert_eq!(of("/run/a.sock").expect("valid").socket(), Ok(Some(Path::new("/run/a.sock"))));
        for bad in ["gotrace.sock".into(), "/".into(), format!("/{}", "x".repeat(MAX_SOCKET))] {
            let error = of(&bad).expect_err(&bad).to_string();
            assert!(error.contains("gotrace.yaml:1:8: socket must be an absolute path"), "{error}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_host_is_refused() {
        for good in ["[node-a, 10.0.0.7, '[fd00::7]']", "[]"] {
            http(&format!("{{hosts: {good}}}")).expect(good);
        }
        for bad in ["[\"\"]", "['node:9464']", "['http://node']", "['fd00::7']", "['a b']"] {
            let error = http(&format!("{{hosts: {bad}}}")).expect_err(bad).to_string();
            assert!(error.contains("gotrace.yaml:1:8: hosts must be names"), "{error}");
        }
        let error = http("{require_token: true}").expect_err("refused").to_string();
        assert_eq!(error, "gotrace.yaml:1:8: require_token needs token_file");
    }
}
