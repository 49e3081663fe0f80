//! A container image's reference, taken apart.
//!
//! Pure. `[registry[:port]/]path[:tag][@digest]` (distribution's reference grammar); an image that is
//! named by its id alone has no name.

use std::sync::Arc;

use super::attributes::{Attributes, set};
use gotrace_model::Value;

/// Sets `container.image.name` and `container.image.tags`.
pub(super) fn describe(attributes: &mut Attributes, reference: &str) {
    let (name, tag) = split(reference);
    let id = name.strip_prefix("sha256:").unwrap_or(name);
    if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return;
    }
    set(attributes, "container.image.name", name);
    if let Some(tag) = tag {
        attributes.insert("container.image.tags".into(), Value::List(vec![Arc::from(tag)]));
    }
}

fn split(reference: &str) -> (&str, Option<&str>) {
    let plain = reference.split('@').next().unwrap_or(reference);
    match plain.rsplit_once(':') {
        // What follows a registry's port has a slash.
        Some((name, tag)) if !tag.contains('/') && !tag.is_empty() && name != "sha256" => (name, Some(tag)),
        _ => (plain, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        for (reference, name, tag) in [
            ("nginx", "nginx", None),
            ("nginx:1.27", "nginx", Some("1.27")),
            ("registry:5000/a/b", "registry:5000/a/b", None),
            ("registry:5000/a/b:v1@sha256:0123", "registry:5000/a/b", Some("v1")),
            ("a/b@sha256:0123", "a/b", None),
        ] {
            assert_eq!(split(reference), (name, tag), "{reference}");
        }
        let mut attributes = Attributes::new();
        describe(&mut attributes, &format!("sha256:{}", "a".repeat(64)));
        describe(&mut attributes, "");
        assert!(attributes.is_empty());
    }
}
