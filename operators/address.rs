//! URLs of inputs: their parts, and the credentials in them, which nobody may see.

use std::ops::Range;

/// What stands for a credential.
const COVER: &str = "[secret]";
/// Parameters of a query whose names have one of these in them carry a credential.
const SECRET_PARAMETERS: [&str; 8] = ["pass", "pwd", "token", "secret", "key", "auth", "sig", "user"];

/// The parts of `scheme://userinfo@host:port/path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    pub scheme: &'a str,
    pub host: &'a str,
}

impl<'a> Address<'a> {
    /// `None` where `url` has no scheme or no host.
    pub fn parse(url: &'a str) -> Option<Address<'a>> {
        let (scheme, rest) = url.split_once("://")?;
        let valid = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(valid) {
            return None;
        }
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        // An IPv6 address stands in brackets and has colons itself.
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?.0,
            None => host.split_once(':').map_or(host, |(host, _)| host),
        };
        (!host.is_empty() && !host.contains(char::is_whitespace)).then_some(Address { scheme, host })
    }
}

/// `text` with the credentials of every URL in it covered: user and password before the host, and parameters of the
/// query such as `password=`.
pub fn masked(text: &str) -> String {
    let mut covered = text.to_owned();
    for credential in credentials(text).into_iter().rev() {
        covered.replace_range(credential, COVER);
    }
    covered
}

/// As [`masked`], but every place in the text stays where it is: for the text of a graph file in a diagnostic.
/// References such as `${env.PASSWORD}` stay readable.
pub fn masked_in_place(text: &str) -> String {
    let mut covered = text.to_owned();
    for credential in credentials(text) {
        for part in parts(text, credential) {
            if !text[part.clone()].contains("${") {
                covered.replace_range(part.clone(), &"*".repeat(part.len()));
            }
        }
    }
    covered
}

/// Where a credential stands that somebody has covered with stars: a text that was shown, and not what it was made of.
pub fn covered(text: &str) -> Option<Range<usize>> {
    let is_covered = |part: &Range<usize>| !part.is_empty() && text[part.clone()].bytes().all(|byte| byte == b'*');
    credentials(text).into_iter().find(|credential| parts(text, credential.clone()).iter().any(is_covered))
}

/// User and password of `user:password`.
fn parts(text: &str, credential: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = credential.start;
    for (at, _) in text[credential.clone()].match_indices(':') {
        // The colon of `${env.X:-default}` separates nothing.
        if text[credential.start + at..].starts_with(":-") {
            continue;
        }
        parts.push(start..credential.start + at);
        start = credential.start + at + 1;
    }
    parts.push(start..credential.end);
    parts
}

/// Where credentials stand in `text`, in ascending order.
fn credentials(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + 3;
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
        let end = start + text[start..].find(ends).unwrap_or(text.len() - start);
        let authority_end = start + text[start..end].find(['/', '?', '#']).unwrap_or(end - start);
        if let Some(at) = text[start..authority_end].rfind('@').filter(|at| *at > 0) {
            found.push(start..start + at);
        }
        if let Some(query) = text[authority_end..end].find('?') {
            let mut begin = authority_end + query + 1;
            for pair in text[begin..end].split('&') {
                if let Some((name, value)) = pair.split_once('=') {
                    let lower = name.to_ascii_lowercase();
                    if !value.is_empty() && SECRET_PARAMETERS.iter().any(|word| lower.contains(word)) {
                        found.push(begin + name.len() + 1..begin + pair.len());
                    }
                }
                begin += pair.len() + 1;
            }
        }
        from = end.max(start);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        let parsed = |url| Address::parse(url).map(|address| (address.scheme, address.host));
        assert_eq!(parsed("rtsp://u:p@10.0.0.7:554/main"), Some(("rtsp", "10.0.0.7")));
        assert_eq!(parsed("rtsp://u:p@ss@door.example"), Some(("rtsp", "door.example")));
        assert_eq!(parsed("rtsp://[fe80::1]:554/main"), Some(("rtsp", "fe80::1")));
        assert_eq!(parsed("srt://cam?mode=caller"), Some(("srt", "cam")));
        for none in ["video.mp4", "rtsp://", "rtsp:///main", "://x", "1x://h", "rtsp://a b/c"] {
            assert_eq!(parsed(none), None, "{none}");
        }
    }

    #[test]
    fn credentials_are_covered_wherever_they_stand() {
        for (text, covered) in [
            ("rtsp://10.0.0.7/main", "rtsp://10.0.0.7/main"),
            ("rtsp://admin:12345@10.0.0.7/main", "rtsp://[secret]@10.0.0.7/main"),
            ("rtsp://admin:p@ss@10.0.0.7/main@2", "rtsp://[secret]@10.0.0.7/main@2"),
            (
                "cannot open 'http://u@h/x' or \"rtmp://a:b@h\"",
                "cannot open 'http://[secret]@h/x' or \"rtmp://[secret]@h\"",
            ),
            (
                "rtsp://h/cam?channel=1&user=admin&password=12345",
                "rtsp://h/cam?channel=1&user=[secret]&password=[secret]",
            ),
            ("srt://h:9000?passphrase=long%20one&mode=caller", "srt://h:9000?passphrase=[secret]&mode=caller"),
            ("nothing here", "nothing here"),
        ] {
            assert_eq!(masked(text), covered);
        }
    }

    #[test]
    fn what_was_covered_is_found_again() {
        for text in ["url = \"rtsp://admin:12345@h/x?token=abc\"", "rtsp://admin@h"] {
            assert_eq!(covered(text), None, "{text}");
            assert!(covered(&masked_in_place(text)).is_some(), "{text}");
        }
        assert_eq!(covered("rtsp://${env.USER}:${env.PASSWORD}@h/x*"), None);
    }

    #[test]
    fn in_place_nothing_moves_and_references_stay() {
        for (text, covered) in [
            ("url = \"rtsp://admin:häse@h/x\" # y", "url = \"rtsp://*****:*****@h/x\" # y"),
            ("rtsp://${env.USER}:${env.PASSWORD}@h/x", "rtsp://${env.USER}:${env.PASSWORD}@h/x"),
            ("rtsp://${env.USER:-me}:12345@h/x", "rtsp://${env.USER:-me}:*****@h/x"),
        ] {
            let got = masked_in_place(text);
            assert_eq!(got, covered);
            assert_eq!(got.len(), text.len());
        }
    }
}
