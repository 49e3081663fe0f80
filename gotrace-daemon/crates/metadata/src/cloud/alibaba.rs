//! Alibaba Cloud's Elastic Compute Service.
//!
//! In security-hardening mode: `PUT /latest/api/token` with `X-aliyun-ecs-metadata-token-ttl-seconds`, then
//! `GET /latest/meta-data/<item>` with `X-aliyun-ecs-metadata-token` ("Access instance metadata", Elastic
//! Compute Service documentation). Never asks without a token.

use super::Instance;
use crate::{
    attributes::Attributes,
    http::{AskError, Http, word},
};

pub(super) async fn ask(http: &Http, base: &str) -> Result<Attributes, AskError> {
    let token_url = format!("{base}/latest/api/token");
    let token = http.put(&token_url, &[("X-aliyun-ecs-metadata-token-ttl-seconds", "60")]).await?;
    let token = word(&token_url, token)?;
    let item = async |name: &str| {
        let url = format!("{base}/latest/meta-data/{name}");
        http.get_word(&url, &[("X-aliyun-ecs-metadata-token", &token)]).await
    };
    let (id, region, zone, account) = (
        item("instance-id").await?,
        item("region-id").await?,
        item("zone-id").await?,
        item("owner-account-id").await?,
    );
    Ok(Instance {
        provider: "alibaba_cloud",
        platform: "alibaba_cloud_ecs",
        region: &region,
        zone: &zone,
        account: &account,
        id: &id,
    }
    .attributes())
}
