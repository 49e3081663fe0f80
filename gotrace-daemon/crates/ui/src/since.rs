//! What grew and shrank since a mark: of two intervals, one that begins at the mark.
//!
//! Counts and durations that are kept since attaching are subtracted; what is a state (goroutines alive, requests that
//! are open, what is waited for) is shown as its change. Of a histogram the longest is not known where a longer one
//! was before the mark: then it is the bound of its bucket, up to a fifth too long, never too short.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use gotrace_common::{BUCKETS, Histogram, bucket_upper_bound_ns};
use gotrace_model::{
    Interval, Location, Place, Site,
    requests::{Route, RouteTotal, TimeSpent},
};

use super::{
    format,
    places::PlaceRow,
    requests::RouteRow,
    state::{Row, State},
};

/// Wait reasons that a row tells.
const REASONS: usize = 3;

impl State {
    /// Marks what is shown, or ends that.
    pub(super) fn mark(&mut self) {
        self.mark = match self.mark.take() {
            Some(_) => None,
            None => self.last.clone(),
        };
        self.refresh();
    }
}

/// Whether an interval can be compared with the mark: it is of the same process, and not of before.
pub(super) fn is_after(mark: &Interval, now: &Interval) -> bool {
    mark.pid == now.pid && mark.end_unix_nano <= now.end_unix_nano
}

/// `+12 since 14:02:11 UTC, 35s`
pub(super) fn told(mark: &Interval, now: &Interval) -> String {
    let second = mark.end_unix_nano / 1_000_000_000 % 86_400;
    format!(
        "{} since {:02}:{:02}:{:02} UTC, {}",
        change(now.alive, mark.alive),
        second / 3_600,
        second / 60 % 60,
        second % 60,
        format::duration(now.end_unix_nano.saturating_sub(mark.end_unix_nano))
    )
}

/// The title of a column whose figures are changes.
pub(super) fn title(state: &State, title: &'static str) -> &'static str {
    match title {
        _ if state.mark.is_none() => title,
        "alive" => "±alive",
        "open" => "±open",
        "count" => "+count",
        "total" => "+total",
        "errors" => "+error",
        title => title,
    }
}

/// What was since the mark, as an interval: its states are those of now.
pub(super) fn between(mark: &Interval, now: &Interval) -> Interval {
    let mut between = now.clone();
    between.start_unix_nano = mark.end_unix_nano;
    let sites = by_key(mark);
    for site in &mut between.sites {
        if let Some(before) = sites.get(&key(site)) {
            subtract_site(site, before);
        } else {
            (site.born, site.died) = (site.born_total, site.died_total);
            site.cpu_ns = site.known_cpu_ns(true).or(site.cpu_ns);
        }
    }
    let known = by_key(now);
    let gone = mark.sites.iter().filter(|site| site.alive > 0 && !known.contains_key(&key(site)));
    between.sites.extend(gone.map(|site| Site {
        alive: 0,
        born: 0,
        died: site.alive,
        cpu_ns: None,
        waiting: BTreeMap::new(),
        waits: Histogram::default(),
        oldest_ns: None,
        ..site.clone()
    }));
    let places = Arc::make_mut(&mut between.waits_at);
    places.others = subtract(&places.others, &mark.waits_at.others);
    for place in &mut places.places {
        if let Some(before) = mark.waits_at.places.iter().find(|before| is_same_place(before, place)) {
            place.waits = subtract(&place.waits, &before.waits);
        }
        place.recent = (place.waits.count, place.waits.sum_ns);
    }
    for route in between.requests.iter_mut().flat_map(|requests| &mut Arc::make_mut(requests).routes) {
        if let Some(before) = route_of(mark, route) {
            route.total = subtract_total(&route.total, &before.total);
        }
        route.durations = route.total.durations;
    }
    between
}

/// The site as of now, where it is there.
pub(super) fn site_of<'a>(interval: &'a Interval, site: &Site) -> Option<&'a Site> {
    interval.sites.iter().find(|other| key(other) == key(site))
}

/// The place as of now.
pub(super) fn place_of<'a>(interval: &'a Interval, place: &Place) -> Option<&'a Place> {
    interval.waits_at.places.iter().find(|other| is_same_place(other, place))
}

/// The route as of now.
pub(super) fn route_of<'a>(interval: &'a Interval, route: &Route) -> Option<&'a Route> {
    interval.requests.iter().flat_map(|requests| &requests.routes).find(|other| other.name == route.name)
}

/// By how many more of a site's goroutines are alive.
pub(super) fn growth(mark: &Interval) -> impl Fn(&Site) -> i128 {
    let sites = by_key(mark);
    move |site| i128::from(site.alive) - i128::from(sites.get(&key(site)).map_or(0, |before| before.alive))
}

/// Has the rows of sites tell changes.
pub(super) fn tell_sites(mark: &Interval, sites: &[&Site], rows: &mut [Row]) {
    let known = by_key(mark);
    let none = BTreeMap::new();
    for (site, row) in sites.iter().zip(rows) {
        let before = known.get(&key(site));
        row.alive = change(site.alive, before.map_or(0, |before| before.alive));
        row.waiting = reasons(&site.waiting, before.map_or(&none, |before| &before.waiting));
    }
}

/// Has the rows of routes tell changes.
pub(super) fn tell_routes(mark: &Interval, routes: &[&Route], rows: &mut [RouteRow]) {
    for (route, row) in routes.iter().zip(rows) {
        row.open = change(route.open, route_of(mark, route).map_or(0, |before| before.open));
    }
}

/// Has the rows of places without waits say so.
pub(super) fn tell_places(rows: &mut [PlaceRow]) {
    for row in rows.iter_mut().filter(|row| row.count == "0") {
        (row.total, row.max) = ("0".into(), "-".into());
    }
}

type Key<'a> = (&'a Location, Option<&'a Location>);

fn key(site: &Site) -> Key<'_> {
    (&site.entry, site.created_by.as_deref())
}

fn by_key(interval: &Interval) -> BTreeMap<Key<'_>, &Site> {
    interval.sites.iter().map(|site| (key(site), site)).collect()
}

fn is_same_place(a: &Place, b: &Place) -> bool {
    a.reason == b.reason && a.at == b.at && a.peer == b.peer && a.system == b.system
}

/// `+12`, `-3`, `0`.
fn change(now: u64, before: u64) -> String {
    match now.checked_sub(before) {
        Some(0) => "0".into(),
        Some(more) => format!("+{}", format::count(more)),
        None => format!("-{}", format::count(before - now)),
    }
}

/// `chan receive +12, select -3`: what changed most first; what is left out is counted.
fn reasons(now: &BTreeMap<Arc<str>, u64>, before: &BTreeMap<Arc<str>, u64>) -> String {
    let of = |of: &BTreeMap<Arc<str>, u64>, reason| of.get(reason).copied().unwrap_or(0);
    let mut names: Vec<&Arc<str>> = now.keys().chain(before.keys()).collect();
    names.sort();
    names.dedup();
    let mut changes: Vec<(&Arc<str>, u64, u64)> =
        names.into_iter().map(|reason| (reason, of(now, reason), of(before, reason))).collect();
    changes.retain(|(_, now, before)| now != before);
    changes.sort_by_key(|(_, now, before)| Reverse(now.abs_diff(*before)));
    let mut told: Vec<String> = changes
        .iter()
        .take(REASONS)
        .map(|(reason, now, before)| format!("{reason} {}", change(*now, *before)))
        .collect();
    if changes.len() > REASONS {
        told.push(format!("{} more", changes.len() - REASONS));
    }
    told.join(", ")
}

fn subtract_site(site: &mut Site, before: &Site) {
    site.born = site.born_total.saturating_sub(before.born_total);
    site.died = site.died_total.saturating_sub(before.died_total);
    if site.known_cpu_ns(true).is_some() {
        site.cpu_ns = Some(site.cpu_total_ns.saturating_sub(before.cpu_total_ns));
    }
    site.waits = subtract(&site.waits, &before.waits);
}

fn subtract_total(now: &RouteTotal, before: &RouteTotal) -> RouteTotal {
    let by_status = now.by_status.iter().map(|(status, durations)| {
        (*status, before.by_status.get(status).map_or(*durations, |before| subtract(durations, before)))
    });
    RouteTotal {
        by_status: by_status.collect(),
        errors: now.errors.saturating_sub(before.errors),
        slow: now.slow.saturating_sub(before.slow),
        durations: subtract(&now.durations, &before.durations),
        times: subtract_times(&now.times, &before.times),
        slow_times: subtract_times(&now.slow_times, &before.slow_times),
    }
}

fn subtract_times(now: &TimeSpent, before: &TimeSpent) -> TimeSpent {
    let mut times = *now;
    for (time, before) in times.0.iter_mut().zip(before.0) {
        *time = time.saturating_sub(before);
    }
    times
}

fn subtract(now: &Histogram, before: &Histogram) -> Histogram {
    let mut since = Histogram {
        count: now.count.saturating_sub(before.count),
        sum_ns: now.sum_ns.saturating_sub(before.sum_ns),
        ..*now
    };
    for (bucket, before) in since.buckets.iter_mut().zip(before.buckets) {
        *bucket = bucket.saturating_sub(before);
    }
    if now.max_ns <= before.max_ns {
        since.max_ns = match since.buckets.iter().rposition(|n| *n > 0) {
            None => 0,
            Some(last) if last == BUCKETS - 1 => now.max_ns,
            Some(last) => bucket_upper_bound_ns(last).min(now.max_ns),
        };
    }
    since
}

#[cfg(test)]
#[path = "since_tests.rs"]
mod tests;
