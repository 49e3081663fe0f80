//! What a goroutine runs. `go f(x)` makes the compiler write a closure without arguments that calls `f`;
//! the goroutine's entry is that closure, but it is `f` that everybody looks for.

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::{Arch, Binary, Frame};

/// Longest wrapper that is looked into, in bytes. They hold one call and the loading of its arguments.
const LONGEST_WRAPPER: u64 = 4096;

impl Binary {
    /// The function that a goroutine with this entry (link-time address) runs, the compiler's wrapper
    /// seen through. `read_code` reads that many bytes of the file at an offset; without them a wrapper
    /// whose callee was not inlined stays a wrapper.
    #[must_use]
    pub fn goroutine_function(
        &self,
        entry: u64,
        read_code: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
    ) -> Option<Frame> {
        let own = self.lookup(entry, false).pop()?;
        if !own.wrapper {
            return Some(own);
        }
        Some(self.wrapped(entry, read_code).unwrap_or(own))
    }

    fn wrapped(&self, entry: u64, read_code: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Frame> {
        let function = self.function_at(entry)?;
        let length = function.end.checked_sub(entry)?.min(LONGEST_WRAPPER);
        let step = match self.arch() {
            Arch::Amd64 => 1,
            Arch::Arm64 => 4,
        };
        let inlined = (entry..entry + length).step_by(step).find_map(|pc| {
            let mut frames = self.lookup(pc, false);
            // The wrapper itself is the last; before it stands what was inlined into it.
            frames.pop()?;
            frames.pop().filter(|f| !is_overhead(&f.function))
        });
        if let Some(callee) = inlined {
            // Its own beginning, where a copy exists that was not inlined.
            let address = self.function_address(&callee.function);
            let beginning = address.and_then(|a| self.lookup(a, false).pop());
            return Some(Frame { inlined: false, ..beginning.unwrap_or(callee) });
        }
        let code = read_code(self.file_offset(entry)?, usize::try_from(length).ok()?)?;
        branches(self.arch(), entry, &code)
            .into_iter()
            .filter(|target| *target < function.entry || *target >= function.end)
            .filter_map(|target| self.lookup(target, false).pop())
            .find(|f| !is_overhead(&f.function))
    }

    /// Offset in the file of a link-time address; `None` when no loadable segment holds it.
    #[must_use]
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|s| {
            let offset = address.checked_sub(s.address).filter(|o| *o < s.file_size)?;
            s.offset.checked_add(offset)
        })
    }
}

/// What the compiler puts into any function.
fn is_overhead(function: &str) -> bool {
    ["runtime.morestack", "runtime.race", "runtime.gcWriteBarrier", "runtime.panic", "runtime.defer"]
        .iter()
        .any(|prefix| function.starts_with(prefix))
}

/// Targets of direct calls and jumps, in order.
fn branches(arch: Arch, address: u64, code: &[u8]) -> Vec<u64> {
    match arch {
        Arch::Amd64 => Decoder::with_ip(64, code, address, DecoderOptions::NONE)
            .into_iter()
            .filter(|i| matches!(i.flow_control(), FlowControl::Call | FlowControl::UnconditionalBranch))
            .map(|i| i.near_branch_target())
            .filter(|target| *target != 0)
            .collect(),
        Arch::Arm64 => code
            .chunks_exact(4)
            .zip((address..).step_by(4))
            .filter_map(|(bytes, pc)| {
                let word = u32::from_le_bytes(bytes.try_into().ok()?);
                // b and bl: 26 bits of words, signed.
                let offset = i64::from((word << 6).cast_signed() >> 6) * 4;
                matches!(word >> 26, 0x05 | 0x25).then(|| pc.wrapping_add_signed(offset))
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_branches_are_found_on_both_architectures() {
        // call +0x10; nop; jmp -2; ret
        let amd64 = [0xe8, 0x10, 0, 0, 0, 0x90, 0xeb, 0xfe, 0xc3];
        assert_eq!(branches(Arch::Amd64, 0x1000, &amd64), [0x1015, 0x1006]);
        // nop; bl +8; b -4
        let arm64: Vec<u8> =
            [0xd503_201f_u32, 0x9400_0002, 0x17ff_ffff].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(branches(Arch::Arm64, 0x1000, &arm64), [0x100c, 0x1004]);
    }
}
