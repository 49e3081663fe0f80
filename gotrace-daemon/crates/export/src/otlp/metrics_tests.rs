//! What an interval comes to, metric by metric.

use super::*;
use crate::otlp::SeriesBounds;
use gotrace_model::{Assists, samples};

fn report(
    metrics: &mut Metrics,
    interval: &Interval,
    dropped: &[(&'static str, u64)],
) -> BTreeMap<String, Metric> {
    let (resource, count) = metrics.report(interval, &dropped.iter().copied().collect());
    let list = &resource.scope_metrics[0].metrics;
    assert_eq!(count, list.iter().map(points).sum::<u64>());
    assert!(count as usize <= SeriesBounds::default().per_process, "{count} points");
    let by_name: BTreeMap<_, _> = list.iter().map(|m| (m.name.clone(), m.clone())).collect();
    assert_eq!(by_name.len(), list.len(), "a name twice");
    by_name
}

fn numbers(metric: &Metric) -> Vec<(String, i64)> {
    let list = match metric.data.as_ref().expect("data") {
        metric::Data::Gauge(g) => &g.data_points,
        metric::Data::Sum(s) => &s.data_points,
        other => panic!("{other:?}"),
    };
    list.iter()
        .map(|p| {
            let Some(number_data_point::Value::AsInt(v)) = p.value else { panic!("{p:?}") };
            (label(&p.attributes), v)
        })
        .collect()
}

fn label(attributes: &[KeyValue]) -> String {
    let value = |kv: &KeyValue| match kv.value.as_ref().and_then(|v| v.value.clone()) {
        Some(Any::StringValue(s)) => s,
        Some(Any::BoolValue(b)) => b.to_string(),
        Some(Any::IntValue(i)) => i.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|kv| format!("{}={}", kv.key, value(kv))).collect::<Vec<_>>().join(" ")
}

fn sum(metric: &Metric) -> &Sum {
    match metric.data.as_ref().expect("data") {
        metric::Data::Sum(s) => s,
        other => panic!("{other:?}"),
    }
}

fn exponential(metric: &Metric) -> &ExponentialHistogram {
    match metric.data.as_ref().expect("data") {
        metric::Data::ExponentialHistogram(h) => h,
        other => panic!("{other:?}"),
    }
}

const SITE: &str = "code.function.name=main.worker code.file.path=/src/main.go code.line.number=12 \
                    gotrace.created_by.function.name=main.main \
                    gotrace.created_by.file.path=/src/main.go gotrace.created_by.line.number=30";

fn owned(list: &[(&str, i64)]) -> Vec<(String, i64)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
}

#[test]
fn every_metric_of_a_full_interval() {
    let resource = samples::resource();
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    let interval = samples::interval(&resource, 0, vec![samples::site("main.worker", 10, 4)]);
    let got = report(&mut metrics, &interval, &[("queue_full", 5)]);
    assert_eq!(
        got.iter().map(|(n, m)| (n.as_str(), m.unit.as_str())).collect::<Vec<_>>(),
        [
            ("go.goroutine.count", "{goroutine}"),
            ("go.schedule.duration", "s"),
            ("gotrace.engine", "1"),
            ("gotrace.events", "{event}"),
            ("gotrace.events.lost", "{event}"),
            ("gotrace.goroutine.alive", "{goroutine}"),
            ("gotrace.goroutine.count", "{goroutine}"),
            ("gotrace.goroutine.cpu.time", "s"),
            ("gotrace.goroutine.created", "{goroutine}"),
            ("gotrace.goroutine.exited", "{goroutine}"),
            ("gotrace.goroutine.lifetime", "s"),
            ("gotrace.goroutine.wait.duration", "s"),
            ("gotrace.goroutine.wait.time", "s"),
            ("gotrace.level", "1"),
            ("gotrace.probe.cost", "1"),
            ("gotrace.snapshot.duration", "s"),
            ("gotrace.spans.dropped", "{span}"),
            ("gotrace.spans.sampled_out", "{span}"),
            ("gotrace.table.repaired", "{goroutine}"),
            ("gotrace.wait.peer.duration", "s"),
        ]
    );
    assert_eq!(numbers(&got["go.goroutine.count"]), owned(&[("", 6)]));
    let count = sum(&got["go.goroutine.count"]);
    assert!(!count.is_monotonic && count.aggregation_temporality == 2);
    assert_eq!(
        numbers(&got["gotrace.goroutine.count"]),
        owned(&[
            ("gotrace.state=waiting gotrace.wait.reason=chan receive", 2),
            ("gotrace.state=syscall gotrace.wait.reason=syscall", 1),
        ])
    );
    assert_eq!(numbers(&got["gotrace.goroutine.created"]), owned(&[(SITE, 10)]));
    assert_eq!(numbers(&got["gotrace.goroutine.exited"]), owned(&[(SITE, 4)]));
    assert_eq!(numbers(&got["gotrace.goroutine.alive"]), owned(&[(SITE, 6)]));
    assert_eq!(
        numbers(&got["gotrace.events"]),
        owned(&[("gotrace.event.kind=create", 10), ("gotrace.event.kind=exit", 4)])
    );
    assert_eq!(numbers(&got["gotrace.events.lost"]), owned(&[("gotrace.lost.kind=ring_wait", 3)]));
    assert_eq!(numbers(&got["gotrace.spans.dropped"]), owned(&[("gotrace.dropped.reason=queue_full", 5)]));
    assert_eq!(numbers(&got["gotrace.spans.sampled_out"]), owned(&[("gotrace.sampled_out.reason=ratio", 9)]));
    assert_eq!(numbers(&got["gotrace.table.repaired"]), owned(&[("gotrace.repaired.kind=death", 2)]));
    assert_eq!(numbers(&got["gotrace.level"]), owned(&[("gotrace.level=full", 1)]));
    assert_eq!(
        numbers(&got["gotrace.engine"]),
        owned(&[("gotrace.engine=events gotrace.goroutine.count.lower_bound=false", 1)])
    );
    let created = sum(&got["gotrace.goroutine.created"]);
    assert!(created.is_monotonic && created.aggregation_temporality == 2);
    assert_eq!(created.data_points[0].start_time_unix_nano, samples::START);
    assert_eq!(created.data_points[0].time_unix_nano, samples::START + 1_000_000_000);
    let lifetime = &exponential(&got["gotrace.goroutine.lifetime"]).data_points[0];
    assert_eq!((lifetime.count, lifetime.sum, lifetime.max), (4, Some(0.02), Some(0.005)));
    let waits = exponential(&got["gotrace.goroutine.wait.duration"]);
    assert_eq!(waits.aggregation_temporality, 2);
    assert_eq!(
        waits.data_points.iter().map(|p| (label(&p.attributes), p.count)).collect::<Vec<_>>(),
        [("gotrace.wait.reason=chan receive".to_owned(), 3), ("gotrace.wait.reason=syscall".to_owned(), 1)]
    );
}

#[test]
fn a_collectors_work_is_told_in_seconds() {
    let resource = samples::resource();
    let mut metrics = Metrics::new(Temporality::Delta, SeriesBounds::default());
    let mut interval = samples::interval(&resource, 0, Vec::new());
    interval.collector = samples::collector();
    let entry = Arc::clone(&interval.collector.assists_by[0].entry);
    for n in 0..5 {
        let created_by = Some(samples::location("main.main", "/src/main.go", n));
        let assists = Assists { entry: Arc::clone(&entry), created_by, count: 1, total_ns: 500_000_000 };
        interval.collector.assists_by.push(assists);
    }
    let got = report(&mut metrics, &interval, &[]);
    assert_eq!(
        numbers(&got["gotrace.gc.cycles"]),
        owned(&[("gotrace.gc.reason=call", 1), ("gotrace.gc.reason=heap", 2)])
    );
    assert_eq!(exponential(&got["gotrace.gc.pause.duration"]).data_points[0].count, 6);
    let seconds = |metric: &Metric| -> Vec<f64> {
        let points = sum(metric).data_points.iter();
        points
            .map(|p| match p.value {
                Some(number_data_point::Value::AsDouble(seconds)) => seconds,
                ref other => panic!("{other:?}"),
            })
            .collect()
    };
    // Two sites have series of their own, the others share one.
    assert_eq!(seconds(&got["gotrace.gc.assist.time"]), [0.001, 0.5, 2.0]);
    assert_eq!(seconds(&got["gotrace.stop_the_world.time"]), [0.041]);
    interval.collector.assists_by[0].total_ns += 250_000_000;
    let again = report(&mut metrics, &interval, &[]);
    assert_eq!(seconds(&again["gotrace.gc.assist.time"]), [0.25, 0.0, 0.0], "what is new");
}

#[test]
fn lower_levels_say_only_what_they_know() {
    let resource = samples::resource();
    let mut interval = samples::interval(&resource, 0, vec![samples::site("main.worker", 10, 0)]);
    interval.repaired.clear();
    interval.sampled_out.clear();
    interval.snapshots = Histogram::default();
    interval.waiting.clear();
    interval.waits.clear();
    interval.waits_at = Arc::default();
    interval.lost.clear();
    interval.schedule = Histogram::default();
    interval.syscalls = Histogram::default();
    interval.probe_cost_share = None;
    interval.sites[0].cpu_total_ns = 0;
    let got = report(&mut Metrics::new(Temporality::Cumulative, SeriesBounds::default()), &interval, &[]);
    assert_eq!(
        got.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "go.goroutine.count",
            "gotrace.engine",
            "gotrace.events",
            "gotrace.goroutine.alive",
            "gotrace.goroutine.created",
            "gotrace.goroutine.exited",
            "gotrace.level",
        ]
    );
}

#[test]
fn cumulative_points_begin_at_the_first_interval_and_delta_points_at_the_last() {
    let resource = samples::resource();
    let first = samples::interval(&resource, 0, vec![samples::site("main.worker", 10, 4)]);
    let second = samples::interval(&resource, 1, vec![samples::site("main.worker", 15, 9)]);
    let of = |temporality| {
        let mut metrics = Metrics::new(temporality, SeriesBounds::default());
        report(&mut metrics, &first, &[]);
        let got = report(&mut metrics, &second, &[]);
        let created = sum(&got["gotrace.goroutine.created"]).clone();
        let lifetime = exponential(&got["gotrace.goroutine.lifetime"]).clone();
        let alive = numbers(&got["go.goroutine.count"]);
        (
            (numbers(&got["gotrace.goroutine.created"])[0].1, created.aggregation_temporality),
            created.data_points[0].start_time_unix_nano - samples::START,
            (lifetime.data_points[0].count, lifetime.data_points[0].max, lifetime.aggregation_temporality),
            alive,
        )
    };
    let alive = owned(&[("", 6)]);
    assert_eq!(of(Temporality::Cumulative), ((15, 2), 0, (9, Some(0.005), 2), alive.clone()));
    assert_eq!(of(Temporality::Delta), ((5, 1), 1_000_000_000, (5, None, 1), alive.clone()));
    assert_eq!(of(Temporality::LowMemory), ((15, 2), 0, (5, None, 1), alive));
}

#[test]
fn series_are_bounded_and_what_is_beyond_is_summed_up() {
    let resource = samples::resource();
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    let sites =
        |n: u32, born| (0..n).map(|i| samples::site(&format!("main.f{i}"), born, 1)).collect::<Vec<_>>();
    let mut interval = samples::interval(&resource, 0, sites(500, 3));
    interval.waiting = (0..90).map(|i| (Arc::from(format!("reason {i}")), 1)).collect();
    interval.waits = (0..90).map(|i| (Arc::from(format!("reason {i}")), samples::histogram(&[5]))).collect();
    interval.events = NAMES.iter().map(|n| (*n, 2)).collect();
    let got = report(&mut metrics, &interval, &[]);
    let created = numbers(&got["gotrace.goroutine.created"]);
    assert_eq!(created.iter().map(|(_, v)| v).sum::<i64>(), 1500);
    let (name, beyond) = created.last().expect("some");
    assert_eq!(name, "otel.metric.overflow=true");
    assert!(*beyond > 0);
    let alive = numbers(&got["gotrace.goroutine.count"]);
    assert_eq!(alive.iter().map(|(_, v)| v).sum::<i64>(), 90);
    assert_eq!(numbers(&got["gotrace.events"]).iter().map(|(_, v)| v).sum::<i64>(), 40);
    let waits = exponential(&got["gotrace.goroutine.wait.duration"]);
    assert_eq!(waits.data_points.iter().map(|p| p.count).sum::<u64>(), 91);
    // In another order, each keeps the series that it has, and no total shrinks.
    interval.sites = sites(500, 4);
    interval.sites.reverse();
    let again = numbers(&report(&mut metrics, &interval, &[])["gotrace.goroutine.created"]);
    assert_eq!(again.iter().map(|(_, v)| v).sum::<i64>(), 2000);
    let again: BTreeMap<_, _> = again.into_iter().collect();
    for (name, value) in created {
        assert!(again[&name] > value, "{name}");
    }
}

const NAMES: [&str; 20] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];

#[test]
fn a_site_has_room_beside_many_reasons_and_a_reason_beside_many_sites() {
    let resource = samples::resource();
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    let many = (0..500).map(|i| samples::site(&format!("main.f{i}"), 3, 1)).collect();
    let interval = samples::interval(&resource, 0, many);
    let got = report(&mut metrics, &interval, &[]);
    assert!(numbers(&got["gotrace.goroutine.created"]).len() > 16);
    assert_eq!(numbers(&got["gotrace.goroutine.count"]).len(), 2);
}

/// Values of a metric, those of one creation site or reason each, with what is beyond; and how many.
fn total(got: &BTreeMap<String, Metric>, name: &str) -> i64 {
    numbers(&got[name]).iter().map(|(_, value)| value).sum()
}

fn series(got: &BTreeMap<String, Metric>) -> usize {
    got.values().map(|metric| usize::try_from(points(metric)).expect("few")).sum()
}

#[test]
fn five_thousand_sites_in_fifty_processes_have_the_series_that_they_may() {
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    let sites: Vec<_> = (0..5000).map(|i| samples::site(&format!("main.f{i}"), 3, 1)).collect();
    let resources: Vec<_> = (0..50).map(|_| samples::resource()).collect();
    let mut interval = samples::interval(&resources[0], 0, sites);
    interval.waiting = (0..90).map(|i| (Arc::from(format!("reason {i}")), 1)).collect();
    interval.waits = (0..90).map(|i| (Arc::from(format!("reason {i}")), samples::histogram(&[5]))).collect();
    let mut all = 0;
    for resource in &resources {
        interval.resource = Arc::clone(resource);
        let got = report(&mut metrics, &interval, &[("queue_full", 5)]);
        let own = series(&got);
        assert!(own <= SeriesBounds::default().per_process, "{own}");
        all += own;
        // Nothing is left out: what has no series of its own is in the one for what is beyond.
        assert_eq!(total(&got, "gotrace.goroutine.created"), 15_000);
        assert_eq!(total(&got, "gotrace.goroutine.alive"), 10_000);
        assert_eq!(total(&got, "gotrace.goroutine.count"), 90);
        for name in [
            "gotrace.goroutine.created",
            "gotrace.goroutine.exited",
            "gotrace.goroutine.alive",
            "gotrace.goroutine.count",
        ] {
            let named = numbers(&got[name]).iter().filter(|(n, _)| n == "otel.metric.overflow=true").count();
            assert_eq!(named, 1, "{name}");
        }
    }
    assert!(all <= SeriesBounds::default().all, "{all}");
    assert_eq!(metrics.brief(), 0);
}

#[test]
fn a_node_has_no_more_series_than_it_may_and_gives_them_on_when_processes_end() {
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    let sites: Vec<_> = (0..60).map(|i| samples::site(&format!("main.f{i}"), 3, 1)).collect();
    let mut resources: Vec<_> = (0..400).map(|_| samples::resource()).collect();
    let mut interval = samples::interval(&resources[0], 0, sites);
    let mut round = |metrics: &mut Metrics, resources: &[Arc<Resource>]| {
        let (mut all, mut most_important) = (0, 0);
        for resource in resources {
            interval.resource = Arc::clone(resource);
            let got = report(metrics, &interval, &[]);
            all += series(&got);
            most_important += usize::from(got.len() == 4);
            assert_eq!(total(&got, "go.goroutine.count"), i64::try_from(interval.alive).expect("few"));
            assert!(got.len() == 4 || total(&got, "gotrace.goroutine.created") == 180);
        }
        (all, most_important)
    };
    let (all, brief) = round(&mut metrics, &resources);
    assert!(brief > 100 && metrics.brief() == brief as u64, "{brief}");
    assert!(all <= SeriesBounds::default().all + 4 * brief, "{all} with {brief}");
    // Another round gives nobody more.
    assert_eq!(round(&mut metrics, &resources), (all, brief));
    resources.drain(..300);
    let (_, brief) = round(&mut metrics, &resources);
    assert_eq!((brief, metrics.brief()), (0, 0), "those that are left have what the others had");
}

#[test]
fn processes_that_ended_are_forgotten() {
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    for _ in 0..10 {
        let resource = samples::resource();
        let interval = samples::interval(&resource, 0, Vec::new());
        report(&mut metrics, &interval, &[]);
    }
    assert_eq!(metrics.processes.len(), 1);
}

#[test]
fn leaks_and_suspects_are_bounded_and_nobody_is_left_out_of_the_sum() {
    use gotrace_model::{Leak, Suspected};
    let resource = samples::resource();
    let mut interval = samples::interval(&resource, 0, Vec::new());
    let sites = (0..500).map(|i| samples::site(&format!("main.f{i}"), 3, 1)).collect::<Vec<_>>();
    for site in sites.iter().take(30) {
        let (entry, created_by) = (Arc::clone(&site.entry), site.created_by.clone());
        interval.leaks.push(Leak {
            entry: Arc::clone(&entry),
            created_by: created_by.clone(),
            waits_at: None,
            reason: "chan receive".into(),
            count: 2,
            growth_per_second: Some((0.5, 1.0)),
            retained_bytes: Some(10),
            goids: vec![1, 2],
            others: Vec::new(),
            place: None,
            holders: Vec::new(),
            why: "why".into(),
            suppressed: interval.leaks.is_empty().then(|| "by design".into()),
        });
        interval.suspects.push(Suspected {
            verdict: "growing",
            entry,
            created_by,
            waits_at: None,
            reason: "chan send".into(),
            count: 3,
            growth_per_second: Some((0.5, 1.0)),
            standing_ns: 1,
            place: None,
            holders: Vec::new(),
            why: "why".into(),
            goids: vec![3],
            suppressed: interval.suspects.is_empty().then(|| "by design".into()),
        });
    }
    interval.sites = sites;
    // `report` holds the sum of all series against their bound.
    let got = report(&mut Metrics::new(Temporality::Cumulative, SeriesBounds::default()), &interval, &[]);
    let sum = |name: &str| numbers(&got[name]).iter().map(|(_, v)| v).sum::<i64>();
    assert_eq!(sum("gotrace.leak.proven"), 60);
    assert_eq!(sum("gotrace.leak.retained"), 300);
    assert_eq!(sum("gotrace.leak.suspects"), 90);
    for name in
        ["gotrace.leak.proven", "gotrace.leak.retained", "gotrace.leak.suspects", "gotrace.leak.growth"]
    {
        let metric::Data::Gauge(gauge) = got[name].data.as_ref().expect("data") else { panic!("a gauge") };
        let suppressed = gauge
            .data_points
            .iter()
            .map(|p| p.attributes.iter().filter(|a| a.key == "gotrace.leak.suppressed").count());
        let suppressed: Vec<usize> = suppressed.collect();
        assert_eq!((suppressed[0], suppressed.iter().sum::<usize>()), (1, 1), "{name}");
    }
    let metric::Data::Gauge(growth) = got["gotrace.leak.growth"].data.as_ref().expect("data") else {
        panic!("a gauge")
    };
    assert_eq!(growth.data_points[0].value, Some(number_data_point::Value::AsDouble(0.5)));
}

#[test]
fn a_smaller_bound_leaves_the_fixed_metrics_and_sums() {
    let sites: Vec<_> = (0..12).map(|i| samples::site(&format!("main.f{i}"), 3, 1)).collect();
    let mut interval = samples::interval(&samples::resource(), 0, sites);
    interval.waiting = (0..6).map(|i| (Arc::from(format!("reason {i}")), 1)).collect();
    interval.waits = (0..6).map(|i| (Arc::from(format!("reason {i}")), samples::histogram(&[5]))).collect();
    let counted = |per_process| {
        let bounds = SeriesBounds { per_process, ..SeriesBounds::default() };
        let got = report(&mut Metrics::new(Temporality::Cumulative, bounds), &interval, &[]);
        assert_eq!(total(&got, "gotrace.goroutine.created"), 36);
        assert_eq!(total(&got, "gotrace.goroutine.count"), 6);
        series(&got)
    };
    let (all, few) = (counted(200), counted(SeriesBounds::LEAST + 4));
    // Two reasons of six with two series each, no site of twelve with four each, and a sum of the others in each of
    // six metrics at most.
    assert!(few <= all - 4 * 2 - 12 * 4 + 6, "{few} of {all}");
    assert!(few <= SeriesBounds::LEAST + 4);
}

#[test]
fn the_slowest_requests_are_exemplars_of_their_series() {
    let mut interval = samples::interval(&samples::resource(), 0, Vec::new());
    interval.requests = Some(samples::requests(&[5, 90, 7, 40]).into());
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let got = report(&mut Metrics::new(temporality, SeriesBounds::default()), &interval, &[]);
        let [point] = &*exponential(&got["gotrace.request.duration"]).data_points else {
            panic!("one series")
        };
        let told: Vec<_> =
            point.exemplars.iter().map(|e| (e.value, e.span_id[7], e.trace_id.len())).collect();
        let took = |seconds| Some(exemplar::Value::AsDouble(seconds));
        assert_eq!(told, [(took(0.09), 2, 16), (took(0.04), 4, 16), (took(0.007), 3, 16)]);
        let first = &point.exemplars[0];
        assert_eq!(
            first.time_unix_nano,
            interval.requests.as_ref().expect("some").slow[0].start_unix_nano + 90_000_000
        );
    }
    // One that is still open is not in the histogram.
    let mut requests = samples::requests(&[5]);
    std::sync::Arc::make_mut(&mut requests.slow[0]).ended = None;
    interval.requests = Some(requests.into());
    let got = report(&mut Metrics::new(Temporality::Cumulative, SeriesBounds::default()), &interval, &[]);
    assert_eq!(exponential(&got["gotrace.request.duration"]).data_points[0].exemplars, []);
}

#[test]
fn routes_beyond_the_bound_are_summed_up() {
    let mut interval = samples::interval(&samples::resource(), 0, Vec::new());
    let mut requests = samples::requests(&[5, 90, 7, 40]);
    let first = requests.routes.remove(0);
    requests.routes = (0..3)
        .map(|n| {
            let mut route = first.clone();
            route.name.route = Some(format!("/{n}").into());
            route
        })
        .collect();
    interval.requests = Some(requests.into());
    let told = |routes| {
        let bounds = SeriesBounds { routes, ..SeriesBounds::default() };
        let got = report(&mut Metrics::new(Temporality::Cumulative, bounds), &interval, &[]);
        let durations = exponential(&got["gotrace.request.duration"]);
        let key = |of: &[opentelemetry_proto::tonic::common::v1::KeyValue]| {
            of.iter().any(|a| a.key == "otel.metric.overflow")
        };
        let others = durations.data_points.iter().filter(|point| key(&point.attributes));
        (durations.data_points.len(), others.map(|point| point.count).sum::<u64>())
    };
    assert_eq!(told(2), (3, 4));
    assert_eq!(told(3), (3, 0));
}
