//! What comes of loading the text of a graph, and why a text is refused.

use std::path::PathBuf;

use operators::error::StartError;
use serde::Serialize;

use super::generation::HELD_UP;
use super::reload::Reloaded;
use crate::graph::diagnostics::{Diagnostic, Severity, position};

/// Which generation of a graph a caller wants to replace or end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    #[default]
    Anything,
    /// There is no such graph yet.
    Nothing,
    /// There is one.
    Something,
    /// It is at one of these generations.
    OneOf(Vec<u64>),
}

impl Expected {
    /// `now` is the generation; 0 where there is no such graph.
    pub(super) fn allows(&self, now: u64) -> bool {
        match self {
            Expected::Anything => true,
            Expected::Nothing => now == 0,
            Expected::Something => now != 0,
            Expected::OneOf(generations) => now != 0 && generations.contains(&now),
        }
    }
}

/// What loading a text did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Loaded {
    Started { generation: u64 },
    Reloaded(Box<Reloaded>),
}

impl Loaded {
    pub fn generation(&self) -> u64 {
        match self {
            Loaded::Started { generation } => *generation,
            Loaded::Reloaded(reloaded) => reloaded.generation,
        }
    }
}

/// A text that became a graph.
#[derive(Debug)]
pub struct LoadedText {
    pub loaded: Loaded,
    /// Warnings and notes.
    pub diagnostics: Vec<Diagnostic>,
    /// Why the text is not on the disk, where it should be.
    pub unsaved: Option<String>,
}

/// Why a text did not become a graph. What ran before runs on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("`{0}` cannot name a graph")]
    Name(String),
    /// Everything that is wrong with the text.
    #[error("{}", mistakes(.0))]
    Mistakes(Vec<Diagnostic>),
    /// Somebody else has changed it since: `now` is its generation, 0 where there is none.
    #[error("{}", outdated(*.now))]
    Outdated { now: u64 },
    /// Another graph has what this one needs.
    #[error("{0}")]
    Taken(String),
    /// It comes from a file.
    #[error("the graph comes from `{}`", .0.display())]
    Watched(PathBuf),
    /// Somebody else changes it, and is not done with it.
    #[error("another change of the graph is under way, and has not come to an end in time")]
    Busy,
    /// It is being deleted.
    #[error("the graph is being deleted")]
    Ending,
    /// It ends, by itself or because it was told to, and what runs cannot be changed any more.
    #[error("the graph is ending")]
    Over,
    /// The process ends.
    #[error("the engine is stopping")]
    Closing,
    /// The text cannot be kept, or not be forgotten.
    #[error("the text cannot be kept in `{}`: {why}", .folder.display())]
    Unsaved { folder: PathBuf, why: String },
    #[error("{0}")]
    Start(StartError),
    /// Nothing can be changed just now.
    #[error("{0}")]
    HeldUp(String),
}

impl LoadError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            LoadError::Name(_) => "use 1 to 128 of `A-Z a-z 0-9 _ . -`".to_owned(),
            LoadError::Mistakes(found) => {
                let first = found.iter().find(|found| found.severity() == Severity::Error);
                let hint = first.and_then(|found| found.hint.clone());
                hint.unwrap_or_else(|| "correct the text, and send it again".to_owned())
            }
            LoadError::Outdated { now: 0 } => "send it without `If-Match`".to_owned(),
            LoadError::Outdated { .. } => "get the graph again, and make the change in what is there now".to_owned(),
            LoadError::Taken(_) => "give it another one, or change or delete the other graph first".to_owned(),
            LoadError::Watched(_) => {
                "change the file; with `--watch` the engine follows it, else start the engine again".to_owned()
            }
            LoadError::Busy => {
                "try again later: a model that loads, or a sink that does not open, may hold it up; see the log"
                    .to_owned()
            }
            LoadError::Ending => "try again when it has ended".to_owned(),
            LoadError::Over => "send it again when it has ended: then it is started anew".to_owned(),
            LoadError::Closing => "try again when it has been started again".to_owned(),
            LoadError::Unsaved { .. } => "make room, and see that this user may write there".to_owned(),
            LoadError::HeldUp(_) => HELD_UP.to_owned(),
            LoadError::Start(error) => error.hint.clone().unwrap_or_else(|| "look into the log".to_owned()),
        }
    }

    /// What is wrong and what to do next, for somebody who does not have the text before them.
    pub(super) fn told(&self, text: &[u8]) -> String {
        let LoadError::Mistakes(found) = self else { return self.to_string() };
        let first = found.iter().find(|found| found.severity() == Severity::Error).and_then(|first| first.span.clone());
        let place = first.map_or_else(String::new, |span| {
            let (line, column) = position(&String::from_utf8_lossy(text), span.start);
            format!(" (line {line}, column {column})")
        });
        format!("{self}{place}; hint: {}", self.hint())
    }

    /// Whether the same text may become a graph later on, without anything being done to it: what is in its way belongs to
    /// others, or is under way.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            LoadError::Taken(_) | LoadError::Busy | LoadError::Ending | LoadError::Over | LoadError::HeldUp(_)
        )
    }

    /// Whether it says something of the text, and not of the moment.
    pub(super) fn is_about_the_text(&self) -> bool {
        matches!(self, LoadError::Name(_) | LoadError::Mistakes(_) | LoadError::Taken(_) | LoadError::Start(_))
    }
}

fn mistakes(found: &[Diagnostic]) -> String {
    let mut errors = found.iter().filter(|found| found.severity() == Severity::Error);
    match (errors.next(), errors.count()) {
        (None, _) => "the graph has mistakes".to_owned(),
        (Some(first), 0) => format!("the graph has a mistake: {}", first.message),
        (Some(first), more) => format!("the graph has {} mistakes, the first of them: {}", more + 1, first.message),
    }
}

fn outdated(now: u64) -> String {
    match now {
        0 => "there is no such graph".to_owned(),
        now => format!("the graph is at generation {now}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_gets_the_generation_that_it_knows() {
        for (expected, at_none, at_two) in [
            (Expected::Anything, true, true),
            (Expected::Nothing, true, false),
            (Expected::Something, false, true),
            (Expected::OneOf(vec![1, 2]), false, true),
            (Expected::OneOf(vec![0, 3]), false, false),
        ] {
            assert_eq!((expected.allows(0), expected.allows(2)), (at_none, at_two), "{expected:?}");
        }
    }
}
