//! Models, sessions and the pool.

pub mod model;
pub mod pool;
pub mod session;
