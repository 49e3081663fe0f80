//! What is known of a process's surroundings, as the line takes it.

use std::{collections::BTreeMap, sync::Arc};

use gotrace_model::Value;

/// Resource attributes by name.
pub type Attributes = BTreeMap<Arc<str>, Value>;

/// What is known by now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// `container.*`, `k8s.*`, `aws.ecs.*`, `cloud.*`, `host.*`.
    pub attributes: Attributes,
    /// Names for the service, which the process's own words win over.
    pub service: Service,
    /// Grows whenever any of it changes; see [`super::Enricher::changed`].
    pub version: u64,
}

impl Known {
    /// Everything as attributes, `service.{name,namespace,version}` among them.
    #[must_use]
    pub fn all(&self) -> Attributes {
        let Self { attributes, service: Service { name, namespace, version }, version: _ } = self;
        let mut all = attributes.clone();
        set_some(&mut all, "service.name", name.as_deref());
        set_some(&mut all, "service.namespace", namespace.as_deref());
        set_some(&mut all, "service.version", version.as_deref());
        all
    }
}

/// Names that the surroundings suggest for the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `service.name`: annotation, app label, workload's or pod's name.
    pub name: Option<Arc<str>>,
    /// `service.namespace`: annotation, or the pod's namespace.
    pub namespace: Option<Arc<str>>,
    /// `service.version`: annotation or `app.kubernetes.io/version`.
    pub version: Option<Arc<str>>,
}

/// Sets a text; one that is empty says nothing.
pub(super) fn set(attributes: &mut Attributes, name: &str, value: &str) {
    if !value.is_empty() {
        attributes.insert(name.into(), Value::Text(super::redact::value(name, value).into()));
    }
}

/// Sets a text where there is one.
pub(super) fn set_some(attributes: &mut Attributes, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        set(attributes, name, value);
    }
}
