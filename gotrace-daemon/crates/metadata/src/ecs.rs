//! Amazon ECS: which task and container a process belongs to.
//!
//! Two services, each told of by the Amazon ECS Developer Guide:
//! - **the task's own metadata**, version 4: `${ECS_CONTAINER_METADATA_URI_V4}/task` ("Amazon ECS task
//!   metadata endpoint version 4"; "… for tasks on Fargate"). It speaks of the task that gotrace itself runs
//!   in, so it serves the sidecar. Only gotrace's own variable is followed, never a traced process's.
//! - **the container agent's list** on an EC2 instance: `http://localhost:51678/v1/metadata` and `/v1/tasks`
//!   ("Amazon ECS container introspection"). It speaks of every task of the instance, so it serves the
//!   node agent. Asked when a process is found in a task's cgroup that is not known, at most every
//!   `LEAST_PAUSE`, and every `REFRESH`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::task::JoinSet;

use super::{
    EnrichConfig, Switch,
    attributes::{Attributes, set, set_some},
    cache::Cache,
    http::{AskError, Http},
    image,
    source::{Backoff, State, jitter},
};

/// Least time between two requests to the agent.
const LEAST_PAUSE: Duration = Duration::from_secs(5);
/// How often what is known is asked for again: containers of a task start one after the other.
const REFRESH: Duration = Duration::from_secs(60);

/// Starts asking.
pub(super) fn start(config: &EnrichConfig, http: &Http, cache: &Arc<Cache>, tasks: &mut JoinSet<()>) {
    if config.ecs == Switch::Off {
        cache.set_state("ecs", State::Absent("disabled".into()));
        return;
    }
    let own =
        config.addresses.ecs_task.clone().or_else(|| std::env::var("ECS_CONTAINER_METADATA_URI_V4").ok());
    let (http, cache) = (http.clone(), Arc::clone(cache));
    let agent = config.addresses.ecs_agent.clone();
    let at_once = config.ecs == Switch::On;
    tasks.spawn(async move {
        match own {
            Some(base) => own_task(&http, base.trim_end_matches('/'), &agent, &cache).await,
            None => {
                if !at_once {
                    cache.set_state("ecs", State::Absent("no process runs in an ECS task".into()));
                    cache.wanted_task.notified().await;
                }
                node(&http, &agent, &cache).await;
            }
        }
    });
}

/// The sidecar: asks for its own task. When that runs on an instance of one's own, where other tasks can be
/// in sight too, goes on to ask the agent.
async fn own_task(http: &Http, base: &str, agent: &str, cache: &Cache) {
    cache.set_state("ecs", State::Waiting);
    let mut backoff = Backoff::new();
    loop {
        match http.get_json::<Task>(&format!("{base}/task"), &[]).await {
            Ok(task) => {
                let alone = task.is_alone();
                cache.set_own_task(task.id(), alone, task.attributes());
                if alone {
                    cache.set_tasks(task.by_container());
                }
                cache.set_state("ecs", State::Known);
                if !alone {
                    cache.wanted_task.notified().await;
                    return node(http, agent, cache).await;
                }
                backoff = Backoff::new();
                tokio::time::sleep(jitter(REFRESH)).await;
            }
            Err(error) => {
                cache.set_state("ecs", State::Failing(error.to_string()));
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// The node agent: asks the container agent.
async fn node(http: &Http, agent: &str, cache: &Cache) {
    cache.set_state("ecs", State::Waiting);
    let mut backoff = Backoff::new();
    loop {
        match ask_agent(http, agent).await {
            Ok(tasks) => {
                cache.set_tasks(tasks);
                cache.set_state("ecs", State::Known);
                backoff = Backoff::new();
                tokio::time::sleep(LEAST_PAUSE).await;
                let _ = tokio::time::timeout(jitter(REFRESH), cache.wanted_task.notified()).await;
            }
            Err(error) => {
                cache.set_state("ecs", State::Failing(error.to_string()));
                tokio::time::sleep(backoff.pause().max(LEAST_PAUSE)).await;
            }
        }
    }
}

async fn ask_agent(http: &Http, agent: &str) -> Result<HashMap<Arc<str>, Attributes>, AskError> {
    let instance: AgentMetadata = http.get_json(&format!("{agent}/v1/metadata"), &[]).await?;
    let list: AgentTasks = http.get_json(&format!("{agent}/v1/tasks"), &[]).await?;
    let mut found = HashMap::new();
    for task in list.tasks {
        let task = Task {
            cluster: instance.cluster.clone(),
            task_arn: task.arn,
            family: task.family,
            revision: task.version,
            launch_type: Some("EC2".into()),
            availability_zone: None,
            containers: task.containers,
        };
        found.extend(task.by_container());
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentMetadata {
    cluster: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentTasks {
    #[serde(default)]
    tasks: Vec<AgentTask>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentTask {
    arn: String,
    family: String,
    version: String,
    #[serde(default)]
    containers: Vec<Container>,
}

/// The fields of a task that are used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    /// ARN, or the short name.
    cluster: String,
    #[serde(rename = "TaskARN")]
    task_arn: String,
    family: String,
    revision: String,
    launch_type: Option<String>,
    availability_zone: Option<String>,
    #[serde(default)]
    containers: Vec<Container>,
}

/// The fields of a container that are used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    docker_id: String,
    name: String,
    image: Option<String>,
    #[serde(rename = "ContainerARN")]
    container_arn: Option<String>,
}

impl Task {
    /// `arn:aws:ecs:region:account:task/cluster/id`.
    fn id(&self) -> &str {
        self.task_arn.rsplit('/').next().unwrap_or_default()
    }

    /// Whether the machine under it belongs to nobody else: everything in sight is of this task.
    fn is_alone(&self) -> bool {
        self.launch_type.as_deref().is_some_and(|t| t.eq_ignore_ascii_case("fargate"))
    }

    fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        let mut arn = self.task_arn.split(':');
        let (partition, region, account) = (arn.nth(1), arn.nth(1), arn.next());
        set(&mut attributes, "cloud.provider", "aws");
        set(&mut attributes, "cloud.platform", "aws_ecs");
        set_some(&mut attributes, "cloud.region", region);
        set_some(&mut attributes, "cloud.account.id", account);
        set_some(&mut attributes, "cloud.availability_zone", self.availability_zone.as_deref());
        set(&mut attributes, "aws.ecs.task.arn", &self.task_arn);
        set(&mut attributes, "aws.ecs.task.id", self.id());
        set(&mut attributes, "aws.ecs.task.family", &self.family);
        set(&mut attributes, "aws.ecs.task.revision", &self.revision);
        if let Some(launch_type) = &self.launch_type {
            set(&mut attributes, "aws.ecs.launchtype", &launch_type.to_ascii_lowercase());
        }
        if self.cluster.starts_with("arn:") {
            set(&mut attributes, "aws.ecs.cluster.arn", &self.cluster);
        } else if let (Some(partition), Some(region), Some(account)) = (partition, region, account) {
            let cluster = format!("arn:{partition}:ecs:{region}:{account}:cluster/{}", self.cluster);
            set(&mut attributes, "aws.ecs.cluster.arn", &cluster);
        }
        attributes
    }

    fn by_container(&self) -> HashMap<Arc<str>, Attributes> {
        let of_task = self.attributes();
        let mut found = HashMap::new();
        for container in self.containers.iter().filter(|c| !c.docker_id.is_empty()) {
            let mut attributes = of_task.clone();
            set(&mut attributes, "container.name", &container.name);
            set_some(&mut attributes, "aws.ecs.container.arn", container.container_arn.as_deref());
            image::describe(&mut attributes, container.image.as_deref().unwrap_or_default());
            found.insert(container.docker_id.as_str().into(), attributes);
        }
        found
    }
}
