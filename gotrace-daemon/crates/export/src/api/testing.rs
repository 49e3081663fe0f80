//! Processes for tests of what serves them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    time::Duration,
};

use super::{Answer, CaptureError, Held, Processes, Proof, Room, Traced, Wanted};
use crate::{
    contention::{Waits, testing::waits},
    dump::{Captured, testing::demo},
};
use gotrace_inspect::{examine::WaitGraph, leak::Graph, snapshot::ObjectKind};
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

    fn graph(&self, _: u32) -> Result<(Captured, WaitGraph, Room), CaptureError> {
        Err(CaptureError::NotTraced)
    }

    fn hold(&self, _: u32, _: Wanted) -> Result<Held, CaptureError> {
        Err(CaptureError::NotTraced)
    }

    fn waits(&self, _: u32, answer: Answer<Waits>) {
        answer(Err(CaptureError::NotTraced));
    }

    fn proof(&self, _: u32, _: bool, answer: Answer<Proof>) {
        answer(Err(CaptureError::NotTraced));
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
    /// What is proven of each; where it is asked for, one question later.
    pub proof: Mutex<Result<Proof, CaptureError>>,
    /// Milliseconds that each has waited, which grow with each question; `None` where waits are not seen.
    pub waited: Option<AtomicU64>,
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
            proof: Mutex::new(Ok(Proof::default())),
            waited: None,
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
            start_ticks: 70,
            since_unix_nano: 17,
            engine: "snapshot",
            level: "sampled",
            resource: Arc::clone(&self.resource),
            recorded: false,
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

    fn graph(&self, pid: u32) -> Result<(Captured, WaitGraph, Room), CaptureError> {
        let (captured, room) = self.capture(pid)?;
        let graph = Graph::new(&captured.snapshot, None);
        let (graph, left_out) = graph.bounded(|o| o.kind == ObjectKind::Chan, (2, 1));
        Ok((captured, WaitGraph { graph, left_out, locks_not_searched: 1, ..WaitGraph::default() }, room))
    }

    fn hold(&self, pid: u32, _: Wanted) -> Result<Held, CaptureError> {
        self.find(pid).map(|_| Box::new(()) as Held).ok_or(CaptureError::NotTraced)
    }

    fn waits(&self, pid: u32, answer: Answer<Waits>) {
        let waited = self.waited.as_ref().map(|ms| ms.fetch_add(1000, Ordering::Relaxed));
        answer(waited.map(|ms| waits(pid, ms)).ok_or(CaptureError::Unavailable("level waits".into())));
    }

    fn proof(&self, _: u32, fresh: bool, answer: Answer<Proof>) {
        let mut proof = self.proof.lock().expect("no panic");
        let told = proof.clone();
        if let (true, Ok(proof)) = (fresh, &mut *proof) {
            (proof.age, proof.fresh) = (Some(Duration::from_secs(3)), true);
        }
        drop(proof);
        answer(told);
    }
}
