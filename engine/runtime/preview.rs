//! Small pictures of a stream, for as long as somebody looks at it.
//!
//! Nothing is made unless somebody asks: a request leaves a mark in the stream's slot, and the source's thread makes
//! the next picture that it emits small (at most 1.2 MB, whatever the source's size) and puts it there. So no picture
//! of the source is held outside of its lease, and a slot holds one small picture at a time, or the file made of it.
//! Encoding is the business of whoever asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use operators::item::Frame;
use operators::lock::lock;
use operators::preview::SmallPicture;
use tokio::sync::watch;

/// Between two pictures that are made small for one stream, however many look at it.
const INTERVAL: Duration = Duration::from_millis(200);

/// The latest picture of one stream.
pub struct Preview {
    /// The picture's number in its stream, as in records.
    pub seq: u64,
    /// Of the source picture, in pixels: what boxes of records refer to.
    pub width: u32,
    pub height: u32,
    content: Mutex<Content>,
}

enum Content {
    Picture(SmallPicture),
    Jpeg(Bytes),
    /// Why there is no picture.
    Failed(String),
}

impl Preview {
    /// The JPEG file; encoded by the first who asks, which takes some milliseconds: not for a thread that must not
    /// block.
    ///
    /// # Errors
    /// Why the picture could not be made small or encoded.
    pub fn jpeg(&self) -> Result<Bytes, String> {
        let mut content = lock(&self.content);
        if let Content::Picture(picture) = &*content {
            *content = match picture.jpeg() {
                Ok(file) => Content::Jpeg(file.into()),
                Err(error) => Content::Failed(error.to_string()),
            };
        }
        match &*content {
            Content::Jpeg(file) => Ok(file.clone()),
            Content::Failed(why) => Err(why.clone()),
            Content::Picture(_) => Err("the preview was not encoded".to_owned()),
        }
    }
}

#[derive(Default)]
struct State {
    latest: Option<Arc<Preview>>,
    taken: Option<Instant>,
    /// The stream has ended, or its input is lost: nothing more will come, or not soon.
    is_over: bool,
}

/// Where the source's thread leaves a picture for those who look at the stream.
#[derive(Default)]
pub struct PreviewSlot {
    wanted: AtomicBool,
    state: watch::Sender<State>,
}

impl PreviewSlot {
    /// Called by the source's thread with each picture that it emits; costs one load unless somebody asked.
    pub fn offer(&self, seq: u64, frame: &Frame, now: Instant) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let taken = self.state.borrow().taken;
        if taken.is_some_and(|taken| now.saturating_duration_since(taken) < INTERVAL) {
            return;
        }
        self.wanted.store(false, Ordering::Relaxed);
        let content = match SmallPicture::of(frame) {
            Ok(picture) => Content::Picture(picture),
            Err(error) => Content::Failed(error.to_string()),
        };
        let preview = Preview { seq, width: frame.width, height: frame.height, content: Mutex::new(content) };
        self.state.send_modify(|state| {
            state.latest = Some(Arc::new(preview));
            state.taken = Some(now);
        });
    }

    /// Says whether the stream has ended or its input is lost, so that nobody waits for it.
    pub fn set_over(&self, is_over: bool) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.is_over, is_over) != is_over);
    }

    /// Asks for the next picture and waits for it up to `patience`; then the last one that somebody asked for.
    /// `None` where there is none.
    pub async fn next(&self, patience: Duration) -> Option<Arc<Preview>> {
        // Before asking: what comes from here on is new.
        let mut state = self.state.subscribe();
        self.wanted.store(true, Ordering::Relaxed);
        if !state.borrow().is_over {
            // Without a new picture in time, the last one is shown.
            let _ = tokio::time::timeout(patience, state.changed()).await;
        }
        state.borrow().latest.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use operators::clock::{Clock, SimulatedClock};
    use operators::item::{ColorMatrix, ColorRange, PictureBuffer, PixelFormat};

    struct Grey(Vec<u8>);

    impl PictureBuffer for Grey {
        fn plane(&self, _index: usize) -> &[u8] {
            &self.0
        }

        fn stride(&self, _index: usize) -> usize {
            1280
        }
    }

    fn frame() -> Frame {
        Frame {
            width: 1280,
            height: 720,
            format: PixelFormat::Gray8,
            matrix: ColorMatrix::Bt601,
            range: ColorRange::Full,
            buffer: Box::new(Grey(vec![90; 1280 * 720])),
            index: None,
            truth: None,
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    const NOT_AT_ALL: Duration = Duration::ZERO;

    #[tokio::test]
    async fn nothing_is_made_unless_somebody_asks() {
        let slot = PreviewSlot::default();
        let clock = SimulatedClock::default();
        slot.offer(0, &frame(), clock.now());
        assert!(slot.next(NOT_AT_ALL).await.is_none());
        // The question stands, though nobody waits for the answer any more.
        slot.offer(1, &frame(), clock.now());
        slot.set_over(true);
        let preview = slot.next(LONG).await.unwrap();
        assert_eq!((preview.seq, preview.width, preview.height), (1, 1280, 720));
        assert!(preview.jpeg().unwrap().starts_with(&[0xff, 0xd8]));
        assert_eq!(preview.jpeg().unwrap().as_ptr(), preview.jpeg().unwrap().as_ptr(), "encoded once");
    }

    #[tokio::test]
    async fn all_who_wait_get_the_same_picture_and_no_more_than_five_a_second_are_made() {
        let slot = Arc::new(PreviewSlot::default());
        let clock = SimulatedClock::default();
        let ask = || {
            let slot = slot.clone();
            tokio::spawn(async move { slot.next(LONG).await })
        };
        let waiting = [ask(), ask()];
        tokio::task::yield_now().await;
        slot.offer(0, &frame(), clock.now());
        let [first, second] = waiting;
        let first = first.await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &second.await.unwrap().unwrap()));

        let waiting = ask();
        tokio::task::yield_now().await;
        for seq in 1..20 {
            clock.advance(Duration::from_millis(33));
            slot.offer(seq, &frame(), clock.now());
        }
        assert_eq!(waiting.await.unwrap().unwrap().seq, 7, "the first one 200 ms after the last");
    }

    #[tokio::test]
    async fn the_end_of_the_stream_ends_the_wait() {
        let slot = Arc::new(PreviewSlot::default());
        let waiting = tokio::spawn({
            let slot = slot.clone();
            async move { slot.next(LONG).await }
        });
        tokio::task::yield_now().await;
        slot.set_over(true);
        assert!(waiting.await.unwrap().is_none());
    }
}
