//! Where in a function a probe is cheap: the first instruction that the kernel emulates, as long as the
//! registers that the probe reads still hold what the caller put there.
//!
//! A probe on an emulated instruction costs about a microsecond; on any other the kernel single-steps a
//! copy, ten times as slow. Input is a function's instructions, untrusted; walks end with them. A walk
//! never goes past a branch or a call, so that the place found is passed on every way through the
//! function, and once only.

use super::{Arch, Operand, code_amd64, code_arm64};

/// A place for a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes from the function's entry.
    pub offset: usize,
    /// The instruction, readable.
    pub instruction: String,
    /// Whether the kernel emulates it.
    pub emulated: bool,
}

/// A field of a structure that an instruction loads or stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Bytes into the structure.
    pub offset: u32,
    /// Its length in bytes.
    pub length: u32,
    pub stored: bool,
}

/// A function's instructions.
#[derive(Clone, Copy)]
pub(super) struct Code<'a> {
    pub arch: Arch,
    pub bytes: &'a [u8],
    /// Address of the first.
    pub address: u64,
    /// Names the function that begins at an address.
    pub name_of: &'a dyn Fn(u64) -> Option<String>,
}

impl Code<'_> {
    /// The place for a probe that reads these operands: the first emulated instruction, else the entry.
    /// `None` when the function cannot be decoded at all.
    pub fn entry(&self, operands: &[Operand]) -> Option<Place> {
        match self.arch {
            Arch::Amd64 => code_amd64::entry(self, operands),
            Arch::Arm64 => code_arm64::entry(self, operands),
        }
    }

    /// The first instruction.
    pub fn first(&self) -> Option<Place> {
        match self.arch {
            Arch::Amd64 => code_amd64::first(self),
            Arch::Arm64 => code_arm64::first(self),
        }
    }

    /// Where the function returns; `None` where it cannot be decoded to its end.
    pub fn returns(&self) -> Option<Vec<Place>> {
        match self.arch {
            Arch::Amd64 => code_amd64::returns(self),
            Arch::Arm64 => Some(code_arm64::returns(self)),
        }
    }

    /// The direct calls to a function: places, and the offset behind each.
    pub fn calls(&self, target: u64) -> Vec<(Place, usize)> {
        match self.arch {
            Arch::Amd64 => code_amd64::calls(self, target),
            Arch::Arm64 => code_arm64::calls(self, target),
        }
    }

    /// The place for a probe that reads the result of the call that ends at an offset, and where the
    /// result is then.
    pub fn after_call(&self, behind: usize) -> Option<(Place, Operand)> {
        match self.arch {
            Arch::Amd64 => code_amd64::after_call(self, behind),
            Arch::Arm64 => code_arm64::after_call(self, behind),
        }
    }

    /// Addresses of data that instructions load from, or take, relative to themselves; in order, each once.
    pub fn data_references(&self) -> Vec<u64> {
        self.references(true)
    }

    /// The same of those alone whose address is taken: of structures and arrays rather than single values.
    pub fn addresses_taken(&self) -> Vec<u64> {
        self.references(false)
    }

    /// The offsets of the instructions that take addresses of data, and these.
    pub fn where_addresses_are_taken(&self) -> impl Iterator<Item = (usize, u64)> + use<> {
        self.data().into_iter().filter(|&(.., taken)| taken).map(|(offset, address, _)| (offset, address))
    }

    fn data(&self) -> Vec<(usize, u64, bool)> {
        match self.arch {
            Arch::Amd64 => code_amd64::data_references(self),
            Arch::Arm64 => code_arm64::data_references(self),
        }
    }

    fn references(&self, loads: bool) -> Vec<u64> {
        let mut distinct = Vec::new();
        for (_, address, _) in self.data().into_iter().filter(|&(.., taken)| taken || loads) {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        distinct
    }

    /// The place for a probe behind the first store to a field so many bytes into a structure, and where
    /// the structure's address is then. amd64 only; `None` where there is none such.
    pub fn after_store(&self, field: u32) -> Option<(Place, Operand)> {
        match self.arch {
            Arch::Amd64 => code_amd64::after_store(self, field),
            Arch::Arm64 => None,
        }
    }

    /// The fields of structures, not on the stack, that instructions load or store: in order.
    pub fn fields(&self) -> Vec<Field> {
        match self.arch {
            Arch::Amd64 => code_amd64::fields(self),
            Arch::Arm64 => code_arm64::fields(self),
        }
    }

    /// A branch's target, readable.
    pub fn target(&self, address: u64) -> String {
        (self.name_of)(address).unwrap_or_else(|| format!("{address:#x}"))
    }
}
