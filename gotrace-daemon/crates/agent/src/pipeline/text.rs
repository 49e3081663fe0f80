//! What stands at the places of a probe plan: in the file that was parsed, and in the memory of a process before and
//! after probes are put in place. A breakpoint only ever replaces an instruction that gotrace has parsed.
//!
//! Input: a plan, the parsed file, a process's open `/proc/PID/mem`. Output: [`Mismatch`], which says what stands where.

use std::io;

use gotrace_go::{Arch, Probe};
use gotrace_process::{Executable, ImageMemory};

/// Bytes that are compared at a place; fewer where the next place begins before.
const WINDOW: usize = 16;

/// x86-64: `int3`, which an `uprobe` puts over the first byte of an instruction.
const INT3: u8 = 0xcc;
/// x86-64: `nopl 0x0(%rax,%rax,1)`, which Linux 6.18 replaces with a call.
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const CALL: u8 = 0xe8;
/// arm64: `brk #5` (arch/arm64/include/asm/brk-imm.h, `UPROBES_BRK_IMM`).
const BRK: [u8; 4] = 0xd420_00a0_u32.to_le_bytes();

/// A place of the plan, and what the file has there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    function: String,
    address: u64,
    file_offset: u64,
    bytes: Vec<u8>,
}

/// The places of a program, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    arm64: bool,
    places: Vec<Place>,
}

/// Something stands at a place that should not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mismatch {
    /// The process runs the program no more.
    #[error("it has executed another program")]
    Executed,
    #[error("cannot read its memory at {address:#x} ({function}): {error}")]
    Unreadable { function: String, address: u64, error: String },
    #[error("its code at {address:#x} ({function}) is {found}, but {expected} in its executable")]
    Other { function: String, address: u64, found: String, expected: String },
    #[error("there is a breakpoint at {address:#x} ({function}), possibly a debugger's")]
    Debugger { function: String, address: u64 },
    #[error("the kernel reported success but set no breakpoint at {address:#x} ({function})")]
    NoBreakpoint { function: String, address: u64 },
}

/// What stands at a place.
enum Found {
    /// What the file has.
    Original,
    /// A breakpoint of the kernel's, with the rest as in the file.
    Breakpoint,
    Other(Vec<u8>),
}

impl Text {
    /// Notes what the file has at these places.
    pub fn read(file: &[u8], arch: Arch, probes: &[Probe]) -> Self {
        let mut places: Vec<Place> = Vec::new();
        for probe in probes {
            if places.iter().any(|p| p.file_offset == probe.file_offset) {
                continue;
            }
            let at = usize::try_from(probe.file_offset).unwrap_or(usize::MAX);
            let bytes = file.get(at..).unwrap_or_default();
            places.push(Place {
                function: probe.function.clone(),
                address: probe.address,
                file_offset: probe.file_offset,
                bytes: bytes[..bytes.len().min(WINDOW)].to_vec(),
            });
        }
        places.sort_by_key(|p| p.file_offset);
        // What stands behind a place is compared up to the next one.
        for i in 1..places.len() {
            let distance =
                usize::try_from(places[i].file_offset - places[i - 1].file_offset).unwrap_or(WINDOW);
            places[i - 1].bytes.truncate(distance);
        }
        Self { arm64: arch == Arch::Arm64, places }
    }

    /// Whether the file has the same at these places.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_in(&self, file: &Executable) -> io::Result<bool> {
        for place in &self.places {
            let mut bytes = vec![0; place.bytes.len()];
            match file.read_exact_at(&mut bytes, place.file_offset) {
                Ok(()) if bytes == place.bytes => {}
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether probes may be put in place: the process has at each place what the file has, or another tool's uprobe.
    /// `traced`: a debugger is attached to it, whose breakpoints the kernel would take for its own.
    pub fn check_before(&self, memory: &impl Code, bias: u64, traced: bool) -> Result<(), Mismatch> {
        self.each(memory, bias, |place, address, found| match found {
            Found::Original => Ok(()),
            Found::Breakpoint if !traced => Ok(()),
            Found::Breakpoint => Err(Mismatch::Debugger { function: place.function.clone(), address }),
            Found::Other(bytes) => Err(place.other(address, &bytes)),
        })
    }

    /// Whether probes are in place where `wanted` says so (by file offset), and nothing else was changed.
    pub fn check_after(
        &self,
        memory: &impl Code,
        bias: u64,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<(), Mismatch> {
        self.each(memory, bias, |place, address, found| match found {
            Found::Original if wanted(place.file_offset) => {
                Err(Mismatch::NoBreakpoint { function: place.function.clone(), address })
            }
            Found::Original | Found::Breakpoint => Ok(()),
            Found::Other(bytes) => Err(place.other(address, &bytes)),
        })
    }

    fn each(
        &self,
        memory: &impl Code,
        bias: u64,
        mut check: impl FnMut(&Place, u64, Found) -> Result<(), Mismatch>,
    ) -> Result<(), Mismatch> {
        for place in &self.places {
            let address = place.address.wrapping_add(bias);
            let mut bytes = vec![0; place.bytes.len()];
            if let Err(error) = read_all(memory, &mut bytes, address) {
                return Err(match error {
                    None => Mismatch::Executed,
                    Some(error) => Mismatch::Unreadable {
                        function: place.function.clone(),
                        address,
                        error: error.to_string(),
                    },
                });
            }
            check(place, address, self.found(place, bytes))?;
        }
        Ok(())
    }

    fn found(&self, place: &Place, bytes: Vec<u8>) -> Found {
        if bytes == place.bytes {
            return Found::Original;
        }
        let breakpoint = if self.arm64 {
            bytes.starts_with(&BRK) && bytes.get(4..) == place.bytes.get(4..)
        } else if place.bytes.starts_with(&NOP5) && bytes.first() == Some(&CALL) {
            bytes.get(5..) == place.bytes.get(5..)
        } else {
            bytes.first() == Some(&INT3) && bytes.get(1..) == place.bytes.get(1..)
        };
        if breakpoint { Found::Breakpoint } else { Found::Other(bytes) }
    }
}

impl Place {
    fn other(&self, address: u64, bytes: &[u8]) -> Mismatch {
        Mismatch::Other {
            function: self.function.clone(),
            address,
            found: hex::encode(bytes),
            expected: hex::encode(&self.bytes),
        }
    }
}

/// What code is read from.
pub(super) trait Code {
    /// Fills the buffer as far as there is something at the address; 0 bytes of a program that has gone.
    fn read(&self, buffer: &mut [u8], address: u64) -> io::Result<usize>;
}

impl Code for ImageMemory {
    fn read(&self, buffer: &mut [u8], address: u64) -> io::Result<usize> {
        self.read_at(buffer, address)
    }
}

/// Fills the buffer; the error is `None` when the program has gone, of which the kernel reads nothing.
fn read_all(memory: &impl Code, buffer: &mut [u8], address: u64) -> Result<(), Option<io::Error>> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        // A piece may end with its mapping, and the rest is an error then.
        match memory.read(rest, address.wrapping_add(read as u64)) {
            Ok(0) => return Err(None),
            Ok(n) => read += n,
            Err(error) => return Err(Some(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _};

    use super::*;
    use gotrace_go::{Event, Operand};

    impl Code for File {
        fn read(&self, buffer: &mut [u8], address: u64) -> io::Result<usize> {
            self.read_at(buffer, address)
        }
    }

    fn probe(address: u64, file_offset: u64) -> Probe {
        Probe {
            event: Event::Park,
            function: "runtime.park_m".into(),
            address,
            file_offset,
            instruction: String::new(),
            emulated: true,
            operand: Operand::Argument(0),
        }
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file
    }

    /// A file of 64 bytes whose places are at 8 and 12, mapped at its own offsets.
    fn text(arch: Arch) -> (Text, Vec<u8>) {
        let bytes: Vec<u8> = (0..64).collect();
        (Text::read(&bytes, arch, &[probe(12, 12), probe(8, 8), probe(8, 8)]), bytes)
    }

    #[test]
    fn breakpoints_are_told_from_other_changes() {
        for (arch, breakpoint) in [(Arch::Amd64, &[INT3][..]), (Arch::Arm64, &BRK[..])] {
            let (text, original) = text(arch);
            assert_eq!(text.check_before(&file(&original), 0, true), Ok(()));
            assert!(matches!(
                text.check_after(&file(&original), 0, |_| true),
                Err(Mismatch::NoBreakpoint { address: 8, .. })
            ));
            let mut probed = original.clone();
            probed[8..8 + breakpoint.len()].copy_from_slice(breakpoint);
            assert_eq!(text.check_after(&file(&probed), 0, |offset| offset == 8), Ok(()));
            assert!(matches!(
                text.check_after(&file(&probed), 0, |_| true),
                Err(Mismatch::NoBreakpoint { address: 12, .. })
            ));
            assert_eq!(text.check_before(&file(&probed), 0, false), Ok(()));
            assert!(matches!(
                text.check_before(&file(&probed), 0, true),
                Err(Mismatch::Debugger { address: 8, .. })
            ));
            let mut other = probed.clone();
            other[13] ^= 1;
            assert!(matches!(text.check_after(&file(&other), 0, |_| false), Err(Mismatch::Other { .. })));
            assert!(text.is_in(&Executable::of(file(&original))).expect("readable"));
            assert!(!text.is_in(&Executable::of(file(&other))).expect("readable"));
            assert!(!text.is_in(&Executable::of(file(&original[..20]))).expect("readable"));
        }
    }

    #[test]
    fn a_no_operation_may_have_become_a_call() {
        let mut bytes = vec![0x90; 32];
        bytes[4..9].copy_from_slice(&NOP5);
        let text = Text::read(&bytes, Arch::Amd64, &[probe(4, 4)]);
        bytes[4..9].copy_from_slice(&[CALL, 1, 2, 3, 4]);
        assert_eq!(text.check_after(&file(&bytes), 0, |_| true), Ok(()));
    }

    #[test]
    fn a_program_that_is_gone_is_not_a_mismatch() {
        let (text, _) = text(Arch::Amd64);
        assert_eq!(text.check_before(&file(&[]), 0, false), Err(Mismatch::Executed));
    }
}
