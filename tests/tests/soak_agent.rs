//! The agent for two hours, whatever a node brings: churn, programs that come and go, a collector that fails now and then,
//! configurations that change. Its memory, descriptors and threads stay what they were, and its accounts are exact.
//! `GOTRACE_SOAK_SECONDS` sets another length. Needs root and `go`.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program, of},
    fixture::PATIENCE,
    gotrace::privileged,
    memory::kib,
    receiver::{Receiver, Reply, Wire},
};

const SECONDS: u64 = 7200;
/// Goroutines a second of the program that stays, and how long one round of it takes.
const RATE: u32 = 2000;
const ROUND: u32 = 5;

/// Descriptors that it holds of processes that have ended lately: two of each of 64.
const ENDED: usize = 128;

/// What the agent has, after a round.
#[derive(Clone, Copy, Debug)]
struct Held {
    rss_kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("it lives").count();
        Self {
            rss_kib: kib(pid, "VmRSS").expect("it lives"),
            descriptors: count("fd"),
            threads: count("task"),
        }
    }
}

fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_grows_and_nothing_is_lost_uncounted() {
    if !privileged("soak_agent") {
        return;
    }
    let asked = std::env::var("GOTRACE_SOAK_SECONDS").map(|s| s.parse().expect("a number of seconds"));
    let long = Duration::from_secs(asked.unwrap_or(SECONDS));
    let collector = Receiver::start_counting(Wire::Http).await;
    let place = Place::new().expect("a directory");
    let otlp = format!("otlp: {{endpoint: \"{}\", metric_interval: 1s}}\n", collector.endpoint());
    let config = |interval: u32| {
        let more = format!("spans: {{max_per_second: off}}\nlimits: {{suspect_every: {interval}s}}\n{otlp}");
        place.config("level: lifecycle", &more)
    };
    let daemon = Daemon::start(&config(1), &["--budget", "off"]).expect("it starts");
    let stays = place.program("stays").expect("it builds");
    let comes = place.program("comes").expect("it builds");
    let mut program = Program::start(&stays).expect("it starts");
    daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(program.pid()))).expect("traced");
    let begun = Instant::now();
    let (mut made, mut all) = (0, Vec::new());
    for round in 0.. {
        // A collector that fails for a while, and is slow for another.
        collector.always(match round % 4 {
            1 => Reply::Fail { code: tonic::Code::Unavailable, status: 503, after: None },
            2 => Reply::TakeAfter(Duration::from_millis(50)),
            _ => Reply::Take,
        });
        daemon.reconfigure(&config(1 + round % 2)).expect("written");
        program.say(&format!("churn {RATE} {ROUND}s")).expect("it listens");
        for _ in 0..10 {
            let newcomer = Program::start(&comes).expect("it starts");
            thread::sleep(Duration::from_millis(100));
            newcomer.finish().expect("it ends");
        }
        made += program.answer().expect("it is done")["count"].as_u64().expect("a count");
        all.push(Held::by(daemon.pid()));
        if begun.elapsed() >= long && all.len() >= 9 {
            break;
        }
    }
    collector.always(Reply::Take);
    // Both accounts: goroutines that were made are told or lost, and spans are sent or dropped.
    let pid = program.pid();
    let told = |d: &Daemon| Ok(d.metrics()?.churned(pid) as u64 >= made);
    let told = daemon.until("all goroutines are told", PATIENCE, told);
    let metrics = daemon.metrics().expect("a page");
    let lost = metrics.sum("gotrace_events_lost_total", &[&of(pid)]) as u64;
    let churned = metrics.churned(pid) as u64;
    assert!(told.is_ok() || churned + lost >= made, "{churned} told and {lost} lost of {made}");
    assert!(churned <= made, "{churned} told of {made}");
    program.finish().expect("it ends");
    let sent = |d: &Daemon| d.metrics().map(|m| m.sum("gotrace_exporter_spans_sent_total", &[]) as u64);
    let mut seen = u64::MAX;
    let begun = Instant::now();
    loop {
        thread::sleep(Duration::from_secs(3));
        let now = sent(&daemon).expect("a page");
        if std::mem::replace(&mut seen, now) == now || begun.elapsed() > PATIENCE {
            break;
        }
    }
    let metrics = daemon.metrics().expect("a page");
    let dropped = metrics.sum("gotrace_exporter_spans_dropped_total", &[]) as u64;
    let taken = collector.span_count();
    println!("{} rounds: made {made}, lost {lost}, spans taken {taken}, dropped {dropped}", all.len());
    assert_eq!(seen, taken, "spans that were sent are those that were taken");
    assert!(taken + dropped + lost >= made, "{taken} taken, {dropped} dropped, {lost} lost of {made}");
    // What it has is what it had, once it has had time to begin.
    let third = all.len() / 3;
    let rss = |part: &[Held]| median(part.iter().map(|held| held.rss_kib).collect());
    let (first, last) = (rss(&all[third..2 * third]), rss(&all[2 * third..]));
    println!("resident: {first} KiB, then {last} KiB; at last {:?}", all.last());
    assert!(last <= first + first / 20, "{first} KiB grew to {last} KiB: {all:?}");
    for count in [|held: &Held| held.descriptors, |held: &Held| held.threads] {
        let of = |part: &[Held]| part.iter().map(count).max().unwrap_or_default();
        assert!(of(&all[2 * third..]) <= of(&all[third..2 * third]) + ENDED, "{all:?}");
    }
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success() && !said.contains("panicked"), "{status}: {said}");
}
