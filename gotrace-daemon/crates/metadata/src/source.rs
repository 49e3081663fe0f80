//! Who is asked, and again and again: starts the sources' tasks and paces them.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{
    CloudConfig, EnrichConfig, Switch,
    attributes::Attributes,
    cache::Cache,
    cloud, downward, eci, ecs,
    http::{AskError, Http},
    kubernetes,
};

/// The first pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failures.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often what hardly changes is asked again once it is known.
const REFRESH: Duration = Duration::from_secs(3_600);

/// A source and how it is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// `kubernetes`, `ecs`, `eci`, `cloud`, `downward`.
    pub name: &'static str,
    /// How.
    pub state: State,
}

/// How a source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Asked, not answered yet.
    Waiting,
    /// Answered.
    Known,
    /// Did not answer, or wrongly: why. Is asked again.
    Failing(String),
    /// Is not asked: why.
    Absent(String),
}

/// Growing pauses between attempts, each a fifth shorter or longer by chance, so that a cluster's agents
/// do not ask all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub fn new() -> Self {
        Self { next: FIRST_PAUSE }
    }

    /// The pause to make now.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        jitter(pause)
    }
}

/// A duration, a fifth shorter or longer.
pub(super) fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Starts a task for each source that is to be asked.
pub(super) fn start(config: &EnrichConfig, cache: &Arc<Cache>, tasks: &mut JoinSet<()>) {
    downward::start(config, cache);
    kubernetes::start(config, cache, tasks);
    let http = match Http::new() {
        Ok(http) => http,
        Err(e) => {
            cache.set_state("cloud", State::Absent(format!("cannot create an HTTP client: {e}")));
            return;
        }
    };
    ecs::start(config, &http, cache, tasks);
    start_eci(config, &http, cache, tasks);
    start_cloud(config, &http, cache, tasks);
}

fn start_eci(config: &EnrichConfig, http: &Http, cache: &Arc<Cache>, tasks: &mut JoinSet<()>) {
    if !eci::is_wanted(config.eci) {
        cache.set_state("eci", State::Absent("no sign of an elastic container instance".into()));
        return;
    }
    let (http, base) = (http.clone(), config.addresses.alibaba.clone());
    tasks.spawn(node_source("eci", Arc::clone(cache), move || {
        let (http, base) = (http.clone(), base.clone());
        async move { eci::ask(&http, &base).await }
    }));
}

fn start_cloud(config: &EnrichConfig, http: &Http, cache: &Arc<Cache>, tasks: &mut JoinSet<()>) {
    let provider = match &config.cloud {
        CloudConfig::Provider(provider) => Some(*provider),
        // An elastic container instance has the metadata server of the machines, and says who it is.
        CloudConfig::Auto if config.eci != Switch::Off && eci::is_wanted(config.eci) => None,
        CloudConfig::Auto => cloud::of_this_machine(),
        CloudConfig::Off => None,
    };
    let Some(provider) = provider else {
        cache.set_state("cloud", State::Absent("the firmware names no known cloud".into()));
        return;
    };
    let (http, addresses) = (http.clone(), config.addresses.clone());
    tasks.spawn(node_source("cloud", Arc::clone(cache), move || {
        let (http, addresses) = (http.clone(), addresses.clone());
        async move { cloud::ask(provider, &http, &addresses).await }
    }));
}

/// Asks for what holds for the whole machine until it is known, and then every hour.
async fn node_source<F>(name: &'static str, cache: Arc<Cache>, ask: impl Fn() -> F + Send)
where
    F: Future<Output = Result<Attributes, AskError>> + Send,
{
    cache.set_state(name, State::Waiting);
    let mut backoff = Backoff::new();
    loop {
        match ask().await {
            Ok(attributes) => {
                cache.set_node(name, attributes);
                cache.set_state(name, State::Known);
                backoff = Backoff::new();
                tokio::time::sleep(jitter(REFRESH)).await;
            }
            Err(error) => {
                cache.set_state(name, State::Failing(error.to_string()));
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let pauses: Vec<f64> = (0..12).map(|_| backoff.pause().as_secs_f64()).collect();
        assert!((0.8..=1.2).contains(&pauses[0]), "{pauses:?}");
        assert!((1.6..=2.4).contains(&pauses[1]), "{pauses:?}");
        assert!(pauses.iter().all(|p| *p <= LONGEST_PAUSE.as_secs_f64() * 1.2), "{pauses:?}");
        assert!(pauses[11] >= LONGEST_PAUSE.as_secs_f64() * 0.8, "{pauses:?}");
    }
}
