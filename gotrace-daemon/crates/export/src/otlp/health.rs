//! gotrace's own health, as metrics of a service of its own, through the OpenTelemetry SDK.
//!
//! Input: the exporter's account. Output: observable counters, once a minute and at the end, over the
//! connection that the processes' metrics take. Refuses to hold up the end of the command: when the
//! collector does not answer, the last report is left out.

use std::{collections::HashMap, sync::Arc, time::Duration};

use opentelemetry::{KeyValue, metrics::MeterProvider};
use opentelemetry_otlp::{
    Compression, ExporterBuildError, MetricExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::{
    Resource,
    metrics::{SdkMeterProvider, periodic_reader_with_async_runtime::PeriodicReader},
    runtime,
};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};

use gotrace_model::metrics::{LabelValue, Value, node};

use super::{
    config::SignalConfig,
    convert::{SCOPE, VERSION},
    stats::{Account, ExportStats},
    transport::Transport,
};

/// Where the SDK logs: it says again what the exporter says of the same collector.
pub const SDK_LOG_TARGET: &str = "opentelemetry_sdk";

/// Time between two reports.
const INTERVAL: Duration = Duration::from_secs(60);

/// Reports until it is ended.
#[derive(Debug)]
pub(super) struct Health {
    provider: SdkMeterProvider,
    account: Arc<Account>,
}

impl Health {
    /// Starts; `None` when the SDK cannot be set up, which is said and no reason to stop.
    pub fn start(
        transport: &Transport,
        account: Arc<Account>,
        runtime: &tokio::runtime::Handle,
    ) -> Option<Self> {
        let _entered = runtime.enter();
        let exporter = match exporter(transport) {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::warn!("cannot export the health of gotrace: {error}");
                return None;
            }
        };
        let reader = PeriodicReader::builder(exporter, runtime::Tokio).with_interval(INTERVAL).build();
        let provider = SdkMeterProvider::builder()
            .with_reader(reader)
            .with_resource(
                Resource::builder()
                    .with_service_name("gotrace")
                    .with_attribute(KeyValue::new("service.version", VERSION))
                    .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
                    .build(),
            )
            .build();
        instruments(&provider, &account);
        Some(Self { provider, account })
    }

    /// Reports a last time, if that can be done by the deadline.
    pub async fn end(self, deadline: tokio::time::Instant) {
        let Self { provider, account } = self;
        if account.stats().collector_trouble.is_some() {
            // Dropping it tries to report once more, and waits for that.
            let thread =
                std::thread::Builder::new().name("gotrace-health".into()).spawn(move || drop(provider));
            if let Err(error) = thread {
                tracing::debug!(%error, "stopping the health report");
            }
            return;
        }
        // The SDK's shutdown blocks. A thread of the runtime would hold up the runtime's own end.
        let (tell, ended) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("gotrace-health".into()).spawn(move || {
            if let Err(error) = provider.shutdown() {
                tracing::debug!("cannot send the last health report: {error}");
            }
            let _ = tell.send(());
        });
        if thread.is_ok() {
            let _ = tokio::time::timeout_at(deadline, ended).await;
        }
    }
}

/// Reads one figure of the account.
type Total = fn(&ExportStats) -> u64;
/// Reads one figure for each reason.
type ByReason = fn(ExportStats) -> std::collections::BTreeMap<&'static str, u64>;

fn instruments(provider: &SdkMeterProvider, account: &Arc<Account>) {
    let meter = provider.meter(SCOPE);
    let totals: [(&str, &str, &str, Total); 5] = [
        ("gotrace.exporter.spans.sent", "{span}", "Spans accepted by the collector.", |s| s.spans_sent),
        ("gotrace.exporter.points.sent", "{point}", "Metric points accepted by the collector.", |s| {
            s.points_sent
        }),
        ("gotrace.exporter.logs.sent", "{record}", "Log records accepted by the collector.", |s| s.logs_sent),
        ("gotrace.exporter.requests", "{request}", "Requests accepted by the collector.", |s| s.requests),
        ("gotrace.exporter.retries", "{request}", "Retried requests.", |s| s.retries),
    ];
    for (name, unit, description, value) in totals {
        let account = Arc::clone(account);
        meter
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| observer.observe(value(&account.stats()), &[]))
            .build();
    }
    let account_of_brief = Arc::clone(account);
    meter
        .u64_observable_gauge("gotrace.exporter.processes.brief")
        .with_unit("{process}")
        .with_description("Processes with too many series to export all.")
        .with_callback(move |observer| observer.observe(account_of_brief.stats().processes_brief, &[]))
        .build();
    let spool: [(&str, &str, &str, Total); 2] = [
        ("gotrace.exporter.spool.size", "By", "Bytes in the spool, waiting for the collector.", |s| {
            s.spool.as_ref().map_or(0, |spool| spool.bytes)
        }),
        ("gotrace.exporter.spool.spans", "{span}", "Spans in the spool, waiting for the collector.", |s| {
            s.spool.as_ref().map_or(0, |spool| spool.spans)
        }),
    ];
    for (name, unit, description, value) in spool {
        let account = Arc::clone(account);
        meter
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| {
                let stats = account.stats();
                if stats.spool.is_some() {
                    observer.observe(value(&stats), &[]);
                }
            })
            .build();
    }
    for metric in node::NODE {
        let account = Arc::clone(account);
        meter
            .u64_observable_counter(metric.name)
            .with_unit(metric.unit)
            .with_description(metric.help)
            .with_callback(move |observer| {
                let Some(coverage) = account.stats().coverage else { return };
                for sample in node::coverage(&coverage).into_iter().filter(|s| s.metric == *metric) {
                    for (series, value) in sample.series {
                        let Value::Int(count) = value else { continue };
                        let labels = series.labels().into_iter().filter_map(|(label, value)| match value {
                            LabelValue::Name(name) => Some(KeyValue::new(label, name)),
                            _ => None,
                        });
                        observer.observe(count, &labels.collect::<Vec<_>>());
                    }
                }
            })
            .build();
    }
    let dropped: [(&str, &str, &str, ByReason); 3] = [
        (
            "gotrace.exporter.spans.dropped",
            "{span}",
            "Spans not delivered to the collector or the file.",
            |s| s.spans_dropped,
        ),
        (
            "gotrace.exporter.points.dropped",
            "{point}",
            "Metric points not delivered to the collector or the file; the next report makes up for them.",
            |s| s.points_dropped,
        ),
        (
            "gotrace.exporter.logs.dropped",
            "{record}",
            "Log records not delivered to the collector or the file.",
            |s| s.logs_dropped,
        ),
    ];
    for (name, unit, description, value) in dropped {
        let account = Arc::clone(account);
        meter
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| {
                for (why, count) in value(account.stats()) {
                    observer.observe(count, &[KeyValue::new("gotrace.dropped.reason", why)]);
                }
            })
            .build();
    }
}

fn exporter(transport: &Transport) -> Result<MetricExporter, ExporterBuildError> {
    let SignalConfig { endpoint, protocol: _, headers, gzip, timeout, tls: _ } = transport.config();
    if let Some(channel) = transport.channel() {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            if let (Ok(name), Ok(value)) =
                (MetadataKey::from_bytes(name.as_bytes()), MetadataValue::try_from(value))
            {
                metadata.insert(name, value);
            }
        }
        let mut builder = MetricExporter::builder()
            .with_tonic()
            .with_channel(channel.clone())
            .with_metadata(metadata)
            .with_timeout(*timeout);
        if *gzip {
            builder = builder.with_compression(Compression::Gzip);
        }
        return builder.build();
    }
    let mut builder = MetricExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .with_headers(headers.iter().cloned().collect::<HashMap<_, _>>())
        .with_timeout(*timeout);
    if let Some(client) = transport.client() {
        builder = builder.with_http_client(client.clone());
    }
    if *gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    builder.build()
}
