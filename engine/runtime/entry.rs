//! The entry of a dropping branch in the middle of a graph.
//!
//! It gives the source's credit back and pays from its own budget, so that a branch that drops never slows a sibling.

use std::collections::HashMap;
use std::sync::Arc;

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

    /// Exchanges the item's credit for one of this branch; `false` when the branch is full.
    pub fn admit(&mut self, item: &mut Item) -> bool {
        let limits = self.limits;
        let budget = self.budgets.entry(item.stream.clone()).or_insert_with(|| Budget::new(limits));
        match budget.try_acquire(item.payload.bytes()) {
            Ok(credit) => {
                item.lease.credit = Some(credit);
                true
            }
            Err(NoCredit::Exhausted | NoCredit::TooLarge) => false,
        }
    }
}
