//! ONNX Runtime sessions, one for each model and thread.

/// The sessions of one pool thread, shared between the nodes that run the same model.
#[derive(Default)]
pub struct Sessions {}

impl Sessions {
    /// Frees the sessions that no runner uses any more.
    pub fn release_unused(&mut self) {}
}
