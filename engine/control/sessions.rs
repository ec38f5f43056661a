//! Browsers that have shown a key: each holds a cookie with a number of chance in the key's place.
//!
//! A browser's `EventSource` and its pictures cannot send headers, and a key in an address would stand in logs and
//! histories. The cookie is sent to this engine alone, no script can read it, and it is worth nothing once the engine has
//! been started anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{self, HeaderMap};

use super::keys::KeyHash;

/// A browser shows its key again after this.
pub(super) const SESSION: Duration = Duration::from_secs(12 * 3600);
/// More browsers than this make the oldest show its key again.
const MOST_SESSIONS: usize = 1024;

struct Session {
    /// The number of the key.
    key: usize,
    until: Instant,
}

/// Who has shown which key.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<KeyHash, Session>>);

impl Sessions {
    /// Begins a session of a key; answers what its cookie holds.
    pub fn begin(&self, key: usize, now: Instant) -> Result<String, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        let token = hex::encode(bytes);
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.until > now);
        if sessions.len() >= MOST_SESSIONS
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.until).map(|(token, _)| *token)
        {
            sessions.remove(&oldest);
        }
        // Only hashes are kept and looked up, so that no comparison tells of a token.
        sessions.insert(KeyHash::of(&token), Session { key, until: now + SESSION });
        Ok(token)
    }

    /// The key of a session that is not over.
    pub fn key(&self, token: &str, now: Instant) -> Option<usize> {
        self.sessions().get(&KeyHash::of(token)).filter(|session| session.until > now).map(|session| session.key)
    }

    pub fn end(&self, token: &str) {
        self.sessions().remove(&KeyHash::of(token));
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<KeyHash, Session>> {
        // Nothing panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|cookies| cookies.split(';')).find_map(|cookie| {
        let (found, value) = cookie.trim().split_once('=')?;
        (found == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::clock::{Clock, SimulatedClock};

    #[test]
    fn a_session_lasts_as_long_as_it_should() {
        let (clock, sessions) = (SimulatedClock::default(), Sessions::default());
        let token = sessions.begin(3, clock.now()).unwrap();
        assert_eq!(sessions.key(&token, clock.now()), Some(3));
        assert_eq!(sessions.key("", clock.now()), None);
        clock.advance(SESSION - Duration::from_secs(1));
        assert_eq!(sessions.key(&token, clock.now()), Some(3));
        clock.advance(Duration::from_secs(1));
        assert_eq!(sessions.key(&token, clock.now()), None);
        let again = sessions.begin(4, clock.now()).unwrap();
        assert_eq!(sessions.sessions().len(), 1, "what is over is forgotten");
        sessions.end(&again);
        assert_eq!(sessions.key(&again, clock.now()), None);
    }

    #[test]
    fn many_browsers_fill_no_memory() {
        let (clock, sessions) = (SimulatedClock::default(), Sessions::default());
        let first = sessions.begin(0, clock.now()).unwrap();
        clock.advance(Duration::from_secs(1));
        let second = sessions.begin(0, clock.now()).unwrap();
        for _ in 0..MOST_SESSIONS - 1 {
            clock.advance(Duration::from_millis(1));
            sessions.begin(0, clock.now()).unwrap();
        }
        assert_eq!(sessions.sessions().len(), MOST_SESSIONS);
        assert_eq!((sessions.key(&first, clock.now()), sessions.key(&second, clock.now())), (None, Some(0)));
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let headers = HeaderMap::from_iter([(header::COOKIE, "a=1; engine_session_8000=xyz;b=2".parse().unwrap())]);
        assert_eq!(cookie(&headers, "engine_session_8000"), Some("xyz"));
        assert_eq!((cookie(&headers, "b"), cookie(&headers, "engine_session")), (Some("2"), None));
    }
}
