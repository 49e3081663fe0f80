//! Amazon EC2: the instance identity document, by IMDSv2.
//!
//! `PUT /latest/api/token` with `X-aws-ec2-metadata-token-ttl-seconds`, then `GET
//! /latest/dynamic/instance-identity/document` with `X-aws-ec2-metadata-token` ("Use the Instance Metadata
//! Service", "Instance identity documents", Amazon EC2 User Guide). From a container that has a network of
//! its own the answer needs an instance whose hop limit is at least 2. Never falls back to IMDSv1.

use serde::Deserialize;

use super::Instance;
use crate::{
    attributes::Attributes,
    http::{AskError, Http, word},
};

/// The fields that are used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    account_id: String,
    region: String,
    availability_zone: String,
    instance_id: String,
}

pub(super) async fn ask(http: &Http, base: &str) -> Result<Attributes, AskError> {
    let token_url = format!("{base}/latest/api/token");
    let token = http.put(&token_url, &[("X-aws-ec2-metadata-token-ttl-seconds", "60")]).await?;
    let token = word(&token_url, token)?;
    let url = format!("{base}/latest/dynamic/instance-identity/document");
    let document: Document = http.get_json(&url, &[("X-aws-ec2-metadata-token", &token)]).await?;
    Ok(Instance {
        provider: "aws",
        platform: "aws_ec2",
        region: &document.region,
        zone: &document.availability_zone,
        account: &document.account_id,
        id: &document.instance_id,
    }
    .attributes())
}
