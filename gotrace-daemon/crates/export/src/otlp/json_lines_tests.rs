//! The lines, held against a complete decoder of OTLP's JSON, and against the collector's own writing.

use super::*;
use crate::otlp::{convert, metrics::Metrics};
use gotrace_model::Waker;
use gotrace_model::{requests::Requests, samples};

fn trace_line() -> (ExportTraceServiceRequest, String) {
    let resource = samples::resource();
    let request =
        convert::trace_request(&resource, samples::all(&resource).iter().map(convert::span).collect());
    let mut out = Vec::new();
    traces(&mut out, &request);
    (request, String::from_utf8(out).expect("UTF-8"))
}

fn metric_line(requests: Option<Requests>) -> (ExportMetricsServiceRequest, String) {
    let resource = samples::resource();
    let mut state = Metrics::new(crate::otlp::Temporality::Cumulative, crate::otlp::SeriesBounds::default());
    let mut interval = samples::interval(&resource, 0, vec![samples::site("main.worker", 10, 4)]);
    interval.requests = requests.map(std::sync::Arc::new);
    let (metrics_of, _) = state.report(&interval, &[("queue_full", 5)].into());
    let request = ExportMetricsServiceRequest { resource_metrics: vec![metrics_of] };
    let mut out = Vec::new();
    metrics(&mut out, &request);
    (request, String::from_utf8(out).expect("UTF-8"))
}

fn log_line() -> (ExportLogsServiceRequest, String) {
    let request = crate::otlp::logs::request(&samples::log(&samples::resource()));
    let mut out = Vec::new();
    logs(&mut out, &request);
    (request, String::from_utf8(out).expect("UTF-8"))
}

#[test]
fn a_complete_decoder_reads_back_what_was_written() {
    let (request, line) = log_line();
    let decoded: ExportLogsServiceRequest = serde_json::from_str(&line).expect("OTLP JSON");
    assert_eq!(decoded, request);
    let (request, line) = trace_line();
    let mut decoded: ExportTraceServiceRequest = serde_json::from_str(&line).expect("OTLP JSON");
    for span in &mut decoded.resource_spans[0].scope_spans[0].spans {
        // Absent and empty are the same message.
        span.status = None;
    }
    assert_eq!(decoded, request);
    let (request, line) = metric_line(Some(samples::requests(&[3, 4])));
    assert!(line.contains("\"exemplars\":[{\"timeUnixNano\":\""), "{line}");
    let mut decoded: ExportMetricsServiceRequest = serde_json::from_str(&line).expect("OTLP JSON");
    for metric in &mut decoded.resource_metrics[0].scope_metrics[0].metrics {
        if let Some(Data::ExponentialHistogram(h)) = &mut metric.data {
            h.data_points.iter_mut().for_each(|p| p.negative = None);
        }
    }
    assert_eq!(decoded, request);
}

/// The golden lines went through the collector's own reader and writer and came back byte for byte; see
/// `testdata/README.md`.
#[test]
fn the_lines_are_those_that_the_collector_writes() {
    for (name, line) in [("traces.json", trace_line().1), ("metrics.json", metric_line(None).1)] {
        let path = format!("{}/src/otlp/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("GOTRACE_BLESS").is_some() {
            std::fs::write(&path, &line).expect("written");
        }
        let golden = std::fs::read_to_string(&path).expect("a golden file");
        let golden = golden.replace("GOTRACE_VERSION", convert::VERSION);
        assert_eq!(line, golden, "{path}; GOTRACE_BLESS=1 writes it anew");
    }
}

#[test]
fn a_line_holds_no_line_feed_whatever_the_names() {
    let resource = samples::resource();
    let mut span = convert::span(&samples::wait(&resource, Waker::Gc));
    span.name = "a\nb\r\t\"\\\u{1}\u{7f}\u{2028}é".into();
    let mut out = Vec::new();
    traces(&mut out, &convert::trace_request(&resource, vec![span.clone()]));
    let line = String::from_utf8(out).expect("UTF-8");
    assert_eq!(line.matches('\n').count(), 1);
    let decoded: ExportTraceServiceRequest = serde_json::from_str(&line).expect("OTLP JSON");
    assert_eq!(decoded.resource_spans[0].scope_spans[0].spans[0].name, span.name);
}

#[test]
fn numbers_that_json_lacks_are_texts() {
    let write = |v| {
        let mut out = Vec::new();
        Json(&mut out).double(v);
        String::from_utf8(out).expect("UTF-8")
    };
    let got = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 2.0, 1.5e-9, 0.0125, 1e300].map(write);
    assert_eq!(got, ["\"NaN\"", "\"Infinity\"", "\"-Infinity\"", "0", "2", "1.5e-9", "0.0125", "1e300"]);
}
