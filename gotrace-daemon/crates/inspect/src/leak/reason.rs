//! What a wait reason means for verdicts, by the names of `runtime/runtime2.go` (Go 1.18 to 1.27).

/// Kinds of wait reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Sends to a channel.
    Send,
    /// Receives from a channel.
    Receive,
    /// Waits for one of several channel operations.
    Select,
    /// Sends to, or receives from, a nil channel: for ever, by the language's specification.
    Nil,
    /// `select {}`: for ever, and meant so.
    NoCases,
    /// `sync.Mutex`, `sync.RWMutex`.
    Lock,
    /// A semaphore; up to Go 1.19 also locks and `sync.WaitGroup`.
    Semaphore,
    /// `sync.WaitGroup`.
    WaitGroup,
    /// `sync.Cond`.
    Cond,
    /// Sleeps: wakes by itself.
    Sleep,
    /// Waits for a descriptor: whoever is at its other end decides.
    Io,
    /// Waits to be switched to, as a coroutine of `iter.Pull`, or for one to switch back.
    Coroutine,
    /// The runtime's own business.
    Other,
}

impl Reason {
    /// By the runtime's name. In a `testing/synctest` bubble names have an ending, which says nothing here.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        let plain = name.strip_suffix(" (durable)").or_else(|| name.strip_suffix(" (synctest)"));
        match plain.unwrap_or(name) {
            "chan send" => Self::Send,
            "chan receive" => Self::Receive,
            "select" => Self::Select,
            "chan send (nil chan)" | "chan receive (nil chan)" => Self::Nil,
            "select (no cases)" => Self::NoCases,
            "sync.Mutex.Lock" | "sync.RWMutex.RLock" | "sync.RWMutex.Lock" => Self::Lock,
            "semacquire" => Self::Semaphore,
            "sync.WaitGroup.Wait" => Self::WaitGroup,
            "sync.Cond.Wait" => Self::Cond,
            "sleep" => Self::Sleep,
            "IO wait" => Self::Io,
            "coroutine" => Self::Coroutine,
            _ => Self::Other,
        }
    }

    /// Whether only another goroutine can end the wait.
    #[must_use]
    pub const fn is_for_others(self) -> bool {
        matches!(
            self,
            Self::Send
                | Self::Receive
                | Self::Select
                | Self::Nil
                | Self::Lock
                | Self::Semaphore
                | Self::WaitGroup
                | Self::Cond
        )
    }

    /// Whether a wait can be proven never to end: one that only another goroutine ends, or one that switches to it.
    #[must_use]
    pub const fn is_provable(self) -> bool {
        self.is_for_others() || matches!(self, Self::Coroutine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_wait_for_others_is_known() {
        assert_eq!(Reason::from_name("chan receive (durable)"), Reason::Receive);
        assert_eq!(Reason::from_name("select (synctest)"), Reason::Select);
        assert_eq!(Reason::from_name("GC worker (idle)"), Reason::Other);
    }
}
