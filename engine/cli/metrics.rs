//! `--metrics`: metrics as lines on the standard output, for whoever collects logs.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use operators::clock::Clock;
use operators::config::parse_duration;
use operators::error::StartError;

use super::input;
use crate::control::emf::EmbeddedMetrics;
use crate::graph::plan::Plan;
use crate::runtime::stats::Observe;

/// How metrics are written to the standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MetricsFormat {
    /// CloudWatch's embedded metric format
    Emf,
}

/// Metrics on the standard output.
#[derive(Clone, clap::Args)]
pub struct MetricsArguments {
    /// Write metrics to the standard output, as JSON lines
    #[arg(long, value_name = "FORMAT", value_enum)]
    metrics: Option<MetricsFormat>,
    /// Time between two sets of such lines
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "60s", requires = "metrics")]
    metrics_interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time < Duration::from_millis(100) => Err("write a time of at least 100ms, such as 60s".to_owned()),
        time => Ok(time),
    }
}

impl MetricsArguments {
    pub fn is_wanted(&self) -> bool {
        self.metrics.is_some()
    }

    /// # Errors
    /// Where a sink of the graph writes to the standard output as well.
    pub fn check(&self, plan: &Plan) -> Result<(), StartError> {
        let writes = plan.sinks.iter().find(|sink| sink.sink.writes_to_standard_output());
        match (self.metrics, writes) {
            (Some(_), Some(sink)) => {
                let message =
                    format!("`--metrics` and the sink `{}` would both write to the standard output", sink.name);
                Err(StartError::new(message).hint("give the sink's `path` a file, or leave out `--metrics`"))
            }
            _ => Ok(()),
        }
    }

    /// Begins to write, where that is asked for.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(&self, observe: Arc<dyn Observe>, clock: Arc<dyn Clock>) -> Result<Option<MetricsLines>, StartError> {
        let Some(MetricsFormat::Emf) = self.metrics else { return Ok(None) };
        let (stop, stopped) = bounded::<()>(0);
        let every = self.metrics_interval;
        let write = move || {
            let mut metrics = EmbeddedMetrics::default();
            loop {
                let goes_on = stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout);
                let lines = metrics.lines(&observe.report(), clock.wall());
                input::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
                if !goes_on {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(write)
            .map_err(|error| StartError::new(format!("cannot start the thread that writes metrics: {error}")))?;
        Ok(Some(MetricsLines { stop: Some(stop), thread: Some(thread) }))
    }
}

/// Metrics that are being written. Dropping it writes what was counted since the last lines.
pub struct MetricsLines {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for MetricsLines {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that writes metrics panicked");
        }
    }
}
