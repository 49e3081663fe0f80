//! The section `requests`.

use serde::Deserialize;

use super::values::text;
use crate::units;
use gotrace_agent::pipeline::{Slow, TraceRequests};
use gotrace_export::otlp::SeriesBounds;

/// Which requests are traced.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Requests {
    /// `off`, `slow` (all are counted, and the slow ones become spans), or `all` (each becomes a span).
    pub mode: Mode,
    /// From when on a request is slow: a time, or `auto`, the 99th percentile of its route.
    #[serde(deserialize_with = "text")]
    pub slow: Threshold,
    /// Routes of a process whose metrics are told apart.
    pub routes: u32,
    /// Functions of which each call is a request, named as tracebacks print them.
    pub functions: Vec<String>,
    /// Whether the paths that slow requests asked for are exported.
    pub paths: bool,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            slow: Threshold(Slow::Auto),
            routes: SeriesBounds::ROUTES as u32,
            functions: Vec::new(),
            paths: false,
        }
    }
}

/// Of which requests spans are made.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Requests are not traced.
    #[default]
    Off,
    /// Of slow ones.
    Slow,
    /// Of each.
    All,
}

/// From when on a request is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold(pub Slow);

impl std::str::FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        units::slow(text).map(Self)
    }
}

impl Requests {
    /// Routes of a process whose metrics are told apart.
    #[must_use]
    pub const fn routes(&self) -> usize {
        self.routes as usize
    }

    /// As the line is told; `None` where they are not traced.
    pub(super) fn line(&self) -> Option<TraceRequests> {
        let slow = match self.mode {
            Mode::Off => return None,
            Mode::Slow => self.slow.0,
            Mode::All => Slow::From(std::time::Duration::ZERO),
        };
        Some(TraceRequests {
            slow,
            required: false,
            functions: self.functions.as_slice().into(),
            paths: self.paths,
        })
    }
}
