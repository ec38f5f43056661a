//! How the nodes of a graph hang together: inputs, cycles, kinds, and nodes that nothing listens to.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use operators::item::Kind;
use operators::operator::{Produces, Registration, Role};

use super::diagnostics::{Code, Diagnostic, listed, suggestion};
use super::nodes::Declaration;

/// An input that was found.
#[derive(Clone, Debug)]
pub struct Link {
    /// Index of the node that it names.
    pub from: usize,
    pub span: Range<usize>,
    /// What flows; `None` where one of the ends is not known.
    pub kind: Option<Kind>,
}

/// The graph's edges.
pub struct Wiring {
    /// For each node, its inputs that were found.
    pub links: Vec<Vec<Link>>,
    /// Indices of the nodes, each behind its inputs; nodes of cycles and behind them are left out.
    pub order: Vec<usize>,
}

/// Finds every node's inputs, and says what is wrong with them.
pub fn wire(declared: &[Declaration], registry: &[&'static Registration], out: &mut Vec<Diagnostic>) -> Wiring {
    let mut links = find_inputs(declared, out);
    let order = order(&links);
    report_cycles(declared, &links, &order, out);
    check_kinds(declared, &mut links, &order, registry, out);
    report_repeats(declared, &links, &order, out);
    report_missing_ends(declared, &links, out);
    Wiring { links, order }
}

fn find_inputs(declared: &[Declaration], out: &mut Vec<Diagnostic>) -> Vec<Vec<Link>> {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (index, node) in declared.iter().enumerate() {
        by_name.entry(&node.name).or_insert(index);
    }
    let makers: Vec<&str> = declared.iter().filter(|n| !is_mute(n)).map(|n| n.name.as_str()).collect();
    let mut all = Vec::with_capacity(declared.len());
    for node in declared {
        let mut links: Vec<Link> = Vec::new();
        for input in &node.inputs {
            let shown = input.name.escape_debug();
            match by_name.get(input.name.as_str()) {
                None => {
                    let others = makers.iter().copied().filter(|name| *name != node.name);
                    let hint = suggestion(&input.name, others, "sources and operators are");
                    let message = format!("there is no source or operator `{shown}`");
                    out.push(
                        Diagnostic::new(Code::UnknownInput, input.span.clone(), message)
                            .hint("add a source or an operator of that name")
                            .maybe_hint(hint),
                    );
                }
                Some(&from) if is_mute(&declared[from]) => {
                    let message = format!("`{shown}` is a sink: nothing comes out of it");
                    let hint = "name a source or an operator; several sinks may have the same inputs";
                    out.push(Diagnostic::new(Code::InputIsSink, input.span.clone(), message).hint(hint));
                }
                Some(&from) => match links.iter().find(|link| link.from == from) {
                    Some(first) => {
                        let message = format!("`{shown}` is an input of `{}` twice", node.path());
                        let diagnostic = Diagnostic::new(Code::DuplicateInput, input.span.clone(), message);
                        out.push(diagnostic.related(first.span.clone(), "the first").hint("remove one of them"));
                    }
                    None => links.push(Link { from, span: input.span.clone(), kind: None }),
                },
            }
        }
        all.push(links);
    }
    all
}

/// Whether nothing can come out of a node: sinks, but for those that tell what became of what they took.
fn is_mute(node: &Declaration) -> bool {
    let tells = node.registration.is_some_and(|registration| registration.produces != Produces::Nothing);
    node.role == Role::Sink && !tells
}

/// Kahn's algorithm; among nodes that are ready, the order of the file.
fn order(links: &[Vec<Link>]) -> Vec<usize> {
    let mut waiting: Vec<usize> = links.iter().map(Vec::len).collect();
    let mut consumers: Vec<Vec<usize>> = vec![Vec::new(); links.len()];
    for (index, inputs) in links.iter().enumerate() {
        inputs.iter().for_each(|link| consumers[link.from].push(index));
    }
    let mut ready: std::collections::BTreeSet<usize> =
        waiting.iter().enumerate().filter(|(_, count)| **count == 0).map(|(index, _)| index).collect();
    let mut order = Vec::with_capacity(links.len());
    while let Some(index) = ready.pop_first() {
        order.push(index);
        for &consumer in &consumers[index] {
            waiting[consumer] -= 1;
            if waiting[consumer] == 0 {
                ready.insert(consumer);
            }
        }
    }
    order
}

/// Each cycle is named once, at the input that closes it. Every node that is not in `order` has an input that is not
/// in it either, so walking along inputs comes back to where it was.
fn report_cycles(declared: &[Declaration], links: &[Vec<Link>], order: &[usize], out: &mut Vec<Diagnostic>) {
    let mut ordered = vec![false; links.len()];
    order.iter().for_each(|index| ordered[*index] = true);
    let mut seen = ordered.clone();
    for start in 0..links.len() {
        let mut path: Vec<(usize, &Link)> = Vec::new();
        let mut at = start;
        while !seen[at] {
            seen[at] = true;
            let Some(link) = links[at].iter().find(|link| !ordered[link.from]) else { break };
            path.push((at, link));
            at = link.from;
        }
        let Some(first) = path.iter().position(|(index, _)| *index == at) else { continue };
        let mut cycle: Vec<(usize, &Link)> = path.split_off(first);
        // The walk went against the flow; begin with the node that comes first in the file.
        cycle.reverse();
        let begin = cycle.iter().enumerate().min_by_key(|(_, (index, _))| *index).map_or(0, |(place, _)| place);
        cycle.rotate_left(begin);
        let mut names: Vec<String> = cycle.iter().map(|(index, _)| format!("`{}`", declared[*index].name)).collect();
        names.push(names[0].clone());
        let message = format!("{} feeds itself: {}", names[0], names.join(" -> "));
        let mut diagnostic = Diagnostic::new(Code::Cycle, cycle[0].1.span.clone(), message);
        for (index, link) in cycle.iter().skip(1) {
            diagnostic = diagnostic.related(link.span.clone(), format!("an input of `{}`", declared[*index].name));
        }
        out.push(diagnostic.hint("remove one of these inputs"));
    }
}

fn check_kinds(
    declared: &[Declaration],
    links: &mut [Vec<Link>],
    order: &[usize],
    registry: &[&'static Registration],
    out: &mut Vec<Diagnostic>,
) {
    // What may come out of each node; `None` where that is not known.
    let mut made: Vec<Option<Vec<Kind>>> = vec![None; declared.len()];
    for &index in order {
        let Some(registration) = declared[index].registration else { continue };
        let (mut passed, mut known) = (Vec::new(), true);
        for link in &mut links[index] {
            let Some(offered) = &made[link.from] else {
                known = false;
                continue;
            };
            link.kind = registration.accepts.iter().copied().find(|kind| offered.contains(kind));
            match link.kind {
                Some(_) => passed.extend(registration.accepts.iter().copied().filter(|kind| offered.contains(kind))),
                None => {
                    known = false;
                    out.push(wrong_kind(registration, &declared[link.from], offered, link, registry));
                }
            }
        }
        made[index] = match registration.produces {
            Produces::Nothing => Some(Vec::new()),
            Produces::Kinds(kinds) => Some(kinds.to_vec()),
            Produces::SameAsInput => {
                passed.sort_unstable();
                passed.dedup();
                (known && !passed.is_empty()).then_some(passed)
            }
        };
    }
}

fn wrong_kind(
    consumer: &Registration,
    producer: &Declaration,
    offered: &[Kind],
    link: &Link,
    registry: &[&'static Registration],
) -> Diagnostic {
    let plural = |kinds: &[Kind]| kinds.iter().map(|kind| kind.plural()).collect::<Vec<_>>().join(" or ");
    let (takes, makes) = (plural(consumer.accepts), plural(offered));
    let message = format!("`{}` takes {takes}, but `{}` makes {makes}", consumer.name, producer.name);
    let between: Vec<&str> = registry
        .iter()
        .filter(|known| known.role == Role::Operator && known.accepts.iter().any(|kind| offered.contains(kind)))
        .filter(|known| match known.produces {
            Produces::Kinds(kinds) => kinds.iter().any(|kind| consumer.accepts.contains(kind)),
            _ => false,
        })
        .map(|known| known.name)
        .collect();
    let hint = if between.is_empty() {
        format!("let `inputs` name something that makes {takes}")
    } else {
        format!("put an operator between them that makes {takes} of {makes}: {}", listed(&between))
    };
    Diagnostic::new(Code::WrongKind, link.span.clone(), message).hint(hint)
}

/// What comes to a node along two ways comes to it twice, and by no order: the bounds of memory count it once, and a
/// record's id, which names its node, its stream and its picture, would be there twice. All `sse` sinks publish into one
/// place, so what comes to two of them is published twice.
fn report_repeats(declared: &[Declaration], links: &[Vec<Link>], order: &[usize], out: &mut Vec<Diagnostic>) {
    // Who gave the items that come out of each node their identity: sources, and whatever makes records.
    let mut makers: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); declared.len()];
    // The `sse` sink that publishes the records of a maker, and its input for them.
    let mut publishers: HashMap<usize, (usize, &Link)> = HashMap::new();
    for &index in order {
        let (node, links) = (&declared[index], &links[index]);
        let mut ways: HashMap<usize, &Link> = HashMap::new();
        // Frames that a sink takes do not become records there.
        let told = links.iter().filter(|link| !is_mute(node) || link.kind == Some(Kind::Record));
        let repeated = told
            .flat_map(|link| makers[link.from].iter().map(move |maker| (*maker, link)))
            .find_map(|(maker, second)| ways.insert(maker, second).map(|first| (first, second, maker)));
        if let Some((first, second, maker)) = repeated {
            let [maker, one, other] = [maker, first.from, second.from].map(|index| &declared[index].name);
            let way = format!("the same items of `{maker}` come to `{}` by `{one}` and by `{other}`", node.path());
            // Each way has a pace of its own.
            let message = format!("{way}, so it would get them twice and out of order");
            let hint = if node.role == Role::Sink {
                "remove one of them"
            } else {
                "remove one of them, or write two nodes with one input each and let one sink take both"
            };
            let diagnostic = Diagnostic::new(Code::RepeatedItems, second.span.clone(), message).hint(hint);
            out.push(diagnostic.related(first.span.clone(), "the other way"));
        }
        if node.registration.is_some_and(|registration| registration.name == operators::sinks::sse::REGISTRATION.name) {
            let published = links.iter().flat_map(|link| makers[link.from].iter().map(move |maker| (*maker, link)));
            let again = published.filter_map(|(maker, link)| {
                let (other, first) = publishers.insert(maker, (index, link)).filter(|(other, _)| *other != index)?;
                Some((maker, link, other, first))
            });
            for (maker, link, other, first) in again {
                let message = format!(
                    "`{}` and `{}` both publish the records of `{}`, so whoever listens gets each twice",
                    declared[other].path(),
                    node.path(),
                    declared[maker].name
                );
                let hint = "one `sse` sink is enough: listeners choose with `/events?node=…`";
                let diagnostic = Diagnostic::new(Code::PublishedTwice, link.span.clone(), message).hint(hint);
                out.push(diagnostic.related(first.span.clone(), "published here too"));
            }
        }
        let makes_records = node.registration.is_some_and(
            |registration| matches!(registration.produces, Produces::Kinds(kinds) if kinds.contains(&Kind::Record)),
        );
        if node.role == Role::Source || makes_records {
            makers[index].insert(index);
        } else {
            let of_inputs: BTreeSet<usize> = links.iter().flat_map(|link| makers[link.from].iter().copied()).collect();
            makers[index] = of_inputs;
        }
    }
}

fn report_missing_ends(declared: &[Declaration], links: &[Vec<Link>], out: &mut Vec<Diagnostic>) {
    let has = |role: Role| declared.iter().any(|node| node.role == role);
    if !has(Role::Source) {
        let message = if declared.is_empty() { "the graph is empty" } else { "the graph has no source" };
        let hint = "add `[sources.NAME]` with a `type`";
        out.push(Diagnostic::of_file(Code::NoSources, message).hint(hint));
    }
    if !has(Role::Sink) {
        if !declared.is_empty() {
            let hint = "add `[sinks.NAME]` with a `type` and `inputs`";
            out.push(Diagnostic::of_file(Code::NoSinks, "the graph has no sink, so nothing would run").hint(hint));
        }
        return;
    }
    let mut heard = vec![false; declared.len()];
    links.iter().flatten().for_each(|link| heard[link.from] = true);
    for (node, heard) in declared.iter().zip(heard) {
        if node.role != Role::Sink && !heard {
            let message = format!("nothing listens to `{}`, so it does not run", node.name);
            let hint = format!("add `{}` to the `inputs` of another node, or remove it", node.name);
            out.push(Diagnostic::new(Code::UnusedNode, node.span.clone(), message).hint(hint));
        }
    }
}
