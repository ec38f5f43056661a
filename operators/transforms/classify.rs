//! (see the registry)
