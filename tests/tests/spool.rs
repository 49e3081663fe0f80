//! The exporter with a spool against a collector in the test's own process: down, back, hanging, and gone
//! over a restart. Each span is sent once, whatever happens between. Needs root for a disk that is full.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use gotrace_export::otlp::{
    ExportConfig, ExportStats, Exporter, MAX_QUEUED_SPANS, OtlpConfig, OtlpFlags, SpoolConfig,
};
use gotrace_model::{LogRecord, Resource, Severity, Span, Value};
use gotrace_tests::{
    fixture::PATIENCE,
    gotrace::privileged,
    receiver::{Receiver, Reply, Wire},
    spans_rate::sample,
};
use tokio::runtime::Handle;

const LIMIT: u64 = 64 << 20;

fn resource() -> Arc<Resource> {
    Arc::new(Resource::new(BTreeMap::from([("service.name".into(), Value::Text("shop".into()))])))
}

fn start(endpoint: &str, directory: &Path, size: u64) -> Exporter {
    let flags = OtlpFlags { endpoint: Some(endpoint.to_owned()), ..OtlpFlags::default() };
    let mut otlp = OtlpConfig::from_flags_and_env(&flags, &|_| None).expect("a configuration");
    if let Some(otlp) = &mut otlp {
        otlp.health = false;
        for signal in [&mut otlp.traces, &mut otlp.metrics, &mut otlp.logs].into_iter().flatten() {
            signal.protocol = gotrace_export::otlp::config::Protocol::Grpc;
        }
    }
    let spool = Some(SpoolConfig { directory: directory.join("spool"), size });
    Exporter::start(ExportConfig { otlp, spool, ..ExportConfig::default() }, &Handle::current())
        .expect("started")
}

/// A port where nobody listens now.
async fn nobody() -> (String, String) {
    let receiver = Receiver::start(Wire::Grpc).await;
    let at = (receiver.address().to_string(), receiver.endpoint());
    receiver.stop().await;
    at
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As the exporter takes them to its disk: not more at once than it has room for before that. Where encoding is ahead of
/// the disk it is the bytes that fill up first, with half as many spans.
async fn give(exporter: &Exporter, spans: &[Span]) {
    let (before, mut given) = (spooled(&exporter.stats()), 0);
    for batch in spans.chunks(10_000) {
        exporter.spans(batch.to_vec());
        given += batch.len();
        let room = MAX_QUEUED_SPANS / 2 - batch.len();
        until("there is room for more", || spooled(&exporter.stats()) + room as u64 >= before + given as u64)
            .await;
    }
}

fn spooled(stats: &ExportStats) -> u64 {
    stats.spool.as_ref().map_or(0, |spool| spool.spans)
}

/// Each span's id once.
fn all_once(receiver: &Receiver, count: usize) {
    let spans = receiver.spans();
    let ids: HashSet<_> = spans.iter().map(|s| (s.trace_id.clone(), s.span_id.clone())).collect();
    assert_eq!((spans.len(), ids.len()), (count, count));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_memory_holds_waits_for_a_collector_that_is_down() {
    let dir = tempfile::tempdir().expect("a directory");
    let (address, endpoint) = nobody().await;
    let exporter = start(&endpoint, dir.path(), LIMIT);
    // Some 40 MB when encoded; memory holds 32 MiB.
    let spans = sample(&resource(), 100_000);
    give(&exporter, &spans).await;
    until("all of it is on disk", || spooled(&exporter.stats()) == 100_000).await;
    let stats = exporter.stats();
    assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (0, 0));
    let trouble = stats.collector_trouble.clone().expect("trouble");
    assert!(trouble.contains("keeping it on disk"), "{trouble}");
    let bytes = stats.spool.expect("a spool").bytes;
    eprintln!("a span takes {:.1} bytes of the disk", bytes as f64 / 100_000.0);
    let receiver = Receiver::start_with(Wire::Grpc, &address, None, false).await;
    until("all has arrived", || exporter.stats().spans_sent == 100_000).await;
    until("nothing waits", || exporter.stats().spool.is_some_and(|s| s.bytes == 0)).await;
    exporter.spans(sample(&resource(), 7));
    let stats = exporter.shutdown(PATIENCE).await;
    assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (100_007, 0));
    assert_eq!(receiver.span_count(), 100_007);
    let ids: HashSet<_> = receiver.spans().into_iter().map(|s| (s.trace_id, s.span_id)).collect();
    assert_eq!(ids.len(), 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_gotrace_could_not_send_the_next_sends_first_and_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (address, endpoint) = nobody().await;
    let spans = sample(&resource(), 30_000);
    for (run, part) in spans.chunks(10_000).enumerate() {
        let exporter = start(&endpoint, dir.path(), LIMIT);
        give(&exporter, part).await;
        exporter.log(&Arc::new(LogRecord {
            resource: resource(),
            name: "gotrace.level.changed",
            time_unix_nano: 1,
            severity: Severity::Info,
            body: "level waits instead of full".into(),
            attributes: Vec::new(),
        }));
        let all = 10_000 * (run as u64 + 1);
        until("it is on disk", || spooled(&exporter.stats()) == all).await;
        let stats = exporter.shutdown(Duration::from_secs(1)).await;
        assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (0, 0));
        assert_eq!(stats.logs_dropped, BTreeMap::new());
        let spool = stats.spool.expect("a spool");
        assert_eq!((spool.spans, spool.logs), (10_000 * (run as u64 + 1), run as u64 + 1));
    }
    let receiver = Receiver::start_with(Wire::Grpc, &address, None, false).await;
    let exporter = start(&endpoint, dir.path(), LIMIT);
    until("all has arrived", || exporter.stats().spans_sent == 30_000).await;
    let stats = exporter.shutdown(PATIENCE).await;
    // The receiver has no log service.
    assert_eq!((stats.spans_dropped_total(), spooled(&stats)), (0, 0));
    all_once(&receiver, 30_000);
    assert_eq!(stats.logs_dropped, BTreeMap::from([("refused", 3)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_at_the_end_costs_the_grace_and_no_span() {
    let dir = tempfile::tempdir().expect("a directory");
    let receiver = Receiver::start(Wire::Grpc).await;
    receiver.always(Reply::TakeAfter(10 * PATIENCE));
    let exporter = start(&receiver.endpoint(), dir.path(), LIMIT);
    let spans = sample(&resource(), 5000);
    give(&exporter, &spans).await;
    let begun = Instant::now();
    let stats = exporter.shutdown(Duration::from_secs(4)).await;
    assert!(begun.elapsed() < PATIENCE, "the collector was waited for: {:?}", begun.elapsed());
    assert_eq!((stats.spans_dropped_total(), spooled(&stats)), (0, 5000));
    receiver.always(Reply::Take);
    let exporter = start(&receiver.endpoint(), dir.path(), LIMIT);
    until("all has arrived", || exporter.stats().spans_sent == 5000).await;
    exporter.shutdown(PATIENCE).await;
    all_once(&receiver, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_another_has_is_done_without_until_it_is_free() {
    let dir = tempfile::tempdir().expect("a directory");
    let (address, endpoint) = nobody().await;
    let first = start(&endpoint, dir.path(), LIMIT);
    until("the first has it", || first.stats().spool.is_some_and(|s| s.trouble.is_none())).await;
    let second = start(&endpoint, dir.path(), LIMIT);
    until("the second has not", || second.stats().spool.is_some_and(|s| s.trouble.is_some())).await;
    let trouble = second.stats().spool.and_then(|s| s.trouble).expect("trouble");
    assert!(trouble.contains("in use by another gotrace") && trouble.contains("spool"), "{trouble}");
    let spans = sample(&resource(), 4000);
    give(&first, &spans[..2000]).await;
    give(&second, &spans[2000..]).await;
    until("the first keeps its own", || spooled(&first.stats()) == 2000).await;
    assert_eq!(second.stats().spans_dropped_total(), 0, "they wait in memory");
    let receiver = Receiver::start_with(Wire::Grpc, &address, None, false).await;
    let (first, second) = tokio::join!(first.shutdown(PATIENCE), second.shutdown(PATIENCE));
    assert_eq!((first.spans_sent, second.spans_sent), (2000, 2000));
    all_once(&receiver, 4000);
}

/// A file system of this size, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "gotrace-test"])
            .arg(dir.path())
            .status()
            .expect("mount runs");
        assert!(status.success(), "{status}");
        Self(dir)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_what_is_lost_is_counted() {
    if !privileged("spool") {
        return;
    }
    let disk = Disk::new("1m");
    let (address, endpoint) = nobody().await;
    let exporter = start(&endpoint, disk.0.path(), LIMIT);
    let spans = sample(&resource(), 100_000);
    // More than fits anywhere.
    for batch in spans.chunks(10_000) {
        exporter.spans(batch.to_vec());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let of_disk = || exporter.stats().spool.and_then(|s| s.trouble);
    until("the disk is full", || of_disk().is_some()).await;
    let trouble = of_disk().expect("trouble");
    assert!(trouble.contains("No space left on device") && trouble.contains("in memory only"), "{trouble}");
    let receiver = Receiver::start_with(Wire::Grpc, &address, None, false).await;
    let stats = exporter.shutdown(PATIENCE).await;
    // On disk, in memory, or counted.
    assert_eq!(stats.spans_sent + stats.spans_dropped_total(), 100_000, "{stats:?}");
    assert_eq!(stats.spans_dropped.keys().copied().collect::<Vec<_>>(), ["queue_full"], "{stats:?}");
    assert!(stats.spans_sent > 40_000, "memory and what was on disk: {stats:?}");
    all_once(&receiver, usize::try_from(stats.spans_sent).expect("few"));
}
