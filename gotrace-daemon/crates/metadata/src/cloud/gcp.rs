//! Google Compute Engine, and GKE's name of the cluster.
//!
//! `GET /computeMetadata/v1/<entry>` with `Metadata-Flavor: Google` ("View and query VM metadata", Compute
//! Engine documentation). Entries are asked for one by one: the whole tree also holds keys and scripts.

use super::Instance;
use crate::{
    attributes::{Attributes, set},
    http::{AskError, Http},
};

pub(super) async fn ask(http: &Http, base: &str) -> Result<Attributes, AskError> {
    let entry = async |name: &str| {
        http.get_word(&format!("{base}/computeMetadata/v1/{name}"), &[("Metadata-Flavor", "Google")]).await
    };
    let id = entry("instance/id").await?;
    // projects/<number>/zones/us-central1-a
    let zone = entry("instance/zone").await?;
    let zone = zone.rsplit('/').next().unwrap_or_default();
    let region = zone.rsplit_once('-').map_or("", |(region, _)| region);
    let project = entry("project/project-id").await?;
    let cluster = match entry("instance/attributes/cluster-name").await {
        Ok(name) => Some(name),
        Err(e) if e.is_not_found() => None,
        Err(e) => return Err(e),
    };
    let platform = if cluster.is_some() { "gcp_kubernetes_engine" } else { "gcp_compute_engine" };
    let instance = Instance { provider: "gcp", platform, region, zone, account: &project, id: &id };
    let mut attributes = instance.attributes();
    if let Some(cluster) = cluster {
        set(&mut attributes, "k8s.cluster.name", &cluster);
    }
    Ok(attributes)
}
