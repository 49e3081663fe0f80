//! The API over real HTTP: paths, what each answers, who is answered, and what holds when many ask at once.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use flate2::read::GzDecoder;
use serde_json::{Value as Json, json};

use super::{testing::Shops, *};
use crate::prometheus::{Agent, Health, Server, Site, Watched};
use gotrace_model::samples;
use gotrace_process::Threads;

/// Longer than any of this takes unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

struct Well;

impl Watched for Well {
    fn agent(&self) -> Agent {
        Agent::default()
    }

    fn spans_dropped(&self, _: &Arc<Resource>) -> std::collections::BTreeMap<&'static str, u64> {
        std::collections::BTreeMap::new()
    }

    fn live(&self) -> Health {
        Health::Good
    }

    fn ready(&self) -> Health {
        Health::Good
    }
}

pub(super) struct Served {
    runtime: tokio::runtime::Runtime,
    pub(super) server: Server,
    pub(super) processes: Arc<Shops>,
    pub(super) board: Arc<Board>,
    pub(super) access: Access,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn json(&self) -> Json {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

pub(super) fn serve(processes: Shops) -> Served {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (processes, board, access) = (Arc::new(processes), Arc::<Board>::default(), Access::default());
    let shared: Arc<dyn Processes> = Arc::clone(&processes) as Arc<dyn Processes>;
    let mut api = Api::new(shared, Arc::clone(&board), access.clone());
    api.captures.room_within = Duration::from_millis(200);
    let beat = Threads::default().register("page", PATIENCE);
    let address = "127.0.0.1:0".parse().expect("an address");
    let site = Site::new(Arc::clone(&board), Arc::new(Well), api);
    let server = Server::start(address, &site, (runtime.handle(), beat)).expect("it serves");
    Served { runtime, server, processes, board, access }
}

pub(super) fn ask(address: SocketAddr, path: &str, head: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n").expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer, and the end");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let mut body = answer[end..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Answer { status, head, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").expect("a size");
        let size = std::str::from_utf8(&rest[..line]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a number");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 4 + size..];
    }
}

impl Served {
    pub(super) fn get(&self, path: &str) -> Answer {
        ask(self.server.address().expect("an address"), path, "Host: localhost\r\n")
    }

    pub(super) fn stop(self) {
        self.server.stop(self.runtime.handle());
    }
}

#[test]
fn lists_say_what_there_is() {
    let served = serve(Shops::new([(7, Ok(())), (8, Ok(()))]));
    let mut interval = samples::interval(&served.processes.resource, 1, Vec::new());
    interval.alive = 12;
    assert_eq!(served.get("/api/v1/processes/7").status, 503, "no report yet");
    served.board.show(&Arc::new(interval));
    let answer = served.get("/api/v1/processes");
    assert_eq!(answer.status, 200);
    for header in
        ["content-type: application/json", "cache-control: no-store", "x-content-type-options: nosniff"]
    {
        assert!(answer.head.contains(header), "{header}: {}", answer.head);
    }
    let list = answer.json();
    assert_eq!(list["schema"], "gotrace.processes/1");
    assert_eq!((&list["processes"][0]["pid"], &list["processes"][0]["alive"]), (&json!(7), &json!(12)));
    let latest = served.get("/api/v1/processes/7").json();
    assert_eq!(latest["interval"]["alive"], 12);
    let host = format!("Host: {}\r\n", served.server.address().expect("an address"));
    let targets = ask(served.server.address().expect("an address"), "/api/v1/sd", &host).json();
    assert_eq!(targets[1]["targets"][0], served.server.address().expect("an address").to_string());
    assert_eq!(targets[1]["labels"]["__profile_path_prefix__"], "/processes/8");
    assert_eq!(served.get("/api/v1/sd").json()[0]["targets"][0], "localhost:80");
    for path in ["9", "x", "4294967303", "007", "+7", "-7", "7%20", "%2B7", "7.0", "0x7"] {
        let path = format!("/api/v1/processes/{path}");
        let path = path.as_str();
        let answer = served.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains("is not traced"), "{}", answer.text());
    }
    let answer = served.get("/nothing");
    assert_eq!(answer.status, 404);
    assert!(answer.head.contains("nosniff") && answer.text().contains("/api/v1/processes"));
    served.stop();
}

#[test]
fn goroutine_profiles_come_in_gos_formats() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let profile = served.get("/processes/7/debug/pprof/goroutine");
    assert_eq!(profile.status, 200);
    assert!(profile.head.contains("application/octet-stream"), "{}", profile.head);
    let mut raw = Vec::new();
    GzDecoder::new(&*profile.body).read_to_end(&mut raw).expect("gzip");
    assert!(raw.windows(9).any(|w| w == b"goroutine"));
    let counted = served.get("/processes/7/debug/pprof/goroutine?debug=1");
    assert!(counted.text().starts_with("goroutine profile: total "), "{}", counted.text());
    assert!(counted.head.contains("text/plain; charset=utf-8"));
    let traceback = served.get("/processes/7/debug/pprof/goroutine?gc=1&debug=2");
    assert!(traceback.text().starts_with("goroutine 1 ["), "{}", traceback.text());
    let index = served.get("/processes/7/debug/pprof/");
    assert!(index.status == 200 && index.text().contains("goroutine?debug=2"), "{}", index.text());
    for (path, status, says) in [
        ("7/debug/pprof/goroutine?debug=3", 400, "debug must be"),
        ("7/debug/pprof/goroutine?debug=x", 400, "debug must be"),
        ("7/debug/pprof/goroutine?seconds=5&debug=1", 400, "cannot be combined"),
        ("7/debug/pprof/goroutine?debug=1&debug=9&seconds=5", 400, "cannot be combined"),
        ("7/debug/pprof/goroutine?debug=-1", 400, "debug must be"),
        ("7/debug/pprof/goroutine?seconds=soon", 400, "whole number"),
        ("7/debug/pprof/goroutine?seconds=0", 400, "whole number above 0"),
        ("7/debug/pprof/goroutine?seconds=-1", 400, "whole number above 0"),
        ("7/debug/pprof/goroutine?seconds=1e9", 400, "whole number above 0"),
        ("7/debug/pprof/goroutine?seconds=5&debug=0", 501, "difference"),
        ("7/debug/pprof/goroutine?seconds=5", 501, "difference"),
        ("7/debug/pprof/goroutineleak", 503, "no proof has been completed"),
        ("7/debug/pprof/goroutineleak?seconds=5", 501, "difference"),
        ("7/debug/pprof/block", 503, "level waits"),
        ("7/debug/pprof/mutex?debug=1", 501, "block has waits for mutexes"),
        ("7/debug/pprof/block?seconds=26", 400, "25 at most"),
        ("7/debug/pprof/block?seconds=1&debug=1", 400, "cannot be combined"),
        ("7/debug/pprof/block?debug=x", 400, "debug must be"),
        ("7/debug/pprof/profile?seconds=30", 501, "CPU"),
        ("7/debug/pprof/wall", 501, "not available yet"),
        ("7/debug/pprof/trace", 501, "gotrace record"),
        ("7/debug/pprof/heap", 404, "no such profile"),
        ("8/debug/pprof/goroutine", 404, "is not traced"),
        ("8/debug/pprof/", 404, "is not traced"),
        ("007/debug/pprof/goroutine", 404, "is not traced"),
        ("+7/debug/pprof/goroutine", 404, "is not traced"),
        ("8/../7/debug/pprof/goroutine", 404, "no such page"),
        ("/7/debug/pprof/goroutine", 404, "no such page"),
        ("7//debug/pprof/goroutine", 404, "no such page"),
        ("7/debug/pprof/goroutine/", 404, "no such page"),
        ("7/debug/pprof/%67oroutine%2f", 404, "no such profile"),
        ("8/debug/pprof/goroutine?debug=3", 404, "is not traced"),
    ] {
        let answer = served.get(&format!("/processes/{path}"));
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.text().contains(says) && answer.text().ends_with('\n'), "{path}: {}", answer.text());
        assert!(answer.head.contains("nosniff") && answer.head.contains("no-store"), "{}", answer.head);
    }
    assert_eq!(served.get("/processes/%ff/debug/pprof/goroutine").status, 400);
    assert_eq!(served.processes.captured.load(Ordering::Relaxed), 3, "nothing is read for nothing");
    served.stop();
}

#[test]
fn profiles_of_waits_come_in_gos_formats() {
    let mut shops = Shops::new([(7, Ok(()))]);
    shops.waited = Some(AtomicU64::new(1000));
    let served = serve(shops);
    let block = served.get("/processes/7/debug/pprof/block?debug=1");
    assert_eq!(block.status, 200, "{}", block.text());
    assert!(block.text().starts_with("--- contention:\ncycles/second=1000000000\n"), "{}", block.text());
    assert!(
        !block.text().contains("time.Sleep") && !block.head.contains("gotrace-incomplete"),
        "{}",
        block.head
    );
    let all = served.get("/processes/7/debug/pprof/block?all=1&debug=1");
    assert!(all.text().contains("time.Sleep"), "{}", all.text());
    assert!(all.head.contains("gotrace-incomplete: stacks cut off"), "{}", all.head);
    let difference = served.get("/processes/7/debug/pprof/block?seconds=1");
    let mut raw = Vec::new();
    GzDecoder::new(&*difference.body).read_to_end(&mut raw).expect("gzip");
    assert!(String::from_utf8_lossy(&raw).contains("process 7, 1.0s;"), "the program waited one more second");
    assert_eq!(served.processes.captured.load(Ordering::Relaxed), 0, "nothing is read for it");
    served.stop();
}

#[test]
fn a_profile_of_leaks_has_those_that_are_proven() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let path = "/processes/7/debug/pprof/goroutineleak";
    let asked = served.get(path);
    assert!(asked.status == 503 && asked.text().contains("?fresh=1"), "{}", asked.text());
    let (snapshot, _) = crate::dump::testing::demo();
    let waits = |g: &&gotrace_inspect::snapshot::Goroutine| g.status.is_waiting() && !g.is_system();
    let mut goids: Vec<u64> = snapshot.goroutines.iter().filter(waits).map(|g| g.goid).take(2).collect();
    goids.push(u64::MAX);
    *served.processes.proof.lock().expect("no panic") = Ok(Proof { goids, ..Proof::default() });
    // Made at the first question, told at the next.
    let leaked = served.get(&format!("{path}?fresh=1&debug=1"));
    assert_eq!(leaked.status, 200, "{}", leaked.text());
    assert!(leaked.text().starts_with("goroutineleak profile: total 2\n"), "{}", leaked.text());
    assert!(
        leaked.text().contains("# gotrace: proven by heap scans that began 3 s ago"),
        "{}",
        leaked.text()
    );
    for header in ["gotrace-proof-age: 3", "gotrace-incomplete: leaked goroutines not told: 1"] {
        assert!(leaked.head.contains(header), "{header}: {}", leaked.head);
    }
    let traceback = served.get(&format!("{path}?debug=2")).text();
    let count = |what: &str| traceback.lines().filter(|line| line.contains(what)).count();
    assert_eq!(count(" (leaked)"), 2, "{traceback}");
    assert!(count("goroutine ") > 2, "as Go's has it, it is of all");
    let profile = served.get(path);
    assert!(profile.head.contains("filename=\"goroutineleak\""), "{}", profile.head);
    // That none is leaked is an answer too.
    *served.processes.proof.lock().expect("no panic") =
        Ok(Proof { age: Some(Duration::ZERO), ..Proof::default() });
    let none = served.get(&format!("{path}?debug=1"));
    assert!(none.text().starts_with("goroutineleak profile: total 0\n#"), "{}", none.text());
    let failed = CaptureError::Later("no proof could be made: too large".into());
    *served.processes.proof.lock().expect("no panic") = Err(failed);
    let failed = served.get(&format!("{path}?fresh=1"));
    assert!(failed.status == 503 && failed.text().contains("too large"), "{}", failed.text());
    served.stop();
}

/// What is sent and answered as it is, whatever the method and version.
pub(super) fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer, and the end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn nothing_but_get_has_a_process_read() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let address = served.server.address().expect("an address");
    let path = "/processes/7/debug/pprof/goroutine";
    for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE", "get"] {
        let answer = raw(address, &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET\r\n"),
            "{method}: {answer}"
        );
        // Those who may not ask are told nothing.
        let answer = raw(address, &format!("{method} {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 403 "), "{method}: {answer}");
    }
    for request in ["OPTIONS * HTTP/1.1", "CONNECT localhost:80 HTTP/1.1"] {
        let answer = raw(address, &format!("{request}\r\nHost: localhost\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 405 "), "{request}: {answer}");
    }
    // A part of an answer could not be told from all of it.
    let answer = raw(address, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.0 505 ") && answer.contains("HTTP/1.1"), "{answer}");
    let answer = raw(address, "GET /api/v1/processes HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    // One request a connection: what follows is not another.
    let two = format!(
        "GET /api/v1/sd HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhelloGET {path} HTTP/1.1\r\n"
    );
    let answer = raw(address, &format!("{two}Host: localhost\r\n\r\n"));
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(served.processes.captured.load(Ordering::Relaxed), 0);
    served.stop();
}

#[test]
fn pages_of_other_sites_have_nothing_read() {
    let served = serve(Shops::new([(7, Ok(()))]));
    served.access.set(AccessRules { token: Token::new(b"0123456789abcdef").ok(), ..AccessRules::default() });
    let status = |head: &str| {
        ask(served.server.address().expect("an address"), "/processes/7/debug/pprof/goroutine", head).status
    };
    for head in [
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
        "Host: localhost\r\nSec-Fetch-Site: same-site\r\n",
        "Host: localhost\r\nOrigin: http://evil.example\r\n",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nAuthorization: Bearer 0123456789abcdef\r\n",
    ] {
        assert_eq!(status(head), 403, "{head}");
    }
    assert_eq!(served.processes.captured.load(Ordering::Relaxed), 0);
    assert_eq!(status("Host: localhost\r\nSec-Fetch-Site: none\r\n"), 200);
    // Metrics are for everybody, as ever.
    let metrics = ask(
        served.server.address().expect("an address"),
        "/metrics",
        "Host: x\r\nSec-Fetch-Site: cross-site\r\n",
    );
    assert_eq!((metrics.status, metrics.head.contains("access-control")), (200, false));
    served.stop();
}

#[test]
fn what_is_missing_is_said() {
    let mut processes = Shops::new([(7, Ok(()))]);
    processes.unreadable = 3;
    let served = serve(processes);
    for query in ["", "?debug=1", "?debug=2"] {
        let answer = served.get(&format!("/processes/7/debug/pprof/goroutine{query}"));
        assert!(
            answer.head.contains("\r\ngotrace-incomplete: goroutines not read: 3"),
            "{query}: {}",
            answer.head
        );
        match query {
            "?debug=1" => {
                let last = answer.text().lines().last().map(str::to_owned).unwrap_or_default();
                assert!(last.starts_with("# gotrace: incomplete: goroutines not read: 3"), "{last}");
            }
            "" => {
                let mut raw = Vec::new();
                GzDecoder::new(&*answer.body).read_to_end(&mut raw).expect("gzip");
                assert!(raw.windows(34).any(|w| w == b"incomplete: goroutines not read: 3"));
            }
            _ => assert!(answer.text().starts_with("goroutine 1 ["), "{}", answer.text()),
        }
    }
    served.stop();
}

#[test]
fn a_profile_is_not_taken_away_by_those_who_only_connect() {
    let (words, gate) = channel();
    let mut processes = Shops::new([(7, Ok(()))]);
    processes.gate = Some(Mutex::new(gate));
    let served = serve(processes);
    let address = served.server.address().expect("an address");
    let asked = thread::spawn(move || {
        ask(address, "/processes/7/debug/pprof/goroutine?debug=1", "Host: localhost\r\n").status
    });
    let begin = std::time::Instant::now();
    while served.processes.waiting.load(Ordering::Relaxed) == 0 {
        assert!(begin.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    let crowd: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(address).expect("it listens")).collect();
    assert_eq!(served.get("/livez").status, 200);
    words.send(()).expect("it waits");
    assert_eq!(asked.join().expect("an answer"), 200);
    drop(crowd);
    served.stop();
}

#[test]
fn what_cannot_be_read_is_said() {
    let later = CaptureError::Later("in a moment".into());
    let failed = CaptureError::Failed("it makes no sense".into());
    let served = serve(Shops::new([(7, Err(later)), (8, Err(failed)), (9, Err(CaptureError::NotTraced))]));
    for (pid, status, says) in [(7, 503, "in a moment"), (8, 500, "no sense"), (9, 404, "is not traced")] {
        let answer = served.get(&format!("/processes/{pid}/debug/pprof/goroutine"));
        assert_eq!((answer.status, answer.head.contains("retry-after: 1")), (status, status == 503));
        assert!(answer.text().contains(says), "{}", answer.text());
    }
    served.stop();
}

#[test]
fn one_capture_a_process_and_some_in_all() {
    let (words, gate) = channel();
    let mut processes = Shops::new((1..=6).map(|pid| (pid, Ok(()))));
    processes.gate = Some(Mutex::new(gate));
    let served = serve(processes);
    let address = served.server.address().expect("an address");
    let begun: Vec<_> = (1..=2)
        .map(|pid| {
            let path = format!("/processes/{pid}/debug/pprof/goroutine?debug=2");
            thread::spawn(move || ask(address, &path, "Host: localhost\r\n"))
        })
        .collect();
    // Those two hold on; whoever comes meanwhile is told at once.
    let refused = |pid: u32| {
        let answer = served.get(&format!("/processes/{pid}/debug/pprof/goroutine"));
        (answer.status == 429).then(|| {
            assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
            answer.text()
        })
    };
    let begin = std::time::Instant::now();
    while served.processes.waiting.load(Ordering::Relaxed) < 2 {
        assert!(begin.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    assert!(refused(1).expect("refused").contains("process 1 is being read"));
    assert!(refused(5).expect("refused").contains("other processes are being read"));
    assert_eq!(served.get("/livez").status, 200);
    (0..2).for_each(|_| words.send(()).expect("they wait"));
    for thread in begun {
        assert_eq!(thread.join().expect("no panic").status, 200);
    }
    // One after the other is never refused.
    for _ in 0..20 {
        words.send(()).expect("it listens");
        assert_eq!(served.get("/processes/5/debug/pprof/goroutine").status, 200);
    }
    served.stop();
}

#[test]
fn only_those_who_may_are_answered() {
    let served = serve(Shops::new([(7, Ok(()))]));
    let address = served.server.address().expect("an address");
    let status = |path: &str, head: &str| ask(address, path, head).status;
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(status(path, "Host: anything\r\n"), 200);
    }
    for path in ["/api/v1/processes", "/processes/7/debug/pprof/goroutine", "/", "/nothing"] {
        assert_eq!(status(path, "Host: evil.example\r\n"), 403, "{path}");
        assert_eq!(status(path, "Host: localhost\r\nHost: evil.example\r\n"), 403, "{path}");
        let absolute = format!("http://evil.example{path}");
        assert_eq!(status(&absolute, "Host: localhost\r\n"), 403, "{path}");
    }
    let token = Some(Token::new(b"0123456789abcdef").expect("a token"));
    served.access.set(AccessRules { hosts: vec!["node".into()], token: token.clone(), require_token: false });
    assert_eq!(status("/api/v1/processes", "Host: node:1\r\n"), 200);
    assert_eq!(status("/api/v1/processes", "Host: evil.example\r\n"), 403);
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(status("/api/v1/processes", &format!("Host: any\r\n{bearer}")), 200);
    served.access.set(AccessRules { hosts: Vec::new(), token, require_token: true });
    let answer = ask(address, "/api/v1/processes", "Host: localhost\r\n");
    assert_eq!(answer.status, 401);
    assert!(answer.head.contains("www-authenticate: bearer") && answer.text().contains("http.token_file"));
    assert_eq!(status("/api/v1/processes", &format!("Host: localhost\r\n{bearer}")), 200);
    assert_eq!(status("/metrics", "Host: any\r\n"), 200);
    assert_eq!(served.processes.captured.load(Ordering::Relaxed), 0);
    served.stop();
}
