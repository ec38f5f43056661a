//! Runs plans: workers, taps, offload, sinks, supervision.

pub mod amounts;
mod build;
mod conversations;
pub mod counters;
pub mod culprit;
mod dataflow_log;
mod discovery;
pub mod ending;
mod entry;
mod failure;
mod feed;
mod generation;
pub mod graph_streams;
pub mod graphs;
mod health;
pub mod histogram;
pub mod inlets;
mod inline;
pub mod load;
mod loading;
mod mailbox;
mod node;
mod offload;
mod outgoing;
mod passage;
pub mod predict;
pub mod preview;
pub mod process;
mod pulse;
pub mod reload;
pub mod saved;
mod sink;
pub mod stats;
pub mod streams;
mod supervision;
pub mod supervisor;
mod tally;
mod tap;
mod watch;
pub mod window;
mod worker;
mod workshop;

#[cfg(test)]
mod tests;
