//! Trace and span ids: computed from what identifies a goroutine, so that two agents, or one
//! restarted, give the same ones, and a link can be made without a lookup.
//!
//! The identity of a program that runs is (boot id, pid in the outermost namespace that the agent sees, start
//! time of the process in clock ticks since boot, where the kernel laid out its stack): a process that executes
//! another program, or the same one again, keeps the first three, and has a stack elsewhere. A goroutine adds its goid, a wait adds its start. The hash is SHA-256 for a process (once) and
//! SplitMix64 finalisers keyed by it for goroutines (millions a second). Ids are not secrets.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::SpanContext;

/// The key that ids of one process are derived from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessKey([u64; 3]);

impl ProcessKey {
    /// `boot_id` as in `/proc/sys/kernel/random/boot_id`, `start_ticks` as in field 22 of
    /// `/proc/PID/stat`, `stack_start` as in field 28 (0 where the kernel does not tell), `repeat` how many
    /// programs the process executed before with their stacks in that place.
    #[must_use]
    pub fn new(boot_id: &str, pid: u32, start_ticks: u64, stack_start: u64, repeat: u32) -> Self {
        let mut hash = Sha256::new()
            .chain_update(b"gotrace process\0")
            .chain_update(boot_id.trim().as_bytes())
            .chain_update([0])
            .chain_update(pid.to_le_bytes())
            .chain_update(start_ticks.to_le_bytes());
        if stack_start != 0 {
            hash.update(stack_start.to_le_bytes());
        }
        if repeat != 0 {
            hash.update(repeat.to_le_bytes());
        }
        let digest = hash.finalize();
        let word = |i: usize| {
            let mut b = [0u8; 8];
            b.copy_from_slice(&digest[i * 8..i * 8 + 8]);
            u64::from_le_bytes(b)
        };
        Self([word(0), word(1), word(2)])
    }

    /// Trace id of the trace that begins with the goroutine `root`.
    #[must_use]
    pub fn trace_id(&self, root: u64) -> [u8; 16] {
        let high = mix(self.0[0] ^ mix(root));
        let low = mix(self.0[1] ^ mix(root.wrapping_add(0x9e37_79b9_7f4a_7c15))) | 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&high.to_be_bytes());
        id[8..].copy_from_slice(&low.to_be_bytes());
        id
    }

    /// Span id of a goroutine.
    #[must_use]
    pub fn span_id(&self, goid: u64) -> [u8; 8] {
        nonzero(mix(self.0[2] ^ mix(goid)))
    }

    /// Span id of the wait of a goroutine that began at `start_ns` (monotonic clock).
    #[must_use]
    pub fn wait_span_id(&self, goid: u64, start_ns: u64) -> [u8; 8] {
        nonzero(mix(mix(self.0[2] ^ mix(goid)) ^ start_ns))
    }

    /// Span id of the request that a goroutine began to serve at `start_ns` (monotonic clock).
    #[must_use]
    pub fn request_span_id(&self, goid: u64, start_ns: u64) -> [u8; 8] {
        nonzero(mix(mix(self.0[1] ^ mix(goid)) ^ start_ns))
    }

    /// Address of the span of `goid` in the trace that begins with `root`.
    #[must_use]
    pub fn context(&self, root: u64, goid: u64) -> SpanContext {
        SpanContext { trace_id: self.trace_id(root), span_id: self.span_id(goid) }
    }
}

fn nonzero(x: u64) -> [u8; 8] {
    x.max(1).to_be_bytes()
}

/// The finaliser of SplitMix64: a bijection that changes half of the bits for any change of one.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_each_part_and_only_on_them() {
        let key = ProcessKey::new("b", 7, 100, 9, 0);
        assert_eq!(key, ProcessKey::new("b\n", 7, 100, 9, 0));
        for other in [
            ProcessKey::new("c", 7, 100, 9, 0),
            ProcessKey::new("b", 8, 100, 9, 0),
            ProcessKey::new("b", 7, 101, 9, 0),
            ProcessKey::new("b", 7, 100, 10, 0),
            ProcessKey::new("b", 7, 100, 9, 1),
        ] {
            assert_ne!(key.trace_id(1), other.trace_id(1));
            assert_ne!(key.span_id(1), other.span_id(1));
        }
        let mut seen = std::collections::HashSet::new();
        for goid in 0..100_000 {
            assert!(seen.insert(key.span_id(goid)));
            assert_ne!(key.trace_id(goid), [0; 16]);
        }
    }
}
