//! Azure Virtual Machines.
//!
//! `GET /metadata/instance/compute?api-version=2021-02-01&format=json` with `Metadata: true` ("Azure
//! Instance Metadata Service", Azure Virtual Machines documentation).

use serde::Deserialize;

use super::Instance;
use crate::{
    attributes::Attributes,
    http::{AskError, Http},
};

/// The fields that are used. `zone` is empty in a region without zones.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compute {
    location: String,
    #[serde(default)]
    zone: String,
    subscription_id: String,
    vm_id: String,
}

pub(super) async fn ask(http: &Http, base: &str) -> Result<Attributes, AskError> {
    let url = format!("{base}/metadata/instance/compute?api-version=2021-02-01&format=json");
    let compute: Compute = http.get_json(&url, &[("Metadata", "true")]).await?;
    Ok(Instance {
        provider: "azure",
        platform: "azure.vm",
        region: &compute.location,
        zone: &compute.zone,
        account: &compute.subscription_id,
        id: &compute.vm_id,
    }
    .attributes())
}
