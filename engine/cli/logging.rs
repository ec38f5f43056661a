//! The log: to the standard error, as text or as JSON lines.
//!
//! `--log` (a level, or a filter such as `info,engine::runtime=debug`) counts before `RUST_LOG`, and that before the
//! default. ERROR means that data was lost or that somebody must act.

use std::io::IsTerminal;

use clap::ValueEnum;
use operators::error::StartError;
use tracing::Subscriber;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::live::Terminal;

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// ONNX Runtime tells every optimisation at INFO. What AWS's library warns of when it finds no credentials, with the whole
/// answer of a server in it, is in the error that follows.
const EXCEPTIONS: &str = "ort=warn,aws_config=error";
const DEFAULT: &str = "info";

/// Starts the log of this process; call it once. `level` is what `--log` says.
pub fn start(format: LogFormat, level: Option<&str>, terminal: &Terminal) -> Result<(), StartError> {
    let environment = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let filter = filter(level, environment.as_deref())?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let terminal = terminal.clone();
    let subscriber = subscriber(format, filter, colour, move || terminal.clone());
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|error| StartError::new(format!("cannot start the log: {error}")))
}

fn filter(level: Option<&str>, environment: Option<&str>) -> Result<EnvFilter, StartError> {
    let given = |text: &str, from: &str| {
        // A bare level keeps the exceptions of the default; a filter is taken as it is.
        let directives = if text
            .parse::<tracing::level_filters::LevelFilter>()
            .is_ok_and(|level| level < tracing::level_filters::LevelFilter::DEBUG)
        {
            format!("{text},{EXCEPTIONS}")
        } else {
            text.to_owned()
        };
        EnvFilter::try_new(directives).map_err(|error| {
            StartError::new(format!("`{text}` ({from}) is no log filter: {error}")).hint(
                "use a level (error, warn, info, debug, trace), or levels by module: \"info,engine::runtime=debug\"",
            )
        })
    };
    match (level, environment.filter(|text| !text.is_empty())) {
        (Some(text), _) => given(text, "--log"),
        (None, Some(text)) => given(text, "RUST_LOG"),
        (None, None) => given(DEFAULT, "the default"),
    }
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, colour: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = Registry::default().with(filter);
    match format {
        LogFormat::Text => {
            Box::new(registry.with(fmt::layer().with_writer(writer).with_ansi(colour).with_target(false)))
        }
        LogFormat::Json => Box::new(registry.with(fmt::layer().json().flatten_event(true).with_writer(writer))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: Option<&str>, environment: Option<&str>) -> String {
        let written = Written::default();
        let make = written.clone();
        let subscriber = subscriber(format, filter(level, environment).unwrap(), false, move || make.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(stream = "door", "the camera went away");
            tracing::debug!("a detail");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_has_level_message_and_fields() {
        let text = logged(LogFormat::Text, None, None);
        assert!(text.contains("WARN the camera went away stream=\"door\""), "{text}");
        assert!(!text.contains("a detail") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, Some("debug"), None);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["level"], "WARN");
        assert_eq!(lines[0]["message"], "the camera went away");
        assert_eq!(lines[0]["stream"], "door");
    }

    #[test]
    fn the_flag_counts_before_the_environment() {
        assert!(logged(LogFormat::Text, None, Some("debug")).contains("a detail"));
        assert!(!logged(LogFormat::Text, Some("warn"), Some("debug")).contains("a detail"));
        assert_eq!(logged(LogFormat::Text, Some("error"), None), "");
        assert!(logged(LogFormat::Text, None, Some("")).contains("the camera"));
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_where_it_came_from() {
        let error = filter(Some("engine=loud"), None).unwrap_err();
        assert!(error.message.contains("`engine=loud` (--log)"), "{error}");
        assert!(error.hint.is_some());
        assert!(filter(None, Some("engine=loud")).unwrap_err().message.contains("RUST_LOG"));
    }
}
