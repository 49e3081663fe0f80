//! `gotrace ps`, and TARGET: the Go programs that run here with what is wrong with each, and processes by name and by
//! pod. Needs root, `go` and runc. The Kubernetes API is a stand-in; the real one is in `cluster_kubernetes`.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    http::{Request, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use gotrace_tests::{
    container::{Container, Hierarchy, Shape},
    demo::unpack_demo,
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build},
    gotrace::{binary, privileged},
    running::Running,
    terminal::OnTerminal,
};
use serde_json::{Value, json};

fn gotrace(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut gotrace = Command::new(binary().expect("built"));
    gotrace.args(arguments).stdin(Stdio::null()).env_remove("KUBECONFIG").env_remove("K8S_NODE_NAME");
    gotrace.envs(variables.iter().copied()).output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// What `ps` says of each process.
fn ps(variables: &[(&str, &str)]) -> BTreeMap<u64, Value> {
    let output = gotrace(&["ps", "--format", "json"], variables);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines[0]["schema"], "gotrace.ps/1");
    assert!(lines.last().is_some_and(|l| l["summary"]["processes"].is_u64()), "{lines:?}");
    let processes = lines.iter().map(|l| &l["process"]).filter(|p| p.is_object());
    processes.map(|p| (p["pid"].as_u64().expect("a pid"), p.clone())).collect()
}

/// A copy of the program of all cases under a name of its own, so that its process has it too.
fn copy(directory: &Path, name: &str) -> PathBuf {
    let program = build("cases", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
    let path = directory.join(name);
    fs::copy(program, &path).expect("copied");
    path
}

#[test]
fn a_glance_tells_what_is_wrong_and_nothing_of_healthy_programs() {
    if !privileged("live_ps") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let start = |case: &'static str, note: &'static str| {
        (Running::start(&copy(directory.path(), &format!("ps-{case}")), case), case, note)
    };
    let sick = [
        start("wrapped", "leak"),
        start("crossed", "deadlock"),
        start("dry", "stalled"),
        start("holder", "lock"),
    ];
    let healthy = ["wrapped_ok", "crossed_ok", "dry_ok", "lock_ok", "group_ok"].map(|case| start(case, "ok"));
    let deadline = Instant::now() + PATIENCE;
    // On a busy machine a second may be too short for what needs several looks.
    let mut missing: Vec<&str> = sick.iter().map(|(_, case, _)| *case).collect();
    while !missing.is_empty() {
        assert!(Instant::now() < deadline, "nothing is said of {missing:?}");
        let all = ps(&[]);
        for (running, case, note) in sick.iter().chain(&healthy) {
            let process = &all[&u64::from(running.pid())];
            assert_eq!(process["name"], format!("ps-{case}"));
            assert_eq!(process["go_version"], "go1.27.3", "{process}");
            // Of what is healthy nothing is said, whatever else the machine does.
            assert!(*note != "ok" || process["note"] == "ok", "{case}: {process}");
            if process["note"] == *note {
                assert!(*note != "leak" || process["heap_scanned"] == true, "{process}");
                missing.retain(|m| m != case);
            }
        }
    }
    // The same is what `gotrace` alone shows on a terminal, and what to run next.
    let mut terminal = OnTerminal::start(&[]);
    terminal.wait_to_see("gotrace check NAME");
    assert!(terminal.screen().contains(" × main.wrapped.func1"), "{}", terminal.screen());
    assert!(terminal.shown().contains("\u{1b}[31;1mLEAK?\u{1b}[0m"), "{}", terminal.shown());
    assert!(terminal.end().success());
    let text = said(&gotrace(&["ps"], &[]));
    let line = |case: &str| text.lines().find(|l| l.contains(case)).expect("a line").to_owned();
    let leak = line("ps-wrapped ");
    assert!(leak.contains("  LEAK? ") && leak.ends_with(" × main.wrapped.func1"), "{text}");
    assert!(line("ps-group_ok ").ends_with("  ok"), "{text}");
}

#[test]
fn a_process_is_found_by_its_name() {
    if !privileged("live_ps") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let name = format!("named-{}", std::process::id());
    let program = copy(directory.path(), &name);
    let first = Running::start(&program, "group_ok");
    let by_name = gotrace(&["dump", &name], &[]);
    assert_eq!(by_name.status.code(), Some(0), "{}", said(&by_name));
    assert!(said(&by_name).contains("main.main"), "{}", said(&by_name));
    let path = program.to_str().expect("a plain path");
    for arguments in [&["leaks", path][..], &["why", &name, "--goid", "1"], &["inspect", &name]] {
        let output = gotrace(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
    }
    let attached = gotrace(&["attach", &name, "--duration", "1s", "--engine", "snapshot", "--quiet"], &[]);
    assert_eq!(attached.status.code(), Some(0), "{}", said(&attached));

    let second = Running::start(&program, "group_ok");
    let several = gotrace(&["dump", &name], &[]);
    assert_eq!(several.status.code(), Some(2), "{}", said(&several));
    for running in [&first, &second] {
        assert!(said(&several).contains(&format!("{} {name}", running.pid())), "{}", said(&several));
    }
    let none = gotrace(&["dump", "nobody-runs-this"], &[]);
    assert_eq!(none.status.code(), Some(5), "{}", said(&none));
    let here = format!("{} {name}", first.pid());
    assert!(said(&none).contains("error: no Go program here is nobody-runs-this"), "{}", said(&none));
    assert!(said(&none).contains(&here) || said(&none).contains("(`gotrace ps`)"), "{}", said(&none));
    // What has the name but is no Go program says so.
    let mut shell = Command::new("sleep").arg("100").spawn().expect("it starts");
    let other = gotrace(&["dump", "sleep"], &[]);
    shell.kill().and_then(|()| shell.wait()).expect("it ends");
    assert!(matches!(other.status.code(), Some(2 | 4)), "{}", said(&other));
}

const POD: &str = "3f2b1c4e-0000-4000-8000-0123456789ab";

fn json_of(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// What the API server would answer: one pod on this node, and no news.
async fn answer(request: Request<Body>) -> Response {
    if request.uri().query().is_some_and(|q| q.contains("watch=")) {
        std::future::pending::<()>().await;
    }
    if !request.uri().path().ends_with("/pods") {
        let list =
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
        return json_of(&list);
    }
    let container = json!({
        "name": "till", "image": "shop/till:1", "imageID": "", "ready": true, "restartCount": 0,
        "containerID": format!("containerd://{}", "a".repeat(64)),
    });
    let pod = json!({
        "metadata": {"name": "till-7f9", "namespace": "shop", "uid": POD, "resourceVersion": "1"},
        "spec": {"nodeName": "node-7", "containers": [{"name": "till", "image": "shop/till:1"}]},
        "status": {"phase": "Running", "containerStatuses": [container]},
    });
    let list =
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [pod]});
    json_of(&list)
}

fn serve() -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("an address");
    let address = listener.local_addr().expect("an address");
    runtime.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (runtime, address)
}

#[test]
fn a_process_is_found_by_its_pod() {
    if !privileged("live_ps") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = unpack_demo(directory.path()).expect("the demo is there");
    let (a, slice) = ("a".repeat(64), POD.replace('-', "_"));
    let cgroup = format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{a}.scope");
    let shape =
        Shape { cgroup: &cgroup, hierarchy: Hierarchy::Host, hidden: true, bound: &[], pid_namespace: None };
    let container = Container::start(&program, &["-for", "10m"], &shape).expect("it starts");
    let (_runtime, address) = serve();
    let kubeconfig = directory.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    fs::write(&kubeconfig, config.to_string()).expect("written");
    let variables = [("KUBECONFIG", kubeconfig.to_str().expect("a plain path")), ("K8S_NODE_NAME", "node-7")];

    for pod in ["pod:till-7f9", "pod:shop/till-7f9", "pod:shop/till-7f9/till"] {
        let output = gotrace(&["dump", pod], &variables);
        assert_eq!(output.status.code(), Some(0), "{pod}: {}", said(&output));
        assert!(said(&output).contains("main.main"), "{pod}: {}", said(&output));
    }
    let before = directory.path().join("before.json");
    let before = before.to_str().expect("a plain path");
    let dump = gotrace(&["dump", "pod:till-7f9", "--format", "json", "-o", before], &variables);
    assert_eq!(dump.status.code(), Some(0), "{}", said(&dump));
    let diff = gotrace(&["diff", before, "pod:shop/till-7f9"], &variables);
    assert_eq!(diff.status.code(), Some(0), "{}", said(&diff));
    for pod in ["pod:bank/till-7f9", "pod:shop/till-7f9/proxy", "pod:till"] {
        let output = gotrace(&["dump", pod], &variables);
        assert_eq!(output.status.code(), Some(5), "{pod}: {}", said(&output));
        assert!(said(&output).contains(&format!("no Go program here is {pod}")), "{}", said(&output));
    }
    let shown = &ps(&variables)[&u64::from(container.pid())];
    assert_eq!(shown["place"], "shop/till-7f9");
    // Without Kubernetes it is the container, and a pod cannot be found.
    let shown = &ps(&[])[&u64::from(container.pid())];
    assert_eq!(shown["place"], &a[..12]);
    let output = gotrace(&["dump", "pod:till-7f9"], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("the pods of this node are not known: no service account"),
        "{}",
        said(&output)
    );
}
