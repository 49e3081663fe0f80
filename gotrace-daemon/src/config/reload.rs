//! Which keys of the configuration take effect when it is read again, and which when gotrace is started anew: the
//! latter are marked `(start)` in `deploy/gotrace.example.yaml`, and named when one has changed.

use super::{Config, Http, Limits, Otlp, Requests, Spans, Spool, State, Trace};

impl Config {
    /// The keys with another value in `new` that take effect only when gotrace is started anew, as `trace.engine`.
    /// Every key is named here: one that is new does not compile until it is written when it takes effect.
    #[must_use]
    pub fn changed_until_restart(&self, new: &Self) -> Vec<&'static str> {
        let Self {
            trace:
                Trace {
                    engine,
                    level: _,
                    min_wait: _,
                    stack_depth: _,
                    interval: _,
                    reconcile: _,
                    ring_bytes,
                    kernel_log,
                },
            // Processes are judged anew, by what surrounds them too.
            rules: _,
            limits:
                Limits {
                    budget: _,
                    processes,
                    goroutines_per_process: _,
                    memory: _,
                    max_goroutines,
                    suspect_every: _,
                    prove_after: _,
                    prove_every: _,
                    proof_rest: _,
                    max_read_rate: _,
                },
            spans:
                Spans {
                    trace_root_age: _,
                    ratio: _,
                    keep_longer_than: _,
                    keep_wait_over: _,
                    max_per_second: _,
                    resource_command_args: _,
                },
            requests: Requests { mode, slow, routes, functions, paths },
            // Whom to ask is asked anew.
            metadata: _,
            otlp:
                Otlp {
                    endpoint,
                    protocol,
                    headers,
                    compression,
                    timeout,
                    insecure,
                    ca,
                    cert,
                    key,
                    export,
                    grace,
                    spool: Spool { directory, size },
                    metric_interval,
                    series_per_process,
                    series,
                },
            suppressions: _,
            // Who may ask is looked up with each request.
            http: Http { listen, socket, hosts: _, token_file: _, require_token: _ },
            state: State { directory: state },
        } = self;
        let otlp = &new.otlp;
        [
            ("trace.engine", *engine != new.trace.engine),
            ("trace.ring_bytes", *ring_bytes != new.trace.ring_bytes),
            ("trace.kernel_log", *kernel_log != new.trace.kernel_log),
            ("limits.processes", *processes != new.limits.processes),
            ("limits.max_goroutines", *max_goroutines != new.limits.max_goroutines),
            ("requests.mode", *mode != new.requests.mode),
            ("requests.slow", *slow != new.requests.slow),
            ("requests.routes", *routes != new.requests.routes),
            ("requests.functions", *functions != new.requests.functions),
            ("requests.paths", *paths != new.requests.paths),
            ("otlp.endpoint", *endpoint != otlp.endpoint),
            ("otlp.protocol", *protocol != otlp.protocol),
            ("otlp.headers", *headers != otlp.headers),
            ("otlp.compression", *compression != otlp.compression),
            ("otlp.timeout", *timeout != otlp.timeout),
            ("otlp.insecure", *insecure != otlp.insecure),
            ("otlp.ca", *ca != otlp.ca),
            ("otlp.cert", *cert != otlp.cert),
            ("otlp.key", *key != otlp.key),
            ("otlp.export", *export != otlp.export),
            ("otlp.grace", *grace != otlp.grace),
            ("otlp.spool.directory", *directory != otlp.spool.directory),
            ("otlp.spool.size", *size != otlp.spool.size),
            ("otlp.metric_interval", *metric_interval != otlp.metric_interval),
            ("otlp.series_per_process", *series_per_process != otlp.series_per_process),
            ("otlp.series", *series != otlp.series),
            ("http.listen", *listen != new.http.listen),
            ("http.socket", *socket != new.http.socket),
            ("state.directory", *state != new.state.directory),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    /// Another value than the default's, by key. Keys that lists and maps of rules have are in `rules`.
    const OTHERS: &[(&str, &str)] = &[
        ("trace.engine", "snapshot"),
        ("trace.level", "full"),
        ("trace.min_wait", "2ms"),
        ("trace.stack_depth", "9"),
        ("trace.interval", "11s"),
        ("trace.reconcile", "61s"),
        ("trace.ring_bytes", "16M"),
        ("trace.kernel_log", "4"),
        ("rules.min_age", "1s"),
        ("rules.include", "[{executable: [shop]}]"),
        ("rules.exclude", "[{labels: {app: till}}]"),
        ("limits.budget", "2%"),
        ("limits.processes", "65"),
        ("limits.goroutines_per_process", "200001"),
        ("limits.memory", "65M"),
        ("limits.max_goroutines", "131073"),
        ("limits.suspect_every", "61s"),
        ("limits.prove_after", "11m"),
        ("limits.prove_every", "0"),
        ("limits.proof_rest", "21"),
        ("limits.max_read_rate", "off"),
        ("spans.trace_root_age", "11s"),
        ("spans.ratio", "0.5"),
        ("spans.keep_longer_than", "1s"),
        ("spans.keep_wait_over", "1s"),
        ("spans.max_per_second", "off"),
        ("spans.resource_command_args", "true"),
        ("requests.mode", "slow"),
        ("requests.slow", "250ms"),
        ("requests.routes", "21"),
        ("requests.functions", "[main.handle]"),
        ("requests.paths", "true"),
        ("metadata.kubernetes", "off"),
        ("metadata.node_name", "node-b"),
        ("metadata.kubeconfig", "/etc/other"),
        ("metadata.cluster_name", "test"),
        ("metadata.pod_labels", "[app]"),
        ("metadata.ecs", "off"),
        ("metadata.eci", "off"),
        ("metadata.cloud", "off"),
        ("otlp.endpoint", "http://localhost:4318"),
        ("otlp.protocol", "http/protobuf"),
        ("otlp.headers", "{x-team: till}"),
        ("otlp.compression", "none"),
        ("otlp.timeout", "11s"),
        ("otlp.insecure", "true"),
        ("otlp.ca", "other.pem"),
        ("otlp.cert", "other.pem"),
        ("otlp.key", "other.key"),
        ("otlp.export", "other.jsonl"),
        ("otlp.grace", "6s"),
        ("otlp.metric_interval", "11s"),
        ("otlp.series_per_process", "201"),
        ("otlp.series", "20001"),
        ("otlp.spool.directory", "/var/lib/other"),
        ("otlp.spool.size", "513M"),
        ("suppressions", "[{function: a.f, reason: b}]"),
        ("http.listen", "127.0.0.1:9465"),
        ("http.socket", "/run/gotrace/other.sock"),
        ("http.hosts", "[node-a]"),
        ("http.token_file", "/etc/gotrace/other"),
        ("http.require_token", "true"),
        ("state.directory", "/var/lib/gotrace"),
    ];

    /// The keys of the example with their comments, `(start)` of a section counting for all of it.
    fn keys() -> BTreeMap<String, bool> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gotrace.example.yaml");
        let text = fs::read_to_string(path).expect("the example");
        let (mut keys, mut path, mut start) = (BTreeMap::new(), Vec::<String>::new(), false);
        for line in text.lines() {
            let shown = line.replacen("  # ", "  ", 1);
            let line = if shown.trim_start().split(": ").next().is_some_and(|k| !k.contains(' ')) {
                shown
            } else {
                line.to_owned()
            };
            let indent = line.len() - line.trim_start().len();
            start |= line.starts_with('#') && line.contains("(start).");
            let Some((key, rest)) = line.trim_start().split_once(':') else { continue };
            let in_rule = path.first().is_some_and(|section| match section.as_str() {
                "rules" => indent > 2,
                "suppressions" => indent > 0,
                _ => false,
            });
            if key.starts_with(['#', '-']) || key.contains(' ') || indent > 4 || in_rule {
                continue;
            }
            path.truncate(indent / 2);
            if indent == 0 {
                // What was said above it is of this section.
                keys.insert(format!("{key}."), std::mem::take(&mut start));
            }
            path.push(key.to_owned());
            let own = rest.contains("(start)");
            let section = keys.get(&format!("{}.", path[0])).copied().unwrap_or(false);
            keys.insert(path.join("."), own || section);
        }
        keys.retain(|key, _| {
            let has_others = OTHERS.iter().any(|(other, _)| other.starts_with(&format!("{key}.")));
            (key.contains('.') || key == "suppressions") && !key.ends_with('.') && !has_others
        });
        keys
    }

    fn with(key: &str, value: &str) -> Config {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().expect("a key");
        let mut yaml: String =
            parts.iter().enumerate().map(|(n, part)| format!("{}{part}:\n", "  ".repeat(n))).collect();
        yaml += &format!("{}{last}: {value}\n", "  ".repeat(parts.len()));
        if key == "otlp.spool.size" {
            yaml += "    directory: /var/lib/gotrace/spool\n";
        }
        if key == "http.require_token" {
            yaml += "  token_file: /etc/gotrace/token\n";
        }
        if key == "requests.mode" {
            yaml += "trace:\n  level: full\n";
        }
        if key == "otlp.cert" {
            yaml += "  key: client.key\n";
        }
        if key == "otlp.key" {
            yaml += "  cert: client.pem\n";
        }
        Config::parse(&yaml, Path::new("gotrace.yaml")).unwrap_or_else(|e| panic!("{yaml}{e}"))
    }

    #[test]
    fn every_key_takes_effect_or_is_marked_and_named() {
        let keys = keys();
        let others: Vec<&str> = OTHERS.iter().map(|(key, _)| *key).collect();
        for key in keys.keys() {
            assert!(others.contains(&key.as_str()), "no other value of {key} is tried");
        }
        let now = Config::default();
        for (key, value) in OTHERS {
            let marked = *keys.get(*key).unwrap_or_else(|| panic!("{key} is not in the example"));
            let new = with(key, value);
            let named = now.changed_until_restart(&new);
            assert_eq!(named.contains(key), marked, "{key}: marked (start): {marked}; named: {named:?}");
            // What reaches the line, the rules, the sources of metadata and the API.
            let told =
                |c: &Config| format!("{:?} {:?} {:?} {:?}", c.line(), c.rules(), c.enrich(), c.http.access());
            assert!(marked || told(&now) != told(&new), "{key} is not marked (start), and reaches nobody");
        }
    }
}
