//! The objects in `deploy/`, as JSON, and where the API server takes them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The objects of a YAML file below `deploy/`.
///
/// # Errors
/// Where it cannot be read or is not YAML.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let path = directory().join(path);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("reading {}", path.display()))
}

/// The objects of a YAML text; empty documents are left out.
///
/// # Errors
/// Where it is not YAML.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// `deploy/`.
#[must_use]
pub fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The path that an object is posted to: `/apis/apps/v1/namespaces/gotrace/daemonsets`.
#[must_use]
pub fn collection(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default().to_ascii_lowercase();
    let plural = match kind.as_str() {
        k if k.ends_with("policy") => format!("{}ies", &k[..k.len() - 1]),
        k if k.ends_with('s') => format!("{k}es"),
        k => format!("{k}s"),
    };
    let base = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let cluster_wide = ["namespace", "clusterrole", "clusterrolebinding", "node", "priorityclass"];
    if cluster_wide.contains(&kind.as_str()) {
        return format!("{base}/{plural}");
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    format!("{base}/namespaces/{namespace}/{plural}")
}
