//! Paths and mounts as container runtimes make them, and any other text.

use proptest::prelude::*;

use super::{Placement, Runtime};

const A: &str = "4a6d5a6b7c8d9e0f112233445566778899aabbccddeeff00112233445566778f";
const B: &str = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf";
const UID: &str = "3f2b1c4e-0000-4000-8000-0123456789ab";
const UID_: &str = "3f2b1c4e_0000_4000_8000_0123456789ab";
const STATIC: &str = "0123456789abcdef0123456789abcdef";
const TASK: &str = "cd189a933e5849daa93386466019ab50";

/// Container, runtime, pod and task that a path is to tell.
type Told = (Option<&'static str>, Option<Runtime>, Option<&'static str>, Option<&'static str>);

fn told(placement: &Placement) -> (Option<&str>, Option<Runtime>, Option<&str>, Option<&str>) {
    (
        placement.container_id.as_deref(),
        placement.runtime,
        placement.pod_uid.as_deref(),
        placement.ecs_task.as_deref(),
    )
}

#[test]
fn paths_of_every_runtime() {
    use Runtime::{Containerd, CriO, Docker, Podman};
    let nothing: Told = (None, None, None, None);
    let in_pod = |runtime| -> Told { (Some(A), runtime, Some(UID), None) };
    let alone = |runtime| -> Told { (Some(A), runtime, None, None) };
    let table: Vec<(String, Told)> = vec![
        // Docker, Podman and containerd without Kubernetes.
        (format!("/docker/{A}"), alone(Some(Docker))),
        (format!("/system.slice/docker-{A}.scope"), alone(Some(Docker))),
        (format!("/system.slice/docker-{A}.scope/init.scope"), alone(Some(Docker))),
        (
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope"),
            alone(Some(Docker)),
        ),
        (format!("/machine.slice/libpod-{A}.scope"), alone(Some(Podman))),
        (format!("/machine.slice/libpod-{A}.scope/container"), alone(Some(Podman))),
        (
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container"),
            alone(Some(Podman)),
        ),
        (format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope"), alone(Some(Podman))),
        (format!("/libpod_parent/libpod-{A}"), alone(Some(Podman))),
        (format!("/system.slice/nerdctl-{A}.scope"), alone(Some(Containerd))),
        (format!("/default/{A}"), alone(None)),
        // The monitors beside containers are none.
        (format!("/machine.slice/libpod-conmon-{A}.scope"), nothing),
        (
            format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{A}.scope"),
            (None, None, Some(UID), None),
        ),
        // Kubernetes, cgroupfs driver, each class of service.
        (format!("/kubepods/pod{UID}/{A}"), in_pod(None)),
        (format!("/kubepods/burstable/pod{UID}/{A}"), in_pod(None)),
        (format!("/kubepods/besteffort/pod{UID}/{A}"), in_pod(None)),
        (format!("/kubepods/burstable/pod{UID}/crio-{A}"), in_pod(Some(CriO))),
        (format!("/kubepods/burstable/pod{STATIC}/{A}"), (Some(A), None, Some(STATIC), None)),
        (format!("/k8s.io/{A}"), alone(Some(Containerd))),
        // Kubernetes, systemd driver.
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope"
            ),
            in_pod(Some(Containerd)),
        ),
        (
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{A}.scope"
            ),
            in_pod(Some(CriO)),
        ),
        (format!("/kubepods.slice/kubepods-pod{UID_}.slice/docker-{A}.scope"), in_pod(Some(Docker))),
        (format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-{A}.scope/container"), in_pod(Some(CriO))),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{A}.scope"
            ),
            (Some(A), Some(Containerd), Some(STATIC), None),
        ),
        // The drivers of the kubelet and containerd disagree.
        (
            format!("/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}"),
            in_pod(Some(Containerd)),
        ),
        // kind: the kubelet's whole tree within a Docker container.
        (
            format!(
                "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope"
            ),
            in_pod(Some(Containerd)),
        ),
        // Docker in a pod.
        (format!("/kubepods/burstable/pod{UID}/{B}/docker/{A}"), in_pod(Some(Docker))),
        // ECS on EC2, cgroup v1 and v2; Fargate.
        (format!("/ecs/{TASK}/{A}"), (Some(A), Some(Docker), None, Some(TASK))),
        (format!("/ecs/{UID}/{A}"), (Some(A), Some(Docker), None, Some(UID))),
        (format!("/ecs/cluster/{TASK}/{A}"), (Some(A), Some(Docker), None, Some(TASK))),
        (
            format!("/ecstasks.slice/ecstasks-{TASK}.slice/docker-{A}.scope"),
            (Some(A), Some(Docker), None, Some(TASK)),
        ),
        (
            "/ecs/cd189a933e5849daa93386466019ab50/cd189a933e5849daa93386466019ab50-2495160603".into(),
            (Some("cd189a933e5849daa93386466019ab50-2495160603"), None, None, Some(TASK)),
        ),
        // Seen from within a sibling container with a cgroup namespace of its own.
        (format!("/../cri-containerd-{A}.scope"), alone(Some(Containerd))),
        (format!("/../../pod{UID}/{A}"), in_pod(None)),
        // No containers.
        ("/".into(), nothing),
        (String::new(), nothing),
        ("/init.scope".into(), nothing),
        ("/system.slice/ssh.service".into(), nothing),
        ("/user.slice/user-1000.slice/session-3.scope".into(), nothing),
        ("/kubepods/burstable".into(), nothing),
        (format!("/podman/{}", &A[1..]), nothing),
        (format!("/docker/{}", A.to_uppercase()), nothing),
        (format!("/{TASK}"), nothing),
    ];
    for (path, wanted) in &table {
        for text in [
            format!("0::{path}\n"),
            format!("12:memory:{path}\n11:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"),
            // Hybrid: controllers in v1, systemd's tree in v2, or the other way round.
            format!("9:memory:/\n1:name=systemd:{path}\n0::/\n"),
            format!("4:memory:/\n0::{path}\n"),
        ] {
            assert_eq!(told(&Placement::parse(&text, "")), *wanted, "{text}");
        }
    }
    let nested = Placement::parse(&format!("0::/kubepods/burstable/pod{UID}/{B}/docker/{A}"), "");
    assert_eq!(nested.outer, [B.into()]);
}

#[test]
fn mounts_tell_where_the_path_is_hidden() {
    use Runtime::{Containerd, Docker, Podman};
    let docker = format!(
        "1108 1101 0:59 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X\n\
         1120 1108 254:1 /var/lib/docker/containers/{A}/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda1 rw\n\
         1121 1108 254:1 /var/lib/docker/containers/{A}/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n"
    );
    let kubelet = format!(
        "900 890 259:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw,relatime - xfs /dev/nvme0n1p1 rw\n\
         901 890 259:1 /var/lib/kubelet/pods/{UID}/containers/web/5a1b2c3d /dev/termination-log rw - xfs /dev/x rw\n\
         902 890 259:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{B}/hostname /etc/hostname rw - xfs /dev/x rw\n"
    );
    let cri_o = format!(
        "900 890 259:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw - xfs /dev/x rw\n\
         902 890 0:24 /containers/storage/overlay-containers/{B}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n"
    );
    let podman = format!(
        "700 600 0:24 /containers/storage/overlay-containers/{A}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n"
    );
    let nerdctl = format!(
        "700 600 8:1 /var/lib/nerdctl/1935db59/containers/default/{A}/resolv.conf /etc/resolv.conf rw - ext4 /dev/x rw\n"
    );
    // The host's cgroup mount in a container, cgroup v1.
    let cgroup = format!(
        "750 740 0:30 /kubepods/burstable/pod{UID}/{A} /sys/fs/cgroup/memory ro master:16 - cgroup cgroup rw,memory\n"
    );
    // On the host: others' mounts have the names in the mount point, not at these files.
    let host = format!(
        "80 25 0:40 / /var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~secret/t rw - tmpfs tmpfs rw\n\
         81 25 0:41 / /var/lib/docker/containers/{A}/mounts/shm rw - tmpfs shm rw\n"
    );
    let none: Told = (None, None, None, None);
    for (mounts, wanted) in [
        (docker.as_str(), (Some(A), Some(Docker), None, None)),
        (&kubelet, (None, None, Some(UID), None)),
        (&cri_o, (None, None, Some(UID), None)),
        (&podman, (Some(A), Some(Podman), None, None)),
        (&nerdctl, (Some(A), Some(Containerd), None, None)),
        (&cgroup, (Some(A), None, Some(UID), None)),
        (&host, none),
        ("", none),
        ("1 2 3", none),
        ("a b c d e f - ", none),
    ] {
        assert_eq!(told(&Placement::parse("0::/\n", mounts)), wanted, "{mounts}");
    }
    assert_eq!(Placement::parse("0::/", &kubelet).pod_container.as_deref(), Some("web"));
    // A sibling's path tells the container, its mounts the pod.
    let both = Placement::parse(&format!("0::/../cri-containerd-{A}.scope"), &kubelet);
    assert_eq!(told(&both), (Some(A), Some(Containerd), Some(UID), None));
}

#[test]
fn attributes_say_what_is_known() {
    let attributes = Placement::parse(&format!("0::/kubepods/pod{UID}/crio-{A}"), "").attributes();
    let names: Vec<&str> = attributes.keys().map(AsRef::as_ref).collect();
    assert_eq!(names, ["container.id", "container.runtime.name", "k8s.pod.uid"]);
    assert!(Placement::default().attributes().is_empty());
    assert!(!Placement::default().is_contained());
}

proptest! {
    #[test]
    fn any_text_is_taken(cgroup in "(?s).{0,200}", mounts in "(?s).{0,200}") {
        let _ = Placement::parse(&cgroup, &mounts).attributes();
    }

    #[test]
    fn any_path_is_taken(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "docker", "ecs", "pod", "-pod", ".slice", ".scope", ":", "kubepods", "..", "ecstasks-", A, TASK, UID_,
                "libpod-", "crio-conmon-", "é", "-", "",
            ]),
            0..12,
        ),
        separators in prop::collection::vec(prop::sample::select(vec!["/", "", "-", " "]), 12),
    ) {
        let path: String = parts.iter().zip(&separators).flat_map(|(p, s)| [*p, *s]).collect();
        let placement = Placement::parse(&format!("0::{path}\n1:x:{path}"), &format!("1 1 1:1 {path} /etc/hosts rw - x y z"));
        if let Some(id) = &placement.container_id {
            prop_assert!(path.contains(&**id));
        }
    }
}
