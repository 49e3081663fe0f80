//! Requests as metrics: how long they took, by route and status, and what they spent their time on, by route and state.
//!
//! These series are beside the others of a process: the first few routes ([`super::admission::SeriesBounds::routes`]) have their own, the first [`STATUSES`]
//! statuses of each, for good; what is beyond is summed up in one series a metric.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use gotrace_common::Histogram;

use super::{
    Exemplar, Label, LabelValue, REQUEST_DURATION, REQUEST_TIME, Sample, Samples, Series, Value,
    admission::{Admitted, Room},
};
use crate::requests::{BLOCKED_NAMES, Protocol, Request, Requests, RouteName, TIME_NAMES, code_of_grpc};

/// Statuses of a route that have.
pub const STATUSES: usize = 4;
/// Exemplars of a series, the slowest.
const EXEMPLARS: usize = 3;

/// What tells requests of a metric apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    name: RouteName,
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Status(Option<u16>),
    /// By its place among the parts of a time.
    Time(usize),
}

/// Routes and statuses that have been given series.
pub(super) type Routes = HashMap<RouteName, HashSet<Option<u16>>>;

impl RequestKey {
    pub(super) fn labels(&self) -> Vec<Label> {
        let Self { name, part } = self;
        let text = |text: &str| LabelValue::Text(Arc::from(text));
        let mut labels = Vec::new();
        if name.protocol == Protocol::Grpc {
            labels.push(("rpc.system.name", LabelValue::Name("grpc")));
            labels
                .extend(name.route.as_ref().map(|route| ("rpc.method", text(route.trim_start_matches('/')))));
        } else if name.protocol == Protocol::Function {
            labels.extend(
                name.handler
                    .as_ref()
                    .map(|h| ("code.function.name", LabelValue::Text(Arc::clone(&h.function)))),
            );
        } else if name.protocol == Protocol::Span {
            labels.extend(
                name.route.as_ref().map(|span| ("gotrace.span.name", LabelValue::Text(Arc::clone(span)))),
            );
        } else {
            labels.extend(name.known_method().map(|method| ("http.request.method", text(method))));
            labels
                .extend(name.route.as_ref().map(|route| ("http.route", LabelValue::Text(Arc::clone(route)))));
            let handler = name.handler.as_ref().filter(|_| name.route.is_none());
            labels.extend(handler.map(|h| ("code.function.name", LabelValue::Text(Arc::clone(&h.function)))));
        }
        match part {
            Part::Status(Some(code)) if name.protocol == Protocol::Grpc => {
                labels.extend(
                    code_of_grpc(*code).map(|code| ("rpc.response.status_code", LabelValue::Name(code))),
                );
            }
            Part::Status(Some(code)) if name.protocol == Protocol::Span => {
                labels.extend((*code == 1).then_some(("error.type", LabelValue::Name("_OTHER"))));
            }
            Part::Status(Some(status)) => {
                labels.push(("http.response.status_code", LabelValue::Int((*status).into())));
            }
            Part::Status(None) => {}
            Part::Time(n) => match TIME_NAMES.get(*n) {
                Some(state) => labels.push(("gotrace.state", LabelValue::Name(state))),
                None => {
                    let reason = BLOCKED_NAMES.get(n - TIME_NAMES.len()).copied().unwrap_or_default();
                    labels.push(("gotrace.state", LabelValue::Name("blocked")));
                    labels.push(("gotrace.wait.reason", LabelValue::Name(reason)));
                }
            },
        }
        labels
    }
}

impl Samples<'_> {
    pub(super) fn requests(&mut self, requests: &Requests) {
        let (mut durations, mut times) = (Vec::new(), Vec::new());
        let (mut other, mut other_ns) = (Histogram::default(), 0u64);
        for route in &requests.routes {
            let Some(statuses) = self.admitted.route(&route.name, self.room) else {
                other.merge(&route.total.durations);
                other_ns = other_ns.saturating_add(route.total.times.total());
                continue;
            };
            for (status, histogram) in &route.total.by_status {
                if statuses.len() < STATUSES {
                    statuses.insert(*status);
                }
                if statuses.contains(status) {
                    let key = RequestKey { name: route.name.clone(), part: Part::Status(*status) };
                    durations.push((Series::Request(Box::new(key)), Value::Durations(Box::new(*histogram))));
                } else {
                    other.merge(histogram);
                }
            }
            for (n, ns) in route.total.times.0.iter().enumerate().filter(|(_, ns)| **ns > 0) {
                let key = RequestKey { name: route.name.clone(), part: Part::Time(n) };
                times.push((Series::Request(Box::new(key)), Value::Nanoseconds(*ns)));
            }
        }
        if other.count > 0 {
            durations.push((Series::Overflow, Value::Durations(Box::new(other))));
        }
        if other_ns > 0 {
            times.push((Series::Overflow, Value::Nanoseconds(other_ns)));
        }
        if !durations.is_empty() {
            let exemplars = exemplars(&requests.slow, &durations);
            self.samples.push(Sample { exemplars, ..Sample::new(&REQUEST_DURATION, durations) });
        }
        self.push(&REQUEST_TIME, times);
    }
}

/// The slowest of what was told of each series.
fn exemplars(slow: &[Arc<Request>], series: &[(Series, Value)]) -> Vec<(Series, Exemplar)> {
    let mut slowest: Vec<&Request> =
        slow.iter().map(|request| &**request).filter(|request| request.ended.is_some()).collect();
    slowest.sort_by_key(|request| std::cmp::Reverse(request.duration_ns));
    let mut counts: HashMap<Series, usize> = series.iter().map(|(series, _)| (series.clone(), 0)).collect();
    let one = |request: &Request| {
        let key = RequestKey { name: request.name.clone(), part: Part::Status(request.status) };
        let series = Series::Request(Box::new(key));
        let count = counts.get_mut(&series).filter(|count| **count < EXEMPLARS)?;
        *count += 1;
        let exemplar = Exemplar {
            time_unix_nano: request.start_unix_nano.saturating_add(request.duration_ns),
            duration_ns: request.duration_ns,
            span: request.context,
        };
        Some((series, exemplar))
    };
    slowest.into_iter().filter_map(one).collect()
}

impl Admitted {
    /// The statuses that a route has series for, where it has; gives it some while there is room.
    fn route(&mut self, name: &RouteName, room: &mut Room) -> Option<&mut HashSet<Option<u16>>> {
        if !self.routes.contains_key(name) {
            if self.routes.len() >= room.routes || !room.take(room.route()) {
                return None;
            }
            self.routes.insert(name.clone(), HashSet::new());
        }
        self.routes.get_mut(name)
    }
}
