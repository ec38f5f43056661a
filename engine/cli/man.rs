//! `engine man`: the manual pages, written from the command line itself.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;

use super::input;
use super::{FAILURE, SUCCESS};

/// Prints the manual page, or writes one for each command
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine man | man -l -
  engine man --out ~/.local/share/man/man1")]
pub struct Arguments {
    /// Writes `engine.1` and a page for each command into this folder, which is made if it is missing
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let command = super::Arguments::command();
    let written = match &arguments.out {
        None => page(command).map(|page| input::print(&page)).map_err(|error| error.to_string()),
        Some(folder) => write(command, folder)
            .map_err(|error| format!("cannot write to the folder `{}`: {error}", folder.display())),
    };
    match written {
        Ok(()) => SUCCESS,
        Err(error) => {
            input::print_error(&format!("error: {error}\n"));
            FAILURE
        }
    }
}

fn page(command: clap::Command) -> std::io::Result<String> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn write(command: clap::Command, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), folder)
}
