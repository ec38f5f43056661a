//! One way to lock what threads share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what is whole at every step: where a thread has panicked while it held the lock, the others go on with what is
/// there.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
