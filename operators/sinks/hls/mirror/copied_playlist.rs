//! How a playlist and its files are called in a copy, which has no queries in its addresses.

/// What a playlist says to those who ask the engine itself.
pub const IS_LIVE_ONLY: [&str; 5] =
    ["#EXT-X-PART", "#EXT-X-PRELOAD-HINT", "#EXT-X-SERVER-CONTROL", "#EXT-X-RENDITION-REPORT", "#EXT-X-SKIP"];
/// What it says of the segment that follows.
pub const IS_OF_SEGMENT: [&str; 4] = ["#EXT-X-DISCONTINUITY", "#EXT-X-PROGRAM-DATE-TIME", "#EXTINF", GAP];
pub const GAP: &str = "#EXT-X-GAP";

pub fn is_live(playlist: &str) -> bool {
    !playlist.contains("#EXT-X-PLAYLIST-TYPE")
}

/// The address of an initialisation, in the line that names it.
pub fn map_of(line: &str) -> Option<&str> {
    line.strip_prefix("#EXT-X-MAP:URI=\"")?.split('"').next()
}

/// The addresses of all that a playlist lists, but of those segments that it says are lost.
pub fn addresses(playlist: &str) -> impl Iterator<Item = &str> {
    let mut is_gap = false;
    playlist.lines().filter_map(move |line| {
        is_gap |= line == GAP;
        match map_of(line) {
            Some(map) => Some(map),
            None if line.starts_with('#') => None,
            None => Some(line).filter(|_| !std::mem::take(&mut is_gap)),
        }
    })
}

/// The number of a segment, in its name in the copy.
pub fn number_of(name: &str) -> Option<u64> {
    name.split(['-', '.']).next()?.parse().ok()
}

/// The name of a file, and its version.
pub fn parts_of(address: &str) -> (&str, Option<&str>) {
    match address.split_once("?v=") {
        Some((name, version)) => (name, Some(version)),
        None => (address, None),
    }
}

/// The name that a file has in the copy: with its version, since a web server of files does not look at queries.
pub fn copied_name(address: &str) -> String {
    let (name, version) = parts_of(address);
    with_version(name, version)
}

pub fn with_version(name: &str, version: Option<&str>) -> String {
    match (name.rsplit_once('.'), version) {
        (Some((stem, extension)), Some(version)) => format!("{stem}-{version}.{extension}"),
        _ => name.to_owned(),
    }
}

pub fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "ts")) => "video/mp2t",
        Some((_, "mp4")) => "video/mp4",
        _ => "video/iso.segment",
    }
}
