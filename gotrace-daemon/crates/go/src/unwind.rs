//! How to get from a program counter to its caller: what Go's own tracebacks use, exact for every
//! instruction, and still there in a stripped binary (`runtime/traceback.go`, `unwinder`).

use super::{Binary, names};

/// `internal/abi.FuncFlagTopFrame`: the outermost function of a stack.
const TOP_FRAME: u8 = 1;
/// `internal/abi.FuncFlagSPWrite`: writes the stack pointer in a way that its table does not tell.
const SP_WRITE: u8 = 2;

/// What a program counter says about its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwind {
    /// The function's first address, link time.
    pub entry: u64,
    /// Bytes from the stack pointer to the return address (amd64), or to the caller's stack pointer
    /// (arm64); `None` where the function does not say.
    pub stack_delta: Option<u32>,
    /// Nobody called the function: the stack ends here.
    pub outermost: bool,
    /// The function moves the stack pointer without saying so: the stack cannot be followed through it,
    /// unless it is stopped at a system call.
    pub writes_stack_pointer: bool,
    /// The function was called not by an instruction but by a signal: its caller stands exactly at the
    /// address that it returns to, and on arm64 has its own return address below.
    pub injected: bool,
    /// Of those, the one whose caller is looked up exactly there (`runtime.sigpanic`).
    pub exact_caller: bool,
}

/// Where it stands how a traceback prints a frame's arguments: link-time addresses in read-only data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentTables {
    /// It prints none.
    None,
    /// Not in Go code, or the tables were not found.
    Unknown,
    /// There.
    At {
        /// The table of the function's arguments (`internal/abi`, `FUNCDATA_ArgInfo`).
        table: u64,
        /// Which of them are live (`FUNCDATA_ArgLiveInfo`), and how far behind its beginning the bits for the
        /// program counter are; `None` when all are.
        liveness: Option<(u64, u32)>,
    },
}

/// What a function is to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A goroutine of the program's.
    User,
    /// One of the runtime's own.
    System,
    /// Runs finalizers or cleanups: the program's while it does, the runtime's while it waits.
    Runner,
}

impl Binary {
    /// How to unwind from a link-time address; `None` outside of Go code.
    #[must_use]
    pub fn unwind(&self, pc: u64) -> Option<Unwind> {
        let view = self.view();
        let relative = self.relative(pc)?;
        let f = view.func(view.index_at(relative)?)?;
        let name = view.name(&f);
        // It is written so that both stacks can be followed through it.
        let both_stacks = *name == *b"runtime.cgocallback";
        Some(Unwind {
            entry: self.text.wrapping_add(u64::from(f.entry)),
            stack_delta: view.stack_delta(&f, relative),
            outermost: f.flags & TOP_FRAME != 0,
            writes_stack_pointer: f.flags & SP_WRITE != 0 && !both_stacks,
            injected: matches!(
                &*name,
                b"runtime.sigpanic" | b"runtime.asyncPreempt" | b"runtime.debugCallV2"
            ),
            exact_caller: *name == *b"runtime.sigpanic",
        })
    }

    /// Where it stands how the arguments of the frame of a program counter (link-time address) are printed. A
    /// return address is looked up at the call before it.
    #[must_use]
    pub fn argument_tables(&self, pc: u64, is_return_address: bool) -> ArgumentTables {
        let find = || {
            let view = self.view();
            let mut pc = self.relative(pc)?;
            let mut f = view.func(view.index_at(pc)?)?;
            if is_return_address && pc != f.entry {
                pc -= 1;
                f = view.func(view.index_at(pc)?)?;
            }
            // Up to Go 1.20 what is live is looked up where the outermost inlined call comes from.
            let at = if self.version.minor <= 20 { view.outer_pc(&f, pc) } else { pc };
            Some(view.arguments(&f, at))
        };
        let Some(found) = find() else { return ArgumentTables::Unknown };
        let Some((table, liveness)) = found else { return ArgumentTables::None };
        let Some(gofunc) = self.gofunc else { return ArgumentTables::Unknown };
        let address = |offset: u32| gofunc.wrapping_add(u64::from(offset));
        ArgumentTables::At {
            table: address(table),
            liveness: liveness.map(|(liveness, bits)| (address(liveness), bits)),
        }
    }

    /// What goroutines with this entry (link-time address) are (`runtime/traceback.go`,
    /// `isSystemGoroutine`); `None` where no function begins.
    #[must_use]
    pub fn entry_kind(&self, entry: u64) -> Option<EntryKind> {
        let view = self.view();
        let relative = self.relative(entry)?;
        let f = view.func(view.index_at(relative)?).filter(|f| f.entry == relative)?;
        Some(names::entry_kind(&view.name(&f)))
    }

    /// Where the runtime's list of all `g`s is; `None` when it was not found.
    #[must_use]
    pub fn allgs(&self) -> Option<Allgs> {
        self.allgs
    }
}

/// Addresses (link time) of the runtime's list of all `g`s: of its length (`runtime.allglen`, a word) and
/// of the pointer to its array of pointers (`runtime.allgptr`). The length must be read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allgs {
    /// Address of the length.
    pub length: u64,
    /// Address of the pointer.
    pub pointer: u64,
}
