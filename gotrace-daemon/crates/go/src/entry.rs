//! What a goroutine runs. `go f(x)` makes the compiler write a closure without arguments that calls `f`;
//! the goroutine's entry is that closure, but it is `f` that everybody looks for.

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::{Arch, Binary, Frame, code::Code};

/// Longest wrapper that is looked into, in bytes. They hold one call and the loading of its arguments.
pub(super) const LONGEST_WRAPPER: u64 = 4096;

/// Code is looked through in parts of this many bytes.
const PART: u64 = 4 << 20;
/// Bytes of the longest direct call.
const CALL: u64 = 8;

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
        Some(self.wrapped(entry, read_code).map_or(own, |(_, callee)| callee))
    }

    /// Link-time address of the same function; the entry itself where the function has no code of its own. `None` where
    /// no function begins there.
    #[must_use]
    pub fn goroutine_entry(
        &self,
        entry: u64,
        read_code: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
    ) -> Option<u64> {
        self.function_at(entry).filter(|f| f.entry == entry)?;
        let own = self.lookup(entry, false).pop()?;
        let wrapped = if own.wrapper { self.wrapped(entry, read_code) } else { None };
        Some(wrapped.and_then(|(address, _)| address).unwrap_or(entry))
    }

    /// What a wrapper calls, whatever its closure holds: where that begins, if it has code of its own, and its name.
    pub(super) fn wrapped(
        &self,
        entry: u64,
        read_code: &dyn Fn(u64, usize) -> Option<Vec<u8>>,
    ) -> Option<(Option<u64>, Frame)> {
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
            return Some((address, Frame { inlined: false, ..beginning.unwrap_or(callee) }));
        }
        let code = read_code(self.file_offset(entry)?, usize::try_from(length).ok()?)?;
        branches(self.arch(), entry, &code)
            .into_iter()
            .map(|branch| branch.target)
            .filter(|target| *target < function.entry || *target >= function.end)
            .filter_map(|target| Some((Some(target), self.lookup(target, false).pop()?)))
            .find(|(_, f)| !is_overhead(&f.function))
    }

    /// Return addresses (link time) of all direct calls of the function with this entry, ascending; a jump to it
    /// does not count. Reads all code, which is looked through for the bytes of such calls: for a question now and then.
    #[must_use]
    pub fn callers(&self, entry: u64, read_code: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Vec<u64> {
        let executable = self.segments.iter().filter(|s| s.flags & object::elf::PF_X.0 != 0);
        let mut found = Vec::new();
        for segment in executable {
            let end = segment.address.saturating_add(segment.file_size);
            let mut at = segment.address;
            while at < end {
                // A call may lie across the parts' border: what is read reaches a little further.
                let length = (end - at).min(PART + CALL);
                let read = usize::try_from(length).ok().and_then(|n| read_code(self.file_offset(at)?, n));
                let Some(code) = read else { break };
                found.extend(
                    calls(self.arch(), at, &code, entry).filter(|pc| self.function_at(pc - 1).is_some()),
                );
                at += PART;
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Return addresses (link time) of the direct calls of a target in a function's code, which begins at an address.
    #[must_use]
    pub fn calls_in(&self, address: u64, code: &[u8], target: u64) -> Vec<u64> {
        calls(self.arch(), address, code, target).collect()
    }

    /// Direct calls in a function's code, which begins at an address: where they return to, and what they call (link time).
    #[must_use]
    pub fn all_calls_in(&self, address: u64, code: &[u8]) -> Vec<(u64, u64)> {
        branches(self.arch(), address, code)
            .into_iter()
            .filter(|b| b.calls)
            .map(|b| (b.behind, b.target))
            .collect()
    }

    /// Where a function's code, which begins at an address, takes addresses of variables: the instruction's own and the
    /// variable's (link time).
    #[must_use]
    pub fn addresses_taken_in(&self, address: u64, code: &[u8]) -> Vec<(u64, u64)> {
        let code = Code { arch: self.arch(), bytes: code, address, name_of: &|_| None };
        code.where_addresses_are_taken().map(|(at, taken)| (address.wrapping_add(at as u64), taken)).collect()
    }

    /// Instructions begin at multiples of this many bytes.
    #[must_use]
    pub fn instruction_step(&self) -> usize {
        match self.arch() {
            Arch::Amd64 => 1,
            Arch::Arm64 => 4,
        }
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
    [
        "runtime.morestack",
        "runtime.race",
        "runtime.gcWriteBarrier",
        "runtime.panic",
        "runtime.defer",
        "runtime.duff",
        "runtime.memmove",
    ]
    .iter()
    .any(|prefix| function.starts_with(prefix))
}

/// Addresses behind the direct calls of a target; on amd64 also where other bytes happen to look like one.
fn calls(arch: Arch, address: u64, code: &[u8], target: u64) -> impl Iterator<Item = u64> {
    let (step, length) = match arch {
        Arch::Amd64 => (1, 5),
        Arch::Arm64 => (4, 4),
    };
    code.windows(length).enumerate().step_by(step).filter_map(move |(n, bytes)| {
        let pc = address.wrapping_add(n as u64);
        let to = match arch {
            Arch::Amd64 => {
                let offset = bytes.get(1..5).filter(|_| bytes[0] == 0xe8)?;
                pc.wrapping_add(5).wrapping_add_signed(i32::from_le_bytes(offset.try_into().ok()?).into())
            }
            Arch::Arm64 => {
                let word = u32::from_le_bytes(bytes.try_into().ok()?);
                let offset = i64::from((word << 6).cast_signed() >> 6) * 4;
                (word >> 26 == 0x25).then(|| pc.wrapping_add_signed(offset))?
            }
        };
        (to == target).then_some(pc.wrapping_add(length as u64))
    })
}

/// A direct call or jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Branch {
    /// Address of the next instruction.
    behind: u64,
    target: u64,
    calls: bool,
}

/// Direct calls and jumps, in order.
fn branches(arch: Arch, address: u64, code: &[u8]) -> Vec<Branch> {
    match arch {
        Arch::Amd64 => Decoder::with_ip(64, code, address, DecoderOptions::NONE)
            .into_iter()
            .filter(|i| matches!(i.flow_control(), FlowControl::Call | FlowControl::UnconditionalBranch))
            .map(|i| Branch { behind: i.next_ip(), target: i.near_branch_target(), calls: i.is_call_near() })
            .filter(|branch| branch.target != 0)
            .collect(),
        Arch::Arm64 => code
            .chunks_exact(4)
            .zip((address..).step_by(4))
            .filter_map(|(bytes, pc)| {
                let word = u32::from_le_bytes(bytes.try_into().ok()?);
                // b and bl: 26 bits of words, signed.
                let offset = i64::from((word << 6).cast_signed() >> 6) * 4;
                let (behind, target) = (pc.wrapping_add(4), pc.wrapping_add_signed(offset));
                let calls = word >> 26 == 0x25;
                (calls || word >> 26 == 0x05).then_some(Branch { behind, target, calls })
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_branches_are_found_on_both_architectures() {
        let found = |arch, code: &[u8], target| calls(arch, 0x1000, code, target).collect::<Vec<_>>();
        // call +0x10; nop; jmp -2; ret
        let amd64 = [0xe8, 0x10, 0, 0, 0, 0x90, 0xeb, 0xfe, 0xc3];
        let targets = |arch, code: &[u8]| {
            let all = branches(arch, 0x1000, code).into_iter();
            all.map(|b| (b.behind, b.target, b.calls)).collect::<Vec<_>>()
        };
        assert_eq!(targets(Arch::Amd64, &amd64), [(0x1005, 0x1015, true), (0x1008, 0x1006, false)]);
        assert_eq!(found(Arch::Amd64, &amd64, 0x1015), [0x1005]);
        assert!(found(Arch::Amd64, &amd64, 0x1006).is_empty(), "a jump");
        // nop; bl +8; b -4
        let arm64: Vec<u8> =
            [0xd503_201f_u32, 0x9400_0002, 0x17ff_ffff].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(targets(Arch::Arm64, &arm64), [(0x1008, 0x100c, true), (0x100c, 0x1004, false)]);
        assert_eq!(found(Arch::Arm64, &arm64, 0x100c), [0x1008]);
        assert!(found(Arch::Arm64, &arm64, 0x1004).is_empty(), "a jump");
    }
}
