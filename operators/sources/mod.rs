//! Sources: what makes items.

pub mod file;
mod input;
pub(crate) mod live;
mod playback;
pub mod probe;
pub mod push;
pub mod rtsp;
pub mod s3;
pub mod scene;
pub mod synthetic;
pub(crate) mod track;
pub mod url;
