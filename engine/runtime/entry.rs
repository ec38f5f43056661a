//! The entry of a dropping branch in the middle of a graph.
//!
//! It gives the source's credit back and pays from its own budget, so that a branch that drops never slows a sibling.

use std::collections::HashMap;
use std::sync::Arc;

use operators::config::format_size;
use operators::error::ItemError;
use operators::item::{Item, StreamId};
use operators::lease::{Budget, NoCredit};

use crate::graph::plan;

pub struct Entry {
    limits: operators::lease::Limits,
    budgets: HashMap<StreamId, Arc<Budget>>,
}

impl Entry {
    /// `None` where the branch shares its source's fate.
    pub fn new(planned: Option<plan::Entry>) -> Option<Entry> {
        planned.map(|entry| Entry { limits: entry.limits, budgets: HashMap::new() })
    }

    /// Exchanges the item's credit for one of this branch.
    pub fn admit(&mut self, item: &mut Item) -> Admission {
        let limits = self.limits;
        let budget = self.budgets.entry(item.stream.clone()).or_insert_with(|| Budget::new(limits));
        let bytes = item.payload.bytes();
        match budget.try_acquire(bytes) {
            Ok(credit) => {
                item.lease.credit = Some(credit);
                Admission::Admitted
            }
            Err(NoCredit::Exhausted) => Admission::Full,
            Err(NoCredit::TooLarge) => Admission::TooLarge(ItemError::Failed(format!(
                "it takes {}, more than this branch's whole budget of {}; raise `budget.bytes`",
                format_size(bytes),
                format_size(limits.bytes)
            ))),
        }
    }
}

/// What became of an item at the entry.
pub enum Admission {
    Admitted,
    /// Something else of the stream must go first.
    Full,
    /// Waiting or dropping cannot help.
    TooLarge(ItemError),
}
