//! The `engine` program.

use std::process::ExitCode;

/// Frames and tensors come and go by the thousand, and are freed on other threads than they were made on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    engine::cli::main()
}
