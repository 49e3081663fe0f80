//! What a process says of itself as resource attributes (`OTEL_RESOURCE_ATTRIBUTES`), or whoever made its pod
//! (annotations): what of it is taken.
//!
//! Names that tell who and where a process is are gotrace's to give, and never taken from these; its service
//! it names itself, and whatever else it likes. How much is taken is bounded, as every export carries it:
//! [`MAX_ATTRIBUTES`] of them, [`MAX_KEY`] and [`MAX_VALUE`] bytes. Pure: pairs in, pairs and counts out. Secrets are
//! taken out before anything is cut, so that no part of one is left.

use super::redact;
use gotrace_model::printable::shortened;

/// Attributes that are taken.
pub const MAX_ATTRIBUTES: usize = 64;
/// Bytes of a name; what is longer is cut, and ends in `…`.
pub const MAX_KEY: usize = 128;
/// The same of a value.
pub const MAX_VALUE: usize = 256;

/// First words of names that gotrace gives.
const GIVEN: [&str; 10] =
    ["process", "container", "k8s", "host", "cloud", "aws", "telemetry", "os", "otel", "gotrace"];

/// What is taken, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Names and values, in the order given.
    pub attributes: Vec<(String, String)>,
    /// Left out: names that gotrace gives.
    pub given: usize,
    /// Left out: more than [`MAX_ATTRIBUTES`].
    pub beyond: usize,
    /// Taken, but cut.
    pub cut: usize,
}

impl Claims {
    /// Takes what may be taken.
    #[must_use]
    pub fn of(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut claims = Self::default();
        for (key, value) in pairs {
            if !may_be_claimed(&key) {
                claims.given += 1;
            } else if claims.attributes.len() >= MAX_ATTRIBUTES {
                claims.beyond += 1;
            } else {
                let value = redact::value(&key, &value);
                let (short_key, short_value) = (shortened(&key, MAX_KEY), shortened(&value, MAX_VALUE));
                claims.cut += usize::from(short_key.len() != key.len() || short_value.len() != value.len());
                claims.attributes.push((short_key.into_owned(), short_value.into_owned()));
            }
        }
        claims
    }

    /// Whether all was taken as it was.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        (self.given, self.beyond, self.cut) == (0, 0, 0)
    }
}

/// Whether a process, or its pod's annotation, may set this. Compared as the names are written where only
/// letters, digits and `_` are allowed: as Prometheus has them, `k8s_pod_name` is `k8s.pod.name`.
fn may_be_claimed(name: &str) -> bool {
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let first = words.next().unwrap_or_default();
    let instance = first == "service" && words.next() == Some("instance");
    !name.is_empty() && !instance && !GIVEN.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(pairs: [(&str, &str); N]) -> Claims {
        Claims::of(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())))
    }

    #[test]
    fn who_and_where_a_process_is_is_not_claimed() {
        for name in [
            "service.instance.id",
            "service_instance_id",
            "process.pid",
            "process_pid",
            "container.id",
            "k8s.pod.name",
            "host.name",
            "cloud.region",
            "aws.ecs.task.arn",
            "telemetry.sdk.name",
            "os.type",
            "gotrace.level",
            "otel.metric.overflow",
            "",
        ] {
            assert!(!may_be_claimed(name), "{name}");
        }
        for name in [
            "service.name",
            "service.namespace",
            "service.version",
            "deployment.environment.name",
            "team",
            "hostile",
            "osiris.x",
            "k8sx",
        ] {
            assert!(may_be_claimed(name), "{name}");
        }
        let claims = of([("team", "blue"), ("k8s.pod.name", "another"), ("service.name", "shop")]);
        assert_eq!((claims.attributes.len(), claims.given), (2, 1));
        assert!(!claims.is_whole() && of([("team", "blue")]).is_whole());
    }

    #[test]
    fn what_is_taken_is_bounded() {
        let many = (0..1114).map(|n| (format!("key.{n}"), "value".to_owned()));
        let claims = Claims::of(many);
        assert_eq!((claims.attributes.len(), claims.beyond, claims.cut), (64, 1050, 0));
        let (key, value) = ("k".repeat(200), "é".repeat(200));
        let claims = of([(&key, &value)]);
        let (key, value) = &claims.attributes[0];
        assert_eq!((key.len(), value.len(), claims.cut), (MAX_KEY, MAX_VALUE - 1, 1));
        assert!(key.ends_with("k…") && value.ends_with("é…"));
    }

    #[test]
    fn no_part_of_a_secret_is_left() {
        let credential = format!("{} ghp_{}", "x".repeat(230), "a1".repeat(40));
        let claims = of([("note", &credential), ("db.password", "hunter2")]);
        assert!(!claims.attributes[0].1.contains("ghp_"), "{claims:?}");
        assert_eq!(claims.attributes[1].1, redact::REDACTED);
    }
}
