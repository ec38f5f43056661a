//! The JSON Schema (draft 2020-12) of graph files, for editors: `docs/graph.schema.json`.
//!
//! It describes a file as it is written: wherever something else than text is expected, text with a `${…}` is allowed
//! as well, because what it stands for is not known to an editor. What only `engine check` can know (that inputs exist,
//! that kinds fit) is not in it.

use operators::chaos::fields as disturbances;
use operators::config::{Field, FieldType, Presence};
use operators::operator::{Registration, Role};
use operators::progress;
use serde_json::{Map, Value, json};

use super::catalogue::ROLES;
use crate::graph::nodes::common_fields;
use crate::graph::{cases, chaos};

/// What nodes, parameters and streams may be called.
const NAME: &str = "^[A-Za-z0-9_.-]{1,128}$";

/// The schema of every graph file that names types of `registry`.
pub fn schema(registry: &[&'static Registration]) -> Value {
    let mut definitions = Map::new();
    let mut tables = Map::new();
    for role in ROLES {
        let mut types = Vec::new();
        for registration in registry.iter().filter(|known| known.role == role) {
            let name = format!("{}-{}", role.name(), registration.name);
            types.push(json!({ "$ref": format!("#/$defs/{name}") }));
            definitions.insert(name, node(registration));
        }
        definitions.insert(role.name().to_owned(), json!({ "oneOf": types }));
        tables.insert(role.table().to_owned(), nodes(role));
    }
    definitions.insert("test".to_owned(), test());
    definitions.insert("input".to_owned(), input(registry));
    definitions.insert(
        "reference".to_owned(),
        json!({
            "description": "Text with a `${…}`: a parameter, an environment variable or a file.",
            "type": "string",
            "pattern": r"\$\{[^}]*\}"
        }),
    );
    tables.insert(
        "params".to_owned(),
        json!({
            "description": "Values that `${NAME}` stands for and `--set NAME=VALUE` replaces.",
            "type": "object",
            "propertyNames": { "pattern": NAME }
        }),
    );
    let mut state = table(progress::FIELDS.iter(), References::Allowed);
    state["description"] = "What the graph remembers over a restart.".into();
    tables.insert("state".to_owned(), state);
    tables.insert(
        "test".to_owned(),
        json!({
            "description": "What `engine test` runs.",
            "type": "array",
            "items": { "$ref": "#/$defs/test" }
        }),
    );
    for role in ROLES {
        let disturbance = table(disturbances(role).iter(), References::Allowed);
        definitions.insert(format!("chaos-{}", role.name()), disturbance);
    }
    tables.insert(chaos::TABLE.to_owned(), disturbed());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "engine graph file",
        "description": "Written from the registry of types by `engine list --format json-schema`.",
        "type": "object",
        "properties": tables,
        "additionalProperties": false,
        "$defs": definitions
    })
}

/// The table `[chaos]`. Which role a node plays stands elsewhere in the file, so its table may be any role's.
fn disturbed() -> Value {
    let mut chaos = table(chaos::FIELDS.iter(), References::Allowed);
    let forms: Vec<Value> =
        ROLES.iter().map(|role| json!({ "$ref": format!("#/$defs/chaos-{}", role.name()) })).collect();
    chaos["description"] = "Faults on purpose; only `engine run --chaos` takes them.".into();
    chaos["properties"]["nodes"] = json!({
        "description": "What is done to each node, by its name.",
        "type": "object",
        "propertyNames": { "pattern": NAME },
        "additionalProperties": { "anyOf": forms }
    });
    chaos
}

fn nodes(role: Role) -> Value {
    json!({
        "description": format!("The {}s of the graph by name.", role.name()),
        "type": "object",
        "propertyNames": { "pattern": NAME },
        "additionalProperties": { "$ref": format!("#/$defs/{}", role.name()) }
    })
}

/// A node of one type: its own fields and those of every node.
fn node(registration: &Registration) -> Value {
    let common = common_fields(registration.role);
    let mut table = table(common.iter().chain(registration.fields), References::Allowed);
    table["description"] = registration.summary.into();
    table["properties"]["type"] = json!({ "description": registration.summary, "const": registration.name });
    table
}

/// A test's input for a source: a path, or a table as a source has it. Without `type` it is a file.
fn input(registry: &[&'static Registration]) -> Value {
    let sources = registry.iter().filter(|known| known.role == Role::Source);
    let mut forms = vec![json!({ "description": "The path of a video file.", "type": "string" })];
    for registration in sources {
        let mut table = node(registration);
        if registration.name == cases::DEFAULT_INPUT {
            table["required"] = json!([]);
        }
        forms.push(table);
    }
    json!({ "oneOf": forms })
}

fn test() -> Value {
    let mut table = table(cases::FIELDS.iter(), References::Refused);
    table["properties"]["input"] = json!({
        "description": summary(&cases::FIELDS, "input"),
        "type": "object",
        "additionalProperties": { "$ref": "#/$defs/input" }
    });
    table["properties"]["params"] = json!({ "description": summary(&cases::FIELDS, "params"), "type": "object" });
    table
}

fn summary(fields: &[Field], name: &str) -> Value {
    fields.iter().find(|field| field.name == name).map_or(Value::Null, |field| field.summary.into())
}

/// Whether text with a `${…}` may stand in the place of other values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum References {
    Allowed,
    /// What a test expects is compared as it is written.
    Refused,
}

fn table<'a>(fields: impl Iterator<Item = &'a Field>, references: References) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in fields {
        let mut schema = value(&field.value, references);
        schema["description"] = field.summary.into();
        match field.presence {
            Presence::Required => required.push(field.name),
            Presence::Optional => {}
            Presence::Default(text) => {
                if let Some(default) = default(text) {
                    schema["default"] = default;
                }
            }
        }
        properties.insert(field.name.to_owned(), schema);
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// A default, which is written as TOML.
fn default(text: &str) -> Option<Value> {
    let document: toml::Table = format!("value = {text}").parse().ok()?;
    serde_json::to_value(document.get("value")?).ok()
}

/// What a value may be.
fn value(expected: &FieldType, references: References) -> Value {
    let mut forms = forms(expected, references);
    let takes_text = forms.iter().any(|form| match &form["type"] {
        Value::Array(types) => types.contains(&"string".into()),
        only => only == "string",
    });
    if references == References::Allowed && !takes_text {
        forms.push(json!({ "$ref": "#/$defs/reference" }));
    }
    if forms.len() == 1 { forms.remove(0) } else { json!({ "anyOf": forms }) }
}

/// The forms of a value, references to it left out.
fn forms(expected: &FieldType, references: References) -> Vec<Value> {
    let inner = |expected: &FieldType| value(expected, references);
    vec![match expected {
        FieldType::String | FieldType::InputPath | FieldType::OutputPath | FieldType::Url | FieldType::Model => {
            json!({ "type": "string" })
        }
        FieldType::Duration => json!({ "type": "string", "examples": ["6s", "100ms", "1h 30m"] }),
        FieldType::Size => {
            json!({ "type": ["string", "integer"], "minimum": 0, "examples": ["64MiB", "1.5GB", 65536] })
        }
        FieldType::Rate => json!({
            "type": ["string", "number"],
            "exclusiveMinimum": 0,
            "maximum": 1000,
            "examples": [2, "30000/1001"]
        }),
        FieldType::Boolean => json!({ "type": "boolean" }),
        FieldType::Integer { minimum, maximum } => {
            let mut schema = json!({ "type": "integer" });
            if *minimum != i64::MIN {
                schema["minimum"] = (*minimum).into();
            }
            if *maximum != i64::MAX {
                schema["maximum"] = (*maximum).into();
            }
            schema
        }
        FieldType::Number { minimum, maximum } => {
            let mut schema = json!({ "type": "number" });
            if *minimum > f64::MIN {
                schema["minimum"] = (*minimum).into();
            }
            if *maximum < f64::MAX {
                schema["maximum"] = (*maximum).into();
            }
            schema
        }
        FieldType::Choice(words) => json!({ "enum": words }),
        FieldType::List(each) => json!({ "type": "array", "items": inner(each) }),
        FieldType::OneOrList(each) => {
            let mut forms = forms(each, references);
            forms.push(json!({ "type": "array", "items": inner(each) }));
            return forms;
        }
        FieldType::Map(each) => json!({ "type": "object", "additionalProperties": inner(each) }),
        FieldType::Table(fields) => table(fields.iter(), references),
        FieldType::Either(several) => return several.iter().flat_map(|one| forms(one, references)).collect(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let validator = jsonschema::validator_for(&schema(operators::OPERATORS)).unwrap();
        let document: toml::Table = text.parse().unwrap();
        let document = serde_json::to_value(document).unwrap();
        validator.iter_errors(&document).map(|error| error.to_string()).collect()
    }

    const GRAPH: &str = "[params]\nrate = 2\n[sources.clips]\ntype = \"file\"\npath = [\"a.mp4\", \"${env.CLIP}\"]\n\
        budget = { items = 3, bytes = \"64MiB\" }\nloop = \"${rate}\"\n[operators.some]\ntype = \"sample\"\ninputs = [\"clips\"]\n\
        fps = \"${rate}\"\n[operators.people]\ntype = \"detect\"\ninputs = [\"some\"]\nmodel = \"yolox_nano\"\n\
        has = { person = \"${rate}\", dog = 0.5 }\non_error = \"stop\"\n[sinks.out]\ntype = \"file\"\ninputs = [\"people\"]\n\
        path = \"-\"\n[[test]]\nname = \"x\"\nnode = \"people\"\ncount = { at_least = 3 }\nlabels = \"person\"\n\
        input.clips = { type = \"synthetic\", frames = 30 }\n[[test]]\nname = \"y\"\nnode = \"people\"\ncount = 3\n\
        input.clips = \"a.mp4\"\nhas = { person = true }\n";

    #[test]
    fn references_may_stand_for_numbers_lists_and_truth() {
        assert_eq!(mistakes(GRAPH), [""; 0]);
    }

    #[test]
    fn each_of_these_mistakes_is_found() {
        for (good, bad) in [
            ("type = \"detect\"", "type = \"detekt\""),
            ("rate = 2\n[sources", "rate = 2\n[surces"),
            ("fps = \"${rate}\"", "fsp = 2"),
            ("on_error = \"stop\"", "on_error = \"panic\""),
            ("dog = 0.5", "dog = 1.5"),
            ("items = 3", "itmes = 3"),
            ("model = \"yolox_nano\"\n", ""),
            ("frames = 30", "frames = 0"),
            ("at_least = 3", "at_leest = 3"),
            ("name = \"y\"\n", ""),
            ("count = 3\n", "count = \"${rate}\"\n"),
            ("inputs = [\"people\"]\n", ""),
        ] {
            assert!(GRAPH.contains(good), "{good}");
            assert!(!mistakes(&GRAPH.replace(good, bad)).is_empty(), "{bad} is accepted");
        }
    }
}
