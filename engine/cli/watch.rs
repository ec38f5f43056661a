//! `--watch`: follows graph files as they change.
//!
//! The folder is watched, not the files: editors write another file and rename it. Files are looked at once they have
//! been left alone for a moment, and what counts is what is in them then.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use operators::error::StartError;

use super::files::Files;
use crate::runtime::graphs::Graphs;

/// Files are looked at when nothing has happened to them for so long.
const QUIET: Duration = Duration::from_millis(200);
/// Where something happens to them all the time, they are looked at after this.
const LONGEST: Duration = Duration::from_secs(2);
/// Files that something else is in the way of are tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a change of a graph that is under way may still take when the files are watched no more.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Files that are watched until this is dropped.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    thread: Option<JoinHandle<()>>,
    /// Nothing ever comes out of it; it is closed when the thread has ended.
    over: Receiver<Infallible>,
}

impl Watch {
    /// # Errors
    /// Where the system does not let the folder be watched.
    pub fn start(mut files: Files, graphs: Arc<Graphs>) -> Result<Watch, StartError> {
        let folder = files.folder();
        let cannot = |error: &dyn std::fmt::Display| {
            StartError::new(format!("cannot watch the folder `{}`: {error}", folder.display()))
                .hint("raise the system's limit of watches (`fs.inotify.max_user_watches`), or run without `--watch`")
        };
        let (tell, changes) = bounded(1);
        // The first look: something may have changed before the watch was there.
        let _ = tell.try_send(());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Events that were missed are an error, and a reason to look.
            if event.map_or(true, |event| is_change(&event.kind)) {
                // A full channel says as much already.
                let _ = tell.try_send(());
            }
        })
        .map_err(|error| cannot(&error))?;
        watcher.watch(&folder, RecursiveMode::NonRecursive).map_err(|error| cannot(&error))?;
        let (open, over) = bounded(0);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || {
                let _open: Sender<Infallible> = open;
                while settled(&changes, if files.is_waiting() { after(AGAIN) } else { never() }) {
                    files.follow(&graphs, || graphs.is_closing());
                }
            })
            .map_err(|error| cannot(&error))?;
        Ok(Watch { watcher: Some(watcher), thread: Some(thread), over })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Its thread ends when nothing more can come.
        self.watcher = None;
        let Some(thread) = self.thread.take() else { return };
        if self.over.recv_timeout(LAST_LOOK) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("what watches the graph files is left behind: a change of a graph does not come to an end");
        } else if thread.join().is_err() {
            tracing::error!("the thread that watches the graph files panicked");
        }
    }
}

/// Reading a file is no change: looking would bring about the next look.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => *kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Waits for a change and then until it is over, or for `again`; `false` where no change can come any more.
fn settled(changes: &Receiver<()>, again: Receiver<Instant>) -> bool {
    select! {
        recv(changes) -> change => if change.is_err() {
            return false;
        },
        recv(again) -> _ => return true,
    }
    let latest = after(LONGEST);
    loop {
        select! {
            recv(changes) -> change => if change.is_err() {
                return false;
            },
            recv(latest) -> _ => return true,
            default(QUIET) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, ModifyKind};

    #[test]
    fn looking_is_no_change() {
        assert!(!is_change(&EventKind::Access(AccessKind::Open(AccessMode::Read))));
        assert!(!is_change(&EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(is_change(&EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(is_change(&EventKind::Create(CreateKind::File)));
        assert!(is_change(&EventKind::Modify(ModifyKind::Any)));
    }

    #[test]
    fn a_watch_that_is_over_waits_no_more() {
        let (tell, changes) = bounded(1);
        tell.send(()).unwrap();
        drop(tell);
        assert!(!settled(&changes, never()));
    }
}
