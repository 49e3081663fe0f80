//! Requests as people read them.

use std::io::{self, Write};

use gotrace_model::{
    Interval, Location, Resource, Value,
    printable::printable,
    requests::{
        Children, Ended, OpenBefore, Protocol, Request, RequestWait, Route, RouteName, TimeSpent, WhySlow,
        code_of_grpc,
    },
};

use super::{Gathered, cause};
use crate::text::{duration, percent, quantile};

/// Routes that a table has.
const ROUTES: usize = 20;
/// Parts of a request that are less than this of it are not named.
const LEAST_SHARE: f64 = 0.005;
/// Parts that a route's row names.
const PARTS: usize = 3;
/// Waits that are printed of a request, the longest.
const WAITS: usize = 5;
/// Routes of which it is said why they are slow.
const FINDINGS: usize = 5;
/// Columns of a bar.
const BAR: u64 = 16;
/// Goroutines that are named of requests that were open before, and wait at one place.
const GOIDS: usize = 8;
/// Columns of a route's name.
const NAME: usize = 36;

/// The first lines. `servers`: what serves requests in it. `slow`: from when on a request is slow, in words.
///
/// # Errors
/// What the writer says.
pub fn header(
    out: &mut impl Write,
    resource: &Resource,
    pid: u32,
    servers: &[&str],
    slow: &str,
) -> io::Result<()> {
    let text = |name: &str| match resource.attributes.get(name) {
        Some(Value::Text(text)) => printable(text).into_owned(),
        _ => "?".to_owned(),
    };
    writeln!(
        out,
        "pid {pid} ({}, {}): requests of {}; a request is slow {slow}",
        text("process.executable.name"),
        text("process.runtime.version"),
        servers.join(", ")
    )
}

/// Those that were open before: how many, where, and what they wait for.
///
/// # Errors
/// What the writer says.
pub fn open_before(out: &mut impl Write, pid: u32, before: &[OpenBefore]) -> io::Result<()> {
    let Some(first) = before.first().and_then(|first| first.goids.first()) else { return Ok(()) };
    let all: usize = before.iter().map(|of| of.goids.len()).sum();
    let (were, wait) = if all == 1 { (" was", "s") } else { ("s were", "") };
    writeln!(out, "{all} request{were} open before gotrace attached, and wait{wait}:")?;
    for OpenBefore { server: _, reason, stack, own_code, goids } in before.iter().take(ROUTES) {
        let at =
            own_code.as_ref().or(stack.first()).map(|at| format!(" in {}", place(at))).unwrap_or_default();
        let told: Vec<_> = goids.iter().take(GOIDS).map(u64::to_string).collect();
        let more = if goids.len() > GOIDS { ", …" } else { "" };
        let s = if goids.len() == 1 { "" } else { "s" };
        writeln!(out, "{:>6}  {reason}{at}  goroutine{s} {}{more}", goids.len(), told.join(", "))?;
    }
    if before.len() > ROUTES {
        writeln!(out, "        and in {} other places", before.len() - ROUTES)?;
    }
    writeln!(
        out,
        "  what they asked for and how long they have been open is not known; `gotrace why {pid} --goid {first}` \
         tells who holds up that one"
    )
}

fn name_of(spent: &'static str) -> String {
    match spent {
        "gc_assist" => "GC assist".into(),
        "syscall" => "system call".into(),
        "other" => "other waits".into(),
        "on_cpu" => "on CPU".into(),
        name => name.replace('_', " "),
    }
}

/// The largest parts of a time, each with what `of` makes of it.
fn parts(time: &TimeSpent, most: usize, of: impl Fn(u64, f64) -> String) -> Vec<String> {
    let total = time.total().max(1) as f64;
    let mut parts: Vec<_> = time.parts().filter(|(_, ns)| *ns as f64 / total >= LEAST_SHARE).collect();
    parts.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    parts
        .iter()
        .take(most)
        .map(|(name, ns)| format!("{} {}", name_of(name), of(*ns, *ns as f64 / total)))
        .collect()
}

/// The largest parts of a time, as shares of it.
#[must_use]
pub fn shares(time: &TimeSpent, most: usize) -> String {
    parts(time, most, |_, share| percent(share)).join(", ")
}

/// A slow request, with its parts and its longest waits.
///
/// # Errors
/// What the writer says.
pub fn request(out: &mut impl Write, request: &Request) -> io::Result<()> {
    let Request {
        name,
        path,
        status,
        duration_ns,
        ended,
        time,
        children,
        waits,
        waits_complete,
        now,
        goid,
        ..
    } = request;
    let outcome = match (status, ended) {
        (Some(code), _) if name.protocol == Protocol::Grpc => {
            code_of_grpc(*code).map_or_else(|| code.to_string(), str::to_owned)
        }
        (Some(code), _) if name.protocol == Protocol::Span => {
            ["-", "ERROR", "OK"].get(usize::from(*code)).map_or_else(|| code.to_string(), |s| (*s).to_owned())
        }
        (Some(status), _) => status.to_string(),
        (None, None) => "OPEN".into(),
        (None, Some(Ended::Normal)) => "-".into(),
        (None, Some(ended)) => ended.name().to_uppercase().replace('_', " "),
    };
    let parts = parts(time, usize::MAX, |ns, _| duration(Some(ns)));
    write!(
        out,
        "{}  {outcome}  {}  {}",
        printable(&name.text()),
        duration(Some(*duration_ns)),
        parts.join(", ")
    )?;
    if let Some(now) = now {
        let at = now.own_code.as_ref().or(now.stack.first());
        let at = at.map(|at| format!(" in {}", place(at))).unwrap_or_default();
        write!(out, "; goroutine {goid} now: {}{at}", now.state)?;
    }
    writeln!(out)?;
    if let Some(path) = path {
        writeln!(out, "  path {path}")?;
    }
    let mut longest: Vec<&RequestWait> = waits.iter().collect();
    longest.sort_by_key(|wait| std::cmp::Reverse(wait.duration_ns));
    longest.truncate(WAITS);
    longest.sort_by_key(|wait| wait.offset_ns);
    for wait in &longest {
        // What waits, and where the program called it.
        let site = match (&wait.site, &wait.own_code) {
            (Some(site), Some(own)) if site != own => {
                format!("{} < {}", printable(&site.function), place(own))
            }
            (Some(site), _) => place(site),
            (None, own) => own.as_deref().map(place).unwrap_or_default(),
        };
        writeln!(
            out,
            "  +{:<7} {} {}{}  {site}{}",
            duration(Some(wait.offset_ns)),
            wait.reason,
            duration(Some(wait.duration_ns)),
            wait.peer.map(|peer| format!(" ← {peer}")).unwrap_or_default(),
            because(wait),
        )?;
    }
    if waits.len() > longest.len() {
        writeln!(out, "  and {} shorter waits", waits.len() - longest.len())?;
    }
    if let Some(children) = children.filter(|children| *children != Children::default()) {
        writeln!(out, "  {}", of_children(&children))?;
    }
    if *ended == Some(Ended::OtherGoroutine) {
        writeln!(out, "  another goroutine ended it; its time is that of goroutine {goid}, which began it")?;
    }
    if !waits_complete {
        writeln!(out, "  some of its waits are missing here; the parts above are complete")?;
    }
    Ok(())
}

/// Goroutines that were started for a request.
fn of_children(children: &Children) -> String {
    let Children { goroutines, left_running, time } = children;
    let mut text = "goroutines that it started: ".to_owned();
    if *goroutines > 0 {
        let parts = parts(time, PARTS, |ns, _| duration(Some(ns)));
        text += &format!("{goroutines} took {}: {}", duration(Some(time.total())), parts.join(", "));
    }
    if *left_running > 0 {
        text += &format!("{}left running {left_running}", if *goroutines > 0 { "; " } else { "" });
    }
    text
}

fn place(location: &Location) -> String {
    let file = location.file.rsplit('/').next().unwrap_or_default();
    let function = printable(&location.function);
    if file.is_empty() {
        function.into_owned()
    } else {
        format!("{function} {}:{}", printable(file), location.line)
    }
}

/// Who ended a wait, and what kept that one.
fn because(wait: &RequestWait) -> String {
    let is_lock = wait.reason.contains("Mutex");
    match (wait.ended_by, wait.causes.as_slice()) {
        ("goroutine", [first, rest @ ..]) => {
            let verb = if is_lock { "held by" } else { "ended by" };
            let mut text = format!("  {verb} {}", cause(first));
            let mut goid = first.goid;
            for more in rest {
                if more.goid == goid {
                    text += &format!(", {} {}", more.state, duration(Some(more.duration_ns)));
                } else {
                    text += &format!(", ended by {}", cause(more));
                }
                goid = more.goid;
            }
            text
        }
        ("gc", _) => "  ended by the garbage collector".into(),
        _ => String::new(),
    }
}

/// Where time went, as a bar of so many columns ([`LEGEND`]).
#[must_use]
pub fn bar(time: &TimeSpent, columns: u64) -> String {
    let total = time.total();
    if total == 0 {
        return String::new();
    }
    let sum = |names: &[&str]| -> u64 {
        time.states().filter(|(name, _)| names.contains(name)).map(|(_, ns)| ns).sum()
    };
    let on = sum(&["on_cpu"]);
    let waiting = sum(&["descheduled", "throttled", "run_queue", "world_stopped"]);
    let system = sum(&["syscall", "gc_assist"]);
    let mut bar = String::new();
    let (mut done, mut drawn) = (0u64, 0);
    for (ns, glyph) in [(on, '█'), (waiting, '▓'), (system, '▒'), (total - on - waiting - system, '░')]
    {
        done += ns;
        let until = (u128::from(done) * u128::from(columns) + u128::from(total) / 2) / u128::from(total);
        let until = u64::try_from(until).unwrap_or(columns);
        bar.extend(std::iter::repeat_n(glyph, usize::try_from(until - drawn).unwrap_or(0)));
        drawn = until;
    }
    bar
}

/// What a table's bars mean.
pub const LEGEND: &str = "█ on CPU  ▓ waiting for a CPU  ▒ system call, GC assist  ░ blocked";

fn row(route: &Route, name: &str) -> String {
    let mut name = printable(name).into_owned();
    if let Some((end, _)) = name.char_indices().nth(NAME - 1).filter(|_| name.chars().count() > NAME) {
        name.truncate(end);
        name.push('…');
    }
    let open = if route.open == 0 {
        "-".to_owned()
    } else {
        format!("{} ({})", route.open, duration(route.oldest_open_ns))
    };
    let max = (route.durations.count > 0).then_some(route.durations.max_ns);
    format!(
        "{name:<NAME$} {:>8} {:>7} {:>6} {:>8} {:>8} {:>8} {open:>12}  {:<16}  {}",
        route.durations.count,
        route.errors,
        route.slow,
        quantile(&route.durations, 0.5),
        quantile(&route.durations, 0.99),
        duration(max),
        bar(&route.times, BAR),
        shares(&route.times, PARTS),
    )
}

/// What `attach` prints of requests for an interval: the slow ones.
pub(crate) fn in_interval(out: &mut impl Write, interval: &Interval) -> io::Result<()> {
    for slow in interval.requests.iter().flat_map(|requests| &requests.slow) {
        request(out, slow)?;
    }
    Ok(())
}

/// And for the whole run: its routes.
pub(crate) fn in_summary(out: &mut impl Write, last: &Interval) -> io::Result<()> {
    if last.requests.is_none() {
        return Ok(());
    }
    let mut gathered = Gathered::default();
    gathered.add(last, true);
    writeln!(out, "  requests")?;
    rows(out, &gathered.busy(), "    ")
}

/// A table of routes.
///
/// # Errors
/// What the writer says.
pub fn table(out: &mut impl Write, gathered: &Gathered) -> io::Result<()> {
    let routes = gathered.busy();
    let seconds = gathered.end_unix_nano.saturating_sub(gathered.start_unix_nano) as f64 / 1e9;
    let (all, _) = gathered.all();
    writeln!(out, "\n{} requests in {seconds:.1} s{}", all.count, if routes.is_empty() { "" } else { ":" })?;
    rows(out, &routes, "")?;
    if gathered.left_out > 0 {
        writeln!(
            out,
            "{} more slow requests are counted, and not shown: of each route 20 a second are",
            gathered.left_out
        )?;
    }
    let coverage = gathered.coverage();
    if coverage < 1.0 {
        writeln!(
            out,
            "requests were traced in turns, for {} of the time, to keep the overhead within the budget",
            percent(coverage)
        )?;
    }
    if !gathered.lost.is_empty() {
        let lost: Vec<_> = gathered.lost.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        writeln!(out, "lost: {}", lost.join(", "))?;
    }
    out.flush()
}

/// Rows of a table, with its head.
fn rows(out: &mut impl Write, routes: &[&Route], indent: &str) -> io::Result<()> {
    if routes.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "{indent}{:<NAME$} {:>8} {:>7} {:>6} {:>8} {:>8} {:>8} {:>12}  where the time went",
        "route", "requests", "errors", "slow", "p50", "p99", "max", "open (since)"
    )?;
    let names: Vec<&RouteName> = routes.iter().map(|route| &route.name).collect();
    for (route, name) in routes.iter().zip(RouteName::texts(&names)).take(ROUTES) {
        writeln!(out, "{indent}{}", row(route, &name).trim_end())?;
    }
    if routes.len() > ROUTES {
        writeln!(out, "{indent}and {} more routes", routes.len() - ROUTES)?;
    }
    writeln!(out, "{indent}{LEGEND}")?;
    let findings = routes.iter().filter_map(|route| Some((route, route.why_slow()?)));
    for (route, why) in findings.take(FINDINGS) {
        writeln!(out, "{indent}{}", why_slow(route, why))?;
    }
    Ok(())
}

/// `38% of the time of slow requests of GET /checkout/{id} (12 of 900, p99 312ms): throttled, as the CPU quota was used up`
fn why_slow(route: &Route, why: WhySlow) -> String {
    format!(
        "{} of the time of slow requests of {} ({} of {}, p99 {}): {}",
        percent(why.share),
        printable(&route.name.text()),
        route.slow,
        route.durations.count,
        quantile(&route.durations, 0.99),
        reason(why),
    )
}

/// `throttled, as the CPU quota was used up`
pub(crate) fn reason(why: WhySlow) -> String {
    let cause = match why.part {
        "descheduled" => ", as other threads had the CPUs",
        "throttled" => ", as the CPU quota was used up",
        "run_queue" => ", as all of its processors (GOMAXPROCS) were busy",
        "gc_assist" => ", as it allocates faster than the collector follows",
        _ => "",
    };
    format!("{}{cause}", name_of(why.part))
}
