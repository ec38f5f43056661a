//! `url`: plays any live input that libav opens: HLS, SRT, RTMP, MPEG-TS over TCP or UDP, RTP by a session description.
//! Like [`super::rtsp`] but for the transport, which the URL says itself.

use crate::item::Kind;
use crate::operator::{Execution, Produces, Registration, Role};

use super::live::settings::{
    BACKOFF_FIRST, BACKOFF_MOST, CONNECT_TIMEOUT, FALLBACK, FALLBACK_AFTER, HOOKS, KEYFRAMES_ONLY, LiveSource,
    NO_FRAME_FOR, READ_TIMEOUT, SKIP, Takes, URL, URL_STREAMS, built,
};

pub static REGISTRATION: Registration = Registration {
    name: "url",
    role: Role::Source,
    summary: "Plays any live URL of FFmpeg (HLS, SRT, RTMP, MPEG-TS, RTP by an .sdp file), and connects again whenever \
              it is lost or ends.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Frame]),
    fields: &[
        URL,
        URL_STREAMS,
        HOOKS,
        CONNECT_TIMEOUT,
        READ_TIMEOUT,
        NO_FRAME_FOR,
        BACKOFF_FIRST,
        BACKOFF_MOST,
        FALLBACK,
        FALLBACK_AFTER,
        SKIP,
        KEYFRAMES_ONLY,
    ],
    example: "[sources.channel]\ntype = \"url\"\nstreams.news = \"https://example.org/live.m3u8\"\n",
    build: |context, table| LiveSource::build(context, Takes::Anything, table).map(built),
};
