//! Who may ask for what, and how often: looked at before a request gets to its route.
//!
//! Without keys everybody who reaches the address may do everything, which is why it is this machine's own then
//! ([`Access::may_listen`]). With keys, a request carries one, or the cookie of a browser that has shown one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use operators::clock::Clock;
use operators::error::StartError;

use super::keys::{Key, KeyHash, Role, find, presented};
use super::rate::{Limiter, Rate, Standing, Who};
use super::routes::{Answer, Refusal};
use super::sessions::{SESSION, Sessions, cookie};

/// Who may use the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Without any, everybody may do everything.
    pub keys: Vec<Key>,
    /// How often each key, or each address where there are no keys, may ask; `None` for as often as they like.
    pub rate: Option<Rate>,
    /// Whether it may listen beyond this machine, and be called by any name, also without keys.
    pub insecure: bool,
}

impl Access {
    /// Whether it is known who asks, or somebody said that it does not matter.
    pub fn is_guarded(&self) -> bool {
        !self.keys.is_empty() || self.insecure
    }

    /// Whether the engine may listen at an address.
    ///
    /// # Errors
    /// Where everybody in the network could use it.
    pub(super) fn may_listen(&self, address: SocketAddr) -> Result<(), StartError> {
        if !self.keys.is_empty() || self.insecure || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let message = format!("the engine has no keys, so it does not listen on `{address}`: others reach it there");
        Err(StartError::new(message).hint(
            "make a key with `engine key NAME >> engine.toml` and start with `--config engine.toml`; `--insecure` lets \
             everybody who reaches the address do everything",
        ))
    }
}

/// Wrong keys that one address may try.
const FAILURES: Rate = Rate::new(30, Duration::from_secs(60));

/// What anybody may ask for: whether the process lives, and how to show a key.
const OPEN: [&str; 8] =
    ["/health/live", "/health/ready", "/login", "/logout", "/page.css", "/page.js", "/docs.js", "/icon.svg"];

/// Looks at every request.
pub(super) struct Guard {
    access: Access,
    clock: Arc<dyn Clock>,
    sessions: Sessions,
    limiter: Limiter,
    failures: Limiter,
    /// What its cookie is called: cookies of a host are of all its ports.
    cookie: String,
    /// Whether the connection is encrypted, so that the cookie must never go over one that is not.
    encrypted: bool,
}

/// What the guard says of a request.
pub(super) struct Admission {
    pub result: Result<(), Refusal>,
    /// Where somebody's requests are counted.
    pub standing: Option<Standing>,
}

impl Guard {
    pub fn new(access: Access, clock: Arc<dyn Clock>, port: u16, encrypted: bool) -> Guard {
        let cookie = format!("engine_session_{port}");
        let (sessions, limiter, failures) = Default::default();
        Guard { access, clock, sessions, limiter, failures, cookie, encrypted }
    }

    /// Whether keys are asked for at all.
    pub fn has_keys(&self) -> bool {
        !self.access.keys.is_empty()
    }

    /// Whether a request may get to its route.
    pub fn admit(&self, method: &Method, path: &str, headers: &HeaderMap, peer: IpAddr) -> Admission {
        let open = |result| Admission { result, standing: None };
        if let Err(refusal) = self.is_called(headers) {
            return open(Err(refusal));
        }
        // A browser asks without a key whether it may ask with one.
        if OPEN.contains(&path) || method == Method::OPTIONS {
            return open(Ok(()));
        }
        if !self.has_keys() {
            return self.counted(Who::peer(peer), self.access.rate, Ok(()));
        }
        let number = match self.known(headers) {
            Ok(Some(number)) => number,
            Ok(None) => {
                let refusal = unauthorized("this needs a key, and there is none");
                return self.counted(Who::peer(peer), self.access.rate, Err(refusal));
            }
            Err(()) => return self.failed(peer),
        };
        let key = &self.access.keys[number];
        let needed = if matches!(*method, Method::GET | Method::HEAD) { Role::Read } else { Role::Operate };
        let result = if key.role >= needed {
            tracing::debug!(key = &*key.name, %method, path, "asked");
            Ok(())
        } else {
            let (name, role) = (&key.name, key.role.name());
            let message = format!("the key `{name}` has the role `{role}`, and {method} needs `{}`", needed.name());
            Err(Refusal::new(StatusCode::FORBIDDEN, message, "ask with a key that has `role = \"operate\"`"))
        };
        self.counted(Who::Key(number), key.rate.or(self.access.rate), result)
    }

    /// The number of the key that a request carries, none where it carries none; `Err` where it is wrong.
    fn known(&self, headers: &HeaderMap) -> Result<Option<usize>, ()> {
        match presented(headers) {
            Some(key) => find(&self.access.keys, &KeyHash::of(key)).map(Some).ok_or(()),
            // A session that is over is no attempt at anything.
            None => Ok(self.token(headers).and_then(|token| self.sessions.key(token, self.clock.now()))),
        }
    }

    fn token<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        cookie(headers, &self.cookie)
    }

    fn counted(&self, who: Who, rate: Option<Rate>, result: Result<(), Refusal>) -> Admission {
        let Some(rate) = rate else { return Admission { result, standing: None } };
        let standing = self.limiter.take(who, rate, self.clock.now());
        let result = match standing.wait {
            None => result,
            Some(wait) => Err(too_many(&format!("more than {rate} requests"), wait)),
        };
        Admission { result, standing: Some(standing) }
    }

    /// What is said of a wrong key. Whoever tries many is told to wait, right keys are not.
    fn failed(&self, peer: IpAddr) -> Admission {
        let standing = self.failures.take(Who::peer(peer), FAILURES, self.clock.now());
        let result = match standing.wait {
            None => {
                tracing::warn!(%peer, "a request with a wrong key is refused");
                Err(unauthorized("this key is not known here"))
            }
            Some(wait) => Err(too_many(&format!("more than {FAILURES} wrong keys"), wait)),
        };
        Admission { result, standing: Some(standing) }
    }

    /// Without keys, only this machine's browser may ask, and only by this machine's names: a page of anybody whose name
    /// leads to this machine would be taken for the engine's own.
    fn is_called(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.has_keys() || self.access.insecure {
            return Ok(());
        }
        let host = headers.get(header::HOST).map(HeaderValue::to_str);
        let Some(host) = host else { return Ok(()) };
        let host = host.unwrap_or("?.");
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches([']', '.']);
        // Names without a dot are of this network: nobody can buy one.
        let is_own =
            name.parse::<IpAddr>().is_ok() || !host.contains('.') || name.to_ascii_lowercase().ends_with(".localhost");
        if is_own {
            return Ok(());
        }
        let message = format!("this engine is not called `{}`", host.escape_debug());
        Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            message,
            "ask it by its number, such as http://127.0.0.1:8000; behind a proxy give it keys, or start it with `--insecure`",
        ))
    }

    /// A browser shows a key: what its cookie is to be.
    pub fn login(&self, key: &str, peer: IpAddr) -> Result<HeaderValue, Admission> {
        let Some(number) = find(&self.access.keys, &KeyHash::of(key.trim())) else { return Err(self.failed(peer)) };
        let unable = |why: &str| {
            let refusal = Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why, "look into the log");
            Admission { result: Err(refusal), standing: None }
        };
        let token = self.sessions.begin(number, self.clock.now()).map_err(|error| {
            tracing::error!(%error, "the system gives no chance");
            unable("the system gives no chance for a session")
        })?;
        tracing::info!(key = &*self.access.keys[number].name, "a browser has shown a key");
        self.set(&token, SESSION).map_err(|_| unable("the cookie cannot be written"))
    }

    /// A browser forgets its key: what its cookie is to be.
    pub fn logout(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if let Some(token) = self.token(headers) {
            self.sessions.end(token);
        }
        self.set("", Duration::ZERO).ok()
    }

    fn set(&self, token: &str, time: Duration) -> Result<HeaderValue, header::InvalidHeaderValue> {
        let (name, seconds) = (&self.cookie, time.as_secs());
        let secure = if self.encrypted { "; Secure" } else { "" };
        let mut value = HeaderValue::from_str(&format!(
            "{name}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}"
        ))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn unauthorized(error: &str) -> Refusal {
    let hint = "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`, or open `/login` in a browser";
    Refusal::new(StatusCode::UNAUTHORIZED, error, hint)
}

fn too_many(what: &str, wait: Duration) -> Refusal {
    let hint = format!("wait {} s", seconds(wait));
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, format!("{what} have come"), hint)
}

/// Whole seconds, at least one.
fn seconds(time: Duration) -> u64 {
    (time.as_secs_f64().ceil() as u64).max(1)
}

impl Standing {
    /// Tells somebody how they stand.
    pub fn stamp(&self, answer: &mut Answer) {
        let headers = answer.headers_mut();
        headers.insert("x-ratelimit-limit", self.limit.into());
        headers.insert("x-ratelimit-remaining", self.remaining.into());
        headers.insert("x-ratelimit-reset", (self.reset.as_secs_f64().ceil() as u64).into());
        if let Some(wait) = self.wait {
            headers.insert(header::RETRY_AFTER, seconds(wait).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::clock::SimulatedClock;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn key(name: &str, role: Role, rate: Option<&str>) -> Key {
        let hash = KeyHash::of(&format!("engine_{name}")).hexadecimal();
        Key::new(name, role, &hash, rate.map(|rate| rate.parse().unwrap())).unwrap()
    }

    fn guard(rate: Option<&str>) -> (Guard, SimulatedClock) {
        let clock = SimulatedClock::default();
        let keys = vec![key("looks", Role::Read, None), key("works", Role::Operate, Some("1/s"))];
        let access = Access { keys, rate: rate.map(|rate| rate.parse().unwrap()), insecure: false };
        (Guard::new(access, Arc::new(clock.clone()), 8000, true), clock)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    /// The status that a request gets, 200 for none; and how its sender stands.
    fn asked(guard: &Guard, method: Method, path: &str, with: &[(&'static str, &str)]) -> (u16, Option<u32>) {
        let Admission { result, standing } = guard.admit(&method, path, &headers(with), PEER);
        (result.err().map_or(200, |refusal| refusal.status.as_u16()), standing.map(|standing| standing.remaining))
    }

    const LOOKS: (&str, &str) = ("authorization", "Bearer engine_looks");
    const WORKS: (&str, &str) = ("x-api-key", "engine_works");

    #[test]
    fn who_reads_does_not_change() {
        let (guard, _) = guard(None);
        for path in ["/stats", "/metrics", "/events", "/", "/graphs/door", "/health", "/nothing"] {
            assert_eq!(asked(&guard, Method::GET, path, &[]).0, 401, "{path}");
            assert_eq!(asked(&guard, Method::GET, path, &[LOOKS]).0, 200, "{path}");
            assert_eq!(asked(&guard, Method::HEAD, path, &[LOOKS]).0, 200, "{path}");
        }
        for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
            assert_eq!(asked(&guard, method.clone(), "/graphs/door", &[]).0, 401, "{method}");
            assert_eq!(asked(&guard, method.clone(), "/graphs/door", &[LOOKS]).0, 403, "{method}");
        }
        assert_eq!(asked(&guard, Method::PUT, "/graphs/door", &[WORKS]), (200, Some(0)));
        for path in ["/health/live", "/health/ready", "/page.css"] {
            assert_eq!(asked(&guard, Method::GET, path, &[]).0, 200, "{path}");
        }
        assert_eq!(asked(&guard, Method::OPTIONS, "/graphs/door", &[]).0, 200, "browsers ask before they ask");
    }

    #[test]
    fn a_wrong_key_does_not_fall_back_to_a_right_one() {
        let (guard, clock) = guard(None);
        let token = guard.login("engine_looks", PEER).map_err(|_| ()).unwrap();
        let cookie = token.to_str().unwrap().split(';').next().unwrap().to_owned();
        assert_eq!(asked(&guard, Method::GET, "/stats", &[("cookie", &cookie)]).0, 200);
        assert_eq!(
            asked(&guard, Method::PUT, "/graphs/a", &[("cookie", &cookie)]).0,
            403,
            "a session has its key's role"
        );
        assert_eq!(asked(&guard, Method::GET, "/stats", &[("cookie", &cookie), ("x-api-key", "engine_")]).0, 401);
        clock.advance(SESSION);
        assert_eq!(asked(&guard, Method::GET, "/stats", &[("cookie", &cookie)]).0, 401);
    }

    #[test]
    fn the_cookie_is_for_this_engine_and_no_script() {
        let (guard, _) = guard(None);
        let cookie = guard.login(" engine_works\n", PEER).map_err(|_| ()).unwrap();
        let text = cookie.to_str().unwrap();
        assert!(text.starts_with("engine_session_8000=") && !text.contains("engine_works"), "{text}");
        assert!(text.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure"), "{text}");
        let sent = headers(&[("cookie", text.split(';').next().unwrap())]);
        assert_eq!(guard.admit(&Method::GET, "/stats", &sent, PEER).result, Ok(()));
        assert!(guard.logout(&sent).unwrap().to_str().unwrap().contains("Max-Age=0"));
        assert!(guard.admit(&Method::GET, "/stats", &sent, PEER).result.is_err());
    }

    #[test]
    fn each_key_has_its_rate() {
        let (guard, clock) = guard(Some("2/s"));
        assert_eq!(asked(&guard, Method::GET, "/stats", &[LOOKS]), (200, Some(1)));
        assert_eq!(asked(&guard, Method::GET, "/stats", &[WORKS]), (200, Some(0)), "its own");
        assert_eq!(asked(&guard, Method::GET, "/stats", &[WORKS]), (429, Some(0)));
        assert_eq!(asked(&guard, Method::GET, "/stats", &[LOOKS]), (200, Some(0)), "another key's is another's");
        assert_eq!(asked(&guard, Method::GET, "/stats", &[LOOKS]), (429, Some(0)));
        assert_eq!(asked(&guard, Method::GET, "/health/live", &[LOOKS]), (200, None), "not counted");
        clock.advance(Duration::from_secs(1));
        assert_eq!(asked(&guard, Method::PUT, "/graphs/a", &[LOOKS]), (403, Some(1)), "refused, and counted");
    }

    #[test]
    fn whoever_tries_many_keys_waits_and_right_keys_do_not() {
        let (guard, clock) = guard(None);
        let wrong = || asked(&guard, Method::GET, "/stats", &[("x-api-key", "engine_guess")]).0;
        assert!((0..30).all(|_| wrong() == 401));
        assert_eq!(wrong(), 429);
        assert!(guard.login("engine_guess", PEER).is_err_and(|admission| admission.standing.unwrap().wait.is_some()));
        assert_eq!(asked(&guard, Method::GET, "/stats", &[LOOKS]).0, 200);
        assert_eq!(asked(&guard, Method::GET, "/stats", &[]).0, 401);
        clock.advance(Duration::from_secs(2));
        assert_eq!(wrong(), 401);
    }

    #[test]
    fn without_keys_the_engine_goes_by_names_that_nobody_can_buy() {
        let guard = |insecure| {
            let access = Access { insecure, ..Access::default() };
            Guard::new(access, Arc::new(SimulatedClock::default()), 8000, false)
        };
        let called = |guard: &Guard, host: &str| asked(guard, Method::GET, "/stats", &[("host", host)]).0;
        let open = guard(false);
        for own in ["127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000", "engine.localhost", "x", "10.0.0.7"]
        {
            assert_eq!(called(&open, own), 200, "{own}");
        }
        for other in
            ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "evil.example.", "localhost.evil.example"]
        {
            assert_eq!(called(&open, other), 421, "{other}");
            assert_eq!(called(&guard(true), other), 200, "{other}");
        }
        assert_eq!(asked(&open, Method::PUT, "/graphs/a", &[]).0, 200);
    }

    #[test]
    fn nobody_listens_to_the_network_without_a_key() {
        let (guard, _) = guard(None);
        let (open, keys) = (Access::default(), guard.access);
        for (address, is_own) in [
            ("127.0.0.1:8000", true),
            ("[::1]:8000", true),
            ("127.8.8.8:1", true),
            ("0.0.0.0:8000", false),
            ("[::]:1", false),
            ("10.0.0.7:80", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(open.may_listen(address).is_ok(), is_own, "{address}");
            assert!(
                keys.may_listen(address).is_ok()
                    && Access { insecure: true, ..Access::default() }.may_listen(address).is_ok()
            );
        }
        assert!(!open.is_guarded() && keys.is_guarded() && Access { insecure: true, ..Access::default() }.is_guarded());
        let error = open.may_listen("0.0.0.0:8000".parse().unwrap()).unwrap_err();
        assert!(error.hint.unwrap().contains("engine key"));
    }
}
