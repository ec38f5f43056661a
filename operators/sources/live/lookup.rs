//! Looks up the name of an input's host before libav does. libav would do it where nothing can interrupt it, and its
//! "Input/output error" does not tell an unknown name from a broken cable.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::address::Address;
use crate::lock::lock;

/// Between two looks at whether to give up.
const PATIENCE: Duration = Duration::from_millis(50);

/// Why a host was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sources) enum NotFound {
    /// The system has not answered yet.
    GivenUp { host: String },
    /// The system's words.
    Unknown { host: String, why: String },
}

/// Waits until the system knows the host of `url`, where that is a name, or until `given_up`.
pub(in crate::sources) fn look_up(url: &str, given_up: &dyn Fn() -> bool) -> Result<(), NotFound> {
    match name_in(url) {
        Some(host) => find(&host, given_up, |host| (host, 0).to_socket_addrs().map(|_| ())),
        None => Ok(()),
    }
}

/// The name of the host that somebody has to look up.
fn name_in(url: &str) -> Option<String> {
    let address = Address::parse(url)?;
    // A proxy looks up the names of others.
    let through_proxy = address.scheme.starts_with("http") && std::env::var_os("http_proxy").is_some();
    let is_name = !address.host.is_empty() && address.host.parse::<IpAddr>().is_err();
    (is_name && !through_proxy).then(|| address.host.to_owned())
}

/// What the system is asked at the moment. It answers when it likes and cannot be stopped, so it is asked for one host
/// at a time, however often an input is tried: threads do not pile up.
static UNDER_WAY: Mutex<BTreeMap<String, Arc<Question>>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Question {
    answer: Mutex<Option<Result<(), String>>>,
    answered: Condvar,
}

fn find(
    host: &str,
    given_up: &dyn Fn() -> bool,
    resolve: impl FnOnce(&str) -> io::Result<()> + Send + 'static,
) -> Result<(), NotFound> {
    let question = match ask(host, resolve) {
        Ok(question) => question,
        // Without a thread libav is left to ask for itself.
        Err(_) => return Ok(()),
    };
    let mut answer = lock(&question.answer);
    loop {
        match &*answer {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => return Err(NotFound::Unknown { host: host.to_owned(), why: why.clone() }),
            None if given_up() => return Err(NotFound::GivenUp { host: host.to_owned() }),
            None => {
                let waited = question.answered.wait_timeout(answer, PATIENCE);
                answer = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// The question that is under way, or another one.
fn ask(host: &str, resolve: impl FnOnce(&str) -> io::Result<()> + Send + 'static) -> io::Result<Arc<Question>> {
    let mut under_way = lock(&UNDER_WAY);
    if let Some(question) = under_way.get(host) {
        return Ok(question.clone());
    }
    let question = Arc::new(Question::default());
    let (theirs, name) = (question.clone(), host.to_owned());
    std::thread::Builder::new().name("look-up".to_owned()).spawn(move || {
        let answer = resolve(&name).map_err(|error| {
            let why = error.to_string();
            why.strip_prefix("failed to lookup address information: ").unwrap_or(&why).to_owned()
        });
        lock(&UNDER_WAY).remove(&name);
        *lock(&theirs.answer) = Some(answer);
        theirs.answered.notify_all();
    })?;
    under_way.insert(host.to_owned(), question.clone());
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc;

    #[test]
    fn only_names_are_looked_up() {
        assert_eq!(name_in("rtsp://u:p@door.example:554/main").as_deref(), Some("door.example"));
        for known in ["rtsp://10.0.0.7/main", "srt://[fe80::1]:9000", "udp://@:5000", "door.sdp"] {
            assert_eq!(name_in(known), None, "{known}");
            assert_eq!(look_up(known, &|| panic!("nobody waits")), Ok(()));
        }
    }

    #[test]
    fn an_unknown_name_is_named_with_the_cause() {
        let system = |_: &str| Err(io::Error::other("failed to lookup address information: Name or service not known"));
        let unknown =
            NotFound::Unknown { host: "nowhere.test".to_owned(), why: "Name or service not known".to_owned() };
        assert_eq!(find("nowhere.test", &|| false, system), Err(unknown));
    }

    #[test]
    fn a_silent_system_is_asked_once_and_waited_for_as_long_as_the_caller_likes() {
        let (answer, answers) = mpsc::sync_channel::<()>(1);
        let looks = Cell::new(0);
        let after_some_looks = || {
            looks.set(looks.get() + 1);
            looks.get() > 2
        };
        let given_up = Err(NotFound::GivenUp { host: "silent.test".to_owned() });
        let system = move |_: &str| answers.recv().map_err(io::Error::other);
        assert_eq!(find("silent.test", &after_some_looks, system), given_up);
        assert_eq!(looks.get(), 3);
        let another = |_: &str| panic!("the first question is under way");
        assert_eq!(find("silent.test", &|| true, another), given_up);
        answer.send(()).unwrap();
        // The answer is the first question's, or, where that is over, this one's.
        assert_eq!(find("silent.test", &|| false, |_| Ok(())), Ok(()));
    }
}
