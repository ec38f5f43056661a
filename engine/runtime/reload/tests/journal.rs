//! Nodes that write down what they see: which way each item has taken, and in which order items and signals come.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use operators::error::{ItemError, SinkError, SourceError, StartError};
use operators::inference::session::Sessions;
use operators::item::{
    ColorMatrix, ColorRange, EndReason, Event, Frame, Item, Payload, PictureBuffer, PixelFormat, Played, StreamId,
    StreamInfo,
};
use operators::lease::Verdict;
use operators::lock::lock;
use operators::operator::{
    InlineOperator, IoOperator, IoRunner, ItemSize, Outlet, Output, PoolOperator, Runner, Sink, SinkWriter, Source,
    StreamOperator, StreamSpec,
};
use operators::time::{MediaTime, TimeBase};

/// What comes to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    Open,
    Item { way: Arc<str>, seq: u64 },
    End(EndReason),
}

/// What all nodes of a test saw.
#[derive(Default)]
pub struct Journal {
    /// For each stream, where in its input each picture stood that was made, in order.
    pub made: Mutex<BTreeMap<String, Vec<u64>>>,
    /// How often each stream was opened by a source.
    pub opened: Mutex<BTreeMap<String, u64>>,
    /// How often each sink was started, by its label.
    pub started: Mutex<BTreeMap<String, u64>>,
    /// What came to each sink, by its label, of each stream.
    pub came: Mutex<HashMap<(String, String), Vec<Came>>>,
    /// For each node that counts and each stream, the counts that it gave.
    pub counted: Mutex<HashMap<(String, String), Vec<u64>>>,
    /// What should not happen.
    pub mistakes: Mutex<Vec<String>>,
}

impl Journal {
    /// How many pictures each stream has made.
    pub fn marks(&self) -> BTreeMap<String, u64> {
        lock(&self.made).iter().map(|(stream, made)| (stream.clone(), made.len() as u64)).collect()
    }

    /// How much of a stream has come to a sink.
    pub fn arrived(&self, sink: &str, stream: &str) -> usize {
        lock(&self.came).get(&(sink.to_owned(), stream.to_owned())).map_or(0, Vec::len)
    }

    fn mistake(&self, text: String) {
        lock(&self.mistakes).push(text);
    }
}

/// A picture of one pixel that holds the way which it has taken.
struct Way(Vec<u8>);

impl PictureBuffer for Way {
    fn plane(&self, _index: usize) -> &[u8] {
        &self.0
    }

    fn stride(&self, _index: usize) -> usize {
        1
    }
}

fn picture(way: Vec<u8>) -> Frame {
    Frame {
        width: 1,
        height: 1,
        format: PixelFormat::Gray8,
        matrix: ColorMatrix::Bt601,
        range: ColorRange::Full,
        buffer: Box::new(Way(way)),
        index: None,
        truth: None,
    }
}

fn way(item: &Item) -> Option<&[u8]> {
    match &item.payload {
        Payload::Frame(frame) => Some(frame.buffer.plane(0)),
        _ => None,
    }
}

/// The item's picture, once it has been through `element`.
fn stamped(item: &Item, element: &str) -> Payload {
    let mut way = way(item).unwrap_or(b"?").to_vec();
    way.push(b'/');
    way.extend(element.as_bytes());
    Payload::Frame(Arc::new(picture(way)))
}

/// Makes tiny pictures until it is stopped, or until each stream has made `count`.
pub struct Numbered {
    journal: Arc<Journal>,
    streams: Vec<String>,
    count: u64,
    live: bool,
}

impl Numbered {
    pub fn new(journal: Arc<Journal>, streams: &[&str], count: u64, live: bool) -> Numbered {
        Numbered { journal, streams: streams.iter().map(ToString::to_string).collect(), count, live }
    }
}

impl Source for Numbered {
    fn streams(&self) -> Vec<StreamSpec> {
        let spec = |id: &String| StreamSpec { id: StreamId::new(id).unwrap(), location: "memory".into() };
        self.streams.iter().map(spec).collect()
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn is_finite(&self) -> bool {
        !self.live
    }

    fn frame_size(&self) -> ItemSize {
        ItemSize::Known(1)
    }

    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        0
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        *lock(&self.journal.opened).entry(stream.to_string()).or_default() += 1;
        let base = TimeBase::new(1, 30).unwrap();
        outlet.open(StreamInfo { tracks: Vec::new(), time_base: base, duration: None, played: Played::Live });
        for seq in 0..self.count {
            if outlet.stopping() {
                return Ok(EndReason::Stopped);
            }
            outlet.frame(seq, MediaTime::new(seq.cast_signed(), base), &mut || Ok(picture(b".".to_vec())))?;
            lock(&self.journal.made).entry(stream.to_string()).or_default().push(seq);
            // Not as fast as it could, so that there are more changes than pictures in a test's time.
            let clock = outlet.clock().clone();
            let pause = Duration::from_micros(400);
            clock.wait(clock.now() + pause, pause);
        }
        Ok(EndReason::Eof)
    }
}

/// Counts the items of each stream: a state that shows every seam.
pub struct Count {
    journal: Arc<Journal>,
    element: String,
    joins: bool,
    /// Each stream comes by one way, or the ways are joined: then it must hear of beginnings and ends.
    is_plain: bool,
}

impl Count {
    pub fn new(journal: Arc<Journal>, element: String, joins: bool, is_plain: bool) -> Count {
        Count { journal, element, joins, is_plain }
    }
}

impl InlineOperator for Count {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        Box::new(Counted {
            journal: self.journal.clone(),
            element: self.element.clone(),
            is_plain: self.is_plain,
            stream: stream.to_string(),
            count: 0,
            is_open: false,
        })
    }

    fn joins(&self) -> bool {
        self.joins
    }
}

struct Counted {
    journal: Arc<Journal>,
    element: String,
    is_plain: bool,
    stream: String,
    count: u64,
    is_open: bool,
}

impl Counted {
    fn mistake(&self, what: &str) {
        if self.is_plain {
            let Counted { journal, element, stream, count, .. } = self;
            journal.mistake(format!("`{element}` {what} of stream `{stream}`, after {count} items"));
        }
    }
}

impl StreamOperator for Counted {
    fn open(&mut self, _info: &Arc<StreamInfo>, _out: &mut Output) {
        self.is_open = true;
    }

    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        if !self.is_open {
            self.mistake("got an item before the format");
        }
        let place = (self.element.clone(), self.stream.clone());
        lock(&self.journal.counted).entry(place).or_default().push(self.count);
        self.count += 1;
        out.emit(item.replace(stamped(item, &self.element)));
        Ok(())
    }

    fn end(&mut self, _reason: &EndReason, _out: &mut Output) {
        self.is_open = false;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.is_open {
            self.mistake("was not told of the end");
        }
    }
}

/// Passes some streams on, and filters what comes of others.
pub struct Only {
    element: String,
    streams: Vec<String>,
}

impl Only {
    pub fn new(element: String, streams: &[&str]) -> Only {
        Only { element, streams: streams.iter().map(ToString::to_string).collect() }
    }
}

impl InlineOperator for Only {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        let passes = self.streams.iter().any(|other| **other == **stream);
        Box::new(OnlyStream { element: self.element.clone(), passes })
    }
}

struct OnlyStream {
    element: String,
    passes: bool,
}

impl StreamOperator for OnlyStream {
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        if self.passes {
            out.emit(item.replace(stamped(item, &self.element)));
        } else {
            out.settle(item, Verdict::Filtered);
        }
        Ok(())
    }
}

/// Takes uneven time over its stamp.
#[derive(Clone)]
pub struct Stamp(pub String);

impl PoolOperator for Stamp {
    fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        Ok(Box::new(self.clone()))
    }

    fn memory(&self) -> u64 {
        0
    }
}

impl Runner for Stamp {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        for _ in 0..(item.seq * 7919 % 13) * 100 {
            std::hint::spin_loop();
        }
        Ok(stamped(item, &self.0))
    }
}

/// Answers out of order.
pub struct Courier(pub Stamp);

impl IoOperator for Courier {
    fn start(&self) -> Result<Arc<dyn IoRunner>, StartError> {
        Ok(Arc::new(Courier(self.0.clone())))
    }

    fn concurrency(&self) -> usize {
        3
    }
}

#[async_trait::async_trait]
impl IoRunner for Courier {
    async fn run(&self, item: &Item) -> Result<Payload, ItemError> {
        for _ in 0..item.seq * 7919 % 5 {
            tokio::task::yield_now().await;
        }
        Ok(stamped(item, &self.0.0))
    }
}

/// Writes down what comes, in order.
#[derive(Clone)]
pub struct Notebook {
    journal: Arc<Journal>,
    label: String,
    refuses: bool,
}

impl Notebook {
    pub fn new(journal: Arc<Journal>, label: String, refuses: bool) -> Notebook {
        Notebook { journal, label, refuses }
    }
}

impl Sink for Notebook {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        if self.refuses {
            return Err(StartError::new("as told"));
        }
        *lock(&self.journal.started).entry(self.label.clone()).or_default() += 1;
        Ok(Box::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl SinkWriter for Notebook {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let mut came = lock(&self.journal.came);
        for event in batch {
            let what = match event {
                Event::Open { .. } => Came::Open,
                Event::End { reason, .. } => Came::End(reason.clone()),
                Event::Item(item) => match way(item).and_then(|way| std::str::from_utf8(way).ok()) {
                    Some(way) => Came::Item { way: way.into(), seq: item.seq },
                    None => {
                        self.journal.mistake(format!("`{}` got {:?}", self.label, item.payload));
                        continue;
                    }
                },
                Event::Gap { gap, .. } => {
                    self.journal.mistake(format!("`{}` got a gap: {}", self.label, gap.reason));
                    continue;
                }
            };
            came.entry((self.label.clone(), event.stream().to_string())).or_default().push(what);
        }
        Ok(())
    }
}
