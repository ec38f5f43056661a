//! A frame of `engine top`: lines of text, drawn on a terminal or printed.

use std::time::Duration;

use operators::config::format_size;
use operators::error::StartError;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::statistics::{
    BusyStatistics, CulpritStatistics, EncoderStatistics, GraphStatistics, NodeStatistics, Statistics,
    StreamStatistics, TapStatistics,
};

/// What streams are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// As the graph file names them
    #[default]
    Order,
    Name,
    /// The fastest first
    Rate,
    /// Those that drop the most first
    Dropped,
    /// Those that wait the most first
    Blocked,
    /// Those with the oldest results first
    Age,
}

impl Sort {
    const ALL: [Sort; 6] = [Sort::Order, Sort::Name, Sort::Rate, Sort::Dropped, Sort::Blocked, Sort::Age];

    const fn name(self) -> &'static str {
        match self {
            Sort::Order => "order",
            Sort::Name => "name",
            Sort::Rate => "rate",
            Sort::Dropped => "dropped",
            Sort::Blocked => "blocked",
            Sort::Age => "age",
        }
    }

    fn next(self) -> Sort {
        let position = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Sort::ALL[(position + 1) % Sort::ALL.len()]
    }

    fn sort(self, streams: &mut [&StreamStatistics]) {
        let most = |value: fn(&StreamStatistics) -> f64| {
            move |a: &&StreamStatistics, b: &&StreamStatistics| value(b).total_cmp(&value(a))
        };
        match self {
            Sort::Order => {}
            Sort::Name => streams.sort_by(|a, b| a.stream.cmp(&b.stream)),
            Sort::Rate => streams.sort_by(most(|stream| stream.rate_in)),
            Sort::Dropped => streams.sort_by(most(|stream| stream.rate_dropped)),
            Sort::Blocked => streams.sort_by(most(|stream| stream.blocked_share)),
            Sort::Age => streams.sort_by(most(|stream| age(stream, "p99"))),
        }
    }
}

fn age(stream: &StreamStatistics, quantile: &str) -> f64 {
    stream.age_ms.get(quantile).copied().unwrap_or_default()
}

/// What is shown, and which part of it.
pub struct Screen {
    /// Where the engine listens.
    address: String,
    statistics: Option<Statistics>,
    /// Why the last look saw nothing.
    lost: Option<String>,
    sort: Sort,
    /// Lines that are scrolled past.
    offset: usize,
}

const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const BAD: Style = Style::new().fg(Color::Red);
const SLOW: Style = Style::new().fg(Color::Yellow);
const FINE: Style = Style::new().fg(Color::Green);

impl Screen {
    pub fn new(address: String, sort: Sort) -> Screen {
        Screen { address, statistics: None, lost: None, sort, offset: 0 }
    }

    /// Takes what the last look saw. Where that is nothing, what was seen before stays.
    pub fn saw(&mut self, seen: Result<Statistics, StartError>) {
        match seen {
            Ok(statistics) => (self.statistics, self.lost) = (Some(statistics), None),
            Err(error) => self.lost = Some(error.to_string()),
        }
    }

    pub fn sort_by_next(&mut self) {
        self.sort = self.sort.next();
    }

    /// Moves by so many lines; not beyond the last one.
    pub fn scroll(&mut self, lines: i32) {
        let most = self.lines(u16::MAX).len().saturating_sub(1);
        let offset = i64::try_from(self.offset).unwrap_or(i64::MAX).saturating_add(i64::from(lines));
        self.offset = usize::try_from(offset).unwrap_or(0).min(most);
    }

    pub fn draw(&self, frame: &mut Frame<'_>) {
        let [body, foot] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
        let lines = self.lines(body.width).split_off(self.offset.min(self.lines(body.width).len()));
        frame.render_widget(Paragraph::new(lines), body);
        let keys = format!("q ends   arrows scroll   s sorts streams (by {})", self.sort.name());
        frame.render_widget(Paragraph::new(Line::styled(keys, FAINT)), foot);
    }

    /// The whole frame as text.
    pub fn text(&self, columns: u16) -> String {
        let lines = self.lines(columns);
        lines.iter().map(|line| format!("{}\n", line.to_string().trim_end())).collect()
    }

    fn lines(&self, columns: u16) -> Vec<Line<'static>> {
        let mut lines = Vec::new();
        if let Some(lost) = &self.lost {
            lines.extend(wrapped(lost, columns, BAD));
        }
        let Some(statistics) = &self.statistics else { return lines };
        let process = &statistics.process;
        // Seconds are enough for people.
        let uptime = humantime::format_duration(Duration::from_secs(process.uptime_seconds as u64));
        lines.push(Line::from(format!(
            "engine at {}   up {uptime}   {}   pool {:.1} of {} threads busy",
            self.address,
            format_size(process.resident_bytes),
            process.pool_busy,
            process.pool_threads
        )));
        if statistics.graphs.is_empty() {
            lines.push(Line::from("no graph yet"));
        }
        for graph in &statistics.graphs {
            lines.push(Line::default());
            self.graph(graph, columns, &mut lines);
        }
        lines
    }

    fn graph(&self, graph: &GraphStatistics, columns: u16, lines: &mut Vec<Line<'static>>) {
        let state = format!("{} (generation {})", graph.state, graph.generation);
        let title = vec![Span::styled(format!("graph `{}`", graph.name), HEADING), Span::raw(format!("   {state}"))];
        lines.push(Line::from(title));
        if let Some(reason) = &graph.reason {
            lines.extend(wrapped(reason, columns, BAD));
        }
        if let Some(culprit) = &graph.culprit {
            lines.extend(wrapped(&culprit.text, columns, style_of(culprit)));
        }
        let mut streams: Vec<&StreamStatistics> = graph.streams.iter().collect();
        self.sort.sort(&mut streams);
        let name = width(streams.iter().map(|stream| &*stream.stream), "stream");
        if !streams.is_empty() {
            let heading = format!(
                "  {:name$}  {:10} {:>7} {:>7} {:>7} {:>8} {:>7} {:>9} {:>9}",
                "stream", "state", "in/s", "out/s", "drop/s", "blocked", "flight", "p50 ms", "p99 ms"
            );
            lines.push(Line::styled(heading, FAINT));
        }
        for stream in streams {
            stream_lines(stream, name, columns, lines);
        }
        let names = graph.nodes.iter().map(|node| &*node.name);
        let name = width(names, "node");
        if !graph.nodes.is_empty() {
            let heading = format!(
                "  {:name$}  {:10} {:7} {:>8} {:>6} {:>10} {:>6} {:>7}  {}",
                "node", "type", "runs in", "items/s", "queue", "oldest ms", "busy", "errors", "reads"
            );
            lines.push(Line::styled(heading, FAINT));
        }
        for node in &graph.nodes {
            lines.push(node_line(node, name));
            lines.extend(node.encoders.iter().flat_map(|encoder| encoder_lines(encoder, columns)));
        }
    }
}

fn style_of(culprit: &CulpritStatistics) -> Style {
    match &*culprit.kind {
        "nothing" | "source" => FINE,
        _ => SLOW,
    }
}

fn stream_lines(stream: &StreamStatistics, name: usize, columns: u16, lines: &mut Vec<Line<'static>>) {
    let text = format!(
        "  {:name$}  {:10} {:>7.1} {:>7.1} {:>7.1} {:>6.0} % {:>7} {:>9.1} {:>9.1}",
        stream.stream,
        stream.state,
        stream.rate_in,
        stream.rate_delivered,
        stream.rate_dropped,
        stream.blocked_share * 100.0,
        stream.in_flight,
        age(stream, "p50"),
        age(stream, "p99")
    );
    let style = match &*stream.state {
        "failed" => BAD,
        "retrying" | "fallback" => SLOW,
        _ => Style::new(),
    };
    lines.push(Line::styled(text, style));
    let indented = |text: &str| format!("    {text}");
    if let Some(reason) = &stream.reason {
        lines.extend(wrapped(&indented(reason), columns, style));
    }
    if let Some(culprit) = &stream.culprit {
        lines.extend(wrapped(&indented(&culprit.text), columns, style_of(culprit)));
    }
    // A full edge is what keeps a source waiting, or makes it drop.
    let is_full = |tap: &&TapStatistics| tap.blocked_share >= 0.005 || tap.held_items >= tap.held_items_limit;
    for tap in stream.taps.iter().filter(is_full) {
        let text = format!(
            "`{}`: {} of {} items under way, blocked {:.0} % of the time",
            tap.tap,
            tap.held_items,
            tap.held_items_limit,
            tap.blocked_share * 100.0
        );
        lines.extend(wrapped(&indented(&text), columns, FAINT));
    }
    let mut busy: Vec<&BusyStatistics> = stream.busy.iter().filter(|busy| busy.busy_share >= 0.005).collect();
    if !busy.is_empty() {
        busy.sort_by(|a, b| b.busy_share.total_cmp(&a.busy_share));
        let parts: Vec<String> = busy.iter().map(|busy| format!("{:.2} in `{}`", busy.busy_share, busy.node)).collect();
        lines.extend(wrapped(&indented(&format!("busy {}", parts.join(", "))), columns, FAINT));
    }
    if !stream.drops.is_empty() {
        let drops = stream.drops.iter().map(|drops| format!("{} by `{}` ({})", drops.count, drops.node, drops.reason));
        let text = format!("dropped {}: {}", stream.dropped, drops.collect::<Vec<_>>().join(", "));
        lines.extend(wrapped(&indented(&text), columns, FAINT));
    }
}

fn node_line(node: &NodeStatistics, name: usize) -> Line<'static> {
    let oldest = node.oldest_ms.map_or("-".to_owned(), |age| format!("{age:.0}"));
    // A tap works on its source's thread.
    let busy = if node.role == "tap" { "-".to_owned() } else { format!("{:.2}", node.busy_share) };
    let text = format!(
        "  {:name$}  {:10} {:7} {:>8.1} {:>6} {oldest:>10} {busy:>6} {:>7}  {}",
        node.name,
        node.type_name,
        node.role,
        node.rate,
        node.queued,
        node.errors,
        node.inputs.join(", ")
    );
    Line::styled(text, if node.errors > 0 { SLOW } else { Style::new() })
}

/// An encoder stands below its node.
fn encoder_lines(encoder: &EncoderStatistics, columns: u16) -> Vec<Line<'static>> {
    let threads = if encoder.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", encoder.threads) };
    let text = format!(
        "    encodes `{}` on {threads}: {:.1} pictures a second, busy {:.0} % of the time, {} packets wait",
        encoder.stream,
        encoder.rate,
        encoder.busy_share * 100.0,
        encoder.queued
    );
    wrapped(&text, columns, if encoder.busy_share >= 0.75 { SLOW } else { FAINT })
}

/// The columns that names take.
fn width<'a>(names: impl Iterator<Item = &'a str>, heading: &str) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0).clamp(heading.len().max(12), 32)
}

/// A text over as many lines as it takes, with the indentation of the first.
fn wrapped(text: &str, columns: u16, style: Style) -> Vec<Line<'static>> {
    let indentation: String = text.chars().take_while(|letter| *letter == ' ').collect();
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let length = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && length > usize::from(columns) {
            lines.push(Line::styled(std::mem::take(&mut line), style));
        }
        line.push_str(if line.is_empty() { &indentation } else { " " });
        line.push_str(word);
    }
    lines.push(Line::styled(line, style));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use crate::cli::live::tests::{graph, stream};
    use crate::runtime::culprit::{Culprit, CulpritKind};
    use crate::runtime::stats::{BusyReport, ProcessReport, Report, StreamReport, StreamState, TapReport};

    /// What an engine would answer, read as `engine top` reads it.
    fn statistics() -> Statistics {
        let tap = TapReport {
            tap: "cameras -> people".to_owned(),
            reader: "people".to_owned(),
            blocked_share: 0.25,
            blocked_seconds: 1.0,
            held_items: 8,
            held_items_limit: 8,
            held_bytes: 0,
            held_bytes_peak: 0,
            held_bytes_limit: 1 << 20,
        };
        let busy = [("events", 0.004), ("hall", 0.02), ("people", 0.76)]
            .map(|(node, busy_share)| BusyReport { node: node.to_owned(), busy_share, busy_seconds: 1.0 })
            .to_vec();
        let fine = StreamReport { drops: Vec::new(), rate_dropped: 0.0, rate_in: 25.0, ..stream("yard") };
        let lost = StreamReport {
            state: StreamState::Retrying,
            reason: Some("connection refused".to_owned()),
            rate_in: 0.0,
            ..stream("backyard")
        };
        let mut graph =
            graph(vec![StreamReport { taps: vec![tap], busy, blocked_share: 0.25, ..stream("door") }, fine, lost]);
        graph.nodes[1].oldest_ms = Some(640.0);
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
            text: "`people` on stream `door`: inference 41 ms a frame at 30 fps; needs 1.2 cores, has 1".to_owned(),
        });
        let process = ProcessReport {
            uptime_seconds: 3723.9,
            cpu_seconds: 1.0,
            resident_bytes: 96 << 20,
            peak_resident_bytes: 1,
            threads: 1,
            workers: 1,
            pool_threads: 1,
            pool_busy: 0.98,
            pool_busy_seconds: 1.0,
        };
        let report = Report { graphs: vec![graph], process };
        serde_json::from_value(serde_json::to_value(report).unwrap()).unwrap()
    }

    fn screen() -> Screen {
        let mut screen = Screen::new("http://127.0.0.1:8000".to_owned(), Sort::Order);
        screen.saw(Ok(statistics()));
        screen
    }

    #[test]
    fn a_frame_as_text() {
        insta::assert_snapshot!(screen().text(100));
    }

    #[test]
    fn a_frame_on_a_terminal() {
        let mut terminal = Terminal::new(TestBackend::new(96, 18)).unwrap();
        let mut screen = screen();
        screen.sort_by_next();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        insta::assert_snapshot!(terminal.backend());
    }

    #[test]
    fn a_small_terminal_scrolls_to_the_end_and_not_beyond() {
        let mut terminal = Terminal::new(TestBackend::new(60, 4)).unwrap();
        let mut screen = screen();
        screen.scroll(i32::MAX);
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let shown = terminal.backend().to_string();
        assert!(shown.contains("events") && !shown.contains("graph"), "{shown}");
        screen.scroll(i32::MIN);
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        assert!(terminal.backend().to_string().contains("engine at http://127.0.0.1:8000"));
    }

    #[test]
    fn an_engine_that_is_gone_is_said_and_what_it_was_stays() {
        let mut screen = screen();
        screen.saw(Err(StartError::new("no engine answers at http://127.0.0.1:8000: connection refused")));
        let text = screen.text(100);
        assert!(text.starts_with("no engine answers") && text.contains("graph `door`"), "{text}");
        screen.saw(Ok(statistics()));
        assert!(screen.text(100).starts_with("engine at"));
    }

    #[test]
    fn streams_are_sorted_by_what_is_asked_for() {
        let order = |sort: Sort| -> Vec<String> {
            let statistics = statistics();
            let mut streams: Vec<&StreamStatistics> = statistics.graphs[0].streams.iter().collect();
            sort.sort(&mut streams);
            streams.iter().map(|stream| stream.stream.clone()).collect()
        };
        assert_eq!(order(Sort::Order), ["door", "yard", "backyard"]);
        assert_eq!(order(Sort::Name), ["backyard", "door", "yard"]);
        assert_eq!(order(Sort::Rate), ["door", "yard", "backyard"]);
        assert_eq!(order(Sort::Dropped), ["door", "backyard", "yard"]);
        assert_eq!(order(Sort::Blocked)[0], "door");
        let mut sort = Sort::Order;
        for _ in Sort::ALL {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Order);
    }

    #[test]
    fn long_sentences_are_broken_between_words() {
        let lines = wrapped("    one two three four", 14, Style::new());
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["    one two", "    three four"]);
    }
}
