//! Graph files: from text to a plan.

pub mod answers;
pub mod cases;
pub mod chaos;
pub mod check;
pub mod cover;
pub mod demand;
pub mod diagnostics;
pub mod diagram;
pub mod explain;
pub mod fields;
pub mod files;
pub mod identity;
pub mod memory;
pub mod nodes;
pub mod parse;
pub mod permission;
pub mod places;
pub mod plan;
pub mod planner;
pub mod references;
pub mod secrecy;
pub mod settings;
pub mod state;
pub mod substitute;
#[cfg(test)]
pub mod testing;
pub mod wiring;
