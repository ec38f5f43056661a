//! `rtsp`: plays cameras. What happens when one goes away is [`super::live`]'s affair.

use crate::item::Kind;
use crate::operator::{Execution, Produces, Registration, Role};

use super::live::settings::{
    BACKOFF_FIRST, BACKOFF_MOST, CONNECT_TIMEOUT, FALLBACK, FALLBACK_AFTER, HOOKS, KEYFRAMES_ONLY, LiveSource,
    NO_FRAME_FOR, READ_TIMEOUT, RTSP_STREAMS, SKIP, TRANSPORT, Takes, URL, built,
};

pub static REGISTRATION: Registration = Registration {
    name: "rtsp",
    role: Role::Source,
    summary: "Plays RTSP cameras, and connects again whenever one is lost.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Frame]),
    fields: &[
        URL,
        RTSP_STREAMS,
        HOOKS,
        TRANSPORT,
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
    example: "[sources.cameras]\ntype = \"rtsp\"\nstreams.door = \"rtsp://10.0.0.7/main\"\n",
    build: |context, table| LiveSource::build(context, Takes::Rtsp, table).map(built),
};
