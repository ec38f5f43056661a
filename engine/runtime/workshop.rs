//! Makes what takes longer than a worker may be held up, such as the index in front of a large file: on threads of its own,
//! a few at once, for all graphs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use operators::error::ItemError;
use operators::inference::pool::panic_text;
use operators::item::Payload;
use operators::operator::Make;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Payloads that are made at once; the others wait in the order in which they came. What waits is bounded by the leases of
/// the items that it is for.
pub const AT_ONCE: usize = 2;

/// Where payloads are made. Clones share it.
#[derive(Clone)]
pub struct Workshop {
    runtime: Handle,
    places: Arc<Semaphore>,
}

/// Whoever waits for a payload. Called on the thread that makes it.
pub trait Customer: Send + Sync {
    /// Answers what time it is.
    fn begun(&self) -> Instant;

    fn made(&self, ticket: u64, begun: Instant, result: Result<Payload, ItemError>);
}

impl Workshop {
    pub fn new(runtime: Handle) -> Workshop {
        Workshop { runtime, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Has a payload made as soon as there is a place; `customer` is told.
    pub fn order(&self, ticket: u64, make: Make, customer: Arc<dyn Customer>) {
        let (runtime, places) = (self.runtime.clone(), self.places.clone());
        // What was begun is finished, also where nobody waits for it any more.
        drop(self.runtime.spawn(async move {
            // Nobody closes the semaphore.
            let place = places.acquire_owned().await;
            drop(runtime.spawn_blocking(move || {
                let begun = customer.begun();
                let result = catch_unwind(AssertUnwindSafe(make));
                let result = result.unwrap_or_else(|panic| Err(ItemError::Panicked(panic_text(&*panic))));
                customer.made(ticket, begun, result);
                drop(place);
            }));
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use crossbeam_channel::{Receiver, Sender, bounded};
    use operators::clock::{Clock, SystemClock};
    use operators::item::{Origin, RecordBody, StreamId};

    struct Told(Sender<(u64, Result<Payload, ItemError>)>);

    impl Customer for Told {
        fn begun(&self) -> Instant {
            SystemClock.now()
        }

        fn made(&self, ticket: u64, _begun: Instant, result: Result<Payload, ItemError>) {
            self.0.send((ticket, result)).unwrap();
        }
    }

    fn record() -> Payload {
        let origin = Origin { graph: "g".into(), node: "n".into() };
        let body = RecordBody::Gap { reason: "none".to_owned() };
        let record = origin.signal(&StreamId::sanitised("s"), None, std::time::SystemTime::UNIX_EPOCH, body);
        Payload::Record(Arc::new(record))
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    fn next(answers: &Receiver<(u64, Result<Payload, ItemError>)>) -> (u64, Result<Payload, ItemError>) {
        answers.recv_timeout(PATIENCE).expect("an answer in time")
    }

    #[test]
    fn one_that_takes_long_holds_up_no_other_and_no_more_than_a_few_are_made_at_once() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let workshop = Workshop::new(runtime.handle().clone());
        let (tell, answers) = bounded(8);
        let customer = Arc::new(Told(tell));
        let (begin, begun) = bounded(8);
        let (release, held) = bounded::<()>(0);
        let order = |ticket: u64| {
            let (begin, held) = (begin.clone(), held.clone());
            let make = move || {
                begin.send(ticket).unwrap();
                held.recv().unwrap();
                Ok(record())
            };
            workshop.order(ticket, Box::new(make), customer.clone());
        };
        order(0);
        assert_eq!(begun.recv_timeout(PATIENCE), Ok(0));
        // Beside the one that hangs another one is made, though the runtime has one thread.
        workshop.order(1, Box::new(|| Ok(record())), customer.clone());
        assert_eq!(next(&answers).0, 1);
        order(2);
        assert_eq!(begun.recv_timeout(PATIENCE), Ok(2));
        order(3);
        assert!(begun.try_recv().is_err(), "there is no place");
        release.send(()).unwrap();
        assert!(next(&answers).1.is_ok());
        assert_eq!(begun.recv_timeout(PATIENCE), Ok(3));
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(next(&answers).1.is_ok() && next(&answers).1.is_ok());
    }

    #[test]
    fn a_panic_is_an_answer() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let workshop = Workshop::new(runtime.handle().clone());
        let (tell, answers) = bounded(8);
        let customer = Arc::new(Told(tell));
        for ticket in 0..3 {
            workshop.order(ticket, Box::new(|| panic!("it breaks")), customer.clone());
        }
        for _ in 0..3 {
            let (_, result) = next(&answers);
            assert!(matches!(result, Err(ItemError::Panicked(text)) if text == "it breaks"));
        }
    }
}
