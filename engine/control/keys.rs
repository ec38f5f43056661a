//! API keys: who may look, and who may change anything.
//!
//! The engine knows the SHA-256 of each key and never the key itself. A key is 256 bits of chance, so that its hash need
//! not be slow: nobody can try them all.

use std::fmt;
use std::sync::Arc;

use hyper::header::{self, HeaderMap};
use operators::item::is_name;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::rate::Rate;

/// What the holder of a key may do. The later one may do all that the earlier one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `GET` and `HEAD`.
    Read,
    /// Everything.
    Operate,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Operate => "operate",
        }
    }
}

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of the key itself.
    pub fn of(key: &str) -> KeyHash {
        KeyHash(Sha256::digest(key.as_bytes()).into())
    }

    /// Of the 64 hexadecimal digits that `engine key` prints.
    pub fn parse(text: &str) -> Option<KeyHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).ok().map(|()| KeyHash(bytes))
    }

    /// As [`KeyHash::parse`] reads it.
    pub fn hexadecimal(&self) -> String {
        hex::encode(self.0)
    }
}

/// A hash tells nothing, and yet it has no place in a log.
impl fmt::Debug for KeyHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyHash")
    }
}

/// A key that the engine takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Says in the log who it was.
    pub name: Arc<str>,
    pub role: Role,
    pub hash: KeyHash,
    /// In the place of the rate that all keys have.
    pub rate: Option<Rate>,
}

impl Key {
    /// The key whose hash is `sha256`.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn new(name: &str, role: Role, sha256: &str, rate: Option<Rate>) -> Result<Key, String> {
        if !is_name(name) {
            let name = name.escape_debug();
            return Err(format!("`{name}` cannot name a key; use 1 to 128 of `A-Z a-z 0-9 _ . -`"));
        }
        let hash = KeyHash::parse(sha256).ok_or_else(|| {
            format!("`sha256` of the key `{name}` is no SHA-256; `engine key {name}` prints 64 hexadecimal digits")
        })?;
        Ok(Key { name: name.into(), role, hash, rate })
    }
}

/// The number of the key with this hash. All keys are looked at, and all their bytes, however soon one differs.
pub(super) fn find(keys: &[Key], hash: &KeyHash) -> Option<usize> {
    let mut found = None;
    for (number, key) in keys.iter().enumerate() {
        if bool::from(key.hash.0.ct_eq(&hash.0)) {
            found = Some(number);
        }
    }
    found
}

/// What begins every key: whoever finds one in a log or in a repository knows what it is.
const BEGINNING: &str = "engine_";

/// A new key, out of the system's source of chance.
///
/// # Errors
/// Where the system has none.
pub fn make() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{BEGINNING}{}", hex::encode(bytes)))
}

/// The key that a request carries in its headers, whatever it is worth.
pub(super) fn presented(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        // What cannot be read is no key, and yet somebody tried.
        let text = value.to_str().unwrap_or_default();
        let bearer = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        return Some(bearer.map_or("", |(_, key)| key.trim()));
    }
    headers.get("x-api-key").map(|value| value.to_str().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_key_is_found_by_its_hash_alone() {
        let (one, other) = (make().unwrap(), make().unwrap());
        assert!(one != other && one.starts_with(BEGINNING) && one.len() == BEGINNING.len() + 64, "{one}");
        let key = |name: &str, key: &str| Key::new(name, Role::Read, &KeyHash::of(key).hexadecimal(), None).unwrap();
        let keys = [key("one", &one), key("other", &other)];
        assert_eq!(find(&keys, &KeyHash::of(&one)), Some(0));
        assert_eq!(find(&keys, &KeyHash::of(&other)), Some(1));
        for wrong in ["", "engine_", &one[1..], &keys[0].hash.hexadecimal()] {
            assert_eq!(find(&keys, &KeyHash::of(wrong)), None, "{wrong}");
        }
        assert!(!format!("{keys:?}").contains(&keys[0].hash.hexadecimal()));
    }

    #[test]
    fn the_hash_is_what_other_programs_make_of_it() {
        assert_eq!(
            KeyHash::of("abc").hexadecimal(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "the example of FIPS 180"
        );
    }

    #[test]
    fn mistakes_in_a_key_say_what_to_write() {
        let hash = KeyHash::of("x").hexadecimal();
        assert!(Key::new("a b", Role::Read, &hash, None).unwrap_err().contains("cannot name a key"));
        for wrong in ["", "abc", &hash[1..], "zz"] {
            assert!(Key::new("door", Role::Read, wrong, None).unwrap_err().contains("engine key door"), "{wrong}");
        }
        assert!(Role::Read < Role::Operate);
    }

    #[test]
    fn a_request_carries_its_key_in_one_of_two_headers() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect()
        };
        assert_eq!(presented(&HeaderMap::new()), None);
        for (name, value, key) in [
            ("authorization", "Bearer engine_1", "engine_1"),
            ("authorization", "bearer  engine_1 ", "engine_1"),
            ("authorization", "Basic YTpi", ""),
            ("authorization", "engine_1", ""),
            ("x-api-key", "engine_1", "engine_1"),
        ] {
            assert_eq!(presented(&headers(&[(name, value)])), Some(key), "{name}: {value}");
        }
        let both = headers(&[("x-api-key", "engine_1"), ("authorization", "Bearer engine_2")]);
        assert_eq!(presented(&both), Some("engine_2"));
    }
}
