//! The flags of `/predict`, for commands that serve it.

use operators::config::parse_size;

use crate::control::predict::PredictLimits;

#[derive(clap::Args)]
pub struct PredictArguments {
    /// A model that answers `/predict`, beside those of the graph. May be given several times
    #[arg(long = "predict-model", value_name = "NAME")]
    pub models: Vec<String>,
    /// The largest picture that `/predict` takes
    #[arg(long = "predict-max-bytes", value_name = "SIZE", value_parser = some_bytes, default_value = "20MiB")]
    max_bytes: u64,
    /// The most pixels of a picture that `/predict` takes
    #[arg(long = "predict-max-pixels", value_name = "N", default_value_t = 50_000_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    max_pixels: u64,
    /// How many requests `/predict` answers at once; those beyond are told to come back
    #[arg(long = "predict-max-requests", value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..))]
    max_requests: u16,
}

fn some_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("no picture has 0 bytes; write a size such as 20MiB".to_owned()),
        size => Ok(size),
    }
}

impl PredictArguments {
    pub fn limits(&self) -> PredictLimits {
        PredictLimits {
            max_bytes: self.max_bytes,
            max_pixels: self.max_pixels,
            max_requests: usize::from(self.max_requests),
            ..PredictLimits::default()
        }
    }
}
