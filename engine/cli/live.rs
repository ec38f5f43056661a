//! The live view: a line for each stream at the foot of the terminal, results as text above it.
//!
//! Everything here goes to the standard error, which is for people; the standard output is for data. Where the standard
//! error is no terminal nothing is drawn, and only the log remains. Logs go through the [`Terminal`] too, so that they
//! appear above the lines and not across them.
//!
//! The view is drawn a few times a second by a thread of its own, however fast results come: a terminal that is slow,
//! or that somebody has stopped, never slows the engine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use operators::clock::Clock;
use operators::error::StartError;

use super::results::Results;
use crate::runtime::stats::{Observe, StreamReport, StreamState};

const REDRAW: Duration = Duration::from_millis(250);
/// Rates are means over at least this long.
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// Lines of streams at most; further streams are counted in one line.
const STREAM_LINES: usize = 12;
/// The standard error, shared between the log and the live view.
#[derive(Clone)]
pub struct Terminal {
    progress: MultiProgress,
    live: bool,
}

impl Terminal {
    /// The terminal of this process. It is live where the standard error is a terminal and `wanted` says so: where
    /// records go to a standard output that is the same terminal, lines that move would tear them.
    pub fn new(wanted: bool) -> Terminal {
        let live = wanted && io::stderr().is_terminal();
        let target = if live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Terminal { progress: MultiProgress::with_draw_target(target), live }
    }

    /// Whether lines are drawn.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// A line of its own.
    pub fn line(&self) -> ProgressBar {
        self.progress.add(ProgressBar::new_spinner())
    }

    /// Does something that writes to the terminal, above the live lines.
    pub fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.progress.suspend(write)
    }
}

/// Writes to the standard error, above the live lines.
impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.progress.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Items a second that came in and that were delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    read: f64,
    delivered: f64,
}

/// Measures the present rates of one stream from its counts.
struct Meter {
    since: Instant,
    read: u64,
    delivered: u64,
    rates: Rates,
}

impl Meter {
    fn new(now: Instant, stream: &StreamReport) -> Meter {
        let rates = Rates { read: stream.fps_in, delivered: stream.fps_delivered };
        Meter { since: now, read: stream.counts.read, delivered: stream.counts.delivered, rates }
    }

    fn measure(&mut self, now: Instant, stream: &StreamReport) -> Rates {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= RATE_WINDOW {
            // A reload starts the counts anew.
            let rate = |count: u64, before: u64| count.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            let rates = Rates {
                read: rate(stream.counts.read, self.read),
                delivered: rate(stream.counts.delivered, self.delivered),
            };
            *self = Meter { rates, ..Meter::new(now, stream) };
        }
        self.rates
    }
}

const fn state_name(state: StreamState) -> &'static str {
    match state {
        StreamState::Connecting => "connecting",
        StreamState::Running => "running",
        StreamState::Retrying => "retrying",
        StreamState::Fallback => "fallback",
        StreamState::Ended => "ended",
        StreamState::Stopped => "stopped",
        StreamState::Failed => "failed",
    }
}

/// The live line of one stream; `width` is that of the longest stream id.
fn stream_line(stream: &StreamReport, rates: Rates, width: usize) -> String {
    let mut line = format!(
        "{:width$}  {:10}  in {:6.1}/s  out {:6.1}/s  age {:.0}/{:.0} ms  dropped {}",
        stream.stream,
        state_name(stream.state),
        rates.read,
        rates.delivered,
        stream.age_ms.p50,
        stream.age_ms.p99,
        stream.counts.dropped,
    );
    let bad = [("rejected", stream.counts.rejected), ("lost", stream.counts.lost)];
    for (verdict, count) in bad.into_iter().filter(|(_, count)| *count > 0) {
        let _ = write!(line, "  {verdict} {count}");
    }
    if stream.reconnects > 0 {
        let _ = write!(line, "  reconnects {}", stream.reconnects);
    }
    if let Some(reason) = &stream.reason {
        let attempts = stream.attempts.map(|attempts| format!(", attempts: {attempts}")).unwrap_or_default();
        let _ = write!(line, "  ({reason}{attempts})");
    }
    line
}

/// The lines of all streams, measured as they are drawn.
#[derive(Default)]
struct StreamLines {
    meters: BTreeMap<(String, String, String), Meter>,
}

impl StreamLines {
    fn draw(&mut self, observe: &dyn Observe, now: Instant) -> Vec<String> {
        let report = observe.report();
        let several = report.graphs.len() > 1;
        let mut meters = BTreeMap::new();
        let mut lines = Vec::new();
        let streams = || report.graphs.iter().flat_map(|graph| &graph.streams);
        let width = streams().map(|stream| stream.stream.len()).max().unwrap_or(0).min(32);
        for graph in &report.graphs {
            for stream in &graph.streams {
                let key = (graph.name.clone(), stream.source.clone(), stream.stream.clone());
                let mut meter = self.meters.remove(&key).unwrap_or_else(|| Meter::new(now, stream));
                let rates = meter.measure(now, stream);
                meters.insert(key, meter);
                if lines.len() < STREAM_LINES {
                    let line = stream_line(stream, rates, width);
                    lines.push(if several { format!("{}  {line}", graph.name) } else { line });
                }
            }
        }
        self.meters = meters;
        let further = streams().count() - lines.len();
        if further > 0 {
            lines.push(format!("and {further} more streams"));
        }
        for (graph, culprit) in report.culprits() {
            let text = &culprit.text;
            lines.push(if several { format!("{graph}: {text}") } else { text.clone() });
        }
        lines
    }
}

/// A view that is being drawn. Dropping it wipes its lines.
pub struct LiveView {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LiveView {
    /// Draws until the view is dropped; nothing where the terminal is not live. `results` are shown as text above the
    /// lines, at most a few at each redraw.
    pub fn start(
        terminal: &Terminal,
        observe: Arc<dyn Observe>,
        clock: Arc<dyn Clock>,
        results: Option<Arc<Results>>,
    ) -> Result<LiveView, StartError> {
        if !terminal.is_live() {
            return Ok(LiveView { stop: None, thread: None });
        }
        let (stop, stopped) = bounded(0);
        let progress = terminal.progress.clone();
        let draw = move || {
            let mut bars = Bars { progress, bars: Vec::new() };
            let mut lines = StreamLines::default();
            while stopped.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
                bars.above(&results);
                bars.show(lines.draw(&*observe, clock.now()));
            }
            bars.above(&results);
            bars.show(Vec::new());
        };
        let thread = std::thread::Builder::new()
            .name("view".to_owned())
            .spawn(draw)
            .map_err(|error| StartError::new(format!("cannot start the live view: {error}")))?;
        Ok(LiveView { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for LiveView {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the live view panicked");
        }
    }
}

/// Lines at the foot of the terminal.
struct Bars {
    progress: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl Bars {
    fn above(&self, results: &Option<Arc<Results>>) {
        let lines = results.as_ref().map(|results| results.take_lines()).unwrap_or_default();
        if !lines.is_empty() {
            // A terminal that has gone is no reason to stop.
            let _ = self.progress.println(lines.join("\n"));
        }
    }

    fn show(&mut self, lines: Vec<String>) {
        while self.bars.len() > lines.len()
            && let Some(bar) = self.bars.pop()
        {
            bar.finish_and_clear();
            self.progress.remove(&bar);
        }
        while self.bars.len() < lines.len() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                bar.set_style(style);
            }
            self.bars.push(self.progress.add(bar));
        }
        for (bar, line) in self.bars.iter().zip(lines) {
            bar.set_message(line);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::runtime::culprit::{Culprit, CulpritKind};
    use crate::runtime::histogram::Histogram;
    use crate::runtime::preview::PreviewSlot;
    use crate::runtime::stats::{Drops, GraphReport, GraphState, Health, NodeReport, ProcessReport, Quantiles, Report};
    use indicatif::TermLike;
    use operators::clock::SimulatedClock;
    use operators::lease::Counts;
    use operators::operator::Publisher;
    use std::sync::{Mutex, MutexGuard};

    use crate::cli::results::tests::{detections, record};

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    pub(crate) fn stream(name: &str) -> StreamReport {
        StreamReport {
            stream: name.to_owned(),
            source: "cameras".to_owned(),
            location: "clips/door.mp4".to_owned(),
            live: false,
            state: StreamState::Running,
            reason: None,
            attempts: None,
            reconnects: 0,
            counts: Counts { read: 600, delivered: 570, filtered: 20, dropped: 10, ..Counts::default() },
            decoded: 600,
            converted: 580,
            skipped: 0,
            packets: 0,
            repaired: BTreeMap::new(),
            fps_in: 30.0,
            fps_delivered: 28.5,
            rate_in: 30.0,
            rate_delivered: 28.5,
            rate_dropped: 0.5,
            age_ms: Quantiles { p50: 4.4, p90: 8.25, p99: 12.75, max: 40.0 },
            ages: Histogram::default(),
            idle_ms: 12,
            drops: vec![Drops { node: "people".to_owned(), reason: "full", count: 10, rate: 0.5 }],
            blocked_by: None,
            blocked_share: 0.0,
            taps: Vec::new(),
            busy: Vec::new(),
            culprit: None,
            held_items: 1,
            held_bytes: 1 << 20,
            held_bytes_peak: 2 << 20,
            held_bytes_limit: 8 << 20,
        }
    }

    pub(crate) fn graph(streams: Vec<StreamReport>) -> GraphReport {
        let node = |name: &str, type_name: &str, role, input: Option<&str>, busy_ms, errors| NodeReport {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            role,
            inputs: input.into_iter().map(str::to_owned).collect(),
            items: vec![400, 180],
            rate: 29.0,
            errors,
            last_error: None,
            trouble: None,
            busy_ms,
            busy_seconds: busy_ms / 1000.0,
            busy_share: busy_ms / 20_000.0,
            busy_by_worker: vec![busy_ms / 20_000.0, 0.0],
            making_share: 0.0,
            // Nobody measures the work of a tap.
            stages: match role {
                "tap" => Histogram::default(),
                _ => Histogram { buckets: vec![(f64::INFINITY, 580)], sum: busy_ms / 1000.0 },
            },
            queued: 0,
            oldest_ms: None,
            encoders: Vec::new(),
        };
        GraphReport {
            name: "door".to_owned(),
            state: GraphState::Finished,
            reason: None,
            chaos: None,
            generation: 1,
            running_seconds: 20.0,
            total: streams.iter().fold(Counts::default(), |sum, stream| sum.plus(stream.counts)),
            streams,
            nodes: vec![
                node("cameras", "file", "tap", None, 1234.5, 0),
                node("people", "detect", "pool", Some("cameras"), 15_600.0, 3),
                node("events", "sse", "sink", Some("people"), 2.25, 0),
            ],
            culprit: None,
        }
    }

    struct Engine(Mutex<Report>);

    impl Observe for Engine {
        fn report(&self) -> Report {
            lock(&self.0).clone()
        }

        fn preview(&self, _graph: &str, _stream: &str) -> Option<Arc<PreviewSlot>> {
            None
        }

        fn health(&self) -> Health {
            Health { ok: true, status: "ok", problems: Vec::new() }
        }
    }

    fn engine(graphs: Vec<GraphReport>) -> Engine {
        let process = ProcessReport {
            uptime_seconds: 1.0,
            cpu_seconds: 1.0,
            resident_bytes: 1,
            peak_resident_bytes: 1,
            threads: 1,
            workers: 1,
            pool_threads: 1,
            pool_busy: 0.5,
            pool_busy_seconds: 1.5,
        };
        Engine(Mutex::new(Report { graphs, process }))
    }

    /// A terminal of 100 columns that never scrolls.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<Cells>>);

    #[derive(Debug, Default)]
    struct Cells {
        rows: Vec<Vec<char>>,
        row: usize,
        column: usize,
    }

    impl Screen {
        fn contents(&self) -> String {
            let screen = lock(&self.0);
            let rows: Vec<_> =
                screen.rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect();
            rows.join("\n").trim_end().to_owned()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            100
        }

        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            let row = &mut lock(&self.0).row;
            *row = row.saturating_sub(n);
            Ok(())
        }

        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            lock(&self.0).row += n;
            Ok(())
        }

        fn move_cursor_right(&self, n: usize) -> io::Result<()> {
            lock(&self.0).column += n;
            Ok(())
        }

        fn move_cursor_left(&self, n: usize) -> io::Result<()> {
            let column = &mut lock(&self.0).column;
            *column = column.saturating_sub(n);
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)?;
            self.write_str("\n")
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            let Cells { rows, row, column } = &mut *lock(&self.0);
            for letter in text.chars() {
                match letter {
                    '\n' => (*row, *column) = (*row + 1, 0),
                    '\r' => *column = 0,
                    _ => {
                        // As real terminals do, it wraps with the letter after the last column, not with the last.
                        if *column == 100 {
                            (*row, *column) = (*row + 1, 0);
                        }
                        rows.resize(rows.len().max(*row + 1), Vec::new());
                        let cells = &mut rows[*row];
                        cells.resize(cells.len().max(*column + 1), ' ');
                        cells[*column] = letter;
                        *column += 1;
                    }
                }
            }
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            let Cells { rows, row, column } = &mut *lock(&self.0);
            if let Some(cells) = rows.get_mut(*row) {
                cells.clear();
            }
            *column = 0;
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_has_a_line_with_its_present_rates() {
        let clock = SimulatedClock::default();
        let retrying = StreamReport {
            state: StreamState::Retrying,
            reason: Some("connection refused".to_owned()),
            attempts: Some(3),
            reconnects: 1,
            counts: Counts { lost: 2, rejected: 1, ..stream("x").counts },
            ..stream("backyard")
        };
        let engine = engine(vec![graph(vec![stream("door"), retrying])]);
        let mut lines = StreamLines::default();
        let first = lines.draw(&engine, clock.now());
        clock.advance(Duration::from_millis(500));
        assert_eq!(lines.draw(&engine, clock.now()), first, "too early for new rates");
        clock.advance(Duration::from_millis(1500));
        {
            let counts = &mut lock(&engine.0).graphs[0].streams[0].counts;
            (counts.read, counts.delivered) = (650, 600);
        }
        let later = lines.draw(&engine, clock.now());
        insta::assert_snapshot!([first, later].concat().join("\n"), @r#"
        door      running     in   30.0/s  out   28.5/s  age 4/13 ms  dropped 10
        backyard  retrying    in   30.0/s  out   28.5/s  age 4/13 ms  dropped 10  rejected 1  lost 2  reconnects 1  (connection refused, attempts: 3)
        door      running     in   25.0/s  out   15.0/s  age 4/13 ms  dropped 10
        backyard  retrying    in    0.0/s  out    0.0/s  age 4/13 ms  dropped 10  rejected 1  lost 2  reconnects 1  (connection refused, attempts: 3)
        "#);
    }

    #[test]
    fn what_limits_the_graph_stands_below_its_streams() {
        let clock = SimulatedClock::default();
        let mut graph = graph(vec![stream("door")]);
        let text = "`people` on stream `door`: inference 41 ms a frame at 30 fps; needs 1.2 cores, has 1";
        graph.culprit = Some(Culprit {
            kind: CulpritKind::Pool,
            node: Some("people".to_owned()),
            graph: None,
            costliest: None,
            streams: vec!["door".to_owned()],
            cost_ms: Some(41.0),
            rate: Some(30.0),
            needs_cores: Some(1.23),
            has_cores: Some(1.0),
            text: text.to_owned(),
        });
        let lines = StreamLines::default().draw(&engine(vec![graph]), clock.now());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], text);
    }

    #[test]
    fn many_streams_do_not_fill_the_terminal() {
        let clock = SimulatedClock::default();
        let streams = (0..30).map(|n| stream(&format!("camera{n}"))).collect();
        let lines = StreamLines::default().draw(&engine(vec![graph(streams)]), clock.now());
        assert_eq!(lines.len(), STREAM_LINES + 1);
        assert_eq!(lines[STREAM_LINES], "and 18 more streams");
    }

    #[test]
    fn results_and_logs_stand_above_the_lines_and_the_lines_vanish_at_the_end() {
        let screen = Screen::default();
        let progress = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        let terminal = Terminal { progress, live: true };
        let results = Arc::new(Results::default());
        results.publish(&Arc::new(record(10, detections(&["circle"]))));
        let observe = Arc::new(engine(vec![graph(vec![stream("door")])]));
        let clock = Arc::new(SimulatedClock::default());
        let view = LiveView::start(&terminal, observe, clock, Some(results.clone())).unwrap();
        let system = operators::clock::SystemClock;
        let deadline = system.now() + Duration::from_secs(20);
        while !screen.contents().contains("door ") {
            assert!(system.now() < deadline, "nothing was drawn: {}", screen.contents());
            system.wait(deadline, Duration::from_millis(5));
        }
        let contents = screen.contents();
        let (result, line) = (contents.find("demo: 1 circle"), contents.find("door  running"));
        assert!(result.is_some() && result < line, "{contents}");
        results.publish(&Arc::new(record(11, detections(&["square"]))));
        drop(view);
        let contents = screen.contents();
        assert!(contents.contains("demo: 1 square") && !contents.contains("running"), "{contents}");
    }

    #[test]
    fn nothing_is_drawn_where_there_is_no_terminal() {
        let terminal = Terminal::new(false);
        assert!(!terminal.is_live());
        let clock = Arc::new(SimulatedClock::default());
        let view = LiveView::start(&terminal, Arc::new(engine(Vec::new())), clock, None).unwrap();
        assert!(view.thread.is_none());
    }
}
