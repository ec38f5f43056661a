//! The timestamp sanitiser.
