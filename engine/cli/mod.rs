//! The command line: one file for each subcommand.

pub mod live;
pub mod logging;
pub mod results;
pub mod summary;
