//! Where encoded pictures are pushed into a source from outside.
//!
//! An [`Inlet`] has a number of places. Whoever pushes takes a place first, at once or by waiting in turn, and the place
//! is free again when the source's thread takes the picture: so the pictures that wait are bounded, and pushing itself
//! never blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::clock::Clock;
use crate::lease::Watched;

/// Why a picture was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    #[error("{0} pictures wait already")]
    Full(usize),
    #[error("the stream is ending")]
    Ending,
}

/// What an inlet takes, and who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InletSettings {
    /// Pictures that may wait.
    pub places: usize,
    /// Bytes of one encoded picture.
    pub max_bytes: u64,
    /// The node whose records answer whoever pushes.
    pub answer: Option<Arc<str>>,
}

/// The outer end: many may push.
pub struct Inlet {
    pub settings: InletSettings,
    places: Arc<Semaphore>,
    sender: Sender<(Pushed, OwnedSemaphorePermit)>,
    clock: Arc<dyn Clock>,
}

impl Inlet {
    /// Both ends.
    pub fn new(settings: InletSettings, clock: Arc<dyn Clock>) -> (Arc<Inlet>, Arrivals) {
        let places = Arc::new(Semaphore::new(settings.places));
        let (sender, receiver) = bounded(settings.places);
        let arrivals = Arrivals { places: places.clone(), receiver };
        (Arc::new(Inlet { settings, places, sender, clock }), arrivals)
    }

    /// From here on no place is given. What was pushed before is still taken.
    pub fn close(&self) {
        self.places.close();
    }

    /// A place for one picture, if there is one now.
    ///
    /// # Errors
    /// Where all are taken, or the stream is ending.
    pub fn try_place(self: &Arc<Inlet>) -> Result<Place, PushError> {
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Place { inlet: self.clone(), permit }),
            Err(TryAcquireError::NoPermits) => Err(PushError::Full(self.settings.places)),
            Err(TryAcquireError::Closed) => Err(PushError::Ending),
        }
    }

    /// A place for one picture, in turn with all others that wait.
    ///
    /// # Errors
    /// Where the stream is ending.
    pub async fn place(self: &Arc<Inlet>) -> Result<Place, PushError> {
        let permit = self.places.clone().acquire_owned().await.map_err(|_| PushError::Ending)?;
        Ok(Place { inlet: self.clone(), permit })
    }
}

/// The right to push one picture.
pub struct Place {
    inlet: Arc<Inlet>,
    permit: OwnedSemaphorePermit,
}

impl Place {
    /// Pushes one encoded picture. `watched` hears what becomes of it, whatever that is.
    pub fn push(self, bytes: Vec<u8>, watched: Option<Watched>) {
        let Place { inlet, permit } = self;
        let arrived = inlet.clock.now();
        // There is room, because there was a place. Where nobody takes it any more, it goes with the error, and is lost.
        let _ = inlet.sender.try_send((Pushed { bytes, arrived, watched }, permit));
    }
}

/// A picture that was pushed.
pub struct Pushed {
    pub bytes: Vec<u8>,
    pub arrived: Instant,
    pub watched: Option<Watched>,
}

/// The inner end. Dropping it loses what waits.
pub struct Arrivals {
    places: Arc<Semaphore>,
    receiver: Receiver<(Pushed, OwnedSemaphorePermit)>,
}

impl Arrivals {
    /// The next picture; `None` where none comes within `patience` (of real time). Its place is free from here on: whoever
    /// hears what became of it can push the next one at once.
    pub fn next(&self, patience: Duration) -> Option<Pushed> {
        self.receiver.recv_timeout(patience).ok().map(|(pushed, _place)| pushed)
    }

    /// From here on no place is given. What was pushed before can still be taken.
    pub fn close(&self) {
        self.places.close();
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::SimulatedClock;
    use crate::item::Record;
    use crate::lease::{Verdict, Watch};

    #[derive(Default)]
    struct Verdicts(Mutex<Vec<Verdict>>);

    impl Watch for Verdicts {
        fn record(&self, _record: &Arc<Record>) {}

        fn ended(&self, verdict: Verdict) {
            self.0.lock().unwrap().push(verdict);
        }
    }

    fn inlet(places: usize) -> (Arc<Inlet>, Arrivals) {
        let settings = InletSettings { places, max_bytes: 100, answer: None };
        Inlet::new(settings, Arc::new(SimulatedClock::default()))
    }

    #[test]
    fn a_place_is_free_again_when_its_picture_was_taken() {
        let (inlet, arrivals) = inlet(2);
        for byte in 0..2 {
            inlet.try_place().unwrap().push(vec![byte], None);
        }
        assert_eq!(inlet.try_place().err(), Some(PushError::Full(2)));
        let first = arrivals.next(Duration::ZERO).unwrap();
        assert_eq!(first.bytes, [0]);
        inlet.try_place().unwrap().push(vec![2], None);
        assert_eq!(arrivals.next(Duration::ZERO).unwrap().bytes, [1]);
        assert_eq!(arrivals.next(Duration::ZERO).unwrap().bytes, [2]);
        assert!(arrivals.next(Duration::ZERO).is_none());
    }

    #[tokio::test]
    async fn whoever_waits_for_a_place_comes_before_those_who_do_not() {
        let (inlet, arrivals) = inlet(1);
        inlet.try_place().unwrap().push(vec![0], None);
        let mut waiting = Box::pin(inlet.place());
        assert!(futures_now(waiting.as_mut()).is_none());
        drop(arrivals.next(Duration::ZERO));
        assert_eq!(inlet.try_place().err(), Some(PushError::Full(1)));
        waiting.await.unwrap().push(vec![1], None);
        assert_eq!(arrivals.next(Duration::ZERO).unwrap().bytes, [1]);
    }

    /// What a future answers at once.
    fn futures_now<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(answer) => Some(answer),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn what_nobody_takes_is_lost_and_said_to_be() {
        let (inlet, arrivals) = inlet(3);
        let verdicts = Arc::new(Verdicts::default());
        let watched = || Some(Watched::new(verdicts.clone()));
        let late = inlet.try_place().unwrap();
        inlet.try_place().unwrap().push(vec![0], watched());
        arrivals.close();
        assert_eq!(inlet.try_place().err(), Some(PushError::Ending));
        assert_eq!(arrivals.next(Duration::ZERO).unwrap().bytes, [0], "it came before");
        assert_eq!(*verdicts.0.lock().unwrap(), [Verdict::Lost]);
        drop(arrivals);
        late.push(vec![1], watched());
        assert_eq!(*verdicts.0.lock().unwrap(), [Verdict::Lost; 2]);
    }
}
