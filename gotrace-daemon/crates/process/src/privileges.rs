//! What gotrace may do itself: gives up what a daemon on every node has no use for.
//!
//! Must be called before there are threads: Linux keeps capabilities by thread, and new ones inherit.

use std::io;

use rustix::{
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

/// What is kept, as far as it is there: eBPF programs and maps; probes; memory and executables of other
/// users' processes; leases on those, so that they are not rewritten while probes are in them.
const KEPT: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::DAC_READ_SEARCH);
/// And on older kernels: the memory-lock limit before 5.11, the process connector before 6.6.
const KEPT_OLDER: CapabilitySet = CapabilitySet::SYS_RESOURCE.union(CapabilitySet::NET_ADMIN);

/// Lets this process open as many files as it may: each process that is traced takes five, each file with
/// probes one a probe.
pub fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files: only few processes can be traced");
    }
}

/// Has a program that this thread starts while this is held keep what it takes to read the memory of others. Root keeps
/// that anyway.
pub(super) fn keep_over_exec() -> Option<KeptOverExec> {
    if geteuid().is_root() {
        return None;
    }
    let sets = capabilities(None).ok()?;
    let wanted = (CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH).intersection(sets.permitted);
    let added = wanted.difference(sets.inheritable);
    set_capabilities(None, CapabilitySets { inheritable: sets.inheritable | wanted, ..sets }).ok()?;
    for capability in wanted.iter() {
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    Some(KeptOverExec(added))
}

/// Gives back at its end what [`keep_over_exec`] added.
pub(super) struct KeptOverExec(CapabilitySet);

impl Drop for KeptOverExec {
    fn drop(&mut self) {
        // What is not inheritable is in no ambient set.
        if let Ok(sets) = capabilities(None) {
            let inheritable = sets.inheritable.difference(self.0);
            let _ = set_capabilities(None, CapabilitySets { inheritable, ..sets });
        }
    }
}

/// Drops every other capability for good, and the way to new ones. `perf_events`: probes are put in place by
/// perf_event_open(2), which wants SYS_ADMIN on every kernel. Returns what is left, in words.
///
/// # Errors
/// What the kernel says; nothing was dropped then, or not all.
pub fn drop_privileges(perf_events: bool) -> io::Result<String> {
    let mut kept = if super::kernel_is_at_least(6, 6) { KEPT } else { KEPT.union(KEPT_OLDER) };
    if perf_events {
        kept |= CapabilitySet::SYS_ADMIN;
    }
    let mut sets = capabilities(None)?;
    let dropped = CapabilitySet::all().difference(kept);
    for capability in dropped.iter() {
        // Refused without SETPCAP, and for capabilities that this kernel does not know; without the others
        // the bounding set gives nobody anything.
        let _ = remove_capability_from_bounding_set(capability);
    }
    sets.permitted = sets.permitted.intersection(kept);
    sets.effective = sets.permitted;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)?;
    set_no_new_privs(true)?;
    let names: Vec<String> = sets.permitted.iter_names().map(|(name, _)| name.to_owned()).collect();
    Ok(if names.is_empty() { "none".into() } else { names.join(", ") })
}
