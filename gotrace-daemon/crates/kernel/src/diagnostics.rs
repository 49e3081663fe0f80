//! What the kernel side says of its own work (`--kernel-log`), put into words.
//!
//! aya-log carries numbers; here they become messages of gotrace's own log, target `gotrace::probes`.

use aya_log::EbpfLogger;
use gotrace_common::{Hit, Lost};

use super::Error;

/// The target of these messages in gotrace's log.
pub const TARGET: &str = "gotrace::probes";

/// The reading end.
pub(super) struct Diagnostics(EbpfLogger<Words>);

impl Diagnostics {
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> Result<Self, Error> {
        EbpfLogger::init_with_logger(ebpf, Words)
            .map(Self)
            .map_err(|e| Error::Object(format!("ring for the kernel side's own messages: {e}")))
    }

    /// Logs what is there.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

struct Words;

impl log::Log for Words {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        say(record.level(), &record.args().to_string());
    }

    fn flush(&self) {}
}

/// `PID HIT LOST`, or `PID HIT` for a process that is not traced.
fn say(level: log::Level, message: &str) {
    let numbers: Vec<usize> = message.split(' ').filter_map(|n| n.parse().ok()).collect();
    let probe = |hit: usize| Hit::NAMES.get(hit).copied().unwrap_or("unknown");
    match *numbers.as_slice() {
        [pid, hit, lost] => {
            let lost = Lost::NAMES.get(lost).copied().unwrap_or("unknown");
            tracing::debug!(target: TARGET, pid, probe = probe(hit), lost, "a probe dropped an event");
        }
        [pid, hit] => {
            tracing::trace!(target: TARGET, pid, probe = probe(hit), "a probe fired in a process that is not traced");
        }
        _ => tracing::info!(target: TARGET, %level, message, "message from a probe"),
    }
}
