//! Functions that the user has named, each call of which is a request; and the code of the runtime and of servers, whose
//! own goroutines are not started for requests.
//!
//! A call ends at a return of the function, which amd64 kernels single-step; a probe on each is the one way that is right
//! with recursion, stacks that move, and panics that the function itself recovers.

use std::collections::BTreeMap;

use gotrace_common::request::{CodeRange, LIBRARIES};

use super::{
    super::{code::Place, names, pclntab::Func, plan::Planner},
    CodeRanges, Moment, Point, Requests, Server,
};

/// Functions that may be named.
const MAX_NAMED: usize = 8;
/// Instances of a generic function that are probed; a function may have so many returns.
const MAX_INSTANCES: usize = 16;
const MAX_RETURNS: usize = 64;
/// Names that are offered where there is none such.
const MAX_NEAR: usize = 5;
/// Packages whose goroutines are for themselves.
const PACKAGES: [&str; LIBRARIES] =
    ["runtime.", "net/http.", "net/http/internal/http2.", "golang.org/x/net/http2."];
/// Functions of other names that may lie among a package's: what compares its types, what is linked to another package.
const MAX_BETWEEN: usize = 24;
/// What of them starts a goroutine for a handler.
const HANDLER_STARTS: &str = "net/http.(*timeoutHandler).ServeHTTP";

/// A named function in the walk over all of them.
#[derive(Debug, Default)]
struct Named {
    found: Vec<(Func, String)>,
    /// Functions that hold inlined copies.
    holders: Vec<String>,
}

/// Adds the points of all functions that are named; what cannot be is told in `refused`.
pub(super) fn find(planner: &Planner<'_>, wanted: &[String], requests: &mut Requests) {
    if wanted.len() > MAX_NAMED {
        requests.refused.push(format!("{} functions are named, and {MAX_NAMED} can be", wanted.len()));
        return;
    }
    if wanted.is_empty() {
        return;
    }
    let mut all: BTreeMap<&str, Named> = wanted.iter().map(|name| (&**name, Named::default())).collect();
    walk(planner, &mut all);
    for (name, Named { found, holders }) in all {
        let points = match found.as_slice() {
            [] if holders.is_empty() => Err(format!("there is no function {name}{}", near(planner, name))),
            [] => Err(format!(
                "{name} has no code of its own: the compiler inlined it into {}; mark it //go:noinline",
                some(&holders)
            )),
            several if several.len() > MAX_INSTANCES => Err(format!(
                "{name} is {} functions, one for each kind of its type arguments: name one",
                several.len()
            )),
            found => found.iter().map(|(f, whole)| points(planner, f, whole)).collect::<Result<Vec<_>, _>>(),
        };
        match points {
            Err(why) => requests.refused.push(why),
            Ok(points) => {
                let points: Vec<Point> = points.into_iter().flatten().collect();
                tell_cost(name, &points, &holders, &mut requests.missing);
                requests.points.extend(points);
            }
        }
    }
    if !requests.points.is_empty() {
        requests.servers.push(Server::Function);
    }
}

/// What of a function's calls is not seen, or costs more than others.
fn tell_cost(name: &str, points: &[Point], holders: &[String], missing: &mut Vec<String>) {
    if !holders.is_empty() {
        missing.push(format!(
            "some calls of {name} are not seen: the compiler inlined it into {}",
            some(holders)
        ));
    }
    if points.iter().all(|point| point.moment != Moment::End) {
        missing.push(format!("{name} does not return: its calls end with their goroutines"));
    }
    if points.iter().any(|point| !point.emulated && point.moment == Moment::Begin) {
        missing.push(format!("{name} begins with an instruction that the kernel single-steps: 10 us a call"));
    }
}

/// A few names.
fn some(names: &[String]) -> String {
    let rest = names.len().saturating_sub(MAX_NEAR);
    let shown = names.iter().take(MAX_NEAR).map(String::as_str).collect::<Vec<_>>().join(", ");
    if rest == 0 { shown } else { format!("{shown} and {rest} more") }
}

/// Looks for the functions, and for inlined copies of them.
fn walk<'n>(planner: &Planner<'_>, all: &mut BTreeMap<&'n str, Named>) {
    let found = planner.found;
    let view = found.view;
    let printed = |f: &Func| names::printed(&names::whole(&view.name_beginning(f, names::MAX_NAME)));
    let is = |name: &[u8], wanted: &str| {
        // What is longer than this, and differs, differs before its type arguments.
        let own = wanted.find('[').unwrap_or(wanted.len());
        name.get(..own) == wanted.as_bytes().get(..own) && {
            let whole = names::whole(name);
            whole == wanted
                || names::printed(&whole) == wanted
                || names::printed(&whole).replace("[...]", "") == wanted
        }
    };
    let mut named: BTreeMap<u32, &'n str> = BTreeMap::new();
    for (at, name) in view.header.names(found.table) {
        if let Some(wanted) = all.keys().find(|wanted| is(name, wanted)) {
            named.insert(at, wanted);
        }
    }
    if named.is_empty() {
        return;
    }
    // Tables share their parts, but not without measure.
    let mut work = view.data.len().saturating_mul(8).saturating_add(1 << 20);
    for f in (0..view.header.functions).map_while(|n| view.func(n)) {
        if let Some(this) = named.get(&f.name).and_then(|wanted| all.get_mut(wanted)) {
            this.found.push((f, printed(&f)));
        }
        let Some((begin, end, steps)) = view.inline_extent(&f) else { continue };
        let Some(left) = work.checked_sub(steps + (end - begin) / 16) else { return };
        work = left;
        if end > view.inline.len() {
            continue;
        }
        for wanted in view.inlined_names((begin, end)).filter_map(|callee| named.get(&callee)) {
            let Some(this) = all.get_mut(wanted) else { continue };
            let holder = printed(&f);
            if !this.holders.contains(&holder) {
                this.holders.push(holder);
            }
        }
    }
}

/// Where a call of a function begins, and where it returns.
fn points(planner: &Planner<'_>, f: &Func, name: &str) -> Result<Vec<Point>, String> {
    let address = planner.found.text.wrapping_add(u64::from(f.entry));
    let name_of = |a| planner.name_of(a);
    let code = planner.code(address, &name_of).ok_or_else(|| format!("{name} has no code"))?;
    let length = f.end.saturating_sub(f.entry);
    if code.bytes.len() < length as usize {
        return Err(format!("{name} is too large: {length} bytes of code"));
    }
    // As the function is entered the stack pointer is at the return address, and so it is where it returns.
    let is_outside = |place: &Place| {
        let pc = f.entry.wrapping_add(u32::try_from(place.offset).unwrap_or(u32::MAX));
        planner.found.view.stack_delta(f, pc) == Some(0)
    };
    let first = code.entry(&[]).filter(is_outside).or_else(|| code.first()).filter(is_outside);
    let begin = first.ok_or_else(|| format!("{name} begins with what cannot be decoded"))?;
    let returns = code.returns().filter(|returns| returns.iter().all(is_outside));
    let returns = returns.ok_or_else(|| format!("{name} has code that cannot be decoded"))?;
    if returns.len() > MAX_RETURNS {
        return Err(format!("{name} returns at {} places, more than {MAX_RETURNS}", returns.len()));
    }
    let places = [(Moment::Begin, begin)].into_iter();
    let places = places.chain(returns.into_iter().map(|place| (Moment::End, place)));
    places
        .map(|(moment, Place { offset, instruction, emulated })| {
            let address = address.wrapping_add(offset as u64);
            let file_offset = planner.elf.offset_of(address).ok_or("is not in the file")? as u64;
            let function = name.to_owned().into();
            Ok(Point {
                server: Server::Function,
                moment,
                function,
                address,
                file_offset,
                instruction,
                emulated,
                values: &[],
            })
        })
        .collect::<Result<_, &str>>()
        .map_err(|why| format!("{name} {why}"))
}

/// Functions whose names are like one that there is not, as a part of a sentence.
fn near(planner: &Planner<'_>, wanted: &str) -> String {
    let view = planner.found.view;
    let plain = |name: &str| name.replace(['(', ')', '*'], "").to_lowercase();
    let wanted = plain(wanted);
    let last = wanted.rsplit(['.', '/']).next().unwrap_or(&wanted).to_owned();
    let package = wanted.strip_suffix(&last).unwrap_or_default();
    // The best are told.
    let rank = |name: &str| {
        let name = plain(name);
        let own = name.rsplit(['.', '/']).next().unwrap_or_default();
        if name == wanted {
            Some(0)
        } else if own == last {
            Some(1)
        } else if !package.is_empty() && name.starts_with(package) && alike(own, &last) {
            Some(2)
        } else {
            (last.len() > 3 && own.contains(&last)).then_some(3)
        }
    };
    let mut found: Vec<(u8, usize, String)> = Vec::new();
    for f in (0..view.header.functions).map_while(|n| view.func(n)) {
        let name = names::printed(&names::whole(&view.name_beginning(&f, names::MAX_NAME)));
        if let Some(rank) = rank(&name) {
            found.push((rank, name.len(), name));
        }
    }
    found.sort();
    found.dedup();
    let best = found.first().map(|(rank, ..)| *rank);
    let names: Vec<String> =
        found.into_iter().filter(|(rank, ..)| Some(*rank) == best).map(|(.., name)| name).collect();
    if names.is_empty() { String::new() } else { format!("; there is {}", some(&names)) }
}

/// Whether two words differ by a slip: one letter more, less, another, or two of them exchanged.
fn alike(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let begin = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let left = |of: &[u8]| of.len().saturating_sub(begin + end);
    match (left(a), left(b)) {
        (0 | 1, 0 | 1) => true,
        (2, 2) => a.get(begin) == b.get(begin + 1) && a.get(begin + 1) == b.get(begin),
        _ => false,
    }
}

/// Functions that lie together.
#[derive(Clone, Copy, Default)]
struct Group {
    count: usize,
    range: CodeRange,
    /// Number of the last one.
    last: usize,
}

/// Where the code of the runtime and of servers lies. The linker puts a package's functions together, but for instances of
/// its generic ones, and closures of those that were inlined elsewhere: of what lies together the most is taken.
pub(super) fn libraries(planner: &Planner<'_>) -> CodeRanges {
    let view = planner.found.view;
    let mut ranges = CodeRanges::default();
    let (mut groups, mut largest) = ([Group::default(); LIBRARIES], [Group::default(); LIBRARIES]);
    for (n, f) in (0..view.header.functions).map_while(|n| Some((n, view.func(n)?))) {
        let name = view.header.name_start(planner.found.table, &f);
        let Some(package) = PACKAGES.iter().position(|p| name.starts_with(p.as_bytes())) else { continue };
        let [from, to] = [f.entry, f.end].map(|at| planner.found.text.wrapping_add(u64::from(at)));
        let group = &mut groups[package];
        if n - group.last > MAX_BETWEEN || group.count == 0 {
            *group = Group { count: 0, range: [from, to], last: n };
        }
        *group = Group { count: group.count + 1, range: [group.range[0], to], last: n };
        if group.count > largest[package].count {
            largest[package] = *group;
        }
        if view.is_named(&f, HANDLER_STARTS.as_bytes()) {
            ranges.handler_starts = [from, to];
        }
    }
    ranges.libraries = largest.map(|group| group.range);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_one_letter() {
        for (a, b, expected) in [
            ("handle", "handle", true),
            ("handle", "handel", true),
            ("handle", "handl", true),
            ("handle", "hhandle", true),
            ("handle", "bundle", false),
            ("serve", "observe", false),
            ("", "ab", false),
        ] {
            assert_eq!(alike(a, b), expected, "{a} {b}");
            assert_eq!(alike(b, a), expected, "{b} {a}");
        }
    }
}
