//! `engine models bench`: how fast a model is, on one thread and on all.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use operators::clock::{Clock, SystemClock};
use operators::config::parse_duration;
use operators::error::{ItemError, StartError};
use operators::inference::device::Device;
use operators::inference::manifest::LARGEST_BATCH;
use operators::inference::model::Model;
use operators::inference::session::{ModelSession, check_batch};
use serde::Serialize;

use super::super::input::{self, Format};
use super::{code, print_error};
use crate::runtime::process::cores;

/// Measures a model: pictures a second on one thread, and on as many as the engine would use
///
/// Inference alone, on an empty picture: without decoding, preprocessing and reading the answer. `engine bench` measures
/// a whole graph.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine models bench yolox_nano
  engine models bench yolox_nano --threads 8 --seconds 10 --format json
  engine models bench yolox_nano --device cuda:0 --threads 1 --batch 8")]
pub struct Arguments {
    /// The model
    #[arg(value_name = "NAME")]
    name: String,
    /// How many threads, each with a session of its own [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How long each of the two measurements takes, such as 500ms
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "3s")]
    seconds: Duration,
    /// Where the model runs
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// How many pictures go in at once [default: 1, or what the model is fixed to]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(LARGEST_BATCH)))]
    batch: Option<u16>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Serialize)]
struct Measured {
    model: String,
    device: String,
    batch: usize,
    one_thread: Rate,
    all_threads: Rate,
    /// Pictures a second on all threads, over those on one.
    ratio: f64,
}

#[derive(Clone, Copy, Serialize)]
struct Rate {
    threads: usize,
    pictures: u64,
    pictures_a_second: f64,
    /// Mean time of one picture on its thread.
    milliseconds: f64,
}

pub fn run(arguments: &Arguments) -> u8 {
    match measured(arguments) {
        Ok(text) => {
            input::print(&text);
            code(false)
        }
        Err(error) => {
            print_error(&error.message, error.hint.as_deref());
            code(true)
        }
    }
}

fn measured(arguments: &Arguments) -> Result<String, StartError> {
    let model = input::models()
        .get(&arguments.name)
        .map_err(|error| StartError { message: error.to_string(), hint: Some(error.hint()) })?;
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let batch = arguments.batch.map_or(model.batch, usize::from);
    if batch > 1 {
        check_batch(&model, batch)?;
    }
    let rate = |threads: usize| rate(&model, arguments.device, batch, threads, arguments.seconds);
    let one_thread = rate(1)?;
    let all_threads = if threads == 1 { one_thread } else { rate(threads)? };
    let measured = Measured {
        model: arguments.name.clone(),
        device: arguments.device.to_string(),
        batch,
        one_thread,
        all_threads,
        ratio: all_threads.pictures_a_second / one_thread.pictures_a_second,
    };
    Ok(match arguments.format {
        Format::Text => {
            let line = |rate: Rate| {
                let plural = if rate.threads == 1 { "" } else { "s" };
                format!(
                    "{:>3} thread{plural}: {:.1} pictures/s, {:.2} ms each\n",
                    rate.threads, rate.pictures_a_second, rate.milliseconds
                )
            };
            let together = if batch > 1 { format!(", {batch} pictures at once") } else { String::new() };
            let head = format!("{} on {}{together}\n", measured.model, measured.device);
            let ratio = format!("ratio {:.2} of {threads}\n", measured.ratio);
            head + &line(one_thread) + &line(all_threads) + &ratio
        }
        Format::Json => format!("{:#}\n", serde_json::json!(measured)),
    })
}

/// Runs sessions side by side for `time`, each on a thread of its own, with `batch` pictures at once.
fn rate(model: &Arc<Model>, device: Device, batch: usize, threads: usize, time: Duration) -> Result<Rate, StartError> {
    let start = Barrier::new(threads);
    let counts: Vec<Result<(u64, Duration), StartError>> = std::thread::scope(|scope| {
        let work = || {
            let session = ModelSession::open_on(model.clone(), device, 1, batch);
            // Also where it failed: the others wait here.
            start.wait();
            let mut session = session?;
            let begin = SystemClock.now();
            count(&mut session, batch, begin + time)
                .map(|count| (count, SystemClock.now() - begin))
                .map_err(|error| StartError::new(format!("model `{}` fails: {error}", model.name.name)))
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let died = || Err(StartError::new("a thread of the measurement panicked"));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| died())).collect()
    });
    let counts = counts.into_iter().collect::<Result<Vec<_>, _>>()?;
    let pictures = counts.iter().map(|(count, _)| count).sum();
    let pictures_a_second = counts.iter().map(|(count, time)| *count as f64 / time.as_secs_f64()).sum();
    Ok(Rate { threads, pictures, pictures_a_second, milliseconds: threads as f64 * 1e3 / pictures_a_second })
}

/// How many pictures `session` takes until `deadline`, `batch` at once; so many at least.
fn count(session: &mut ModelSession, batch: usize, deadline: Instant) -> Result<u64, ItemError> {
    let mut count = 0;
    loop {
        session.run_empty(batch)?;
        count += batch as u64;
        if SystemClock.now() >= deadline {
            return Ok(count);
        }
    }
}
