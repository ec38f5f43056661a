//! A small registry for the unit tests of this module: a live camera that offers packets and frames, a recorder that
//! takes packets, a screen that takes frames, and the real `sample`.

use std::path::PathBuf;
use std::sync::Arc;

use operators::clock::SimulatedClock;
use operators::error::{FieldError, SourceError, StartError};
use operators::inference::model::Catalog;
use operators::item::{EndReason, Kind, StreamId};
use operators::operator::{
    BuildContext, Built, Execution, ItemSize, NoPublisher, Outlet, Produces, Registration, Role, Sink, SinkWriter,
    Source, StreamSpec,
};

use super::check::Surroundings;

pub static REGISTRY: &[&Registration] = &[&CAMERA, &RECORDER, &SCREEN, &operators::transforms::sample::REGISTRATION];

pub fn surroundings() -> Surroundings {
    Surroundings {
        registry: REGISTRY,
        folder: PathBuf::from("."),
        file: None,
        models: Arc::new(Catalog::default()),
        clock: Arc::new(SimulatedClock::default()),
        publisher: Arc::new(NoPublisher),
        playlists: Arc::default(),
        variable: Arc::new(|_| None),
        references: crate::graph::references::References::Anything,
        chaos: false,
    }
}

struct Camera;

impl Source for Camera {
    fn streams(&self) -> Vec<StreamSpec> {
        vec![StreamSpec { id: StreamId::sanitised("camera"), location: "a camera".to_owned() }]
    }

    fn is_live(&self) -> bool {
        true
    }

    fn is_finite(&self) -> bool {
        false
    }

    fn frame_size(&self) -> ItemSize {
        ItemSize::Known(1000)
    }

    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        1
    }

    fn run(&self, _stream: &StreamId, _outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        Ok(EndReason::Eof)
    }
}

struct NoSink;

impl Sink for NoSink {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        Err(StartError::new("this sink is only planned, never run"))
    }
}

fn camera(_context: &BuildContext, _table: toml::Table) -> Result<Built, Vec<FieldError>> {
    Ok(Built::Source(Arc::new(Camera)))
}

fn no_sink(_context: &BuildContext, _table: toml::Table) -> Result<Built, Vec<FieldError>> {
    Ok(Built::Sink(Arc::new(NoSink)))
}

static CAMERA: Registration = Registration {
    name: "camera",
    role: Role::Source,
    summary: "A live camera.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Packet, Kind::Frame]),
    fields: &[],
    example: "",
    build: camera,
};

const fn sink(name: &'static str, accepts: &'static [Kind]) -> Registration {
    Registration {
        name,
        role: Role::Sink,
        summary: "A sink.",
        execution: Execution::Io,
        accepts,
        produces: Produces::Nothing,
        fields: &[],
        example: "",
        build: no_sink,
    }
}

static RECORDER: Registration = sink("recorder", &[Kind::Packet]);
static SCREEN: Registration = sink("screen", &[Kind::Frame]);
