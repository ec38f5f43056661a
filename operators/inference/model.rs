//! The catalog of models: manifests, found by name.

/// Every model that graphs may name.
#[derive(Debug, Default)]
pub struct Catalog {}
