//! Draws a plan: the graph as it would run, for Graphviz and for Mermaid. Owns no decision; [`super::explain`] has the
//! numbers that do not fit into a drawing.

use std::fmt::Write;

use operators::config::format_size;
use operators::lease::Limits;

use super::plan::{Entry, Input, Overflow, Plan, Work};
use super::substitute::Secrets;

/// What a drawing shows. Every text in it is safe to show.
pub struct Diagram {
    graph: String,
    boxes: Vec<DrawnNode>,
    arrows: Vec<Arrow>,
}

struct DrawnNode {
    /// What the formats call it; names may have characters that they do not take.
    id: String,
    shape: Shape,
    lines: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Source,
    /// A `sample` that runs on its source's thread.
    PushedDown,
    Operator,
    Sink,
}

struct Arrow {
    from: String,
    to: String,
    lines: Vec<String>,
}

impl Diagram {
    /// Draws a plan. What `secrets` covers is not shown.
    pub fn new(plan: &Plan, secrets: &Secrets) -> Diagram {
        let shown = |text: &str| secrets.redact(text);
        let (mut boxes, mut arrows) = (Vec::new(), Vec::new());
        for (index, planned) in plan.sources.iter().enumerate() {
            let streams = match planned.source.streams().len() {
                1 => "1 stream".to_owned(),
                count => format!("{count} streams"),
            };
            let lines = vec![shown(&planned.name), planned.type_name.to_owned(), streams];
            boxes.push(DrawnNode { id: format!("source{index}"), shape: Shape::Source, lines });
        }
        for (index, tap) in plan.taps.iter().enumerate() {
            let Some((name, sampling)) = &tap.sample else { continue };
            let id = format!("tap{index}");
            let lines = vec![shown(name), "sample, on the source's thread".to_owned()];
            boxes.push(DrawnNode { id: id.clone(), shape: Shape::PushedDown, lines });
            let lines = vec![
                format!("{}, {} a second", tap.kind.plural(), sampling.rate),
                bound(Entry { overflow: tap.overflow, limits: tap.limits }),
            ];
            arrows.push(Arrow { from: format!("source{}", tap.source), to: id, lines });
        }
        for (index, operator) in plan.operators.iter().enumerate() {
            let id = format!("operator{index}");
            let (place, model) = match &operator.work {
                Work::Inline(_) => ("on the workers", None),
                Work::Pool(work) => ("in the pool", work.model()),
                Work::Io(_) => ("on the io runtime", None),
            };
            let mut lines = vec![shown(&operator.name), format!("{}, {place}", operator.type_name)];
            lines.extend(model.map(|model| format!("model {}", shown(&model))));
            arrows.extend(operator.inputs.iter().map(|input| arrow(plan, *input, &id, operator.entry)));
            boxes.push(DrawnNode { id, shape: Shape::Operator, lines });
        }
        for (index, sink) in plan.sinks.iter().enumerate() {
            let id = format!("sink{index}");
            let lines = vec![shown(&sink.name), sink.type_name.to_owned()];
            arrows.extend(sink.inputs.iter().map(|input| arrow(plan, *input, &id, sink.entry)));
            boxes.push(DrawnNode { id, shape: Shape::Sink, lines });
        }
        Diagram { graph: shown(&plan.graph), boxes, arrows }
    }

    /// The drawing in the language of Graphviz: `dot -Tsvg`.
    pub fn dot(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_dot(&mut out);
        out
    }

    fn write_dot(&self, out: &mut String) -> std::fmt::Result {
        let quoted = |lines: &[String]| {
            let escaped: Vec<String> =
                lines.iter().map(|line| line.replace('\\', "\\\\").replace('"', "\\\"")).collect();
            format!("\"{}\"", escaped.join("\\n"))
        };
        writeln!(out, "digraph {} {{", quoted(std::slice::from_ref(&self.graph)))?;
        writeln!(out, "  rankdir=LR;")?;
        writeln!(out, "  node [shape=box, fontname=\"sans-serif\"];")?;
        writeln!(out, "  edge [fontname=\"sans-serif\", fontsize=10];")?;
        for node in &self.boxes {
            let shape = match node.shape {
                Shape::Source => ", shape=ellipse",
                Shape::PushedDown => ", style=dashed",
                Shape::Operator => "",
                Shape::Sink => ", shape=note",
            };
            writeln!(out, "  {} [label={}{shape}];", node.id, quoted(&node.lines))?;
        }
        for arrow in &self.arrows {
            let label = match arrow.lines.is_empty() {
                true => String::new(),
                false => format!(" [label={}]", quoted(&arrow.lines)),
            };
            writeln!(out, "  {} -> {}{label};", arrow.from, arrow.to)?;
        }
        writeln!(out, "}}")
    }

    /// The drawing as Mermaid, which Markdown pages render in a block ```` ```mermaid ````.
    pub fn mermaid(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_mermaid(&mut out);
        out
    }

    fn write_mermaid(&self, out: &mut String) -> std::fmt::Result {
        let quoted = |lines: &[String]| {
            let escaped: Vec<String> =
                lines.iter().map(|line| line.replace('#', "#35;").replace('"', "#quot;")).collect();
            format!("\"{}\"", escaped.join("<br/>"))
        };
        writeln!(out, "flowchart LR")?;
        for node in &self.boxes {
            let (open, close) = match node.shape {
                Shape::Source => ("([", "])"),
                Shape::PushedDown | Shape::Operator => ("[", "]"),
                Shape::Sink => ("[/", "/]"),
            };
            writeln!(out, "  {}{open}{}{close}", node.id, quoted(&node.lines))?;
        }
        for arrow in &self.arrows {
            let label = match arrow.lines.is_empty() {
                true => String::new(),
                false => format!("|{}|", quoted(&arrow.lines)),
            };
            writeln!(out, "  {} -->{label} {}", arrow.from, arrow.to)?;
        }
        for node in self.boxes.iter().filter(|node| node.shape == Shape::PushedDown) {
            writeln!(out, "  style {} stroke-dasharray: 5 5", node.id)?;
        }
        Ok(())
    }
}

fn arrow(plan: &Plan, input: Input, to: &str, entry: Option<Entry>) -> Arrow {
    let to = to.to_owned();
    match input {
        Input::Operator(index) => {
            Arrow { from: format!("operator{index}"), to, lines: entry.map(bound).into_iter().collect() }
        }
        Input::Tap(index) => {
            let tap = &plan.taps[index];
            if tap.sample.is_some() {
                return Arrow { from: format!("tap{index}"), to, lines: entry.map(bound).into_iter().collect() };
            }
            let lines =
                vec![format!("all {}", tap.kind.plural()), bound(Entry { overflow: tap.overflow, limits: tap.limits })];
            Arrow { from: format!("source{}", tap.source), to, lines }
        }
    }
}

/// "8 items, 64 MiB, then the source waits".
fn bound(Entry { overflow, limits: Limits { items, bytes } }: Entry) -> String {
    let then = match overflow {
        Overflow::Block => "the source waits",
        Overflow::DropOldest => "the oldest is dropped",
        Overflow::DropGop => "video is dropped until the next keyframe",
    };
    let plural = if items == 1 { "" } else { "s" };
    format!("{items} item{plural}, {}, then {then}", format_size(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::check::check;
    use super::super::planner::{PlanOptions, build_plan};
    use super::super::testing::surroundings;
    use super::*;

    fn drawn(text: &str, name: &str) -> Diagram {
        let graph = check(name, text.as_bytes(), &[], &surroundings()).graph.unwrap();
        let plan = build_plan(&graph, PlanOptions { workers: None, pool_threads: None, cores: 2 });
        Diagram::new(&plan, &graph.secrets)
    }

    const GRAPH: &str = "[sources.cam]\ntype = \"camera\"\n[operators.few]\ntype = \"sample\"\nfps = 2\n\
        inputs = [\"cam\"]\n[sinks.screen]\ntype = \"screen\"\ninputs = [\"few\"]\noverflow = \"drop_oldest\"\n\
        budget = { items = 1 }\n[sinks.disk]\ntype = \"recorder\"\ninputs = [\"cam\"]\n";

    #[test]
    fn a_plan_for_graphviz() {
        insta::assert_snapshot!(drawn(GRAPH, "door").dot(), @r#"
        digraph "door" {
          rankdir=LR;
          node [shape=box, fontname="sans-serif"];
          edge [fontname="sans-serif", fontsize=10];
          source0 [label="cam\ncamera\n1 stream", shape=ellipse];
          tap0 [label="few\nsample, on the source's thread", style=dashed];
          sink0 [label="screen\nscreen", shape=note];
          sink1 [label="disk\nrecorder", shape=note];
          source0 -> tap0 [label="frames, 2 a second\n4 items, 64 MiB, then the oldest is dropped"];
          tap0 -> sink0 [label="1 item, 64 MiB, then the oldest is dropped"];
          source0 -> sink1 [label="all packets\n256 items, 64 MiB, then video is dropped until the next keyframe"];
        }
        "#);
    }

    #[test]
    fn a_plan_for_mermaid() {
        insta::assert_snapshot!(drawn(GRAPH, "door").mermaid(), @r#"
        flowchart LR
          source0(["cam<br/>camera<br/>1 stream"])
          tap0["few<br/>sample, on the source's thread"]
          sink0[/"screen<br/>screen"/]
          sink1[/"disk<br/>recorder"/]
          source0 -->|"frames, 2 a second<br/>4 items, 64 MiB, then the oldest is dropped"| tap0
          tap0 -->|"1 item, 64 MiB, then the oldest is dropped"| sink0
          source0 -->|"all packets<br/>256 items, 64 MiB, then video is dropped until the next keyframe"| sink1
          style tap0 stroke-dasharray: 5 5
        "#);
    }

    #[test]
    fn what_the_formats_would_misread_is_escaped() {
        let diagram = Diagram {
            graph: "a\"b".to_owned(),
            boxes: vec![DrawnNode {
                id: "sink0".to_owned(),
                shape: Shape::Sink,
                lines: vec!["say \"#1\" \\ 2".to_owned()],
            }],
            arrows: Vec::new(),
        };
        assert!(diagram.dot().contains(r#"digraph "a\"b" {"#), "{}", diagram.dot());
        assert!(diagram.dot().contains(r##"label="say \"#1\" \\ 2""##), "{}", diagram.dot());
        assert!(diagram.mermaid().contains("\"say #quot;#35;1#quot; \\ 2\""), "{}", diagram.mermaid());
    }
}
