//! The Go programs that run here: what `gotrace ps` lists, and what a command is told by name or pod rather than by pid.
//!
//! Input: `/proc`, and pods as the Kubernetes API has them, where gotrace is told of one. Output: what processes are
//! called. Nothing of them stays open: who holds a program's file keeps its file system from being unmounted.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CliError, trace};
use gotrace_go::may_be_go;
use gotrace_metadata::{
    CloudConfig, EnrichConfig, Enricher, KubernetesConfig, Placement, Pod, SourceState, State, Switch,
};
use gotrace_process::{ProcessError, Target, all_processes, helper};

/// For pods an answer is waited for this long.
const ANSWER: Duration = Duration::from_secs(5);
/// And looked for this often.
const POLL: Duration = Duration::from_millis(20);

/// A process of the node.
#[derive(Debug)]
pub(super) struct Running {
    pub pid: u32,
    /// With the pid it tells the process from all others.
    pub start_ticks: u64,
    pub executable: PathBuf,
    /// The file name of that.
    pub name: String,
    pub is_go: bool,
    /// Where it runs; of Go programs only.
    pub placement: Placement,
}

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub processes: Vec<Running>,
    /// Processes that gotrace may not look at: whether they are Go programs is not known.
    pub unreadable: u64,
}

impl Listed {
    /// Looks at all processes but gotrace's own.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    pub fn now() -> Result<Self, CliError> {
        let pids =
            all_processes().map_err(|e| CliError::failure(format!("cannot list processes (/proc): {e}")))?;
        let mut listed = Self::default();
        for pid in pids.into_iter().filter(|&pid| pid != std::process::id() && !helper::is_helper(pid)) {
            match Target::open(pid) {
                Ok(target) => listed.processes.push(Running::of(&target)),
                Err(ProcessError::NotPermitted { .. } | ProcessError::Hidden { .. }) => {
                    listed.unreadable += 1;
                }
                // Kernel threads, and what has ended meanwhile.
                Err(_) => {}
            }
        }
        Ok(listed)
    }

    /// The Go programs.
    pub fn go(&self) -> impl Iterator<Item = &Running> {
        self.processes.iter().filter(|p| p.is_go)
    }
}

impl Running {
    pub fn of(target: &Target) -> Self {
        let is_go = is_go(target);
        Self {
            pid: target.pid(),
            start_ticks: target.identity.start_ticks,
            executable: target.executable.clone(),
            name: target.executable_name(),
            is_go,
            placement: if is_go { Placement::of(target) } else { Placement::default() },
        }
    }
}

/// Whether it may be a Go program: what is damaged may be one.
fn is_go(target: &Target) -> bool {
    let Ok(file) = target.readable_executable() else { return false };
    may_be_go(&|offset, length| {
        let mut piece = vec![0; length];
        file.read_exact_at(&mut piece, offset).ok().map(|()| piece)
    })
}

/// The pods of this node.
#[derive(Debug)]
pub(super) struct Pods {
    enricher: Enricher,
    /// Asks.
    _runtime: tokio::runtime::Runtime,
}

/// Where a process runs, as Kubernetes names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub namespace: String,
    pub pod: String,
    pub container: Option<String>,
}

impl Pods {
    /// Asks for them, as the service account of gotrace's own pod, or as variable `KUBECONFIG` says. The node is the one
    /// that variable `K8S_NODE_NAME` names.
    ///
    /// # Errors
    /// Why they are not known.
    pub fn ask() -> Result<Self, String> {
        let runtime = trace::runtime("gotrace-pods", 1).map_err(|e| e.to_string())?;
        let kubeconfig = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(Into::into);
        let config = EnrichConfig {
            kubernetes: KubernetesConfig { kubeconfig, ..KubernetesConfig::default() },
            ecs: Switch::Off,
            eci: Switch::Off,
            cloud: CloudConfig::Off,
            ..EnrichConfig::default()
        };
        let enricher = Enricher::start(&config, runtime.handle());
        let until = Instant::now() + ANSWER;
        loop {
            match kubernetes(&enricher) {
                Some(State::Known) => return Ok(Self { enricher, _runtime: runtime }),
                Some(State::Absent(why) | State::Failing(why)) => return Err(why),
                Some(State::Waiting) if Instant::now() >= until => {
                    return Err(format!("no answer from the Kubernetes API within {ANSWER:?}"));
                }
                None => return Err("disabled".into()),
                Some(State::Waiting) => std::thread::sleep(POLL),
            }
        }
    }

    /// Where a process runs; `None` where it is in no pod that is known.
    pub fn place(&self, placement: &Placement) -> Option<Place> {
        let pod: Arc<Pod> = self.enricher.pod(placement)?;
        Some(Place {
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
            container: pod.container(placement).map(|c| c.name.to_string()),
        })
    }
}

fn kubernetes(enricher: &Enricher) -> Option<State> {
    enricher
        .sources()
        .into_iter()
        .find_map(|SourceState { name, state }| (name == "kubernetes").then_some(state))
}
