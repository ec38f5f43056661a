//! Keeps every record that a test's graph makes, in the order in which they came.

use std::sync::{Arc, Mutex};

use operators::item::Record;
use operators::lock::lock;
use operators::operator::Publisher;

/// The publisher of a test's graph. Its only sink hands over every record, gaps and errors included.
#[derive(Default)]
pub struct Collector {
    records: Mutex<Vec<Arc<Record>>>,
}

impl Collector {
    /// Takes what was collected, by stream and in the order of each stream.
    pub fn take(&self) -> Vec<Arc<Record>> {
        let mut records = std::mem::take(&mut *lock(&self.records));
        // Streams run side by side; a stable order makes two runs tell the same.
        records.sort_by(|one, other| one.stream.cmp(&other.stream));
        records
    }
}

impl Publisher for Collector {
    fn publish(&self, record: &Arc<Record>) {
        lock(&self.records).push(record.clone());
    }
}
