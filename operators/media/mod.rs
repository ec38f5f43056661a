//! libav, behind safe types: the only place with `unsafe`.
//!
//! A demuxer ([`demux`]) reads packets of a chosen track, a decoder ([`decode`]) turns them into pictures, a ledger
//! ([`ledger`]) numbers the pictures and those that were left out, and a picture becomes a [`crate::item::Frame`]
//! without being copied ([`picture`]) or, where its format is none of ours, converted ([`scale`]). What was stored turned
//! is turned upright ([`orientation`]). Where pictures must be coded anew, [`encode`] does it. Where decoding may start anew, [`refresh`] sees. Packets that nobody decodes go into
//! files again ([`mux`]), or into pieces of a presentation ([`fragment`]), with what [`parameters`] keeps of their track; where that changes on the way, [`parameter_sets`]
//! sees. Still pictures have a decoder of their own, without libav ([`still`]).

#![allow(unsafe_code, reason = "libav is a C library; each block says why it is sound")]

mod adts;
pub mod decode;
pub mod demux;
pub mod encode;
pub mod formats;
pub mod fragment;
pub mod gate;
pub mod ledger;
pub mod mux;
pub mod orientation;
pub mod parameter_sets;
pub mod parameters;
pub mod picture;
pub mod refresh;
pub mod scale;
pub mod still;
mod transport;

use std::sync::Once;

/// Makes libav ready; every entry into this module calls it first. Its own messages are silenced: they go straight to
/// standard error and name no stream; what matters comes back as errors and counted repairs.
fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        ffmpeg_next::util::log::set_level(ffmpeg_next::util::log::Level::Quiet);
        // Fills the table of error texts. It fails in no version of libav.
        if let Err(error) = ffmpeg_next::init() {
            tracing::warn!("libav could not be initialised: {error}");
        }
    });
}
