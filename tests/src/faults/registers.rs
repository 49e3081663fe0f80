//! The registers of a stopped thread: what call it is about to make, and what that call answers.

use std::io;

use framehop::UnwindRegsNative;

/// Registers, as `PTRACE_GETREGSET` has them.
#[derive(Clone, Copy)]
pub struct Registers(libc::user_regs_struct);

const STATUS: libc::c_int = 1;

impl Registers {
    /// Those of a thread that is stopped.
    ///
    /// # Errors
    /// Where it is not, or is gone.
    pub fn of(thread: i32) -> io::Result<Self> {
        // SAFETY: all its fields are numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        transfer(libc::PTRACE_GETREGSET, thread, STATUS, &mut registers)?;
        Ok(Self(registers))
    }
}

/// `PTRACE_GETREGSET` or `PTRACE_SETREGSET`.
fn transfer<T>(request: libc::c_uint, thread: i32, set: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut vector = libc::iovec { iov_base: (&raw mut *value).cast(), iov_len: size_of::<T>() };
    // SAFETY: the vector describes one value, which outlives the call; the kernel writes no more than that.
    let done = unsafe { libc::ptrace(request, thread, set as usize, &raw mut vector) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(target_arch = "x86_64")]
impl Registers {
    /// The call's number.
    #[must_use]
    pub fn call(&self) -> u64 {
        self.0.orig_rax
    }

    /// Where it is called, and with what to begin unwinding there.
    #[must_use]
    pub fn place(&self) -> (u64, u64, UnwindRegsNative) {
        (self.0.rip, self.0.rsp, UnwindRegsNative::new(self.0.rip, self.0.rsp, self.0.rbp))
    }

    /// Has the thread, stopped before a call, not make it and get this error; or, stopped after it, get the error.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn fail(mut self, thread: i32, error: i32) -> io::Result<()> {
        self.0.orig_rax = u64::MAX;
        self.0.rax = i64::from(-error).cast_unsigned();
        transfer(libc::PTRACE_SETREGSET, thread, STATUS, &mut self.0)
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers {
    /// The call's number.
    #[must_use]
    pub fn call(&self) -> u64 {
        self.0.regs[8]
    }

    /// Where it is called, and with what to begin unwinding there.
    #[must_use]
    pub fn place(&self) -> (u64, u64, UnwindRegsNative) {
        let registers = &self.0.regs;
        (self.0.pc, self.0.sp, UnwindRegsNative::new(registers[30], self.0.sp, registers[29]))
    }

    /// Has the thread, stopped before a call, not make it and get this error; or, stopped after it, get the error.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn fail(mut self, thread: i32, error: i32) -> io::Result<()> {
        /// `NT_ARM_SYSTEM_CALL`.
        const CALL: libc::c_int = 0x404;
        self.0.regs[0] = i64::from(-error).cast_unsigned();
        transfer(libc::PTRACE_SETREGSET, thread, STATUS, &mut self.0)?;
        transfer(libc::PTRACE_SETREGSET, thread, CALL, &mut -1i32)
    }
}
