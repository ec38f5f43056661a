//! `s3`: objects in a bucket: a file for each segment, a JPEG for each frame, JSON lines for records.
//! How they are made and stored: [`super::objects`].

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, StartError};
use crate::item::Kind;
use crate::operator::{
    BuildContext, Built, Execution, Produces, Registration, Resource, Role, Sink, SinkInput, SinkWriter,
};
use crate::sinks::joined::{ANNOTATE_FIELD, Annotation, WINDOW_FIELD};
use crate::sinks::objects::{Batching, Objects};
use crate::storage::retry::{DEFAULT_RETRY_FOR, RETRY_FOR};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, S3, TIMEOUT};
use crate::storage::{IfExists, runtime};
use crate::template::{Placeholder, Template};

#[derive(Deserialize)]
struct Config {
    bucket: String,
    key: String,
    #[serde(flatten)]
    access: Access,
    retry_for: Option<config::Duration>,
    uploads: Option<usize>,
    quality: Option<u8>,
    if_exists: Option<IfExists>,
    #[serde(default)]
    batch: BatchConfig,
    #[serde(flatten)]
    annotation: Annotation,
}

#[derive(Default, Deserialize)]
struct BatchConfig {
    items: Option<usize>,
    bytes: Option<config::Size>,
    every: Option<config::Duration>,
}

const KEY_HINT: &str = "write it like \"{stream}/{date:%Y/%m/%d}/{seq:09}.jpg\"";
const UPLOADS: usize = 4;
/// Of JPEGs, where it is left out; the other sinks that make them have the same.
pub(crate) const QUALITY: u8 = 90;
const BATCH_ITEMS: usize = 1000;
const BATCH_BYTES: u64 = 1 << 20;
const BATCH_EVERY: Duration = Duration::from_secs(10);

struct S3Sink {
    storage: Arc<S3>,
    objects: Objects,
}

impl Sink for S3Sink {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        self.start_with(&[])
    }

    fn start_with(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        let storage = self.storage.clone();
        runtime::wait_for(async move { storage.check().await })
            .map_err(|error| error.at_start("objects cannot be stored:"))?;
        self.objects.writer(inputs)
    }

    fn refuses(&self, kind: Kind) -> Option<(String, String)> {
        self.objects.refuses(kind)
    }

    fn shares_with_successor(&self) -> bool {
        true
    }

    fn depends_on_inputs(&self) -> bool {
        self.objects.annotate.is_some()
    }

    fn resources(&self) -> Vec<Resource> {
        vec![Resource::Object(format!("{}/{}", self.storage.identity(), self.objects.name()))]
    }

    fn stream_memory(&self) -> u64 {
        self.objects.stream_memory()
    }
}

/// The template that `key` has.
///
/// # Errors
/// Where it is no template, or the names of two items could be the same.
fn key_template(key: &str) -> Result<Template, FieldError> {
    let template = Template::parse(key, Placeholder::ALL).map_err(|why| FieldError::new("key", why).hint(KEY_HINT))?;
    if key.starts_with('/') || key.contains('\0') {
        let message =
            format!("`{}` is no name for objects: it begins with a slash, or a zero byte is in it", key.escape_debug());
        return Err(FieldError::new("key", message).hint(KEY_HINT));
    }
    let has = |placeholder: Placeholder| template.has(placeholder);
    if !has(Placeholder::Seq) && !has(Placeholder::Index) && !has(Placeholder::Name) {
        let message = format!("`{key}` gives all items of a stream one name: each would overwrite the one before");
        return Err(FieldError::new("key", message).hint("add `{seq}`, or `{name}` for the file name of a segment"));
    }
    if !has(Placeholder::Stream) && !has(Placeholder::Name) {
        let message = format!("`{key}` gives the items of two streams one name: they would overwrite each other");
        return Err(FieldError::new("key", message).hint("add `{stream}`"));
    }
    Ok(template)
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let mut keep = |error: FieldError| mistakes.push(error);
    let key = key_template(&config.key).map_err(&mut keep).ok();
    let storage = match S3::new(&config.bucket, "bucket", config.access) {
        Ok(storage) => Some(Arc::new(storage)),
        Err(errors) => {
            errors.into_iter().for_each(&mut keep);
            None
        }
    };
    let BatchConfig { items, bytes, every } = config.batch;
    let bytes = bytes.map_or(BATCH_BYTES, |bytes| bytes.0);
    if bytes == 0 || bytes > 1 << 30 {
        keep(
            FieldError::new("batch.bytes", "an object of records has from 1 B to 1 GiB").hint("write it like \"1MiB\""),
        );
    }
    let annotate = config.annotation.window().map_err(&mut keep).unwrap_or_default();
    match (key, storage) {
        (Some(key), Some(storage)) if mistakes.is_empty() => {
            let objects = Objects {
                storage: storage.clone(),
                key,
                origin: context.origin.clone(),
                clock: context.clock.clone(),
                retry_for: config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0),
                uploads: config.uploads.unwrap_or(UPLOADS),
                quality: config.quality.unwrap_or(QUALITY),
                if_exists: config.if_exists.unwrap_or_default(),
                progress: context.progress.clone(),
                annotate,
                batching: Some(Batching {
                    items: items.unwrap_or(BATCH_ITEMS),
                    bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
                    every: every.map_or(BATCH_EVERY, |time| time.0),
                }),
            };
            Ok(Built::Sink(Arc::new(S3Sink { storage, objects })))
        }
        _ => Err(mistakes),
    }
}

static BATCH: [Field; 3] = [
    Field {
        name: "items",
        value: FieldType::Integer { minimum: 1, maximum: 1_000_000 },
        presence: Presence::Default("1000"),
        summary: "Records of one stream in one object.",
    },
    Field {
        name: "bytes",
        value: FieldType::Size,
        presence: Presence::Default("\"1MiB\""),
        summary: "Bytes at which an object is full whatever its number of records; so much is kept of each stream.",
    },
    Field {
        name: "every",
        value: FieldType::Duration,
        presence: Presence::Default("\"10s\""),
        summary: "How long a record waits at most until the object that it is in is stored, full or not.",
    },
];

/// How many puts run at once; the `dataset` sink has the same field.
pub(crate) const UPLOADS_FIELD: Field = Field {
    name: "uploads",
    value: FieldType::Integer { minimum: 1, maximum: 64 },
    presence: Presence::Default("4"),
    summary: "How many objects are stored at once.",
};

/// How good JPEGs are; the `dataset` sink has the same field.
pub(crate) const QUALITY_FIELD: Field = Field {
    name: "quality",
    value: FieldType::Integer { minimum: 1, maximum: 100 },
    presence: Presence::Default("90"),
    summary: "Of pictures as JPEG: 1 is the smallest file, 100 the best picture.",
};

pub static REGISTRATION: Registration = Registration {
    name: "s3",
    role: Role::Sink,
    summary: "Stores segments, frames (as JPEG) and records (as JSON lines) as objects in a bucket of S3.",
    execution: Execution::Io,
    accepts: &[Kind::Segment, Kind::Record, Kind::Frame],
    produces: Produces::Nothing,
    fields: &[
        Field {
            name: "bucket",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The bucket, which must be there.",
        },
        Field {
            name: "key",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The objects' keys, with `{stream}`, `{name}`, `{seq:09}`, `{index:04}`, `{graph}`, `{node}`, \
                      `{time}`, `{date:%Y/%m/%d}`, `{year}`, … in them.",
        },
        Field {
            name: "if_exists",
            value: FieldType::Choice(&["error", "overwrite", "skip"]),
            presence: Presence::Default("\"overwrite\""),
            summary: "What happens where an object of the same key is there already, of segments and frames: the new one is \
                      lost and the error told, it takes the other's place, or the other one stays and counts. With \
                      `[state]`, what the graph itself has stored is written over in any case.",
        },
        ENDPOINT,
        REGION,
        PATH_STYLE,
        ANONYMOUS,
        PROFILE,
        TIMEOUT,
        RETRY_FOR,
        UPLOADS_FIELD,
        Field {
            name: "batch",
            value: FieldType::Table(&BATCH),
            presence: Presence::Optional,
            summary: "How records are put together into objects.",
        },
        QUALITY_FIELD,
        ANNOTATE_FIELD,
        WINDOW_FIELD,
    ],
    example: "[sinks.archive]\ntype = \"s3\"\ninputs = [\"people\"]\nbucket = \"archive\"\n\
              key = \"{stream}/{date:%Y/%m/%d}/{time}_{seq}.jsonl\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::records::tests::context;
    use std::path::Path;

    fn mistakes(table: &str) -> Vec<FieldError> {
        build(&context(Path::new(".")), toml::from_str(table).unwrap()).err().unwrap()
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let errors = mistakes("bucket = \"a/b\"\nkey = \"x.jpg\"\nendpoint = \"minio\"\nbatch = { bytes = 0 }");
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["key", "bucket", "endpoint", "batch.bytes"]);
        assert!(errors.iter().all(|error| error.hint.is_some()));
    }

    #[test]
    fn keys_that_would_overwrite_each_other_are_refused() {
        for (key, said) in [
            ("{stream}/{time}.jpg", "overwrite the one before"),
            ("{seq}.jpg", "overwrite each other"),
            ("{sequence}", "nothing is known for `{sequence}`"),
            ("{stream", "has no partner"),
            ("/{stream}/{seq}", "begins with a slash"),
        ] {
            let error = key_template(key).unwrap_err();
            assert!(error.message.contains(said) && error.hint.is_some(), "{key}: {}", error.message);
        }
        assert!(key_template("{stream}/{seq:09}.jpg").is_ok() && key_template("{name}").is_ok());
    }

    #[test]
    fn two_sinks_that_would_write_the_same_objects_share_a_resource() {
        let resources = |table: &str| {
            let Ok(Built::Sink(sink)) = build(&context(Path::new(".")), toml::from_str(table).unwrap()) else {
                panic!("not a sink")
            };
            sink.resources()
        };
        let one = resources("bucket = \"a\"\nkey = \"{stream}/{seq}\"");
        assert_eq!(one, resources("bucket = \"a\"\nkey = \"{stream}/{seq}\"\nuploads = 2"));
        assert_ne!(one, resources("bucket = \"b\"\nkey = \"{stream}/{seq}\""));
        assert_ne!(one, resources("bucket = \"a\"\nkey = \"{stream}/{seq}\"\nendpoint = \"http://minio:9000\""));
    }

    #[test]
    fn the_example_builds() {
        let example: toml::Table = toml::from_str(REGISTRATION.example).unwrap();
        let mut table = example["sinks"]["archive"].as_table().unwrap().clone();
        table.retain(|key, _| !["type", "inputs"].contains(&key));
        assert!(build(&context(Path::new(".")), table).is_ok());
    }
}
