//! A small question over HTTP to a service beside us, answered soon or not at all.
//!
//! Refuses redirects, proxies, answers that take longer than [`ANSWER_TIMEOUT`] or are larger than
//! [`MAX_ANSWER_BYTES`]: a metadata service sends none of these, whoever stands in for one might.

use std::{error::Error as _, time::Duration};

use reqwest::{Method, StatusCode, redirect::Policy};

/// How long one request may take, connecting included.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// No connection, or it broke.
    #[error("{url}: {why}")]
    Transport { url: String, why: String },
    /// Another status than 200.
    #[error("{url}: HTTP status {status}")]
    Status { url: String, status: StatusCode },
    /// Not what the service is documented to say.
    #[error("{url}: unexpected response: {why}")]
    Answer { url: String, why: String },
}

impl AskError {
    /// The answer is not understood.
    pub fn answer(url: &str, why: impl ToString) -> Self {
        Self::Answer { url: url.to_owned(), why: why.to_string() }
    }

    /// Whether the service is there and has no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// Asks.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: reqwest::Client,
}

impl Http {
    /// Must be called within a tokio runtime.
    pub fn new() -> Result<Self, reqwest::Error> {
        // reqwest takes the process's provider; one that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("gotrace/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(Policy::none())
            .timeout(ANSWER_TIMEOUT)
            // Every service here speaks plain HTTP on this machine or its link: no certificates are read.
            .tls_certs_only([])
            .build()?;
        Ok(Self { client })
    }

    /// The body of a GET.
    pub async fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>, AskError> {
        self.ask(Method::GET, url, headers).await
    }

    /// The body of a PUT without content.
    pub async fn put(&self, url: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>, AskError> {
        self.ask(Method::PUT, url, headers).await
    }

    /// A short text: one line of printable characters.
    pub async fn get_word(&self, url: &str, headers: &[(&str, &str)]) -> Result<String, AskError> {
        word(url, self.get(url, headers).await?)
    }

    /// A JSON object.
    pub async fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        headers: &[(&str, &str)],
    ) -> Result<T, AskError> {
        let body = self.get(url, headers).await?;
        serde_json::from_slice(&body).map_err(|e| AskError::answer(url, e))
    }

    async fn ask(&self, method: Method, url: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>, AskError> {
        let transport = |e: reqwest::Error| AskError::Transport { url: url.to_owned(), why: chain(&e) };
        let mut request = self.client.request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send().await.map_err(transport)?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Status { url: url.to_owned(), status: response.status() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(AskError::answer(url, format!("more than {MAX_ANSWER_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// One line of printable characters, at most 1,024.
pub(super) fn word(url: &str, body: Vec<u8>) -> Result<String, AskError> {
    let text = String::from_utf8(body).map_err(|e| AskError::answer(url, e))?;
    let word = text.trim();
    if word.is_empty() || word.len() > 1_024 || word.chars().any(|c| c.is_control() || c == '<') {
        return Err(AskError::answer(url, "not one short line of text"));
    }
    Ok(word.to_owned())
}

/// An error with its causes, without the address that is named already.
fn chain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {ANSWER_TIMEOUT:?}");
    }
    let mut cause = error.source();
    let mut text = String::new();
    while let Some(this) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&this.to_string());
        cause = this.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}
