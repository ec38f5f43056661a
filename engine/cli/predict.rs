//! The flags of `/predict`, for commands that serve it.

use std::collections::BTreeSet;
use std::sync::Arc;

use operators::config::parse_size;
use operators::error::StartError;
use operators::inference::model::Catalog;

use crate::control::predict::PredictLimits;
use crate::graph::memory::Memory;
use crate::graph::plan::Plan;
use crate::runtime::predict::{model_memory, models as of_plan};

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

    /// The worst case of what `/predict` takes beside `plan`; `None` where no model is served.
    ///
    /// # Errors
    /// Where a model is not there or not usable.
    pub fn memory(&self, plan: &Plan, models: &Catalog) -> Result<Option<Memory>, StartError> {
        let of_graph: BTreeSet<Arc<str>> = of_plan(plan).into_iter().collect();
        let named = self.models.iter().map(|name| name.as_str().into());
        let served: BTreeSet<Arc<str>> = of_graph.iter().cloned().chain(named).collect();
        if served.is_empty() {
            return Ok(None);
        }
        let mut memory = self.limits().memory(plan.pool_threads);
        for name in served {
            let each = model_memory(models, &name, of_graph.contains(&name))?;
            let what = format!("pool threads, for the answers of `{name}`");
            memory.add(what, plan.pool_threads as u64, each);
        }
        Ok(Some(memory))
    }
}
