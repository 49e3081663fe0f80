//! What a process shows when it is read at one moment, as plain texts for the live table: its goroutines in groups, and who
//! waits for which lock and channel.
//!
//! Input: a snapshot with its names, and the graph of waits. Output: rows that need neither any more, bounded; what is left
//! out is counted. Times are lower bounds: the runtime notes the beginning of a wait only when its collector runs.

use std::{
    cmp::Reverse,
    io::{self, Write},
};

use serde::Serialize;
use serde_json::json;

use crate::{
    dump::{Captured, doing, group, incomplete, own_code},
    leaks::values::line,
};
use gotrace_go::Frame;
use gotrace_inspect::{
    examine::WaitGraph,
    heap::Evidence,
    leak::{Edge, EdgeKind, Graph, GraphGroup, GraphObject, LeftOut},
    snapshot::{Goroutine, Names, ObjectKind, StackFrame},
};

/// Groups that are told.
const MAX_GROUPS: usize = 2000;
/// Frames of a stack.
const MAX_FRAMES: usize = 64;
/// Names of groups in one text.
const MAX_NAMES: usize = 4;

/// All goroutines of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Goroutines {
    /// How long it took to read them.
    pub read_ns: u64,
    /// How many there are.
    pub total: u64,
    /// Groups beyond the ones that are told.
    pub groups_left_out: usize,
    /// What could not be read.
    pub incomplete: Option<String>,
    /// The largest first.
    pub groups: Vec<GoroutineGroup>,
}

/// Goroutines that stand at the same place.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GoroutineGroup {
    /// How many.
    pub count: u64,
    /// What they do: a wait reason, or a state.
    pub state: String,
    /// The longest wait among them that is known of, at least.
    pub waits_ns: Option<u64>,
    /// Where they stand in own code: `main.worker (pool.go:12)`.
    pub at: String,
    /// The `go` statement.
    pub created_by: String,
    /// The least id, and the greatest.
    pub goids: (u64, u64),
    /// Innermost first.
    pub stack: Vec<String>,
    /// Whether they are the runtime's own.
    pub system: bool,
}

/// Locks and channels that goroutines of a process wait at.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Locks {
    /// What is not known or not told, as sentences.
    pub notes: Vec<String>,
    /// Those with the most waiters first.
    pub objects: Vec<Lock>,
}

/// A lock or channel, or several that are alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lock {
    /// `mutex, 0xc000012340`, `3 × chan, unbuffered`.
    pub name: String,
    /// How many are alike.
    pub count: usize,
    /// Goroutines that wait at them.
    pub waiting: usize,
    /// Who waits.
    pub waiters: String,
    /// Who holds it, or may, or else uses it; empty where that is not known.
    pub held_by: String,
    /// One that waits.
    pub goid: Option<u64>,
    /// Each group that has to do with it.
    pub groups: Vec<LockGroup>,
}

/// A group of goroutines at a lock or channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LockGroup {
    /// `waits to send`, `holds`, `may hold`, `uses`.
    pub what: String,
    /// How many.
    pub count: usize,
    /// Where they stand in own code.
    pub at: String,
    /// Some of their ids.
    pub goids: Vec<u64>,
    /// Innermost first.
    pub stack: Vec<String>,
}

/// One line of JSON: what was read under its name.
///
/// # Errors
/// What the writer says.
pub fn json(out: &mut impl Write, name: &str, read: &impl Serialize) -> io::Result<()> {
    line(out, &json!({ name: read }))
}

/// The goroutines of a process that was just read.
#[must_use]
pub fn goroutines(captured: &mut Captured) -> Goroutines {
    let Captured { snapshot, names, .. } = captured;
    let now = snapshot.process_clock().unwrap_or(snapshot.monotonic_ns.cast_signed()).cast_unsigned();
    let all: Vec<&Goroutine> = snapshot.goroutines.iter().collect();
    let mut groups = group::groups(&all);
    let groups_left_out = groups.len().saturating_sub(MAX_GROUPS);
    groups.truncate(MAX_GROUPS);
    let told = groups.iter().map(|group| {
        let first = group.first;
        let stack = snapshot.frames(first);
        let since = group.waits_since_ns.map(|since| now.saturating_sub(since)).filter(|ns| *ns > 0);
        GoroutineGroup {
            count: group.count,
            state: doing(first, names).into_owned(),
            waits_ns: since,
            at: at(first.entry_pc, stack, names),
            created_by: names.created_by(first.created_pc).first().map(text).unwrap_or_default(),
            goids: (first.goid, group.last_goid),
            stack: lines(stack, names),
            system: first.is_system(),
        }
    });
    Goroutines {
        groups: told.collect(),
        read_ns: snapshot.duration_ns,
        total: all.len() as u64,
        groups_left_out,
        incomplete: incomplete(&snapshot.counts),
    }
}

/// Who waits for whom in a process that was just read.
#[must_use]
pub fn locks(captured: &mut Captured, found: &WaitGraph) -> Locks {
    let WaitGraph { graph, left_out, locks_not_searched, holders_unknown, references_complete } = found;
    let names = &mut captured.names;
    let mut notes = Vec::new();
    if let Some(why) = holders_unknown {
        notes.push(format!("who holds locks is not known: {why}"));
    }
    if *locks_not_searched > 0 {
        notes.push(format!("holders of {locks_not_searched} locks with fewer waiters were not looked for"));
    }
    if !references_complete {
        notes.push("who else uses channels was not looked for in all stacks".into());
    }
    let LeftOut { objects, groups, goroutines } = left_out;
    if objects + groups + goroutines > 0 {
        notes.push(format!("left out: {objects} objects, {groups} groups, {goroutines} goroutines"));
    }
    notes.extend(incomplete(&captured.snapshot.counts));
    let told = graph.objects.iter().enumerate().map(|(n, object)| lock(graph, (n, object), names));
    let mut objects: Vec<Lock> = told.collect();
    objects.sort_by_key(|lock| Reverse(lock.waiting));
    Locks { notes, objects }
}

fn lock(graph: &Graph, (n, object): (usize, &GraphObject), names: &mut Names) -> Lock {
    let of = |edge: &&Edge| edge.object == n;
    let mut edges: Vec<&Edge> = graph.edges.iter().filter(of).collect();
    // Where it is certain who holds it, others only have its address.
    let certain = edges.iter().any(|edge| edge.kind == EdgeKind::Holds(Evidence::Locked));
    let rank = |edge: &Edge| match edge.kind {
        EdgeKind::Waits(_) => 0,
        EdgeKind::Holds(Evidence::Locked) => 1,
        EdgeKind::Holds(_) if !certain => 2,
        EdgeKind::Holds(_) | EdgeKind::Refers => 3,
    };
    edges.sort_by_key(|edge| (rank(edge), Reverse(edge.count)));
    let mut groups = Vec::new();
    let mut parts: [Vec<String>; 4] = Default::default();
    let mut goid = None;
    for edge in edges {
        let Some(group) = graph.groups.get(edge.group) else { continue };
        let GraphGroup { entry_pc, stack, goids, .. } = group;
        let rank = rank(edge);
        let what = match (edge.kind, rank) {
            (EdgeKind::Waits(Some(op)), _) => format!("waits to {}", op.name()),
            (EdgeKind::Waits(None), _) => "waits".to_owned(),
            (_, 1) => "holds".to_owned(),
            (EdgeKind::Holds(Evidence::Refers), 2) => "probably holds".to_owned(),
            (_, 2) => "perhaps holds".to_owned(),
            _ => "uses".to_owned(),
        };
        if rank == 0 {
            goid = goid.or_else(|| goids.first().copied());
        }
        let at = at(*entry_pc, stack, names);
        let count = if edge.count == 1 { String::new() } else { format!("{} × ", edge.count) };
        if let Some(part) = parts.get_mut(rank) {
            part.push(format!("{count}{at}"));
        }
        let goids = goids.get(..12).unwrap_or(goids).to_vec();
        groups.push(LockGroup { what, count: edge.count, at, goids, stack: lines(stack, names) });
    }
    let [waiters, holds, may_hold, uses] = parts.map(|part| joined(&part));
    let held_by = match (holds, may_hold, uses) {
        (holds, _, _) if !holds.is_empty() => format!("held by {holds}"),
        (_, may_hold, _) if !may_hold.is_empty() => format!("perhaps {may_hold}"),
        (_, _, uses) if !uses.is_empty() => format!("used by {uses}"),
        _ => String::new(),
    };
    Lock { name: name(object), count: object.count, waiting: object.waiting, waiters, held_by, goid, groups }
}

/// `chan, 0 of 1 full, 0xc000012340`.
fn name(object: &GraphObject) -> String {
    let o = &object.example;
    let mut name = match (object.count, o.descriptor()) {
        (1, Some(number)) => return format!("fd {number}"),
        (1, None) => o.kind.name().to_owned(),
        (n, _) => format!("{n} × {}", o.kind.name()),
    };
    if o.kind == ObjectKind::Chan && o.known {
        name += &match o.cap {
            0 => ", unbuffered".to_owned(),
            cap => format!(", {} of {cap} full", o.len),
        };
        if o.closed {
            name += ", closed";
        }
    }
    if object.count == 1 {
        name += &format!(", {:#x}", o.address);
    }
    name
}

fn joined(parts: &[String]) -> String {
    let shown = parts.get(..MAX_NAMES).unwrap_or(parts);
    let more = match parts.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    shown.join(", ") + &more
}

fn at(entry_pc: u64, stack: &[StackFrame], names: &mut Names) -> String {
    let own = own_code(stack, names);
    own.as_ref().or(names.runs(entry_pc, stack)).map_or_else(|| "?".into(), text)
}

fn lines(stack: &[StackFrame], names: &mut Names) -> Vec<String> {
    let named = names.stack(stack);
    let all = named.iter().all(|f| f.internal);
    named.iter().filter(|f| all || !f.internal).take(MAX_FRAMES).map(|f| text(f.frame)).collect()
}

/// `main.worker (pool.go:12)`
fn text(frame: &Frame) -> String {
    let file = frame.file.rsplit('/').next().unwrap_or_default();
    if file.is_empty() {
        frame.function.clone()
    } else {
        format!("{} ({file}:{})", frame.function, frame.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::testing::demo;

    fn captured() -> Captured {
        let (snapshot, names) = demo();
        Captured { snapshot, names, executable: "/demo".into(), build_id: String::new(), mapping: None }
    }

    #[test]
    fn goroutines_are_told_by_where_they_stand() {
        let mut captured = captured();
        let told = goroutines(&mut captured);
        assert_eq!(told.total, captured.snapshot.goroutines.len() as u64);
        assert_eq!(told.groups.iter().map(|g| g.count).sum::<u64>(), told.total);
        let stuck = told.groups.iter().find(|g| g.at.starts_with("main.waitForever (main.go:"));
        let stuck = stuck.expect("the leak");
        assert_eq!((&*stuck.state, stuck.system), ("chan receive", false));
        assert!(stuck.created_by.starts_with("main.leakyHandler (main.go:"), "{stuck:?}");
        assert!(stuck.goids.0 < stuck.goids.1 && stuck.count > 1, "{stuck:?}");
        assert_eq!(stuck.stack[0], stuck.at);
        assert!(stuck.waits_ns.is_some_and(|ns| ns >= 90_000_000_000), "{stuck:?}");
        assert!(told.groups.iter().any(|g| g.system), "the runtime's own");
    }

    #[test]
    fn locks_and_channels_are_told_with_who_waits_and_who_uses_them() {
        let mut captured = captured();
        let graph = Graph::new(&captured.snapshot, None);
        let (graph, left_out) = graph.bounded(|o| o.kind == ObjectKind::Chan, (2, 1));
        let found = WaitGraph { graph, left_out, locks_not_searched: 3, ..WaitGraph::default() };
        let told = locks(&mut captured, &found);
        let first = &told.objects[0];
        assert!(first.name.contains("chan, unbuffered"), "{first:?}");
        assert!(first.waiters.contains(" × main.waitForever (main.go:"), "{first:?}");
        assert_eq!(
            (first.groups[0].what.as_str(), first.goid),
            ("waits to receive", Some(first.groups[0].goids[0]))
        );
        assert_eq!(first.held_by, "");
        for part in ["holders of 3 locks", "was not looked for in all stacks", "left out: "] {
            assert!(told.notes.iter().any(|note| note.contains(part)), "{part} in {:?}", told.notes);
        }
    }

    #[test]
    fn who_holds_a_lock_is_told_as_far_as_that_is_certain() {
        let graph = Graph::new(&captured().snapshot, None);
        let (graph, _) = graph.bounded(|o| o.kind == ObjectKind::Chan, (1, 3));
        let held = |kinds: &[EdgeKind]| {
            let mut graph = graph.clone();
            graph.edges.retain(|edge| matches!(edge.kind, EdgeKind::Waits(_)));
            for kind in kinds {
                graph.edges.push(Edge { group: 0, object: 0, kind: *kind, count: 1, frame: None });
            }
            let mut captured = captured();
            let graph = WaitGraph { graph, ..WaitGraph::default() };
            locks(&mut captured, &graph).objects.remove(0)
        };
        let refers = EdgeKind::Holds(Evidence::Refers);
        assert!(held(&[refers, EdgeKind::Refers]).held_by.starts_with("perhaps "));
        assert!(held(&[EdgeKind::Refers]).held_by.starts_with("used by "));
        let certain = held(&[refers, EdgeKind::Holds(Evidence::Locked)]);
        assert!(certain.held_by.starts_with("held by ") && !certain.held_by.contains(','), "{certain:?}");
        // Others only have its address then.
        let what: Vec<&str> = certain.groups.iter().map(|group| &*group.what).collect();
        assert_eq!(what.last(), Some(&"uses"), "{certain:?}");
    }
}
