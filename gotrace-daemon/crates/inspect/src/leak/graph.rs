//! Who waits for what, and who refers to it: groups of goroutines, objects, and edges between them.
//!
//! Input: a snapshot, and references if they were looked for. Goroutines that wait at the same place are
//! one group, and objects on which the same groups wait in the same way are one node, so that a program
//! with a million goroutines has a graph that can be looked at.

use std::collections::{BTreeMap, HashMap};

use crate::snapshot::{Goroutine, ObjectKind, Op, References, Snapshot, StackFrame, WaitObject};

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
}

/// What an edge says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EdgeKind {
    /// The group waits on the object, to do this with it if known.
    Waits(Option<Op>),
    /// A stack of the group has the object's address, so that it may use it, or have used it.
    Refers,
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
}

/// What makes a group: entry, creation site, stack, status, wait reason.
type Key = (u64, u64, usize, u8, u8);
/// Edges of one object, and of how many goroutines each is.
type Edges = BTreeMap<(Key, EdgeKind), usize>;
/// Objects that are one node: kind, whether closed, edges.
type Alike = (ObjectKind, bool, Vec<(Key, EdgeKind)>);

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
        let key = |g: &Goroutine| -> Key {
            let stack = g.stack.map_or(usize::MAX, |s| s.index());
            (g.entry_pc, g.created_pc, stack, g.status as u8, g.wait_reason)
        };
        let mut by_object: BTreeMap<(u64, ObjectKind), (WaitObject, Edges)> = BTreeMap::new();
        for goroutine in snapshot.goroutines.iter().filter(|g| !g.is_system()) {
            for wait in snapshot.waits_of(goroutine) {
                let Some(object) = snapshot.object(wait.object).filter(|o| o.address != 0) else { continue };
                let (_, edges) = by_object
                    .entry((object.address, object.kind))
                    .or_insert_with(|| (*object, BTreeMap::new()));
                *edges.entry((key(goroutine), EdgeKind::Waits(wait.op))).or_insert(0) += 1;
            }
        }
        for ((address, _), (_, edges)) in &mut by_object {
            let refer = references.and_then(|r| r.stacks.get(address));
            for goroutine in refer.into_iter().flatten().filter_map(|&goid| snapshot.goroutine(goid)) {
                let waits = snapshot
                    .waits_of(goroutine)
                    .iter()
                    .any(|w| snapshot.object(w.object).is_some_and(|o| o.address == *address));
                // Whoever waits on it has it on its stack.
                if !waits {
                    *edges.entry((key(goroutine), EdgeKind::Refers)).or_insert(0) += 1;
                }
            }
        }
        let mut graph = Self::default();
        let mut group_ids: HashMap<Key, usize> = HashMap::new();
        let wanted: HashMap<Key, ()> =
            by_object.values().flat_map(|(_, e)| e.keys().map(|(k, _)| (*k, ()))).collect();
        for goroutine in snapshot.goroutines.iter().filter(|g| wanted.contains_key(&key(g))) {
            let id = *group_ids.entry(key(goroutine)).or_insert_with(|| {
                graph.groups.push(GraphGroup {
                    entry_pc: goroutine.entry_pc,
                    created_pc: goroutine.created_pc,
                    example: *goroutine,
                    stack: snapshot.frames(goroutine).to_vec(),
                    goids: Vec::new(),
                });
                graph.groups.len() - 1
            });
            if let Some(group) = graph.groups.get_mut(id) {
                group.goids.push(goroutine.goid);
            }
        }
        let mut same: BTreeMap<Alike, usize> = BTreeMap::new();
        let mut counts: BTreeMap<(usize, usize, EdgeKind), usize> = BTreeMap::new();
        for (object, edges) in by_object.into_values() {
            let keys: Vec<(Key, EdgeKind)> = edges.keys().copied().collect();
            let id = *same.entry((object.kind, object.closed, keys)).or_insert_with(|| {
                graph.objects.push(GraphObject { example: object, count: 0 });
                graph.objects.len() - 1
            });
            if let Some(node) = graph.objects.get_mut(id) {
                node.count += 1;
            }
            for ((group, kind), count) in edges {
                if let Some(&group) = group_ids.get(&group) {
                    *counts.entry((group, id, kind)).or_insert(0) += count;
                }
            }
        }
        let edge = |((group, object, kind), count)| Edge { group, object, kind, count };
        graph.edges = counts.into_iter().map(edge).collect();
        graph
    }
}
