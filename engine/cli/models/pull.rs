//! `engine models pull`: fetches what manifests name by an address.

use operators::inference::model::ModelError;

use super::super::{fetch, input};
use super::{chosen, code, print_model_error};

/// Fetches models whose manifests name an address, into the cache; a download that was cut goes on
///
/// Without names: all that have an address. The cache is `models` in $ENGINE_CACHE, or in `engine` of the user's cache.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine models pull
  engine models pull yolox_nano
  ENGINE_CACHE=/var/cache/engine engine models pull")]
pub struct Arguments {
    /// The models
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub fn run(arguments: &Arguments) -> u8 {
    let catalog = input::models();
    let download = fetch::download();
    let mut failed = false;
    for name in chosen(&arguments.names, &catalog) {
        let pulled = catalog.pull(&name, &download).and_then(|path| {
            let manifest = catalog.manifest(&name)?;
            let unreadable =
                |message: String| ModelError::Unreadable { name: name.clone(), path: path.clone(), message };
            let actual = catalog.sha256(&path).map_err(|error| unreadable(error.to_string()))?;
            let expected = manifest.sha256.to_ascii_lowercase();
            if actual != expected {
                return Err(ModelError::HashWrong { name: name.clone(), path, expected, actual });
            }
            Ok(path)
        });
        match pulled {
            Ok(path) => input::print(&format!("{name}: {}\n", path.display())),
            // Without names only what can be fetched is asked for.
            Err(ModelError::FileMissing { .. }) if arguments.names.is_empty() => {}
            Err(error) => {
                print_model_error(&error);
                failed = true;
            }
        }
    }
    code(failed)
}
