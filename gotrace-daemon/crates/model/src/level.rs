//! How much is traced of a process.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Detail of the events engine, each level with what the ones before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Level {
    /// Births, deaths, lifetimes, families, creation sites.
    Lifecycle = gotrace_common::LEVEL_LIFECYCLE,
    /// And every wait: reason, site, duration.
    Waits = gotrace_common::LEVEL_WAITS,
    /// And who woke whom, scheduling delay, time in system calls.
    Full = gotrace_common::LEVEL_FULL,
}

impl Level {
    /// All levels, least first.
    pub const ALL: [Self; 3] = [Self::Lifecycle, Self::Waits, Self::Full];

    /// The name that the command line and the outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lifecycle => "lifecycle",
            Self::Waits => "waits",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|l| l.name() == s)
            .ok_or_else(|| format!("unknown level `{s}`: expected lifecycle, waits or full"))
    }
}
