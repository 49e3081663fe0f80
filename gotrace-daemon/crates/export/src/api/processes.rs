//! What the API says of all processes: the list (`gotrace.processes/1`), their histories (`gotrace.history/1`), and targets for scrapers of profiles.
//!
//! Input: the processes that are traced, and each one's last [`Interval`]. Output: JSON. What is not known is `null`, or
//! among a target's labels not there. Pure.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value as Json, json};

use super::Traced;
use crate::{history::History, prometheus::Board};
use gotrace_model::{Interval, Resource};

/// The schema of the list.
pub const SCHEMA: &str = "gotrace.processes/1";
/// The schema of their histories.
const HISTORY_SCHEMA: &str = "gotrace.history/1";

/// The last report of each process, by [`Resource::process`]: a pid can be another program's by now.
pub(super) type Latest = BTreeMap<u64, Arc<Interval>>;

/// The list, by ascending pid.
pub(super) fn list(traced: &[Traced], latest: &Latest, time_unix_nano: u64) -> Json {
    let processes: Vec<Json> =
        traced.iter().map(|one| process(one, latest.get(&one.resource.process()))).collect();
    json!({ "schema": SCHEMA, "time_unix_nano": time_unix_nano, "processes": processes })
}

/// One of the list.
pub(super) fn process(traced: &Traced, interval: Option<&Arc<Interval>>) -> Json {
    let Traced { pid, start_ticks, since_unix_nano, engine, level, resource, recorded } = traced;
    let interval = interval.map(|interval| &**interval);
    // What others know of it is on the reports.
    let resource = interval.map_or(resource, |interval| &interval.resource);
    let leaked = interval.map(Interval::leaked);
    json!({
        "pid": pid,
        "start_ticks": start_ticks,
        "service": resource.text("service.name"),
        "executable": resource.text("process.executable.path"),
        "go_version": resource.text("process.runtime.version"),
        "namespace": resource.text("k8s.namespace.name"),
        "pod": resource.text("k8s.pod.name"),
        "container": container(resource),
        "container_id": resource.text("container.id"),
        "engine": interval.map_or(*engine, |interval| interval.engine),
        "level": interval.map_or(*level, |interval| interval.level),
        "level_wanted": interval.map(|interval| interval.levels.wanted),
        "level_lowered_by": interval.and_then(|interval| interval.level_reason),
        "alive": interval.map(|interval| interval.alive),
        "alive_is_lower_bound": interval.map(|interval| interval.alive_is_lower_bound),
        "interval_ns": interval.map(|interval| interval.end_unix_nano.saturating_sub(interval.start_unix_nano)),
        "born": interval.map(|interval| interval.born),
        "died": interval.map(|interval| interval.died),
        "lost": interval.map(|interval| &interval.lost),
        "probe_cost_share": interval.and_then(|interval| interval.probe_cost_share),
        "leaks_proven": leaked.map(|(proven, _)| proven),
        "leak_suspects": leaked.map(|(_, suspected)| suspected),
        "recorded": recorded,
        "since_unix_nano": since_unix_nano,
        "reported_unix_nano": interval.map(|interval| interval.end_unix_nano),
    })
}

pub(super) fn container(resource: &Resource) -> Option<&str> {
    resource.text("k8s.container.name").or_else(|| resource.text("container.name"))
}

/// Of each process how many goroutines were alive.
pub(super) fn histories(traced: &[Traced], board: &Board) -> Json {
    let of = |one: &Traced| Some(history(one, &board.history(one.resource.process())?, true));
    json!({ "schema": HISTORY_SCHEMA, "processes": traced.iter().filter_map(of).collect::<Vec<_>>() })
}

/// Of a process how many goroutines were alive, and unless that is to be all were created and exited.
pub(super) fn history(traced: &Traced, history: &History, brief: bool) -> Json {
    let mut json = history.to_json(brief);
    if let Json::Object(fields) = &mut json {
        fields.insert("pid".into(), traced.pid.into());
        fields.insert("since_unix_nano".into(), traced.since_unix_nano.into());
        if !brief {
            fields.insert("schema".into(), HISTORY_SCHEMA.into());
        }
    }
    json
}

/// A target for each process, as Prometheus's discovery by HTTP has it. `address`: where the scraper is to ask.
pub(super) fn targets(traced: &[Traced], latest: &Latest, address: &str) -> Json {
    let targets = traced.iter().map(|traced| {
        let resource =
            latest.get(&traced.resource.process()).map_or(&traced.resource, |interval| &interval.resource);
        let mut labels = Map::new();
        let pid = traced.pid.to_string();
        let known = [
            ("__meta_gotrace_pid", Some(pid.as_str())),
            ("__meta_gotrace_service_name", resource.text("service.name")),
            ("__meta_gotrace_executable", resource.text("process.executable.path")),
            ("__meta_gotrace_go_version", resource.text("process.runtime.version")),
            ("__meta_gotrace_namespace", resource.text("k8s.namespace.name")),
            ("__meta_gotrace_pod", resource.text("k8s.pod.name")),
            ("__meta_gotrace_container", container(resource)),
            ("__meta_gotrace_container_id", resource.text("container.id")),
        ];
        for (name, value) in known {
            if let Some(value) = value {
                labels.insert(name.into(), value.into());
            }
        }
        // The profile's own path comes from the scraper: one label for all paths would give each profile the same.
        labels.insert("__profile_path_prefix__".into(), format!("/processes/{pid}").into());
        json!({ "targets": [address], "labels": labels })
    });
    targets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::{Value, samples};

    fn traced(pid: u32) -> Traced {
        let attributes = [("service.name", "shop"), ("process.runtime.version", "go1.24.11")];
        let attributes = attributes.map(|(name, value)| (name.into(), Value::Text(value.into())));
        let resource = Arc::new(Resource::new(attributes.into()));
        Traced {
            pid,
            start_ticks: 70,
            since_unix_nano: 17,
            engine: "events",
            level: "waits",
            resource,
            recorded: false,
        }
    }

    #[test]
    fn what_is_not_known_is_null() {
        let json = list(&[traced(7)], &Latest::new(), 18);
        assert_eq!((&json["schema"], &json["time_unix_nano"]), (&json!(SCHEMA), &json!(18)));
        let process = &json["processes"][0];
        for (field, value) in [
            ("pid", json!(7)),
            ("start_ticks", json!(70)),
            ("service", json!("shop")),
            ("go_version", json!("go1.24.11")),
            ("engine", json!("events")),
            ("level", json!("waits")),
            ("since_unix_nano", json!(17)),
        ] {
            assert_eq!(process[field], value, "{field}");
        }
        for field in ["executable", "pod", "container", "alive", "leaks_proven", "reported_unix_nano"] {
            assert!(process.as_object().expect("an object")[field].is_null(), "{field}");
        }
    }

    #[test]
    fn the_last_report_says_how_it_is_and_where() {
        let traced = traced(7);
        let pod = [("k8s.pod.name".into(), Value::Text("till-7f9".into()))].into();
        let resource = Arc::new(traced.resource.with_metadata(&pod));
        let mut interval = samples::interval(&resource, 1, Vec::new());
        (interval.pid, interval.alive, interval.engine, interval.level) = (7, 12, "snapshot", "sampled");
        let latest = Latest::from([(resource.process(), Arc::new(interval))]);
        let json = list(std::slice::from_ref(&traced), &latest, 18);
        let process = &json["processes"][0];
        assert_eq!((&process["alive"], &process["engine"]), (&json!(12), &json!("snapshot")));
        assert_eq!((&process["pod"], &process["leak_suspects"]), (&json!("till-7f9"), &json!(0)));
        let json = targets(&[traced], &latest, "node:9464");
        let expected = json!([{ "targets": ["node:9464"], "labels": {
            "__meta_gotrace_pid": "7",
            "__meta_gotrace_service_name": "shop",
            "__meta_gotrace_go_version": "go1.24.11",
            "__meta_gotrace_pod": "till-7f9",
            "__profile_path_prefix__": "/processes/7",
        }}]);
        assert_eq!(json, expected);
    }
}
