//! What is wrong with nodes that could each be built, in the sight of each other.

use std::collections::{HashMap, HashSet};

use operators::config::{FieldType, format_size};
use operators::item::Kind;
use operators::operator::{Built, ItemSize, Role, StreamSpec};

use crate::graph::demand::{self, Node};
use crate::graph::diagnostics::{Code, Diagnostic, listed};
use crate::graph::nodes::Declaration;
use crate::graph::parse::Data;
use crate::graph::plan::Overflow;
use crate::graph::wiring::Wiring;

/// A source may declare no more streams than it may have.
pub fn counts(declared: &[Declaration], built: &[Option<Built>], found: &mut Vec<Diagnostic>) {
    for (node, built) in declared.iter().zip(built) {
        let Some(Built::Source(source)) = built else { continue };
        let count = source.streams().len();
        if count > node.max_streams as usize {
            let message = format!("`{}` declares {count} streams and may have {}", node.path(), node.max_streams);
            let hint = format!("raise its `max_streams` to {count} or more");
            found.push(Diagnostic::new(Code::OutOfRange, node.span.clone(), message).hint(hint));
        }
    }
}

/// Two streams of one id could not be told apart behind the sources.
pub fn streams(declared: &[Declaration], built: &[Option<Built>], found: &mut Vec<Diagnostic>) {
    let mut first: HashMap<String, (usize, StreamSpec)> = HashMap::new();
    for (index, built) in built.iter().enumerate() {
        let Some(Built::Source(source)) = built else { continue };
        for spec in source.streams() {
            let Some((other, spec)) = first.insert(spec.id.to_string(), (index, spec.clone())) else { continue };
            let message = format!(
                "two streams are called `{}`: of `{}` and of `{}`",
                spec.id,
                declared[other].path(),
                declared[index].path()
            );
            let names = |node: &Declaration| {
                let fields = node.registration.map(|registration| registration.fields).unwrap_or_default();
                fields.iter().find(|field| field.name == "streams").map(|field| field.value)
            };
            let hint = match names(&declared[index]) {
                Some(FieldType::List(_)) => "give one of them another id: `streams = [\"ID\"]`",
                _ => "give one of them another id: `streams.ID = …`",
            };
            let place = |node: &Declaration| match node.table.get("streams").map(|streams| &streams.data) {
                Some(Data::Table(streams)) => streams.key(&spec.id).map(|key| key.span.clone()),
                _ => None,
            };
            let at = place(&declared[index]).unwrap_or(declared[index].span.clone());
            let mut diagnostic = Diagnostic::new(Code::DuplicateStream, at.clone(), message).hint(hint);
            let elsewhere = place(&declared[other]).unwrap_or(declared[other].span.clone());
            if elsewhere != at {
                diagnostic = diagnostic.related(elsewhere, "the other");
            }
            found.push(diagnostic);
        }
    }
}

/// A tensor that a model does not take would be an error at every picture.
pub fn tensors(declared: &[Declaration], built: &[Option<Built>], wiring: &Wiring, found: &mut Vec<Diagnostic>) {
    let pool = |index: usize| match &built[index] {
        Some(Built::Pool(operator)) => Some(operator),
        _ => None,
    };
    for (index, links) in wiring.links.iter().enumerate() {
        let Some(taken) = pool(index).and_then(|operator| operator.takes()) else { continue };
        for link in links {
            let Some(made) = pool(link.from).and_then(|operator| operator.makes()) else { continue };
            if taken.takes(made) {
                continue;
            }
            let message = format!(
                "the model of `{}` takes {}, but `{}` makes {}",
                declared[index].path(),
                taken.described(),
                declared[link.from].name,
                made.described()
            );
            let hint = format!(
                "give `{}` the field `model = …` with the same model, and leave its own fields out",
                declared[link.from].path()
            );
            found.push(Diagnostic::new(Code::WrongTensor, link.span.clone(), message).hint(hint));
        }
    }
}

/// A sink may be configured for some of the kinds alone that its type takes.
pub fn refusals(declared: &[Declaration], built: &[Option<Built>], wiring: &Wiring, found: &mut Vec<Diagnostic>) {
    for (index, links) in wiring.links.iter().enumerate() {
        let Some(Built::Sink(sink)) = &built[index] else { continue };
        for link in links {
            let Some((why, hint)) = link.kind.and_then(|kind| sink.refuses(kind)) else { continue };
            let message =
                format!("`{}` takes nothing of `{}`: {why}", declared[index].path(), declared[link.from].name);
            found.push(Diagnostic::new(Code::WrongKind, link.span.clone(), message).hint(hint));
        }
    }
}

/// An operator that takes several kinds of items of one stream needs inputs that fit together.
pub fn joins(nodes: &[Node], origins: &[&Declaration], found: &mut Vec<Diagnostic>) {
    for (node, origin) in nodes.iter().zip(origins) {
        let Some(Built::Inline(operator)) = &node.built else { continue };
        if let Some((why, hint)) = operator.refuses(&demand::flows(nodes, node)) {
            let message = format!("`{}` cannot work with these inputs: {why}", origin.path());
            found.push(Diagnostic::new(Code::WrongKind, origin.span.clone(), message).hint(hint));
        }
    }
}

/// What may be dropped where: a lost packet spoils every picture until the next keyframe.
pub fn overflow(declared: &[Declaration], wiring: &Wiring, found: &mut Vec<Diagnostic>) {
    for (index, node) in declared.iter().enumerate() {
        let Some((overflow, span)) = &node.overflow else { continue };
        let flows = |kind: Kind, exactly: bool| {
            let mut kinds = wiring
                .links
                .iter()
                .enumerate()
                .flat_map(|(consumer, links)| links.iter().map(move |link| (consumer, link)))
                .filter(
                    |(consumer, link)| if node.role == Role::Source { link.from == index } else { *consumer == index },
                )
                .filter_map(|(_, link)| link.kind);
            kinds.any(|other| (other == kind) == exactly)
        };
        match overflow {
            Overflow::DropOldest if flows(Kind::Packet, true) => {
                let message = "`drop_oldest` would drop packets, and every picture up to the next keyframe with them";
                let hint = "write `overflow = \"drop_gop\"`, which drops whole groups of pictures";
                found.push(Diagnostic::new(Code::DropOldestPackets, span.clone(), message).hint(hint));
            }
            Overflow::DropGop if flows(Kind::Packet, false) => {
                let message = "`drop_gop` drops packets up to the next keyframe, but no packets flow here";
                let hint = "write `overflow = \"drop_oldest\"`";
                found.push(Diagnostic::new(Code::DropGopWithoutPackets, span.clone(), message).hint(hint));
            }
            _ => {}
        }
    }
}

/// Budgets that hold not even one item, and budgets that bound nothing.
pub fn bounds(nodes: &[Node], origins: &[&Declaration], found: &mut Vec<Diagnostic>) {
    let mut told = HashSet::new();
    let mut too_small = |source: usize, reader: usize, bytes: u64| {
        let Some(ItemSize::Known(size) | ItemSize::Declared(size)) =
            nodes[source].source().map(|source| source.frame_size())
        else {
            return;
        };
        if bytes >= size {
            return;
        }
        // The one that says how much: the reader, or else the source, or else nobody.
        let by = [reader, source].into_iter().find(|index| nodes[*index].budget.bytes.is_some()).unwrap_or(source);
        let declaration = origins[by];
        let at = declaration.budget.as_ref().map_or(declaration.span.clone(), |(_, span)| span.clone());
        let message = format!(
            "a budget of {} is smaller than one frame of `{}`, which takes {}",
            format_size(bytes),
            nodes[source].name,
            format_size(size)
        );
        let hint = format!("allow at least `budget = {{ bytes = {size} }}`, and better several times that");
        if told.insert((at.clone(), message.clone())) {
            found.push(Diagnostic::new(Code::BudgetTooSmall, at, message).hint(hint));
        }
    };
    for tap in demand::taps(nodes).iter().filter(|tap| tap.kind == Kind::Frame) {
        too_small(tap.source, tap.reader, tap.limits.bytes);
    }
    for (index, node) in nodes.iter().enumerate() {
        let Some(entry) = demand::entry(nodes, index) else { continue };
        if node.inputs.iter().any(|edge| edge.kind == Kind::Frame) {
            for source in demand::roots(nodes, index) {
                too_small(source, index, entry.limits.bytes);
            }
        }
    }
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| !demand::has_bound(nodes, *index)) {
        let Some((_, span)) = origins[index].budget.as_ref().filter(|_| !node.inputs.is_empty()) else { continue };
        let message = format!("the budget of `{}` bounds nothing: it pays with its source's", node.name);
        let hint = "add `overflow = \"drop_oldest\"` to give it a bound of its own, or move the budget to the node \
                    that stands right behind the source";
        found.push(Diagnostic::new(Code::BudgetWithoutEffect, span.clone(), message).hint(hint));
    }
}

/// A branch that blocks holds up its source, and so every other branch of it.
pub fn shared_fate(nodes: &[Node], origins: &[&Declaration], found: &mut Vec<Diagnostic>) {
    let taps = demand::taps(nodes);
    for (index, node) in nodes.iter().enumerate() {
        let own: Vec<_> = taps.iter().filter(|tap| tap.source == index).collect();
        let blocking: Vec<&str> =
            own.iter().filter(|tap| tap.overflow == Overflow::Block).map(|tap| &*nodes[tap.reader].name).collect();
        if own.len() < 2 || blocking.is_empty() {
            continue;
        }
        let all: Vec<&str> = own.iter().map(|tap| &*nodes[tap.reader].name).collect();
        let (verb, those) = if blocking.len() == 1 { ("blocks", "it is") } else { ("block", "one of them is") };
        let message = format!(
            "{} share the fate of `{}`: {} {verb}, so while {those} full the source waits and no branch gets anything",
            listed(&all),
            node.name,
            listed(&blocking)
        );
        let hint = "that is right where nothing may be lost; a branch with `overflow = \"drop_oldest\"` holds up no \
                    other";
        found.push(Diagnostic::new(Code::SharedFate, origins[index].span.clone(), message).hint(hint));
    }
}
