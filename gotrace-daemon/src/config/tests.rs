//! The example file, and what is said of files that are wrong.

use super::*;
use gotrace_metadata::{CloudConfig, Provider, Switch};

fn parse(yaml: &str) -> Result<Config, Error> {
    Config::parse(yaml, Path::new("gotrace.yaml"))
}

fn wrong(yaml: &str) -> String {
    parse(yaml).expect_err(yaml).to_string()
}

#[test]
fn the_example_names_every_field_and_is_what_holds_without_a_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gotrace.example.yaml");
    let text = fs::read_to_string(&path).expect("the example");
    let mut example = Config::read(&path).expect("it is valid");
    // What has no default is shown by an example.
    assert_eq!(example.otlp.endpoint.as_deref(), Some("http://localhost:4317"));
    assert!(!example.rules.include.is_empty() && !example.rules.exclude.is_empty());
    let fields = [
        "engine",
        "level",
        "min_wait",
        "stack_depth",
        "interval",
        "reconcile",
        "ring_bytes",
        "kernel_log",
        "include",
        "exclude",
        "min_age",
        "executable",
        "command_line",
        "uid",
        "container",
        "namespace",
        "pod",
        "labels",
        "budget",
        "processes",
        "goroutines_per_process",
        "memory",
        "max_goroutines",
        "suspect_every",
        "prove_after",
        "prove_every",
        "proof_rest",
        "max_read_rate",
        "trace_root_age",
        "ratio",
        "keep_longer_than",
        "keep_wait_over",
        "max_per_second",
        "resource_command_args",
        "kubernetes",
        "node_name",
        "kubeconfig",
        "cluster_name",
        "pod_labels",
        "ecs",
        "eci",
        "cloud",
        "endpoint",
        "protocol",
        "headers",
        "compression",
        "timeout",
        "insecure",
        "ca",
        "cert",
        "key",
        "export",
        "grace",
        "spool",
        "metric_interval",
        "series_per_process",
        "series",
        "routes",
        "directory",
        "size",
        "listen",
        "hosts",
        "token_file",
        "require_token",
        "function",
        "verdict",
        "reason",
    ];
    for field in fields {
        assert!(text.contains(&format!("{field}:")), "{field} is not in the example");
    }
    example.otlp = Otlp::default();
    example.rules = RulesConfig::default();
    let suppressed = example.line().suppressions;
    assert_eq!(suppressed.0.len(), 1, "{suppressed:?}");
    assert_eq!(suppressed.0[0].verdicts.len(), 2);
    example.suppressions = Vec::new();
    assert_eq!(example, Config::default());
}

#[test]
fn nothing_is_a_configuration() {
    for yaml in ["", "# nothing\n", "---\n", "trace: {}\n"] {
        assert_eq!(parse(yaml).expect("valid"), Config::default(), "{yaml:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (yaml, expected) in [
        (
            "trace:\n  level: most\n",
            "gotrace.yaml:2:10: unknown level `most`: expected lifecycle, waits or full",
        ),
        ("trace:\n  interval: 10\n", "gotrace.yaml:2:13: `10` has no unit"),
        ("trace:\n  levle: full\n", "gotrace.yaml:2:3: unknown field `levle`"),
        ("limits:\n  budget: 200%\n", "gotrace.yaml:2:11: "),
        ("limits:\n  processes: many\n", "gotrace.yaml:2:14: "),
        ("spans:\n  max_per_second: 0\n", "gotrace.yaml:2:19: expected a whole number above 0, or off"),
        ("otlp:\n  series_per_process: 20\n", "gotrace.yaml:2:3: series_per_process must be from "),
        ("requests:\n  routes: 0\n", "gotrace.yaml:2:3: routes must be from 1 to 500"),
        ("otlp:\n  metric_interval: 1ms\n", "gotrace.yaml:2:3: metric_interval must be from 100ms to 1h"),
        ("suppressions:\n- {function: a.f}\n", "gotrace.yaml:2:4: missing field `reason`"),
        ("limits:\n  processes: 0\n", "gotrace.yaml:2:3: processes must be from 1 to 4096"),
        ("otlp: {spool: {directory: /spool, size: 1M}}\n", "gotrace.yaml:1:35: size must be from"),
        ("limits: {budget: off, memory: 4M}\n", "gotrace.yaml:1:23: memory must be from"),
        ("limits:\n  memory: 4M\n", "gotrace.yaml:2:3: memory must be from 8M to 1024G"),
        ("http:\n\n  listen: everywhere\n", "gotrace.yaml:3:3: listen must be"),
        ("rules:\n  include:\n  - executable: ['~(']\n", "gotrace.yaml:3:18: `~(` is not a valid pattern"),
        ("trace: [\n", "gotrace.yaml:"),
        ("otlp:\n  endpoint: 'not an address'\n", "gotrace.yaml:1:1: otlp: "),
        ("otlp:\n  spool:\n    directory: spool\n", "gotrace.yaml:3:5: directory must be an absolute path"),
        (
            "otlp:\n  spool:\n    directory: /spool\n    size: 1M\n",
            "gotrace.yaml:4:5: size must be from 16M to 1024G",
        ),
        ("otlp:\n  spool: {size: much}\n", "gotrace.yaml:2:17: expected a number of bytes above 0"),
        ("otlp:\n  spool:\n    size: 1G\n", "gotrace.yaml:3:5: size needs a directory"),
        ("otlp:\n  spool: {dir: /spool}\n", "gotrace.yaml:2:11: unknown field `dir`"),
        (
            "metadata:\n  cloud: moon\n",
            "gotrace.yaml:2:10: unknown cloud moon: expected aws, gcp, azure or alibaba",
        ),
        ("metadata:\n  kubernetes: yes\n", "gotrace.yaml:2:15: "),
        ("a: b\n", "gotrace.yaml:1:1: unknown field `a`"),
    ] {
        let said = wrong(yaml);
        assert!(said.starts_with(expected), "{yaml}\n{said}\n{expected}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn rules_and_values_arrive() {
    let config = parse(
        "trace:\n  level: full\n  interval: 1m30s\nlimits:\n  budget: off\nrules:\n  min_age: 5s\n  include:\n  \
         - executable: [shop]\n    labels: {app: till}\n",
    )
    .expect("valid");
    let line = config.line();
    assert_eq!((line.level, line.interval, line.budget), (Level::Full, Duration::from_secs(90), None));
    let rules = config.rules();
    assert_eq!(rules.min_age, Duration::from_secs(5));
    assert_eq!(rules.include[0].metadata.keys().collect::<Vec<_>>(), ["k8s.pod.label.app"]);
    assert!(config.judges_by_metadata());
    assert_eq!(config.enrich().pod_labels, ["app"]);
    let config = parse(
        "metadata:\n  kubernetes: off\n  ecs: on\n  cloud: gcp\n  node_name: a\n  pod_labels: [team, app, team]\n",
    )
    .expect("valid");
    let enrich = config.enrich();
    assert_eq!((enrich.kubernetes.watch, enrich.ecs, enrich.eci), (Switch::Off, Switch::On, Switch::Auto));
    assert_eq!(enrich.cloud, CloudConfig::Provider(Provider::Gcp));
    assert_eq!(enrich.pod_labels, ["app", "team"]);
    assert!(!config.judges_by_metadata());
}
