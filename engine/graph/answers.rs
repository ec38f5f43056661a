//! `answer = "NODE"` of a source that is pushed to: whether that node can answer.

use std::collections::HashSet;

use operators::item::Kind;
use operators::operator::{Built, Produces, Registration, Role};

use super::diagnostics::{Code, Diagnostic, suggestion};
use super::nodes::Declaration;
use super::wiring::Wiring;

/// Says of each node that is to answer and cannot why that is.
pub fn report(declared: &[Declaration], built: &[Option<Built>], wiring: &Wiring, found: &mut Vec<Diagnostic>) {
    for (index, node) in declared.iter().enumerate() {
        let Some(Built::Source(source)) = &built[index] else { continue };
        let Some(answer) = source.answer() else { continue };
        if let Some((code, message, hint)) = mistake(index, answer, declared, wiring) {
            found.push(Diagnostic::new(code, node.place("answer"), message).maybe_hint(hint));
        }
    }
}

fn makes_records(registration: &Registration) -> bool {
    matches!(registration.produces, Produces::Kinds(kinds) if kinds.contains(&Kind::Record))
}

fn mistake(
    source: usize,
    answer: &str,
    declared: &[Declaration],
    wiring: &Wiring,
) -> Option<(Code, String, Option<String>)> {
    let shown = answer.escape_debug();
    let Some(place) = declared.iter().position(|node| node.name == answer) else {
        let able = declared.iter().filter(|node| node.registration.is_some_and(makes_records));
        let hint = suggestion(answer, able.map(|node| node.name.as_str()), "what can answer is");
        return Some((Code::UnknownInput, format!("there is no operator `{shown}` that could answer"), hint));
    };
    let invalid = |message: String, hint: &str| Some((Code::InvalidNode, message, Some(hint.to_owned())));
    if !makes_records(declared[place].registration?) {
        let hint = "name an operator that makes records, such as a `detect` or a `classify`";
        return invalid(format!("`{shown}` makes no records, so it cannot answer"), hint);
    }
    if !walk(place, |index| wiring.links[index].iter().map(|link| link.from).collect()).contains(&source) {
        let message =
            format!("the pictures of `{}` do not come to `{shown}`, so it cannot answer", declared[source].name);
        return invalid(message, "name an operator behind this source, or add the source to its `inputs`");
    }
    let readers = |index: usize| {
        let reads = |links: &Vec<_>| links.iter().any(|link: &super::wiring::Link| link.from == index);
        wiring.links.iter().enumerate().filter(|(_, links)| reads(links)).map(|(reader, _)| reader).collect()
    };
    let is_sink = |index: &usize| declared[*index].role == Role::Sink;
    if !walk(place, readers).iter().any(is_sink) && declared.iter().any(|node| node.role == Role::Sink) {
        let hint = "add it to the `inputs` of a sink; `type = \"blackhole\"` takes records and forgets them";
        return invalid(format!("no sink takes the records of `{shown}`, so it does not run and cannot answer"), hint);
    }
    None
}

/// Everything that is reached from a node, with the node itself.
fn walk(from: usize, next: impl Fn(usize) -> Vec<usize>) -> HashSet<usize> {
    let (mut waiting, mut seen) = (vec![from], HashSet::new());
    while let Some(at) = waiting.pop() {
        if seen.insert(at) {
            waiting.extend(next(at));
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::super::check::{Surroundings, check};
    use super::super::diagnostics::Severity;
    use super::super::testing::surroundings;

    /// What is said of a graph in which `ANSWER` is to answer, without the places.
    fn said(answer: &str) -> Vec<String> {
        let text = format!(
            r#"
            [sources.door]
            type = "push"
            streams.door = {{}}
            answer = "{answer}"

            [sources.scene]
            type = "synthetic"

            [operators.few]
            type = "sample"
            inputs = ["door"]
            fps = 2

            [operators.sums]
            type = "checksum"
            inputs = ["few"]

            [operators.others]
            type = "checksum"
            inputs = ["scene"]

            [operators.idle]
            type = "checksum"
            inputs = ["door"]

            [sinks.out]
            type = "blackhole"
            inputs = ["sums", "others"]
            "#
        );
        let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
        let checked = check("test", text.as_bytes(), &[], &surroundings);
        let errors = checked.diagnostics.iter().filter(|found| found.severity() == Severity::Error);
        errors
            .map(|found| {
                let underlined = &text[found.span.clone().unwrap()];
                assert_eq!(underlined, format!("\"{answer}\""));
                format!("{}; {}", found.message, found.hint.as_deref().unwrap_or_default())
            })
            .collect()
    }

    #[test]
    fn a_node_that_cannot_answer_is_named_with_a_way_out() {
        assert_eq!(said("sums"), [""; 0]);
        for (answer, says, hint) in [
            ("sum", "no operator `sum`", "did you mean `sums`"),
            ("few", "`few` makes no records", "detect"),
            ("out", "`out` makes no records", "detect"),
            ("others", "do not come to `others`", "inputs"),
            ("idle", "no sink takes the records of `idle`", "blackhole"),
        ] {
            let said = said(answer);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].contains(says) && said[0].contains(hint), "{}", said[0]);
        }
    }
}
