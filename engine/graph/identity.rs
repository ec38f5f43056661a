//! What makes a node or a stream the same in two versions of a graph.
//!
//! Two nodes are the same when their types and their resolved tables are: references are replaced, and comments and the
//! order of fields do not count. A source is compared without its streams, which are compared one by one, so that a
//! camera that is added touches no other.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use operators::chaos::Disturbance;
use operators::config::FieldType;
use operators::error::FieldError;
use operators::item::StreamId;
use operators::operator::{BuildContext, Built, Registration, Source, StreamSpec};
use sha2::{Digest, Sha256};

use super::diagnostics::Code;
use super::references::References;
use super::{permission, settings};

/// Equal where the configuration is: a SHA-256 of it, so that the identity of a long chain is short, and tells no secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity([u8; 32]);

/// Fields of sources that name their streams.
const STREAMS: &str = "streams";
const HOOKS: &str = "hooks";
const ONE_STREAM: [&str; 3] = ["url", "path", "key"];
/// Settings of a stream of which one says what its input is.
pub const INPUTS: [&str; 4] = ["url", "path", "key", "preset"];
/// Fields of sources that look for their streams.
const SEARCH: [&str; 2] = ["prefix", "poll"];

impl Identity {
    /// Of a list of texts; two lists that read the same in one piece differ.
    fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Identity {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Identity(hash.finalize().into())
    }

    /// Of a list of texts; two lists that read the same in one piece differ.
    pub fn of_texts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Identity {
        Identity::of(parts.into_iter().map(str::as_bytes))
    }

    /// Of a node alone.
    pub fn of_node(type_name: &str, table: &toml::Table) -> Identity {
        // Tables are ordered by name, so equal ones read the same.
        Identity::of([type_name.as_bytes(), table.to_string().as_bytes()])
    }

    /// Of a source without its streams.
    pub fn of_source(type_name: &str, table: &toml::Table) -> Identity {
        let mut table = table.clone();
        table.remove(STREAMS);
        // Whom it would read further matters to none that it reads.
        table.remove(HOOKS);
        for field in ONE_STREAM {
            table.remove(field);
        }
        Identity::of_node(type_name, &table)
    }

    /// Of a node and of what its items have been through before.
    pub fn behind<'a>(&'a self, inputs: impl Iterator<Item = &'a Identity>) -> Identity {
        Identity::of(std::iter::once(self).chain(inputs).map(|identity| &identity.0[..]))
    }

    /// Of one stream of a source; `own` is what the source's table says of it alone.
    pub fn of_stream(&self, spec: &StreamSpec, own: Option<&toml::Value>) -> Identity {
        let own = own.map(ToString::to_string).unwrap_or_default();
        Identity::of([&self.0[..], spec.id.as_bytes(), spec.location.as_bytes(), own.as_bytes()])
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

/// What a source's further streams are made from.
#[derive(Clone)]
pub struct Template {
    pub registration: &'static Registration,
    pub context: BuildContext,
    /// The node's table with every reference replaced.
    pub table: toml::Table,
    /// What is done to it on purpose.
    pub chaos: Option<Disturbance>,
}

impl Template {
    /// Everything that makes the node what it is: its table, and what disturbs it.
    pub fn told(&self) -> toml::Table {
        let mut table = self.table.clone();
        if let Some(chaos) = &self.chaos {
            // No field is called so.
            table.insert("[chaos]".to_owned(), format!("{chaos:?}").into());
        }
        table
    }

    /// What the table says of one stream.
    pub fn own(&self, stream: &StreamId) -> Option<&toml::Value> {
        self.table.get(STREAMS)?.get(&**stream)
    }

    /// A source of one stream alone, configured like the node; `own` as `streams.ID` has it, which may name what
    /// `references` allow.
    ///
    /// # Errors
    /// Everything that is wrong with `own`, or that the type takes no further streams.
    pub fn one_stream(
        &self,
        stream: &StreamId,
        own: &toml::Value,
        references: &References,
    ) -> Result<Arc<dyn Source>, Vec<FieldError>> {
        let type_name = self.registration.name;
        let Some(field) = self.registration.fields.iter().find(|field| field.name == STREAMS) else {
            let message = format!("`{type_name}` makes its own streams and takes no further ones");
            return Err(vec![FieldError::new("", message)]);
        };
        let mut table = self.table.clone();
        for field in ONE_STREAM.iter().chain(&SEARCH) {
            table.remove(*field);
        }
        let streams = match field.value {
            // Such a source needs to know nothing but the names of its streams.
            FieldType::List(_) if own.as_table().is_some_and(toml::Table::is_empty) => {
                toml::Value::Array(vec![stream.to_string().into()])
            }
            FieldType::List(_) => {
                let message = format!("a stream of `{type_name}` has a name and nothing else");
                return Err(vec![FieldError::new("", message).hint("leave out everything but `id`")]);
            }
            _ => toml::Value::Table(toml::Table::from_iter([(stream.to_string(), own.clone())])),
        };
        let only = toml::Table::from_iter([(STREAMS.to_owned(), streams.clone())]);
        let folder = &self.context.folder;
        let mut mistakes = permission::forbidden(self.registration.fields, &only, folder, references);
        // Of what may not be named nobody learns whether it is there.
        let tells = |code: &Code| mistakes.is_empty() || !matches!(code, Code::MissingFile | Code::LeftOut);
        let of_fields: Vec<FieldError> = settings::mistakes(field, &streams, folder)
            .into_iter()
            .filter(|(code, _)| tells(code))
            .map(|(_, found)| found)
            .collect();
        let is_allowed = mistakes.is_empty();
        mistakes.extend(of_fields);
        let build = |streams: toml::Value| {
            let table = toml::Table::from_iter(table.into_iter().chain([(STREAMS.to_owned(), streams)]));
            (self.registration.build)(&self.context, table)
        };
        if !mistakes.is_empty() {
            let wrong = wrong_settings(stream, &mistakes);
            // What is left may be wrong in another way. What may not be named is not even looked at.
            if let Some(kept) = settings::without(own, &wrong, &INPUTS).filter(|_| is_allowed) {
                let kept = toml::Table::from_iter([(stream.to_string(), kept)]);
                mistakes.extend(build(kept.into()).err().unwrap_or_default());
            }
            return Err(mistakes);
        }
        match build(streams)? {
            Built::Source(source) => Ok(match &self.chaos {
                Some(chaos) => chaos.of_source(source),
                None => source,
            }),
            _ => Err(vec![FieldError::new("", format!("`{type_name}` is no source"))]),
        }
    }
}

/// The names of a stream's settings in which something is wrong.
fn wrong_settings<'m>(stream: &StreamId, mistakes: &'m [FieldError]) -> BTreeSet<&'m str> {
    let own = format!("{STREAMS}.{stream}.");
    let inner = mistakes.iter().filter_map(|mistake| mistake.field.strip_prefix(&own));
    inner.filter_map(|path| path.split('.').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn the_order_of_fields_does_not_count() {
        let one = Identity::of_node("detect", &table("model = \"m\"\nthreshold = 0.3"));
        assert!(one == Identity::of_node("detect", &table("threshold = 0.3 # often\nmodel = \"m\"")));
        assert!(one != Identity::of_node("detect", &table("threshold = 0.4\nmodel = \"m\"")));
    }

    #[test]
    fn streams_are_not_part_of_their_source() {
        let one = Identity::of_source("rtsp", &table("transport = \"udp\"\nstreams.a = \"rtsp://a/\""));
        assert!(one == Identity::of_source("rtsp", &table("url = \"rtsp://b/\"\ntransport = \"udp\"")));
        assert!(one != Identity::of_source("rtsp", &table("url = \"rtsp://b/\"")));
        assert!(one == Identity::of_source("rtsp", &table("transport = \"udp\"\nhooks = { path = \"{id}\" }")));
    }

    #[test]
    fn what_stands_before_a_node_counts() {
        let [a, b] = ["a", "b"].map(|name| Identity::of_node(name, &toml::Table::new()));
        let node = Identity::of_node("count", &toml::Table::new());
        assert!(node.behind([&a].into_iter()) != node.behind([&b].into_iter()));
        assert!(node.behind([&a, &b].into_iter()) != node.behind([&a.behind([&b].into_iter())].into_iter()));
    }
}
