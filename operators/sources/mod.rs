//! Sources: what makes items.

pub mod file;
pub mod scene;
pub mod synthetic;
