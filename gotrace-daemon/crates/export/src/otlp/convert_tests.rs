//! What a span is on the wire, field by field.

use super::*;
use gotrace_model::samples;

fn attributes(list: &[KeyValue]) -> Vec<(String, String)> {
    list.iter()
        .map(|kv| {
            let value = match kv.value.as_ref().and_then(|v| v.value.as_ref()) {
                Some(any_value::Value::StringValue(s)) => s.clone(),
                Some(any_value::Value::IntValue(i)) => i.to_string(),
                other => format!("{other:?}"),
            };
            (kv.key.clone(), value)
        })
        .collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_life_that_was_seen_is_told_by_state() {
    let Span::Goroutine(goroutine) = samples::goroutine(&samples::resource(), 18) else {
        panic!("a goroutine")
    };
    let life = Some([1_900_000, 100_000, 500_000, 2_500_000]);
    let got = span(&Span::Goroutine(GoroutineSpan { life, ..goroutine }));
    let states = got.attributes.iter().filter(|a| LIFE_NAMES.contains(&&*a.key));
    let told: u64 =
        states.map(|a| attributes(std::slice::from_ref(a))[0].1.parse::<u64>().expect("a number")).sum();
    assert_eq!(told, got.end_time_unix_nano - got.start_time_unix_nano);
}

#[test]
fn a_goroutine_at_the_root_of_its_trace_links_to_its_creator() {
    let got = span(&samples::goroutine(&samples::resource(), 18));
    assert_eq!(got.name, "main.worker");
    assert_eq!(got.kind, 1);
    assert_eq!(got.parent_span_id, Vec::<u8>::new());
    assert_eq!(got.trace_id, samples::context(18, 18).trace_id);
    assert_eq!(got.span_id, samples::context(18, 18).span_id);
    assert_eq!(got.end_time_unix_nano - got.start_time_unix_nano, 5_000_000);
    assert_eq!(
        attributes(&got.attributes),
        pairs(&[
            ("code.function.name", "main.worker"),
            ("code.file.path", "/src/main.go"),
            ("code.line.number", "12"),
            ("gotrace.goroutine.id", "18"),
            ("gotrace.goroutine.parent.id", "1"),
            ("gotrace.created_by.function.name", "main.main"),
            ("gotrace.created_by.file.path", "/src/main.go"),
            ("gotrace.created_by.line.number", "30"),
            ("gotrace.wait.total", "3000000"),
            ("gotrace.run.total", "2000000"),
            ("gotrace.wait.count", "4"),
            ("gotrace.time.on_cpu", "1250000"),
            ("gotrace.time.throttled", "250000"),
            ("gotrace.wait.total.chan_receive", "2500000"),
            ("gotrace.wait.total.select", "0"),
        ])
    );
    let [link] = got.links.as_slice() else { panic!("one link, not {:?}", got.links) };
    assert_eq!(link.span_id, samples::context(1, 1).span_id);
    assert_eq!(link.trace_id, samples::context(1, 1).trace_id);
    assert_eq!(attributes(&link.attributes), pairs(&[("gotrace.link.kind", "creator")]));
}

#[test]
fn a_goroutine_within_a_trace_has_a_parent_and_no_link() {
    let got = span(&samples::goroutine(&samples::resource(), 19));
    assert_eq!(got.parent_span_id, samples::context(18, 18).span_id);
    assert!(got.links.is_empty());
}

#[test]
fn what_is_unknown_is_left_out() {
    let got = span(&samples::bare_goroutine(&samples::resource()));
    assert_eq!(
        attributes(&got.attributes),
        pairs(&[("code.function.name", "?0x47ab12"), ("gotrace.goroutine.id", "2")])
    );
    let got = span(&samples::wait(&samples::resource(), Waker::Unknown));
    assert_eq!(
        attributes(&got.attributes),
        pairs(&[
            ("gotrace.goroutine.id", "18"),
            ("gotrace.wait.reason", "chan receive"),
            ("gotrace.waker.kind", "unknown"),
        ])
    );
}

#[test]
fn a_wait_is_a_child_of_its_goroutine_and_links_to_its_waker() {
    let got = span(&samples::wait(&samples::resource(), Waker::Goroutine(1, samples::context(1, 1))));
    assert_eq!(got.name, "chan receive");
    assert_eq!(got.parent_span_id, samples::context(18, 18).span_id);
    assert_eq!(got.trace_id, samples::context(18, 18).trace_id);
    assert_eq!(
        attributes(&got.attributes),
        pairs(&[
            ("code.function.name", "main.worker"),
            ("code.file.path", "/src/main.go"),
            ("code.line.number", "15"),
            ("gotrace.goroutine.id", "18"),
            ("gotrace.wait.reason", "chan receive"),
            ("gotrace.wait.scheduling_delay", "700"),
            ("gotrace.waker.kind", "goroutine"),
            ("gotrace.waker.goroutine.id", "1"),
        ])
    );
    assert_eq!(got.links[0].span_id, samples::context(1, 1).span_id);
    assert_eq!(attributes(&got.links[0].attributes), pairs(&[("gotrace.link.kind", "waker")]));
    for (waker, kind) in [(Waker::Netpoll, "netpoll"), (Waker::Timer, "timer"), (Waker::Gc, "gc")] {
        let got = span(&samples::wait(&samples::resource(), waker));
        assert!(got.links.is_empty());
        assert!(attributes(&got.attributes).contains(&("gotrace.waker.kind".into(), kind.into())));
    }
}

#[test]
fn a_request_names_the_process_and_gotrace() {
    let resource = samples::resource();
    let request = trace_request(&resource, vec![span(&samples::bare_goroutine(&resource))]);
    let process = &request.resource_spans[0];
    let attributes = &process.resource.as_ref().expect("a resource").attributes;
    assert_eq!(
        attributes.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(),
        ["process.command_args", "process.pid", "service.name"]
    );
    let scope = process.scope_spans[0].scope.as_ref().expect("a scope");
    assert_eq!((scope.name.as_str(), scope.version.as_str()), ("gotrace", env!("CARGO_PKG_VERSION")));
}
