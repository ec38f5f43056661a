//! Runs plans: workers, taps, offload, sinks, supervision.

pub mod stats;
