//! Routes of requests that are still open, as gin, echo and chi have found them.
//!
//! The kernel side is told of these when the handlers are done. Until then the router's context is on the stack of the
//! goroutine that serves: a word there is taken for its address where what is read behind it is of the request that is
//! open, as the kernel side has it at the end. A goroutine that runs is not looked at.

use std::collections::{BTreeMap, HashMap, HashSet};

use gotrace_common::{
    OpenRequest, RequestConfig,
    request::{ContextLayout, NO_STEP, ROUTE_BYTES},
};

use super::{LEAST_OPEN_NS, Reader};
use crate::tracee::OpenSeen;

/// Bytes of a stack that are looked through, from its oldest frame on: routers are called early.
const MAX_STACK: u64 = 64 << 10;
/// Words of stacks that are taken for addresses for one report, of all processes: each is some reads of memory.
pub(super) const MAX_WORDS: usize = 2048;
/// Objects further apart are not taken for those of one heap.
const MAX_HEAP: u64 = 64 << 30;
/// As on the kernel side: routers mounted in one another, and contexts from a router's to that of the request.
const MAX_LEVELS: u64 = 8;
const MAX_CONTEXTS: usize = 8;

/// A route, and how long it is, as [`gotrace_common::RouteKey`] has both; how deep on the stack its router is.
pub(super) type Found = ([u8; ROUTE_BYTES], u8, u32);

/// What was found of requests that are open, by goroutine and beginning.
#[derive(Debug, Default)]
pub(super) struct OpenRoutes(HashMap<(u64, u64), Looked>);

/// What came of the last look.
#[derive(Debug)]
struct Looked {
    found: Option<Found>,
    /// Once it is this old, it is looked at again: routers may have been called since.
    again_ns: u64,
}

impl OpenRoutes {
    /// The route of an open request; `stack`: from where to where the frames of its goroutine are, if that does not run.
    /// `words`: how many may be taken for addresses yet.
    pub fn of(
        &mut self,
        reader: &Reader<'_>,
        config: &RequestConfig,
        (open, now_ns): (&OpenRequest, u64),
        words: &mut usize,
        stack: impl FnOnce() -> Option<(u64, u64)>,
    ) -> Option<Found> {
        let age_ns = now_ns.saturating_sub(open.start_ns);
        if !has_any(config) || age_ns < LEAST_OPEN_NS {
            return None;
        }
        let known = self.0.get(&(open.goid, open.start_ns));
        let is_due = known.is_none_or(|known| age_ns >= known.again_ns);
        let mut found = known.and_then(|known| known.found);
        if is_due
            && let Some(header) = header_of(reader, config, open)
            && let Some(candidates) = stack().and_then(|stack| candidates(reader, header, stack))
        {
            let Some(left) = words.checked_sub(candidates.len()) else { return found };
            *words = left;
            found = find(reader, config, (open, header), &candidates);
            self.0.insert((open.goid, open.start_ns), Looked { found, again_ns: age_ns.saturating_mul(2) });
        }
        found
    }

    /// Forgets all but these.
    pub fn retain(&mut self, open: &[OpenSeen]) {
        let open: HashSet<(u64, u64)> = open.iter().map(|open| (open.goid, open.start_ns)).collect();
        self.0.retain(|key, _| open.contains(key));
    }
}

/// Whether the program has such routers.
fn has_any(config: &RequestConfig) -> bool {
    let routers = &config.routers;
    [routers.gin.pattern, routers.echo.pattern, routers.chi.patterns].iter().any(|at| *at != NO_STEP)
}

/// The route that these words lead to: that of the innermost router, but `/` less than any other.
fn find(
    reader: &Reader<'_>,
    config: &RequestConfig,
    (open, header): (&OpenRequest, u64),
    words: &BTreeMap<u64, u32>,
) -> Option<Found> {
    let search = Search {
        reader,
        config,
        header,
        context: if open.header == 0 { context(reader, config, open.object) } else { Some(open.context) },
        asked: open.asked,
    };
    let mut best: Option<Found> = None;
    for (word, depth) in words {
        let Some((text, length)) = search.route(*word).filter(|(_, length)| *length != 0) else { continue };
        let is_better = best.is_none_or(|(_, told, deepest)| match (told, length) {
            (1, 1) | (2.., 2..) => *depth > deepest,
            (told, _) => told == 1,
        });
        if is_better {
            best = Some((text, length, *depth));
        }
    }
    best
}

/// What may be an address on a stack, and how deep the oldest frame is that has it.
fn candidates(reader: &Reader<'_>, header: u64, (sp, hi): (u64, u64)) -> Option<BTreeMap<u64, u32>> {
    let from = sp.max(hi.checked_sub(MAX_STACK)?);
    let mut bytes = vec![0; usize::try_from(hi.checked_sub(from)?).ok()?];
    if reader.0.read_at(&mut bytes, from).ok()? != bytes.len() {
        return None;
    }
    let mut words = BTreeMap::new();
    for (n, word) in bytes.chunks_exact(8).enumerate().rev() {
        let word = u64::from_ne_bytes(word.try_into().ok()?);
        let may_be = is_near(word, header) && !(from..hi).contains(&word);
        if may_be && words.len() < MAX_WORDS {
            let depth = u32::try_from(bytes.len() - 8 * n).unwrap_or(u32::MAX);
            words.entry(word).or_insert(depth);
        }
    }
    Some(words)
}

/// Whether this may be an object of the same heap; most words of a stack are not, and each is some reads.
fn is_near(address: u64, other: u64) -> bool {
    address.is_multiple_of(8) && address.abs_diff(other) < MAX_HEAP
}

fn header_of(reader: &Reader<'_>, config: &RequestConfig, open: &OpenRequest) -> Option<u64> {
    if open.header == 0 { header(reader, config, open.object) } else { Some(open.header) }
}

fn header(reader: &Reader<'_>, config: &RequestConfig, request: u64) -> Option<u64> {
    reader.word(reader.follow(request, config.request.header)?).filter(|map| *map != 0)
}

fn context(reader: &Reader<'_>, config: &RequestConfig, request: u64) -> Option<u64> {
    let at = Some(config.request.context).filter(|at| *at != NO_STEP)?;
    reader.word(request.checked_add(u64::from(at) + 8)?).filter(|context| *context != 0)
}

/// What the contexts of a request are known by.
struct Search<'a> {
    reader: &'a Reader<'a>,
    config: &'a RequestConfig,
    header: u64,
    context: Option<u64>,
    asked: u64,
}

impl Search<'_> {
    /// What a router's context at an address says, where it is one of the request.
    fn route(&self, at: u64) -> Option<([u8; ROUTE_BYTES], u8)> {
        let routers = &self.config.routers;
        self.of_context(at, routers.gin)
            .or_else(|| self.of_context(at, routers.echo))
            .or_else(|| self.of_chi(at))
    }

    /// gin's, and echo's.
    fn of_context(&self, at: u64, layout: ContextLayout) -> Option<([u8; ROUTE_BYTES], u8)> {
        if layout.pattern == NO_STEP || layout.request == NO_STEP {
            return None;
        }
        let request = self.reader.word(at.checked_add(layout.request.into())?)?;
        if !is_near(request, self.header) || header(self.reader, self.config, request) != Some(self.header) {
            return None;
        }
        let [pointer, length] = self.reader.words(at.checked_add(layout.pattern.into())?)?;
        // An old echo takes the path for the pattern where it has none.
        if pointer == self.asked {
            return None;
        }
        self.reader.text_at(pointer, length)
    }

    /// The patterns of chi's routers, one behind the other.
    fn of_chi(&self, at: u64) -> Option<([u8; ROUTE_BYTES], u8)> {
        let layout = self.config.routers.chi;
        if [layout.patterns, layout.last, layout.parent].contains(&NO_STEP) {
            return None;
        }
        let field = |offset: u16| at.checked_add(offset.into());
        let mut parent = self.reader.word(field(layout.parent)?.checked_add(8)?)?;
        let own = self.context?;
        let mut steps = 0;
        while parent != own {
            steps += 1;
            if !is_near(parent, self.header) || steps == MAX_CONTEXTS {
                return None;
            }
            parent = self.reader.word(parent.checked_add(8)?)?;
        }
        let [_, last] = self.reader.words(field(layout.last)?)?;
        let [patterns, count] = self.reader.words(field(layout.patterns)?)?;
        if last == 0 || !(1..=MAX_LEVELS).contains(&count) {
            return None;
        }
        let mut whole: Vec<u8> = Vec::new();
        for n in 0..count {
            let [pointer, length] = self.reader.words(patterns.checked_add(16 * n)?)?;
            let (text, told) = self.reader.text_at::<ROUTE_BYTES>(pointer, length)?;
            let kept = text.get(..usize::from(told).min(ROUTE_BYTES))?;
            // What is mounted there follows.
            let kept = if n + 1 < count { kept.strip_suffix(b"/*").unwrap_or(kept) } else { kept };
            whole.extend_from_slice(kept);
        }
        for _ in 0..2 {
            if whole.len() > 1 && whole.last() == Some(&b'/') {
                whole.pop();
            }
        }
        let told = if whole.len() > ROUTE_BYTES { u8::MAX } else { u8::try_from(whole.len()).ok()? };
        whole.resize(ROUTE_BYTES, 0);
        Some((whole.try_into().ok()?, told))
    }
}
