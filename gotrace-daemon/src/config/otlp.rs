//! Where OTLP goes, how often, and how many series there may be.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    Error,
    values::{Size, Span},
    within,
};
use gotrace_export::otlp::{
    Environment, ExportConfig, OtlpConfig, OtlpFlags, SeriesBounds, SpoolConfig, Temporality,
    config::metric_interval_from_env,
};

/// What the spool may take when nothing is said.
const DEFAULT_SPOOL: u64 = 512 << 20;

/// Where OTLP goes. What is left out comes from the standard `OTEL_EXPORTER_OTLP_*` variables.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// The collector, such as `http://localhost:4317`.
    pub endpoint: Option<String>,
    /// `grpc` or `http/protobuf`.
    pub protocol: Option<String>,
    /// Sent with each request.
    pub headers: BTreeMap<String, String>,
    /// `none` or `gzip`.
    pub compression: Option<String>,
    /// Time for one request.
    pub timeout: Option<Span>,
    /// No TLS for an endpoint that names no scheme.
    pub insecure: bool,
    /// PEM certificates to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM certificate to show to the collector.
    pub cert: Option<PathBuf>,
    /// PEM key of that certificate.
    pub key: Option<PathBuf>,
    /// Also write OTLP JSON lines to this file.
    pub export: Option<PathBuf>,
    /// Time that the last data may take to get out when gotrace is told to end.
    pub grace: Option<Span>,
    /// Where on disk waits what the collector does not take.
    pub spool: Spool,
    /// Least time between two reports of a process's metrics.
    pub metric_interval: Option<Span>,
    /// Most series of one process's metrics.
    pub series_per_process: u32,
    /// Most series of all processes' metrics.
    pub series: u32,
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: None,
            headers: BTreeMap::new(),
            compression: None,
            timeout: None,
            insecure: false,
            ca: None,
            cert: None,
            key: None,
            export: None,
            grace: None,
            spool: Spool::default(),
            metric_interval: None,
            series_per_process: 212,
            series: 20_000,
        }
    }
}

/// What the collector does not take waits on disk.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// A directory of this gotrace alone, made when it is not there; without one what waits is in memory.
    pub directory: Option<PathBuf>,
    /// Bytes that it may take; 512M when nothing is said. What waits is packed.
    pub size: Option<Size>,
}

impl Spool {
    fn config(&self) -> Option<SpoolConfig> {
        let Self { directory, size } = self;
        let size = size.map_or(DEFAULT_SPOOL, |size| size.0);
        directory.clone().map(|directory| SpoolConfig { directory, size })
    }
}

impl Otlp {
    fn flags(&self) -> OtlpFlags {
        let Self {
            endpoint,
            protocol,
            headers,
            compression,
            timeout,
            insecure,
            ca,
            cert,
            key,
            export: _,
            grace: _,
            spool: _,
            metric_interval: _,
            series_per_process: _,
            series: _,
        } = self.clone();
        OtlpFlags {
            endpoint,
            protocol,
            headers: headers.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            insecure,
            ca,
            client_certificate: cert,
            client_key: key,
            compression,
            timeout: timeout.map(|t| t.0),
        }
    }

    /// What the types alone do not tell: the field, and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        within("series_per_process", self.series_per_process.into(), SeriesBounds::LEAST as u64, 10_000)?;
        within("series", self.series.into(), self.series_per_process.into(), 10_000_000)?;
        if let Some(Span(every)) = self.metric_interval
            && !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&every)
        {
            return Err(("metric_interval", "metric_interval must be from 100ms to 1h".into()));
        }
        let Spool { directory, size } = &self.spool;
        match (directory, size) {
            (Some(directory), _) if !directory.is_absolute() => {
                return Err(("directory", "directory must be an absolute path".into()));
            }
            (None, Some(_)) => return Err(("size", "size needs a directory".into())),
            (_, Some(Size(size))) if !(16 << 20..=1 << 40).contains(size) => {
                return Err(("size", "size must be from 16M to 1024G".into()));
            }
            _ => {}
        }
        OtlpConfig::from_flags_and_env(&self.flags(), &|_| None)
            .map_err(|error| ("otlp", format!("otlp: {error}")))?;
        Ok(())
    }

    pub(super) fn export_config(
        &self,
        environment: Environment<'_>,
        routes: usize,
    ) -> Result<ExportConfig, Error> {
        Ok(ExportConfig {
            otlp: OtlpConfig::from_flags_and_env(&self.flags(), environment)?,
            file: self.export.clone(),
            temporality: Temporality::from_env(environment)?,
            metric_interval: match self.metric_interval {
                Some(every) => Some(every.0),
                None => metric_interval_from_env(environment)?,
            },
            series: SeriesBounds {
                per_process: self.series_per_process as usize,
                all: self.series as usize,
                routes,
            },
            spool: self.spool.config(),
        })
    }
}
