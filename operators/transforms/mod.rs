//! Operators: what changes items.

pub mod checksum;
pub mod classify;
pub mod detect;
pub mod model_runner;
pub mod preprocess;
pub mod sample;
