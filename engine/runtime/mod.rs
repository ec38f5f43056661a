//! Runs plans: workers, taps, offload, sinks, supervision.

mod build;
pub mod counters;
mod dataflow_log;
mod entry;
mod failure;
mod inline;
mod mailbox;
mod node;
mod offload;
pub mod predict;
pub mod process;
mod sink;
pub mod stats;
pub mod supervisor;
mod tap;
mod worker;

#[cfg(test)]
mod tests;
