//! Sources: what makes items.

pub mod file;
pub mod synthetic;
