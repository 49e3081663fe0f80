//! What flags and variables come to.

use super::*;

fn config(flags: &OtlpFlags, env: &[(&str, &str)]) -> Result<Option<OtlpConfig>, ConfigError> {
    let env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    OtlpConfig::from_flags_and_env(flags, &move |name| {
        env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
    })
}

fn endpoint(text: &str) -> OtlpFlags {
    OtlpFlags { endpoint: Some(text.into()), ..OtlpFlags::default() }
}

fn traces(flags: &OtlpFlags, env: &[(&str, &str)]) -> SignalConfig {
    config(flags, env).expect("valid").expect("a collector").traces.expect("traces")
}

#[test]
fn nothing_said_sends_nothing() {
    assert_eq!(config(&OtlpFlags::default(), &[]), Ok(None));
    assert_eq!(config(&OtlpFlags::default(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
}

#[test]
fn addresses_become_whole() {
    let cases = [
        ("http://c:4317", "http://c:4317", Protocol::Grpc),
        ("http://c:4318", "http://c:4318/v1/traces", Protocol::HttpProtobuf),
        ("https://c/otlp/", "https://c/otlp/v1/traces", Protocol::HttpProtobuf),
        ("c", "https://c:4317", Protocol::Grpc),
        ("localhost:4317", "http://localhost:4317", Protocol::Grpc),
        ("127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces", Protocol::HttpProtobuf),
        ("[::1]:4317", "http://[::1]:4317", Protocol::Grpc),
        ("c:4317", "https://c:4317", Protocol::Grpc),
    ];
    for (text, want, protocol) in cases {
        let got = traces(&endpoint(text), &[]);
        assert_eq!((got.endpoint.as_str(), got.protocol), (want, protocol), "{text}");
    }
    let insecure = OtlpFlags { insecure: true, ..endpoint("c:4317") };
    assert_eq!(traces(&insecure, &[]).endpoint, "http://c:4317");
    let env = [("OTEL_EXPORTER_OTLP_INSECURE", "true")];
    assert_eq!(traces(&endpoint("c:4317"), &env).endpoint, "http://c:4317");
    for bad in ["", "http://", "ftp://c", "http://c:99999", "a b", "http://c:x"] {
        assert!(matches!(config(&endpoint(bad), &[]), Err(ConfigError::Endpoint { .. })), "{bad}");
    }
}

#[test]
fn a_signals_own_variables_win_and_flags_win_over_all() {
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4318/x"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:9/y"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=2%2C3"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "Authorization=Bearer%20t=="),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "700"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
    ];
    let got = config(&OtlpFlags::default(), &env).expect("valid").expect("a collector");
    let traces = got.traces.expect("traces");
    assert_eq!(traces.endpoint, "http://own:9/y");
    assert_eq!(traces.headers, [("authorization".to_owned(), "Bearer t==".to_owned())]);
    assert_eq!((traces.timeout, traces.gzip), (Duration::from_millis(1500), false));
    let metrics = got.metrics.expect("metrics");
    assert_eq!((metrics.endpoint.as_str(), metrics.protocol), ("http://general:4318", Protocol::Grpc));
    assert_eq!(metrics.headers, [("a".into(), "1".into()), ("b".into(), "2,3".into())]);
    assert_eq!((metrics.timeout, metrics.gzip), (Duration::from_millis(700), true));
    assert_eq!(metrics.tls.ca, Some("/ca.pem".into()));
    assert_eq!(got.logs.expect("logs").endpoint, "http://general:4318/x/v1/logs");

    let flags = OtlpFlags {
        protocol: Some("http/protobuf".into()),
        headers: vec!["B=4".into(), "c=5=6".into()],
        compression: Some("gzip".into()),
        timeout: Some(Duration::from_secs(3)),
        ca: Some("/other.pem".into()),
        ..endpoint("http://flag:1")
    };
    let traces = traces_of(&flags, &env);
    assert_eq!(traces.endpoint, "http://flag:1/v1/traces");
    assert_eq!(traces.tls.ca, Some("/other.pem".into()));
    assert_eq!((traces.gzip, traces.timeout), (true, Duration::from_secs(3)));
    let metrics = config(&flags, &env).expect("valid").expect("a collector").metrics.expect("metrics");
    assert_eq!(
        metrics.headers,
        [("a".into(), "1".into()), ("b".into(), "4".into()), ("c".into(), "5=6".into())]
    );
}

fn traces_of(flags: &OtlpFlags, env: &[(&str, &str)]) -> SignalConfig {
    traces(flags, env)
}

#[test]
fn one_signal_alone() {
    let got = config(&OtlpFlags::default(), &[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:4317")])
        .expect("valid")
        .expect("a collector");
    assert!(got.traces.is_none() && got.logs.is_none() && got.metrics.is_some());
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://m:4317"), ("OTEL_TRACES_EXPORTER", "none")];
    let got = config(&OtlpFlags::default(), &env).expect("valid").expect("a collector");
    assert!(got.traces.is_none() && got.metrics.is_some());
    assert!(config(&endpoint("http://m:4317"), &env[1..]).expect("valid").expect("some").traces.is_some());
}

#[test]
fn what_cannot_be_followed_is_named() {
    let json = OtlpFlags { protocol: Some("http/json".into()), ..endpoint("http://c:4318") };
    let error = config(&json, &[]).expect_err("refused");
    assert_eq!(error, ConfigError::HttpJson { source_name: "--otlp-protocol".into() });
    assert!(error.to_string().contains("http/protobuf") && error.to_string().contains("--export"));
    let error = config(&endpoint("http://c:4318"), &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")])
        .expect_err("refused");
    assert!(error.to_string().starts_with("OTEL_EXPORTER_OTLP_PROTOCOL:"));
    for (name, value) in [
        ("PROTOCOL", "thrift"),
        ("COMPRESSION", "zstd"),
        ("TIMEOUT", "fast"),
        ("TIMEOUT", "0"),
        ("INSECURE", "maybe"),
    ] {
        let name = format!("OTEL_EXPORTER_OTLP_{name}");
        let error = config(&endpoint("http://c:4318"), &[(&name, value)]).expect_err("refused");
        assert!(error.to_string().contains(&name) && error.to_string().contains(value), "{error}");
    }
    for bad in ["novalue", "a b=c", "=x", "a=%zz", "a=%ff", "a=%0a"] {
        let error = config(&endpoint("http://c:4318"), &[("OTEL_EXPORTER_OTLP_HEADERS", bad)]);
        assert!(matches!(error, Err(ConfigError::Header { .. })), "{bad}");
    }
    let half = OtlpFlags { client_certificate: Some("/c".into()), ..endpoint("https://c:4318") };
    assert_eq!(config(&half, &[]), Err(ConfigError::HalfIdentity { signal: "traces" }));
}

#[test]
fn the_temporality_is_read() {
    let of = |value: &'static str| Temporality::from_env(&move |_| Some(value.into()));
    assert_eq!(of("Delta"), Ok(Temporality::Delta));
    assert_eq!(of("LOWMEMORY"), Ok(Temporality::LowMemory));
    assert_eq!(of(""), Ok(Temporality::Cumulative));
    assert!(of("sometimes").is_err());
    assert_eq!(Temporality::from_env(&|_| None), Ok(Temporality::Cumulative));
    assert_eq!(metric_interval_from_env(&|_| Some("250".into())), Ok(Some(Duration::from_millis(250))));
}
