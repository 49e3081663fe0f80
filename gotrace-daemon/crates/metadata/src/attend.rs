//! Tells what is known of the processes that are followed: once when one is taken in, and whenever more
//! becomes known.
//!
//! Takes pids from the line without making it wait: where a process runs is read from `/proc` in a task of
//! its own, and only of the process that is meant (its start tells it from a later one with its pid). What
//! is told is what [`Known::all`] has.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use super::{Attributes, Enricher, Placement};
use gotrace_process::Target;

/// Who came or went. As many as there are processes: the line's bound is this channel's.
enum Change {
    Began { pid: u32, start_ticks: u64 },
    Ended { pid: u32, start_ticks: u64 },
}

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct Attendant {
    changes: UnboundedSender<Change>,
    task: JoinHandle<()>,
}

impl Attendant {
    /// Calls `tell` with pid, start and attributes; it must not wait either.
    #[must_use]
    pub fn start(
        enricher: Enricher,
        runtime: &Handle,
        tell: impl Fn(u32, u64, Attributes) + Send + 'static,
    ) -> Self {
        let (changes, receiver) = unbounded_channel();
        let task = runtime.spawn(attend(enricher, receiver, tell));
        Self { changes, task }
    }

    /// A process is followed from now on.
    pub fn began(&self, pid: u32, start_ticks: u64) {
        // Refused only when the runtime has ended, and the line with it.
        let _ = self.changes.send(Change::Began { pid, start_ticks });
    }

    /// It is not any more.
    pub fn ended(&self, pid: u32, start_ticks: u64) {
        let _ = self.changes.send(Change::Ended { pid, start_ticks });
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn attend(
    enricher: Enricher,
    mut changes: UnboundedReceiver<Change>,
    tell: impl Fn(u32, u64, Attributes) + Send,
) {
    let mut news = enricher.changes();
    let mut followed: HashMap<(u32, u64), (Arc<Placement>, u64)> = HashMap::new();
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                None => return,
                Some(Change::Began { pid, start_ticks }) => {
                    let Some(placement) = placement(pid, start_ticks) else { continue };
                    let known = enricher.known(&placement);
                    followed.insert((pid, start_ticks), (Arc::new(placement), known.version));
                    tell(pid, start_ticks, known.all());
                }
                Some(Change::Ended { pid, start_ticks }) => drop(followed.remove(&(pid, start_ticks))),
            },
            changed = news.changed() => {
                if changed.is_err() {
                    return;
                }
                news.mark_unchanged();
                for ((pid, start_ticks), (placement, seen)) in &mut followed {
                    if let Some(later) = enricher.changed(placement, *seen) {
                        *seen = later.version;
                        tell(*pid, *start_ticks, later.all());
                    }
                }
            }
        }
    }
}

/// `None` when the process is gone, or another has its pid.
fn placement(pid: u32, start_ticks: u64) -> Option<Placement> {
    let target = Target::open(pid).ok().filter(|target| target.identity.start_ticks == start_ticks)?;
    Some(Placement::of(&target))
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;
    use crate::attributes::set;
    use gotrace_model::Value;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_becomes_known_is_told_of_who_is_followed() {
        let enricher = Enricher::idle();
        let cache = Arc::clone(&enricher.cache);
        let know = |value: &str| {
            let mut attributes = Attributes::new();
            set(&mut attributes, "cloud.region", value);
            cache.set_node("cloud", attributes);
        };
        let (sender, told) = mpsc::channel();
        let attendant = Attendant::start(enricher, &Handle::current(), move |pid, start, attributes| {
            let _ = sender.send((pid, start, attributes.get("cloud.region").cloned()));
        });
        let own = Target::open(std::process::id()).expect("this process lives").identity;
        let next = || told.recv_timeout(Duration::from_secs(120)).expect("told");
        attendant.began(own.pid, own.start_ticks);
        assert_eq!(next(), (own.pid, own.start_ticks, None));
        know("here");
        assert_eq!(next(), (own.pid, own.start_ticks, Some(Value::Text("here".into()))));
        // The same again is no news; another process with the pid is not the one that is meant.
        know("here");
        attendant.began(own.pid, own.start_ticks + 1);
        attendant.ended(own.pid, own.start_ticks);
        attendant.began(own.pid, own.start_ticks);
        assert_eq!(next(), (own.pid, own.start_ticks, Some(Value::Text("here".into()))));
        know("there");
        assert_eq!(next().2, Some(Value::Text("there".into())));
        attendant.ended(own.pid, own.start_ticks);
        // Changes are taken in their order: when another is told of, the end has been taken in.
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let other = Target::open(child.id()).expect("it lives").identity;
        attendant.began(other.pid, other.start_ticks);
        assert_eq!(next().0, other.pid);
        know("elsewhere");
        assert_eq!(next(), (other.pid, other.start_ticks, Some(Value::Text("elsewhere".into()))));
        assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
        child.kill().expect("it can be ended");
        child.wait().expect("it ends");
    }
}
