//! The control plane: HTTP and server-sent events.
//!
//! It knows the engine only by [`Observe`](crate::runtime::stats::Observe), by the graphs that may change
//! ([`Graphs`](crate::runtime::graphs::Graphs)), by the hub that the `sse` sinks publish to and the playlists of `hls` sinks, and runs on one thread of
//! its own.

mod body;
pub mod emf;
pub mod events;
mod graphs;
pub mod guard;
mod hls;
pub mod keys;
mod live;
mod mediamtx;
mod metrics;
mod page;
pub mod predict;
mod prompt;
pub mod push;
pub mod rate;
mod routes;
mod server;
mod sessions;
mod streams;
pub mod tls;
mod work;

pub use server::{ControlConfig, ControlHandle, start};
