//! Work that takes long or blocks, off the control thread: each piece on a thread of its own, so many at once.

use std::sync::Arc;

use hyper::StatusCode;
use tokio::sync::{Semaphore, oneshot};

use super::routes::Refusal;

/// A bounded number of threads.
pub(super) struct Work {
    /// What they do, for messages: `changes`.
    what: &'static str,
    most: usize,
    slots: Arc<Semaphore>,
}

impl Work {
    pub fn new(what: &'static str, most: usize) -> Work {
        Work { what, most, slots: Arc::new(Semaphore::new(most)) }
    }

    /// Does `work`, which goes on to its end also where nobody waits for it any more.
    pub async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R, Refusal> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{} {} are under way already", self.most, self.what);
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message, "try again in a second")
        })?;
        let (tell, answer) = oneshot::channel();
        let worked = std::thread::Builder::new().name(self.what.to_owned()).spawn(move || {
            let _slot = slot;
            // Nobody waits any more where the client has gone.
            let _ = tell.send(work());
        });
        worked.map_err(|error| {
            let message = format!("the system gives no thread: {error}");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message, "try again later")
        })?;
        answer.await.map_err(|_| {
            let message = "the engine panicked at it".to_owned();
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message, "please report this, with the log")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting<R>(future: impl Future<Output = R>) -> R {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn more_than_so_many_are_refused() {
        let work = Work::new("changes", 1);
        let (go, wait) = crossbeam_channel::bounded::<()>(0);
        let first = work.run(move || wait.recv().is_err());
        waiting(async {
            let mut first = std::pin::pin!(first);
            // It begins when it is looked at first.
            let begun = std::future::poll_fn(|context| std::task::Poll::Ready(first.as_mut().poll(context))).await;
            assert!(begun.is_pending());
            let refusal = work.run(|| ()).await.unwrap_err();
            assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(refusal.error, "1 changes are under way already");
            drop(go);
            assert!(first.await.unwrap());
        });
    }

    #[test]
    fn a_panic_is_an_answer() {
        let refusal = waiting(Work::new("changes", 1).run(|| panic!("as told"))).map(|()| ()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
