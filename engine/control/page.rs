//! The page for people at `/`: a few small files from `web/`, in the binary.
//!
//! A browser asks each time whether it has the current ones, by their tag, so that a new engine never meets an old
//! page. The policy lets the page talk to nobody but the engine that served it.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::routes::Answer;

struct File {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const FILES: [File; 6] = [
    File { path: "/", content_type: "text/html; charset=utf-8", content: include_str!("../../web/index.html") },
    File { path: "/page.css", content_type: "text/css; charset=utf-8", content: include_str!("../../web/page.css") },
    File {
        path: "/page.js",
        content_type: "text/javascript; charset=utf-8",
        content: include_str!("../../web/page.js"),
    },
    File { path: "/icon.svg", content_type: "image/svg+xml", content: include_str!("../../web/icon.svg") },
    File { path: "/docs", content_type: "text/html; charset=utf-8", content: include_str!("../../web/docs.html") },
    File {
        path: "/docs.js",
        content_type: "text/javascript; charset=utf-8",
        content: include_str!("../../web/docs.js"),
    },
];

/// The form for a key. `NOTICE` stands where something is said of the last one.
const LOGIN: &str = include_str!("../../web/login.html");

/// Nothing from elsewhere, nothing inline, in nobody's frame. Previews are fetched, and shown as blobs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The same for a page that has a form, which is sent to the engine that served it.
const FORM_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; \
                           frame-ancestors 'none'";

/// The form in which a browser shows a key. What is said of the last one is plain text.
pub fn login(status: StatusCode, notice: Option<&str>) -> Answer {
    let notice = notice.map(|text| text.replace('&', "&amp;").replace('<', "&lt;")).unwrap_or_default();
    let mut answer = Response::new(Full::from(LOGIN.replace("NOTICE", &notice)).boxed_unsync());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(header::CACHE_CONTROL, "no-store");
    set(header::CONTENT_SECURITY_POLICY, FORM_POLICY);
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::VARY, "accept, cookie");
    answer
}

/// The file at `path`, where there is one: whole, or the word that the browser's copy is current.
pub fn file(path: &str, request: &HeaderMap) -> Option<Answer> {
    let file = FILES.iter().find(|file| file.path == path)?;
    let tag = tag(file.content);
    let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|tags| tags.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut answer = if is_known {
        let mut answer = Response::new(Empty::new().boxed_unsync());
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer
    } else {
        Response::new(Full::from(Bytes::from_static(file.content.as_bytes())).boxed_unsync())
    };
    let headers = answer.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, file.content_type);
    set(header::CACHE_CONTROL, "no-cache");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::REFERRER_POLICY, "no-referrer");
    // `/` answers programs in JSON.
    set(header::VARY, "accept");
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    Some(answer)
}

/// Whether a request is a browser's for a page, and not a program's for data.
pub fn is_wanted(request: &HeaderMap) -> bool {
    let accepted = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|types| types.split(',')).any(|accepted| accepted.trim().starts_with("text/html"))
}

/// Names a content: another one has another tag.
fn tag(content: &str) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_browser_that_has_the_current_file_gets_no_other() {
        let first = file("/page.js", &HeaderMap::new()).unwrap();
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        let asked = |tags: &str| file("/page.js", &headers(header::IF_NONE_MATCH, tags)).unwrap().status();
        assert_eq!(asked(&tag), StatusCode::NOT_MODIFIED);
        assert_eq!(asked(&format!("\"old\", W/{tag}")), StatusCode::NOT_MODIFIED);
        assert_eq!(asked("\"old\""), StatusCode::OK);
        assert_ne!(tag, file("/page.css", &HeaderMap::new()).unwrap().headers()[header::ETAG]);
        assert!(file("/page.txt", &HeaderMap::new()).is_none());
    }

    #[test]
    fn browsers_get_the_page_and_programs_get_data() {
        assert!(is_wanted(&headers(header::ACCEPT, "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")));
        assert!(!is_wanted(&headers(header::ACCEPT, "*/*")));
        assert!(!is_wanted(&headers(header::ACCEPT, "application/json")));
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn the_form_says_what_is_wrong_as_text() {
        let answer = login(StatusCode::UNAUTHORIZED, Some("<b>&"));
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("form-action 'self'"));
        assert!(LOGIN.contains("NOTICE") && !LOGIN.contains("<script") && !LOGIN.contains("style="));
    }

    /// What the policy forbids would fail in the browser alone.
    #[test]
    fn the_files_hold_nothing_that_the_policy_forbids() {
        let html = FILES[0].content;
        for forbidden in ["style=", "<style", "onclick", "onload", "javascript:", "http://", "https://"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        for file in &FILES {
            for forbidden in ["<style", "onclick=", "onload=", "javascript:"] {
                assert!(!file.content.contains(forbidden), "{}: {forbidden}", file.path);
            }
            assert!(!file.content.contains("innerHTML") && !file.content.contains("eval("), "{}", file.path);
        }
    }
}
