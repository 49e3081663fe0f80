//! `gotrace view FILE --http`: a recording on the page, as it was at its end, with what led there.
//!
//! Input: its intervals, all at once. Nothing that is read from a running process is there, and the page is told so.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    CliError,
    served::{self, Served},
    trace::Background,
};
use gotrace_agent::pipeline::Stop;
use gotrace_export::{
    api::{Access, Answer, CaptureError, Held, Processes, Proof, Room, Traced, Wanted},
    contention::Waits,
    dump::Captured,
    otlp::ExportConfig,
    prometheus::{Agent, Board, Health, Watched},
};
use gotrace_inspect::examine::WaitGraph;
use gotrace_model::{Interval, Resource};
use gotrace_process::Threads;

/// Between two looks whether the user has enough.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The processes of a recording, by pid.
#[derive(Default)]
struct Recorded(Mutex<BTreeMap<u32, Traced>>);

impl Recorded {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Traced>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, interval: &Interval) {
        let Interval { pid, engine, level, resource, start_unix_nano, .. } = interval;
        let mut all = self.lock();
        let same = all.get(pid).filter(|known| known.resource.process() == resource.process());
        let traced = Traced {
            pid: *pid,
            start_ticks: 0,
            since_unix_nano: same.map_or(*start_unix_nano, |known| known.since_unix_nano),
            engine,
            level,
            resource: Arc::clone(resource),
            recorded: true,
        };
        all.insert(*pid, traced);
    }
}

fn not_there<T>() -> Result<T, CaptureError> {
    Err(CaptureError::Unavailable(
        "not in a recording: this is read from a running process (gotrace attach --http, gotrace daemon)"
            .into(),
    ))
}

impl Processes for Recorded {
    fn traced(&self) -> Vec<Traced> {
        self.lock().values().cloned().collect()
    }

    fn find(&self, pid: u32) -> Option<Traced> {
        self.lock().get(&pid).cloned()
    }

    fn capture(&self, _: u32) -> Result<(Captured, Room), CaptureError> {
        not_there()
    }

    fn graph(&self, _: u32) -> Result<(Captured, WaitGraph, Room), CaptureError> {
        not_there()
    }

    fn hold(&self, _: u32, _: Wanted) -> Result<Held, CaptureError> {
        not_there()
    }

    fn waits(&self, _: u32, answer: Answer<Waits>) {
        answer(not_there());
    }

    fn proof(&self, _: u32, _: bool, answer: Answer<Proof>) {
        answer(not_there());
    }
}

impl Watched for Recorded {
    fn agent(&self) -> Agent {
        let (cpu_seconds, resident_bytes) = served::own_usage();
        Agent { cpu_seconds, resident_bytes, ..Agent::default() }
    }

    fn spans_dropped(&self, _: &Arc<Resource>) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn live(&self) -> Health {
        Health::Good
    }

    fn ready(&self) -> Health {
        Health::Good
    }
}

/// Serves these intervals at an address until the user has enough.
pub(super) fn serve(
    intervals: impl Iterator<Item = Arc<Interval>>,
    address: SocketAddr,
) -> Result<(), CliError> {
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let (recorded, board) = (Arc::new(Recorded::default()), Arc::new(Board::default()));
    for interval in intervals {
        recorded.add(&interval);
        board.show(&interval);
    }
    let processes: Arc<dyn Processes> = Arc::<Recorded>::clone(&recorded);
    let served = Served::new((processes, board), recorded, Threads::default(), Access::default());
    let server = served.for_onlookers(address, &background)?;
    while stop.why().is_none() {
        thread::sleep(LOOK_EVERY);
    }
    server.stop(background.runtime());
    Ok(())
}
