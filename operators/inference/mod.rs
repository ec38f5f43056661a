//! Models: their manifests, their sessions, what their outputs mean, and the pool that runs them.

pub mod decode;
pub mod device;
pub mod download;
pub mod hashes;
pub mod inspect;
pub mod manifest;
pub mod model;
pub mod pool;
mod queue;
pub mod runtime;
pub mod session;
