//! Operators: what changes items.

pub mod checksum;
pub mod chunk;
pub mod classify;
pub mod clip;
pub mod detect;
mod media_file;
pub mod model_runner;
#[cfg(test)]
pub(crate) mod onnx;
pub mod preprocess;
#[cfg(test)]
pub(crate) mod reference;
pub mod sample;
