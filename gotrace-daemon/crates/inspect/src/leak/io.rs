//! Goroutines that pile up in a read, or a write, without a deadline, of connections that their process opened.
//!
//! Input: what was seen, and of the last look where descriptors lead to ([`descriptors_wanted`] says which have to be
//! looked up). Whoever accepts a connection serves it for as long as its client wants, and the readers of HTTP and gRPC
//! are there for as long as their connections: of those nothing is said, nor where as many accepted connections came,
//! which others are opened for.

use super::{
    Reason, Watch,
    growth::{Grower, Growing},
    judge::{Member, places_of},
};
use crate::snapshot::{End, Goroutine, Snapshot};

/// What is said of those of which it is not said who is at the other end.
pub const UNANSWERED: &str =
    "each waits, without a deadline, for the other end of a connection that this process opened; ";
/// Goroutines whose descriptors are looked up.
const MAX_LOOKED_UP: usize = 1 << 15;

/// Where more and more wait for descriptors without a deadline.
fn candidates<'a>(watch: &'a Watch, snapshot: &'a Snapshot, grower: &Grower<'a>) -> Vec<Growing<'a>> {
    let wanted = |m: &Member<'a>| {
        let for_ever = |w: &crate::snapshot::Wait| w.until.end() == End::Never && w.op.is_some();
        m.reason == Reason::Io
            && !m.goroutine.is_transport_reader()
            && !m.goroutine.waits.is_empty()
            && snapshot.waits_of(m.goroutine).iter().all(for_ever)
    };
    places_of(watch, snapshot, wanted).values().filter_map(|place| grower.at_descriptors(place)).collect()
}

/// Goroutines of which a verdict depends on where their descriptors lead to.
#[must_use]
pub fn descriptors_wanted(watch: &Watch, snapshot: &Snapshot) -> Vec<u64> {
    let candidates = candidates(watch, snapshot, &Grower::new(watch, snapshot));
    if candidates.is_empty() {
        return Vec::new();
    }
    let members = candidates.iter().flat_map(|g| &g.members).map(|m| m.goroutine.goid);
    members.chain(newcomers(watch, snapshot).map(|g| g.goid)).take(MAX_LOOKED_UP).collect()
}

/// Those that came during the watch and wait for what comes on a connection.
fn newcomers<'a>(watch: &'a Watch, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Goroutine> {
    watch
        .tracks
        .iter()
        .filter(|t| t.born > 0)
        .filter_map(|t| snapshot.goroutine(t.goid))
        .filter(|g| watch.reason(g) == Reason::Io && !g.is_transport_reader())
}

/// Places at which they pile up, of connections that the process opened.
pub(super) fn growing<'a>(watch: &'a Watch, snapshot: &'a Snapshot, grower: &Grower<'a>) -> Vec<Growing<'a>> {
    let candidates = candidates(watch, snapshot, grower);
    if candidates.is_empty() {
        return Vec::new();
    }
    let accepted = newcomers(watch, snapshot).filter(|g| was_accepted(snapshot, g) == Some(true)).count();
    candidates.into_iter().filter_map(|found| opened(snapshot, found, accepted)).collect()
}

fn opened<'a>(snapshot: &Snapshot, found: Growing<'a>, accepted: usize) -> Option<Growing<'a>> {
    let Growing { members, growth, why } = found;
    let all = members.len();
    let members: Vec<Member<'a>> =
        members.into_iter().filter(|m| was_accepted(snapshot, m.goroutine) == Some(false)).collect();
    let came = members.iter().filter(|m| m.track.born > 0).count();
    if members.is_empty() || members.len() * 4 < all * 3 || accepted * 2 >= came {
        return None;
    }
    Some(Growing { members, growth, why: format!("{UNANSWERED}{why}") })
}

/// Whether the connection that a goroutine waits for was opened by its other end; `None` where that is not known.
fn was_accepted(snapshot: &Snapshot, goroutine: &Goroutine) -> Option<bool> {
    let mut of = snapshot
        .waits_of(goroutine)
        .iter()
        .map(|w| snapshot.object(w.object).and_then(|o| snapshot.outside.file(o)).and_then(|f| f.accepted));
    of.next()?
}
