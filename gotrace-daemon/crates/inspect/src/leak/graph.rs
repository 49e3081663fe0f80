//! Who waits for what, and who refers to it: groups of goroutines, objects, and edges between them.
//!
//! Input: a snapshot, and references and holders of locks if they were looked for. Goroutines that wait at the same place are
//! one group, and objects on which the same groups wait in the same way are one node, so that a program
//! with a million goroutines has a graph that can be looked at.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use crate::{
    heap::{Evidence, LockHolder},
    snapshot::{Goroutine, ObjectKind, Op, References, Snapshot, StackFrame, WaitObject},
};

/// Goroutines of one site that wait at the same place, or that refer to what others wait on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphGroup {
    /// Their entry function.
    pub entry_pc: u64,
    /// Return address of the `go` statement; 0 for none.
    pub created_pc: u64,
    /// One of them, for its state.
    pub example: Goroutine,
    /// Their stack.
    pub stack: Vec<StackFrame>,
    /// Their ids, ascending.
    pub goids: Vec<u64>,
}

/// Objects on which the same groups wait in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphObject {
    /// One of them.
    pub example: WaitObject,
    /// How many.
    pub count: usize,
    /// Goroutines that wait on any of them.
    pub waiting: usize,
}

/// What an edge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EdgeKind {
    /// The group waits on the object, to do this with it if known.
    Waits(Option<Op>),
    /// A stack of the group has the object's address, so that it may use it, or have used it.
    Refers,
    /// The group holds the lock, or may.
    Holds(Evidence),
}

/// From a group to an object, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// In [`Graph::groups`].
    pub group: usize,
    /// In [`Graph::objects`].
    pub object: usize,
    /// What it says.
    pub kind: EdgeKind,
    /// How many goroutines.
    pub count: usize,
    /// The frame of one of those that hold it which tells so.
    pub frame: Option<StackFrame>,
}

/// What makes a group: entry, creation site, stack, status, wait reason.
type Key = (u64, u64, usize, u8, u8);
/// Objects that are one node: kind, whether closed, edges.
type Alike = (ObjectKind, bool, Vec<(u32, EdgeKind)>);

/// A goroutine that has to do with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    object: (u64, ObjectKind),
    /// Of the groups, in the order in which they were met.
    group: u32,
    edge: EdgeKind,
    goid: u64,
    frame: Option<StackFrame>,
}

/// What of a graph is not shown, as it would be too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Nodes of objects.
    pub objects: usize,
    /// Groups.
    pub groups: usize,
    /// Goroutines of these groups.
    pub goroutines: usize,
}

/// The graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Groups, in the order of their first goroutine.
    pub groups: Vec<GraphGroup>,
    /// Objects.
    pub objects: Vec<GraphObject>,
    /// Edges, ascending.
    pub edges: Vec<Edge>,
}

impl Graph {
    /// Builds it. Left out: objects whose address is not known, and goroutines that neither wait on an
    /// object nor refer to one.
    #[must_use]
    pub fn new(snapshot: &Snapshot, references: Option<&References>) -> Self {
        Self::with_holders(snapshot, references, &[])
    }

    /// The same with those that hold locks, by address; whoever does is not told as one that refers to it.
    #[must_use]
    pub fn with_holders(
        snapshot: &Snapshot,
        references: Option<&References>,
        held: &[(u64, Vec<LockHolder>)],
    ) -> Self {
        let mut keys: HashMap<Key, u32> = HashMap::new();
        let mut group_of = |g: &Goroutine| {
            let next = u32::try_from(keys.len()).unwrap_or(u32::MAX);
            *keys.entry(key(g)).or_insert(next)
        };
        let mut seen: Vec<Seen> = Vec::new();
        let mut objects: HashMap<(u64, ObjectKind), WaitObject> = HashMap::new();
        for goroutine in snapshot.goroutines.iter().filter(|g| !g.is_system()) {
            for wait in snapshot.waits_of(goroutine) {
                let Some(object) = snapshot.object(wait.object).filter(|o| o.address != 0) else { continue };
                let id = (object.address, object.kind);
                objects.entry(id).or_insert(*object);
                let (edge, group) = (EdgeKind::Waits(wait.op), group_of(goroutine));
                seen.push(Seen { object: id, group, edge, goid: goroutine.goid, frame: None });
            }
        }
        let mut waiting: Vec<((u64, ObjectKind), u64)> = seen.iter().map(|s| (s.object, s.goid)).collect();
        waiting.sort_unstable();
        for &id in objects.keys() {
            let holders = held.iter().find(|(lock, _)| *lock == id.0).map_or(&[][..], |(_, h)| h);
            for holder in holders {
                let Some(goroutine) = snapshot.goroutine(holder.goid) else { continue };
                let (edge, frame) = (EdgeKind::Holds(holder.evidence), Some(holder.frame));
                seen.push(Seen { object: id, group: group_of(goroutine), edge, goid: holder.goid, frame });
            }
            let refer = references.and_then(|r| r.stacks.get(&id.0)).into_iter().flatten();
            for goroutine in refer.filter_map(|&goid| snapshot.goroutine(goid)) {
                let goid = goroutine.goid;
                // Whoever waits on it has it on its stack.
                if waiting.binary_search(&(id, goid)).is_err() && holders.iter().all(|h| h.goid != goid) {
                    let (edge, group) = (EdgeKind::Refers, group_of(goroutine));
                    seen.push(Seen { object: id, group, edge, goid, frame: None });
                }
            }
        }
        drop(waiting);
        seen.sort_unstable();
        let mut graph = Self::default();
        let groups = graph.add_groups(snapshot, &keys);
        graph.add_objects(&seen, &objects, &groups);
        graph
    }

    /// Adds the groups of these keys. By the number of each key, that of its group.
    fn add_groups(&mut self, snapshot: &Snapshot, keys: &HashMap<Key, u32>) -> HashMap<u32, usize> {
        let mut ids: HashMap<u32, usize> = HashMap::new();
        for goroutine in &snapshot.goroutines {
            let Some(&number) = keys.get(&key(goroutine)) else { continue };
            let id = *ids.entry(number).or_insert_with(|| {
                self.groups.push(GraphGroup {
                    entry_pc: goroutine.entry_pc,
                    created_pc: goroutine.created_pc,
                    example: *goroutine,
                    stack: snapshot.frames(goroutine).to_vec(),
                    goids: Vec::new(),
                });
                self.groups.len() - 1
            });
            if let Some(group) = self.groups.get_mut(id) {
                group.goids.push(goroutine.goid);
            }
        }
        ids
    }

    /// Adds a node for objects that are alike, and the edges to it.
    fn add_objects(
        &mut self,
        seen: &[Seen],
        objects: &HashMap<(u64, ObjectKind), WaitObject>,
        groups: &HashMap<u32, usize>,
    ) {
        let mut same: HashMap<Alike, usize> = HashMap::new();
        let mut all: Vec<(usize, usize, EdgeKind, u64, Option<StackFrame>)> = Vec::with_capacity(seen.len());
        for of in seen.chunk_by(|a, b| a.object == b.object) {
            let Some(object) = of.first().and_then(|s| objects.get(&s.object)) else { continue };
            let mut edges: Vec<(u32, EdgeKind)> = of.iter().map(|s| (s.group, s.edge)).collect();
            edges.dedup();
            let id = *same.entry((object.kind, object.closed, edges)).or_insert_with(|| {
                self.objects.push(GraphObject { example: *object, count: 0, waiting: 0 });
                self.objects.len() - 1
            });
            if let Some(node) = self.objects.get_mut(id) {
                node.count += 1;
            }
            let edge = |s: &Seen| Some((*groups.get(&s.group)?, id, s.edge, s.goid, s.frame));
            all.extend(of.iter().filter_map(edge));
        }
        all.sort_unstable();
        // A goroutine may wait on several that are alike.
        all.dedup_by_key(|&mut (group, object, kind, goid, _)| (group, object, kind, goid));
        for of in all.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)) {
            let Some(&(group, object, kind, _, frame)) = of.first() else { continue };
            self.edges.push(Edge { group, object, kind, count: of.len(), frame });
        }
        let mut waiting: Vec<(usize, u64)> =
            all.iter().filter(|a| matches!(a.2, EdgeKind::Waits(_))).map(|a| (a.1, a.3)).collect();
        waiting.sort_unstable();
        waiting.dedup();
        for (object, _) in waiting {
            if let Some(node) = self.objects.get_mut(object) {
                node.waiting += 1;
            }
        }
    }

    /// What of it can be looked at: of the objects that are wanted these many, those that most goroutines wait on first,
    /// and as many of the groups that have to do with them, holders first, then the largest.
    #[must_use]
    pub fn bounded(
        self,
        wanted: impl Fn(&WaitObject) -> bool,
        (most_objects, most_groups): (usize, usize),
    ) -> (Self, LeftOut) {
        let Self { groups, objects, edges } = self;
        let mut kept: Vec<usize> =
            (0..objects.len()).filter(|&n| objects.get(n).is_some_and(|o| wanted(&o.example))).collect();
        let all_objects = kept.len();
        kept.sort_by_key(|&n| (Reverse(objects.get(n).map_or(0, |o| o.waiting)), n));
        // Whose objects are not wanted is no part of it.
        let of_wanted: BTreeSet<usize> = kept.iter().copied().collect();
        let all_groups: BTreeSet<usize> =
            edges.iter().filter(|e| of_wanted.contains(&e.object)).map(|e| e.group).collect();
        kept.truncate(most_objects);
        let kept: BTreeSet<usize> = kept.into_iter().collect();
        let holds: BTreeSet<usize> =
            edges.iter().filter(|e| matches!(e.kind, EdgeKind::Holds(_))).map(|e| e.group).collect();
        let with: BTreeSet<usize> =
            edges.iter().filter(|e| kept.contains(&e.object)).map(|e| e.group).collect();
        let mut with: Vec<usize> = with.into_iter().collect();
        with.sort_by_key(|n| (!holds.contains(n), Reverse(groups.get(*n).map_or(0, |g| g.goids.len())), *n));
        with.truncate(most_groups);
        let with: BTreeSet<usize> = with.into_iter().collect();
        let left = all_groups.iter().filter(|n| !with.contains(n));
        let left_out = LeftOut {
            objects: all_objects - kept.len(),
            groups: left.clone().count(),
            goroutines: left.filter_map(|&n| groups.get(n)).map(|g| g.goids.len()).sum(),
        };
        let number = |of: &BTreeSet<usize>| -> HashMap<usize, usize> {
            of.iter().enumerate().map(|(new, &old)| (old, new)).collect()
        };
        let (new_objects, new_groups) = (number(&kept), number(&with));
        let edge = |e: Edge| {
            let (group, object) = (*new_groups.get(&e.group)?, *new_objects.get(&e.object)?);
            Some(Edge { group, object, ..e })
        };
        let graph = Self {
            groups: groups
                .into_iter()
                .enumerate()
                .filter(|(n, _)| with.contains(n))
                .map(|(_, g)| g)
                .collect(),
            objects: objects
                .into_iter()
                .enumerate()
                .filter(|(n, _)| kept.contains(n))
                .map(|(_, o)| o)
                .collect(),
            edges: edges.into_iter().filter_map(edge).collect(),
        };
        (graph, left_out)
    }
}

fn key(g: &Goroutine) -> Key {
    let stack = g.stack.map_or(usize::MAX, |s| s.index());
    (g.entry_pc, g.created_pc, stack, g.status as u8, g.wait_reason)
}
