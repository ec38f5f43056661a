//! What the task of a stream that has ended is told while it goes on: that somebody waits for it.

use std::future::{Future, pending};
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use crate::sinks::hls::store::Published;

/// Who waits for a copy's end.
#[derive(Clone, Default)]
pub enum Hurry {
    #[default]
    Nobody,
    /// The sink: what is left is stored, and then nothing is waited for.
    Sink,
    /// The copy of the same stream, which has come again as this is published.
    Successor(Weak<Published>),
}

/// What a successor means to what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It goes on with what is left: that is published with what comes now.
    HandOver,
    /// Nobody goes on with what is left, and it cannot be kept for as long as the place may be down.
    GiveUp,
}

/// Where a task hears of it.
pub struct Hurried {
    hurry: watch::Receiver<Hurry>,
    published: Weak<Published>,
    /// Whether what is left may be given up.
    may_give_up: bool,
}

impl Hurried {
    /// For the copy of `published`; what is `live` nobody waits for.
    pub fn new(hurry: watch::Receiver<Hurry>, published: &Arc<Published>, is_live: bool) -> Hurried {
        Hurried { hurry, published: Arc::downgrade(published), may_give_up: is_live }
    }

    /// Does `work`, unless a word comes before it is done. What may be given up is so once: then it is tried as far as it
    /// goes at once.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Word> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            word = self.word() => Err(word),
        }
    }

    async fn word(&mut self) -> Word {
        let published = &self.published;
        let heard = self.hurry.wait_for(|hurry| matches!(hurry, Hurry::Successor(_))).await;
        let is_handed_over =
            heard.is_ok_and(|hurry| matches!(&*hurry, Hurry::Successor(theirs) if Weak::ptr_eq(theirs, published)));
        if is_handed_over {
            return Word::HandOver;
        }
        if !std::mem::take(&mut self.may_give_up) {
            pending::<()>().await;
        }
        Word::GiveUp
    }

    /// Waits until anybody is in a hurry.
    pub async fn any(&mut self) {
        // Without anybody who could wait, nothing is worth waiting for.
        let _ = self.hurry.wait_for(|hurry| !matches!(hurry, Hurry::Nobody)).await;
    }
}
