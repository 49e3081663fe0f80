//! Many processes of one file: how many have probes of their own, and when one attachment serves all.
//!
//! The kernel calls every probe of a place, whichever process hits it, so that a hit grows dearer with each process of
//! the same file that has probes. Up to a number ([`scoped_limit`]) each has its own. Beyond, one attachment serves all
//! that run the file, where every one of them is taken by the rules, which discovery tells; and it gives way to scoped
//! probes as soon as another one runs it. Where that cannot be, further processes are traced by snapshots, and say why.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Line, probes::SharedFile, scout::Order, traced::Traced};
use crate::tracee::Lowered;
use gotrace_kernel::HitCost;
use gotrace_process::FileNode;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// Time after which it is asked again whether a file can be shared.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// A hit may cost so many times what it costs where one process of the file has probes.
const MOST: f64 = 1.3;
/// Processes of a file with probes of their own, while what a hit costs is not known; the least and the most.
const DEFAULT_LIMIT: usize = 8;
const LEAST_LIMIT: usize = 4;
const MOST_LIMIT: usize = 32;

/// What the line knows of files that many run.
pub(super) struct Sharing {
    next: Instant,
    asked: HashMap<FileNode, Instant>,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { next: Instant::now(), asked: HashMap::new() }
    }
}

/// How many processes of one file may have probes of their own.
fn scoped_limit(cost: Option<HitCost>) -> usize {
    let Some(HitCost { emulated_ns, neighbour_ns, .. }) = cost else { return DEFAULT_LIMIT };
    if neighbour_ns <= 0.0 {
        return MOST_LIMIT;
    }
    let others = (emulated_ns * (MOST - 1.0) / neighbour_ns).clamp(0.0, MOST_LIMIT as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and MOST_LIMIT")]
    let others = others as usize;
    (1 + others).clamp(LEAST_LIMIT, MOST_LIMIT)
}

impl Line {
    /// Whether a process that joins is to be traced by snapshots, as too many of its file have probes already.
    pub(super) fn has_too_many_neighbours(&mut self, traced: &Traced) -> bool {
        let limit = scoped_limit(self.cost(Duration::ZERO));
        let Some(file) = traced.shared_file() else { return false };
        let shared = self.probes.as_ref().is_some_and(|p| p.is_shared(file));
        !shared && self.scoped_of(file) >= limit
    }

    fn scoped_of(&self, file: SharedFile) -> usize {
        self.traced.iter().filter(|t| has_probes(t) && t.shared_file() == Some(file)).count()
    }

    /// Sees to it that no process's hits are dear because others run its file.
    pub(super) fn tend_sharing(&mut self, now: Instant) {
        if now < self.sharing.next {
            return;
        }
        self.sharing.next = now + EVERY;
        let limit = scoped_limit(self.cost(Duration::ZERO));
        let Some(probes) = &self.probes else { return };
        let mut files: HashMap<SharedFile, (u32, Vec<u32>)> = HashMap::new();
        for traced in &self.traced {
            if let Some(file) = traced.shared_file() {
                let (with_probes, waiting) = files.entry(file).or_default();
                *with_probes += u32::from(has_probes(traced));
                waiting.extend((traced.tracee.lowered() == Some(Lowered::Neighbours)).then(|| traced.pid()));
            }
        }
        for traced in &mut self.traced {
            let shared = probes.shares(traced).is_some();
            let others = traced.shared_file().and_then(|file| files.get(&file)).map_or(0, |(n, _)| *n);
            traced.neighbours = if shared { 0 } else { others.saturating_sub(1) };
        }
        let mut raised = Vec::new();
        self.sharing.asked.retain(|_, at| now.duration_since(*at) < ASK_EVERY);
        for (file, (with_probes, waiting)) in &files {
            let with_probes = *with_probes as usize;
            if probes.is_shared(*file) {
                raised.extend(waiting);
            } else if with_probes >= limit {
                if probes.can_share()
                    && let Some(node) = &self.node
                    && !self.sharing.asked.contains_key(&file.node)
                {
                    self.sharing.asked.insert(file.node, now);
                    // Refused when discovery has ended, and has said why.
                    let _ = node.orders().send(Order::MayShare(file.node));
                }
            } else {
                raised.extend(waiting.iter().take(limit - with_probes));
            }
        }
        for pid in raised {
            let Some(traced) = self.traced.iter_mut().find(|t| t.pid() == pid) else { continue };
            traced.lower(None);
            let most = traced.most(&self.config);
            self.set_step(pid, most);
        }
    }

    /// Discovery answers: every process that runs the file is taken by the rules.
    pub(super) fn share_probes(&mut self, node: FileNode) {
        let Self { probes: Some(probes), traced, config, .. } = self else { return };
        let mut files: Vec<SharedFile> =
            traced.iter().filter_map(Traced::shared_file).filter(|file| file.node == node).collect();
        files.sort_by_key(|file| file.content);
        files.dedup();
        // Content tells files apart that only look like one: then it is not known who would be hit.
        let [file] = files[..] else { return };
        let mut members: Vec<&mut Traced> =
            traced.iter_mut().filter(|t| has_probes(t) && t.shared_file() == Some(file)).collect();
        // One whose level was lowered would pay for the others'; so would all for one whose level is held higher.
        let is_at_another =
            |t: &&mut Traced| t.aim() != t.most(config) || t.wanted_level(config) != config.level;
        if probes.is_shared(file) || members.iter().any(is_at_another) {
            return;
        }
        let processes = members.len();
        match probes.share(file, &mut members) {
            Ok(()) => {
                tracing::info!(processes, "sharing one set of probes between all processes of an executable");
            }
            Err(error) => {
                tracing::warn!(
                    processes,
                    "keeping separate probes for each process of an executable: {error}"
                );
            }
        }
    }

    /// A process runs the file that the rules do not take: no breakpoint is to be in that one.
    pub(super) fn stop_sharing(&mut self, node: FileNode) {
        let limit = scoped_limit(self.cost(Duration::ZERO));
        let Self { probes: Some(probes), traced, config, .. } = self else { return };
        let files: Vec<SharedFile> =
            traced.iter().filter_map(|t| probes.shares(t)).filter(|file| file.node == node).collect();
        let Some(file) = files.first().copied() else { return };
        tracing::info!(
            processes = files.len(),
            "using separate probes for each process of an executable: the rules do not match all of them"
        );
        let failed = probes.unshare(file, traced, limit);
        for traced in traced.iter_mut() {
            let Some((_, error)) = failed.iter().find(|(number, _)| *number == traced.number()) else {
                continue;
            };
            traced.stop_events(config);
            traced.lower(Some(if error.is_some() { Lowered::File } else { Lowered::Neighbours }));
            let why = error.as_ref().map_or_else(
                || format!("{limit} processes of its executable have probes already, and more would slow down each other"),
                ToString::to_string,
            );
            tracing::warn!(pid = traced.pid(), "falling back to snapshots: {why}");
        }
    }

    /// A process joins that too many neighbours keep from having probes.
    pub(super) fn join_without_probes(&self, traced: &mut Traced) {
        traced.become_sampled();
        traced.lower(Some(Lowered::Neighbours));
        tracing::debug!(
            pid = traced.pid(),
            "using snapshots until all processes of its executable share their probes"
        );
    }
}

fn has_probes(traced: &Traced) -> bool {
    traced.slot.is_some() && !traced.is_sampled()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_have_probes_of_their_own_as_a_hit_bears() {
        let cost =
            |emulated_ns, neighbour_ns| Some(HitCost { emulated_ns, stepped_ns: 10_000.0, neighbour_ns });
        assert_eq!(scoped_limit(None), DEFAULT_LIMIT);
        // Measured on 6.18 by links: 633 ns, and 27 more for each.
        assert_eq!(scoped_limit(cost(633.0, 27.0)), 8);
        assert_eq!(scoped_limit(cost(600.0, 1000.0)), LEAST_LIMIT);
        assert_eq!(scoped_limit(cost(600.0, 0.1)), MOST_LIMIT);
        assert_eq!(scoped_limit(cost(600.0, 0.0)), MOST_LIMIT);
    }
}
