//! From the tables of a graph file to its nodes: what each is called, of which type it is, and the fields that every
//! node takes. Owns names, types and common fields; a type's own fields are checked by [`super::fields`].

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use operators::config::{self, Field, FieldType, Presence};
use operators::item::is_name;
use operators::operator::{Registration, Role};

use super::chaos;
use super::diagnostics::{Code, Diagnostic, Severity, suggestion};
use super::fields::FieldChecker;
use super::parse::{Data, Key, Table, Value};
use super::places::Places;
use super::plan::{OnError, Overflow};

/// What a node says of its budget; the rest comes from the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartialBudget {
    pub items: Option<u32>,
    pub bytes: Option<u64>,
}

/// A node as the file declares it.
pub struct Declaration {
    pub role: Role,
    pub name: String,
    /// Where the name stands.
    pub span: Range<usize>,
    /// `None` where the type is missing or unknown.
    pub registration: Option<&'static Registration>,
    /// The fields of its type.
    pub table: Table,
    pub inputs: Vec<Key>,
    pub budget: Option<(PartialBudget, Range<usize>)>,
    pub overflow: Option<(Overflow, Range<usize>)>,
    pub on_error: OnError,
    /// How many streams a source may have.
    pub max_streams: u32,
    /// Whether the file says so.
    pub says_max_streams: bool,
    /// Everything in its table is right, so it can be built.
    pub sound: bool,
    /// The fields of its type in which a mistake was found: what is wrong with the others can still be said.
    pub faulty: HashSet<String>,
}

impl Declaration {
    /// `operators.people`, for messages.
    pub fn path(&self) -> String {
        format!("{}.{}", self.role.table(), self.name)
    }

    /// The values of which `wrong` says so count for nothing.
    pub fn distrust(&mut self, wrong: impl Fn(&Value) -> bool) {
        let faulty = self.table.entries.iter().filter(|(_, value)| wrong(value)).map(|(key, _)| key.name.clone());
        let faulty: Vec<String> = faulty.filter(|name| !self.faulty.contains(name)).collect();
        self.sound &= faulty.is_empty();
        self.faulty.extend(faulty);
    }

    /// Where a field of this node stands: its value, or the node's name. `field` may be a path: `has.person`.
    pub fn place(&self, field: &str) -> Range<usize> {
        let (mut table, mut place) = (Some(&self.table), self.span.clone());
        let mut rest = field;
        while let Some(inner) = table.take() {
            // A key may have dots in it, so try the whole rest first.
            let (name, next) = match rest.split_once('.') {
                _ if inner.get(rest).is_some() => (rest, ""),
                Some((name, next)) => (name, next),
                None => (rest, ""),
            };
            let Some(value) = inner.get(name) else { break };
            place = value.span.clone();
            rest = next;
            if let Data::Table(inner) = &value.data {
                table = Some(inner);
                if rest.is_empty() {
                    // A table's own span may be as long as the file: its key says enough.
                    place = inner.entries.first().map_or(place.clone(), |_| self.key_place(name).unwrap_or(place));
                    break;
                }
            }
        }
        place
    }

    fn key_place(&self, name: &str) -> Option<Range<usize>> {
        self.table.key(name).map(|key| key.span.clone())
    }
}

const ROLES: [Role; 3] = [Role::Source, Role::Operator, Role::Sink];

/// Tables that are not nodes.
const OTHER_TABLES: [&str; 4] = ["params", "test", "state", chaos::TABLE];

const OVERFLOWS: &[&str] = &["block", "drop_oldest", "drop_gop"];

const ON_ERROR: &[&str] = &["reject", "stop"];

/// The names of types are not listed here: each role has its own.
const TYPE: Field = Field {
    name: "type",
    value: FieldType::String,
    presence: Presence::Required,
    summary: "What the node is: the name of a source, an operator or a sink.",
};

const BUDGET_FIELD: Field = Field {
    name: "budget",
    value: FieldType::Table(&BUDGET),
    presence: Presence::Optional,
    summary: "What one stream may have in memory behind a source, or in front of a node with `overflow`. Left out: 8 \
              items (4 where the source is live), of packets 256, and 64 MiB.",
};

const OVERFLOW_FIELD: Field = Field {
    name: "overflow",
    value: FieldType::Choice(OVERFLOWS),
    presence: Presence::Optional,
    summary: "What happens when the budget is used up: the source waits, the oldest waiting item is dropped, or video is \
              dropped until the next keyframe. Left out: `block` for finite sources, `drop_oldest` for live ones, \
              `drop_gop` for their packets.",
};

/// How many streams a source may have where it does not say: enough for one machine's cameras, and few enough that a
/// client that adds streams in a loop is told before the machine is full.
pub const MAX_STREAMS: u32 = 1024;

const MAX_STREAMS_FIELD: Field = Field {
    name: "max_streams",
    value: FieldType::Integer { minimum: 1, maximum: 100_000 },
    presence: Presence::Default("1024"),
    summary: "How many streams it may have, those included that are added while the graph runs.",
};

/// The fields that every source takes, beside those of its type.
pub static SOURCE_FIELDS: [Field; 4] = [TYPE, BUDGET_FIELD, OVERFLOW_FIELD, MAX_STREAMS_FIELD];

/// The fields that every operator and every sink takes, beside those of its type.
pub static CONSUMER_FIELDS: [Field; 5] = [
    TYPE,
    Field {
        name: "inputs",
        value: FieldType::List(&FieldType::String),
        presence: Presence::Required,
        summary: "The names of the sources and operators whose items flow into it.",
    },
    BUDGET_FIELD,
    OVERFLOW_FIELD,
    Field {
        name: "on_error",
        value: FieldType::Choice(ON_ERROR),
        presence: Presence::Default("\"reject\""),
        summary: "What an error on one item means: an error record takes the item's place, or the graph stops.",
    },
];

/// The fields that nodes of a role take, whatever their type.
pub fn common_fields(role: Role) -> &'static [Field] {
    match role {
        Role::Source => &SOURCE_FIELDS,
        Role::Operator | Role::Sink => &CONSUMER_FIELDS,
    }
}

static BUDGET: [Field; 2] = [
    Field {
        name: "items",
        value: FieldType::Integer { minimum: 1, maximum: 1_000_000 },
        presence: Presence::Optional,
        summary: "Items of one stream that may be in memory.",
    },
    Field {
        name: "bytes",
        value: FieldType::Size,
        presence: Presence::Optional,
        summary: "Bytes of one stream that may be in memory.",
    },
];

/// Reads all nodes of a document whose references are resolved.
pub fn declarations(
    document: Table,
    registry: &[&'static Registration],
    checker: &mut FieldChecker<'_>,
) -> Vec<Declaration> {
    let mut declared = Vec::new();
    for (key, value) in document.entries {
        let Some(role) = ROLES.into_iter().find(|role| role.table() == key.name) else {
            checker.diagnostics.extend(other_table(&key));
            continue;
        };
        let Data::Table(nodes) = value.data else {
            let message = format!("`{}` is a table of nodes, not {}", key.name, value.data.described());
            let hint = format!("write `[{}.NAME]`, and below it the node's fields", key.name);
            checker.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
            continue;
        };
        for (key, value) in nodes.entries {
            declared.extend(declaration(role, key, value, registry, checker));
        }
    }
    report_duplicates(&declared, &mut checker.diagnostics);
    declared
}

fn other_table(key: &Key) -> Option<Diagnostic> {
    match key.name.as_str() {
        "params" | "test" | "state" | chaos::TABLE => None,
        name => {
            let known = ROLES.into_iter().map(Role::table).chain(OTHER_TABLES);
            let message = format!("a graph has no table or value `{}`", name.escape_debug());
            let hint = suggestion(name, known, "a graph has");
            Some(Diagnostic::new(Code::UnknownTable, key.span.clone(), message).maybe_hint(hint))
        }
    }
}

fn report_duplicates(declared: &[Declaration], diagnostics: &mut Vec<Diagnostic>) {
    let mut first: BTreeMap<&str, &Declaration> = BTreeMap::new();
    for node in declared {
        if let Some(other) = first.insert(&node.name, node) {
            let message = format!("two nodes are called `{}`: `{}` and `{}`", node.name, other.path(), node.path());
            let diagnostic = Diagnostic::new(Code::DuplicateName, node.span.clone(), message);
            diagnostics.push(diagnostic.related(other.span.clone(), "the other").hint("rename one of them"));
        }
    }
}

fn declaration(
    role: Role,
    key: Key,
    value: Value,
    registry: &[&'static Registration],
    checker: &mut FieldChecker<'_>,
) -> Option<Declaration> {
    let before = checker.diagnostics.len();
    if !is_name(&key.name) {
        let message = format!("`{}` cannot name a {}", key.name.escape_debug(), role.name());
        let hint = "use 1 to 128 of `A-Z a-z 0-9 _ . -`";
        checker.diagnostics.push(Diagnostic::new(Code::BadName, key.span.clone(), message).hint(hint));
    }
    let Data::Table(table) = value.data else {
        let message =
            format!("`{}.{}` is a table, not {}", role.table(), key.name.escape_debug(), value.data.described());
        let hint = format!("write `[{}.NAME]`, and below it the node's fields", role.table());
        checker.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
        return None;
    };
    let mut node = Declaration {
        role,
        name: key.name,
        span: key.span,
        registration: None,
        table: Table::default(),
        inputs: Vec::new(),
        budget: None,
        overflow: None,
        on_error: OnError::Reject,
        max_streams: MAX_STREAMS,
        says_max_streams: false,
        sound: false,
        faulty: HashSet::new(),
    };
    let mut type_given = false;
    for (key, value) in table.entries {
        match key.name.as_str() {
            "type" => {
                type_given = true;
                node.registration = registered(role, &value, registry, checker);
            }
            "inputs" if role != Role::Source => inputs(&mut node, value, checker),
            "on_error" if role != Role::Source => on_error(&mut node, value, checker),
            "inputs" | "on_error" => {
                let message = format!("`{}` has no meaning for a source: nothing flows into it", key.name);
                let diagnostic = Diagnostic::new(Code::InapplicableField, key.span, message);
                checker.diagnostics.push(diagnostic.hint("remove it"));
            }
            "budget" => budget(&mut node, &key, value, checker),
            "overflow" => overflow(&mut node, value, checker),
            "max_streams" if role == Role::Source => max_streams(&mut node, value, checker),
            _ => node.table.entries.push((key, value)),
        }
    }
    if !type_given {
        let message = format!("`{}` has no `type`", node.path());
        let known: Vec<&str> = registry.iter().filter(|known| known.role == role).map(|known| known.name).collect();
        let hint = suggestion(&node.name, known, &format!("add `type = …`; {}s are", role.name()));
        let hint = hint.unwrap_or_else(|| "add `type = …`".to_owned());
        checker.diagnostics.push(Diagnostic::new(Code::MissingType, node.span.clone(), message).hint(hint));
    }
    if role != Role::Source && node.inputs.is_empty() && !checker.diagnostics[before..].iter().any(about_inputs) {
        let message = format!("`{}` has no `inputs`, so nothing flows into it", node.path());
        let hint = "add `inputs = [\"name of a source or an operator\"]`";
        checker.diagnostics.push(Diagnostic::new(Code::MissingInputs, node.span.clone(), message).hint(hint));
    }
    if let Some(registration) = node.registration {
        let common: Vec<&str> = common_fields(role).iter().map(|field| field.name).collect();
        let owner = format!("`{}`", registration.name);
        checker.table(&owner, &node.span, &mut node.table, registration.fields, &common);
        if role == Role::Source {
            stream_names(&node, checker);
        }
    }
    let mistakes = || checker.diagnostics[before..].iter().filter(|found| found.severity() == Severity::Error);
    node.sound = node.registration.is_some() && mistakes().next().is_none();
    let places = Places::of(mistakes().filter_map(|mistake| mistake.span.as_ref()));
    let faulty = node.table.entries.iter().filter(|(key, value)| places.has(&key.span) || value.encloses_any(&places));
    node.faulty = faulty.map(|(key, _)| key.name.clone()).collect();
    Some(node)
}

fn about_inputs(diagnostic: &Diagnostic) -> bool {
    diagnostic.code == Code::WrongValueType && diagnostic.message.starts_with("`inputs`")
}

/// The keys of `streams` become stream ids.
fn stream_names(node: &Declaration, checker: &mut FieldChecker<'_>) {
    let Some(Value { data: Data::Table(streams), .. }) = node.table.get("streams") else { return };
    for (key, _) in streams.entries.iter().filter(|(key, _)| !is_name(&key.name)) {
        let message = format!("`{}` cannot name a stream", key.name.escape_debug());
        let hint = "use 1 to 128 of `A-Z a-z 0-9 _ . -`";
        checker.diagnostics.push(Diagnostic::new(Code::BadName, key.span.clone(), message).hint(hint));
    }
}

fn registered(
    role: Role,
    value: &Value,
    registry: &[&'static Registration],
    checker: &mut FieldChecker<'_>,
) -> Option<&'static Registration> {
    let Data::String(name) = &value.data else {
        let message = format!("`type` takes the name of a type, not {}", value.data.described());
        checker.diagnostics.push(Diagnostic::new(Code::WrongValueType, value.span.clone(), message));
        return None;
    };
    let of_role = || registry.iter().filter(move |known| known.role == role);
    if let Some(known) = of_role().find(|known| known.name == name) {
        return Some(known);
    }
    let shown = if value.secret { "[secret]".to_owned() } else { name.escape_debug().to_string() };
    let diagnostic = match registry.iter().find(|known| known.name == name) {
        Some(other) => {
            let message = format!("`{shown}` is a {}, but it stands in `{}`", other.role.name(), role.table());
            let hint = format!("write it as `[{}.NAME]`", other.role.table());
            Diagnostic::new(Code::WrongTable, value.span.clone(), message).hint(hint)
        }
        None => {
            let message = format!("there is no {} of type `{shown}`", role.name());
            let known: Vec<&str> = of_role().map(|known| known.name).collect();
            let hint = suggestion(name, known, &format!("{}s are", role.name()));
            Diagnostic::new(Code::UnknownType, value.span.clone(), message).maybe_hint(hint)
        }
    };
    checker.diagnostics.push(diagnostic);
    None
}

fn inputs(node: &mut Declaration, mut value: Value, checker: &mut FieldChecker<'_>) {
    let before = checker.diagnostics.len();
    checker.value("inputs", &FieldType::List(&FieldType::String), &mut value);
    let Data::Array(values) = value.data else { return };
    if checker.diagnostics.len() > before {
        return;
    }
    for value in values {
        if let Data::String(name) = value.data {
            node.inputs.push(Key { name, span: value.span });
        }
    }
}

fn on_error(node: &mut Declaration, mut value: Value, checker: &mut FieldChecker<'_>) {
    checker.value("on_error", &FieldType::Choice(ON_ERROR), &mut value);
    if matches!(&value.data, Data::String(word) if word == "stop") {
        node.on_error = OnError::Stop;
    }
}

fn overflow(node: &mut Declaration, mut value: Value, checker: &mut FieldChecker<'_>) {
    checker.value("overflow", &FieldType::Choice(OVERFLOWS), &mut value);
    let policy = match &value.data {
        Data::String(word) if word == "block" => Overflow::Block,
        Data::String(word) if word == "drop_oldest" => Overflow::DropOldest,
        Data::String(word) if word == "drop_gop" => Overflow::DropGop,
        _ => return,
    };
    node.overflow = Some((policy, value.span));
}

fn max_streams(node: &mut Declaration, mut value: Value, checker: &mut FieldChecker<'_>) {
    checker.value("max_streams", &MAX_STREAMS_FIELD.value, &mut value);
    if let Data::Integer(most) = value.data {
        node.max_streams = u32::try_from(most).unwrap_or(MAX_STREAMS);
        node.says_max_streams = true;
    }
}

fn budget(node: &mut Declaration, key: &Key, mut value: Value, checker: &mut FieldChecker<'_>) {
    let Data::Table(table) = &mut value.data else {
        let message = format!("`budget` takes a table, not {}", value.data.described());
        let hint = "write it like `budget = { items = 8, bytes = \"64MiB\" }`";
        checker.diagnostics.push(Diagnostic::new(Code::WrongValueType, value.span, message).hint(hint));
        return;
    };
    checker.table("`budget`", &key.span, table, &BUDGET, &[]);
    let mut budget = PartialBudget::default();
    if let Some(Value { data: Data::Integer(items), .. }) = table.get("items") {
        budget.items = u32::try_from(*items).ok();
    }
    budget.bytes = match table.get("bytes").map(|bytes| &bytes.data) {
        Some(Data::Integer(bytes)) => u64::try_from(*bytes).ok(),
        Some(Data::String(text)) => config::parse_size(text).ok(),
        _ => None,
    };
    let place = table.get("bytes").or(table.get("items")).map_or(key.span.clone(), |value| value.span.clone());
    node.budget = Some((budget, place));
}
