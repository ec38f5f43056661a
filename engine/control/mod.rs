//! The control plane: HTTP and server-sent events.
