//! OTLP messages as the JSON that the OpenTelemetry Collector's file exporter writes.
//!
//! The format is OTLP's JSON encoding as the collector's `pdata` writes it: fields in the order of the
//! protocol's definition, those at their default left out, names in lowerCamelCase, ids in lower-case
//! hex, 64-bit integers as strings, enumerations as numbers, `NaN` and infinities as strings. Covers
//! the fields that gotrace fills; a message with others would lose them, and the tests hold the
//! output against a complete decoder.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::{
        Exemplar, ExponentialHistogramDataPoint, Metric, NumberDataPoint, exemplar::Value as Exact,
        metric::Data, number_data_point::Value as Number,
    },
    resource::v1::Resource,
    trace::v1::{Span, span::Link},
};

/// Appends a request and a line feed.
pub(super) fn traces(out: &mut Vec<u8>, request: &ExportTraceServiceRequest) {
    let mut json = Json(out);
    json.object(|o| {
        o.array("resourceSpans", &request.resource_spans, |json, process| {
            json.object(|o| {
                resource(o, process.resource.as_ref());
                o.array("scopeSpans", &process.scope_spans, |json, scope_spans| {
                    json.object(|o| {
                        scope(o, scope_spans.scope.as_ref());
                        o.array("spans", &scope_spans.spans, span);
                    });
                });
            });
        });
    });
    out.push(b'\n');
}

/// Appends a request and a line feed.
pub(super) fn metrics(out: &mut Vec<u8>, request: &ExportMetricsServiceRequest) {
    let mut json = Json(out);
    json.object(|o| {
        o.array("resourceMetrics", &request.resource_metrics, |json, process| {
            json.object(|o| {
                resource(o, process.resource.as_ref());
                o.array("scopeMetrics", &process.scope_metrics, |json, scope_metrics| {
                    json.object(|o| {
                        scope(o, scope_metrics.scope.as_ref());
                        o.array("metrics", &scope_metrics.metrics, metric);
                    });
                });
            });
        });
    });
    out.push(b'\n');
}

/// Appends a request and a line feed.
pub(super) fn logs(out: &mut Vec<u8>, request: &ExportLogsServiceRequest) {
    let mut json = Json(out);
    json.object(|o| {
        o.array("resourceLogs", &request.resource_logs, |json, process| {
            json.object(|o| {
                resource(o, process.resource.as_ref());
                o.array("scopeLogs", &process.scope_logs, |json, scope_logs| {
                    json.object(|o| {
                        scope(o, scope_logs.scope.as_ref());
                        o.array("logRecords", &scope_logs.log_records, log_record);
                    });
                });
            });
        });
    });
    out.push(b'\n');
}

fn log_record(json: &mut Json<'_>, record: &LogRecord) {
    json.object(|o| {
        o.wide("timeUnixNano", record.time_unix_nano);
        o.wide("observedTimeUnixNano", record.observed_time_unix_nano);
        o.signed("severityNumber", i64::from(record.severity_number));
        o.text("severityText", &record.severity_text);
        o.value("body", |json| any_value(json, record.body.as_ref()));
        o.array("attributes", &record.attributes, key_value);
        o.number("flags", u64::from(record.flags));
        o.hex("traceId", &record.trace_id);
        o.hex("spanId", &record.span_id);
        o.text("eventName", &record.event_name);
    });
}

fn resource(o: &mut Object<'_, '_>, resource: Option<&Resource>) {
    o.value("resource", |json| {
        json.object(|o| {
            if let Some(resource) = resource {
                o.array("attributes", &resource.attributes, key_value);
            }
        });
    });
}

fn scope(o: &mut Object<'_, '_>, scope: Option<&InstrumentationScope>) {
    o.value("scope", |json| {
        json.object(|o| {
            if let Some(scope) = scope {
                o.text("name", &scope.name);
                o.text("version", &scope.version);
            }
        });
    });
}

fn span(json: &mut Json<'_>, span: &Span) {
    json.object(|o| {
        o.hex("traceId", &span.trace_id);
        o.hex("spanId", &span.span_id);
        o.text("traceState", &span.trace_state);
        o.hex("parentSpanId", &span.parent_span_id);
        o.number("flags", u64::from(span.flags));
        o.text("name", &span.name);
        o.signed("kind", i64::from(span.kind));
        o.wide("startTimeUnixNano", span.start_time_unix_nano);
        o.wide("endTimeUnixNano", span.end_time_unix_nano);
        o.array("attributes", &span.attributes, key_value);
        o.number("droppedAttributesCount", u64::from(span.dropped_attributes_count));
        o.array("links", &span.links, link);
        // The collector writes the message even when it is empty.
        o.value("status", |json| json.object(|_| {}));
    });
}

fn link(json: &mut Json<'_>, link: &Link) {
    json.object(|o| {
        o.hex("traceId", &link.trace_id);
        o.hex("spanId", &link.span_id);
        o.text("traceState", &link.trace_state);
        o.array("attributes", &link.attributes, key_value);
        o.number("flags", u64::from(link.flags));
    });
}

fn metric(json: &mut Json<'_>, metric: &Metric) {
    json.object(|o| {
        o.text("name", &metric.name);
        o.text("description", &metric.description);
        o.text("unit", &metric.unit);
        match &metric.data {
            Some(Data::Gauge(gauge)) => o.value("gauge", |json| {
                json.object(|o| o.array("dataPoints", &gauge.data_points, number_point));
            }),
            Some(Data::Sum(sum)) => o.value("sum", |json| {
                json.object(|o| {
                    o.array("dataPoints", &sum.data_points, number_point);
                    o.signed("aggregationTemporality", i64::from(sum.aggregation_temporality));
                    o.boolean("isMonotonic", sum.is_monotonic);
                });
            }),
            Some(Data::ExponentialHistogram(histogram)) => o.value("exponentialHistogram", |json| {
                json.object(|o| {
                    o.array("dataPoints", &histogram.data_points, exponential_point);
                    o.signed("aggregationTemporality", i64::from(histogram.aggregation_temporality));
                });
            }),
            // gotrace makes no others.
            Some(Data::Histogram(_) | Data::Summary(_)) | None => {}
        }
    });
}

fn number_point(json: &mut Json<'_>, point: &NumberDataPoint) {
    json.object(|o| {
        o.array("attributes", &point.attributes, key_value);
        o.wide("startTimeUnixNano", point.start_time_unix_nano);
        o.wide("timeUnixNano", point.time_unix_nano);
        match &point.value {
            Some(Number::AsDouble(v)) => o.value("asDouble", |json| json.double(*v)),
            Some(Number::AsInt(v)) => o.value("asInt", |json| json.text(&v.to_string())),
            None => {}
        }
        o.number("flags", u64::from(point.flags));
    });
}

fn exponential_point(json: &mut Json<'_>, point: &ExponentialHistogramDataPoint) {
    json.object(|o| {
        o.array("attributes", &point.attributes, key_value);
        o.wide("startTimeUnixNano", point.start_time_unix_nano);
        o.wide("timeUnixNano", point.time_unix_nano);
        o.wide("count", point.count);
        o.double("sum", point.sum);
        o.signed("scale", i64::from(point.scale));
        o.wide("zeroCount", point.zero_count);
        // The collector writes both, even when they are empty.
        for (name, buckets) in [("positive", &point.positive), ("negative", &point.negative)] {
            o.value(name, |json| {
                json.object(|o| {
                    if let Some(buckets) = buckets {
                        o.signed("offset", i64::from(buckets.offset));
                        o.array("bucketCounts", &buckets.bucket_counts, |json, n| {
                            json.text(&n.to_string());
                        });
                    }
                });
            });
        }
        o.number("flags", u64::from(point.flags));
        o.array("exemplars", &point.exemplars, exemplar);
        o.double("min", point.min);
        o.double("max", point.max);
        o.double("zeroThreshold", Some(point.zero_threshold).filter(|t| *t != 0.0));
    });
}

fn exemplar(json: &mut Json<'_>, exemplar: &Exemplar) {
    json.object(|o| {
        o.array("filteredAttributes", &exemplar.filtered_attributes, key_value);
        o.wide("timeUnixNano", exemplar.time_unix_nano);
        match &exemplar.value {
            Some(Exact::AsDouble(v)) => o.value("asDouble", |json| json.double(*v)),
            Some(Exact::AsInt(v)) => o.value("asInt", |json| json.text(&v.to_string())),
            None => {}
        }
        o.hex("spanId", &exemplar.span_id);
        o.hex("traceId", &exemplar.trace_id);
    });
}

fn key_value(json: &mut Json<'_>, kv: &KeyValue) {
    json.object(|o| {
        o.text("key", &kv.key);
        o.value("value", |json| any_value(json, kv.value.as_ref()));
    });
}

fn any_value(json: &mut Json<'_>, value: Option<&AnyValue>) {
    json.object(|o| match value.and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(s)) => o.value("stringValue", |json| json.text(s)),
        Some(Value::BoolValue(b)) => {
            o.value("boolValue", |json| json.0.extend_from_slice(if *b { b"true" } else { b"false" }));
        }
        Some(Value::IntValue(i)) => o.value("intValue", |json| json.text(&i.to_string())),
        Some(Value::DoubleValue(d)) => o.value("doubleValue", |json| json.double(*d)),
        Some(Value::ArrayValue(list)) => o.value("arrayValue", |json| {
            json.object(|o| o.array("values", &list.values, |json, v| any_value(json, Some(v))));
        }),
        // gotrace makes no others.
        Some(_) | None => {}
    });
}

/// A writer of values.
struct Json<'a>(&'a mut Vec<u8>);

/// A writer of the fields of an object; fields at their default are left out.
struct Object<'a, 'b> {
    json: &'b mut Json<'a>,
    first: bool,
}

impl Json<'_> {
    fn object(&mut self, fields: impl FnOnce(&mut Object<'_, '_>)) {
        self.0.push(b'{');
        let mut inner = Json(self.0);
        fields(&mut Object { json: &mut inner, first: true });
        self.0.push(b'}');
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'"');
        let mut rest = text.as_bytes();
        while let Some(at) = rest.iter().position(|b| *b < 0x20 || *b == b'"' || *b == b'\\') {
            self.0.extend_from_slice(&rest[..at]);
            match rest[at] {
                b'\n' => self.0.extend_from_slice(b"\\n"),
                b'\r' => self.0.extend_from_slice(b"\\r"),
                b'\t' => self.0.extend_from_slice(b"\\t"),
                b @ (b'"' | b'\\') => self.0.extend_from_slice(&[b'\\', b]),
                b => {
                    self.0.extend_from_slice(b"\\u00");
                    self.hex_digits(&[b]);
                }
            }
            rest = &rest[at + 1..];
        }
        self.0.extend_from_slice(rest);
        self.0.push(b'"');
    }

    fn double(&mut self, value: f64) {
        if value.is_nan() {
            self.0.extend_from_slice(b"\"NaN\"");
        } else if value.is_infinite() {
            self.0.extend_from_slice(if value > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
        } else if value != 0.0 && !(1e-6..1e21).contains(&value.abs()) {
            // As Go writes it: an exponent, of two digits at least where it is negative and one else.
            self.0.extend_from_slice(format!("{value:e}").as_bytes());
        } else {
            self.0.extend_from_slice(value.to_string().as_bytes());
        }
    }

    fn hex_digits(&mut self, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for b in bytes {
            self.0.push(DIGITS[usize::from(b >> 4)]);
            self.0.push(DIGITS[usize::from(b & 15)]);
        }
    }
}

impl Object<'_, '_> {
    fn value(&mut self, name: &str, write: impl FnOnce(&mut Json<'_>)) {
        if !std::mem::replace(&mut self.first, false) {
            self.json.0.push(b',');
        }
        self.json.0.push(b'"');
        self.json.0.extend_from_slice(name.as_bytes());
        self.json.0.extend_from_slice(b"\":");
        write(&mut Json(self.json.0));
    }

    fn array<T>(&mut self, name: &str, items: &[T], mut write: impl FnMut(&mut Json<'_>, &T)) {
        if items.is_empty() {
            return;
        }
        self.value(name, |json| {
            json.0.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    json.0.push(b',');
                }
                write(json, item);
            }
            json.0.push(b']');
        });
    }

    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.value(name, |json| json.text(text));
        }
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.value(name, |json| {
                json.0.push(b'"');
                json.hex_digits(bytes);
                json.0.push(b'"');
            });
        }
    }

    /// A 32-bit number.
    fn number(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.value(name, |json| json.0.extend_from_slice(value.to_string().as_bytes()));
        }
    }

    fn signed(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.value(name, |json| json.0.extend_from_slice(value.to_string().as_bytes()));
        }
    }

    /// A 64-bit number.
    fn wide(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.value(name, |json| json.text(&value.to_string()));
        }
    }

    fn boolean(&mut self, name: &str, value: bool) {
        if value {
            self.value(name, |json| json.0.extend_from_slice(b"true"));
        }
    }

    fn double(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.value(name, |json| json.double(value));
        }
    }
}

#[cfg(test)]
#[path = "json_lines_tests.rs"]
mod tests;
