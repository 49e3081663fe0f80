//! The description is made from answers; every path of the API is in it; answers to random requests are as it says.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use serde::Serialize as _;
use serde_json::{Map, Value as Json, json};

use super::{
    openapi::{DOCUMENT, violations},
    pprof::{BYTES, LINES},
    testing::Shops,
    tests::{Served, serve},
    *,
};
use gotrace_model::{Value, samples};

/// A path, what it answers, names in its query, and statuses with what they mean.
struct Described {
    path: &'static str,
    what: &'static str,
    content_type: &'static str,
    query: &'static [(&'static str, &'static str)],
    statuses: &'static [u16],
}

const EVENTS: &str = "text/event-stream";
const READ: &[u16] = &[429, 500, 503, 504, 505];
const PROFILE: &[u16] = &[202, 400, 429, 500, 501, 503, 504, 505];

const fn described(path: &'static str, what: &'static str) -> Described {
    Described { path, what, content_type: JSON, query: &[], statuses: &[] }
}

const PATHS: [Described; 16] = [
    described("/api/v1/processes", "every process that is traced, with probes or by snapshots"),
    Described { statuses: &[500, 503], ..described("/api/v1/processes/{pid}", "its last report") },
    described("/api/v1/findings", "what is wrong, in all processes, the worst first"),
    described("/api/v1/processes/{pid}/findings", "the findings of one process"),
    described("/api/v1/history", "goroutines alive of each process within the last 15 minutes"),
    described("/api/v1/processes/{pid}/history", "the same of one, with goroutines created and exited"),
    Described {
        statuses: &[400],
        ..described("/api/v1/sd", "Prometheus HTTP service discovery, for scrapers of profiles")
    },
    described("/api/v1/openapi.json", "this description"),
    Described {
        content_type: LINES,
        statuses: READ,
        ..described("/api/v1/processes/{pid}/goroutines", "all goroutines now, equal ones together")
    },
    Described {
        content_type: LINES,
        statuses: READ,
        ..described(
            "/api/v1/processes/{pid}/graph",
            "who waits for which lock and channel, and who holds locks",
        )
    },
    Described {
        content_type: EVENTS,
        statuses: &[503],
        ..described("/api/v1/events", "changes as they come: processes, process, ended")
    },
    Described {
        content_type: LINES,
        query: &[
            ("level", "held meanwhile: lifecycle, waits or full"),
            ("every_ms", "a report so often at least, 1000 to 3600000"),
            ("format", "json or text"),
            ("system", "1: with the runtime's own goroutines"),
        ],
        statuses: &[400, 405, 500, 503],
        ..described("/api/v1/processes/{pid}/follow", "its reports as they come, on the socket alone")
    },
    Described { content_type: TEXT, ..described("/processes/{pid}/debug/pprof", "what profiles there are") },
    Described { content_type: TEXT, ..described("/processes/{pid}/debug/pprof/", "what profiles there are") },
    Described {
        content_type: BYTES,
        query: &[
            ("debug", "0 (gzip, for go tool pprof), 1 or 2 (text)"),
            ("seconds", "of block: what came within so many, 1 to 25"),
            ("all", "1: of block, sleep and network too"),
            ("fresh", "1: of goroutineleak, a proof that is made now"),
        ],
        statuses: PROFILE,
        ..described(
            "/processes/{pid}/debug/pprof/{profile}",
            "goroutine, goroutineleak or block, as net/http/pprof has it",
        )
    },
    Described {
        content_type: TEXT,
        statuses: &[204],
        ..described("/login", "gives a browser the cookie that stands for the token")
    },
];

/// What statuses mean.
fn meaning(status: u16) -> &'static str {
    match status {
        200 => "the answer",
        202 => "it takes longer: ask again after Retry-After",
        204 => "the cookie",
        400 => "the query cannot be followed; the text says why",
        401 => "a token is needed",
        403 => "not for this client",
        404 => "there is no such process, or profile",
        405 => "not asked in this way",
        429 => "it is being read already: ask again after Retry-After",
        500 => "it failed; the text says why",
        501 => "not available; the text says what is",
        503 => "not now; the text says why",
        504 => "not read in time",
        _ => "ask with HTTP/1.1",
    }
}

/// Fields that hold something by its name.
const MAPS: [&str; 12] = [
    "lost",
    "repaired",
    "spans_sampled_out",
    "events",
    "waiting",
    "waits",
    "level_ns",
    "by_status",
    "blocked",
    "cycles",
    "stop_the_world_ns",
    "labels",
];

/// What describes all of these values.
fn inferred(name: &str, values: &[&Json]) -> Json {
    let kind = |value: &Json| match value {
        Json::Null => None,
        Json::Bool(_) => Some("boolean"),
        Json::Number(n) if n.is_f64() => Some("number"),
        Json::Number(_) => Some("integer"),
        Json::String(_) => Some("string"),
        Json::Array(_) => Some("array"),
        Json::Object(_) => Some("object"),
    };
    let mut kinds: Vec<&str> = values.iter().filter_map(|value| kind(value)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut schema = Map::new();
    // What nobody has seen may be anything.
    if !kinds.is_empty() {
        kinds.push("null");
        schema.insert("type".into(), json!(kinds));
    }
    let fields: Vec<&Map<String, Json>> = values.iter().filter_map(|value| value.as_object()).collect();
    if kinds.contains(&"object") {
        let all: Vec<&Json> = fields.iter().flat_map(|fields| fields.values()).collect();
        if MAPS.contains(&name) {
            schema.insert("additionalProperties".into(), inferred("", &all));
        } else {
            let mut named: BTreeMap<&String, Vec<&Json>> = BTreeMap::new();
            for (name, value) in fields.iter().flat_map(|fields| fields.iter()) {
                named.entry(name).or_default().push(value);
            }
            let required: Vec<_> =
                named.iter().filter(|(_, of)| of.len() == fields.len()).map(|(name, _)| name).collect();
            schema.insert("required".into(), json!(required));
            let of = |(name, of): (&String, &Vec<&Json>)| (name.clone(), inferred(name, of));
            schema.insert("properties".into(), Json::Object(named.iter().map(|(n, v)| of((n, v))).collect()));
        }
    }
    if kinds.contains(&"array") {
        let items: Vec<&Json> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
        schema.insert("items".into(), inferred("", &items));
    }
    Json::Object(schema)
}

/// Two processes of which all is known, and one that has not reported.
fn served() -> Served {
    let mut whole = samples::whole();
    let mut attributes = whole.resource.attributes.clone();
    let known = [
        "service.name",
        "process.executable.path",
        "process.runtime.version",
        "k8s.namespace.name",
        "k8s.pod.name",
        "k8s.container.name",
        "container.id",
    ];
    attributes.extend(known.map(|name| (name.into(), Value::Text(name.into()))));
    whole.resource = Arc::new(Resource::new(attributes));
    let mut shops = Shops::new([(whole.pid, Ok(())), (8, Ok(()))]);
    shops.resource = Arc::clone(&whole.resource);
    shops.waited = Some(AtomicU64::new(5));
    let served = serve(shops);
    served.board.show(&Arc::new(whole));
    served
}

/// What a path answers, value by value.
fn answers(served: &Served, path: &str) -> Vec<Json> {
    let answer = served.get(&path.replace("{pid}", &samples::whole().pid.to_string()));
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The name of a path's schema.
fn schema_name(path: &str) -> String {
    // Those of one process are as those of all.
    let path = if path.ends_with("/findings") { "/api/v1/findings" } else { path };
    let words = path.split(['/', '{', '}']).filter(|word| !word.is_empty());
    words.skip(2).collect::<Vec<_>>().join("_")
}

fn has_schema(described: &Described) -> bool {
    described.path != openapi::PATH
        && (described.content_type == JSON
            || described.path.ends_with("goroutines")
            || described.path.ends_with("graph"))
}

fn made(served: &Served) -> Json {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for described in &PATHS {
        let Described { path, what, content_type, query, statuses } = described;
        let mut content = json!({ "schema": { "type": "string" } });
        if has_schema(described) {
            let name = schema_name(path);
            if !path.ends_with("{pid}/findings") {
                let all = answers(served, path);
                let mut schema = inferred("", &all.iter().collect::<Vec<_>>());
                schema["type"] = all[0].as_object().map_or("array", |_| "object").into();
                schemas.insert(name.clone(), schema);
            }
            content = json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } });
        } else if *path == openapi::PATH {
            content = json!({ "schema": { "type": "object" } });
        }
        let is_post = path.ends_with("/follow") || *path == "/login";
        let of_process: &[u16] = if path.contains("{pid}") || *path == "/login" { &[404] } else { &[] };
        let mut responses = Map::new();
        if *path != "/login" {
            let content = json!({ (*content_type): content });
            responses.insert("200".into(), json!({ "description": meaning(200), "content": content }));
        }
        for status in [&[401, 403], of_process, *statuses].concat() {
            responses.insert(status.to_string(), json!({ "description": meaning(status) }));
        }
        let in_path = path.split(['{', '}']).skip(1).step_by(2).map(|name| {
            let kind = if name == "pid" { "integer" } else { "string" };
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": kind } })
        });
        let in_query = query.iter().map(|(name, what)| {
            json!({ "name": name, "in": "query", "description": what, "schema": { "type": "string" } })
        });
        let parameters: Vec<Json> = in_path.chain(in_query).collect();
        let how = json!({ "summary": what, "parameters": parameters, "responses": responses });
        paths.insert((*path).into(), json!({ (if is_post { "post" } else { "get" }): how }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gotrace daemon",
            "version": "1",
            "description": "What gotrace daemon answers on http.listen and http.socket. docs/formats.md says what each field \
                            means; null is what is not known. Of application/x-ndjson the schema is that of each line.",
        },
        "servers": [{ "url": "http://localhost:9464" }],
        "security": [{}, { "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

#[test]
fn the_description_is_made_from_answers() {
    let served = served();
    let mut text = Vec::new();
    let narrow = serde_json::ser::PrettyFormatter::with_indent(b" ");
    made(&served).serialize(&mut serde_json::Serializer::with_formatter(&mut text, narrow)).expect("JSON");
    let made = String::from_utf8(text).expect("text") + "\n";
    served.stop();
    if std::env::var_os("GOTRACE_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/openapi.json");
        std::fs::write(path, made).expect("written");
        return;
    }
    assert!(made == DOCUMENT, "openapi.json is not what answers are: run the test with GOTRACE_BLESS=1");
}

#[test]
fn every_path_is_described() {
    let source = concat!(include_str!("mod.rs"), "\n");
    let routed = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut routed: Vec<&str> = routed.chain([page::LOGIN, openapi::PATH]).collect();
    let mut told: Vec<&str> = PATHS.iter().map(|described| described.path).collect();
    routed.sort_unstable();
    told.sort_unstable();
    assert_eq!(routed, told);
}

#[test]
fn answers_to_random_requests_are_as_described() {
    let (served, document) = (served(), serde_json::from_str::<Json>(DOCUMENT).expect("JSON"));
    let pid = samples::whole().pid.to_string();
    let mut random = fastrand::Rng::with_seed(7);
    let pids = [&pid, "8", "9", "0", "x", "4294967296", "007", "%00", "-1", "..", ""];
    let profiles = ["goroutine", "goroutineleak", "block", "mutex", "trace", "heap", "%2e%2e", "x"];
    let values = ["", "0", "1", "2", "3", "-1", "x", "25", "26", "18446744073709551616", "%ff", "1&1"];
    let mut good = 0;
    for _ in 0..600 {
        let Described { path, query, content_type, .. } = &PATHS[random.usize(..PATHS.len())];
        // One ends when its client does, and what is posted is not for clients of the network.
        if *content_type == EVENTS || path.ends_with("/follow") || *path == page::LOGIN {
            continue;
        }
        let mut asked = path
            .replace("{pid}", if random.bool() { &pid } else { pids[random.usize(..pids.len())] })
            .replace("{profile}", profiles[random.usize(..profiles.len())]);
        for (n, (name, _)) in query.iter().enumerate().filter(|_| random.bool()).collect::<Vec<_>>() {
            // Nobody waits for seconds here.
            let value = values[random.usize(..if *name == "seconds" { 4 } else { values.len() })];
            let value = if *name == "seconds" && value == "1" { "0" } else { value };
            asked += &format!("{}{name}={value}", if n == 0 || !asked.contains('?') { "?" } else { "&" });
        }
        let answer = served.get(&asked);
        let how = &document["paths"][*path]["get"]["responses"][answer.status.to_string()];
        assert!(how.is_object(), "{asked}: {} is not described: {}", answer.status, answer.text());
        if answer.status != 200 {
            assert!(
                answer.head.contains("text/plain") && !answer.body.is_empty(),
                "{asked}: {}",
                answer.head
            );
            continue;
        }
        good += 1;
        let schema = &how["content"][*content_type]["schema"];
        for line in
            answer.text().lines().filter(|_| [JSON, LINES].contains(content_type) && *path != openapi::PATH)
        {
            let value: Json = serde_json::from_str(line).expect("JSON");
            assert_eq!(violations(&document, schema, &value), Vec::<String>::new(), "{asked}");
        }
    }
    assert!(good > 100, "{good}");
    served.stop();
}

#[test]
fn what_is_not_as_described_is_found() {
    let document = json!({ "a": { "type": "object", "required": ["n"], "properties": { "n": { "type": ["integer", "null"] } } } });
    let schema = json!({ "type": "array", "items": { "$ref": "#/a" } });
    let of = |value: Json| violations(&document, &schema, &value);
    assert_eq!(of(json!([{ "n": 1 }, { "n": null, "more": 2 }])), Vec::<String>::new());
    assert_eq!(of(json!([{ "n": "1" }])), ["[0].n: is string, not [\"integer\",\"null\"]"]);
    assert_eq!(of(json!([{}])), ["[0]: has no n"]);
    assert_eq!(of(json!({})), [": is object, not \"array\""]);
}
