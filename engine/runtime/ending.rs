//! The end of a graph, as others wait for it.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::supervision::Outcome;

/// Tells that a graph has ended. Dropped without a word, it says that the graph's thread panicked.
pub struct Teller {
    outcome: Arc<OnceLock<Outcome>>,
    _open: Sender<Infallible>,
}

/// Hears that a graph has ended; any number may.
#[derive(Clone)]
pub struct Ending {
    outcome: Arc<OnceLock<Outcome>>,
    over: Receiver<Infallible>,
}

pub fn ending() -> (Teller, Ending) {
    let (open, over) = bounded(0);
    let outcome = Arc::new(OnceLock::new());
    (Teller { outcome: outcome.clone(), _open: open }, Ending { outcome, over })
}

impl Teller {
    pub fn tell(self, outcome: Outcome) {
        // It is told once: this takes the teller.
        let _ = self.outcome.set(outcome);
    }
}

impl Ending {
    /// Nothing ever comes out of it; it is closed when the graph has ended.
    pub fn over(&self) -> &Receiver<Infallible> {
        &self.over
    }

    pub fn is_over(&self) -> bool {
        self.over.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits until the graph has ended, and answers how.
    pub fn wait(&self) -> Outcome {
        let _ = self.over.recv();
        self.outcome.get().cloned().unwrap_or_else(|| Outcome {
            failures: vec!["the graph's thread panicked".to_owned()],
            stuck: Vec::new(),
            asked: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hear_the_same_outcome() {
        let (teller, ending) = ending();
        let other = ending.clone();
        assert!(!ending.is_over());
        teller.tell(Outcome { failures: Vec::new(), stuck: vec!["sink `out`".into()], asked: None });
        assert!(ending.is_over() && other.is_over());
        assert_eq!(ending.wait().stuck, other.wait().stuck);
    }

    #[test]
    fn a_thread_that_panics_is_a_failure() {
        let (teller, ending) = ending();
        drop(teller);
        assert!(!ending.wait().is_success());
    }
}
