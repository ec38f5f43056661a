//! Which hosts may be talked to, where not everybody's word counts: a graph that comes over HTTP names only those that
//! the process was told to allow.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A list of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hosts {
    #[default]
    Anything,
    Only(Vec<HostPattern>),
}

/// A host, or many by one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`
    Any,
    /// `*.example.org`: every name that ends in `.example.org`.
    Below(String),
    /// A name, in small letters.
    Name(String),
    /// `10.0.0.0/8`, or one address: the bits that count, and how many they are.
    Network { address: IpAddr, bits: u8 },
}

impl Hosts {
    /// Whether a host may be talked to, as it stands in a URL. A name is not looked up: who allows a name allows what
    /// its owner makes of it.
    pub fn allow(&self, host: &str) -> bool {
        let Hosts::Only(patterns) = self else { return true };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        patterns.iter().any(|pattern| match (pattern, address) {
            (HostPattern::Any, _) => true,
            (HostPattern::Network { address, bits }, Some(other)) => in_network(*address, *bits, other),
            (HostPattern::Name(name), None) => *name == host,
            (HostPattern::Below(domain), None) => {
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            _ => false,
        })
    }
}

fn in_network(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let cut = |address: u32| address.checked_shr(32 - u32::from(bits)).unwrap_or(0);
            cut(network.into()) == cut(address.into())
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let cut = |address: u128| address.checked_shr(128 - u32::from(bits)).unwrap_or(0);
            cut(network.into()) == cut(address.into())
        }
        _ => false,
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPattern, String> {
        let wrong = || {
            format!(
                "`{text}` is no host; write a name, `*.example.org`, an address, a network such as 10.0.0.0/8, or `*`"
            )
        };
        let text = text.trim();
        if text == "*" {
            return Ok(HostPattern::Any);
        }
        let (number, bits) = text.split_once('/').map_or((text, None), |(number, bits)| (number, Some(bits)));
        let number = number.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(number);
        if let Ok(address) = number.parse::<IpAddr>() {
            let address = address.to_canonical();
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
            return if bits <= most { Ok(HostPattern::Network { address, bits }) } else { Err(wrong()) };
        }
        let name = text.strip_prefix("*.").unwrap_or(text).to_ascii_lowercase();
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !name.starts_with('.')
            && !name.ends_with('.');
        match is_name {
            false => Err(wrong()),
            true if text.starts_with("*.") => Ok(HostPattern::Below(name)),
            true => Ok(HostPattern::Name(name)),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => formatter.write_str("*"),
            HostPattern::Below(domain) => write!(formatter, "*.{domain}"),
            HostPattern::Name(name) => formatter.write_str(name),
            HostPattern::Network { address, bits } => write!(formatter, "{address}/{bits}"),
        }
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HostPattern, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, host: &str) -> bool {
        Hosts::Only(vec![pattern.parse().unwrap()]).allow(host)
    }

    #[test]
    fn hosts_are_allowed_by_name_by_domain_and_by_network() {
        for (pattern, host, allowed) in [
            ("*", "anything.example", true),
            ("*", "::1", true),
            ("camera", "camera", true),
            ("camera", "CAMERA.", true),
            ("camera", "camera.example", false),
            ("Example.org", "example.org", true),
            ("example.org", "a.example.org", false),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "a.b.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*.example.org", "badexample.org", false),
            ("*.example.org", "example.org.evil", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.70", false),
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "167838211", false),
            ("10.0.0.0/8", "0x0a.1.2.3", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
            ("[::1]", "::1", true),
            ("camera", "", false),
        ] {
            assert_eq!(allows(pattern, host), allowed, "{pattern} {host}");
        }
        assert!(Hosts::Anything.allow("x") && !Hosts::Only(Vec::new()).allow("x"));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for wrong in ["", "*.", "a b", "10.0.0.0/33", "10.0.0.0/x", "::/129", "*.*", "http://a", "a/b", ".a", "*x"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong}");
        }
        for right in ["*", "*.example.org", "camera-1", "10.0.0.0/8", "fd00::/8"] {
            assert_eq!(right.parse::<HostPattern>().unwrap().to_string(), right);
        }
    }
}
