//! Alibaba Cloud's Elastic Container Instance: which instance this is.
//!
//! MetaServer at `http://100.100.100.200/latest/meta-data/<item>`, each item a line of text ("Obtain
//! metadata from a container", Elastic Container Instance documentation). Every container of the instance
//! sees the same. Items that an older instance lacks (404) are left out; without `instance-id` there is
//! no answer.

use super::{
    Switch,
    attributes::{Attributes, set},
    http::{AskError, Http},
};

/// Item of MetaServer, and the attribute that it is.
const ITEMS: [(&str, &str); 5] = [
    ("instance-id", "host.id"),
    ("hostname", "host.name"),
    ("region-id", "cloud.region"),
    ("zone-id", "cloud.availability_zone"),
    ("owner-account-id", "cloud.account.id"),
];

/// Whether to ask. Nothing within a container tells such an instance from another; the manifests in
/// `deploy/eci` set the variable `GOTRACE_ECI`.
pub(super) fn is_wanted(switch: Switch) -> bool {
    match switch {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => std::env::var_os("GOTRACE_ECI").is_some(),
    }
}

/// Asks MetaServer.
pub(super) async fn ask(http: &Http, base: &str) -> Result<Attributes, AskError> {
    let mut attributes = Attributes::new();
    for (item, attribute) in ITEMS {
        match http.get_word(&format!("{base}/latest/meta-data/{item}"), &[]).await {
            Ok(text) => set(&mut attributes, attribute, &text),
            Err(e) if e.is_not_found() && item != "instance-id" => {}
            Err(e) => return Err(e),
        }
    }
    set(&mut attributes, "cloud.provider", "alibaba_cloud");
    // The conventions name no platform for it.
    set(&mut attributes, "cloud.platform", "alibaba_cloud_eci");
    Ok(attributes)
}
