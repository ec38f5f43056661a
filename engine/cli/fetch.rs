//! Fetching models, as people see it: a bar on a terminal, a line elsewhere.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use operators::clock::SystemClock;
use operators::config::format_size;
use operators::inference::download::{Download, Progress};

use super::input;

/// Fetches over HTTP and shows how it gets on.
pub fn download() -> Download {
    Download { progress: Arc::new(Shown::default()), clock: Arc::new(SystemClock) }
}

#[derive(Default)]
struct Shown(Mutex<Option<ProgressBar>>);

impl Progress for Shown {
    fn begin(&self, name: &str, url: &str, have: u64, total: Option<u64>) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &*shown {
            bar.set_position(have);
            return;
        }
        let size = total.map(|total| format!(" ({})", format_size(total))).unwrap_or_default();
        let kept = if have > 0 { format!(", {} of it are here", format_size(have)) } else { String::new() };
        input::print_error(&format!("fetching model `{name}` from {url}{size}{kept}\n"));
        let bar = if std::io::stderr().is_terminal() {
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let pattern = if total.is_some() {
                "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left"
            } else {
                "{spinner} {binary_bytes} {binary_bytes_per_sec}"
            };
            // A constant pattern that is wrong shows as the default bar.
            if let Ok(style) = ProgressStyle::with_template(pattern) {
                bar.set_style(style);
            }
            bar
        } else {
            ProgressBar::hidden()
        };
        bar.set_position(have);
        *shown = Some(bar);
    }

    fn waiting(&self, name: &str) {
        input::print_error(&format!("another process fetches the file of model `{name}`: waiting for it\n"));
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(bytes);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}
