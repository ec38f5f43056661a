//! Sinks: what takes items out of a graph.

pub mod blackhole;
pub mod dataset;
pub mod file;
pub mod hls;
mod joined;
mod objects;
pub mod records;
pub mod s3;
pub mod segments;
pub mod sse;
pub mod vss;
