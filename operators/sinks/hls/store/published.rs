//! One stream, published: its playlist, its files, and who may write them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::watch;

use super::files::{self, Files, Room, Served, Volume};
use super::{Promise, Terms, lock};
use crate::config::format_size;
use crate::item::Content;
use crate::media::fragment::Form;
use crate::sinks::hls::playlist::{self, Kind, Listed, ListedPart, Playlist, Progress};

/// A segment that is published, or where latency is to be low a part of one.
pub struct NewSegment {
    pub init: Bytes,
    pub media: Bytes,
    /// Hexadecimal SHA-256 of the media, of VOD alone: addresses of others need none.
    pub sha256: Option<String>,
    /// Microseconds.
    pub duration: i64,
    /// The longest segment of the stream, in seconds; of VOD, that follows from all.
    pub target: Option<u64>,
    /// The longest part of the stream, in microseconds; `None` for a whole segment.
    pub part_target: Option<i64>,
    /// Whether the segment is complete with it.
    pub completes: bool,
    pub is_discontinuous: bool,
    pub is_independent: bool,
    /// Whether it has pictures that are shown before the first one of its segment: what came before may be needed for them.
    pub has_leading: bool,
    pub time: SystemTime,
}

/// A segment that was to be published, and is lost: what is known of it holds its place.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// Microseconds.
    pub duration: i64,
    /// Whether something is missing before it, or it is of another format.
    pub is_discontinuous: bool,
    pub time: SystemTime,
}

/// Why a segment is not published.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{} of segments are kept on the disk already, which is all that `disk` allows", format_size(*.0))]
    Full(u64),
    #[error("another version of the graph publishes the stream already")]
    Superseded,
    #[error("the segment does not fit into `memory`, and cannot be kept in `{folder}`: {cause}")]
    Spill { folder: String, cause: std::io::Error },
}

/// What somebody asks of a file, or who reads a playlist again, of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// What a file's address has beside its name: it is that file, or none.
    pub version: Option<String>,
    /// The number of a segment, and of a part of it, that the playlist should have before it is sent.
    pub sequence: Option<u64>,
    pub part: Option<u64>,
    /// Whether segments that have been listed for long may be left out.
    pub skips: bool,
}

/// What is at a name of a stream.
pub enum Found {
    Playlist(Served),
    Init(Served),
    /// A segment, or a part of one.
    Segment(Served),
    /// It comes next: it is worth waiting for.
    Coming,
    /// So far ahead that nobody who reads the playlist would ask for it.
    TooFar,
    /// The playlist is not complete enough to be shown.
    NotYet(Kind),
    /// It has been there, and nobody can want it any more.
    Over,
    /// It could not be kept, and the playlist says so.
    Gap,
    /// Nothing of the stream can be published; why, and what to do.
    Refused {
        why: String,
        hint: String,
    },
    Unknown,
}

/// One stream, published.
pub struct Published {
    /// What those who read look at; held for a moment only, and never while the disk is waited for.
    state: Mutex<State>,
    /// Held by whoever writes, before `state`: what grows stays what it is while it is written to the disk.
    writing: Mutex<()>,
    /// Counts what changes, for those who wait.
    changes: watch::Sender<u64>,
}

/// The segment of which there are only some parts yet.
struct Growing {
    number: u64,
    map: u64,
    version: Arc<str>,
    parts: Vec<Served>,
    media: Vec<Bytes>,
}

struct State {
    terms: Terms,
    /// What is in the addresses of all that is published here but VOD, and in those of nothing else.
    token: Arc<str>,
    /// What is written.
    playlist: Option<Playlist>,
    /// What is shown while a VOD playlist is written that will take its place.
    former: Option<Playlist>,
    served: Option<Served>,
    /// Why nothing of the stream can be published as it is now, and what to do.
    refused: Option<(String, String)>,
    files: Files,
    growing: Option<Growing>,
    next: Option<u64>,
    /// Whether the next segment does not go on where the one before ended.
    is_broken: bool,
    /// When and at what time of the stream its clock was read: microseconds since then make the dates.
    anchor: Option<(SystemTime, i64)>,
    elapsed: i64,
    /// When nobody writes it any more.
    left: Option<Instant>,
    /// How often somebody began to write it.
    turn: u64,
    /// The terms of whoever writes it now, until the first segment on them.
    coming: Option<Terms>,
}

/// Clocks of cameras go wrong slowly; dates are set right where they are wrong by so much.
const MOST_DRIFT: Duration = Duration::from_secs(1);
/// Target durations that whoever waits for something new is left to wait.
const PATIENCE: u32 = 3;
/// Target durations for which an answer stays what it is, where somebody has waited for it.
const FRESH: u64 = 6;

impl Published {
    pub(super) fn new(terms: Terms) -> Published {
        let state = Mutex::new(State::new(terms));
        Published { state, writing: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// Somebody writes it, again where somebody did before: numbers go on, and this answers what has been promised. Where
    /// segments are of the same kind the playlist goes on too; else what it listed leaves with the next segment. Until that
    /// comes, whoever wrote before may still add what was under way.
    pub(super) fn resume(published: &Arc<Published>, terms: Terms) -> (Writing, Option<Promise>) {
        let mut state = lock(&published.state);
        state.turn += 1;
        (state.left, state.coming, state.refused) = (None, Some(terms), None);
        let is_live = terms.kind != Kind::Vod && state.terms.kind != Kind::Vod;
        let part = |playlist: &Playlist| playlist.part_target.filter(|_| terms.go_on(&state.terms));
        let listed = state.playlist.as_ref().filter(|_| is_live);
        let promise = listed.map(|playlist| Promise { target: playlist.target, part: part(playlist) });
        (Writing { published: published.clone(), turn: state.turn }, promise)
    }

    pub(super) fn is_written(&self) -> bool {
        lock(&self.state).left.is_none()
    }

    /// Whether nothing of it can be published, and nothing is.
    pub fn is_refused(&self) -> bool {
        let state = lock(&self.state);
        state.refused.is_some() && state.served.is_none()
    }

    pub(in crate::sinks::hls) fn is_forgotten(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        // Of a stream that was refused it is said why for as long as its graph is there.
        let is_kept = match &state.served {
            Some(_) => state.shown().is_some_and(|playlist| playlist.kind == Kind::Vod),
            None => state.refused.is_some(),
        };
        !is_kept && state.left.is_some_and(|left| now.saturating_duration_since(left) > state.patience())
    }

    /// What is at an address.
    pub fn file(&self, name: &str, asked: &Asked, now: Instant) -> Found {
        let mut state = lock(&self.state);
        state.files.forget(now);
        if name == "index.m3u8" {
            return state.playlist(asked);
        }
        let found = state.named(name);
        // Of another publication, or what is no longer there.
        let is_other = |version: Option<&Arc<str>>| {
            asked.version.as_ref().is_some_and(|asked| version.is_none_or(|version| **version != **asked))
        };
        match &found {
            Found::Init(served) | Found::Segment(served) if is_other(served.version.as_ref()) => Found::Over,
            Found::Coming if is_other(Some(&state.token)) => Found::Over,
            _ => found,
        }
    }

    /// Whether its segments are published in parts, so that waiting for what comes next is worth it.
    pub fn has_parts(&self) -> bool {
        lock(&self.state).playlist.as_ref().is_some_and(|playlist| playlist.part_target.is_some())
    }

    /// Rises with everything that changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How long somebody may wait for what comes next, and for how long what comes then stays what it is.
    pub fn waiting(&self) -> (Duration, Duration) {
        let target = lock(&self.state).playlist.as_ref().map_or(1, |playlist| playlist.target);
        (Duration::from_secs(target).saturating_mul(PATIENCE), Duration::from_secs(target.saturating_mul(FRESH)))
    }

    /// Bytes that it holds in memory and on the disk, without what grows.
    pub fn used(&self) -> (u64, u64) {
        lock(&self.state).files.used()
    }

    /// Wakes those who wait for what comes next.
    pub(super) fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// What has grown is a segment now. The lock is let go of while the segment is put together and written.
    fn complete<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        now: Instant,
    ) -> (MutexGuard<'a, State>, Result<(), Refused>) {
        let Some(media) = state.grown() else { return (state, Ok(())) };
        let bytes = media.iter().map(|piece| piece.len() as u64).sum();
        let content = match state.room_for(bytes, now) {
            Err(refused) => Err(refused),
            Ok(room) => {
                let is_on_disk = matches!(room, Room::Disk(_));
                drop(state);
                let content = room.fill(&media);
                state = lock(&self.state);
                if content.is_err() && is_on_disk {
                    state.files.give_back(bytes);
                }
                content
            }
        };
        let completed = state.complete(content, now);
        (state, completed)
    }
}

/// A number as names have it.
fn plain(digits: &str) -> Option<u64> {
    let is_plain = digits == "0" || !digits.starts_with(['0', '+']);
    digits.parse().ok().filter(|_| is_plain)
}

/// The right to write one stream, until somebody else has it.
#[derive(Clone)]
pub struct Writing {
    pub(super) published: Arc<Published>,
    turn: u64,
}

impl Writing {
    /// What is written.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// `None` where somebody else has the right by now.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(lock(&self.published.state)).filter(|state| state.turn == self.turn)
    }

    /// Takes what comes next of the stream into the playlist; the number of its segment. May block.
    ///
    /// # Errors
    /// Where somebody else writes it by now, or there is no room for the segment: then the playlist has a gap in its place.
    pub fn append(&self, segment: NewSegment, now: Instant) -> Result<u64, Refused> {
        let published = &*self.published;
        let _writing = lock(&published.writing);
        let mut state = self.change_hands(lock(&published.state), now)?;
        state.refused = None;
        state.files.forget(now);
        let version = Some(&state.token).filter(|_| state.terms.kind != Kind::Vod).cloned();
        let map = state.files.map_of(&segment.init, version.as_ref());
        let is_other = |growing: &Growing| growing.map != map;
        let mut ended = Ok(());
        if state.is_broken || segment.is_discontinuous || state.growing.as_ref().is_some_and(is_other) {
            (state, ended) = published.complete(state, now);
        }
        let number = match &state.growing {
            Some(growing) => growing.number,
            None => state.begin(&segment, map),
        };
        let completes = segment.completes;
        state.grow(segment);
        if completes {
            let (completed, outcome) = published.complete(state, now);
            (state, ended) = (completed, ended.and(outcome));
        }
        // Some players take a playlist without a whole segment for an empty one.
        let has_segments = state.playlist.as_ref().is_some_and(|playlist| !playlist.segments.is_empty());
        if state.terms.kind != Kind::Vod && has_segments {
            state.show();
        }
        drop(state);
        published.tell();
        ended.map(|()| number)
    }

    /// A segment was to come, and is lost: the playlist has a gap in its place, so that the time of what follows stays right.
    pub fn lose(&self, lost: &Lost, now: Instant) {
        let _writing = lock(&self.published.writing);
        let Ok(mut state) = self.change_hands(lock(&self.published.state), now) else { return };
        state.files.forget(now);
        let map = state.last_map();
        let Some(map) = map.filter(|_| !state.is_broken && !lost.is_discontinuous && state.growing.is_none()) else {
            // Nothing tells how the missing segment was coded.
            state.is_broken |= state.playlist.is_some();
            return;
        };
        let listed = state.listed(lost.time, lost.duration, map, false);
        state.elapsed = state.elapsed.saturating_add(lost.duration);
        state.push(Listed { is_gap: true, ..listed }, now);
        if state.terms.kind != Kind::Vod {
            state.show();
        }
        drop(state);
        self.published.tell();
    }

    /// What comes now is of whoever writes it by now.
    fn change_hands<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        now: Instant,
    ) -> Result<MutexGuard<'a, State>, Refused> {
        if state.turn == self.turn && state.coming.is_some() {
            let completed;
            (state, completed) = self.published.complete(state, now);
            if let Err(refused) = completed {
                tracing::debug!(%refused, "the last segment of another generation is lost");
            }
            // Meanwhile somebody else may have got the right.
            if state.turn == self.turn {
                state.change_hands(now);
            }
        }
        if state.turn == self.turn || state.coming.is_some() { Ok(state) } else { Err(Refused::Superseded) }
    }

    /// Nothing can be published of the stream as it is now: why, and what to do.
    pub fn refuse(&self, why: &str, hint: &str) {
        if let Some(mut state) = self.state() {
            state.refused = Some((why.to_owned(), hint.to_owned()));
        }
    }

    /// Something is missing before the next segment.
    pub fn break_off(&self) {
        if let Some(mut state) = self.state()
            && state.playlist.is_some()
        {
            state.is_broken = true;
        }
    }

    /// Nothing more comes.
    pub fn end(&self, now: Instant) {
        let published = &*self.published;
        let _writing = lock(&published.writing);
        let Some(state) = self.state() else { return };
        let (mut state, completed) = published.complete(state, now);
        if let Err(refused) = completed {
            tracing::debug!(%refused, "the last segment of a stream is lost");
        }
        if state.turn != self.turn {
            return;
        }
        state.left = Some(now);
        let is_vod = state.terms.kind == Kind::Vod;
        if let Some(playlist) = &mut state.playlist {
            playlist.is_over = true;
            if is_vod {
                let longest = playlist.segments.iter().map(|segment| segment.duration).max().unwrap_or_default();
                // Rounded as players round.
                playlist.target = u64::try_from((longest + 500_000) / 1_000_000).unwrap_or(0).max(1);
            }
            state.show();
        }
        if is_vod && let Some(former) = state.former.take() {
            let until = now + patience(&former);
            state.let_go(former, until);
        }
        drop(state);
        published.tell();
    }

    /// Nobody writes it any more, and somebody else may go on with it.
    pub fn abandon(&self, now: Instant) {
        if let Some(mut state) = self.state() {
            state.left = Some(now);
            drop(state);
            // Whoever waits may find that it is gone with its sink.
            self.published.tell();
        }
    }
}

/// The number of a stream's first segment. Of what never ends it is more than those before it, so that players go on with
/// a playlist that they have seen before the engine was started anew.
fn first_number(kind: Kind, time: SystemTime) -> u64 {
    match kind {
        Kind::Vod => 0,
        Kind::Live | Kind::Event => time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

impl State {
    fn new(terms: Terms) -> State {
        State {
            files: Files::new(&terms),
            terms,
            token: token(),
            playlist: None,
            former: None,
            served: None,
            refused: None,
            growing: None,
            next: None,
            is_broken: false,
            anchor: None,
            elapsed: 0,
            left: None,
            turn: 0,
            coming: None,
        }
    }

    /// What comes now is on other terms; nothing grows.
    fn change_hands(&mut self, now: Instant) {
        let Some(terms) = self.coming.take() else { return };
        let before = std::mem::replace(&mut self.terms, terms);
        self.anchor = None;
        self.files.change(&terms);
        if terms.kind == Kind::Vod {
            self.begin_vod(now);
            return;
        }
        if let Some(former) = self.former.take() {
            let until = now + patience(&former);
            self.let_go(former, until);
        }
        let patience = self.patience();
        let Some(playlist) = &mut self.playlist else { return };
        self.is_broken = true;
        playlist.is_over = false;
        playlist.window = terms.window;
        while !terms.go_on(&before)
            && let Some(left) = playlist.leave()
        {
            self.files.leave(left.number, now + patience);
        }
    }

    /// What was shown until now stays until all of the next playlist is there.
    fn begin_vod(&mut self, now: Instant) {
        self.is_broken = false;
        let Some(mut playlist) = self.playlist.take() else { return };
        if self.former.is_some() || self.served.is_none() {
            // It has not come to its end, and nobody has seen it.
            self.let_go(playlist, now);
            return;
        }
        if !std::mem::replace(&mut playlist.is_over, true) {
            self.served = Some(written(playlist.text()));
        }
        self.former = Some(playlist);
    }

    /// What a playlist lists is kept until then.
    fn let_go(&mut self, playlist: Playlist, until: Instant) {
        playlist.segments.iter().for_each(|listed| self.files.leave(listed.number, until));
    }

    /// The playlist that people see, as soon as there is anything to see.
    fn shown(&self) -> Option<&Playlist> {
        self.former.as_ref().or(self.playlist.as_ref())
    }

    /// How long a player may want what is listed now.
    fn patience(&self) -> Duration {
        self.shown().map_or(Duration::ZERO, patience)
    }

    /// The playlist, for somebody who may wait for what comes next of it.
    fn playlist(&self, asked: &Asked) -> Found {
        let Some(served) = &self.served else {
            return match &self.refused {
                Some((why, hint)) => Found::Refused { why: why.clone(), hint: hint.clone() },
                None => Found::NotYet(self.terms.kind),
            };
        };
        let with_parts = self.playlist.as_ref().filter(|playlist| playlist.part_target.is_some());
        let Some(playlist) = with_parts.filter(|_| self.former.is_none()) else {
            return Found::Playlist(served.clone());
        };
        if playlist.segments.is_empty() && !playlist.is_over {
            // What is served is what was listed on other terms: nothing that somebody may wait for.
            return if asked.sequence.is_some() { Found::Coming } else { Found::Playlist(served.clone()) };
        }
        match asked.sequence.map(|number| playlist.progress(number, asked.part)) {
            Some(Progress::NotYet) => Found::Coming,
            Some(Progress::TooFar) => Found::TooFar,
            Some(Progress::Listed) | None if asked.skips => Found::Playlist(written(playlist.update())),
            Some(Progress::Listed) | None => Found::Playlist(served.clone()),
        }
    }

    /// What is at a name that is no playlist's.
    fn named(&self, name: &str) -> Found {
        if let Some(number) = name.strip_prefix("init-").and_then(|name| name.strip_suffix(".mp4")).and_then(plain) {
            return match self.files.map(number) {
                Some(served) => Found::Init(served),
                None if self.files.had_map(number) => Found::Over,
                None => Found::Unknown,
            };
        }
        let Some((name, extension)) = name.rsplit_once('.') else { return Found::Unknown };
        let forms = [Form::Mp4, Form::Transport];
        let Some(form) = forms.into_iter().find(|form| playlist::extension(*form) == extension) else {
            return Found::Unknown;
        };
        match name.split_once('.') {
            Some((number, part)) if form == Form::Mp4 => {
                plain(number).zip(plain(part)).map_or(Found::Unknown, |at| self.part(at))
            }
            Some(_) => Found::Unknown,
            None => plain(name).map_or(Found::Unknown, |number| self.segment(number, form)),
        }
    }

    fn segment(&self, number: u64, form: Form) -> Found {
        match self.files.segment(number, form) {
            Some(served) => Found::Segment(served),
            None => self.missing(number),
        }
    }

    fn part(&self, (number, part): (u64, u64)) -> Found {
        let of_growing = self.growing.as_ref().filter(|growing| growing.number == number);
        let found = match of_growing {
            Some(growing) => usize::try_from(part).ok().and_then(|place| growing.parts.get(place)).cloned(),
            None => self.files.part(number, part),
        };
        match found {
            Some(served) => Found::Segment(served),
            None if self.playlist.as_ref().and_then(Playlist::hint) == Some((number, part)) => Found::Coming,
            None if of_growing.is_some() => Found::Unknown,
            None => self.missing(number),
        }
    }

    /// What is to be said of a segment that is not there.
    fn missing(&self, number: u64) -> Found {
        let is_gap = |listed: &Listed| listed.number == number && listed.is_gap;
        let mut listed = self.playlist.iter().chain(&self.former).flat_map(|playlist| &playlist.segments);
        if listed.any(is_gap) {
            return Found::Gap;
        }
        let is_growing = self.growing.as_ref().is_some_and(|growing| growing.number == number);
        match self.next {
            Some(next) if number < next && !is_growing && !self.files.has(number) => Found::Over,
            _ => Found::Unknown,
        }
    }

    /// Begins another segment; its number.
    fn begin(&mut self, first: &NewSegment, map: u64) -> u64 {
        let terms = self.terms;
        let target = first.target.unwrap_or(1);
        let token = &self.token;
        let playlist = self.playlist.get_or_insert_with(|| {
            let playlist = Playlist::new(terms.kind, terms.form, terms.window, target);
            Playlist { version: token.clone(), ..playlist }
        });
        if playlist.segments.is_empty() {
            (playlist.kind, playlist.form) = (terms.kind, terms.form);
            (playlist.window, playlist.target) = (terms.window, target);
            (playlist.is_over, playlist.is_independent) = (false, true);
            playlist.part_target = first.part_target;
        }
        playlist.is_independent &= first.is_independent;
        let changes_map = self.last_map().is_some_and(|last| last != map);
        let listed = self.listed(first.time, 0, map, first.is_discontinuous || changes_map);
        let own = first.sha256.as_deref().map(files::short);
        let (number, version) = (listed.number, own.clone().unwrap_or_else(|| self.token.clone()));
        self.growing = Some(Growing { number, map, version, parts: Vec::new(), media: Vec::new() });
        if let Some(playlist) = &mut self.playlist {
            playlist.open = Some(Listed { version: own, ..listed });
        }
        number
    }

    /// The next segment, as it will be listed.
    fn listed(&mut self, time: SystemTime, duration: i64, map: u64, is_discontinuous: bool) -> Listed {
        let has_listed = self.playlist.as_ref().is_some_and(|playlist| !playlist.segments.is_empty());
        let is_discontinuous = std::mem::take(&mut self.is_broken) || has_listed && is_discontinuous;
        let number = self.next.unwrap_or_else(|| first_number(self.terms.kind, time));
        self.next = Some(number + 1);
        let time = self.terms.dated.then(|| self.date(time, is_discontinuous));
        let map_version = self.files.map(map).and_then(|served| served.version);
        Listed {
            number,
            duration,
            map,
            map_version,
            is_discontinuous,
            is_gap: false,
            time,
            version: None,
            parts: Vec::new(),
        }
    }

    /// Adds to the segment that grows.
    fn grow(&mut self, segment: NewSegment) {
        if let Some(playlist) = &mut self.playlist {
            playlist.is_independent &= !segment.has_leading;
        }
        let open = self.playlist.as_mut().and_then(|playlist| playlist.open.as_mut());
        let (Some(growing), Some(open)) = (&mut self.growing, open) else { return };
        open.duration = open.duration.saturating_add(segment.duration);
        self.elapsed = self.elapsed.saturating_add(segment.duration);
        if segment.part_target.is_some() {
            let name = format!("{}.{}", growing.number, growing.parts.len());
            growing.parts.push(Served::numbered(Content::Memory(segment.media.clone()), name, &growing.version));
            open.parts.push(ListedPart { duration: segment.duration, is_independent: segment.is_independent });
        }
        growing.media.push(segment.media);
    }

    /// The bytes of the segment that grows.
    fn grown(&self) -> Option<Vec<Bytes>> {
        self.growing.as_ref().map(|growing| growing.media.clone())
    }

    /// Takes room for a segment of so many bytes.
    fn room_for(&mut self, bytes: u64, now: Instant) -> Result<Room, Refused> {
        let room = self.files.room_for(bytes);
        if matches!(room, Err(Refused::Full(_)))
            && let Some(former) = self.former.take()
        {
            // What comes is worth more than what it will replace.
            self.served = None;
            self.let_go(former, now);
            self.files.forget(now);
            return self.files.room_for(bytes);
        }
        room
    }

    /// What has grown is a segment now, and lies there; or is lost.
    fn complete(&mut self, content: Result<(Content, Option<Volume>), Refused>, now: Instant) -> Result<(), Refused> {
        let open = self.playlist.as_mut().and_then(|playlist| playlist.open.take());
        let (Some(growing), Some(mut listed)) = (self.growing.take(), open) else { return Ok(()) };
        let ends = growing.parts.iter().scan(0, |end, part| {
            *end += part.length();
            Some(*end)
        });
        let kept = content
            .map(|content| self.files.insert(growing.number, content, &growing.version, ends.collect(), growing.map));
        if kept.is_err() {
            listed.is_gap = true;
            listed.parts.clear();
        }
        self.push(listed, now);
        kept
    }

    fn push(&mut self, listed: Listed, now: Instant) {
        let Some(playlist) = &mut self.playlist else { return };
        let left = playlist.push(listed);
        let patience = self.patience();
        for gone in left {
            let patience = patience + Duration::from_micros(u64::try_from(gone.duration).unwrap_or(0));
            self.files.leave(gone.number, now + patience);
        }
    }

    fn last_map(&self) -> Option<u64> {
        self.playlist.as_ref()?.segments.back().map(|listed| listed.map)
    }

    /// When the first picture of the next segment was taken: by the stream's clock, as long as that is right.
    fn date(&mut self, read: SystemTime, is_discontinuous: bool) -> SystemTime {
        let elapsed = self.elapsed;
        let by_stream = self
            .anchor
            .filter(|_| !is_discontinuous)
            .map(|(anchor, at)| anchor + Duration::from_micros(u64::try_from(elapsed.saturating_sub(at)).unwrap_or(0)));
        let is_right = |time: &SystemTime| {
            let drift = read.duration_since(*time).or_else(|_| time.duration_since(read));
            drift.is_ok_and(|drift| drift <= MOST_DRIFT)
        };
        by_stream.filter(is_right).unwrap_or_else(|| {
            self.anchor = Some((read, elapsed));
            read
        })
    }

    /// From here on the playlist is served as it is now.
    fn show(&mut self) {
        self.served = self.playlist.as_ref().map(|playlist| written(playlist.text()));
    }
}

fn written(text: String) -> Served {
    let tag = files::tag(text.as_bytes());
    Served::new(Content::Memory(text.into()), tag, None)
}

/// How long a player may want what a playlist lists: until it has played all of it.
fn patience(playlist: &Playlist) -> Duration {
    let target = i64::try_from(playlist.target).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    Duration::from_micros(u64::try_from(playlist.longest.saturating_add(target)).unwrap_or(0))
}

/// What no other publication has in its addresses: not one before the engine was started anew, whatever the clock says.
fn token() -> Arc<str> {
    // Seeded by the system for each one that is made.
    let random = RandomState::new().build_hasher().finish();
    format!("{:08x}", random >> 32).into()
}
