//! The page over real HTTP: its files and their policy, the token that it asks for, and what it is drawn from.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    sync::Arc,
};

use serde_json::{Value as Json, json};

use super::{
    testing::Shops,
    tests::{PATIENCE, Served, ask, raw, serve},
    *,
};
use gotrace_model::{Interval, Leak, Suspected, Value, samples};

const SECRET: &str = "0123456789abcdef";

#[test]
fn the_page_comes_with_its_policy() {
    let served = serve(Shops::new([]));
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/assets/page.js", "text/javascript; charset=utf-8"),
        ("/assets/page.css", "text/css; charset=utf-8"),
        ("/assets/icon.svg", "image/svg+xml"),
    ] {
        let answer = served.get(path);
        assert!(answer.status == 200 && !answer.body.is_empty(), "{path}: {}", answer.status);
        let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
        for header in [
            format!("\r\ncontent-type: {kind}\r\n"),
            format!("\r\ncontent-security-policy: {policy}\r\n"),
            "\r\nx-content-type-options: nosniff\r\n".into(),
            "\r\nreferrer-policy: no-referrer\r\n".into(),
            "\r\ncache-control: no-cache\r\n".into(),
        ] {
            assert!(answer.head.contains(&header), "{path}: {header}: {}", answer.head);
        }
        let tag = answer.head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
        for known in [tag.to_owned(), format!("\"x\", W/{tag}")] {
            let head = format!("Host: localhost\r\nIf-None-Match: {known}\r\n");
            let again = ask(served.server.address().expect("an address"), path, &head);
            assert_eq!((again.status, again.body.len()), (304, 0), "{path}: {known}");
            assert!(
                again.head.contains("content-security-policy") && again.head.contains(tag),
                "{}",
                again.head
            );
        }
        let head = format!("Host: localhost\r\nIf-None-Match: \"{}\"\r\n", "0".repeat(32));
        assert_eq!(ask(served.server.address().expect("an address"), path, &head).status, 200, "{path}");
    }
    for path in [
        "/index.html",
        "/assets",
        "/assets/",
        "/assets/page.js/",
        "/assets/page.js.map",
        "/assets/../index.html",
        "/assets/../../Cargo.toml",
        "/assets/..%2f..%2fetc%2fpasswd",
        "/assets/%2e%2e/index.html",
        "//assets/page.js",
        "/ASSETS/page.js",
        "/assets/page.js%00",
    ] {
        let answer = served.get(path);
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
    served.stop();
}

#[test]
fn the_page_takes_nothing_from_elsewhere() {
    let served = serve(Shops::new([]));
    let document = served.get("/").text();
    for part in document.split(['\"', '\'']).filter(|part| part.contains("assets/")) {
        let path = part.trim_start_matches('.');
        assert_eq!(served.get(path).status, 200, "{part}");
    }
    for forbidden in ["//", " style=", "<style", " on", "data:", "<base", "http-equiv"] {
        assert!(!document.contains(forbidden), "{forbidden}: {document}");
    }
    assert!(!document.contains("<script>") && document.matches("<script").count() == 1, "{document}");
    let bundle = ["/assets/page.js", "/assets/page.css", "/assets/icon.svg"].map(|path| served.get(path));
    let size: usize = bundle.iter().map(|file| file.body.len()).sum();
    assert!(size < 500 << 10, "{size} bytes");
    let [script, style, _] = bundle.map(|file| file.text());
    for (text, forbidden) in
        [(&style, "@import"), (&style, "url("), (&script, "eval("), (&script, "sourceMappingURL")]
    {
        assert!(!text.contains(forbidden), "{forbidden}");
    }
    // Of addresses it has the names of XML's languages only.
    for (at, _) in script.match_indices("http://") {
        assert!(script[at..].starts_with("http://www.w3.org/"), "{}", &script[at..at + 40]);
    }
    assert!(!script.contains("https://"));
    served.stop();
}

/// Sends a POST, and gives the status and the cookie that comes.
fn login(served: &Served, headers: &str) -> (String, Option<String>) {
    let request = format!("POST /login HTTP/1.1\r\n{headers}\r\n");
    let answer = raw(served.server.address().expect("an address"), &request);
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).map(str::to_owned);
    (answer.split(' ').nth(1).unwrap_or_default().to_owned(), cookie)
}

#[test]
fn the_page_asks_for_the_token_and_keeps_what_stands_for_it() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let address = served.server.address().expect("an address");
    let bearer = format!("Host: localhost\r\nAuthorization: Bearer {SECRET}\r\n");
    assert_eq!(login(&served, &bearer), ("404".into(), None), "there is no token");
    let token = Token::new(SECRET.as_bytes()).ok();
    served.access.set(AccessRules { token: token.clone(), require_token: true, ..AccessRules::default() });
    assert_eq!(served.get("/").status, 200);
    assert_eq!(served.get("/assets/page.js").status, 200);
    for path in ["/api/v1/processes", "/api/v1/events", "/processes/7/debug/pprof/goroutine", "/nothing"] {
        assert_eq!(served.get(path).status, 401, "{path}");
    }
    // A browser that is told of Basic would ask by itself, not the page.
    let script = ask(
        address,
        "/api/v1/history",
        "Host: localhost\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Dest: empty\r\n",
    );
    assert!(
        script.head.contains("www-authenticate: bearer") && !script.head.contains("basic"),
        "{}",
        script.head
    );
    let wrong = "Host: localhost\r\nAuthorization: Bearer 0123456789abcdeg\r\n";
    for headers in ["Host: localhost\r\n", wrong] {
        assert_eq!(login(&served, headers), ("401".into(), None));
    }
    let elsewhere = format!("{bearer}Sec-Fetch-Site: cross-site\r\n");
    assert_eq!(login(&served, &elsewhere), ("403".into(), None));
    let (status, cookie) = login(&served, &bearer);
    let cookie = cookie.expect("a cookie");
    assert!(status == "204" && cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{status}: {cookie}");
    assert!(!cookie.contains(SECRET));
    let cookie = cookie.split(';').next().expect("a name and a value");
    let with = |cookie: &str| {
        ask(address, "/api/v1/processes", &format!("Host: node\r\nCookie: {cookie}\r\n")).status
    };
    assert_eq!((with(cookie), with(&format!("{cookie}0"))), (200, 401));
    // Another token, another cookie.
    let other = Token::new(b"fedcba9876543210").ok();
    served.access.set(AccessRules { token: other, ..AccessRules::default() });
    assert_eq!(with(cookie), 403);
    // On loopback without a token that is needed, a wrong one is still wrong.
    assert_eq!(login(&served, &bearer), ("401".into(), None));
    served.stop();
}

#[test]
fn a_link_elsewhere_leads_to_the_page_and_to_nothing_else() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let status = |path: &str, more: &str| {
        let head = format!("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n{more}");
        ask(served.server.address().expect("an address"), path, &head).status
    };
    let link = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    assert_eq!(status("/", link), 200);
    for (path, how) in [
        ("/", ""),
        ("/", "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n"),
        ("/", "Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"),
        ("/assets/page.js", link),
        ("/assets/page.js", "Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\n"),
        ("/api/v1/processes", link),
        ("/api/v1/events", link),
        ("/processes/7/debug/pprof/goroutine", link),
    ] {
        assert_eq!(status(path, how), 403, "{path}: {how}");
    }
    assert_eq!(served.processes.captured.load(Ordering::Relaxed), 0);
    served.stop();
}

/// An interval with 40 leaked goroutines, and some that may be.
fn leaking(resource: &Arc<Resource>) -> Interval {
    let mut interval = samples::interval(resource, 1, Vec::new());
    let entry = samples::location("main.worker", "/src/main.go", 12);
    let leak = Leak {
        entry: Arc::clone(&entry),
        created_by: None,
        waits_at: Some(samples::location("main.waitForever", "/src/main.go", 122)),
        reason: "chan receive".into(),
        count: 40,
        retained_bytes: Some(4096),
        goids: (1..=40).collect(),
        growth_per_second: Some((0.5, 1.5)),
        others: Vec::new(),
        place: None,
        holders: Vec::new(),
        why: "why".into(),
        suppressed: None,
    };
    let accepted =
        Leak { suppressed: Some("by design".into()), count: 900, goids: Vec::new(), ..leak.clone() };
    let suspect = |verdict, count| Suspected {
        verdict,
        entry: Arc::clone(&entry),
        created_by: None,
        waits_at: None,
        reason: "select".into(),
        count,
        growth_per_second: None,
        standing_ns: 1,
        why: "why".into(),
        goids: vec![3],
        place: None,
        holders: Vec::new(),
        suppressed: None,
    };
    interval.leaks = vec![accepted, leak];
    interval.suspects = vec![suspect("growing", 1000), suspect("deadlock", 2)];
    interval
}

#[test]
fn findings_of_all_processes_come_the_worst_first() {
    let served = serve(Shops::new([(7, Ok(())), (8, Ok(()))]));
    let none = served.get("/api/v1/findings").json();
    assert_eq!((&none["schema"], &none["findings"]), (&json!("gotrace.findings/1"), &json!([])));
    served.board.show(&Arc::new(leaking(&served.processes.resource)));
    let all = served.get("/api/v1/findings").json();
    let findings = all["findings"].as_array().expect("a list");
    // Both processes of the test have the same report.
    let told: Vec<_> =
        findings.iter().map(|f| (f["verdict"].as_str().unwrap_or_default(), &f["count"])).collect();
    let expected = [
        ("deadlock", &json!(2)),
        ("deadlock", &json!(2)),
        ("unreachable", &json!(40)),
        ("unreachable", &json!(40)),
        ("growing", &json!(1000)),
        ("growing", &json!(1000)),
        ("unreachable", &json!(900)),
        ("unreachable", &json!(900)),
    ];
    assert_eq!(told, expected);
    let leak = &findings[2];
    assert_eq!(leak["goids"].as_array().map(Vec::len), Some(16), "{leak}");
    for (field, value) in [
        ("pid", json!(7)),
        ("service", json!("shop")),
        ("pod", Json::Null),
        ("retained_bytes", json!(4096)),
        ("growth_per_second", json!({"low": 0.5, "high": 1.5})),
        ("suppressed", Json::Null),
    ] {
        assert_eq!(leak[field], value, "{field}");
    }
    assert_eq!(leak["waits_at"]["function"], "main.waitForever");
    let one = served.get("/api/v1/processes/8/findings").json();
    assert_eq!(one["findings"].as_array().map(Vec::len), Some(4));
    assert_eq!((&one["findings"][0]["pid"], &one["findings_left_out"]), (&json!(8), &json!(0)));
    assert_eq!(served.get("/api/v1/processes/9/findings").status, 404);
    served.stop();
}

#[test]
fn histories_begin_with_the_first_report() {
    let served = serve(Shops::new([(7, Ok(()))]));
    assert_eq!(served.get("/api/v1/history").json()["processes"], json!([]));
    assert_eq!(served.get("/api/v1/processes/7/history").json()["alive"], json!([]));
    let mut interval = samples::interval(&served.processes.resource, 1, Vec::new());
    (interval.alive, interval.born, interval.died) = (12, 5, 2);
    interval.end_unix_nano = 100_000_000_000;
    served.board.show(&Arc::new(interval.clone()));
    (interval.alive, interval.end_unix_nano) = (15, 120_000_000_000);
    served.board.show(&Arc::new(interval));
    let all = served.get("/api/v1/history").json();
    let one = &all["processes"][0];
    assert_eq!((&one["pid"], &one["alive"]), (&json!(7), &json!([12, null, 15])));
    assert!(one.get("created").is_none(), "{one}");
    let one = served.get("/api/v1/processes/7/history").json();
    assert_eq!((&one["schema"], &one["created"]), (&json!("gotrace.history/1"), &json!([5, null, 5])));
    assert_eq!(served.get("/api/v1/processes/9/history").status, 404);
    served.stop();
}

#[test]
fn goroutines_that_are_alike_come_as_lines() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let answer = served.get("/api/v1/processes/7/goroutines");
    assert!(answer.status == 200 && answer.head.contains("application/x-ndjson"), "{}", answer.head);
    let lines: Vec<Json> =
        answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["schema"], &lines[0]["grouped"]), (&json!("gotrace.dump/1"), &json!(true)));
    let leaked =
        lines.iter().map(|line| &line["group"]).find(|g| g["own_code"]["function"] == "main.waitForever");
    let leaked = leaked.expect("those that wait for ever");
    assert_eq!(leaked["wait_reason"], "chan receive");
    let system = lines.iter().any(|line| line["group"]["system"] == true);
    assert!(!system && lines.last().is_some_and(|line| line["summary"]["goroutines"].is_u64()));
    assert_eq!(served.get("/api/v1/processes/9/goroutines").status, 404);
    let old = raw(
        served.server.address().expect("an address"),
        "GET /api/v1/processes/7/goroutines HTTP/1.0\r\nHost: localhost\r\n\r\n",
    );
    assert!(old.starts_with("HTTP/1.0 505 "), "{old}");
    served.stop();
}

/// Listens to events; the lines of the answer as they come.
fn listen(served: &Served) -> impl Iterator<Item = String> + use<> {
    let mut stream = TcpStream::connect(served.server.address().expect("an address")).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    BufReader::new(stream).lines().map_while(Result::ok)
}

/// The data of the next event, which has this name.
fn event(lines: &mut impl Iterator<Item = String>, name: &str) -> Json {
    let named = lines.find_map(|line| line.strip_prefix("event: ").map(str::to_owned));
    assert_eq!(named.as_deref(), Some(name));
    let data = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).expect("data");
    serde_json::from_str(&data).expect("JSON")
}

#[test]
fn events_tell_what_changes() {
    let mut shops = Shops::new([(7, Ok(()))]);
    let hostile = "<script>alert(1)</script>\n\nevent: \"&";
    shops.resource = Arc::new(Resource::new([("service.name".into(), Value::Text(hostile.into()))].into()));
    let served = serve(shops);
    let mut lines = listen(&served);
    let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    for header in
        ["content-type: text/event-stream", "cache-control: no-store", "x-content-type-options: nosniff"]
    {
        assert!(head.iter().any(|line| line == header), "{header}: {head:?}");
    }
    let all = event(&mut lines, "processes");
    assert_eq!(all["schema"], "gotrace.processes/1");
    assert_eq!(all["processes"][0]["service"], hostile, "a name makes no event");
    let mut interval = samples::interval(&served.processes.resource, 1, Vec::new());
    interval.alive = 21;
    served.board.show(&Arc::new(interval));
    let one = event(&mut lines, "process");
    assert_eq!((&one["pid"], &one["alive"]), (&json!(7), &json!(21)));
    // Other rules may not admit this client.
    served.access.set(AccessRules { hosts: vec!["node".into()], ..AccessRules::default() });
    assert!(lines.all(|line| !line.starts_with("event")), "the stream ends");
    served.stop();
}

#[test]
fn so_many_clients_are_told_and_those_that_leave_make_room() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let mut clients: Vec<_> = (0..16).map(|_| listen(&served)).collect();
    for client in &mut clients {
        event(client, "processes");
    }
    let refused = served.get("/api/v1/events");
    assert!(refused.status == 503 && refused.head.contains("retry-after: 1"), "{}", refused.text());
    drop(clients);
    let begun = std::time::Instant::now();
    loop {
        let mut client = listen(&served);
        if client.next().is_some_and(|status| status.starts_with("HTTP/1.1 200 ")) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "there is room again");
    }
    served.stop();
}
