//! `engine completions`: a script that completes the command line in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::SUCCESS;
use super::input;

/// Prints a script that completes commands and options in a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine completions bash > ~/.local/share/bash-completion/completions/engine
  engine completions zsh > \"${fpath[1]}/_engine\"
  engine completions fish > ~/.config/fish/completions/engine.fish")]
pub struct Arguments {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "engine", &mut script);
    input::print(&String::from_utf8_lossy(&script));
    SUCCESS
}
