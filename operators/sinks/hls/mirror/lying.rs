//! The files that lie in the place of copies of one stream.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use super::copied_playlist::{GAP, IS_LIVE_ONLY, IS_OF_SEGMENT, copied_name, is_live, map_of};
use crate::item::StreamId;
use crate::sinks::hls::store::Published;
use crate::storage::Storage;

/// What lies in the place of copies of one stream, as far as this sink has put it there.
pub struct Lying {
    pub stream: StreamId,
    pub prefix: String,
    pub storage: Arc<dyn Storage>,
    /// What it is a copy of.
    pub published: Weak<Published>,
    /// The names of its files.
    pub stored: BTreeSet<String>,
    /// Those that were refused for good, or that it ended without: the playlist goes on without them.
    pub lacking: BTreeSet<String>,
    /// Those of what was published before, under the same name.
    pub former: BTreeSet<String>,
    /// Those that the playlist there lists.
    pub listed: BTreeSet<String>,
    /// The playlist there, of what is published now.
    pub playlist: Option<String>,
    /// Files that could not be deleted.
    pub failures: u64,
}

impl Lying {
    /// Goes on with what was left there.
    pub fn take_over(&mut self, before: Lying) {
        if Weak::ptr_eq(&self.published, &before.published) {
            *self = before;
            return;
        }
        // Of those that list everything, everything stays.
        if before.playlist.as_deref().is_none_or(is_live) {
            self.former = before.former;
            self.former.extend(before.stored);
        }
        // Its files stay until another playlist is in its place.
        self.listed = before.listed;
    }

    /// What the playlist there does not list.
    pub fn unlisted(&self) -> Vec<String> {
        self.stored.union(&self.former).filter(|name| !self.listed.contains(*name)).cloned().collect()
    }

    /// Whether a live playlist has come to its end, and files lie there that it does not list.
    pub fn is_over(&self) -> bool {
        let is_over =
            self.playlist.as_ref().is_some_and(|playlist| playlist.ends_with("#EXT-X-ENDLIST\n") && is_live(playlist));
        is_over && !self.unlisted().is_empty()
    }

    /// Where a live playlist has come to its end, deletes all files that it does not list.
    pub async fn clean(&mut self) {
        if self.is_over() {
            self.delete(self.unlisted()).await;
        }
    }

    /// Deletes these files. What stays is tried again with the next look, if that may help.
    pub async fn delete(&mut self, names: Vec<String>) {
        for name in names {
            if let Err(error) = self.storage.delete(&self.key(&name)).await {
                self.failures += 1;
                if self.failures.is_power_of_two() {
                    let failures = self.failures;
                    tracing::warn!(stream = %self.stream, failures, "what no playlist lists any more is not deleted: {error}");
                }
                if error.is_temporary() {
                    return;
                }
            }
            self.stored.remove(&name);
            self.former.remove(&name);
        }
    }

    pub fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// A playlist with the names that files have here, as far as those are here, with gaps for what is lacking; those
    /// names, and whether it is the whole. `None` where nothing that it lists is here.
    pub fn copied(&self, playlist: &str) -> Option<(String, BTreeSet<String>, bool)> {
        let (mut copied, mut names, mut is_whole) = (String::with_capacity(playlist.len()), BTreeSet::new(), true);
        // What stands before a segment, until it is clear that the segment follows.
        let (mut before, mut map, mut is_gap) = (String::new(), None, false);
        // Without its initialisation nobody can play a segment.
        let mut lacks_map = false;
        for line in playlist.lines().filter(|line| !IS_LIVE_ONLY.iter().any(|tag| line.starts_with(tag))) {
            if let Some(address) = map_of(line) {
                let name = copied_name(address);
                lacks_map = self.lacking.contains(&name);
                if !lacks_map {
                    before.push_str(&format!("#EXT-X-MAP:URI=\"{name}\"\n"));
                }
                map = Some(name).filter(|_| !lacks_map);
            } else if line.starts_with('#') {
                let is_of_segment =
                    IS_OF_SEGMENT.iter().any(|tag| line == *tag || line.starts_with(&format!("{tag}:")));
                is_gap |= line == GAP;
                let text = if is_of_segment { &mut before } else { &mut copied };
                text.push_str(line);
                text.push('\n');
            } else {
                let name = copied_name(line);
                let (is_told, is_lacking) = (std::mem::take(&mut is_gap), lacks_map || self.lacking.contains(&name));
                let is_here = self.stored.contains(&name) && !lacks_map;
                if !(is_here || is_told || is_lacking) || map.as_ref().is_some_and(|map| !self.stored.contains(map)) {
                    is_whole = false;
                    break;
                }
                copied.push_str(&before);
                if is_lacking && !is_told {
                    copied.push_str(&format!("{GAP}\n"));
                }
                copied.push_str(&name);
                copied.push('\n');
                before.clear();
                names.extend(map.take().into_iter().chain(Some(name).filter(|_| is_here)));
            }
        }
        (!names.is_empty()).then_some((copied, names, is_whole))
    }
}
