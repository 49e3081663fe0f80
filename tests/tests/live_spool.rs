//! The node agent with a spool, over its own ends: told to end while the collector hangs, killed while it is
//! down, started anew. Each goroutine's span arrives once, with the id that it had to have. And with less
//! memory than its processes want. Needs root and `go`.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use gotrace_model::ids::ProcessKey;
use gotrace_tests::{
    daemon::{Daemon, Place, Program, of},
    fixture::PATIENCE,
    gotrace::privileged,
    receiver::{Receiver, Reply, Wire},
};
use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};

fn start(place: &Place, name: &str) -> Program {
    Program::start(&place.program(name).expect("the program builds")).expect("it starts")
}

/// Those of goroutines that `churn` has made.
fn churned(receiver: &Receiver) -> Vec<Span> {
    receiver.spans().into_iter().filter(|s| s.name.starts_with("main.churn")).collect()
}

/// The id that a process's goroutine has, whoever looks.
fn expected_id(key: &ProcessKey, span: &Span) -> Vec<u8> {
    let goid = span.attributes.iter().find(|a| a.key == "gotrace.goroutine.id").expect("an attribute");
    let Some(Value::IntValue(goid)) = goid.value.as_ref().and_then(|v| v.value.clone()) else {
        panic!("{goid:?}")
    };
    key.span_id(u64::try_from(goid).expect("an id")).to_vec()
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice_over_restarts() {
    if !privileged("live_spool") {
        return;
    }
    let place = Place::new().expect("a directory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let receiver = runtime.block_on(Receiver::start(Wire::Grpc));
    let spool = place.path().join("spool");
    let config = place.config(
        "level: lifecycle",
        &format!(
            "otlp: {{endpoint: \"{}\", protocol: grpc, grace: 2s, spool: {{directory: {}}}}}\nlimits: {{budget: off}}\n",
            receiver.endpoint(),
            spool.display()
        ),
    );
    let mut shop = start(&place, "shop");
    // They live on from one gotrace to the next: whoever sees them end has not seen them born.
    shop.count("park 50").expect("it parks");
    let run = |shop: &mut Program, births: u32| {
        let daemon = Daemon::start(&config, &[]).expect("it starts");
        daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(shop.pid()))).expect("traced");
        let count = shop.count(&format!("churn {births} 300ms")).expect("it churns");
        (daemon, count)
    };

    // Told to end while the collector does not answer.
    receiver.always(Reply::TakeAfter(10 * PATIENCE));
    let (daemon, first) = run(&mut shop, 3000);
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
    assert!(said.contains("for the next start") && !said.contains("were lost"), "{said}");

    // Killed while it refuses.
    receiver.always(Reply::Fail { code: tonic::Code::Unavailable, status: 503, after: None });
    let (mut daemon, second) = run(&mut shop, 2000);
    let all_kept = |d: &Daemon| {
        let metrics = d.metrics()?;
        assert_eq!(metrics.sum("gotrace_exporter_spans_dropped_total", &[]), 0.0, "{}", metrics.0);
        Ok(metrics.sum("gotrace_exporter_spool_spans", &[]) >= (first + second) as f64)
    };
    daemon.until("all of it is on disk", PATIENCE, all_kept).expect("kept");
    assert_eq!(daemon.get("/readyz").expect("a page").0, 200, "it keeps what it cannot send");
    daemon.kill().expect("killed");

    // And back, with what a third sees.
    receiver.always(Reply::Take);
    let (daemon, third) = run(&mut shop, 1000);
    let begun = Instant::now();
    while (churned(&receiver).len() as u64) < first + second + third {
        assert!(begun.elapsed() < PATIENCE, "{} of {}", churned(&receiver).len(), first + second + third);
        std::thread::sleep(Duration::from_millis(50));
    }
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success() && said.contains("sending the data left in "), "{status}: {said}");
    let spans = churned(&receiver);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let stat = fs::read_to_string(format!("/proc/{}/stat", shop.pid())).expect("it runs");
    // Counted from field 3, which follows the name.
    let field = |n: usize| -> u64 {
        let text = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(n - 3));
        text.and_then(|text| text.parse().ok()).expect("a number")
    };
    let key = ProcessKey::new(&boot, shop.pid(), field(22), field(28), 0);
    let ids: BTreeSet<_> = spans.iter().map(|s| s.span_id.clone()).collect();
    assert_eq!((spans.len() as u64, ids.len() as u64), (first + second + third, first + second + third));
    assert!(spans.iter().all(|span| span.span_id == expected_id(&key, span)));
    // The lock is all that is left.
    let left: Vec<_> =
        fs::read_dir(&spool).expect("a directory").map(|e| e.expect("one").file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn who_takes_too_much_memory_is_traced_by_snapshots_and_others_as_before() {
    if !privileged("live_spool") {
        return;
    }
    let place = Place::new().expect("a directory");
    let (mut large, mut calm) = (start(&place, "large"), start(&place, "calm"));
    let export = place.path().join("export.jsonl");
    let config = place.config(
        "level: waits",
        &format!("limits: {{memory: 8M, budget: off}}\notlp: {{export: {}}}\n", export.display()),
    );
    let daemon = Daemon::start(&config, &[]).expect("it starts");
    let until = |what: &str, holds: &dyn Fn(&gotrace_tests::daemon::Metrics) -> bool| {
        daemon.until(what, PATIENCE, |d| Ok(holds(&d.metrics()?))).unwrap_or_else(|e| panic!("{e:#}"));
    };
    until("both are traced", &|m| m.is_at(large.pid(), "waits") && m.is_at(calm.pid(), "waits"));
    large.count("park 150000").expect("it parks");
    until("the one that takes most is traced by snapshots", &|m| {
        m.is_at(large.pid(), "sampled") && m.sum("gotrace_processes_without_memory", &[]) == 1.0
    });
    let births = calm.count("churn 500 300ms").expect("it churns");
    until("the other's are all seen", &|m| m.churned(calm.pid()) == births as f64);
    let metrics = daemon.metrics().expect("a page");
    assert!(metrics.is_at(calm.pid(), "waits"), "{}", metrics.0);
    assert_eq!(metrics.sum("gotrace_memory_limit_bytes", &[]), f64::from(8 << 20));
    let kept = metrics.sum("gotrace_memory_kept_bytes", &[]);
    // Above the limit nobody has room for more, which is counted.
    large.count("park 60000").expect("it parks");
    until("what is beyond is counted", &|m| {
        m.sum("gotrace_events_lost_total", &[&of(large.pid()), "gotrace_lost_kind=\"table_limit\""]) > 0.0
    });
    eprintln!("150,000 goroutines and one process beside take {kept} bytes");
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success() && said.contains("level changed because of limits.memory"), "{status}: {said}");
    let text = fs::read_to_string(&export).expect("an export");
    let record = text.lines().find(|l| l.contains("\"gotrace.level.changed\"")).expect("a record");
    assert!(
        record.contains("\"memory\"") && record.contains("level changed from waits to snapshot"),
        "{record}"
    );
}
