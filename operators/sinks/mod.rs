//! Sinks: what takes items out of a graph.

pub mod blackhole;
pub mod file;
pub mod records;
pub mod segments;
pub mod sse;
pub mod vss;
