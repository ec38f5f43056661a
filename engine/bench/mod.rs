//! `engine bench`: how fast a graph runs, and how fast this machine could at most run it.

pub mod measure;
pub mod sequential;
