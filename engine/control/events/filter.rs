//! Which events a subscriber of server-sent events wants.

use operators::item::{Record, RecordBody};

/// Which events a subscriber wants: one of the values of every dimension that has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub graphs: Vec<String>,
    pub nodes: Vec<String>,
    pub streams: Vec<String>,
    /// Labels of predictions or of detections; records without either are then not wanted.
    pub labels: Vec<String>,
}

impl Filter {
    pub fn wants(&self, record: &Record) -> bool {
        let one_of = |wanted: &[String], value: &str| wanted.is_empty() || wanted.iter().any(|name| name == value);
        one_of(&self.graphs, &record.graph)
            && one_of(&self.nodes, &record.node)
            && one_of(&self.streams, &record.stream)
            && (self.labels.is_empty() || self.wants_label_of(&record.body))
    }

    fn wants_label_of(&self, body: &RecordBody) -> bool {
        let wanted = |label: &str| self.labels.iter().any(|name| name == label);
        match body {
            RecordBody::Classification { predictions, .. } => predictions.iter().any(|found| wanted(&found.label)),
            RecordBody::Detection { detections, .. } => detections.iter().any(|found| wanted(&found.label)),
            RecordBody::Checksum { .. }
            | RecordBody::Segment(_)
            | RecordBody::Gap { .. }
            | RecordBody::Error { .. }
            | RecordBody::Status { .. } => false,
        }
    }
}
