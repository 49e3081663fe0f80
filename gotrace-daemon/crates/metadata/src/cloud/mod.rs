//! The cloud that the machine stands in: `cloud.*`, and `host.id` as the instance's id.
//!
//! One provider a machine, told by its firmware (`of_this_machine`) or by the configuration; nobody is
//! asked on a machine that is in no cloud.

mod alibaba;
mod aws;
mod azure;
mod gcp;

use std::{fs, path::Path, str::FromStr};

use super::{
    Addresses,
    attributes::{Attributes, set},
    http::{AskError, Http},
};

/// A cloud whose metadata service is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon EC2.
    Aws,
    /// Google Compute Engine.
    Gcp,
    /// Azure Virtual Machines.
    Azure,
    /// Alibaba Cloud's Elastic Compute Service.
    Alibaba,
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "aws" => Self::Aws,
            "gcp" => Self::Gcp,
            "azure" => Self::Azure,
            "alibaba" | "alibaba_cloud" => Self::Alibaba,
            _ => return Err(format!("unknown cloud {text}: expected aws, gcp, azure or alibaba")),
        })
    }
}

/// The cloud that this machine's firmware names.
pub(super) fn of_this_machine() -> Option<Provider> {
    of_firmware(Path::new("/sys/class/dmi/id"))
}

/// From a directory like `/sys/class/dmi/id`. What each cloud writes there: "Identify EC2 Linux
/// instances" (AWS), "Detect if a VM is running in Compute Engine" (GCP), cloud-init's DataSourceAzure
/// and DataSourceAliYun.
fn of_firmware(directory: &Path) -> Option<Provider> {
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (vendor, product, bios) = (read("sys_vendor"), read("product_name"), read("bios_vendor"));
    if vendor.starts_with("Amazon EC2")
        || bios.starts_with("Amazon EC2")
        || read("bios_version").contains("amazon")
    {
        Some(Provider::Aws)
    } else if product.starts_with("Google Compute Engine")
        || (vendor.starts_with("Google") && bios.starts_with("Google"))
    {
        Some(Provider::Gcp)
    } else if read("chassis_asset_tag").trim() == "7783-7084-3265-9085-8269-3286-77" {
        Some(Provider::Azure)
    } else if product.starts_with("Alibaba Cloud ECS") || vendor.starts_with("Alibaba Cloud") {
        Some(Provider::Alibaba)
    } else {
        None
    }
}

/// Asks a cloud's metadata service.
pub(super) async fn ask(
    provider: Provider,
    http: &Http,
    addresses: &Addresses,
) -> Result<Attributes, AskError> {
    match provider {
        Provider::Aws => aws::ask(http, &addresses.link_local).await,
        Provider::Gcp => gcp::ask(http, &addresses.link_local).await,
        Provider::Azure => azure::ask(http, &addresses.link_local).await,
        Provider::Alibaba => alibaba::ask(http, &addresses.alibaba).await,
    }
}

/// What every cloud tells of an instance, in the names of the conventions. Empty texts are left out.
struct Instance<'a> {
    provider: &'a str,
    platform: &'a str,
    region: &'a str,
    zone: &'a str,
    account: &'a str,
    id: &'a str,
}

impl Instance<'_> {
    fn attributes(&self) -> Attributes {
        let Self { provider, platform, region, zone, account, id } = self;
        let mut attributes = Attributes::new();
        for (name, value) in [
            ("cloud.provider", provider),
            ("cloud.platform", platform),
            ("cloud.region", region),
            ("cloud.availability_zone", zone),
            ("cloud.account.id", account),
            ("host.id", id),
        ] {
            set(&mut attributes, name, value);
        }
        attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_names_the_cloud() {
        type Files = &'static [(&'static str, &'static str)];
        let cases: [(Files, Option<Provider>); 7] = [
            (&[("sys_vendor", "Amazon EC2\n"), ("product_name", "m5.large\n")], Some(Provider::Aws)),
            (&[("sys_vendor", "Xen\n"), ("bios_version", "4.11.amazon\n")], Some(Provider::Aws)),
            (&[("sys_vendor", "Google\n"), ("product_name", "Google Compute Engine\n")], Some(Provider::Gcp)),
            (
                &[
                    ("sys_vendor", "Microsoft Corporation\n"),
                    ("product_name", "Virtual Machine\n"),
                    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n"),
                ],
                Some(Provider::Azure),
            ),
            // Hyper-V that is not Azure.
            (&[("sys_vendor", "Microsoft Corporation\n"), ("product_name", "Virtual Machine\n")], None),
            (
                &[("sys_vendor", "Alibaba Cloud\n"), ("product_name", "Alibaba Cloud ECS\n")],
                Some(Provider::Alibaba),
            ),
            (&[("sys_vendor", "QEMU\n"), ("product_name", "Standard PC\n")], None),
        ];
        for (files, wanted) in cases {
            let directory = tempfile::tempdir().expect("a directory");
            for (name, text) in files {
                fs::write(directory.path().join(name), text).expect("written");
            }
            assert_eq!(of_firmware(directory.path()), wanted, "{files:?}");
        }
        assert_eq!(of_firmware(Path::new("/nonexistent")), None);
    }
}
