//! Who may ask the API: peers of loopback under a name that is known, and whoever has the token.
//!
//! Input: the peer, the `Host` and the `Authorization` of a request. Output: nothing, or why it is refused. A name is
//! asked for so that no page in a browser reaches the API by a name of its own (DNS rebinding). The token itself is not
//! kept: what is compared, in constant time, are hashes.

use std::{
    fmt,
    hint::black_box,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::{
    HeaderMap, HeaderValue,
    header::{self, AUTHORIZATION, ORIGIN},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

/// Names that a peer of loopback may always use.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// What a browser keeps is called so.
pub(super) const COOKIE: &str = "gotrace_token";
/// The least characters of a token, and the most.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=4096;

/// A secret that opens the API. Shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It is too short, or too long.
    #[error("a token must have from {} to {} characters", TOKEN.start(), TOKEN.end())]
    Length,
    /// It has characters that no header can carry.
    #[error("a token must be one line of ASCII letters, digits and signs, without spaces")]
    Characters,
}

impl Token {
    /// The token that a file holds; white space around it does not count.
    ///
    /// # Errors
    /// [`BadToken`]
    pub fn new(text: &[u8]) -> Result<Self, BadToken> {
        let text = text.trim_ascii();
        if !TOKEN.contains(&text.len()) {
            return Err(BadToken::Length);
        }
        if !text.iter().all(u8::is_ascii_graphic) {
            return Err(BadToken::Characters);
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Whether an `Authorization` header has it: `Bearer TOKEN`, or `Basic` with it as the password.
    pub(super) fn is_in(&self, authorization: &[u8]) -> bool {
        let Some(space) = authorization.iter().position(|b| *b == b' ') else { return false };
        let (scheme, rest) = authorization.split_at(space);
        let rest = rest.trim_ascii();
        if scheme.eq_ignore_ascii_case(b"Bearer") {
            return self.is(rest);
        }
        if !scheme.eq_ignore_ascii_case(b"Basic") {
            return false;
        }
        let Ok(pair) = BASE64_STANDARD.decode(rest) else { return false };
        let password = pair.iter().position(|b| *b == b':').and_then(|colon| pair.get(colon + 1..));
        password.is_some_and(|password| self.is(password))
    }

    fn is(&self, text: &[u8]) -> bool {
        let Self(own) = self;
        same(own, &Sha256::digest(text).into())
    }

    /// What a browser keeps in place of the token: it opens the API, as long as the token is the same, and does not tell
    /// it, since a browser sends cookies to every port of a host.
    pub(super) fn cookie(&self) -> String {
        let Self(own) = self;
        let hash = Sha256::new().chain_update(b"gotrace cookie").chain_update(own).finalize();
        hash.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether one of a request's cookies is that.
    fn is_kept_in(&self, headers: &HeaderMap) -> bool {
        let own = Sha256::digest(self.cookie()).into();
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
        pairs.any(|(name, value)| name.trim() == COOKIE && same(&own, &Sha256::digest(value.trim()).into()))
    }
}

/// Whether two hashes are the same, in a time that does not tell how much of them is.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    // All bytes are looked at, whichever differ.
    a.iter().zip(b).fold(0, |differ, (a, b)| black_box(differ | (a ^ b))) == 0
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    /// Names by which peers of loopback may ask, besides `localhost`, `127.0.0.1` and `[::1]`; without ports.
    pub hosts: Vec<String>,
    /// What opens the API to all others; `None`: nothing does.
    pub token: Option<Token>,
    /// Whether peers of loopback need it too.
    pub require_token: bool,
}

/// Why a request is refused, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// A token would help.
    Unauthorized(String),
    /// Asked in this way it never is.
    Forbidden(String),
}

impl AccessRules {
    /// Whether a request may be answered. `host`: the name that it was sent to, with or without a port.
    pub(super) fn admit(
        &self,
        peer: Option<IpAddr>,
        host: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<(), Denied> {
        let Self { hosts, token, require_token } = self;
        let shown = |token: &Token| {
            let authorization = headers.get(AUTHORIZATION);
            authorization.is_some_and(|sent| token.is_in(sent.as_bytes())) || token.is_kept_in(headers)
        };
        if token.as_ref().is_some_and(shown) {
            return Ok(());
        }
        let local = peer.is_some_and(|ip| ip.to_canonical().is_loopback());
        if local && !require_token {
            let name = host.map(without_port).unwrap_or_default();
            let known = LOOPBACK.into_iter().chain(hosts.iter().map(String::as_str));
            if !name.is_empty() && known.into_iter().any(|known| known.eq_ignore_ascii_case(name)) {
                return Ok(());
            }
            return Err(Denied::Forbidden(
                "the request's Host is not localhost, 127.0.0.1, [::1] or one of http.hosts: ask by one of these names, \
                 add the name to http.hosts, or send the token of http.token_file"
                    .into(),
            ));
        }
        Err(match token {
            Some(_) => Denied::Unauthorized(
                "this needs the token of http.token_file: send it as `Authorization: Bearer TOKEN`, or as the password of \
                 Basic authentication"
                    .into(),
            ),
            None => Denied::Forbidden(
                "only /metrics, /livez and /readyz are answered to other hosts: ask from this host by localhost (kubectl \
                 port-forward does), or set http.token_file and send its token"
                    .into(),
            ),
        })
    }
}

/// A `Host` without its port.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a browser sends a request for a page of another site or port. Such a page cannot read the answer, but could
/// have processes read all the time.
pub(super) fn is_for_another_site(host: Option<&str>, headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter().peekable();
    if sites.peek().is_some() {
        // `none`: somebody typed the address.
        return !sites.all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    }
    let own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.zip(host).is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host))
    };
    !headers.get_all(ORIGIN).iter().all(own)
}

/// Whether a browser asks for the page because somebody follows a link, which another site may have.
pub(super) fn is_link_to(path: &str, headers: &HeaderMap) -> bool {
    let is =
        |name: &str, value: &str| headers.get(name).is_some_and(|sent| sent.as_bytes() == value.as_bytes());
    path == super::page::DOCUMENT && is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document")
}

/// Whether a browser asks for a script that runs in it.
pub(super) fn is_of_a_script(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-dest").is_some_and(|dest| dest.as_bytes() == b"empty")
}

/// The rules of now, which a changed configuration replaces. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<Mutex<Arc<AccessRules>>>);

impl Access {
    /// From now on these hold.
    pub fn set(&self, rules: AccessRules) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Those that hold.
    #[must_use]
    pub fn rules(&self) -> Arc<AccessRules> {
        // A whole value: a panic elsewhere leaves none half written.
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef-token";

    fn rules(require_token: bool, token: bool) -> AccessRules {
        AccessRules {
            hosts: vec!["gotrace.example".into()],
            token: token.then(|| Token::new(SECRET.as_bytes()).expect("a token")),
            require_token,
        }
    }

    fn ask(rules: &AccessRules, peer: &str, host: &str, authorization: &str) -> &'static str {
        let authorization = (!authorization.is_empty()).then_some((AUTHORIZATION, authorization));
        ask_with(rules, peer, host, authorization)
    }

    fn ask_with(
        rules: &AccessRules,
        peer: &str,
        host: &str,
        sent: Option<(header::HeaderName, &str)>,
    ) -> &'static str {
        let sent = sent.map(|(name, value)| (name, HeaderValue::from_str(value).expect("a value")));
        let headers = HeaderMap::from_iter(sent);
        match rules.admit(peer.parse().ok(), (!host.is_empty()).then_some(host), &headers) {
            Ok(()) => "ok",
            Err(Denied::Unauthorized(_)) => "401",
            Err(Denied::Forbidden(_)) => "403",
        }
    }

    #[test]
    fn loopback_by_a_known_name_and_others_with_the_token() {
        let bearer = format!("Bearer {SECRET}");
        let basic = |pair: String| format!("basic {}", BASE64_STANDARD.encode(pair));
        let (password, user) = (basic(format!("any:{SECRET}")), basic(format!("{SECRET}:any")));
        let open = rules(false, true);
        for host in
            ["localhost", "LocalHost:9464", "127.0.0.1:80", "[::1]", "[::1]:9464", "gotrace.example:1"]
        {
            assert_eq!(ask(&open, "127.0.0.1", host, ""), "ok", "{host}");
            assert_eq!(ask(&open, "::1", host, ""), "ok", "{host}");
            assert_eq!(ask(&open, "::ffff:127.0.0.1", host, "Bearer wrong"), "ok", "{host}");
            assert_eq!(ask(&open, "10.0.0.7", host, ""), "401", "{host}");
            assert_eq!(ask(&open, "unknown", host, ""), "401", "{host}");
            assert_eq!(ask(&rules(false, false), "10.0.0.7", host, &bearer), "403", "{host}");
            assert_eq!(ask(&rules(true, true), "127.0.0.1", host, ""), "401", "{host}");
        }
        for host in [
            "",
            ":",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "::1",
            "[::1",
            "[::1]x",
            "localhost:evil",
            "localhost:80:80",
            "evil@localhost",
            "localhost@evil",
            " localhost",
            "localhost,evil.example",
        ] {
            assert_eq!(ask(&open, "127.0.0.1", host, ""), "403", "{host}");
            assert_eq!(ask(&open, "127.0.0.1", host, &bearer), "ok", "{host}");
        }
        for (sent, answer) in [
            (bearer.as_str(), "ok"),
            (&format!("BEARER   {SECRET} "), "ok"),
            (&password, "ok"),
            (&user, "401"),
            (&format!("Bearer {SECRET}x"), "401"),
            (&format!("Bearer {}", &SECRET[1..]), "401"),
            ("Bearer ", "401"),
            ("Bearer", "401"),
            ("Basic !", "401"),
            ("Digest x", "401"),
            (SECRET, "401"),
        ] {
            assert_eq!(ask(&open, "10.0.0.7", "any", sent), answer, "{sent}");
            assert_eq!(ask(&rules(true, true), "127.0.0.1", "localhost", sent), answer, "{sent}");
        }
    }

    #[test]
    fn a_cookie_opens_as_long_as_the_token_is_the_same() {
        let rules = rules(true, true);
        let cookie = rules.token.as_ref().expect("a token").cookie();
        let answer = |cookie: &str| ask_with(&rules, "127.0.0.1", "any", Some((header::COOKIE, cookie)));
        assert_eq!(answer(&format!("a=b; {COOKIE}={cookie}; c=d")), "ok");
        for wrong in [
            String::new(),
            cookie.clone(),
            format!("{COOKIE}="),
            format!("{COOKIE}={SECRET}"),
            format!("{COOKIE}={}", cookie.to_uppercase()),
            format!("other={cookie}"),
        ] {
            assert_eq!(answer(&wrong), "401", "{wrong}");
        }
        let other = Token::new(b"another-token-of-sixteen").expect("a token");
        assert!(other.cookie() != cookie && !cookie.contains(SECRET));
    }

    #[test]
    fn loopback_is_all_of_it_and_nothing_else() {
        for (peer, answer) in [
            ("127.0.0.2", "ok"),
            ("127.255.255.254", "ok"),
            ("::ffff:127.0.0.2", "ok"),
            ("::127.0.0.1", "401"),
            ("::ffff:10.0.0.7", "401"),
            ("0.0.0.0", "401"),
            ("::", "401"),
            ("fe80::1", "401"),
            ("128.0.0.1", "401"),
        ] {
            assert_eq!(ask(&rules(false, true), peer, "localhost", ""), answer, "{peer}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_told_by_what_browsers_add() {
        let told = |headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            is_for_another_site(Some("localhost:9464"), &map)
        };
        for own in [
            &[][..],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("origin", "https://outside.example")],
            &[("origin", "http://LOCALHOST:9464")],
        ] {
            assert!(!told(own), "{own:?}");
        }
        for other in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
            &[("origin", "null")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "http://localhost")],
        ] {
            assert!(told(other), "{other:?}");
        }
    }

    #[test]
    fn a_token_is_one_line_and_shows_nothing() {
        assert_eq!(Token::new(format!(" {SECRET}\n").as_bytes()), Token::new(SECRET.as_bytes()));
        assert_eq!(Token::new(b"short\n"), Err(BadToken::Length));
        assert_eq!(Token::new(b""), Err(BadToken::Length));
        assert_eq!(Token::new(b"two words, both long enough"), Err(BadToken::Characters));
        assert_eq!(Token::new("not ASCII: Gr\u{f6}\u{df}e".as_bytes()), Err(BadToken::Characters));
        assert_eq!(format!("{:?}", Token::new(SECRET.as_bytes())), "Ok(Token)");
    }
}
