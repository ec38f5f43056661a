//! Turns a graph file into a running dataflow.

pub mod bench;
pub mod cli;
pub mod control;
pub mod graph;
pub mod reference;
pub mod runtime;
pub mod testing;
