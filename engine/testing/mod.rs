//! The tests in graph files: runs the graph of a test with its inputs, and compares what came out of a node with what
//! is expected of it. [`crate::graph::cases`] reads them.

pub mod collector;
pub mod compare;
pub mod run;
