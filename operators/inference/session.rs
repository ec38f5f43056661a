//! x
#[derive(Default)]
pub struct Sessions {}
