//! Writes packets into a media file, in memory or, where it grows large, in a temporary file. Nothing is decoded or
//! encoded.
//!
//! The bytes are a function of the packets alone: no wall time, no random number and no version gets into the file.

use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::OnceLock;

use bytes::Bytes;
use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::Id;
use ffmpeg_next::ffi;
use sha2::{Digest, Sha256};

use super::adts::AdtsFilter;
use super::initialise;
use super::parameters::Parameters;
use crate::item::{Content, Packet, SpilledFile, Track};
use crate::time::{MediaTime, TimeBase};

/// What libav hands over at once.
const BUFFER: usize = 64 << 10;
/// libav keeps a fragment in memory until it ends: one of more bytes ends before its GOP does.
const LONGEST_FRAGMENT: u64 = 4 << 20;
/// The first fragment waits this long for the first packets of all tracks: their times stand in front of it.
pub const LONGEST_FIRST_FRAGMENT: u64 = 16 << 20;

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// MP4 with its index in front, so that a player may begin before it has all of it.
    Mp4,
    /// MP4 in fragments, one or several for each keyframe.
    FragmentedMp4,
    /// An initialisation and one fragment behind it, whose times are those that were written: a piece of a longer
    /// presentation ([`super::fragment`]).
    Piece,
    /// An MPEG transport stream, which is handed over piece by piece ([`super::transport`]).
    Transport,
}

/// Length of one tick of the times in an MPEG transport stream.
pub(super) const TRANSPORT_BASE: TimeBase = match TimeBase::new(1, 90_000) {
    Some(base) => base,
    None => TimeBase::MICROSECONDS,
};
/// Microseconds; twice as long before a picture is decoded, the clock of a transport stream has come to what brings it, so
/// that receivers who follow that clock have all of it in time.
const TRANSPORT_DELAY: c_int = 700_000;
/// Codecs that players take in an MPEG transport stream. libav would write others too, which nobody knows there.
const IN_TRANSPORT: [&str; 10] =
    ["h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "aac", "mp2", "mp3", "ac3", "eac3"];

impl Container {
    pub const fn media_type(self) -> &'static str {
        match self {
            Container::Mp4 | Container::FragmentedMp4 | Container::Piece => "video/mp4",
            Container::Transport => "video/mp2t",
        }
    }

    /// As libav calls its form.
    const fn name(self) -> &'static CStr {
        match self {
            Container::Mp4 | Container::FragmentedMp4 | Container::Piece => c"mp4",
            Container::Transport => c"mpegts",
        }
    }

    const fn flags(self) -> &'static str {
        match self {
            Container::Mp4 => "+faststart",
            // A late index knows the first times, so that a fragmented file begins at zero too.
            Container::FragmentedMp4 => "+frag_keyframe+delay_moov+default_base_moof",
            // Without an edit list, which could only say where the first piece begins.
            Container::Piece => "+frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer",
            Container::Transport => "",
        }
    }

    /// Whether a track of this codec can be kept in it.
    pub fn holds(self, track: &Track) -> bool {
        initialise();
        let Some(parameters) = &track.parameters else { return false };
        if self == Container::Transport {
            return IN_TRANSPORT.contains(&&*track.codec);
        }
        let format = self.format();
        // SAFETY: the format is a constant of libav or null.
        unsafe {
            !format.is_null()
                && ffi::avformat_query_codec(format, parameters.raw().codec_id, ffi::FF_COMPLIANCE_NORMAL) == 1
        }
    }

    /// Null where libav was built without it. libav compares the name with those of all its formats, so it is asked once
    /// for each.
    fn format(self) -> *const ffi::AVOutputFormat {
        struct Found(*const ffi::AVOutputFormat);
        // SAFETY: what it points to is a constant of libav.
        unsafe impl Send for Found {}
        // SAFETY: as above.
        unsafe impl Sync for Found {}
        static MP4: OnceLock<Found> = OnceLock::new();
        static TRANSPORT: OnceLock<Found> = OnceLock::new();
        let known = if self == Container::Transport { &TRANSPORT } else { &MP4 };
        // SAFETY: the name is a valid C string, and what comes back is a constant of libav.
        known.get_or_init(|| Found(unsafe { ffi::av_guess_format(self.name().as_ptr(), ptr::null(), ptr::null()) })).0
    }
}

/// Why packets do not become a file.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    /// The packet is none that the file can take; others may be.
    #[error("the file cannot take this packet: {0}")]
    Packet(String),
    /// The file is of no use any more.
    #[error("the file cannot be written: {0}")]
    Failed(String),
    /// The same, for want of room or rights outside of memory.
    #[error("the file grew beyond what is kept in memory, and cannot be kept in `{folder}`: {cause}")]
    Spill { folder: String, cause: io::Error },
}

/// A file that is being written.
pub struct Muxer {
    context: *mut ffi::AVFormatContext,
    /// What libav writes to, owned; the callbacks have the same pointer.
    storage: *mut Storage,
    container: Container,
    /// For each track of the stream where it is in the file; `None` for those left out.
    tracks: Vec<Option<Place>>,
    /// For each track of the file when its latest packet is decoded: in ticks of the stream's track, and of the file's.
    latest: Vec<Option<(i64, i64)>>,
    /// Bytes of the fragment that libav has in memory.
    pending: u64,
    /// Whether a fragment was ended here, and what stands in front of all is written.
    is_fronted: bool,
}

/// A track in the file.
struct Place {
    index: c_int,
    /// Length of one tick of the times of its packets.
    base: TimeBase,
    /// What is taken off its packets.
    filter: Option<AdtsFilter>,
    /// Whether libav has a packet of it.
    has_begun: bool,
    /// Of fragments: its last packet, which is written when it is known how long it lasts. libav places what follows a
    /// fragment behind that.
    held: Option<Held>,
}

/// A packet whose successor is not known yet.
struct Held {
    data: Bytes,
    is_key: bool,
    pts: i64,
    dts: i64,
    duration: i64,
}

// SAFETY: everything behind the pointers is owned by the muxer and used by one thread at a time.
unsafe impl Send for Muxer {}

impl Muxer {
    /// Begins a file with those of `tracks` that the container holds. Beyond `most_in_memory` bytes it goes on in a
    /// temporary file.
    ///
    /// # Errors
    /// Where libav refuses the parameters of a track.
    pub fn new(container: Container, tracks: &[Track], most_in_memory: u64) -> Result<Muxer, MuxError> {
        initialise();
        let storage = Box::into_raw(Box::new(Storage { most_in_memory, ..Storage::default() }));
        let mut muxer = Muxer {
            context: ptr::null_mut(),
            storage,
            container,
            tracks: Vec::new(),
            latest: Vec::new(),
            pending: 0,
            is_fronted: false,
        };
        // SAFETY: the context is allocated here and freed when `muxer` is dropped. The storage, which the I/O context
        // gets a pointer to, lives until after that.
        unsafe {
            let made = ffi::avformat_alloc_output_context2(
                &raw mut muxer.context,
                container.format(),
                ptr::null(),
                ptr::null(),
            );
            checked(made)?;
            let context = muxer.context;
            (*context).flags |= ffi::AVFMT_FLAG_BITEXACT;
            if matches!(container, Container::Piece | Container::Transport) {
                (*context).avoid_negative_ts = ffi::AVFMT_AVOID_NEG_TS_DISABLED;
            }
            if container == Container::Transport {
                (*context).max_delay = TRANSPORT_DELAY;
            }
            (*context).opaque = storage.cast();
            (*context).io_open = Some(open_again);
            (*context).io_close2 = Some(close_again);
            (*context).pb = access(storage, true)?;
        }
        for track in tracks {
            let is_transport = container == Container::Transport;
            let base = if is_transport { TRANSPORT_BASE } else { track.time_base };
            let place = match &track.parameters {
                Some(parameters) if container.holds(track) => Some(Place {
                    index: muxer.add(parameters, base)?,
                    base,
                    // Sound has its headers in a transport stream.
                    filter: if is_transport { None } else { AdtsFilter::of(parameters).map_err(MuxError::Failed)? },
                    has_begun: false,
                    held: None,
                }),
                _ => None,
            };
            muxer.latest.extend(place.iter().map(|_| None));
            muxer.tracks.push(place);
        }
        let mut options = ffmpeg::Dictionary::new();
        if container != Container::Transport {
            options.set("movflags", container.flags());
            // FLAC in MP4, which libav calls that although players have known it for long.
            options.set("strict", "experimental");
        }
        if container == Container::Piece {
            options.set("use_editlist", "0");
        }
        // SAFETY: the context is complete; libav takes what it knows out of the dictionary, and the rest is freed.
        let written = unsafe {
            let mut raw = options.disown();
            let written = ffi::avformat_write_header(muxer.context, &raw mut raw);
            drop(ffmpeg::Dictionary::own(raw));
            written
        };
        muxer.outcome(written)?;
        Ok(muxer)
    }

    /// Adds a track; its index in the file.
    fn add(&mut self, parameters: &Parameters, base: TimeBase) -> Result<c_int, MuxError> {
        // SAFETY: the context is valid and its header not yet written; the new stream belongs to it. The parameters are
        // copied, and the memory for the matrix is allocated by libav and as long as asked for.
        unsafe {
            let stream = ffi::avformat_new_stream(self.context, ptr::null());
            if stream.is_null() {
                return Err(MuxError::Failed("no memory for another track".to_owned()));
            }
            checked(ffi::avcodec_parameters_copy((*stream).codecpar, parameters.raw()))?;
            // Tags of other containers mean something else here. That of HEVC without parameter sets in its packets
            // is kept: some players take nothing else.
            let hvc1 = u32::from_le_bytes(*b"hvc1");
            let is_hevc = parameters.id() == Id::HEVC;
            let keeps = is_hevc && parameters.raw().codec_tag == hvc1;
            // Of HLS, Apple's players take no other.
            let takes = is_hevc && self.container == Container::Piece && !parameters.extradata().is_empty();
            (*(*stream).codecpar).codec_tag = if keeps || takes { hvc1 } else { 0 };
            (*stream).time_base = rational(base);
            let (numerator, denominator) = parameters.frame_rate();
            (*stream).avg_frame_rate = ffi::AVRational { num: numerator, den: denominator };
            let (width, height) = parameters.pixel();
            if width > 0 && height > 0 {
                (*stream).sample_aspect_ratio = ffi::AVRational { num: width, den: height };
            }
            if let Some(matrix) = parameters.display_matrix() {
                let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX;
                let room = ffi::av_stream_new_side_data(stream, kind, matrix.len());
                if !room.is_null() {
                    room.copy_from_nonoverlapping(matrix.as_ptr(), matrix.len());
                }
            }
            Ok((*stream).index)
        }
    }

    /// Makes room for so many bytes more at once, of what stays in memory: growing step by step copies them each time.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.storage().memory.reserve_exact(bytes);
    }

    /// Whether the file has this track of the stream.
    pub fn has(&self, track: usize) -> bool {
        self.tracks.get(track).is_some_and(Option::is_some)
    }

    /// Appends a packet whose times are ticks of its track's base. Decoding times of a track must rise.
    ///
    /// # Errors
    /// See [`MuxError`].
    pub fn write(&mut self, packet: &Packet, pts: i64, dts: i64) -> Result<(), MuxError> {
        let Some(Some(place)) = self.tracks.get_mut(packet.track) else { return Ok(()) };
        let (index, base) = (place.index, place.base);
        let duration = packet.duration.map_or(0, |duration| duration.ticks_in(base));
        let bare =
            place.filter.as_mut().map(|filter| filter.strip(&packet.data)).transpose().map_err(MuxError::Packet)?;
        if let Some(configuration) = bare.as_ref().and_then(|bare| bare.configuration.as_deref()) {
            self.configure(index, configuration)?;
        }
        let data = bare.as_ref().map_or(&packet.data, |bare| &bare.data);
        let is_key = packet.is_key;
        if self.container != Container::FragmentedMp4 {
            return self.append(index, base, &Written { data, is_key, pts, dts, duration }, None);
        }
        self.write_behind(packet.track, Held { data: data.clone(), is_key, pts, dts, duration })
    }

    /// Appends the packet of `track` before `packet`, which waits in its place; ends a fragment that grows too large.
    fn write_behind(&mut self, track: usize, packet: Held) -> Result<(), MuxError> {
        let Some(Some(place)) = self.tracks.get_mut(track) else { return Ok(()) };
        if self.is_fronted && !place.has_begun && packet.pts < 0 {
            return Err(MuxError::Packet("it begins before the pictures that are written already".to_owned()));
        }
        let (next, bytes) = (packet.dts, packet.data.len() as u64);
        if let Some(before) = place.held.replace(packet) {
            self.write_held(track, &before, Some(next))?;
        }
        let have_begun = self.tracks.iter().flatten().all(|place| place.has_begun);
        let most = if have_begun { LONGEST_FRAGMENT } else { LONGEST_FIRST_FRAGMENT };
        if self.pending > 0 && self.pending.saturating_add(bytes) > most {
            self.end_fragment(have_begun)
        } else {
            Ok(())
        }
    }

    fn write_held(&mut self, track: usize, held: &Held, next: Option<i64>) -> Result<(), MuxError> {
        let Some(Some(place)) = self.tracks.get_mut(track) else { return Ok(()) };
        let (index, base) = (place.index, place.base);
        place.has_begun = true;
        let Held { data, is_key, pts, dts, duration } = held;
        let written = Written { data, is_key: *is_key, pts: *pts, dts: *dts, duration: *duration };
        let before = self.storage().length;
        self.append(index, base, &written, next)?;
        // libav has ended a fragment before a keyframe.
        if self.storage().length != before {
            self.pending = 0;
        }
        self.pending = self.pending.saturating_add(data.len() as u64);
        Ok(())
    }

    /// Has libav write what it keeps.
    fn end_fragment(&mut self, have_begun: bool) -> Result<(), MuxError> {
        // The first time it writes what stands in front of all fragments, and no more.
        let times = if self.is_fronted { 1 } else { 2 };
        for _ in 0..times {
            // SAFETY: the context is complete and its header written; no packet means that what is kept is written.
            let written = unsafe { ffi::av_write_frame(self.context, ptr::null_mut()) };
            self.outcome(written)?;
        }
        self.position()?;
        self.pending = 0;
        if !self.is_fronted && !have_begun {
            // The front says nothing of where a track begins that is not there yet: its first fragment does.
            // SAFETY: the private data is that of the MP4 muxer, which has this option; name and value are valid C
            // strings.
            let set = unsafe {
                let (name, value) = (c"movflags".as_ptr(), c"+frag_discont".as_ptr());
                ffi::av_opt_set((*self.context).priv_data, name, value, 0)
            };
            self.outcome(set)?;
        }
        self.is_fronted = true;
        Ok(())
    }

    /// What comes before the first packet of a track, and was not known when the file was begun.
    fn configure(&mut self, index: c_int, extradata: &[u8]) -> Result<(), MuxError> {
        // SAFETY: the stream is one of the context's, and its parameters are its own. The room is allocated by libav's
        // allocator, with the padding that it wants, and what was there is freed by the same.
        unsafe {
            let parameters = (*stream(self.context, index)).codecpar;
            let room = ffi::av_mallocz(extradata.len() + ffi::AV_INPUT_BUFFER_PADDING_SIZE as usize).cast::<u8>();
            if room.is_null() {
                return Err(MuxError::Failed("no memory for a track's configuration".to_owned()));
            }
            room.copy_from_nonoverlapping(extradata.as_ptr(), extradata.len());
            ffi::av_freep((&raw mut (*parameters).extradata).cast());
            (*parameters).extradata = room;
            (*parameters).extradata_size = c_int::try_from(extradata.len()).unwrap_or(0);
        }
        Ok(())
    }

    /// Appends a packet to the track at `index` of the file. `next` is when the one behind it is decoded, where that is
    /// known.
    fn append(
        &mut self,
        index: c_int,
        base: TimeBase,
        packet: &Written<'_>,
        next: Option<i64>,
    ) -> Result<(), MuxError> {
        use ffmpeg::packet::Mut;
        let latest = usize::try_from(index).ok().and_then(|index| self.latest.get_mut(index));
        let mut borrowed = ffmpeg::Packet::empty();
        // SAFETY: the packet borrows the bytes for this call: libav neither writes to nor keeps what has no buffer of
        // its own. The stream is one of the context's.
        let written = unsafe {
            let raw = borrowed.as_mut_ptr();
            (*raw).data = packet.data.as_ptr().cast_mut();
            (*raw).size = c_int::try_from(packet.data.len()).unwrap_or(c_int::MAX);
            (*raw).pts = packet.pts;
            (*raw).dts = packet.dts;
            (*raw).duration = packet.duration;
            (*raw).stream_index = index;
            if packet.is_key {
                (*raw).flags |= ffi::AV_PKT_FLAG_KEY;
            }
            let ticks = (*stream(self.context, index)).time_base;
            ffi::av_packet_rescale_ts(raw, rational(base), ticks);
            if let Some(latest) = latest {
                // Times that rise in the stream's finer ticks may be one in those of the file.
                let lifted = latest.filter(|(before, _)| packet.dts > *before).map(|(_, last)| last.saturating_add(1));
                if let Some(least) = lifted.filter(|least| (*raw).dts < *least) {
                    (*raw).dts = least;
                    (*raw).pts = (*raw).pts.max(least);
                }
                *latest = Some((packet.dts, (*raw).dts));
            }
            if let Some(next) = next {
                (*raw).duration = ffi::av_rescale_q(next, rational(base), ticks).saturating_sub((*raw).dts).max(0);
            }
            ffi::av_write_frame(self.context, raw)
        };
        match self.outcome(written) {
            Err(MuxError::Failed(why)) => Err(MuxError::Packet(why)),
            other => other,
        }
    }

    /// Appends a packet as it is kept in a file: without what [`AdtsFilter`] takes off.
    ///
    /// # Errors
    /// See [`MuxError`].
    pub(super) fn write_bare(&mut self, track: usize, packet: &Written<'_>) -> Result<(), MuxError> {
        let Some(Some(place)) = self.tracks.get(track) else { return Ok(()) };
        self.append(place.index, place.base, packet, None)
    }

    /// What has been written up to here, as a position in the content.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn position(&mut self) -> Result<u64, MuxError> {
        // SAFETY: the context has its I/O context until it is dropped.
        unsafe { ffi::avio_flush((*self.context).pb) };
        self.outcome(0)?;
        Ok(self.storage().length)
    }

    /// Bytes that it holds in memory, what libav keeps for a fragment included.
    pub fn memory(&mut self) -> u64 {
        let pending = self.pending;
        (self.storage().memory.len() as u64).saturating_add(pending)
    }

    /// Begins another piece of a transport stream: with the tables that a player needs to begin there.
    ///
    /// # Errors
    /// Where libav does not know how.
    pub(super) fn begin_piece(&mut self) -> Result<(), MuxError> {
        // SAFETY: the private data is that of the muxer of transport streams, which has this option; name and value are
        // valid C strings.
        let set = unsafe {
            let (name, value) = (c"mpegts_flags".as_ptr(), c"+resend_headers".as_ptr());
            ffi::av_opt_set((*self.context).priv_data, name, value, 0)
        };
        self.outcome(set)
    }

    /// What was written since the last piece.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn take_piece(&mut self) -> Result<Bytes, MuxError> {
        // SAFETY: the context is complete and its header written; no packet means that what is kept is written.
        let written = unsafe { ffi::av_write_frame(self.context, ptr::null_mut()) };
        self.outcome(written)?;
        self.position()?;
        Ok(self.storage().drain())
    }

    /// Completes the file; its content, and the hexadecimal SHA-256 of it.
    ///
    /// # Errors
    /// Where it cannot be completed: then nothing of it is left.
    pub fn finish(mut self) -> Result<(Content, String), MuxError> {
        self.complete()?;
        self.storage().take().map_err(|cause| spilled(&cause))
    }

    /// Completes the file, of which all is in memory; its content, which nobody wants hashed.
    ///
    /// # Errors
    /// Where it cannot be completed.
    pub(super) fn finish_in_memory(mut self) -> Result<Bytes, MuxError> {
        self.complete()?;
        Ok(self.storage().drain())
    }

    fn complete(&mut self) -> Result<(), MuxError> {
        let held: Vec<Option<Held>> =
            self.tracks.iter_mut().map(|place| place.as_mut().and_then(|place| place.held.take())).collect();
        for (track, held) in held.iter().enumerate().filter_map(|(track, held)| Some((track, held.as_ref()?))) {
            self.write_held(track, held, None)?;
        }
        // SAFETY: the header was written, and the trailer is written once.
        let written = unsafe {
            let written = ffi::av_write_trailer(self.context);
            ffi::avio_flush((*self.context).pb);
            written
        };
        self.outcome(written)?;
        self.outcome(0)
    }

    fn storage(&mut self) -> &mut Storage {
        // SAFETY: the storage is owned by the muxer until it is dropped, and no call of libav, which may use it too, is
        // under way.
        unsafe { &mut *self.storage }
    }

    /// What libav's answer means, with the cause that only the storage knows.
    fn outcome(&mut self, answer: c_int) -> Result<(), MuxError> {
        match (&self.storage().failed, answer) {
            (Some(cause), _) => Err(spilled(cause)),
            (None, 0..) => Ok(()),
            (None, error) => Err(MuxError::Failed(ffmpeg::Error::from(error).to_string())),
        }
    }
}

fn spilled(cause: &io::Error) -> MuxError {
    let cause = io::Error::new(cause.kind(), cause.to_string());
    MuxError::Spill { folder: std::env::temp_dir().display().to_string(), cause }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // SAFETY: context, I/O context and storage were allocated in `new` and are freed once; the storage last.
        unsafe {
            if !self.context.is_null() {
                release((*self.context).pb);
                (*self.context).pb = ptr::null_mut();
                ffi::avformat_free_context(self.context);
            }
            drop(Box::from_raw(self.storage));
        }
    }
}

fn checked(answer: c_int) -> Result<(), MuxError> {
    if answer < 0 { Err(MuxError::Failed(ffmpeg::Error::from(answer).to_string())) } else { Ok(()) }
}

fn rational(base: TimeBase) -> ffi::AVRational {
    let part = |value: u32| c_int::try_from(value).unwrap_or(c_int::MAX);
    ffi::AVRational { num: part(base.numerator()), den: part(base.denominator()) }
}

/// Where the bytes are: in memory, or behind a limit all of them in a file.
#[derive(Default)]
struct Storage {
    memory: Vec<u8>,
    file: Option<File>,
    length: u64,
    /// Where in the content the bytes in memory begin: what is before was handed over.
    start: u64,
    most_in_memory: u64,
    /// What went wrong first.
    failed: Option<io::Error>,
}

impl Storage {
    fn write_at(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let end = position + bytes.len() as u64;
        if self.file.is_none() && end > self.most_in_memory {
            let file = SpilledFile::create()?;
            file.write_all_at(&self.memory, 0)?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        match &self.file {
            Some(file) => file.write_all_at(bytes, position)?,
            None => {
                let behind = |position: u64| position.checked_sub(self.start).ok_or(io::ErrorKind::InvalidInput);
                let (start, end) = (place(behind(position)?)?, place(behind(end)?)?);
                // Most of it is appended; libav goes back for sizes and the index.
                if self.memory.len() < start {
                    self.memory.resize(start, 0);
                }
                let over = self.memory.len().min(end) - start;
                self.memory[start..start + over].copy_from_slice(&bytes[..over]);
                self.memory.extend_from_slice(&bytes[over..]);
            }
        }
        self.length = self.length.max(end);
        Ok(())
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        match &self.file {
            Some(file) => file.read_at(into, position),
            None => {
                let behind = position.checked_sub(self.start).ok_or(io::ErrorKind::InvalidInput)?;
                let rest = self.memory.get(place(behind)?..).unwrap_or_default();
                let count = rest.len().min(into.len());
                into[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }

    /// Hands over what is in memory.
    fn drain(&mut self) -> Bytes {
        self.start = self.length;
        std::mem::take(&mut self.memory).into()
    }

    fn take(&mut self) -> io::Result<(Content, String)> {
        let mut digest = Sha256::new();
        let content = match self.file.take() {
            None => {
                let bytes = Bytes::from(std::mem::take(&mut self.memory));
                digest.update(&bytes);
                Content::Memory(bytes)
            }
            Some(mut file) => {
                let mut buffer = vec![0; BUFFER];
                io::Seek::rewind(&mut file)?;
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        count => digest.update(&buffer[..count]),
                    }
                }
                Content::File(SpilledFile::unnamed(file, self.length))
            }
        };
        Ok((content, hex::encode(digest.finalize())))
    }
}

fn place(position: u64) -> io::Result<usize> {
    usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// One way in: libav reads a file again while it writes it, to move its index to the front.
struct Cursor {
    storage: *mut Storage,
    position: u64,
}

/// Makes an I/O context on the storage.
///
/// # Safety
/// The storage must outlive it, and [`release`] must free it.
unsafe fn access(storage: *mut Storage, writes: bool) -> Result<*mut ffi::AVIOContext, MuxError> {
    let cursor = Box::into_raw(Box::new(Cursor { storage, position: 0 }));
    // SAFETY: the buffer is libav's own, and the context takes it over with the cursor.
    unsafe {
        let buffer = ffi::av_malloc(BUFFER).cast::<u8>();
        let context = if buffer.is_null() {
            ptr::null_mut()
        } else {
            ffi::avio_alloc_context(
                buffer,
                BUFFER as c_int,
                c_int::from(writes),
                cursor.cast(),
                Some(read),
                Some(write),
                Some(seek),
            )
        };
        if context.is_null() {
            ffi::av_free(buffer.cast());
            drop(Box::from_raw(cursor));
            return Err(MuxError::Failed("no memory for its buffer".to_owned()));
        }
        Ok(context)
    }
}

/// Frees what [`access`] made.
///
/// # Safety
/// `context` is null or was made by [`access`] and is not used afterwards.
unsafe fn release(mut context: *mut ffi::AVIOContext) {
    if context.is_null() {
        return;
    }
    // SAFETY: buffer and cursor belong to the context alone; libav may have replaced the buffer, so it is asked for it.
    unsafe {
        drop(Box::from_raw((*context).opaque.cast::<Cursor>()));
        ffi::av_freep((&raw mut (*context).buffer).cast());
        ffi::avio_context_free(&raw mut context);
    }
}

/// A packet that is ready for the file.
pub(super) struct Written<'a> {
    pub data: &'a Bytes,
    pub is_key: bool,
    /// Ticks of its track's base, like the other times.
    pub pts: i64,
    pub dts: i64,
    /// Zero where it is not known.
    pub duration: i64,
}

/// A track of the file.
///
/// # Safety
/// `index` is that of one of the context's streams.
unsafe fn stream(context: *mut ffi::AVFormatContext, index: c_int) -> *mut ffi::AVStream {
    // SAFETY: indices of streams are not negative, and the caller knows this one.
    unsafe { *(*context).streams.add(index as usize) }
}

/// libav's `io_open`: a second way to the same bytes.
unsafe extern "C" fn open_again(
    context: *mut ffi::AVFormatContext,
    into: *mut *mut ffi::AVIOContext,
    _url: *const libc::c_char,
    _flags: c_int,
    _options: *mut *mut ffi::AVDictionary,
) -> c_int {
    // SAFETY: `opaque` is the storage of the muxer whose context this is; it outlives every call of libav on it.
    match unsafe { access((*context).opaque.cast(), false) } {
        Ok(opened) => {
            // SAFETY: libav gives a valid place for the answer.
            unsafe { *into = opened };
            0
        }
        Err(_) => -libc::ENOMEM,
    }
}

unsafe extern "C" fn close_again(_context: *mut ffi::AVFormatContext, opened: *mut ffi::AVIOContext) -> c_int {
    // SAFETY: it was made by `open_again`.
    unsafe { release(opened) };
    0
}

unsafe extern "C" fn read(cursor: *mut c_void, into: *mut u8, length: c_int) -> c_int {
    // SAFETY: the cursor is the one that `access` made, used by one thread; its storage is alive and not borrowed
    // elsewhere while libav runs. libav gives `length` writable bytes, which are filled before they are read.
    let (cursor, into) = unsafe {
        let length = usize::try_from(length).unwrap_or(0);
        ptr::write_bytes(into, 0, length);
        (&mut *cursor.cast::<Cursor>(), std::slice::from_raw_parts_mut(into, length))
    };
    // SAFETY: as above.
    let storage = unsafe { &mut *cursor.storage };
    match storage.read_at(cursor.position, into) {
        Ok(0) => ffi::AVERROR_EOF,
        Ok(count) => {
            cursor.position += count as u64;
            c_int::try_from(count).unwrap_or(c_int::MAX)
        }
        Err(error) => {
            storage.failed.get_or_insert(error);
            -libc::EIO
        }
    }
}

unsafe extern "C" fn write(cursor: *mut c_void, from: *mut u8, length: c_int) -> c_int {
    // SAFETY: as in `read`; libav gives `length` readable bytes.
    let (cursor, bytes) = unsafe {
        let length = usize::try_from(length).unwrap_or(0);
        (&mut *cursor.cast::<Cursor>(), std::slice::from_raw_parts(from, length))
    };
    // SAFETY: as in `read`.
    let storage = unsafe { &mut *cursor.storage };
    match storage.write_at(cursor.position, bytes) {
        Ok(()) => {
            cursor.position += bytes.len() as u64;
            length
        }
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(libc::EIO);
            storage.failed.get_or_insert(error);
            -number
        }
    }
}

unsafe extern "C" fn seek(cursor: *mut c_void, offset: i64, from: c_int) -> i64 {
    // SAFETY: as in `read`.
    let cursor = unsafe { &mut *cursor.cast::<Cursor>() };
    // SAFETY: as in `read`.
    let length = unsafe { (*cursor.storage).length };
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let position = match from & !ffi::AVSEEK_FORCE {
        ffi::AVSEEK_SIZE => return signed(length),
        libc::SEEK_SET => offset,
        libc::SEEK_CUR => signed(cursor.position).saturating_add(offset),
        libc::SEEK_END => signed(length).saturating_add(offset),
        _ => return i64::from(-libc::EINVAL),
    };
    match u64::try_from(position) {
        Ok(position) => {
            cursor.position = position;
            position as i64
        }
        Err(_) => i64::from(-libc::EINVAL),
    }
}

/// The time of an item in ticks of a track, less a start.
pub fn ticks_since(time: MediaTime, start: MediaTime, base: TimeBase) -> i64 {
    time.ticks_in(base).saturating_sub(start.ticks_in(base))
}
