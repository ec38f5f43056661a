//! Errors of building and running nodes. Each carries the coordinates of its evidence; the runtime adds graph, node
//! and stream where the operator does not know them.

use std::time::Duration;

use crate::item::Payload;
use crate::lease::Verdict;

/// A field of a node's configuration that cannot be used. `engine check` points at it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FieldError {
    /// Path inside the node's table, such as `model` or `has.person`; empty for the whole node.
    pub field: String,
    pub message: String,
    /// What to do next, in one sentence.
    pub hint: Option<String>,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> FieldError {
        FieldError { field: field.into(), message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> FieldError {
        self.hint = Some(hint.into());
        self
    }
}

/// A node could not be made ready (a model does not load, a path cannot be created). The graph does not start.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    pub message: String,
    pub hint: Option<String>,
}

impl StartError {
    pub fn new(message: impl Into<String>) -> StartError {
        StartError { message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> StartError {
        self.hint = Some(hint.into());
        self
    }

    /// The same with every text passed through `cover`.
    #[must_use]
    pub fn covered(self, cover: impl Fn(&str) -> String) -> StartError {
        StartError { message: cover(&self.message), hint: self.hint.map(|hint| cover(&hint)) }
    }
}

/// An operator failed on one item; the item is rejected, or lost where it may go well the next time, and an error record
/// takes its place.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ItemError {
    #[error("{0}")]
    Failed(String),
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("gave no answer within {0:?}")]
    Late(Duration),
    /// It is not the item's fault, and what kept it from going well may be gone the next time: the item is lost.
    #[error("{0}")]
    Hindered(String),
    /// The operator says so itself: `payload` takes the place of the error record, and the item ends with `verdict`.
    #[error("{message}")]
    Told { message: String, payload: Box<Payload>, verdict: Verdict },
}

impl ItemError {
    /// How the item ends: what is lost may go well where its input is read again, what is rejected will not.
    pub fn verdict(&self) -> Verdict {
        match self {
            ItemError::Failed(_) | ItemError::Panicked(_) | ItemError::Late(_) => Verdict::Rejected,
            ItemError::Hindered(_) => Verdict::Lost,
            ItemError::Told { verdict, .. } => *verdict,
        }
    }
}

/// A sink could not take a batch; what was in it is lost.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    pub message: String,
    pub hint: Option<String>,
}

impl SinkError {
    /// Several errors, where only one can be told: all that happened is in it.
    ///
    /// # Errors
    /// Where there are any.
    pub fn joined(errors: impl IntoIterator<Item = SinkError>) -> Result<(), SinkError> {
        let all = errors.into_iter().reduce(|first, next| SinkError {
            message: format!("{}; {}", first.message, next.message),
            hint: first.hint.or(next.hint),
        });
        all.map_or(Ok(()), Err)
    }
}

/// A source cannot go on with a stream.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The input cannot be opened or read; `hint` says what to do. What is temporary may be read later.
    #[error("{message}")]
    Input { message: String, hint: Option<String>, is_temporary: bool },
    /// The outlet says that the connection is lost, though it is not: whoever can connect again does.
    #[error("{0}")]
    Interrupted(String),
    /// The outlet closed: the stream was stopped while the source was emitting. Not a failure.
    #[error("the stream was stopped")]
    Stopped,
}

impl SourceError {
    pub fn input(message: impl Into<String>) -> SourceError {
        SourceError::Input { message: message.into(), hint: None, is_temporary: false }
    }

    pub fn input_with_hint(message: impl Into<String>, hint: impl Into<String>) -> SourceError {
        SourceError::Input { message: message.into(), hint: Some(hint.into()), is_temporary: false }
    }
}
