//! `sse`: publishes records to whoever listens at the control plane's `/events`.
//!
//! Of a segment it publishes what is told of it. Publishing never waits for a subscriber, so this sink accepts everything at once; the hub behind
//! [`Publisher`] keeps a bounded ring for those who come late or read slowly.

use std::sync::Arc;

use crate::error::{FieldError, SinkError, StartError};
use crate::item::{Event, Kind};
use crate::operator::{BuildContext, Built, Execution, Produces, Publisher, Registration, Role, Sink, SinkWriter};
use crate::sinks::records::Records;

struct Sse {
    records: Records,
    publisher: Arc<dyn Publisher>,
}

impl Sink for Sse {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        Ok(Box::new(SseWriter { records: self.records.clone(), publisher: self.publisher.clone() }))
    }
}

struct SseWriter {
    records: Records,
    publisher: Arc<dyn Publisher>,
}

#[async_trait::async_trait]
impl SinkWriter for SseWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        for record in batch.iter().filter_map(|event| self.records.of(event)) {
            self.publisher.publish(&record);
        }
        Ok(())
    }
}

fn build(context: &BuildContext, _table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let records = Records::new(context.origin.clone(), context.clock.clone());
    Ok(Built::Sink(Arc::new(Sse { records, publisher: context.publisher.clone() })))
}

pub static REGISTRATION: Registration = Registration {
    name: "sse",
    role: Role::Sink,
    summary: "Publishes records, and what is told of segments, as server-sent events at /events.",
    execution: Execution::Io,
    accepts: &[Kind::Record, Kind::Segment],
    produces: Produces::Nothing,
    fields: &[],
    example: "[sinks.events]\ntype = \"sse\"\ninputs = [\"people\"]\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    use crate::item::Record;
    use crate::sinks::records::tests::{context, gap, result};

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Publisher for Heard {
        fn publish(&self, record: &Arc<Record>) {
            self.0.lock().unwrap().push(record.id.clone());
        }
    }

    #[tokio::test]
    async fn publishes_results_and_gaps_in_order() {
        let heard = Arc::new(Heard::default());
        let context = BuildContext { publisher: heard.clone(), ..context(std::path::Path::new(".")) };
        let Ok(Built::Sink(sink)) = build(&context, toml::Table::new()) else { panic!("not a sink") };
        let mut writer = sink.start().unwrap();
        writer.write(&[result(0), gap(), result(7)]).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(
            *heard.0.lock().unwrap(),
            ["door/sums/cam/checksum:0", "door/out/cam/gap:7", "door/sums/cam/checksum:7"]
        );
    }
}
