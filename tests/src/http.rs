//! Asks over HTTP as a client would that is none of ours: one request a connection, chunks put together.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, Result};

use crate::fixture::PATIENCE;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its status line and headers, in lower case.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Its body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body as JSON.
    ///
    /// # Errors
    /// Where it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }
}

/// Gets a path with these headers, one a line, of which `Host` must be one.
///
/// # Errors
/// Where nobody answers, or not all of it comes.
pub fn get(address: &str, path: &str, headers: &[&str]) -> Result<Answer> {
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(stream, &format!("GET {path}"), headers)
}

/// The same by POST, from this host and without a body.
///
/// # Errors
/// As [`get`].
pub fn post(address: &str, path: &str) -> Result<Answer> {
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(stream, &format!("POST {path}"), &["Host: localhost", "Content-Length: 0"])
}

/// Gets a path on a socket of the file system.
///
/// # Errors
/// As [`get`].
pub fn get_on_socket(socket: &Path, path: &str) -> Result<Answer> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(stream, &format!("GET {path}"), &["Host: localhost"])
}

fn ask(mut stream: impl Read + Write, request: &str, headers: &[&str]) -> Result<Answer> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "{request} HTTP/1.1\r\n{headers}\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("a head")? + 4;
    let body = answer.split_off(end);
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("a status")?;
    let chunked = head.contains("transfer-encoding: chunked");
    Ok(Answer { status, head, body: if chunked { together(&body)? } else { body } })
}

/// What is in chunks; the last one must be there.
fn together(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").context("the answer is cut off")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        if size == 0 {
            return Ok(body);
        }
        let end = line + 2 + size;
        body.extend_from_slice(rest.get(line + 2..end).context("the answer is cut off")?);
        rest = rest.get(end + 2..).context("the answer is cut off")?;
    }
}
