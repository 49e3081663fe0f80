//! A configuration that is read again while the line runs: what of it takes effect at once, for processes that
//! are traced already too. What cannot (sizes of the kernel's maps, the engine) stays as it was; whoever reads the
//! configuration says so.

use std::{sync::Arc, time::Instant};

use super::{
    Line, LineConfig, Step,
    scout::Order,
    spending::Spending,
    traced::{Traced, describe},
};
use crate::tracee::{Input, known};
use gotrace_process::Rules;

impl Line {
    /// Traces in another way from now on.
    pub(super) fn adopt(&mut self, config: LineConfig, rules: Arc<Rules>) {
        let now = &self.config;
        let config = LineConfig {
            engine: now.engine,
            ring_bytes: now.ring_bytes,
            goroutines: now.goroutines,
            processes: now.processes,
            kernel_log_level: now.kernel_log_level,
            follow: now.follow,
            left_behind: now.left_behind,
            requests: now.requests.clone(),
            state: now.state.clone(),
            ..config
        };
        // At another level, or without a budget, all begin anew.
        let anew = config.level != now.level || config.budget.is_none();
        self.config = config;
        for traced in &mut self.traced {
            traced.follow_config(&self.config);
            let identity = &traced.target().identity;
            let key = (identity.pid, identity.start_ticks);
            if let Some(metadata) = self.node.as_ref().and_then(|node| node.metadata_of(key)) {
                traced.learn(metadata);
            }
            if let (Some(probes), false) = (&mut self.probes, traced.is_sampled())
                && let Err(error) = probes.kernel.configure(traced.pid(), traced.config)
            {
                tracing::warn!(
                    pid = traced.pid(),
                    "cannot apply the new configuration to this process: {error}"
                );
            }
        }
        if anew {
            self.spending = Spending::default();
            let anew = self.traced.iter().filter(|t| t.slot.is_some() && !t.cramped);
            let steps: Vec<(u32, Step)> = anew.map(|t| (t.pid(), t.most(&self.config))).collect();
            for (pid, step) in steps {
                self.set_step(pid, step);
            }
        }
        if let Some(node) = &self.node {
            let _ = node.orders().send(Order::Config(Box::new(self.config.clone()), rules));
        }
    }
}

impl Traced {
    /// Takes on what the configuration says of a process that is traced already. Every field is named here: one
    /// that is new does not compile until it is written what it does.
    pub(super) fn follow_config(&mut self, line: &LineConfig) {
        let LineConfig {
            // As they were while the kernel side is loaded and the run lasts (`Line::adopt`).
            engine: _,
            requests: _,
            ring_bytes: _,
            goroutines: _,
            follow: _,
            processes: _,
            kernel_log_level: _,
            left_behind: _,
            state: _,
            // The line's own: it reads them whenever it weighs or changes levels.
            memory: _,
            // The tracee's (`LineConfig::settings`).
            sampling: _,
            budget: _,
            level: _,
            trace_root_age: _,
            min_wait,
            stack_depth,
            interval: _,
            reconcile,
            goroutines_each,
            resource,
            suspicions,
            proofs,
            suppressions,
        } = line;
        self.config.min_wait_ns = u64::try_from(min_wait.as_nanos()).unwrap_or(u64::MAX);
        self.config.stack_depth = *stack_depth;
        let (pace, sampled) = (self.pace(line), self.is_sampled());
        match &mut self.snapshots {
            Some(snapshots) if snapshots.pace() != pace => snapshots.set_pace(pace, &mut self.tracee),
            Some(_) => {}
            // Of one that was traced from its beginning on none was wanted so far.
            None if !sampled && self.first_snapshot.is_none() => {
                self.first_snapshot = reconcile.map(|every| Instant::now() + every);
            }
            None => {}
        }
        self.tracee.tell(&Input::Settings(self.settings(line)));
        self.tracee.tell(&Input::MinWait { ns: self.config.min_wait_ns });
        if !self.capped {
            self.tracee.tell(&Input::Room(*goroutines_each as u64));
        }
        if *resource != self.resource_options {
            self.resource_options = *resource;
            let attributes = describe(self.target(), self.binary(), *resource).attributes;
            self.base = Arc::new(self.base.replaced(attributes));
            self.tracee.tell(&Input::Resource(self.base.attributes.clone()));
        }
        self.follow_examination(*suspicions, *proofs);
        self.tracee.tell(&Input::Suppressions(known(suppressions)));
    }
}
