//! The summary of a graph that has ended: what became of every item of every stream, and what each node did.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::runtime::stats::{GraphReport, GraphState};

/// Two tables and a line about the whole, with a line break at the end.
pub fn summary(report: &GraphReport) -> String {
    let how = match report.state {
        GraphState::Starting => "starting",
        GraphState::Running => "running",
        GraphState::Draining => "draining",
        GraphState::Finished => "finished",
        GraphState::Failed => "failed",
    };
    let mut text = format!("graph `{}` {how} after {:.1} s", report.name, report.running_seconds);
    // Writing to a string does not fail.
    if let Some(reason) = &report.reason {
        let _ = write!(text, ": {reason}");
    }
    text.push('\n');

    let mut streams = table(
        1,
        &[
            "stream",
            "read",
            "delivered",
            "filtered",
            "dropped",
            "rejected",
            "lost",
            "in/s",
            "out/s",
            "age p50 ms",
            "p99 ms",
            "max ms",
        ],
    );
    for stream in &report.streams {
        let counts = stream.counts;
        let numbers = [counts.read, counts.delivered, counts.filtered, counts.dropped, counts.rejected, counts.lost];
        let rates = [stream.fps_in, stream.fps_delivered, stream.age_ms.p50, stream.age_ms.p99, stream.age_ms.max];
        let cells = numbers.iter().map(u64::to_string).chain(rates.iter().map(|rate| format!("{rate:.1}")));
        streams.add_row(std::iter::once(stream.stream.clone()).chain(cells));
    }
    if !report.streams.is_empty() {
        let _ = write!(text, "\n{}\n", streams.trim_fmt());
    }

    let mut nodes = table(3, &["node", "type", "runs in", "items", "errors", "busy s", "busy ms/item"]);
    for node in &report.nodes {
        let items: u64 = node.items.iter().sum();
        let each = node.busy_ms_each().map_or_else(|| "-".to_owned(), |each| format!("{each:.3}"));
        // What is not measured is not nothing.
        let measured = node.stages.count() > 0;
        let all = if measured { format!("{:.2}", node.busy_ms / 1000.0) } else { "-".to_owned() };
        nodes.add_row([
            node.name.clone(),
            node.type_name.clone(),
            node.role.to_owned(),
            items.to_string(),
            node.errors.to_string(),
            all,
            each,
        ]);
    }
    if !report.nodes.is_empty() {
        let _ = write!(text, "\n{}\n", nodes.trim_fmt());
    }

    for stream in &report.streams {
        if let Some(reason) = &stream.reason {
            let _ = write!(text, "\nstream `{}`: {reason}", stream.stream);
        }
        for drops in &stream.drops {
            let _ = write!(
                text,
                "\nstream `{}`: `{}` dropped {} ({})",
                stream.stream, drops.node, drops.count, drops.reason
            );
        }
        for (what, count) in &stream.repaired {
            let _ = write!(text, "\nstream `{}`: {count} repaired ({what})", stream.stream);
        }
    }
    for node in &report.nodes {
        if let Some(error) = &node.last_error {
            let _ = write!(text, "\nnode `{}`, last error: {error}", node.name);
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let ended = matches!(report.state, GraphState::Finished | GraphState::Failed);
    if ended && !report.total.conserved() {
        let _ = writeln!(text, "the counts do not add up: please report this as a mistake of the engine");
    }
    text
}

/// A table without lines whose columns after the first `words` are numbers.
fn table(words: usize, header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= words {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::cli::live::tests::{graph, stream};
    use crate::runtime::stats::StreamReport;
    use operators::lease::Counts;

    #[test]
    fn a_finished_graph() {
        let report = graph(vec![stream("door"), stream("a_camera_with_a_long_name")]);
        insta::assert_snapshot!(summary(&report), @r#"
        graph `door` finished after 20.0 s

        stream                     read  delivered  filtered  dropped  rejected  lost  in/s  out/s  age p50 ms  p99 ms  max ms
        door                        600        570        20       10         0     0  30.0   28.5         4.4    12.8    40.0
        a_camera_with_a_long_name   600        570        20       10         0     0  30.0   28.5         4.4    12.8    40.0

        node     type    runs in  items  errors  busy s  busy ms/item
        cameras  file    tap        580       0       -             -
        people   detect  pool       580       3   15.60        26.897
        events   sse     sink       580       0    0.00         0.004

        stream `door`: `people` dropped 10 (full)
        stream `a_camera_with_a_long_name`: `people` dropped 10 (full)
        "#);
    }

    #[test]
    fn a_failed_graph_says_why_and_what_was_lost() {
        let counts = Counts { read: 3, lost: 1, rejected: 1, in_flight: 0, ..Counts::default() };
        let failed = StreamReport {
            counts,
            reason: Some("cannot open `gone.mp4`: no such file".to_owned()),
            repaired: BTreeMap::from([("timestamp jumps", 2)]),
            drops: Vec::new(),
            ..stream("door")
        };
        let mut report = graph(vec![failed]);
        report.state = GraphState::Failed;
        report.reason = Some("node `people` failed".to_owned());
        report.nodes[1].last_error = Some("the model takes 3 channels".to_owned());
        report.nodes[2].items = vec![0];
        insta::assert_snapshot!(summary(&report), @r#"
        graph `door` failed after 20.0 s: node `people` failed

        stream  read  delivered  filtered  dropped  rejected  lost  in/s  out/s  age p50 ms  p99 ms  max ms
        door       3          0         0        0         1     1  30.0   28.5         4.4    12.8    40.0

        node     type    runs in  items  errors  busy s  busy ms/item
        cameras  file    tap        580       0       -             -
        people   detect  pool       580       3   15.60        26.897
        events   sse     sink         0       0    0.00             -

        stream `door`: cannot open `gone.mp4`: no such file
        stream `door`: 2 repaired (timestamp jumps)
        node `people`, last error: the model takes 3 channels
        the counts do not add up: please report this as a mistake of the engine
        "#);
    }
}
