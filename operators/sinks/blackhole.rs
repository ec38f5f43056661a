//! `blackhole`: takes anything, counts it and throws it away. For measuring and for trying out.

use std::sync::Arc;

use crate::error::{FieldError, SinkError, StartError};
use crate::item::{Event, Kind};
use crate::operator::{BuildContext, Built, Execution, Produces, Registration, Role, Sink, SinkWriter};

struct Blackhole {
    node: Arc<str>,
}

impl Sink for Blackhole {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        Ok(Box::new(BlackholeWriter { node: self.node.clone(), items: 0 }))
    }
}

struct BlackholeWriter {
    node: Arc<str>,
    items: u64,
}

#[async_trait::async_trait]
impl SinkWriter for BlackholeWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        self.items += batch.iter().filter(|event| matches!(event, Event::Item(_))).count() as u64;
        Ok(())
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        tracing::debug!(node = &*self.node, items = self.items, "blackhole took its last item");
        Ok(())
    }
}

fn build(context: &BuildContext, _table: toml::Table) -> Result<Built, Vec<FieldError>> {
    Ok(Built::Sink(Arc::new(Blackhole { node: context.origin.node.clone() })))
}

pub static REGISTRATION: Registration = Registration {
    name: "blackhole",
    role: Role::Sink,
    summary: "Takes anything, counts it and throws it away.",
    execution: Execution::Io,
    accepts: &[Kind::Frame, Kind::Packet, Kind::Samples, Kind::Tensor, Kind::Segment, Kind::Record],
    produces: Produces::Nothing,
    fields: &[],
    example: "[sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"cameras\"]\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::records::tests::{gap, result};

    #[tokio::test]
    async fn counts_items_and_not_signals() {
        let mut writer = BlackholeWriter { node: "nowhere".into(), items: 0 };
        writer.write(&[result(0), gap(), result(1)]).await.unwrap();
        writer.write(&[result(2)]).await.unwrap();
        assert_eq!(writer.items, 3);
        writer.close().await.unwrap();
    }
}
