//! The pod that gotrace is a sidecar in, and the node it runs on, as its own manifest tells it.
//!
//! From variables of gotrace's own container (`K8S_POD_NAME`, `K8S_POD_UID`, `K8S_NAMESPACE_NAME`,
//! `K8S_NODE_NAME`, `K8S_CLUSTER_NAME`) and, for labels and annotations, from a `downwardAPI` volume's
//! files ("Downward API", Kubernetes documentation; the manifests in `deploy/` set them). Needs no API
//! server and no leave. A node agent sets the node's and the cluster's name only.

use std::{collections::BTreeMap, fs, sync::Arc};

use super::{
    EnrichConfig,
    attributes::{Attributes, set_some},
    cache::Cache,
    kubernetes::{Container, Pod},
    source::State,
};

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// This node's name.
pub(super) fn node_name(config: &EnrichConfig) -> Option<String> {
    config.kubernetes.node_name.clone().or_else(|| variable("K8S_NODE_NAME"))
}

/// Reads it once.
pub(super) fn start(config: &EnrichConfig, cache: &Cache) {
    let mut node = Attributes::new();
    let name = node_name(config);
    set_some(&mut node, "k8s.node.name", name.as_deref());
    // In a container the system's own name is the pod's.
    set_some(&mut node, "host.name", name.as_deref());
    let cluster = config.kubernetes.cluster_name.clone().or_else(|| variable("K8S_CLUSTER_NAME"));
    set_some(&mut node, "k8s.cluster.name", cluster.as_deref());
    if !node.is_empty() {
        // Its name sorts after the clouds': what the manifest says wins.
        cache.set_node("downward", node);
    }
    let Some(pod_name) = variable("K8S_POD_NAME") else { return };
    if super::kubernetes::is_wanted(config).is_ok() {
        // The watch knows every pod; gotrace's own is not that of the others.
        return;
    }
    let info = |file: &str| fs::read_to_string(config.addresses.pod_info.join(file)).unwrap_or_default();
    let own = Pod::new(
        variable("K8S_POD_UID").unwrap_or_default().into(),
        pod_name.into(),
        variable("K8S_NAMESPACE_NAME").unwrap_or_default().into(),
        name.map(Into::into),
        parse_info(&info("labels")),
        &parse_info(&info("annotations")),
        Vec::<Container>::new(),
        &config.pod_labels,
    );
    cache.set_own_pod(own);
    cache.set_state("downward", State::Known);
}

/// Lines `key="value"`, the value as Go quotes it (`pkg/fieldpath`, FormatMap).
fn parse_info(text: &str) -> BTreeMap<Arc<str>, Arc<str>> {
    text.lines()
        .filter_map(|line| {
            let (key, quoted) = line.split_once('=')?;
            // Go's quoting of printable text is JSON's; a line that is not is left out.
            let value: String = serde_json::from_str(quoted).ok()?;
            Some((key.into(), value.into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_volume_are_read() {
        let map = parse_info("app=\"shop\"\nbroken\nodd=x\ntext=\"a \\\"b\\\" = c\\n\"\n");
        let pairs: Vec<(&str, &str)> = map.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(pairs, [("app", "shop"), ("text", "a \"b\" = c\n")]);
    }
}
