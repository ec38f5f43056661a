//! What flows through the engine, and everything that makes, changes or takes it.
//!
//! This crate knows neither the dataflow system nor the control plane: `engine` depends on it, never the other way.
//! Inside, `sources`, `transforms` and `sinks` use `media` and `inference`, and those use `item`. Adding an operator
//! is one file and one line in [`OPERATORS`].

pub mod address;
pub mod busy;
pub mod clock;
pub mod config;
pub mod error;
pub mod hooks;
pub mod inference;
pub mod inlet;
pub mod item;
pub mod lease;
pub mod media;
pub mod operator;
pub mod preview;
pub mod reach;
pub mod sinks;
pub mod sources;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod timestamps;
pub mod transforms;

use operator::Registration;

/// Every type that a graph file may name.
pub static OPERATORS: &[&Registration] = &[
    &sources::file::REGISTRATION,
    &sources::push::REGISTRATION,
    &sources::rtsp::REGISTRATION,
    &sources::synthetic::REGISTRATION,
    &sources::url::REGISTRATION,
    &transforms::checksum::REGISTRATION,
    &transforms::classify::REGISTRATION,
    &transforms::detect::REGISTRATION,
    &transforms::preprocess::REGISTRATION,
    &transforms::sample::REGISTRATION,
    &sinks::file::REGISTRATION,
    &sinks::sse::REGISTRATION,
    &sinks::blackhole::REGISTRATION,
];
