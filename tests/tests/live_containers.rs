//! Real containers: which container, pod and task a process is in, told from its cgroup path and mounts,
//! on both hierarchies, and put on what is exported. Needs root and runc.

use std::{path::PathBuf, process::Command};

use gotrace_metadata::{Placement, Runtime};
use gotrace_process::Target;
use gotrace_tests::{
    container::{Container, Hierarchy, Shape},
    demo::unpack_demo,
    gotrace::{Gotrace, privileged},
};

const POD: &str = "3f2b1c4e-0000-4000-8000-0123456789ab";
const TASK: &str = "cd189a933e5849daa93386466019ab50";

fn id(of: char) -> String {
    String::from(of).repeat(64)
}

fn program() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let program = unpack_demo(directory.path()).expect("the demo is there");
    (directory, program)
}

fn placement(container: &Container) -> Placement {
    Placement::of(&Target::open(container.pid()).expect("the container runs"))
}

/// A file of the container's first process as one in the container's cgroup namespace reads it.
fn seen_from_within(container: &Container, file: &str) -> String {
    let pid = container.pid().to_string();
    let read = Command::new("nsenter")
        .args(["--target", &pid, "--cgroup", "cat", &format!("/proc/{pid}/{file}")])
        .output()
        .expect("nsenter runs");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    String::from_utf8(read.stdout).expect("text")
}

/// Paths with what they tell.
fn shapes() -> Vec<(String, Placement)> {
    let told = |runtime, pod: Option<&str>, task: Option<&str>| Placement {
        container_id: Some(id('a').into()),
        runtime,
        pod_uid: pod.map(Into::into),
        ecs_task: task.map(Into::into),
        ..Placement::default()
    };
    let a = id('a');
    let slice = POD.replace('-', "_");
    vec![
        (format!("/kubepods/burstable/pod{POD}/{a}"), told(None, Some(POD), None)),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{a}.scope"
            ),
            told(Some(Runtime::Containerd), Some(POD), None),
        ),
        (
            format!("/kubepods.slice/kubepods-pod{slice}.slice/crio-{a}.scope"),
            told(Some(Runtime::CriO), Some(POD), None),
        ),
        (format!("/docker/{a}"), told(Some(Runtime::Docker), None, None)),
        (format!("/system.slice/docker-{a}.scope"), told(Some(Runtime::Docker), None, None)),
        (format!("/machine.slice/libpod-{a}.scope"), told(Some(Runtime::Podman), None, None)),
        (format!("/ecs/{TASK}/{a}"), told(Some(Runtime::Docker), None, Some(TASK))),
    ]
}

#[test]
fn the_host_sees_where_a_process_runs() {
    if !privileged("live_containers") {
        return;
    }
    let (_directory, program) = program();
    for hierarchy in [Hierarchy::Host, Hierarchy::Unified] {
        for (cgroup, wanted) in shapes() {
            for hidden in [false, true] {
                let shape = Shape { cgroup: &cgroup, hierarchy, hidden, bound: &[], pid_namespace: None };
                let container = Container::start(&program, &["-for", "60s"], &shape)
                    .unwrap_or_else(|e| panic!("{cgroup}, {hierarchy:?}: {e:#}"));
                assert_eq!(placement(&container), wanted, "{cgroup}, {hierarchy:?}, hidden: {hidden}");
            }
        }
    }
}

/// What a sidecar sees: it lives in a container whose own path is hidden by a cgroup namespace.
#[test]
fn mounts_tell_where_the_path_is_hidden() {
    if !privileged("live_containers") {
        return;
    }
    let (_directory, program) = program();
    let a = id('a');
    let docker = format!("var/lib/docker/containers/{a}/hostname");
    let hosts = format!("var/lib/kubelet/pods/{POD}/etc-hosts");
    let log = format!("var/lib/kubelet/pods/{POD}/containers/web/5a1b2c3d");
    for (bound, container_id, pod, name) in [
        (vec![(docker.as_str(), "/etc/hostname")], Some(a.as_str()), None, None),
        (vec![(hosts.as_str(), "/etc/hosts"), (&log, "/dev/termination-log")], None, Some(POD), Some("web")),
    ] {
        let cgroup = format!("/kubepods/pod{POD}/{a}");
        let shape = Shape {
            cgroup: &cgroup,
            hierarchy: Hierarchy::Host,
            hidden: true,
            bound: &bound,
            pid_namespace: None,
        };
        let container = Container::start(&program, &["-for", "60s"], &shape).expect("it starts");
        let found = Placement::parse(
            &seen_from_within(&container, "cgroup"),
            &seen_from_within(&container, "mountinfo"),
        );
        assert_eq!(found.container_id.as_deref(), container_id);
        assert_eq!(found.pod_uid.as_deref(), pod);
        assert_eq!(found.pod_container.as_deref(), name);
    }
}

#[test]
fn spans_and_metrics_carry_the_container() {
    if !privileged("live_containers") {
        return;
    }
    let (_directory, program) = program();
    let (a, slice) = (id('a'), POD.replace('-', "_"));
    let cgroup = format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{a}.scope");
    let shape =
        Shape { cgroup: &cgroup, hierarchy: Hierarchy::Host, hidden: true, bound: &[], pid_namespace: None };
    let container = Container::start(&program, &["-for", "60s"], &shape).expect("it starts");
    let gotrace = Gotrace::attach(container.pid(), &["--duration", "2s"]).expect("gotrace attaches");
    let outcome = gotrace.wait().expect("gotrace ends");
    let span = outcome.export.spans.first().expect("the demo's goroutines end all the time");
    for (name, value) in [
        ("container.id", a.as_str()),
        ("container.runtime.name", "containerd"),
        ("k8s.pod.uid", POD),
        ("service.name", "program"),
    ] {
        assert_eq!(span.resource.get(name).map(String::as_str), Some(value), "{name}: {:?}", span.resource);
    }
}
