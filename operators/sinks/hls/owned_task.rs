//! A task that ends with whoever holds it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::task::{JoinError, JoinHandle};

use crate::lock::lock;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Work of its own, which is awaited as its task is.
///
/// Dropping this ends it, and lets go of all that it has in hand before anything else happens: the books of a graph are
/// closed as soon as its sinks are dropped, so what they held has to be in them by then. A task that is only aborted lets go
/// some time later.
pub struct OwnedTask<T> {
    /// `None` once it is done.
    work: Arc<Mutex<Option<Work<T>>>>,
    task: JoinHandle<T>,
}

impl<T: Send + 'static> OwnedTask<T> {
    /// Begins it. A runtime has to be there.
    pub fn spawn(work: impl Future<Output = T> + Send + 'static) -> OwnedTask<T> {
        let work: Work<T> = Box::pin(work);
        let work = Arc::new(Mutex::new(Some(work)));
        let polled = work.clone();
        let task = tokio::spawn(poll_fn(move |context| {
            let mut work = lock(&polled);
            // What was let go of never gets done.
            let Some(doing) = work.as_mut() else { return Poll::Pending };
            let done = ready!(doing.as_mut().poll(context));
            *work = None;
            Poll::Ready(done)
        }));
        OwnedTask { work, task }
    }
}

impl<T> OwnedTask<T> {
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl<T> Future for OwnedTask<T> {
    /// `Err`: it panicked.
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(context)
    }
}

impl<T> Drop for OwnedTask<T> {
    fn drop(&mut self) {
        // Waits for a step that is being taken, which never blocks.
        drop(lock(&self.work).take());
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_drops_it_has_let_go_of_what_it_held() {
        let held = Arc::new(());
        for _ in 0..1000 {
            let (inner, outer) = (held.clone(), held.clone());
            let before = OwnedTask::spawn(async move {
                loop {
                    tokio::task::yield_now().await;
                    drop(inner.clone());
                }
            });
            // One that waits for another one holds it.
            let task: OwnedTask<()> = OwnedTask::spawn(async move {
                let _outer = outer;
                let _: Result<(), JoinError> = before.await;
            });
            assert!(Arc::strong_count(&held) >= 3);
            drop(task);
            assert_eq!(Arc::strong_count(&held), 1);
        }
    }

    #[tokio::test]
    async fn it_answers_what_came_of_it() {
        let held = Arc::new(());
        let theirs = held.clone();
        let mut task = OwnedTask::spawn(async move { Arc::strong_count(&theirs) });
        assert_eq!((&mut task).await.unwrap(), 2);
        assert!(task.is_finished() && Arc::strong_count(&held) == 1);
        assert!(OwnedTask::<()>::spawn(async { panic!("as asked") }).await.unwrap_err().is_panic());
    }
}
