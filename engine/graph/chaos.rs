//! The table `[chaos]` of a graph file: which nodes are disturbed, and how. Owns who may have one and what stands in it;
//! what is done then is [`operators::chaos`].

use std::collections::HashMap;
use std::sync::Arc;

use operators::chaos::{self, Disturbance};
use operators::config::{Field, FieldType, Presence};
use operators::operator::Built;
use serde::Serialize;

use super::diagnostics::{Code, Diagnostic, suggestion};
use super::fields::FieldChecker;
use super::nodes::Declaration;
use super::parse::{Data, Key, Table, Value};

/// The name of the table.
pub const TABLE: &str = "chaos";

/// What stands in `[chaos]` beside `nodes`.
pub static FIELDS: [Field; 1] = [Field {
    name: "seed",
    value: FieldType::Integer { minimum: 0, maximum: i64::MAX },
    presence: Presence::Default("0"),
    summary: "Which faults: the same number gives the same ones.",
}];

const NODES: &str = "nodes";

/// An example, for the reference.
pub const EXAMPLE: &str = r#"[chaos]
seed = 7

[chaos.nodes.cameras]
flap = "30s"
latency = "50ms"
loss = 0.01
pts_jump = { every = "1m", by = "-10s" }

[chaos.nodes.people]
panic = 0.001

[chaos.nodes.events]
fail = 0.01
"#;

/// That a graph is disturbed, for everybody who looks at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chaos {
    pub seed: u64,
    /// The nodes to which something is done.
    pub nodes: Vec<Arc<str>>,
}

/// What was read of the table.
#[derive(Default)]
pub struct Disturbances {
    seed: u64,
    nodes: HashMap<String, (Disturbance, Table)>,
}

/// Takes the table out of a document.
pub fn take(document: &mut Table) -> Option<(Key, Value)> {
    let index = document.entries.iter().position(|(key, _)| key.name == TABLE)?;
    Some(document.entries.remove(index))
}

/// Reads the table; `is_allowed` where whoever runs the graph wants faults.
pub fn read(
    taken: Option<(Key, Value)>,
    declared: &[Declaration],
    is_allowed: bool,
    checker: &mut FieldChecker<'_>,
) -> Disturbances {
    let mut read = Disturbances::default();
    let Some((key, value)) = taken else { return read };
    if !is_allowed {
        let message = "`[chaos]` breaks what works, and nobody has asked for that here";
        let hint = "run the graph with `engine run --chaos`, or remove the table";
        checker.diagnostics.push(Diagnostic::new(Code::ChaosNotAllowed, key.span.clone(), message).hint(hint));
    }
    let Data::Table(mut table) = value.data else {
        let message = format!("`chaos` is a table, not {}", value.data.described());
        let hint = "write `[chaos.nodes.NAME]`, and below it what is done to that node";
        checker.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
        return read;
    };
    let nodes = table.entries.iter().position(|(key, _)| key.name == NODES).map(|index| table.entries.remove(index));
    checker.table("`chaos`", &key.span, &mut table, &FIELDS, &[NODES]);
    if let Some(Value { data: Data::Integer(seed), .. }) = table.get("seed") {
        read.seed = u64::try_from(*seed).unwrap_or_default();
    }
    let Some((key, value)) = nodes else { return read };
    let Data::Table(nodes) = value.data else {
        let message = format!("`chaos.nodes` is a table, not {}", value.data.described());
        let hint = "write `[chaos.nodes.NAME]`, and below it what is done to that node";
        checker.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
        return read;
    };
    for (key, value) in nodes.entries {
        node(&mut read, key, value, declared, checker);
    }
    read
}

fn node(read: &mut Disturbances, key: Key, value: Value, declared: &[Declaration], checker: &mut FieldChecker<'_>) {
    let Some(node) = declared.iter().find(|node| node.name == key.name) else {
        let message = format!("there is no node `{}` that could be disturbed", key.name.escape_debug());
        let hint = suggestion(&key.name, declared.iter().map(|node| node.name.as_str()), "the graph's nodes are");
        checker.diagnostics.push(Diagnostic::new(Code::UnknownNode, key.span, message).maybe_hint(hint));
        return;
    };
    let Data::Table(mut table) = value.data else {
        let message = format!("`chaos.nodes.{}` is a table, not {}", key.name, value.data.described());
        let hint = format!("write `[chaos.nodes.{}]`, and below it what is done to that node", key.name);
        checker.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
        return;
    };
    let before = checker.diagnostics.len();
    let owner = format!("chaos for a {}", node.role.name());
    checker.table(&owner, &key.span, &mut table, chaos::fields(node.role), &[]);
    let mistaken: Vec<usize> =
        checker.diagnostics[before..].iter().filter_map(|found| Some(found.span.as_ref()?.start)).collect();
    let has_mistakes = checker.diagnostics.len() > before;
    // What the fields that are left say is looked at all the same: everything that is wrong is told at once.
    table.entries.retain(|(key, value)| !mistaken.iter().any(|at| (key.span.start..value.span.end).contains(at)));
    match Disturbance::read(read.seed, &node.name, table.to_toml()) {
        Ok(disturbance) if !has_mistakes => {
            read.nodes.insert(key.name, (disturbance, table));
        }
        Ok(_) => {}
        Err(errors) => checker.diagnostics.extend(errors.into_iter().map(|error| {
            let at = place(&table, &error.field).unwrap_or(key.span.clone());
            Diagnostic::new(Code::OutOfRange, at, error.message).maybe_hint(error.hint)
        })),
    }
}

/// Where a field stands; `field` may be a path.
fn place(table: &Table, field: &str) -> Option<std::ops::Range<usize>> {
    let (name, rest) = field.split_once('.').unwrap_or((field, ""));
    let value = table.get(name)?;
    match &value.data {
        Data::Table(inner) if !rest.is_empty() => place(inner, rest),
        _ => Some(value.span.clone()),
    }
}

impl Disturbances {
    /// What is done to a node.
    pub fn of(&self, node: &str) -> Option<&Disturbance> {
        self.nodes.get(node).map(|(disturbance, _)| disturbance)
    }

    /// A connection can be lost only where there is one.
    pub fn report_meaningless(&self, declared: &[Declaration], built: &[Option<Built>], found: &mut Vec<Diagnostic>) {
        for (node, built) in declared.iter().zip(built) {
            let Some((disturbance, table)) = self.nodes.get(&node.name) else { continue };
            if let Some(Built::Source(source)) = built
                && disturbance.flaps()
                && !source.has_connection()
            {
                let at = table.key("flap").map_or(node.span.clone(), |key| key.span.clone());
                let message = format!("`flap` has no meaning for `{}`, which connects to nothing", node.path());
                found.push(Diagnostic::new(Code::InapplicableField, at, message).hint("remove it"));
            }
        }
    }
}
