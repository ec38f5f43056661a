//! The types and fields of the registry as data, which all forms of the reference are written from.

use operators::config::{Field, Presence};
use operators::operator::{Execution, Produces, Registration, Role};
use serde::Serialize;

use crate::graph::fields::described;
use crate::graph::nodes::common_fields;

/// The roles in the order in which a graph file has them.
pub const ROLES: [Role; 3] = [Role::Source, Role::Operator, Role::Sink];

/// A type that a node may have.
#[derive(Serialize)]
pub struct TypeEntry {
    pub name: &'static str,
    pub role: &'static str,
    pub summary: &'static str,
    /// "in the pool", …
    pub runs: &'static str,
    /// Kinds of what flows into it.
    pub takes: Vec<&'static str>,
    /// Kinds of what comes out of it.
    pub makes: Vec<&'static str>,
    /// What comes out of it is of the kind that flowed in.
    pub makes_what_it_takes: bool,
    pub fields: Vec<FieldEntry>,
    pub example: &'static str,
}

/// A field of a table.
#[derive(Serialize)]
pub struct FieldEntry {
    pub name: &'static str,
    /// What it may be, in words.
    pub takes: String,
    pub required: bool,
    /// As a graph file writes it; absent where nothing stands in for the field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<&'static str>,
    pub summary: &'static str,
}

/// The whole registry.
#[derive(Serialize)]
pub struct Catalogue {
    pub sources: Vec<TypeEntry>,
    pub operators: Vec<TypeEntry>,
    pub sinks: Vec<TypeEntry>,
    /// The fields that every node of a role takes, whatever its type.
    pub common: CommonFields,
}

/// Fields by role.
#[derive(Serialize)]
pub struct CommonFields {
    pub source: Vec<FieldEntry>,
    pub operator: Vec<FieldEntry>,
    pub sink: Vec<FieldEntry>,
}

impl Catalogue {
    /// Every type, in the order of the registry.
    pub fn new(registry: &[&'static Registration]) -> Catalogue {
        let of = |role| registry.iter().filter(|known| known.role == role).map(|known| entry(known)).collect();
        let common = |role| fields(common_fields(role));
        Catalogue {
            sources: of(Role::Source),
            operators: of(Role::Operator),
            sinks: of(Role::Sink),
            common: CommonFields {
                source: common(Role::Source),
                operator: common(Role::Operator),
                sink: common(Role::Sink),
            },
        }
    }

    /// The types of a role.
    pub fn of(&self, role: Role) -> &[TypeEntry] {
        match role {
            Role::Source => &self.sources,
            Role::Operator => &self.operators,
            Role::Sink => &self.sinks,
        }
    }
}

/// A type, from its registration.
pub fn entry(registration: &Registration) -> TypeEntry {
    let plural = |kinds: &[operators::item::Kind]| kinds.iter().map(|kind| kind.plural()).collect();
    TypeEntry {
        name: registration.name,
        role: registration.role.name(),
        summary: registration.summary,
        runs: match registration.execution {
            Execution::Thread => "on a thread for each stream",
            Execution::Inline => "on the dataflow workers",
            Execution::Pool => "in the pool",
            Execution::Io => "on the io runtime",
        },
        takes: plural(registration.accepts),
        makes: match registration.produces {
            Produces::Kinds(kinds) => plural(kinds),
            Produces::Nothing | Produces::SameAsInput => Vec::new(),
        },
        makes_what_it_takes: registration.produces == Produces::SameAsInput,
        fields: fields(registration.fields),
        example: registration.example,
    }
}

/// Fields, in their order.
pub fn fields(fields: &[Field]) -> Vec<FieldEntry> {
    let entry = |field: &Field| FieldEntry {
        name: field.name,
        takes: described(&field.value),
        required: field.presence == Presence::Required,
        default: match field.presence {
            Presence::Default(text) => Some(text),
            Presence::Required | Presence::Optional => None,
        },
        summary: field.summary,
    };
    fields.iter().map(entry).collect()
}

impl TypeEntry {
    /// "takes frames or tensors, makes records", without what does not apply.
    pub fn flow(&self) -> String {
        let makes = match (self.makes_what_it_takes, self.makes.is_empty()) {
            (true, _) => "passes on what it takes".to_owned(),
            (false, true) => String::new(),
            (false, false) => format!("makes {}", either(&self.makes)),
        };
        let takes = match self.takes.is_empty() {
            true => String::new(),
            false => format!("takes {}", either(&self.takes)),
        };
        let parts: Vec<String> = [takes, makes].into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(" and ")
    }
}

/// "frames, tensors or records".
fn either(kinds: &[&str]) -> String {
    match kinds {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::graph::fields::FieldChecker;
    use crate::graph::parse::parse;

    #[test]
    fn every_type_is_there_once_and_says_what_it_is() {
        let catalogue = Catalogue::new(operators::OPERATORS);
        let all: Vec<&TypeEntry> = ROLES.iter().flat_map(|role| catalogue.of(*role)).collect();
        assert_eq!(all.len(), operators::OPERATORS.len());
        for entry in all {
            assert!(entry.summary.ends_with('.') && !entry.flow().is_empty(), "{}", entry.name);
            assert!(entry.fields.iter().all(|field| field.summary.ends_with('.')), "{}", entry.name);
        }
    }

    /// An example is copied: its table must have the type, and only fields that the type has.
    #[test]
    fn every_example_is_a_table_of_its_type() {
        for registration in operators::OPERATORS {
            let name = registration.name;
            let example: toml::Table = registration.example.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
            let nodes = example[registration.role.table()].as_table().unwrap();
            let node = nodes.values().next().unwrap().as_table().unwrap();
            assert_eq!(node["type"].as_str(), Some(name));
            let known = |key: &str| {
                let of_type = registration.fields.iter().any(|field| field.name == key);
                of_type || common_fields(registration.role).iter().any(|field| field.name == key)
            };
            assert!(node.keys().all(|key| known(key)), "{name}: {node}");
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_field() {
        for registration in operators::OPERATORS {
            for field in registration.fields {
                let Presence::Default(default) = field.presence else { continue };
                let text = format!("{} = {default}\n", field.name);
                let mut table = parse(&text).unwrap();
                let mut checker = FieldChecker { text: &text, folder: Path::new("."), diagnostics: Vec::new() };
                checker.value(field.name, &field.value, &mut table.entries[0].1);
                assert!(checker.diagnostics.is_empty(), "{}.{}", registration.name, field.name);
            }
        }
    }
}
