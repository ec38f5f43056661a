//! Sources: what makes items.

pub mod file;
mod live;
mod playback;
pub mod probe;
pub mod push;
pub mod rtsp;
pub mod scene;
pub mod synthetic;
mod track;
pub mod url;
