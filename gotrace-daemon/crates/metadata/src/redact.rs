//! Takes out of exported text what looks like a secret.
//!
//! Pure: a name and a value in, the value or [`REDACTED`] in its place out. Looks at the name (`password`,
//! `token`, …), at user and password within an address, and at the shapes of well-known credentials. It
//! does not measure randomness: build ids and hashes are no secrets. A net with holes by nature, which is
//! why arguments are not exported unless asked for.

use std::borrow::Cow;

/// Stands for what was taken out.
pub const REDACTED: &str = "[redacted]";

/// Words that make a name secret, wherever they stand in it, compared without case, `-`, `_` and `.`.
const SECRET_NAMES: [&str; 20] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "encryptionkey",
    "credential",
    "authorization",
    "bearer",
    "authtoken",
    "accesstoken",
    "refreshtoken",
    "idtoken",
    "sessiontoken",
    "apitoken",
    "clientkey",
    "connectionstring",
];

/// Words that make a name secret when they are the whole of it or its last part (`--auth-token`, `db.pwd`).
const SECRET_ENDS: [&str; 5] = ["token", "pwd", "pass", "cookie", "dsn"];

/// Beginnings of credentials, and how many characters at least follow: AWS access keys, GitHub, GitLab,
/// Slack, Stripe, Google, npm, OpenAI-like, SendGrid, DigitalOcean (each provider's documentation).
const PREFIXES: [(&str, usize); 22] = [
    ("AKIA", 16),
    ("ASIA", 16),
    ("ghp_", 30),
    ("gho_", 30),
    ("ghu_", 30),
    ("ghs_", 30),
    ("ghr_", 30),
    ("github_pat_", 30),
    ("glpat-", 16),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxa-", 10),
    ("xoxr-", 10),
    ("xoxs-", 10),
    ("sk_live_", 16),
    ("rk_live_", 16),
    ("AIza", 35),
    ("npm_", 30),
    ("sk-", 20),
    ("SG.", 40),
    ("dop_v1_", 32),
    ("hvs.", 20),
];

/// A value as it may be exported under `name`.
#[must_use]
pub fn value<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    if value.is_empty() {
        return Cow::Borrowed(value);
    }
    if is_secret_name(name) {
        return Cow::Borrowed(REDACTED);
    }
    text(value)
}

/// A path as it may be exported: segments go that look like a credential, that are opaque (28 characters or more of letters
/// and digits mixed, but for UUIDs), and that come behind one whose name is secret (`/reset-token/…`).
#[must_use]
pub fn path(path: &str) -> String {
    let mut next_is_secret = false;
    let clean = path.split('/').map(|segment| {
        let is_secret = std::mem::replace(&mut next_is_secret, is_secret_name(segment));
        if segment.is_empty() {
            next_is_secret = is_secret;
            return Cow::Borrowed(segment);
        }
        if is_secret || is_opaque(segment) { Cow::Borrowed(REDACTED) } else { text(segment) }
    });
    clean.collect::<Vec<_>>().join("/")
}

/// Whether nobody reads it, as of a session's key or a link that stands for a password. Ids of up to 27 characters (ULID,
/// KSUID, ObjectId) and UUIDs are what people look for.
fn is_opaque(segment: &str) -> bool {
    /// Characters from which on it may be one.
    const LEAST: usize = 28;
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-=+~".contains(c);
    let is_uuid = segment.len() == 36 && segment.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let longest = segment.split(|c| !is_part(c)).max_by_key(|part| part.len()).unwrap_or_default();
    let has = |of: fn(&char) -> bool| longest.chars().any(|c| of(&c));
    longest.len() >= LEAST && !is_uuid && has(char::is_ascii_digit) && has(char::is_ascii_alphabetic)
}

/// Arguments of a command as they may be exported: the value behind `--password`, in `--password=…` and
/// `PASSWORD=…` goes, and so does what looks like a credential.
#[must_use]
pub fn arguments(arguments: &[String]) -> Vec<String> {
    let mut redacted = Vec::with_capacity(arguments.len());
    let mut next_is_secret = false;
    for argument in arguments {
        let flag = argument.starts_with('-');
        if next_is_secret && !flag {
            redacted.push(REDACTED.to_owned());
            next_is_secret = false;
            continue;
        }
        next_is_secret = false;
        redacted.push(match argument.split_once('=') {
            Some((name, rest)) if is_a_name(name) => format!("{name}={}", value(name, rest)),
            _ => {
                next_is_secret = flag && is_secret_name(argument.trim_start_matches('-'));
                text(argument).into_owned()
            }
        });
    }
    redacted
}

/// `--name`, `NAME`, `some.name`: not an address with a query, nor a text with a `=` in it.
fn is_a_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_secret_name(name: &str) -> bool {
    let plain: String =
        name.chars().filter(|c| !"-_. ".contains(*c)).map(|c| c.to_ascii_lowercase()).collect();
    if SECRET_NAMES.iter().any(|word| plain.contains(word)) {
        return true;
    }
    let last = name.rsplit(['-', '_', '.', ' ']).next().unwrap_or(name).to_ascii_lowercase();
    SECRET_ENDS.contains(&last.as_str())
}

/// Credentials within a text.
fn text(text: &str) -> Cow<'_, str> {
    if text.contains("-----BEGIN") && text.contains("PRIVATE KEY") {
        return Cow::Borrowed(REDACTED);
    }
    let mut result = Cow::Borrowed(text);
    if let Some(without) = without_userinfo(&result) {
        result = Cow::Owned(without);
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.+/".contains(c);
    if result.split(|c| !is_part(c)).any(is_credential) {
        let mut clean = String::with_capacity(result.len());
        let mut rest: &str = &result;
        while let Some(first) = rest.chars().next() {
            let same = is_part(first);
            let end = rest.find(|c| is_part(c) != same).unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            clean.push_str(if same && is_credential(word) { REDACTED } else { word });
            rest = tail;
        }
        result = Cow::Owned(clean);
    }
    result
}

/// `scheme://user:password@host` without user and password; `None` when there is no password.
fn without_userinfo(text: &str) -> Option<String> {
    let mut result = String::new();
    let mut rest = text;
    let mut found = false;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        result.push_str(before);
        // As RFC 3986, 3.2 has it; a password with a raw slash in it is covered up to its last `@`.
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>".contains(c)).unwrap_or(after.len());
        let authority_end = after[..end].find(['/', '?', '#']).unwrap_or(end);
        let host = after[..authority_end].rfind('@').or_else(|| {
            after[..end]
                .rfind('@')
                .filter(|at| after[..*at].split('/').next().is_some_and(|u| u.contains(':') && !is_port(u)))
        });
        match host {
            Some(host) if after[..host].contains(':') => {
                found = true;
                result.push_str(REDACTED);
                rest = &after[host..];
            }
            _ => rest = after,
        }
    }
    result.push_str(rest);
    found.then_some(result)
}

/// `host:8080`.
fn is_port(text: &str) -> bool {
    text.rsplit(':').next().is_some_and(|p| !p.is_empty() && p.chars().all(|c| c.is_ascii_digit()))
}

fn is_credential(word: &str) -> bool {
    let known = PREFIXES.iter().any(|(prefix, least)| {
        word.strip_prefix(prefix).is_some_and(|rest| {
            rest.len() >= *least && rest.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        })
    });
    known || is_json_web_token(word)
}

/// Three parts in base64url, the first beginning as `{"` does (RFC 7519).
fn is_json_web_token(word: &str) -> bool {
    let mut parts = word.split('.');
    let (Some(header), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    header.starts_with("eyJ") && payload.starts_with("eyJ") && header.len() > 10
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_tell() {
        for name in [
            "password",
            "DB_PASSWORD",
            "db.password",
            "api-key",
            "API_KEY",
            "apiKey",
            "x.auth-token",
            "token",
            "client_secret",
            "aws_secret_access_key",
            "Authorization",
            "redis.pass",
            "SENTRY_DSN",
        ] {
            assert_eq!(value(name, "abc"), REDACTED, "{name}");
        }
        for name in [
            "service.name",
            "k8s.pod.name",
            "tokenizer",
            "passenger",
            "compass",
            "deployment.environment",
            "k8s.pod.uid",
            "keyboard",
            "author",
        ] {
            assert_eq!(value(name, "abc"), "abc", "{name}");
        }
    }

    #[test]
    fn shapes_tell() {
        let aws = format!("AKIA{}", "ABCDEFGHIJKLMNOP");
        let github = format!("ghp_{}", "a1".repeat(18));
        let jwt = format!("eyJhbGciOiJIUzI1NiJ9.eyJ{}.c2ln", "zdWIiOiIxIn0");
        for (given, wanted) in [
            (aws.clone(), REDACTED.to_owned()),
            (format!("id {aws}, region x"), format!("id {REDACTED}, region x")),
            (format!("Bearer {jwt}"), format!("Bearer {REDACTED}")),
            (format!("--header=X: {github}"), format!("--header=X: {REDACTED}")),
            ("postgres://app:hunter2@db:5432/x".into(), "postgres://[redacted]@db:5432/x".into()),
            ("amqp://u:p/q@mq/v".into(), "amqp://[redacted]@mq/v".into()),
            ("a http://x:1@h b https://y:2@i".into(), "a http://[redacted]@h b https://[redacted]@i".into()),
            ("-----BEGIN RSA PRIVATE KEY-----\nabc".into(), REDACTED.into()),
        ] {
            assert_eq!(value("x", &given), wanted);
        }
        for harmless in [
            "http://host:8080/a@b",
            "https://user@host/",
            "a=b",
            "sha256:0123456789abcdef",
            "sk-short",
            "v1.2.3",
            "github.com/a/b@v1.2.3",
            "ghp_",
            "eyJ.a.b",
            "://",
            "x://@",
            "registry:5000/a/b:tag",
        ] {
            assert_eq!(value("x", harmless), harmless);
        }
    }

    #[test]
    fn paths_keep_what_people_look_for() {
        let hex = "0123456789abcdef".repeat(2);
        let jwt = format!("eyJhbGciOiJIUzI1NiJ9.eyJ{}.c2ln", "zdWIiOiIxIn0");
        for (given, wanted) in [
            ("/users/42/orders".to_owned(), "/users/42/orders".to_owned()),
            (
                "/v1/0b5a2e1c-5f0e-4c55-8a55-0c7f3a1b2c3d".into(),
                "/v1/0b5a2e1c-5f0e-4c55-8a55-0c7f3a1b2c3d".into(),
            ),
            ("/o/507f1f77bcf86cd799439011/".into(), "/o/507f1f77bcf86cd799439011/".into()),
            ("/ulid/01ARZ3NDEKTSV4RRFFQ69G5FAV".into(), "/ulid/01ARZ3NDEKTSV4RRFFQ69G5FAV".into()),
            (
                "/a-rather-long-name-of-a-product-without-digits".into(),
                "/a-rather-long-name-of-a-product-without-digits".into(),
            ),
            (format!("/s/{hex}"), format!("/s/{REDACTED}")),
            (format!("/s/{hex}.json"), format!("/s/{REDACTED}")),
            (format!("/verify/{jwt}/now"), format!("/verify/{REDACTED}/now")),
            ("/reset-password/xyz".into(), format!("/reset-password/{REDACTED}")),
            ("/token//xyz".into(), format!("/token//{REDACTED}")),
            ("/tokens/list".into(), "/tokens/list".into()),
            ("*".into(), "*".into()),
        ] {
            assert_eq!(path(&given), wanted);
            assert_eq!(path(&wanted), wanted);
        }
    }

    #[test]
    fn arguments_keep_their_names() {
        let given = [
            "srv",
            "--password",
            "x",
            "--token=y",
            "DB_PASS=z",
            "--verbose",
            "--api-key",
            "--next",
            "plain",
            "-v",
        ];
        let wanted = [
            "srv",
            "--password",
            REDACTED,
            "--token=[redacted]",
            "DB_PASS=[redacted]",
            "--verbose",
            "--api-key",
            "--next",
            "plain",
            "-v",
        ];
        assert_eq!(arguments(&given.map(String::from)), wanted);
    }

    proptest! {
        #[test]
        fn total(name in ".*", text in ".*") {
            let _ = value(&name, &text);
            let _ = arguments(&[name, text]);
        }

        #[test]
        fn a_password_in_an_address_never_passes(user in "[a-z]{1,8}", password in "[A-Z]{6,12}", host in "[a-z]{1,8}") {
            let address = format!("proto://{user}:{password}@{host}/p");
            prop_assert!(!value("x", &address).contains(&password));
        }
    }
}
