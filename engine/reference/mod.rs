//! What can be written in a graph file, told from the registry: for the terminal, as a page, and as a JSON Schema.
//! Nothing here is written by hand twice: a new registration appears in all of them.

pub mod catalogue;
pub mod page;
pub mod schema;
pub mod text;
