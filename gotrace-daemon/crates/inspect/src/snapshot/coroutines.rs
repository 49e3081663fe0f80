//! What goroutines wait on that wait for a coroutine switch (`iter.Pull`): the `runtime.coro` that names them.
//!
//! Whoever switches to a coroutine has its `coro`; while a goroutine waits in it, its first word is that goroutine's
//! `g` (`runtime/coro.go`, Go 1.23 to 1.27), and its second the function that the coroutine began with. The goroutine
//! itself has the `coro` on its stack, or in its `g` where it has not begun. Input: memory of the running process,
//! untrusted; what does not look like a `coro` of this goroutine is none.

use super::{Engine, Standing, layout::word, pieces::Pieces};
use gotrace_process::{ProcessError, ReadMemory};

/// Longer stacks are not looked through: then it is not known.
const MAX_STACK: u64 = 1 << 20;
/// `coro.gp`, `coro.f`.
const HEAD: usize = 16;

impl Engine {
    /// Addresses of the `coro`s in which a goroutine waits to be switched to; none where that is not known.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn coroutines(&self, memory: &dyn ReadMemory, standing: &Standing) -> Result<Vec<u64>, ProcessError> {
        let (Some(sp), (lo, hi)) = (standing.sp, standing.stack) else { return Ok(Vec::new()) };
        let len = hi.saturating_sub(sp);
        if len > MAX_STACK {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        if !memory.read_at(sp, &mut bytes)? {
            return Ok(Vec::new());
        }
        let mut words: Vec<u64> = bytes.chunks_exact(8).map(|b| word(b, 0)).collect();
        if let Some(offset) = self.binary.offsets().get("g.coroarg") {
            let mut argument = [0; 8];
            if memory.read_at(standing.g.wrapping_add(u64::from(offset)), &mut argument)? {
                words.push(u64::from_le_bytes(argument));
            }
        }
        let may_be = |&w: &u64| w > 0xffff && w < 1 << 52 && w.is_multiple_of(8) && !(lo..hi).contains(&w);
        words.retain(may_be);
        words.sort_unstable();
        words.dedup();
        let items: Vec<(u64, u32)> = words.iter().map(|&w| (w, HEAD as u32)).collect();
        let (mut first, mut pieces, mut found) = (0, Pieces::default(), Vec::new());
        while first < items.len() {
            let done = pieces.read(memory, &items[first..], 0)?;
            for i in 0..done {
                let Some(head) = pieces.item(i, HEAD).filter(|b| word(b, 0) == standing.g) else { continue };
                let mut code = [0; 8];
                if memory.read_at(word(head, 8), &mut code)? && self.is_entry(u64::from_le_bytes(code)) {
                    found.push(items[first + i].0);
                }
            }
            first += done;
        }
        Ok(found)
    }

    fn is_entry(&self, pc: u64) -> bool {
        let bare = pc.wrapping_sub(self.bias);
        self.binary.function_at(bare).is_some_and(|f| f.entry == bare)
    }
}
