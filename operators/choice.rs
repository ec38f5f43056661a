//! Which results are meant: those in which something has one of some labels, and a score within bounds.

use crate::item::{Record, RecordBody};

/// Which results are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Any of these; empty: every label.
    pub labels: Vec<String>,
    /// This score or more.
    pub above: Option<f64>,
    /// Less than this score.
    pub below: Option<f64>,
}

impl Choice {
    /// Whether it keeps everything.
    pub fn is_open(&self) -> bool {
        self.labels.is_empty() && self.above.is_none() && self.below.is_none()
    }

    /// Whether something was found that has one of the labels and a score within the bounds.
    pub fn finds(&self, record: &Record) -> bool {
        let fits = |label: &str, score: f32| {
            (self.labels.is_empty() || self.labels.iter().any(|wanted| wanted == label))
                && self.above.is_none_or(|above| f64::from(score) >= above)
                && self.below.is_none_or(|below| f64::from(score) < below)
        };
        match &record.body {
            RecordBody::Classification { predictions, .. } => {
                predictions.iter().any(|prediction| fits(&prediction.label, prediction.score))
            }
            RecordBody::Detection { detections, .. } => {
                detections.iter().any(|detection| fits(&detection.label, detection.score))
            }
            _ => false,
        }
    }
}
