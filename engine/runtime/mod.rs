//! Runs plans: workers, taps, offload, sinks, supervision.

mod assembly;
mod build;
pub mod counters;
mod dataflow_log;
mod entry;
mod failure;
mod health;
pub mod histogram;
mod inline;
mod mailbox;
mod node;
mod offload;
pub mod predict;
pub mod preview;
pub mod process;
mod sink;
pub mod stats;
mod supervision;
pub mod supervisor;
mod tap;
mod worker;

#[cfg(test)]
mod tests;
