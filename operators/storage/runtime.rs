//! Waiting for storage on a plain thread: a source's own, or the one that checks and starts a graph.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use tokio::runtime::{Builder, Runtime};

use super::error::{Cause, StorageError};

/// How often a wait looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// One small runtime for all who wait: their work is done by the network.
fn runtime() -> Result<&'static Runtime, StorageError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let made = Builder::new_multi_thread().worker_threads(1).thread_name("storage").enable_all().build();
        made.map_err(|error| error.to_string())
    });
    made.as_ref().map_err(|error| StorageError::new(Cause::Final, format!("cannot start a thread: {error}")))
}

/// Waits for `work`, which runs on the runtime for storage; gives it up when `stop` says so, and answers `None` then.
///
/// # Errors
/// The work's own, and where the system refuses a thread.
pub fn wait<T: Send + 'static>(
    stop: &dyn Fn() -> bool,
    work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
) -> Result<Option<T>, StorageError> {
    let (tell, answer) = bounded(1);
    let task = runtime()?.spawn(async move {
        // Nobody waits any more where it was given up.
        let _ = tell.send(work.await);
    });
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(answer) => return answer.map(Some),
            Err(RecvTimeoutError::Timeout) if stop() => {
                task.abort();
                return Ok(None);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(StorageError::new(Cause::Final, "the work on it panicked; the log says where"));
            }
        }
    }
}

/// Waits for `work` until it is done.
///
/// # Errors
/// The work's own, and where the system refuses a thread.
pub fn wait_for<T: Send + 'static>(
    work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
) -> Result<T, StorageError> {
    let given_up = || StorageError::new(Cause::Final, "it was given up");
    wait(&|| false, work)?.ok_or_else(given_up)
}

/// Begins `work` on the runtime for storage.
///
/// # Errors
/// Where the system refuses a thread.
pub fn begin(work: impl Future<Output = ()> + Send + 'static) -> Result<tokio::task::JoinHandle<()>, StorageError> {
    Ok(runtime()?.spawn(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_its_work_or_when_it_is_told_to() {
        assert_eq!(wait_for(async { Ok(7) }), Ok(7));
        let never = std::future::pending::<Result<u8, StorageError>>();
        assert_eq!(wait(&|| true, never), Ok(None));
        let failed = wait_for::<u8>(async { panic!("as asked") });
        assert!(failed.unwrap_err().message.contains("panicked"));
    }
}
