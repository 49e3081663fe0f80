//! A process as OpenTelemetry's resource: what the process itself, the host and its surroundings tell.
//!
//! Precedence, lowest first: gotrace's own `OTEL_RESOURCE_ATTRIBUTES` (what holds for the whole host,
//! so never the names that identify one service or process), the name of the file, names that the
//! surroundings suggest for the service, the target's `OTEL_RESOURCE_ATTRIBUTES` but for names that gotrace
//! gives ([`crate::claims`]), what is measured, what the surroundings are ([`crate`], put on by
//! [`Resource::with_metadata`]), and the target's `OTEL_SERVICE_NAME`. What looks like a secret is left out of
//! all of it ([`crate::redact`]), and all of it is bounded.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{
    Placement,
    claims::{Claims, MAX_ATTRIBUTES, MAX_VALUE},
    redact,
};
use gotrace_model::{Resource, Value, printable::shortened};
use gotrace_process::Target;

/// What the executable says about itself; see `gobin`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GoFacts<'a> {
    /// Go's version, `go1.24.3`.
    pub version: Option<&'a str>,
    /// The main module's version, `v1.2.3`; `(devel)` is left out.
    pub module_version: Option<&'a str>,
    /// Go's build id.
    pub build_id: Option<&'a str>,
}

/// What to leave in or out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceOptions {
    /// Add `process.command_args`. Off by default: arguments can hold secrets.
    pub command_args: bool,
}

/// Bytes of a text at most: as long as a path may be.
const MAX_TEXT: usize = 4096;
/// Arguments that are exported, and bytes of each.
const MAX_ARGUMENTS: usize = 64;
const MAX_ARGUMENT: usize = 512;

/// The resource of `target`, as far as the process itself, its host and its container's path tell. What
/// others know is added by [`Resource::with_metadata`].
#[must_use]
pub fn resource(target: &Target, go: GoFacts<'_>, options: ResourceOptions) -> Resource {
    let mut resource = Resource::default();
    let own = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    for (key, value) in parse_attributes(&own) {
        if !["service.name", "service.version", "service.instance.id"].contains(&key.as_str())
            && !key.starts_with("process.")
        {
            set(&mut resource, &key, &value);
        }
    }
    set(&mut resource, "service.name", &target.executable_name());
    set(&mut resource, "service.instance.id", &instance_id(target));
    if let Some(version) = go.module_version.filter(|v| !v.is_empty() && *v != "(devel)") {
        set(&mut resource, "service.version", version);
    }
    let theirs = target.environment_variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let claims = Claims::of(parse_attributes(&theirs));
    if !claims.is_whole() {
        tracing::debug!(
            pid = target.pid(),
            given = claims.given,
            beyond = claims.beyond,
            cut = claims.cut,
            "OTEL_RESOURCE_ATTRIBUTES of the process applied only in part: names set by gotrace, more than \
             {MAX_ATTRIBUTES} attributes and values that are too long are cut"
        );
    }
    for (key, value) in &claims.attributes {
        set(&mut resource, key, value);
    }
    if let Some(name) = target.environment_variable("OTEL_SERVICE_NAME").filter(|n| !n.is_empty()) {
        set_within(&mut resource, "service.name", &name, MAX_VALUE);
    }
    measured(&mut resource, target, go, options);
    resource.with_metadata(&Placement::of(target).attributes())
}

/// What nobody can say better than the kernel and the executable.
fn measured(resource: &mut Resource, target: &Target, go: GoFacts<'_>, options: ResourceOptions) {
    // The pid that the process itself knows, which is its own namespace's.
    let pid = target.namespace_pids.last().copied().unwrap_or_else(|| target.pid());
    resource.attributes.insert("process.pid".into(), Value::Int(pid.into()));
    set(resource, "process.executable.name", &target.executable_name());
    set(resource, "process.executable.path", &target.executable.to_string_lossy());
    set_within(resource, "process.owner", &owner(target), MAX_VALUE);
    set(resource, "process.runtime.name", "go");
    if let Some(version) = go.version {
        set(resource, "process.runtime.version", version);
    }
    if let Some(build_id) = go.build_id.filter(|id| !id.is_empty()) {
        set(resource, "process.executable.build_id.go", build_id);
    }
    if options.command_args
        && let Ok(arguments) = target.arguments()
    {
        let list = shown_arguments(&arguments);
        resource.attributes.insert("process.command_args".into(), Value::List(list));
    }
    let uname = rustix::system::uname();
    set(resource, "host.name", &uname.nodename().to_string_lossy());
    set(
        resource,
        "host.arch",
        match uname.machine().to_bytes() {
            b"x86_64" => "amd64",
            b"aarch64" => "arm64",
            _ => std::env::consts::ARCH,
        },
    );
    if let Some(id) = machine_id() {
        set(resource, "host.id", &id);
    }
    set(resource, "telemetry.distro.name", "gotrace");
    set(resource, "telemetry.distro.version", env!("CARGO_PKG_VERSION"));
}

/// The inode of the first PID namespace (`include/linux/proc_ns.h`, PROC_PID_INIT_INO).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The host's id. A container has no file with it, but sees the host's through the first process where it
/// shares the host's PID namespace.
fn machine_id() -> Option<String> {
    let valid = |text: &[u8]| {
        let id = std::str::from_utf8(text).ok()?.trim();
        (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
    };
    let own = std::fs::read("/etc/machine-id").ok();
    own.and_then(|text| valid(&text)).or_else(|| {
        let ours = rustix::fs::stat("/proc/self/ns/pid").ok()?.st_ino;
        let first = (ours == FIRST_PID_NAMESPACE).then(|| gotrace_process::root::process(1)).flatten()?;
        valid(&gotrace_process::root::read(first, "etc/machine-id", 64)?)
    })
}

fn set(resource: &mut Resource, key: &str, value: &str) {
    set_within(resource, key, value, MAX_TEXT);
}

/// At most so many bytes; cut when no secret is in it any more.
fn set_within(resource: &mut Resource, key: &str, value: &str, most: usize) {
    let value = redact::value(key, value);
    resource.attributes.insert(key.into(), Value::Text(shortened(&value, most).into()));
}

/// Arguments as they are exported; a list that was cut ends in `…`.
fn shown_arguments(arguments: &[String]) -> Vec<Arc<str>> {
    let some = redact::arguments(arguments.get(..MAX_ARGUMENTS).unwrap_or(arguments));
    let mut shown: Vec<Arc<str>> = some.iter().map(|a| shortened(a, MAX_ARGUMENT).into()).collect();
    if arguments.len() > MAX_ARGUMENTS {
        shown.push("…".into());
    }
    shown
}

/// A UUID made of what identifies the process: the same from two agents, or from one restarted.
fn instance_id(target: &Target) -> String {
    let identity = &target.identity;
    let digest = Sha256::new()
        .chain_update(b"gotrace service.instance.id\0")
        .chain_update(identity.boot_id.as_bytes())
        .chain_update([0])
        .chain_update(identity.pid.to_le_bytes())
        .chain_update(identity.start_ticks.to_le_bytes())
        .finalize();
    let mut b = [0u8; 16];
    b.copy_from_slice(&digest[..16]);
    // Version 8 (contents of one's own), variant of RFC 9562.
    b[6] = b[6] & 0x0f | 0x80;
    b[8] = b[8] & 0x3f | 0x80;
    let h = hex::encode(b);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

/// The user's name as the target's own `/etc/passwd` has it, else the number.
fn owner(target: &Target) -> String {
    let uid = target.identity.uid.to_string();
    let passwd = target.read_in_its_root("etc/passwd").unwrap_or_default();
    String::from_utf8_lossy(&passwd)
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid && !name.is_empty()).then(|| name.to_owned())
        })
        .unwrap_or(uid)
}

/// `key=value,key=value`, percent-encoded (OpenTelemetry's environment variables, W3C Baggage). As
/// the specification wants it, one bad pair discards the whole.
fn parse_attributes(text: &str) -> impl Iterator<Item = (String, String)> {
    // Once to see that all of them are good, and again one by one: a process may have set megabytes of it.
    let good = pairs(text).all(|pair| pair.is_some());
    pairs(if good { text } else { "" }).flatten()
}

/// The pairs, decoded; `None` for a bad one.
fn pairs(text: &str) -> impl Iterator<Item = Option<(String, String)>> {
    text.split(',').filter(|pair| !pair.trim().is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (percent_decode(key.trim())?, percent_decode(value.trim())?);
        (!key.is_empty()).then_some((key, value))
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let mut byte = [0];
            hex::decode_to_slice(tail.get(..2)?, &mut byte).ok()?;
            bytes.push(byte[0]);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(variables: &[(&str, &str)]) -> (Child, Target) {
        let child = Command::new("sleep")
            .arg("60")
            .env_remove("OTEL_SERVICE_NAME")
            .env_remove("OTEL_RESOURCE_ATTRIBUTES")
            .envs(variables.iter().copied())
            .spawn()
            .expect("sleep starts");
        // `spawn` returns before the kernel has laid out the new program's environment.
        let begin = std::time::Instant::now();
        while std::fs::read(format!("/proc/{}/environ", child.id())).expect("it lives").is_empty() {
            assert!(begin.elapsed().as_secs() < 120, "its environment never came");
            std::thread::yield_now();
        }
        let target = Target::open(child.id()).expect("lives");
        (child, target)
    }

    fn text(resource: &Resource, key: &str) -> String {
        match resource.attributes.get(key) {
            Some(Value::Text(text)) => text.to_string(),
            other => panic!("{key}: {other:?}"),
        }
    }

    fn end(mut child: Child) {
        child.kill().expect("can be ended");
        child.wait().expect("ends");
    }

    #[test]
    fn the_target_names_its_service() {
        for (variables, name) in [
            (&[][..], "sleep"),
            (&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop%20front,a=b")][..], "shop front"),
            (
                &[("OTEL_SERVICE_NAME", "first"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=second")][..],
                "first",
            ),
            (&[("OTEL_SERVICE_NAME", ""), ("OTEL_RESOURCE_ATTRIBUTES", "broken")][..], "sleep"),
        ] {
            let (child, target) = sleeper(variables);
            let found = resource(&target, GoFacts::default(), ResourceOptions::default());
            end(child);
            assert_eq!(text(&found, "service.name"), name, "{variables:?}");
            assert_eq!(found.attributes["process.pid"], Value::Int(target.pid().into()));
            assert!(!found.attributes.contains_key("process.command_args"));
            assert!(!found.attributes.contains_key("service.version"));
        }
    }

    #[test]
    fn surroundings_win_but_for_the_service() {
        let claims = "k8s.pod.name=another,service.namespace=mine,team=blue,api.key=hunter2";
        let (child, target) = sleeper(&[("OTEL_RESOURCE_ATTRIBUTES", claims)]);
        let found = resource(&target, GoFacts::default(), ResourceOptions::default());
        end(child);
        let told = [
            ("k8s.pod.name", "shop-1"),
            ("host.name", "node-a"),
            ("service.name", "shop"),
            ("service.namespace", "sales"),
            ("service.version", "2.0"),
        ];
        let metadata = told.map(|(name, value)| (Arc::from(name), Value::Text(value.into()))).into();
        let known = found.with_metadata(&metadata);
        for (name, value) in [
            ("k8s.pod.name", "shop-1"),
            ("host.name", "node-a"),
            ("service.name", "shop"),
            ("service.namespace", "mine"),
            ("service.version", "2.0"),
            ("team", "blue"),
            ("api.key", redact::REDACTED),
        ] {
            assert_eq!(text(&known, name), value, "{name}");
        }
        assert_eq!(known.process(), found.process());
    }

    #[test]
    fn what_a_process_says_never_replaces_what_is_known_and_is_bounded() {
        let mut claims = String::from(
            "service.instance.id=forged,container.id=forged,k8s.pod.name=forged,process.pid=1,host.name=forged,\
             telemetry.distro.name=forged,os.type=forged,gotrace.x=forged,aws.ecs.task.arn=forged,\
             service.name=shop,deployment.environment.name=prod",
        );
        for n in 0..1114 {
            claims.push_str(&format!(",key{n}={}", "v".repeat(100)));
        }
        let long = "s".repeat(100_000);
        let (child, target) = sleeper(&[("OTEL_RESOURCE_ATTRIBUTES", &claims), ("OTEL_SERVICE_NAME", &long)]);
        let found = resource(&target, GoFacts::default(), ResourceOptions::default());
        let without = sleeper(&[]);
        let plain = resource(&without.1, GoFacts::default(), ResourceOptions::default());
        end(child);
        end(without.0);
        for (name, value) in &found.attributes {
            assert!(!matches!(value, Value::Text(t) if t.contains("forged")), "{name}");
        }
        assert_eq!(text(&found, "service.instance.id").len(), 36);
        assert_eq!(text(&found, "service.name").len(), MAX_VALUE);
        assert_eq!(text(&found, "deployment.environment.name"), "prod");
        let more = found.attributes.len() - plain.attributes.len();
        assert_eq!(more, MAX_ATTRIBUTES - 1, "service.name is among both");
    }

    #[test]
    fn arguments_are_bounded() {
        let many: Vec<String> = (0..1000).map(|n| format!("{n}{}", "a".repeat(5000))).collect();
        let shown = shown_arguments(&many);
        assert_eq!((shown.len(), &*shown[64]), (MAX_ARGUMENTS + 1, "…"));
        assert!(shown.iter().all(|a| a.len() <= MAX_ARGUMENT && a.ends_with('…')));
        assert_eq!(shown_arguments(&many[..2]).len(), 2);
    }

    #[test]
    fn what_the_executable_says_is_in_it() {
        let (child, target) = sleeper(&[]);
        let go = GoFacts { version: Some("go1.24.3"), module_version: Some("v1.2.3"), build_id: Some("x/y") };
        let found = resource(&target, go, ResourceOptions { command_args: true });
        end(child);
        assert_eq!(text(&found, "process.runtime.version"), "go1.24.3");
        assert_eq!(text(&found, "service.version"), "v1.2.3");
        assert_eq!(text(&found, "process.executable.build_id.go"), "x/y");
        assert_eq!(found.attributes["process.command_args"], Value::List(vec!["sleep".into(), "60".into()]));
        assert_eq!(text(&found, "service.instance.id").len(), 36);
        assert_eq!(text(&found, "telemetry.distro.name"), "gotrace");
    }

    #[test]
    fn attributes_are_decoded_or_discarded_whole() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let parsed = |text: &str| parse_attributes(text).collect::<Vec<_>>();
        assert_eq!(parsed("a=1, b=%2C%3d ,"), [pair("a", "1"), pair("b", ",=")]);
        for bad in ["a", "a=1,b", "=1", "a=%2", "a=%zz", "a=%ff"] {
            assert_eq!(parsed(bad), [], "{bad}");
        }
    }
}
