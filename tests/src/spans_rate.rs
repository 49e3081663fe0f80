//! Spans a second to a collector in the same process: gotrace's exporter, and beside it the
//! OpenTelemetry SDK's exporter with hand-made `SpanData`, which decides which of the two is used.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use gotrace_common::{Histogram, Hit};
use gotrace_export::otlp::{ExportConfig, ExportStats, Exporter, OtlpConfig, OtlpFlags};
use gotrace_model::{
    Collector, GoroutineSpan, Interval, Levels, Location, Resource, Site, Span, Value, WaitSpan, Waker,
    ids::ProcessKey,
};
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{Link, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::trace::{SpanData, SpanExporter, SpanLinks};
use prost::Message as _;

use crate::receiver::{Receiver, Wire};

/// What one measurement gave.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Rate {
    /// Which way.
    pub name: &'static str,
    /// Spans that arrived.
    pub spans: u64,
    /// Spans that did not.
    pub lost: u64,
    /// Until the last one arrived.
    pub seconds: f64,
    /// Arrived, a second.
    pub spans_per_second: f64,
}

/// Half goroutines, half waits with a link, from a handful of sites, as a server makes them.
#[must_use]
pub fn sample(resource: &Arc<Resource>, count: usize) -> Vec<Span> {
    let key = ProcessKey::new("b", 7, 100, 0, 0);
    let sites: Vec<Arc<Location>> = (1..40)
        .map(|i| {
            Arc::new(Location {
                function: format!("example.com/shop/internal/worker.(*Pool).run{i}").into(),
                file: format!("/home/build/src/example.com/shop/internal/worker/pool{i}.go").into(),
                line: i,
            })
        })
        .collect();
    let reason: Arc<str> = "chan receive".into();
    let start = 1_700_000_000_000_000_000;
    (0..count as u64)
        .map(|i| {
            let site = &sites[i as usize % sites.len()];
            if i % 2 == 0 {
                Span::Goroutine(GoroutineSpan {
                    resource: Arc::clone(resource),
                    context: key.context(i, i),
                    parent: None,
                    creator_link: Some(key.context(1, 1)),
                    start_unix_nano: start + i,
                    end_unix_nano: start + i + 1_000_000,
                    entry: Arc::clone(site),
                    created_by: Some(Arc::clone(&sites[0])),
                    goid: i,
                    parent_goid: 1,
                    wait_total_ns: Some(900_000),
                    run_total_ns: Some(100_000),
                    wait_count: Some(3),
                    cpu_ns: Some(1_250_000),
                    throttled_ns: Some(250_000),
                    life: None,
                    waits_by_reason: vec![(Arc::clone(&reason), 900_000)],
                })
            } else {
                Span::Wait(WaitSpan {
                    resource: Arc::clone(resource),
                    context: key.context(i - 1, i),
                    parent: key.span_id(i - 1),
                    goid: i - 1,
                    reason: Arc::clone(&reason),
                    start_unix_nano: start + i,
                    end_unix_nano: start + i + 900_000,
                    scheduling_delay_ns: Some(3_000),
                    site: Some(Arc::clone(site)),
                    own_code: None,
                    peer: None,
                    waker: Waker::Goroutine(1, key.context(1, 1)),
                })
            }
        })
        .collect()
}

/// A second of a process with one wait reason and one level.
#[must_use]
pub fn interval(resource: &Arc<Resource>) -> Interval {
    let mut waits = Histogram::default();
    waits.add(1_500_000);
    Interval {
        requests: None,
        resource: Arc::clone(resource),
        pid: 7,
        start_unix_nano: 1_700_000_000_000_000_000,
        end_unix_nano: 1_700_000_001_000_000_000,
        alive: 3,
        alive_is_lower_bound: true,
        born: 3,
        died: 0,
        born_total: 3,
        died_total: 0,
        lost: BTreeMap::new(),
        repaired: BTreeMap::new(),
        sampled_out: BTreeMap::new(),
        events: BTreeMap::from([("create", 3)]),
        waiting: BTreeMap::from([("chan receive".into(), 2)]),
        waits: BTreeMap::from([("chan receive".into(), waits)]),
        waits_at: Arc::default(),
        schedule: Histogram::default(),
        syscalls: Histogram::default(),
        sites: Vec::new(),
        snapshots: Histogram::default(),
        engine: "events",
        level: "waits",
        level_reason: None,
        levels: Levels::default(),
        leaks: Vec::new(),
        leaks_refuted: 0,
        suspects: Vec::new(),
        collector: Collector::default(),
        process_cpu_ns: None,
        process_cpu_total_ns: None,
        probe_cost_share: None,
    }
}

fn resource() -> Arc<Resource> {
    Arc::new(Resource::new(BTreeMap::from([
        ("service.name".into(), Value::Text("shop".into())),
        ("process.pid".into(), Value::Int(7)),
    ])))
}

/// gotrace's exporter, to a collector in the same process.
///
/// # Panics
/// When the exporter cannot be started.
pub async fn gotrace(wire: Wire, count: usize) -> Rate {
    let receiver = Receiver::start_counting(wire).await;
    let begin = Instant::now();
    let stats = export(&receiver.endpoint(), wire, count).await;
    let seconds = begin.elapsed().as_secs_f64();
    let spans = receiver.span_count();
    Rate {
        name: if wire == Wire::Grpc { "gotrace, grpc" } else { "gotrace, http/protobuf" },
        spans,
        lost: stats.spans_dropped_total(),
        seconds,
        spans_per_second: spans as f64 / seconds,
    }
}

/// Exports so many spans with gotrace's exporter, and waits until all are sent.
///
/// # Panics
/// When the exporter cannot be started.
pub async fn export(endpoint: &str, wire: Wire, count: usize) -> ExportStats {
    let flags = OtlpFlags {
        endpoint: Some(endpoint.into()),
        protocol: Some(if wire == Wire::Grpc { "grpc".into() } else { "http/protobuf".into() }),
        ..OtlpFlags::default()
    };
    let otlp = OtlpConfig::from_flags_and_env(&flags, &|_| None).expect("a configuration");
    let config = ExportConfig { otlp, ..ExportConfig::default() };
    let exporter = Exporter::start(config, &tokio::runtime::Handle::current()).expect("started");
    let batches: Vec<Vec<Span>> = sample(&resource(), count).chunks(1024).map(<[Span]>::to_vec).collect();
    let exporter = tokio::task::spawn_blocking(move || {
        let mut given = 0;
        for batch in batches {
            given += batch.len() as u64;
            exporter.spans(batch);
            // Keep the lane's bound: the pipeline's own rate is not what is measured.
            loop {
                let stats = exporter.stats();
                if given - stats.spans_sent - stats.spans_dropped_total() < 40_000 {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        exporter
    })
    .await
    .expect("given");
    exporter.shutdown(Duration::from_secs(60)).await
}

/// Bytes of a span in full requests, as they are and compressed with gzip.
///
/// # Panics
/// When the exporter cannot be started, or nothing arrives.
pub async fn bytes_per_span() -> (f64, f64) {
    let receiver = Receiver::start(Wire::Http).await;
    export(&receiver.endpoint(), Wire::Http, 20_000).await;
    let (mut plain, mut packed) = (0, 0);
    for request in receiver.traces() {
        let bytes = request.encode_to_vec();
        plain += bytes.len();
        packed += gzip(&bytes);
    }
    let spans = receiver.span_count() as f64;
    assert!(spans > 0.0, "nothing arrived");
    (plain as f64 / spans, packed as f64 / spans)
}

/// Exports so many reports of each of so many processes, ten seconds apart by their own clock, each with the series
/// of a server of some size, and waits until all are sent.
///
/// # Panics
/// When the exporter cannot be started.
pub async fn export_metrics(endpoint: &str, wire: Wire, processes: usize, reports: u64) -> ExportStats {
    let flags = OtlpFlags {
        endpoint: Some(endpoint.into()),
        protocol: Some(if wire == Wire::Grpc { "grpc".into() } else { "http/protobuf".into() }),
        ..OtlpFlags::default()
    };
    let otlp = OtlpConfig::from_flags_and_env(&flags, &|_| None).expect("a configuration");
    let config =
        ExportConfig { otlp, metric_interval: Some(Duration::from_secs(10)), ..ExportConfig::default() };
    let exporter = Exporter::start(config, &tokio::runtime::Handle::current()).expect("started");
    let resources: Vec<_> = (0..processes).map(|_| resource()).collect();
    let exporter = tokio::task::spawn_blocking(move || {
        for report in 0..reports {
            for resource in &resources {
                exporter.interval(&Arc::new(server(resource, report)));
            }
            // Keep the lane's bound: the pipeline's own rate is not what is measured.
            std::thread::sleep(Duration::from_millis(100));
        }
        exporter
    })
    .await
    .expect("given");
    exporter.shutdown(Duration::from_secs(60)).await
}

/// A report of a process with a dozen creation sites and six wait reasons.
fn server(resource: &Arc<Resource>, report: u64) -> Interval {
    const REASONS: [&str; 6] =
        ["IO wait", "select", "chan receive", "sync.Mutex.Lock", "sleep", "sync.Cond.Wait"];
    let mut times = Histogram::default();
    for n in 0..(report + 1) * 40 {
        times.add(1_000 << (n % 20));
    }
    let place = |n: u32, what: &str| {
        Arc::new(Location {
            function: format!("example.com/shop/internal/worker.(*Pool).{what}{n}").into(),
            file: format!("/home/build/src/example.com/shop/internal/worker/pool{n}.go").into(),
            line: n,
        })
    };
    let begin = 1_700_000_000_000_000_000 + report * 10_000_000_000;
    let reasons = || REASONS.iter().map(|r| Arc::<str>::from(*r));
    let sites = (1..=12).map(|n| Site {
        entry: place(n, "run"),
        created_by: Some(place(n, "start")),
        alive: 20,
        born: 40,
        died: 40,
        born_total: 40 * (report + 1),
        died_total: 40 * (report + 1) - 20,
        cpu_ns: Some(1_000_000),
        cpu_total_ns: 2_000_000,
        throttled_ns: 0,
        throttled_total_ns: 0,
        waiting: BTreeMap::new(),
        waits: times,
        lifetimes: times,
        oldest_ns: Some(1_000_000_000),
        oldest_is_lower_bound: false,
    });
    Interval {
        start_unix_nano: begin,
        end_unix_nano: begin + 10_000_000_000,
        events: Hit::NAMES.iter().map(|k| (*k, 1000 * (report + 1))).collect(),
        waiting: reasons().map(|r| (r, 40)).collect(),
        waits: reasons().map(|r| (r, times)).collect(),
        sites: sites.collect(),
        snapshots: times,
        probe_cost_share: Some(0.01),
        ..interval(resource)
    }
}

/// Points of one report, and bytes of a point, as they are and compressed with gzip.
///
/// # Panics
/// When the exporter cannot be started, or nothing arrives.
pub async fn bytes_per_point() -> (f64, f64, f64) {
    let receiver = Receiver::start(Wire::Http).await;
    export_metrics(&receiver.endpoint(), Wire::Http, 10, 10).await;
    let (mut plain, mut packed) = (0, 0);
    let requests = receiver.metrics();
    for request in &requests {
        let bytes = request.encode_to_vec();
        plain += bytes.len();
        packed += gzip(&bytes);
    }
    let points = receiver.point_count() as f64;
    assert!(points > 0.0, "nothing arrived");
    (points / 100.0, plain as f64 / points, packed as f64 / points)
}

fn gzip(bytes: &[u8]) -> usize {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).expect("in memory");
    gzip.finish().expect("in memory").len()
}

/// The SDK's exporter over gRPC, given batches of hand-made `SpanData`, four at a time.
///
/// # Panics
/// When the exporter cannot be built.
pub async fn sdk(count: usize) -> Rate {
    let receiver = Receiver::start_counting(Wire::Grpc).await;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(receiver.endpoint())
        .build()
        .expect("an exporter");
    let exporter = Arc::new(exporter);
    let spans = sample(&resource(), count);
    let begin = Instant::now();
    let slots = Arc::new(tokio::sync::Semaphore::new(4));
    let mut tasks = tokio::task::JoinSet::new();
    let mut lost = 0;
    let scope = InstrumentationScope::builder("gotrace").build();
    for chunk in spans.chunks(2048) {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("open");
        let data: Vec<SpanData> = chunk.iter().map(|s| span_data(s, &scope)).collect();
        let exporter = Arc::clone(&exporter);
        tasks.spawn(async move {
            let count = data.len() as u64;
            let failed = exporter.export(data).await.is_err();
            drop(slot);
            if failed { count } else { 0 }
        });
    }
    while let Some(failed) = tasks.join_next().await {
        lost += failed.expect("sent");
    }
    let seconds = begin.elapsed().as_secs_f64();
    let spans = receiver.span_count();
    Rate { name: "SDK's SpanExporter, grpc", spans, lost, seconds, spans_per_second: spans as f64 / seconds }
}

fn span_data(span: &Span, scope: &InstrumentationScope) -> SpanData {
    let context = |c: &gotrace_model::SpanContext| {
        SpanContext::new(
            TraceId::from_bytes(c.trace_id),
            SpanId::from_bytes(c.span_id),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        )
    };
    let time = |ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns);
    let int = |key: &'static str, v: u64| KeyValue::new(key, i64::try_from(v).unwrap_or(i64::MAX));
    let mut attributes = Vec::new();
    let mut place = |keys: [&'static str; 3], l: &Location| {
        attributes.push(KeyValue::new(keys[0], Arc::clone(&l.function)));
        attributes.push(KeyValue::new(keys[1], Arc::clone(&l.file)));
        attributes.push(int(keys[2], u64::from(l.line)));
    };
    let code = ["code.function.name", "code.file.path", "code.line.number"];
    let created = [
        "gotrace.created_by.function.name",
        "gotrace.created_by.file.path",
        "gotrace.created_by.line.number",
    ];
    let mut links = SpanLinks::default();
    let link =
        |c, kind: &'static str| Link::new(context(c), vec![KeyValue::new("gotrace.link.kind", kind)], 0);
    let (this, parent, name, start, end) = match span {
        Span::Request(..) | Span::RequestWait(..) => unreachable!("it has none"),
        Span::Goroutine(s) => {
            place(code, &s.entry);
            s.created_by.iter().for_each(|l| place(created, l));
            attributes.push(int("gotrace.goroutine.id", s.goid));
            attributes.push(int("gotrace.goroutine.parent.id", s.parent_goid));
            attributes.push(int("gotrace.wait.total", s.wait_total_ns.unwrap_or(0)));
            attributes.push(int("gotrace.run.total", s.run_total_ns.unwrap_or(0)));
            attributes.push(int("gotrace.wait.count", s.wait_count.unwrap_or(0)));
            for (reason, total) in &s.waits_by_reason {
                let key = format!("gotrace.wait.total.{}", reason.replace(' ', "_"));
                attributes.push(KeyValue::new(key, i64::try_from(*total).unwrap_or(i64::MAX)));
            }
            links.links.extend(s.creator_link.iter().map(|c| link(c, "creator")));
            (context(&s.context), s.parent, &s.entry.function, s.start_unix_nano, s.end_unix_nano)
        }
        Span::Wait(s) => {
            s.site.iter().for_each(|l| place(code, l));
            attributes.push(int("gotrace.goroutine.id", s.goid));
            attributes.push(KeyValue::new("gotrace.wait.reason", Arc::clone(&s.reason)));
            attributes.push(int("gotrace.wait.scheduling_delay", s.scheduling_delay_ns.unwrap_or(0)));
            if let Waker::Goroutine(id, c) = &s.waker {
                attributes.push(KeyValue::new("gotrace.waker.kind", "goroutine"));
                attributes.push(int("gotrace.waker.goroutine.id", *id));
                links.links.push(link(c, "waker"));
            }
            (context(&s.context), Some(s.parent), &s.reason, s.start_unix_nano, s.end_unix_nano)
        }
    };
    SpanData {
        span_context: this,
        parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Owned(name.to_string()),
        start_time: time(start),
        end_time: time(end),
        attributes,
        dropped_attributes_count: 0,
        events: Default::default(),
        links,
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }
}
