//! The control plane: HTTP and server-sent events.
//!
//! It knows the engine only by [`Observe`](crate::runtime::stats::Observe) and by the hub that the `sse` sinks publish
//! to, and runs on one thread of its own.

pub mod events;
mod metrics;
mod page;
pub mod predict;
pub mod push;
mod routes;
mod server;

pub use server::{ControlConfig, ControlHandle, start};
