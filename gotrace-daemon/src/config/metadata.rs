//! Whom the daemon asks about what surrounds a process, as the configuration file has it.

use std::{path::PathBuf, str::FromStr};

use serde::Deserialize;

use super::{RulesConfig, values::text};
use gotrace_metadata::{CloudConfig, EnrichConfig, KubernetesConfig, Provider, Switch};

/// Section `metadata`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Metadata {
    /// Watch this node's pods.
    pub kubernetes: Asked,
    /// This node's name; without it variable `K8S_NODE_NAME`.
    pub node_name: Option<String>,
    /// A file; without it the service account.
    pub kubeconfig: Option<PathBuf>,
    /// `k8s.cluster.name`; without it variable `K8S_CLUSTER_NAME`, else what the cloud says.
    pub cluster_name: Option<String>,
    /// Labels of pods that are exported as `k8s.pod.label.<name>`; those that rules name are too.
    pub pod_labels: Vec<String>,
    /// Ask ECS.
    pub ecs: Asked,
    /// Ask the Elastic Container Instance's MetaServer.
    pub eci: Asked,
    /// Ask the cloud: `auto` for the one that the firmware names, `off`, or one of `aws`, `gcp`, `azure`,
    /// `alibaba`.
    #[serde(deserialize_with = "text")]
    pub cloud: Cloud,
}

/// `auto`, `on`, `off`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// Where there are signs of it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl From<Asked> for Switch {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Auto => Self::Auto,
            Asked::On => Self::On,
            Asked::Off => Self::Off,
        }
    }
}

/// See [`Metadata::cloud`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cloud(CloudConfig);

impl FromStr for Cloud {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "auto" => CloudConfig::Auto,
            "off" => CloudConfig::Off,
            name => {
                CloudConfig::Provider(Provider::from_str(name).map_err(|e| format!("{e}; or auto, or off"))?)
            }
        }))
    }
}

impl Metadata {
    /// Whom to ask, and which labels to keep.
    pub(super) fn enrich(&self, rules: &RulesConfig) -> EnrichConfig {
        let Self { kubernetes, node_name, kubeconfig, cluster_name, pod_labels, ecs, eci, cloud } =
            self.clone();
        let mut labels = pod_labels;
        for rule in rules.include.iter().chain(&rules.exclude) {
            labels.extend(rule.labels.keys().cloned());
        }
        labels.sort();
        labels.dedup();
        EnrichConfig {
            kubernetes: KubernetesConfig {
                watch: kubernetes.into(),
                node_name,
                kubeconfig,
                cluster_name,
                resync: None,
            },
            ecs: ecs.into(),
            eci: eci.into(),
            cloud: cloud.0,
            pod_labels: labels,
            ..EnrichConfig::default()
        }
    }
}
