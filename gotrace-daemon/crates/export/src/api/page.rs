//! The page: what browsers show of the API. A bundle that Vite makes of `gotrace-daemon/web`, which is committed, and is
//! part of the binary.
//!
//! Its files hold nothing of any process: whoever would be answered with a token gets them without, so that the page can
//! ask for it. Input: paths that are in the table, and nothing else. Output: the files, with a policy by which a browser
//! loads nothing from elsewhere and runs no text as a script.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            REFERRER_POLICY, SET_COOKIE,
        },
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use sha2::{Digest as _, Sha256};

use super::{Api, plain};

/// Where a browser shows the token.
pub(super) const LOGIN: &str = "/login";
/// The document itself.
pub(super) const DOCUMENT: &str = "/";

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// A file of the bundle.
struct File {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

const FILES: [File; 4] = [
    File {
        path: DOCUMENT,
        content_type: "text/html; charset=utf-8",
        bytes: include_bytes!("../../../../web/dist/index.html"),
    },
    File {
        path: "/assets/page.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../../../web/dist/assets/page.js"),
    },
    File {
        path: "/assets/page.css",
        content_type: "text/css; charset=utf-8",
        bytes: include_bytes!("../../../../web/dist/assets/page.css"),
    },
    File {
        path: "/assets/icon.svg",
        content_type: "image/svg+xml",
        bytes: include_bytes!("../../../../web/dist/assets/icon.svg"),
    },
];

/// Whether it is one of the page's files.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The paths of the page.
pub(super) fn router() -> Router<Arc<Api>> {
    FILES.iter().fold(Router::new().route(LOGIN, post(login)), |router, file| {
        router.route(file.path, get(async move |headers: HeaderMap| answer(file, &headers)))
    })
}

fn answer(file: &File, headers: &HeaderMap) -> Response {
    let tag = tag(file.bytes);
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known =
        known.flat_map(|value| value.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(CONTENT_TYPE, file.content_type)], file.bytes).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Asked for each time, so that another gotrace's is never shown.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(ETAG, tag);
    }
    response
}

/// Tells a file from others by its content.
fn tag(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("\"{digits}\"")
}

/// Gives a browser that shows the token in a header a cookie, which stands for it from then on.
async fn login(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let rules = api.access.rules();
    let Some(token) = &rules.token else {
        return plain(StatusCode::NOT_FOUND, "there is no token: http.token_file is not set");
    };
    if !headers.get(AUTHORIZATION).is_some_and(|sent| token.is_in(sent.as_bytes())) {
        return plain(StatusCode::UNAUTHORIZED, "this is not the token of http.token_file");
    }
    let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", super::access::COOKIE, token.cookie());
    (StatusCode::NO_CONTENT, [(SET_COOKIE, cookie)]).into_response()
}
