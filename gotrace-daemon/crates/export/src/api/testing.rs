//! Processes for tests of what serves them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::Receiver,
    },
};

use super::{CaptureError, Processes, Room, Traced};
use crate::dump::{Captured, testing::demo};
use gotrace_model::{Resource, Value};

/// There are none.
pub(crate) struct Nobody;

impl Processes for Nobody {
    fn traced(&self) -> Vec<Traced> {
        Vec::new()
    }

    fn find(&self, _: u32) -> Option<Traced> {
        None
    }

    fn capture(&self, _: u32) -> Result<(Captured, Room), CaptureError> {
        Err(CaptureError::NotTraced)
    }
}

/// Some, each of which holds what the demo does, or cannot be read.
pub(crate) struct Shops {
    /// By pid.
    pub processes: BTreeMap<u32, Result<(), CaptureError>>,
    /// How often one was read.
    pub captured: AtomicUsize,
    /// How many came to the gate.
    pub waiting: AtomicUsize,
    /// Where there is one, each capture waits for a word.
    pub gate: Option<Mutex<Receiver<()>>>,
    pub resource: Arc<Resource>,
    /// Goroutines of each that cannot be read.
    pub unreadable: u64,
}

impl Shops {
    pub fn new(processes: impl IntoIterator<Item = (u32, Result<(), CaptureError>)>) -> Self {
        let name = BTreeMap::from([("service.name".into(), Value::Text("shop".into()))]);
        Self {
            processes: processes.into_iter().collect(),
            captured: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            gate: None,
            resource: Arc::new(Resource::new(name)),
            unreadable: 0,
        }
    }
}

impl Processes for Shops {
    fn traced(&self) -> Vec<Traced> {
        self.processes.keys().filter_map(|pid| self.find(*pid)).collect()
    }

    fn find(&self, pid: u32) -> Option<Traced> {
        self.processes.contains_key(&pid).then(|| Traced {
            pid,
            since_unix_nano: 17,
            engine: "snapshot",
            level: "sampled",
            resource: Arc::clone(&self.resource),
        })
    }

    fn capture(&self, pid: u32) -> Result<(Captured, Room), CaptureError> {
        if let Some(gate) = &self.gate {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let gate = gate.lock().expect("no panic");
            gate.recv().expect("a word");
        }
        self.captured.fetch_add(1, Ordering::Relaxed);
        self.processes.get(&pid).cloned().unwrap_or(Err(CaptureError::NotTraced))?;
        let (mut snapshot, names) = demo();
        snapshot.counts.unreadable += self.unreadable;
        let (executable, build_id) = ("/usr/bin/demo".into(), "0123abcd".into());
        Ok((Captured { snapshot, names, executable, build_id, mapping: None }, Box::new(())))
    }
}
