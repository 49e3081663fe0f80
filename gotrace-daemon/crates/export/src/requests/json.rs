//! `gotrace.requests/1`: one object a line. Unknown is `null`; times are `*_unix_nano` or `*_ns`, integers.

use std::io::{self, Write};

use gotrace_common::Histogram;
use gotrace_model::{
    Quantile, Resource,
    requests::{Cause, Children, OpenBefore, Request, RequestWait, Requests, Route, RouteName, TimeSpent},
};
use serde_json::{Map, Value as Json, json};

use super::{Gathered, whole};
use crate::json::{header_of, location, write};

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.requests/1";

/// The first line: the probes are in place.
///
/// # Errors
/// What the writer says.
pub fn header(
    out: &mut impl Write,
    resource: &Resource,
    pid: u32,
    how: (&str, &str),
    time_unix_nano: u64,
) -> io::Result<()> {
    header_of(out, SCHEMA, resource, pid, how, time_unix_nano)
}

/// A line for a slow request.
///
/// # Errors
/// What the writer says.
pub fn request(out: &mut impl Write, request: &Request) -> io::Result<()> {
    write(out, &json!({ "request": one(request) }))
}

/// A line for those that were open before: how many, and what they wait for.
///
/// # Errors
/// What the writer says.
pub fn open_before(out: &mut impl Write, before: &[OpenBefore]) -> io::Result<()> {
    let of = |of: &OpenBefore| {
        let OpenBefore { server, reason, stack, own_code, goids } = of;
        json!({
            "server": server,
            "count": goids.len(),
            "goids": goids,
            "state": reason,
            "stack": stack.iter().map(|frame| location(frame)).collect::<Vec<_>>(),
            "own_code": own_code.as_ref().map(|own| location(own)),
        })
    };
    write(out, &json!({ "open_before": before.iter().map(of).collect::<Vec<_>>() }))
}

/// A line for an interval.
///
/// # Errors
/// What the writer says.
pub fn interval(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    write(out, &json!({ "interval": figures(gathered) }))
}

/// The last line: the whole run.
///
/// # Errors
/// What the writer says.
pub fn summary(
    out: &mut impl Write,
    gathered: &Gathered,
    probe_cost: Option<f64>,
    ended: &str,
) -> io::Result<()> {
    let mut line = figures(gathered);
    if let Json::Object(fields) = &mut line {
        fields.insert("probe_cost_share".into(), json!(probe_cost));
        fields.insert("ended".into(), json!(ended));
    }
    write(out, &json!({ "summary": line }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `{"on_cpu": …, "blocked": {"chan receive": …}}`; reasons with 0 are left out.
fn spent(time: &TimeSpent) -> Json {
    let mut all: Map<String, Json> = time.states().map(|(name, ns)| (name.to_owned(), ns.into())).collect();
    let blocked: Map<String, Json> =
        time.blocked().filter(|(_, ns)| *ns > 0).map(|(name, ns)| (name.to_owned(), ns.into())).collect();
    all.insert("blocked".into(), blocked.into());
    all.into()
}

pub(crate) fn one(request: &Request) -> Json {
    let Request {
        id,
        context,
        parent_span_id,
        own_span,
        goroutine: _,
        name,
        path,
        status,
        start_unix_nano,
        duration_ns,
        goid,
        ended,
        time,
        children,
        waits,
        waits_complete,
        now,
    } = request;
    let RouteName { protocol, method, route, handler } = name;
    json!({
        "id": id,
        "protocol": protocol.name(),
        "method": method,
        "route": route,
        "handler": handler.as_ref().map(|handler| location(handler)),
        "path": path,
        "status": status,
        "start_unix_nano": start_unix_nano,
        "duration_ns": duration_ns,
        "goid": goid,
        "open": ended.is_none(),
        "ended": ended.map(|ended| ended.name()),
        "state": now.as_ref().map(|now| &now.state),
        "stack": now.as_ref().map(|now| now.stack.iter().map(|frame| location(frame)).collect::<Vec<_>>()),
        "own_code": now.as_ref().and_then(|now| now.own_code.as_ref()).map(|own| location(own)),
        "trace_id": parent_span_id.map(|_| hex(&context.trace_id)),
        "parent_span_id": parent_span_id.map(|id| hex(&id)),
        "span_id": hex(&context.span_id),
        "own_span": own_span.map(|own| json!({ "parent_span_id": own.parent_span_id.map(|id| hex(&id)) })),
        "time_ns": spent(time),
        "children": children.as_ref().map(of_children),
        "waits": waits.iter().map(wait).collect::<Vec<_>>(),
        "waits_complete": waits_complete,
    })
}

fn of_children(children: &Children) -> Json {
    let Children { goroutines, left_running, time } = children;
    json!({ "goroutines": goroutines, "left_running": left_running, "time_ns": spent(time) })
}

fn wait(wait: &RequestWait) -> Json {
    let RequestWait {
        offset_ns,
        span_id: _,
        duration_ns,
        reason,
        stack,
        site,
        own_code,
        peer,
        ended_by,
        ended_by_goid,
        causes,
    } = wait;
    json!({
        "offset_ns": offset_ns,
        "duration_ns": duration_ns,
        "reason": reason,
        "stack": stack.iter().map(|frame| location(frame)).collect::<Vec<_>>(),
        "site": site.as_ref().map(|site| location(site)),
        "own_code": own_code.as_ref().map(|own| location(own)),
        "peer": peer.map(|peer| peer.to_string()),
        "ended_by": { "kind": ended_by, "goid": ended_by_goid },
        "causes": causes.iter().map(cause).collect::<Vec<_>>(),
    })
}

fn cause(cause: &Cause) -> Json {
    let Cause { goid, function, state, duration_ns, frame } = cause;
    json!({
        "goid": goid,
        "function": function.as_ref().map(|f| &f.function),
        "state": state,
        "duration_ns": duration_ns,
        "frame": frame.as_ref().map(|frame| location(frame)),
    })
}

fn quantiles(durations: &Histogram) -> Json {
    let [p50, p99] = [0.5, 0.99].map(|q| Quantile::of(durations, q).map(|q| q.at_most_ns));
    json!({ "p50": p50, "p99": p99, "max": (durations.count > 0).then_some(durations.max_ns) })
}

fn route(route: &Route) -> Json {
    let why_slow = route.why_slow();
    let Route { name, by_status, errors, slow, durations, times, slow_times, total: _, open, oldest_open_ns } =
        route;
    let statuses: Map<String, Json> = by_status
        .iter()
        .map(|(status, n)| (status.map_or_else(|| "none".to_owned(), |s| s.to_string()), (*n).into()))
        .collect();
    json!({
        "protocol": name.protocol.name(),
        "method": name.method,
        "route": name.route,
        "handler": name.handler.as_ref().map(|handler| location(handler)),
        "count": durations.count,
        "by_status": statuses,
        "errors": errors,
        "slow": slow,
        "open": open,
        "oldest_open_ns": oldest_open_ns,
        "duration_ns": quantiles(durations),
        "time_ns": spent(times),
        "slow_time_ns": spent(slow_times),
        "why_slow": why_slow.map(|why| json!({ "part": why.part, "share": why.share })),
    })
}

/// As `attach` has them. `total`: figures since attaching.
pub(crate) fn to_json(requests: &Requests, total: bool) -> Json {
    let routes = requests.routes.iter().map(|of| if total { route(&whole(of)) } else { route(of) });
    json!({
        "routes": routes.collect::<Vec<_>>(),
        "slow": requests.slow.iter().map(|request| one(request)).collect::<Vec<_>>(),
        "slow_left_out": requests.left_out,
        "coverage": if total { requests.covered_total } else { requests.covered }.share(),
    })
}

pub(crate) fn figures(gathered: &Gathered) -> Json {
    json!({
        "start_unix_nano": gathered.start_unix_nano,
        "end_unix_nano": gathered.end_unix_nano,
        "coverage": gathered.coverage(),
        "routes": gathered.busy().into_iter().map(route).collect::<Vec<_>>(),
        "slow_left_out": gathered.left_out,
        "lost": gathered.lost,
    })
}
