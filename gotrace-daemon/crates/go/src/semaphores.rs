//! Where the runtime keeps the goroutines that wait for semaphores, that is for mutexes and wait groups: by
//! the symbol table, else by the code that uses it.
//!
//! `runtime.semtable` (`runtime/sema.go`, Go 1.19 to 1.27) is a hash table by the semaphore's address. The
//! first variable whose address `runtime.semrelease1` takes is the table, and `runtime.semacquire1` takes it
//! too. Both are in every program, and are too large to be inlined.

use super::{
    Arch, Binary, Source, allgs::function, elf::Elf, moduledata::Found, scan::Scan, symtab::Symbols,
};

/// Name of the variable.
pub(super) const VARIABLE: &str = "runtime.semtable";
/// `semTabSize`.
const ROOTS: u32 = 251;

/// The runtime's table of semaphores that goroutines wait for.
///
/// Each root is a `runtime.semaRoot`: a lock, one word; a pointer to a `runtime.sudog`, the root of a tree; the
/// number of waiters. Of a `sudog` in the tree, `prev` and `next` are the branches with smaller and larger
/// addresses of semaphores, `elem` is the semaphore's address, and `waitlink` leads to others that wait for the
/// same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SemaphoreTable {
    /// Link-time address of the first root.
    pub address: u64,
    /// Number of roots.
    pub roots: u32,
    /// Bytes from one root to the next: a cache line of the architecture, as the version of Go has it.
    pub stride: u32,
}

impl SemaphoreTable {
    /// Where in a root the pointer to the tree is.
    pub const TREE: u32 = 8;

    /// Which root has the semaphore at an address.
    #[must_use]
    pub const fn root_of(&self, semaphore: u64) -> u32 {
        ((semaphore >> 3) % self.roots as u64) as u32
    }
}

impl Binary {
    /// Where goroutines that wait for semaphores are kept; `None` when it was not found.
    #[must_use]
    pub fn semaphores(&self) -> Option<SemaphoreTable> {
        self.semaphores
    }
}

/// The table, and where its address was learned.
pub(super) fn find(
    elf: &Elf<'_>,
    found: &Found<'_>,
    scan: &Scan,
    symbols: &Symbols,
    minor: u32,
) -> Option<(SemaphoreTable, Source)> {
    // `internal/cpu.CacheLinePadSize`.
    let stride = match elf.arch {
        Arch::Arm64 if minor >= 20 => 128,
        Arch::Arm64 | Arch::Amd64 => 64,
    };
    let table = |address| SemaphoreTable { address, roots: ROOTS, stride };
    if let Some(&address) = symbols.variables.get(VARIABLE) {
        return Some((table(address), Source::Symtab));
    }
    let acquire = function(elf, found, scan, "runtime.semacquire1")?.addresses_taken();
    let release = function(elf, found, scan, "runtime.semrelease1")?.addresses_taken();
    let last = u64::from((ROOTS - 1) * stride + SemaphoreTable::TREE);
    let whole = |&a: &u64| {
        a.is_multiple_of(8) && elf.is_data(a) && a.checked_add(last).is_some_and(|end| elf.is_data(end))
    };
    let address = release.into_iter().find(whole).filter(|a| acquire.contains(a))?;
    Some((table(address), Source::Code))
}
