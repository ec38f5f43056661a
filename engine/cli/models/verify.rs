//! `engine models verify`: whether models are what their manifests say.

use std::sync::Arc;

use operators::inference::session::ModelSession;

use super::super::input;
use super::{chosen, code, print_error, print_model_error};

/// Verifies models: the hash of the file, its labels, and its inputs and outputs against the manifest
///
/// Each one is loaded and run once on an empty picture. Exits with 1 where one is not sound.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine models verify
  engine models verify yolox_nano person")]
pub struct Arguments {
    /// The models [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub fn run(arguments: &Arguments) -> u8 {
    let catalog = input::models();
    let mut failed = false;
    for name in chosen(&arguments.names, &catalog) {
        match catalog.get(&name) {
            Err(error) => {
                print_model_error(&error);
                failed = true;
            }
            Ok(model) => match ModelSession::open(Arc::clone(&model)) {
                Ok(_) => input::print(&format!("{name}: ok, {} labels\n", model.labels.len())),
                Err(error) => {
                    print_error(&error.message, error.hint.as_deref());
                    failed = true;
                }
            },
        }
    }
    code(failed)
}
