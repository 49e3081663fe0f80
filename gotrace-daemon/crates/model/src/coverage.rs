//! The account of the programs that a node executes: every execution that gotrace is told of, or finds when it looks,
//! ends in exactly one class. Pure counts; who judges them is discovery (what it is) and the pipeline (what came of it).
//!
//! What has been seen and is in no class yet is being looked at ([`Coverage::pending`]).

/// What became of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// Traced with events.
    Events,
    /// Traced by snapshots.
    Snapshot,
    /// A Go program, or one that may be, that could not be traced: why.
    Refused(Refused),
    /// A Go program that ended, or executed another one, before it could be traced.
    Gone,
    /// The same before it could be looked at: whether it was a Go program is not known.
    GoneUnknown,
    /// No Go program.
    NotGo,
    /// The rules leave it out.
    LeftOut,
    /// gotrace may not look at it: whether it is a Go program is not known.
    Unreadable,
}

impl Covered {
    /// How many classes there are.
    const COUNT: usize = 8;
    /// Name of each, as outputs show it.
    pub const NAMES: [&'static str; Self::COUNT] =
        ["events", "snapshot", "refused", "gone", "gone_unknown", "not_go", "left_out", "unreadable"];

    const fn index(self) -> usize {
        match self {
            Self::Events => 0,
            Self::Snapshot => 1,
            Self::Refused(_) => 2,
            Self::Gone => 3,
            Self::GoneUnknown => 4,
            Self::NotGo => 5,
            Self::LeftOut => 6,
            Self::Unreadable => 7,
        }
    }
}

/// Why a program could not be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A version of Go, a machine or a kind of build that gotrace does not trace.
    NotSupported,
    /// Its file contradicts itself, or is cut short.
    Malformed,
    /// Its file is larger than gotrace looks at.
    TooLarge,
    /// Its memory is not laid out as its version says.
    Layout,
    /// Its memory, or what the kernel tells of it, cannot be read.
    Unreadable,
    /// What is to be known of its program does not fit into memory.
    Memory,
    /// Its first thread has ended by itself while others run.
    FirstThreadEnded,
    /// The kernel refuses its probes, and snapshots are not wanted.
    Probes,
    /// The system refused something: descriptors, memory.
    System,
    /// gotrace itself failed while it looked at it.
    Failed,
}

impl Refused {
    /// How many reasons there are.
    const COUNT: usize = 10;
    /// Name of each, as outputs show it.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "not_supported",
        "malformed",
        "too_large",
        "layout",
        "unreadable",
        "memory",
        "first_thread_ended",
        "probes",
        "system",
        "failed",
    ];
}

/// The account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Executions that gotrace was told of, or found when it looked. One that the rules left out, and take by now, is
    /// seen once more; so is one that was refused, and is traced after all.
    pub seen: u64,
    /// Executions that the kernel could not tell of. Those that still ran when gotrace looked are among the seen; what
    /// the process connector lost at once is counted as one.
    pub lost: u64,
    covered: [u64; Covered::COUNT],
    refused: [u64; Refused::COUNT],
}

impl Coverage {
    /// Counts what became of an execution that was seen.
    pub fn cover(&mut self, covered: Covered) {
        if let Some(count) = self.covered.get_mut(covered.index()) {
            *count += 1;
        }
        if let Covered::Refused(why) = covered
            && let Some(count) = self.refused.get_mut(why as usize)
        {
            *count += 1;
        }
    }

    /// How many there are of each class, by name.
    pub fn covered(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Covered::NAMES.into_iter().zip(self.covered)
    }

    /// Those that could not be traced, by why.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refused::NAMES.into_iter().zip(self.refused)
    }

    /// How many could not be traced.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// How many are being looked at, or too young for the rules.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.seen.saturating_sub(self.covered.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_execution_is_in_one_class() {
        let mut coverage = Coverage { seen: 5, ..Coverage::default() };
        for covered in [
            Covered::Events,
            Covered::Refused(Refused::Failed),
            Covered::Refused(Refused::NotSupported),
            Covered::Unreadable,
        ] {
            coverage.cover(covered);
        }
        assert_eq!((coverage.pending(), coverage.refused_total()), (1, 2));
        let named: Vec<_> = coverage.covered().chain(coverage.refused()).filter(|(_, n)| *n > 0).collect();
        let expected =
            [("events", 1), ("refused", 2), ("unreadable", 1), ("not_supported", 1), ("failed", 1)];
        assert_eq!(named, expected);
    }
}
