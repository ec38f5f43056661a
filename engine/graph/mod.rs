//! Graph files: from text to a plan.

pub mod plan;
