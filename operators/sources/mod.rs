//! Sources: what makes items.

pub mod file;
mod playback;
pub mod scene;
pub mod synthetic;
