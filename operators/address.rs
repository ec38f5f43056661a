//! URLs of inputs: their parts, and the credentials in them, which nobody may see.

use std::net::Ipv4Addr;
use std::ops::Range;

/// What stands for a credential.
const COVER: &str = "[secret]";
/// Parameters whose names have one of these in them carry a credential.
const SECRET_PARAMETERS: [&str; 8] = ["pass", "pwd", "token", "secret", "key", "auth", "sig", "user"];

/// The parts of `scheme://userinfo@host:port/path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    pub scheme: &'a str,
    /// Empty where only a port is named, as in `udp://@:5000`.
    pub host: &'a str,
    /// What follows the host's colon: a port, unless the URL is wrong.
    pub port: Option<&'a str>,
}

impl<'a> Address<'a> {
    /// `None` where `url` has no scheme, or neither a host nor a port.
    pub fn parse(url: &'a str) -> Option<Address<'a>> {
        let (scheme, rest) = url.split_once("://")?;
        let valid = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(valid) {
            return None;
        }
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        // An IPv6 address stands in brackets and has colons itself.
        let (host, rest) = match host.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => host.split_at(host.find(':').unwrap_or(host.len())),
        };
        let port = rest.strip_prefix(':').filter(|port| !port.is_empty());
        let is_somewhere = !host.is_empty() || port.is_some();
        (is_somewhere && !host.contains(char::is_whitespace)).then_some(Address { scheme, host, port })
    }
}

/// `text` with the credentials of every URL in it covered: user and password before the host, also where characters in
/// them should have been escaped, and parameters of the path and of the query such as `password=`.
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
        let end = end_of_url(text, from + at, start);
        let authority_end = start + text[start..end].find(['/', '?', '#']).unwrap_or(end - start);
        let mut rest = authority_end;
        if let Some(at) = end_of_user(&text[start..end], authority_end - start).map(|at| start + at) {
            found.push(start..at);
            rest = rest.max(at + 1);
        }
        parameters(text, rest..end, &mut found);
        from = end.max(start);
    }
    found
}

/// Where the URL ends whose `://` stands at `colon`: where the quotes around it end, or else with the word.
fn end_of_url(text: &str, colon: usize, start: usize) -> usize {
    let scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let before = text[..colon].trim_end_matches(scheme).chars().next_back();
    if let Some(quote) = before.filter(|c| matches!(c, '"' | '\'' | '`'))
        && let Some(length) = text[start..].find([quote, '\n']).filter(|at| text[start + at..].starts_with(quote))
    {
        return start + length;
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    start + text[start..].find(ends).unwrap_or(text.len() - start)
}

/// Where in `url`, which starts behind the scheme, the `@` behind user and password stands.
fn end_of_user(url: &str, authority_end: usize) -> Option<usize> {
    if let Some(at) = url[..authority_end].rfind('@') {
        return (at > 0).then_some(at);
    }
    // A password with a `/`, `?` or `#` in it ends the authority too early. What then looks like a port is none.
    let authority = &url[..authority_end];
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "0"));
    let is_broken = port.parse::<u16>().is_err();
    if authority.starts_with('[') || (!is_broken && host.parse::<Ipv4Addr>().is_ok()) {
        return None;
    }
    let query = url.find('?').unwrap_or(url.len());
    let in_all = url.rfind('@').filter(|at| is_broken || !url[query.min(*at)..*at].contains('='));
    in_all.or_else(|| url[..query].rfind('@'))
}

/// Values of parameters that carry credentials, as `&password=x` in a query or `/user=x_password=y` in a path.
fn parameters(text: &str, within: Range<usize>, found: &mut Vec<Range<usize>>) {
    let query = text[within.clone()].find('?').map_or(within.end, |at| within.start + at);
    let mut from = within.start;
    while let Some(equals) = text[from..within.end].find('=').map(|at| from + at) {
        let name = &text[from..equals];
        let name = name.rsplit(['/', '?', '#', '&', ';']).next().unwrap_or(name).to_ascii_lowercase();
        from = equals + 1;
        if SECRET_PARAMETERS.iter().any(|word| name.contains(word)) {
            let value = &text[from..within.end];
            let end = value.char_indices().find(|(at, c)| ends_value(&value[*at..], *c, equals > query));
            let end = from + end.map_or(value.len(), |(at, _)| at);
            if end > from {
                found.push(from..end);
            }
            from = end;
        }
    }
}

/// Whether `rest`, which starts with `first`, is behind the value of a parameter.
fn ends_value(rest: &str, first: char, in_query: bool) -> bool {
    // A password may have such a character in it: it separates only where another parameter follows.
    let leads_on = || {
        let rest = &rest[1..];
        let name = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
        name.len() < rest.len()
            && name.strip_prefix('=').is_some_and(|value| !value.is_empty() && !value.starts_with('='))
    };
    match first {
        '&' => true,
        ';' => leads_on(),
        '/' | '?' => !in_query,
        '_' => !in_query && leads_on(),
        _ => false,
    }
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
        assert_eq!(parsed("udp://@:5000"), Some(("udp", "")));
        let port = |url| Address::parse(url).and_then(|address| address.port);
        assert_eq!(port("srt://[fe80::1]:9000?mode=listener"), Some("9000"));
        assert_eq!(port("rtsp://admin:pa/ss@h/x"), Some("pa"));
        assert_eq!((port("rtsp://h/x"), port("rtsp://h:/x")), (None, None));
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
            ("rtsp://admin:pa/ss@127.0.0.1:9/x", "rtsp://[secret]@127.0.0.1:9/x"),
            ("rtsp://admin:p?a=#s/s@10.0.0.7/x", "rtsp://[secret]@10.0.0.7/x"),
            ("rtsp://admin:12#3@10.0.0.7/x", "rtsp://[secret]@10.0.0.7/x"),
            ("rtsp://admin:1?3@10.0.0.7/x", "rtsp://[secret]@10.0.0.7/x"),
            ("'rtsp://admin:it`s my@10.0.0.7/x' is lost", "'rtsp://[secret]@10.0.0.7/x' is lost"),
            ("srt://h:9000?streamid=a@b", "srt://h:9000?streamid=a@b"),
            ("udp://@:5000", "udp://@:5000"),
            ("rtsp://[fe80::1]:554/x@2", "rtsp://[fe80::1]:554/x@2"),
            ("rtsp://10.0.0.7:554/x@2", "rtsp://10.0.0.7:554/x@2"),
            (
                "rtsp://127.0.0.1:9/user=admin&password=topsecret&channel=1",
                "rtsp://127.0.0.1:9/user=[secret]&password=[secret]&channel=1",
            ),
            (
                "rtsp://h:554/user=admin_password=top_secret_channel=1_stream=0.sdp?real_stream",
                "rtsp://h:554/user=[secret]_password=[secret]_channel=1_stream=0.sdp?real_stream",
            ),
            ("http://h/token=ab_cd==/x.m3u8?n=1;pwd=a;b;c=2", "http://h/token=[secret]/x.m3u8?n=1;pwd=[secret];c=2"),
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
            ("'rtsp://admin:pa/ss@h:9/x'", "'rtsp://*****:*****@h:9/x'"),
            ("'rtsp://h/user=me&password=top:1&channel=1'", "'rtsp://h/user=**&password=***:*&channel=1'"),
            ("'rtsp://h/user=me&password=${env.P}&channel=1'", "'rtsp://h/user=**&password=${env.P}&channel=1'"),
        ] {
            let got = masked_in_place(text);
            assert_eq!(got, covered);
            assert_eq!(got.len(), text.len());
        }
    }
}
