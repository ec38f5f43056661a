//! Sources: what makes items.

pub mod file;
mod playback;
pub mod synthetic;
