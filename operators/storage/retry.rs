//! Trying again what the network, a server or a full disk refused for now, and telling meanwhile what is wrong.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::config::{Field, FieldType, Presence};
use crate::item::StreamId;
use crate::operator::Trouble;

use super::error::StorageError;

/// Between two attempts. A server that is down is asked twice a minute, one that was busy for a moment at once.
pub const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(30) };

/// How long something is tried again, and who hears of it.
#[derive(Clone)]
pub struct Retry {
    /// Counted from the first attempt.
    pub retry_for: Duration,
    pub clock: Arc<dyn Clock>,
    /// Says what is wrong for as long as it is.
    pub trouble: Trouble,
    /// The node that wants it, for the log.
    pub node: Arc<str>,
    pub backoff: Backoff,
}

impl Retry {
    /// Tries until it goes well, fails for good, or has failed for `retry_for`. `what` begins the messages of the log,
    /// such as "cannot store".
    ///
    /// # Errors
    /// That of the last attempt.
    pub async fn run<T, F>(&self, what: &str, attempt: impl Fn() -> F + Send) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>> + Send,
    {
        self.run_named(&format!("`{}`", self.node), what, attempt).await
    }

    /// As [`Retry::run`], for a stream, which the log names.
    ///
    /// # Errors
    /// As [`Retry::run`].
    pub async fn run_for<T, F>(
        &self,
        stream: &StreamId,
        what: &str,
        attempt: impl Fn() -> F + Send,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>> + Send,
    {
        self.run_named(&format!("stream `{stream}` of `{}`", self.node), what, attempt).await
    }

    async fn run_named<T, F>(&self, who: &str, what: &str, attempt: impl Fn() -> F + Send) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>> + Send,
    {
        let start = self.clock.now();
        // Others may be tried again beside it: their trouble goes on.
        let trouble = self.trouble.of_one();
        let mut failures = 0_u64;
        loop {
            let error = match attempt().await {
                Ok(answer) => {
                    if failures > 0 {
                        tracing::info!(node = %self.node, failures, "{who} goes on");
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            failures += 1;
            let elapsed = self.clock.now().saturating_duration_since(start);
            let left = self.retry_for.saturating_sub(elapsed);
            if !error.is_temporary() || left.is_zero() {
                return Err(self.given_up(error, failures, elapsed));
            }
            // However long that is, there is a last attempt when the time is over.
            let delay = self.backoff.delay(failures).min(left);
            let hint = error.hint.as_ref().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            let message = trouble.is(&format!("{what} {error}; it is tried again{hint}"));
            // An hour without a network must not fill the log.
            if failures.is_power_of_two() {
                tracing::warn!(node = %self.node, failures, "{who} {message}");
            }
            tokio::time::sleep(delay).await;
        }
    }

    fn given_up(&self, error: StorageError, failures: u64, elapsed: Duration) -> StorageError {
        if !error.is_temporary() || failures == 1 {
            return error;
        }
        let (seconds, message) = (elapsed.as_secs(), &error.message);
        StorageError { message: format!("{message} (given up after {failures} attempts in {seconds} s)"), ..error }
    }
}

/// The field of [`Retry::retry_for`].
pub const RETRY_FOR: Field = Field {
    name: "retry_for",
    value: FieldType::Duration,
    presence: Presence::Default("\"1h\""),
    summary: "How long an object is tried again while the place for it is down, busy or full; what waits slows the \
              graph down. Then it is lost.",
};

/// What [`RETRY_FOR`] is where it is left out.
pub const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::clock::SystemClock;
    use crate::storage::error::Cause;

    fn retry(retry_for: Duration) -> Retry {
        let backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_millis(2) };
        Retry { retry_for, clock: Arc::new(SystemClock), trouble: Trouble::default(), node: "out".into(), backoff }
    }

    #[tokio::test]
    async fn what_may_go_well_later_is_tried_again_and_told_meanwhile() {
        let retry = retry(Duration::from_secs(3600));
        let attempts = AtomicU64::new(0);
        let answer = retry.run("cannot store", || async {
            let nth = attempts.fetch_add(1, Ordering::Relaxed);
            assert_eq!(retry.trouble.now().is_some(), nth > 0);
            if nth < 20 { Err(StorageError::new(Cause::Temporary, "`a`: SlowDown (503)")) } else { Ok(nth) }
        });
        assert_eq!(answer.await, Ok(20));
        assert_eq!(retry.trouble.now(), None);
    }

    #[tokio::test]
    async fn what_will_not_go_well_is_not_tried_again() {
        let retry = retry(Duration::from_secs(3600));
        let attempts = AtomicU64::new(0);
        let refused: Result<(), StorageError> = retry
            .run("cannot store", || async {
                attempts.fetch_add(1, Ordering::Relaxed);
                Err(StorageError::new(Cause::Final, "`a`: AccessDenied (403)"))
            })
            .await;
        assert_eq!((refused.unwrap_err().message.as_str(), attempts.into_inner()), ("`a`: AccessDenied (403)", 1));
    }

    #[tokio::test]
    async fn what_waits_is_told_of_with_its_hint_for_as_long_as_any_of_it_does() {
        let retry = retry(Duration::from_secs(3600));
        let refused =
            |key: &str| Err(StorageError::new(Cause::Temporary, format!("`{key}`: SlowDown (503)")).hint("wait"));
        let told = "cannot store `a`: SlowDown (503); it is tried again; hint: wait";
        let for_ever = tokio::spawn({
            let retry = retry.clone();
            async move { retry.run::<(), _>("cannot store", || async { refused("a") }).await }
        });
        while retry.trouble.now().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(retry.trouble.now().as_deref(), Some(told));
        for (key, expected) in [("a", told.to_owned()), ("b", format!("{told} (and 1 more)"))] {
            let attempts = AtomicU64::new(0);
            let other = retry.run("cannot store", || async {
                if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                    return refused(key);
                }
                assert_eq!(retry.trouble.now().as_ref(), Some(&expected), "the same is told once");
                Ok(())
            });
            other.await.unwrap();
            assert_eq!(retry.trouble.now().as_deref(), Some(told), "the first one still waits");
        }
        for_ever.abort();
        assert!(for_ever.await.unwrap_err().is_cancelled());
        assert_eq!(retry.trouble.now(), None, "nobody waits for it any more");
    }

    #[tokio::test]
    async fn there_is_a_last_attempt_when_the_time_is_over() {
        let long = Backoff { first: Duration::from_secs(3600), most: Duration::from_secs(3600) };
        let retry = Retry { backoff: long, ..retry(Duration::from_millis(500)) };
        let (start, last) = (retry.clock.now(), std::sync::Mutex::new(Duration::ZERO));
        let lost: Result<(), StorageError> = retry
            .run("cannot store", || async {
                *last.lock().unwrap() = retry.clock.now().duration_since(start);
                Err(StorageError::new(Cause::Temporary, "no route"))
            })
            .await;
        let message = lost.unwrap_err().message;
        assert!(message.starts_with("no route (given up after 2 attempts in "), "{message}");
        assert!(last.into_inner().unwrap() >= retry.retry_for, "the time is not given up");
    }

    #[tokio::test]
    async fn it_ends_when_its_time_is_over() {
        let retry = retry(Duration::ZERO);
        let lost: Result<(), StorageError> =
            retry.run("cannot store", || async { Err(StorageError::new(Cause::Temporary, "no route")) }).await;
        assert_eq!(lost.unwrap_err().message, "no route", "no time was given");
        assert_eq!(retry.trouble.now(), None);
    }
}
