//! Log records as OTLP messages. Each is a request of its own: they are few, and each is to be seen soon.
//!
//! Input: the sinks' model. Output: `opentelemetry-proto` messages, which the collector's thread encodes
//! and the file sink writes as JSON.

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value},
    logs::v1::{self as logs, SeverityNumber},
};

use super::convert;
use gotrace_model::{LogRecord, Severity};

/// A request with one record.
pub(super) fn request(record: &LogRecord) -> ExportLogsServiceRequest {
    let LogRecord { resource, name, time_unix_nano, severity, body, attributes } = record;
    let (number, text) = match severity {
        Severity::Info => (SeverityNumber::Info, "INFO"),
        Severity::Warn => (SeverityNumber::Warn, "WARN"),
        Severity::Error => (SeverityNumber::Error, "ERROR"),
    };
    let record = logs::LogRecord {
        time_unix_nano: *time_unix_nano,
        observed_time_unix_nano: *time_unix_nano,
        severity_number: number.into(),
        severity_text: text.into(),
        body: Some(AnyValue { value: Some(any_value::Value::StringValue(body.clone())) }),
        attributes: attributes.iter().map(|(key, value)| convert::attribute_of(key, value)).collect(),
        event_name: (*name).into(),
        ..Default::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![logs::ResourceLogs {
            resource: Some(convert::resource(resource)),
            scope_logs: vec![logs::ScopeLogs {
                scope: Some(convert::scope()),
                log_records: vec![record],
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}
