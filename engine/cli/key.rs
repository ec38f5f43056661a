//! `engine key`: makes an API key.

use operators::error::StartError;
use operators::item::is_name;
use serde_json::json;

use super::input::{self, Format};
use super::run::failed;
use super::{SUCCESS, USAGE};
use crate::control::keys::{KeyHash, Role, make};

/// Makes an API key: shows it once, and prints the lines of engine.toml that let its holder in
///
/// The lines go to the standard output and have the key's hash, not the key; the key goes to the standard error.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine key dashboard >> engine.toml
  engine key deployment --role operate >> engine.toml
  engine key dashboard --format json

Exit status: 0, 1 when the system gives no chance, 2 for a wrong command line.")]
pub struct Arguments {
    /// What the key is called in the log
    #[arg(value_name = "NAME")]
    name: String,
    /// What its holder may do: look, or everything
    #[arg(long, value_enum, default_value = "read")]
    role: Role,
    /// How to print it; json has the key itself in it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let Arguments { name, role, format } = arguments;
    if !is_name(name) {
        let name = name.escape_debug();
        input::print_error(&format!("error: `{name}` cannot name a key\nhint: use 1 to 128 of `A-Z a-z 0-9 _ . -`\n"));
        return USAGE;
    }
    let key = match make() {
        Ok(key) => key,
        Err(error) => return failed(&StartError::new(format!("the system gives no chance for a key: {error}"))),
    };
    let (role, sha256) = (role.name(), KeyHash::of(&key).hexadecimal());
    match format {
        Format::Text => {
            input::print_error(&format!(
                "{key}\nThis is the key; it is shown this once. Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.\n"
            ));
            input::print(&format!("\n[[keys]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{sha256}\"\n"));
        }
        Format::Json => {
            let text = json!({ "key": key, "name": name, "role": role, "sha256": sha256 }).to_string();
            input::print(&format!("{text}\n"));
        }
    }
    SUCCESS
}
