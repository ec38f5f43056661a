//! Reads packets out of a file or a live input: those of one video track, or of all chosen tracks; others are left
//! unread.
//!
//! Every call that may block polls the caller's `stop`, on the calling thread. libav's error codes do not tell an
//! abort from other failures, so the abort is remembered here.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::path::Path;

use bytes::Bytes;
use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;

use super::formats;
use super::gate;
use super::initialise;
use super::orientation::Orientation;
use super::parameters::Parameters;
use crate::item::{Track, TrackFormat};
use crate::time::{MediaTime, TimeBase};

/// Packets that cannot be read are passed over, but not for ever: a demuxer that reports the same damage again and
/// again makes no progress.
const MOST_UNREADABLE_IN_A_ROW: u32 = 1000;

/// A file that ends so many pictures, and this share, before its declared duration was cut off.
const SHORT_PICTURES: f64 = 3.0;
const SHORT_SHARE: f64 = 0.05;
/// The same in seconds, where nobody knows how long a picture is, or whether the duration is that of the video track.
const SHORT_SECONDS: f64 = 1.0;

/// Why a file or a live input cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemuxError {
    /// `stop` said so.
    #[error("it was stopped")]
    Stopped,
    /// libav's words.
    #[error("{0}")]
    Failed(String),
    #[error("its path is not valid UTF-8")]
    Path,
    /// The server's 401.
    #[error("the server refuses the credentials, or wants some (401)")]
    Unauthorized,
    /// The server's 403.
    #[error("the server forbids it (403)")]
    Forbidden,
    /// The server's 404.
    #[error("the server has nothing under this path (404)")]
    NotFound,
    #[error("connection refused")]
    Refused,
    /// Nothing on the way knows the host.
    #[error("the host cannot be reached: {0}")]
    Unreachable(String),
    /// Describes what there is instead.
    #[error("it has no video track; its tracks are: {0}")]
    NoVideo(String),
    #[error("it has no track {index}; its tracks are: {tracks}")]
    NoTrack { index: usize, tracks: String },
    #[error("it has no tracks at all")]
    Empty,
    /// libav knows it, and it is not on the list of its kind of input, or leads to what is not.
    #[error("its format is not played here: a playlist, a script or a description that leads on, or something broken")]
    Format,
    /// It is a playlist or a redirect, and what it names is not allowed ([`gate`]).
    #[error("it leads on to the host `{0}`, which is not allowed")]
    LeadsAway(String),
}

impl From<ffmpeg::Error> for DemuxError {
    fn from(error: ffmpeg::Error) -> DemuxError {
        match error {
            ffmpeg::Error::HttpUnauthorized => DemuxError::Unauthorized,
            ffmpeg::Error::HttpForbidden => DemuxError::Forbidden,
            ffmpeg::Error::HttpNotFound => DemuxError::NotFound,
            ffmpeg::Error::Other { errno } if errno == ffmpeg::error::ECONNREFUSED => DemuxError::Refused,
            ffmpeg::Error::Other { errno }
                if [ffmpeg::error::EHOSTUNREACH, ffmpeg::error::ENETUNREACH].contains(&errno) =>
            {
                DemuxError::Unreachable(error.to_string())
            }
            _ => DemuxError::Failed(error.to_string()),
        }
    }
}

/// Which tracks of a file are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracks {
    /// The best video track and the best audio track, as libav ranks them.
    Best,
    /// These, by index; the first video track among them is decoded.
    Indices(Vec<usize>),
}

/// The outcome of reading on.
pub enum Read {
    Packet(Packet),
    /// One stretch could not be read; the text says why. The next call reads on behind it.
    Unreadable(String),
    End,
}

/// An encoded picture, a part of one, or encoded sound. A clone shares its bytes.
pub struct Packet {
    pub(super) packet: ffmpeg::Packet,
    /// Index into [`Demuxer::tracks`].
    track: usize,
}

impl Clone for Packet {
    fn clone(&self) -> Packet {
        Packet { packet: shared(&self.packet), track: self.track }
    }
}

/// A reference to the same bytes. (A clone by `ffmpeg_next` copies them.)
fn shared(packet: &ffmpeg::Packet) -> ffmpeg::Packet {
    use ffmpeg::packet::{Mut, Ref};
    let mut copy = ffmpeg::Packet::empty();
    // SAFETY: both packets are valid, and the new one is blank. Nobody writes to bytes of packets that were demuxed.
    // Where memory is short it stays blank, which every consumer takes for an empty packet.
    unsafe { ffi::av_packet_ref(copy.as_mut_ptr(), packet.as_ptr()) };
    copy
}

/// The bytes of a packet that others hold.
struct Shared(ffmpeg::Packet);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.data().unwrap_or_default()
    }
}

impl Packet {
    /// Index into [`Demuxer::tracks`]; the decoded video track is the first.
    pub fn track(&self) -> usize {
        self.track
    }

    /// Whether it belongs to the decoded video track.
    pub fn is_video(&self) -> bool {
        self.track == 0
    }

    /// The encoded bytes, which are not copied.
    pub fn data(&self) -> Bytes {
        Bytes::from_owner(Shared(shared(&self.packet)))
    }

    /// The parameter sets that hold from this packet on, where the container says so.
    pub(super) fn new_extradata(&self) -> Option<&[u8]> {
        use ffmpeg::packet::Ref;
        let mut length = 0usize;
        let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_NEW_EXTRADATA;
        // SAFETY: the packet is valid; the pointer that comes back belongs to it and is valid for `length` bytes as
        // long as the packet is.
        unsafe {
            let data = ffi::av_packet_get_side_data(self.packet.as_ptr(), kind, &raw mut length);
            (!data.is_null() && length > 0).then(|| std::slice::from_raw_parts(data, length))
        }
    }

    /// Native ticks.
    pub fn pts(&self) -> Option<i64> {
        self.packet.pts()
    }

    /// Bytes of the encoded picture.
    pub fn bytes(&self) -> u64 {
        self.packet.size() as u64
    }

    /// When it is decoded, in native ticks.
    pub fn dts(&self) -> Option<i64> {
        self.packet.dts()
    }

    /// Whether decoding can start here.
    pub fn is_key(&self) -> bool {
        self.packet.is_key()
    }

    /// Native ticks, where known.
    pub fn duration(&self) -> Option<i64> {
        Some(self.packet.duration()).filter(|ticks| *ticks > 0)
    }

    /// Whether the container says that its picture is not to be shown (an edit list).
    pub fn is_hidden(&self) -> bool {
        // SAFETY: the packet is valid for as long as `self`; reading its flags has no preconditions.
        let flags = unsafe { (*ffmpeg::packet::Ref::as_ptr(&self.packet)).flags };
        flags & ffi::AV_PKT_FLAG_DISCARD != 0
    }

    /// Whether the container knows that parts are missing.
    pub fn is_corrupt(&self) -> bool {
        self.packet.is_corrupt()
    }
}

/// Something to read and seek in that may take its time.
pub trait Reader: std::io::Seek + Send {
    /// As [`std::io::Read::read`]; polls `stop` while it waits, and fails when that says so.
    ///
    /// # Errors
    /// Where nothing can be read, or `stop` said so.
    fn read(&mut self, buffer: &mut [u8], stop: &dyn Fn() -> bool) -> std::io::Result<usize>;
}

/// A reader that asks the question of the call that its thread is in.
struct Polling<R>(R);

impl<R: Reader> std::io::Read for Polling<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer, &interrupt::poll)
    }
}

impl<R: Reader> std::io::Seek for Polling<R> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

/// An open file.
pub struct Demuxer {
    input: ffmpeg::format::context::Input,
    video: usize,
    /// Whether packets of all tracks are read, not only of the decoded one.
    reads_all: bool,
    tracks: Vec<Track>,
    unreadable: u32,
    packets: u64,
    /// Native ticks of the first packet's stamp and of the end of the last one to be shown.
    reach: Option<(i64, i64)>,
}

impl Demuxer {
    /// Opens the file at `path` and chooses its tracks. While it works, `stop` is polled.
    pub fn open(path: &Path, tracks: &Tracks, stop: &dyn Fn() -> bool) -> Result<Demuxer, DemuxError> {
        initialise();
        let text = path.to_str().filter(|text| !text.contains('\0')).ok_or(DemuxError::Path)?;
        // The prefix keeps a name such as `http:x` or `concat:a` from being taken for another protocol.
        let options = [
            ("protocol_whitelist", formats::PROTOCOLS_OF_FILES.to_owned()),
            ("format_whitelist", formats::OF_FILES.to_owned()),
        ];
        Demuxer::connect(&format!("file:{text}"), &options, tracks, stop)
    }

    /// Opens what lies under a URL of libav, with libav's options, and chooses its tracks. While it works, `stop` is
    /// polled: not while a host's name is looked up, which the system bounds.
    pub fn open_url(
        url: &str,
        options: &[(&str, String)],
        tracks: &Tracks,
        stop: &dyn Fn() -> bool,
    ) -> Result<Demuxer, DemuxError> {
        initialise();
        if url.contains('\0') {
            return Err(DemuxError::Path);
        }
        Demuxer::connect(url, options, tracks, stop)
    }

    /// Opens what a reader reads, and chooses its tracks. `name` tells libav what it may be, by its ending. While it
    /// works, here and later on, `stop` is polled, by the reader too.
    pub fn open_reader(
        reader: impl Reader + 'static,
        name: &str,
        tracks: &Tracks,
        stop: &dyn Fn() -> bool,
    ) -> Result<Demuxer, DemuxError> {
        initialise();
        let name = name.replace('\0', "");
        let opened = interrupt::while_polling(stop, || {
            let stream = ffmpeg::format::context::StreamIo::from_read_seek(Polling(reader))?;
            // It is media or nothing, and leads to nothing else: whoever can write an object must not name files of this
            // machine with it.
            let mut options = ffmpeg::Dictionary::new();
            options.set("format_whitelist", formats::OF_FILES);
            options.set("protocol_whitelist", formats::NO_PROTOCOL);
            ffmpeg::format::input_from_stream_with_interrupt(stream, Some(&name), Some(options), interrupt::poll)
        });
        match opened {
            (_, true) => Err(DemuxError::Stopped),
            (Ok(input), false) => Demuxer::of_input(input, tracks),
            // Its word for a format that is not on the list.
            (Err(ffmpeg::Error::Other { errno: ffmpeg::error::EINVAL }), false) => Err(DemuxError::Format),
            (Err(error), false) => Err(error.into()),
        }
    }

    fn connect(
        location: &str,
        options: &[(&str, String)],
        tracks: &Tracks,
        stop: &dyn Fn() -> bool,
    ) -> Result<Demuxer, DemuxError> {
        let mut dictionary = ffmpeg::Dictionary::new();
        for (name, value) in options.iter().filter(|(name, value)| !name.contains('\0') && !value.contains('\0')) {
            dictionary.set(name, value);
        }
        if gate::is_bound() {
            // A connection that a playlist keeps is asked for more, and follows redirects, without coming by the gate.
            dictionary.set("http_persistent", "0");
        }
        let opened = interrupt::while_polling(stop, || open(location, dictionary));
        let refused = gate::refused();
        match opened {
            (_, true) => Err(DemuxError::Stopped),
            (Ok(input), false) => Demuxer::of_input(input, tracks),
            (Err(error), false) if refused.is_some() => {
                Err(DemuxError::LeadsAway(refused.unwrap_or_else(|| error.to_string())))
            }
            // Its word for a format that is not on the list.
            (Err(ffmpeg::Error::Other { errno: ffmpeg::error::EINVAL }), false) => Err(DemuxError::Format),
            (Err(error), false) => Err(error.into()),
        }
    }

    fn of_input(input: ffmpeg::format::context::Input, tracks: &Tracks) -> Result<Demuxer, DemuxError> {
        let chosen = choose(&input, tracks)?;
        let described = chosen.iter().filter_map(|index| describe(&input, *index)).collect();
        let video = chosen[0];
        let mut demuxer =
            Demuxer { input, video, reads_all: false, tracks: described, unreadable: 0, packets: 0, reach: None };
        demuxer.choose_what_is_read();
        Ok(demuxer)
    }

    /// Reads packets of all chosen tracks from here on, or of the decoded one alone, as it is at first.
    pub fn read_all(&mut self, all: bool) {
        if self.reads_all != all {
            self.reads_all = all;
            self.choose_what_is_read();
        }
    }

    fn choose_what_is_read(&mut self) {
        for index in 0..self.input.nb_streams() as usize {
            let is_read = index == self.video || self.reads_all && self.track_of(index).is_some();
            let discard = if is_read { ffi::AVDiscard::AVDISCARD_DEFAULT } else { ffi::AVDiscard::AVDISCARD_ALL };
            if let Some(mut stream) = self.input.stream_mut(index) {
                // SAFETY: the stream belongs to `input`, which is borrowed exclusively; `discard` is set by users.
                unsafe { (*stream.as_mut_ptr()).discard = discard };
            }
        }
    }

    /// Where the track of this index in the container stands among those that were chosen.
    fn track_of(&self, index: usize) -> Option<usize> {
        self.tracks.iter().position(|track| track.index == index)
    }

    /// The tracks that were chosen, the decoded one first.
    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Every video and audio track that there is, chosen or not, by index.
    pub fn every_track(&self) -> Vec<Track> {
        (0..self.input.nb_streams() as usize).filter_map(|index| describe(&self.input, index)).collect()
    }

    /// libav's name of the container or protocol, such as `mov,mp4,m4a,3gp,3g2,mj2` or `rtsp`.
    pub fn container(&self) -> String {
        self.input.format().name().to_owned()
    }

    /// Ticks of the video track.
    pub fn time_base(&self) -> TimeBase {
        time_base(&self.stream())
    }

    /// Seconds of media, where the container says so.
    pub fn duration(&self) -> Option<f64> {
        let ticks = self.input.duration();
        (ticks > 0).then(|| ticks as f64 / f64::from(ffi::AV_TIME_BASE))
    }

    /// When the container says that the first picture of the video track is shown.
    pub fn start(&self) -> Option<MediaTime> {
        let ticks = self.stream().start_time();
        (ticks != ffi::AV_NOPTS_VALUE).then(|| MediaTime::new(ticks, self.time_base()))
    }

    /// Ticks from one picture of the video track to the next, by its frame rate.
    pub fn nominal_duration(&self) -> Option<i64> {
        let rate = frame_rate(&self.stream())?;
        let base = self.time_base();
        let ticks = f64::from(base.denominator()) / f64::from(base.numerator()) / rate;
        (ticks.is_finite() && ticks < 1e15).then(|| (ticks.round() as i64).max(1))
    }

    /// What the video track's decoder needs to know.
    pub fn parameters(&self) -> ffmpeg::codec::Parameters {
        self.stream().parameters()
    }

    /// How the video track's pictures have to be turned to stand upright.
    pub fn orientation(&self) -> Orientation {
        let stream = self.stream();
        let data = stream.side_data().find(|data| data.kind() == ffmpeg::packet::side_data::Type::DisplayMatrix);
        let matrix = data.and_then(|data| {
            let (numbers, rest) = data.data().as_chunks::<4>();
            let numbers: [[u8; 4]; 9] = numbers.try_into().ok().filter(|_| rest.is_empty())?;
            Some(numbers.map(i32::from_ne_bytes))
        });
        matrix.map_or(Orientation::UPRIGHT, Orientation::of_display_matrix)
    }

    /// Reads the next packet of the video track, or of any chosen track ([`Demuxer::read_all`]). While it works, `stop`
    /// is polled.
    pub fn read(&mut self, stop: &dyn Fn() -> bool) -> Result<Read, DemuxError> {
        loop {
            let mut packet = ffmpeg::Packet::empty();
            let (result, stopped) = interrupt::while_polling(stop, || packet.read(&mut self.input));
            match result {
                _ if stopped => return Err(DemuxError::Stopped),
                Ok(()) if packet.stream() == self.video => {
                    self.unreadable = 0;
                    self.packets += 1;
                    let packet = Packet { packet, track: 0 };
                    self.note_reach(&packet);
                    return Ok(Read::Packet(packet));
                }
                Ok(()) if self.reads_all => {
                    if let Some(track) = self.track_of(packet.stream()) {
                        self.unreadable = 0;
                        return Ok(Read::Packet(Packet { packet, track }));
                    }
                }
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => return Ok(Read::End),
                Err(ffmpeg::Error::InvalidData) if self.unreadable < MOST_UNREADABLE_IN_A_ROW => {
                    self.unreadable += 1;
                    return Ok(Read::Unreadable(ffmpeg::Error::InvalidData.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Closes it, which for a live input may say goodbye to a server that does not listen any more. While it works,
    /// `stop` is polled.
    pub fn close(self, stop: &dyn Fn() -> bool) {
        interrupt::while_polling(stop, || drop(self));
    }

    /// At the end of a file with an index: how many packets could be read, and how many the index lists, where that is
    /// more. libav takes the end of a file that was cut off for an ordinary one.
    pub fn cut_off(&self) -> Option<(u64, u64)> {
        // Only this family lists every packet, after its edit lists were applied.
        if !self.is_mov() {
            return None;
        }
        // SAFETY: the stream belongs to `input`; the function only reads the length of its index.
        let listed = unsafe { ffi::avformat_index_get_entries_count(self.stream().as_ptr()) };
        let listed = u64::try_from(listed).ok()?;
        (self.packets < listed).then_some((self.packets, listed))
    }

    /// At the end of a file that declares its duration: how far its video track reaches and how far it should, in
    /// seconds, where that is more than by rounding. Containers without a complete index show in no other way that they were cut
    /// off.
    pub fn falls_short(&self) -> Option<(f64, f64)> {
        let (declared, of_the_track) = self.declared_duration()?;
        let (first, end) = self.reach?;
        let seconds = |ticks: i64| MediaTime::new(ticks, self.time_base()).as_seconds();
        // Durations are counted from zero or from the first stamp; nobody knows which.
        let reached = seconds(end).max(seconds(end.saturating_sub(first)));
        let missing = declared - reached;
        let picture = self.nominal_duration().filter(|_| of_the_track).map(seconds);
        let tolerated = picture.map_or(SHORT_SECONDS, |picture| SHORT_PICTURES * picture);
        (missing > tolerated.max(SHORT_SHARE * declared)).then_some((reached, declared))
    }

    /// Seconds of the video track, or of the whole file where that is not told apart, and which of both; `None` where
    /// libav only estimates or measures them.
    fn declared_duration(&self) -> Option<(f64, bool)> {
        // The index of this family says it better (`cut_off`), and edit lists make its durations ambiguous.
        if self.is_mov() {
            return None;
        }
        // SAFETY: the context is valid for as long as `input`; only a plain field is read.
        let method = unsafe { (*self.input.as_ptr()).duration_estimation_method };
        if method != ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_STREAM {
            return None;
        }
        let stream = self.stream();
        // Matroska counts the longest track; its writers note each track's own duration beside it.
        let own = stream.metadata().get("DURATION").and_then(clock_seconds);
        let ticks = Some(stream.duration()).filter(|ticks| *ticks > 0);
        let own = own.or_else(|| ticks.map(|ticks| MediaTime::new(ticks, self.time_base()).as_seconds()));
        let only = self.input.nb_streams() == 1;
        own.map(|seconds| (seconds, true)).or_else(|| Some((self.duration()?, only)))
    }

    fn note_reach(&mut self, packet: &Packet) {
        let Some(stamp) = packet.pts().or(packet.dts()) else { return };
        let end = stamp.saturating_add(packet.duration().unwrap_or(0));
        let (first, latest) = self.reach.unwrap_or((stamp, end));
        self.reach = Some((first, latest.max(end)));
    }

    fn is_mov(&self) -> bool {
        self.input.format().name().split(',').any(|name| name == "mov")
    }

    fn stream(&self) -> ffmpeg::Stream<'_> {
        // SAFETY: `video` was an index of this input when it was opened, and streams are never removed.
        unsafe { ffmpeg::Stream::wrap(&self.input, self.video) }
    }
}

/// Opens an input that asks [`interrupt::poll`] whether to give up, and [`gate`] where it may lead.
fn open(location: &str, options: ffmpeg::Dictionary<'_>) -> Result<ffmpeg::format::context::Input, ffmpeg::Error> {
    let location = CString::new(location).map_err(|_| ffmpeg::Error::InvalidData)?;
    let asked = ffmpeg::util::interrupt::new(Box::new(interrupt::poll));
    // SAFETY: the context is made here, given what it asks before it is opened, and opened once; libav frees it where
    // that fails, and the wrapper owns it otherwise, with the guard of what it asks. The dictionary is taken back and
    // freed, whatever libav has left in it.
    unsafe {
        let mut context = ffi::avformat_alloc_context();
        if context.is_null() {
            return Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM });
        }
        (*context).interrupt_callback = asked.interrupt;
        gate::attach(context);
        let mut options = options.disown();
        let opened = ffi::avformat_open_input(&raw mut context, location.as_ptr(), std::ptr::null(), &raw mut options);
        drop(ffmpeg::Dictionary::own(options));
        if opened < 0 {
            return Err(ffmpeg::Error::from(opened));
        }
        let input = ffmpeg::format::context::Input::wrap_with_interrupt(context, asked.guard);
        // RTSP follows redirects without asking, and says afterwards where it is.
        let reached = (*context).url;
        if !reached.is_null() && !gate::allows(&CStr::from_ptr(reached).to_string_lossy()) {
            return Err(ffmpeg::Error::Other { errno: ffmpeg::error::EPERM });
        }
        match ffi::avformat_find_stream_info(context, std::ptr::null_mut()) {
            found if found < 0 => Err(ffmpeg::Error::from(found)),
            _ => Ok(input),
        }
    }
}

/// Indices of the chosen tracks, the video track to decode first.
fn choose(input: &ffmpeg::format::context::Input, tracks: &Tracks) -> Result<Vec<usize>, DemuxError> {
    use ffmpeg::media::Type;
    if input.nb_streams() == 0 {
        return Err(DemuxError::Empty);
    }
    let no_video = || DemuxError::NoVideo(list(input));
    let chosen = match tracks {
        Tracks::Best => {
            let streams = input.streams();
            // The cover of an audio file is no video.
            let best = streams.best(Type::Video).filter(is_video);
            let video = best.or_else(|| input.streams().find(is_video)).ok_or_else(no_video)?.index();
            let audio = input.streams().best(Type::Audio).map(|stream| stream.index());
            std::iter::once(video).chain(audio).collect()
        }
        Tracks::Indices(indices) => {
            let mut chosen = Vec::new();
            for index in indices {
                let stream = input
                    .streams()
                    .find(|stream| stream.index() == *index)
                    .ok_or_else(|| DemuxError::NoTrack { index: *index, tracks: list(input) })?;
                let first_video = stream.parameters().medium() == Type::Video
                    && !chosen.iter().any(|index| {
                        input.stream(*index).is_some_and(|stream| stream.parameters().medium() == Type::Video)
                    });
                if first_video { chosen.insert(0, *index) } else { chosen.push(*index) }
            }
            let first = chosen.first().and_then(|index| input.stream(*index));
            if first.is_none_or(|stream| stream.parameters().medium() != Type::Video) {
                return Err(no_video());
            }
            chosen
        }
    };
    Ok(chosen)
}

fn is_video(stream: &ffmpeg::Stream<'_>) -> bool {
    stream.parameters().medium() == ffmpeg::media::Type::Video
        && !stream.disposition().contains(ffmpeg::format::stream::Disposition::ATTACHED_PIC)
}

/// Length of one tick of a track.
fn time_base(stream: &ffmpeg::Stream<'_>) -> TimeBase {
    let base = stream.time_base();
    let part = |value: i32| u32::try_from(value).unwrap_or(0);
    TimeBase::new(part(base.numerator()), part(base.denominator())).unwrap_or(TimeBase::MICROSECONDS)
}

fn frame_rate(stream: &ffmpeg::Stream<'_>) -> Option<f64> {
    [stream.avg_frame_rate(), stream.rate()]
        .into_iter()
        .find(|rate| rate.numerator() > 0 && rate.denominator() > 0)
        .map(|rate| f64::from(rate.numerator()) / f64::from(rate.denominator()))
}

/// The tracks of `input` in words.
fn list(input: &ffmpeg::format::context::Input) -> String {
    let describe = |stream: ffmpeg::Stream<'_>| {
        let parameters = stream.parameters();
        let medium = match parameters.medium() {
            ffmpeg::media::Type::Video if is_video(&stream) => "video",
            ffmpeg::media::Type::Video => "attached picture",
            ffmpeg::media::Type::Audio => "audio",
            ffmpeg::media::Type::Subtitle => "subtitles",
            _ => "data",
        };
        format!("{} {medium} ({})", stream.index(), parameters.id().name())
    };
    input.streams().map(describe).collect::<Vec<_>>().join(", ")
}

fn describe(input: &ffmpeg::format::context::Input, index: usize) -> Option<Track> {
    let stream = input.stream(index)?;
    let parameters = stream.parameters();
    // SAFETY: the parameters are those of a stream of `input` and live as long as it; only plain fields are read.
    let raw = unsafe { &*parameters.as_ptr() };
    let size = |value: i32| u32::try_from(value).unwrap_or(0);
    let format = match parameters.medium() {
        ffmpeg::media::Type::Video => TrackFormat::Video {
            width: size(raw.width),
            height: size(raw.height),
            frame_rate: frame_rate(&stream),
            has_b_frames: raw.video_delay > 0,
        },
        ffmpeg::media::Type::Audio => {
            TrackFormat::Audio { sample_rate: size(raw.sample_rate), channels: size(raw.ch_layout.nb_channels) }
        }
        _ => return None,
    };
    Some(Track {
        index,
        codec: parameters.id().name().to_owned(),
        format,
        time_base: time_base(&stream),
        parameters: Some(Parameters::of(&stream)),
    })
}

/// Seconds of a time such as `00:01:30.500000000`.
fn clock_seconds(text: &str) -> Option<f64> {
    let mut parts = text.split(':').map(|part| part.trim().parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(hours * 3600.0 + minutes * 60.0 + seconds).filter(|seconds| parts.next().is_none() && *seconds > 0.0)
}

/// Lets libav ask, deep inside a call, whether it should give up.
mod interrupt {
    use super::Cell;

    type Stop<'a> = &'a dyn Fn() -> bool;

    thread_local! {
        /// The question of the call that this thread is in.
        static STOP: Cell<Option<Stop<'static>>> = const { Cell::new(None) };
        /// Whether it was answered with yes.
        static STOPPED: Cell<bool> = const { Cell::new(false) };
    }

    struct Reset;

    impl Drop for Reset {
        fn drop(&mut self) {
            STOP.set(None);
        }
    }

    /// Runs `call`, during which [`poll`] asks `stop`. Answers also whether `stop` ever said yes.
    pub fn while_polling<T>(stop: Stop<'_>, call: impl FnOnce() -> T) -> (T, bool) {
        // SAFETY: only the lifetime changes. The reference is taken back by `Reset` before this function returns or
        // unwinds, and a thread-local is seen by no other thread.
        let unbounded = unsafe { std::mem::transmute::<Stop<'_>, Stop<'static>>(stop) };
        STOPPED.set(false);
        STOP.set(Some(unbounded));
        let reset = Reset;
        let result = call();
        drop(reset);
        (result, STOPPED.get())
    }

    /// What libav calls: `true` means give up. Outside of [`while_polling`], and on other threads, never.
    pub fn poll() -> bool {
        let stop = STOP.get().is_some_and(|stop| stop());
        if stop {
            STOPPED.set(true);
        }
        stop
    }
}
