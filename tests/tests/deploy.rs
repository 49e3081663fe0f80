//! What is in `deploy/`: the chart in its variants, the manifests made of it, task definitions and the unit.
//! Needs helm, which `cargo xtask setup` puts into the cache directory.

use std::{fs, path::Path, process::Command};

use gotrace_tests::{gobuild::cache_dir, gotrace::binary, manifests};
use serde_json::Value;

/// Arguments of a rendering, and what it is for.
const VARIANTS: [&[&str]; 10] = [
    &[],
    &["--set", "snapshotOnly=true"],
    &["--set", "securityContext.sysAdmin=false"],
    &["--set", "metrics.prometheusRule.create=true", "--set", "metrics.dashboard.create=true"],
    &["--set-json", r#"metrics.networkPolicy.from=[{"namespaceSelector":{"matchLabels":{"a":"b"}}}]"#],
    &["--set", "spool.enabled=false"],
    &["--set", "metrics.podMonitor.create=true", "--set", "metrics.podMonitor.labels.release=prometheus"],
    &[
        "--set",
        "clusterName=prod",
        "--set",
        "otlp.headersSecret.name=otlp",
        "--set",
        "priorityClassName=x",
        "--set",
        "fullnameOverride=tracer",
        "--set",
        "config.trace.level=full",
        "--set",
        "config.http.listen=off",
        "--set-json",
        r#"extraEnv=[{"name":"A","value":"b"}]"#,
        "--set-json",
        r#"imagePullSecrets=[{"name":"s"}]"#,
    ],
    &[
        "--set",
        "rbac.create=false",
        "--set",
        "serviceAccount.create=false",
        "--set",
        "serviceAccount.name=own",
    ],
    &["--set", "http.tokenSecret.name=api", "--set", "config.http.require_token=true"],
];

/// Where the chart has the token of the API.
const TOKEN: &str = "/run/secrets/gotrace/token";

/// What `helm` prints.
fn helm(arguments: &[&str]) -> String {
    try_helm(arguments).unwrap_or_else(|error| panic!("helm {arguments:?}: {error}"))
}

/// The same, or why it refuses.
fn try_helm(arguments: &[&str]) -> Result<String, String> {
    let program = cache_dir().join("cluster/helm");
    assert!(program.exists(), "{} is not there: `cargo xtask setup` puts it there", program.display());
    let output = Command::new(program)
        .current_dir(manifests::directory().join("kubernetes"))
        .args(arguments)
        .args(["--kube-version", "1.36.3"])
        .output()
        .expect("helm runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn render(variant: &[&str]) -> Vec<Value> {
    let arguments =
        [&["template", "gotrace", "chart", "--namespace", "gotrace", "--skip-tests"], variant].concat();
    manifests::parse(&helm(&arguments)).expect("YAML")
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn the_chart_is_accepted_by_helm() {
    for variant in VARIANTS {
        helm(&[&["lint", "--strict", "chart"], variant].concat());
        assert!(!render(variant).is_empty());
    }
}

#[test]
fn values_that_are_none_are_refused() {
    for (value, why) in [
        ("metrcis.port=9464", "metrcis"),
        ("metrics.port=0", "/metrics/port"),
        ("snapshotOnly=maybe", "/snapshotOnly"),
        ("image.pullPolicy=Often", "/image/pullPolicy"),
        ("otlp.endpoint=collector:4317", "/otlp/endpoint"),
        ("resources.limits.memory=lots", "/resources/limits/memory"),
        ("http.tokenSecret=api", "/http/tokenSecret"),
        ("http.tokenSecret.key=", "/http/tokenSecret/key"),
        ("http.tokenFile=/token", "tokenFile"),
    ] {
        let refused = try_helm(&["template", "gotrace", "chart", "--set", value]).expect_err(value);
        assert!(refused.contains(why), "{value}: {refused}");
    }
    // All that the chart knows is in the schema, or nobody could set it.
    let read = |file: &str| fs::read_to_string(manifests::directory().join("kubernetes/chart").join(file));
    let values = manifests::parse(&read("values.yaml").expect("values")).expect("YAML");
    let schema: Value = serde_json::from_str(&read("values.schema.json").expect("a schema")).expect("JSON");
    fn unknown(values: &Value, schema: &Value, at: &str, found: &mut Vec<String>) {
        let Some(properties) = schema["properties"].as_object() else { return };
        for (key, value) in values.as_object().into_iter().flatten() {
            match properties.get(key) {
                Some(schema) => unknown(value, schema, &format!("{at}/{key}"), found),
                None => found.push(format!("{at}/{key}")),
            }
        }
    }
    let mut missing = Vec::new();
    unknown(&values[0], &schema, "", &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_chart_brings_rules_dashboard_and_a_test() {
    let read = |file: &str| fs::read(manifests::directory().join(file)).expect("a file");
    for (copy, file) in [("gotrace.rules.yaml", "prometheus"), ("gotrace.json", "grafana")] {
        let copied = read(&format!("kubernetes/chart/files/{copy}"));
        assert!(copied == read(&format!("{file}/{copy}")), "copy deploy/{file}/{copy} to the chart's files/");
    }
    let objects = render(VARIANTS[3]);
    let rules = &find(&objects, "PrometheusRule")["spec"];
    assert_eq!(
        Some(rules),
        manifests::read(Path::new("prometheus/gotrace.rules.yaml")).expect("rules").first()
    );
    let dashboard =
        objects.iter().find(|o| o["metadata"]["name"] == "gotrace-dashboard").expect("a dashboard");
    let text = dashboard["data"]["gotrace.json"].as_str().expect("a file");
    assert_eq!(text.as_bytes(), read("grafana/gotrace.json"));
    // Nobody reaches anything but the page.
    let objects = render(&[]);
    let policy = &find(&objects, "NetworkPolicy")["spec"];
    assert_eq!(policy["ingress"].as_array().map(Vec::len), Some(1));
    assert_eq!(policy["ingress"][0]["ports"], serde_json::json!([{"port": "metrics", "protocol": "TCP"}]));
    // The test has the rights of the DaemonSet, and no more.
    let objects = manifests::parse(&helm(&["template", "gotrace", "chart"])).expect("YAML");
    let [test, daemon] =
        [&find(&objects, "Pod")["spec"], &find(&objects, "DaemonSet")["spec"]["template"]["spec"]];
    assert_eq!(test["containers"][0]["securityContext"], daemon["containers"][0]["securityContext"]);
    assert_eq!(
        (&test["containers"][0]["args"], &test["volumes"]),
        (&serde_json::json!(["doctor"]), &Value::Null)
    );
}

#[test]
fn the_token_comes_from_a_secret_that_is_there() {
    let plain = render(&[]);
    let config = |objects: &[Value]| {
        find(objects, "ConfigMap")["data"]["gotrace.yaml"].as_str().expect("a file").to_owned()
    };
    assert!(!format!("{plain:?}").contains("token"), "without a name there is nothing of it");
    let objects = render(&[VARIANTS[9], &["--set", "http.tokenSecret.key=other"]].concat());
    let pod = &find(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let named = |list: &Value| list.as_array().and_then(|l| l.iter().find(|v| v["name"] == "token").cloned());
    let volume = named(&pod["volumes"]).expect("a volume");
    let secret = serde_json::json!({
        "secretName": "api", "items": [{"key": "other", "path": "token"}], "defaultMode": 0o400
    });
    assert_eq!(volume["secret"], secret);
    let mount = named(&pod["containers"][0]["volumeMounts"]).expect("a mount");
    assert_eq!(mount["readOnly"], true);
    // Where it is mounted is where it is looked for; what else is configured stays.
    assert_eq!(mount["mountPath"].as_str().map(|path| format!("{path}/token")).as_deref(), Some(TOKEN));
    let path = format!("token_file: {TOKEN}");
    let config = config(&objects);
    assert!(config.contains(&path) && config.contains("require_token: true"), "{config}");
    assert!(config.contains("listen: 0.0.0.0:9464"), "{config}");
}

#[test]
fn the_manifests_are_those_of_the_chart() {
    let written = manifests::read(Path::new("kubernetes/gotrace.yaml")).expect("the manifests");
    let (namespace, rest) = written.split_first().expect("not empty");
    assert_eq!(namespace["kind"], "Namespace");
    assert_eq!(rest, render(&[]), "render deploy/kubernetes/gotrace.yaml anew, as its first lines say");
}

#[test]
fn no_variant_asks_for_more_than_it_needs() {
    for variant in VARIANTS {
        let objects = render(variant);
        let pod = &find(&objects, "DaemonSet")["spec"]["template"]["spec"];
        for more in ["hostNetwork", "hostIPC"] {
            assert!(pod[more].is_null(), "{variant:?}: {more}");
        }
        assert_eq!(pod["hostPID"], true);
        for volume in pod["volumes"].as_array().expect("volumes") {
            assert!(volume["hostPath"].is_null(), "{variant:?}: {volume}");
        }
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!(context["privileged"], false);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        let mut added: Vec<&str> = context["capabilities"]["add"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        added.sort_unstable();
        let text = variant.join(" ");
        let wanted: &[&str] = if text.contains("snapshotOnly") {
            &["DAC_READ_SEARCH", "SYS_PTRACE"]
        } else if text.contains("sysAdmin") {
            &["BPF", "DAC_READ_SEARCH", "LEASE", "PERFMON", "SYS_PTRACE"]
        } else {
            &["BPF", "DAC_READ_SEARCH", "LEASE", "PERFMON", "SYS_ADMIN", "SYS_PTRACE"]
        };
        assert_eq!(added, wanted, "{variant:?}");
        for object in &objects {
            for rule in object["rules"].as_array().into_iter().flatten() {
                for verb in rule["verbs"].as_array().expect("verbs") {
                    assert!(["get", "list", "watch"].iter().any(|v| verb == *v), "{rule}");
                }
                assert!(!rule.to_string().contains('*') && !rule.to_string().contains("secrets"), "{rule}");
            }
        }
        let config = find(&objects, "ConfigMap")["data"]["gotrace.yaml"].as_str().expect("a file");
        // The probes of the kubelet come to the pod's address, whatever the values say.
        assert!(config.contains("listen: 0.0.0.0:9464"), "{config}");
        assert_eq!(container["ports"][0]["containerPort"], 9464);
    }
}

#[test]
fn task_definitions_have_names_that_the_api_knows() {
    // KernelCapabilities of the Amazon ECS API Reference, as far as they are used; it knows no BPF and PERFMON.
    const KNOWN: [&str; 5] = ["ALL", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "LEASE"];
    for (file, compatible, pid_mode, capabilities) in [
        ("fargate/task-definition.json", "FARGATE", "task", &["SYS_PTRACE"][..]),
        ("ecs/ec2-daemon.json", "EC2", "host", &KNOWN[1..]),
        ("ecs/managed-instances.json", "MANAGED_INSTANCES", "host", &KNOWN[1..]),
    ] {
        let text = fs::read_to_string(manifests::directory().join(file)).expect("a file");
        let task: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(task["requiresCompatibilities"], serde_json::json!([compatible]), "{file}");
        assert_eq!(task["pidMode"], pid_mode, "{file}");
        let containers = task["containerDefinitions"].as_array().expect("containers");
        let gotrace = containers.iter().find(|c| c["name"] == "gotrace").expect("gotrace");
        assert_eq!(gotrace["readonlyRootFilesystem"], true, "{file}");
        assert_ne!(gotrace["privileged"], true, "{file}");
        assert_eq!(
            gotrace["linuxParameters"]["capabilities"]["add"],
            serde_json::json!(capabilities),
            "{file}"
        );
    }
}

#[test]
fn the_unit_is_one() {
    let unit = fs::read_to_string(manifests::directory().join("systemd/gotrace.service")).expect("a file");
    for line in unit.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '['])) {
        assert!(line.contains('='), "{line}");
    }
    for wanted in ["NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=CAP_BPF CAP_PERFMON"]
    {
        assert!(unit.contains(wanted), "{wanted}");
    }
    let Ok(checked) = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(manifests::directory().join("systemd/gotrace.service"))
        .output()
    else {
        eprintln!("systemd-analyze is not here: the unit is not verified");
        return;
    };
    let told = String::from_utf8_lossy(&checked.stderr);
    // The program need not be installed where the tests run.
    let wrong: Vec<&str> =
        told.lines().filter(|l| l.contains("gotrace.service") && !l.contains("is not executable")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The directory of the socket is one that can be written to, wherever the root file system cannot.
#[test]
fn there_is_room_for_the_socket() {
    for variant in VARIANTS {
        let objects = render(variant);
        let pod = &find(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let named = |list: &Value, key: &str, value: &str| {
            list.as_array().and_then(|l| l.iter().find(|v| v[key] == value).cloned())
        };
        let mount =
            named(&pod["containers"][0]["volumeMounts"], "mountPath", "/run/gotrace").expect("a mount");
        assert_ne!(mount["readOnly"], true, "{variant:?}");
        let volume = named(&pod["volumes"], "name", mount["name"].as_str().expect("a name"));
        assert!(volume.is_some_and(|v| v["emptyDir"].is_object()), "{variant:?}");
        let config = find(&objects, "ConfigMap")["data"]["gotrace.yaml"].as_str().expect("a file");
        assert!(!config.contains("socket"), "the default holds: {config}");
    }
    let unit = fs::read_to_string(manifests::directory().join("systemd/gotrace.service")).expect("a file");
    assert!(unit.lines().any(|l| l == "RuntimeDirectory=gotrace") && unit.contains("AF_UNIX"), "{unit}");
}

/// Every configuration that is shipped is one that the daemon takes.
#[test]
fn configurations_are_good() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    fs::write(&token, "0123456789abcdef\n").expect("written");
    let mut files: Vec<std::path::PathBuf> =
        ["gotrace.example.yaml", "docker/gotrace.yaml", "docker/sidecar.yaml", "systemd/gotrace.yaml"]
            .map(|file| manifests::directory().join(file))
            .into();
    for (n, variant) in VARIANTS.iter().enumerate() {
        let file = directory.path().join(format!("{n}.yaml"));
        let objects = render(variant);
        let text = find(&objects, "ConfigMap")["data"]["gotrace.yaml"].as_str().expect("a file");
        fs::write(&file, text.replace(TOKEN, token.to_str().expect("a path"))).expect("written");
        files.push(file);
    }
    for file in files {
        let output = Command::new(binary().expect("built"))
            .args(["daemon", "--check-config", "--config"])
            .arg(&file)
            .output()
            .expect("gotrace runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {told}", file.display());
    }
}

/// `kubectl gotrace` asks the gotrace of the pod's node, by a `kubectl` that says what it was asked.
#[test]
fn the_kubectl_command_asks_the_node_of_the_pod() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let kubectl = directory.path().join("kubectl");
    let script = r#"#!/bin/sh
case "$*" in
"config view "*) echo default ;;
"get pod nowhere "*) ;;
"get pod till-7f9 -n shop "* | "get pod till-7f9 -n default "*) echo node-7 ;;
"get pod lonely -n shop "*) echo node-8 ;;
"get pods -A -l app.kubernetes.io/name=gotrace --field-selector spec.nodeName=node-7,"*) printf 'tracing/gotrace-abc\n' ;;
"get pods "*) ;;
"exec "*) echo "$*" ;;
*) echo "unexpected: $*" >&2; exit 1 ;;
esac
"#;
    fs::write(&kubectl, script).expect("written");
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).expect("executable");
    let run = |arguments: &[&str]| {
        let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap_or_default());
        let output = Command::new(manifests::directory().join("kubernetes/kubectl-gotrace"))
            .args(arguments)
            .env("PATH", path)
            .stdin(std::process::Stdio::null())
            .output()
            .expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let exec =
        |rest: &str| (Some(0), format!("exec -n tracing gotrace-abc -- gotrace {rest}"), String::new());
    assert_eq!(run(&["check", "shop/till-7f9"]), exec("check pod:shop/till-7f9"));
    assert_eq!(run(&["dump", "till-7f9", "--group"]), exec("dump pod:default/till-7f9 --group"));
    assert_eq!(
        run(&["leaks", "shop/till-7f9/till", "--watch", "60s"]),
        exec("leaks pod:shop/till-7f9/till --watch 60s")
    );
    let (code, _, said) = run(&["check", "shop/lonely"]);
    assert!(code == Some(1) && said.starts_with("error: no gotrace runs on node node-8"), "{code:?} {said}");
    let (code, _, said) = run(&["check", "shop/nowhere"]);
    assert!(code == Some(5) && said == "error: pod shop/nowhere runs on no node yet", "{code:?} {said}");
    assert_eq!(run(&["check"]).0, Some(2));
}
