//! What results are: ids, places in the source, spans, intervals, findings, levels, and how text that others
//! chose is written. No I/O, no clock.

mod collector;
mod coverage;
mod findings;
pub mod ids;
pub mod level;
mod levels;
pub mod metrics;
mod place;
pub mod printable;
mod quantile;
pub mod requests;
mod results;
pub mod samples;
pub mod wire;

pub use collector::{Assists, Collector, Cycle, STOP_REASONS, TRIGGERS, WorldStop};
pub use coverage::{Coverage, Covered, Refused};
pub use findings::{Holder, Leak, LeakPart, Suspected};
pub use level::Level;
pub use levels::{LevelChange, Levels};
pub use place::{Peer, Place, Places};
pub use quantile::Quantile;
pub use results::*;
pub use wire::{Name, WireError};
