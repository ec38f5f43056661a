//! What flows through the engine, and everything that makes, changes or takes it.
//!
//! This crate knows neither the dataflow system nor the control plane: `engine` depends on it, never the other way.
//! Inside, `sources`, `transforms` and `sinks` use `media` and `inference`, and those use `item`. Adding an operator
//! is one file and one line in [`OPERATORS`].

pub mod address;
pub mod backoff;
pub mod busy;
pub mod chaos;
pub mod choice;
pub mod clock;
pub mod config;
pub mod encoding;
pub mod error;
pub mod hooks;
pub mod inference;
pub mod inlet;
pub mod item;
pub mod lease;
pub mod lock;
pub mod made;
pub mod media;
pub mod operator;
pub mod packet_times;
pub mod picture;
pub mod preview;
pub mod progress;
pub mod reach;
pub mod sinks;
pub mod sources;
pub mod storage;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod timestamps;
pub mod transforms;
pub mod tunnel;

use operator::Registration;

/// Every type that a graph file may name.
pub static OPERATORS: &[&Registration] = &[
    &sources::file::REGISTRATION,
    &sources::push::REGISTRATION,
    &sources::rtsp::REGISTRATION,
    &sources::s3::REGISTRATION,
    &sources::synthetic::REGISTRATION,
    &sources::url::REGISTRATION,
    &transforms::checksum::REGISTRATION,
    &transforms::chunk::REGISTRATION,
    &transforms::classify::REGISTRATION,
    &transforms::clip::REGISTRATION,
    &transforms::detect::REGISTRATION,
    &transforms::preprocess::REGISTRATION,
    &transforms::sample::REGISTRATION,
    &sinks::dataset::REGISTRATION,
    &sinks::file::REGISTRATION,
    &sinks::hls::REGISTRATION,
    &sinks::s3::REGISTRATION,
    &sinks::sse::REGISTRATION,
    &sinks::vss::REGISTRATION,
    &sinks::blackhole::REGISTRATION,
];
