//! Writes pictures of the `synthetic` scene with their truth, for training and for looking at them.
//!
//! `synthetic_frames FIRST_SEED SEEDS WIDTH HEIGHT FRAME…` writes, for each of `SEEDS` seeds from `FIRST_SEED` on and
//! each frame number (at 30 pictures a second), to standard output: one line of JSON (`seed`, `frame`, `width`,
//! `height`, `objects` with `label` and `box` in pixels), then the bytes of the planes Y, U, V (4:2:0, BT.601 limited).

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use operators::config::Rate;
use operators::item::Frame;
use operators::sources::scene::Scene;
use serde_json::json;

const USAGE: &str = "usage: synthetic_frames FIRST_SEED SEEDS WIDTH HEIGHT FRAME...";

fn main() -> ExitCode {
    let numbers: Option<Vec<u64>> = std::env::args().skip(1).map(|argument| argument.parse().ok()).collect();
    let Some([first, seeds, width, height, frames @ ..]) = numbers.as_deref() else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let sizes = [width, height].map(|size| u32::try_from(*size).unwrap_or(0));
    if sizes.iter().any(|size| !(1..=16_384).contains(size)) || frames.is_empty() {
        eprintln!("a picture has 1 to 16384 pixels a side, and at least one FRAME is needed\n{USAGE}");
        return ExitCode::FAILURE;
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = (0..*seeds).try_for_each(|step| write_seed(&mut out, first.wrapping_add(step), sizes, frames));
    match written.and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_seed(out: &mut impl Write, seed: u64, [width, height]: [u32; 2], frames: &[u64]) -> io::Result<()> {
    let scene = Scene::new(seed, width, height, Rate { numerator: 30, denominator: 1 });
    frames.iter().try_for_each(|frame| write_picture(out, seed, *frame, &scene.picture(*frame)))
}

fn write_picture(out: &mut impl Write, seed: u64, number: u64, picture: &Frame) -> io::Result<()> {
    let (width, height, objects) = (picture.width, picture.height, &picture.truth);
    let head = json!({ "seed": seed, "frame": number, "width": width, "height": height, "objects": objects });
    writeln!(out, "{head}")?;
    (0..picture.format.planes()).flat_map(|plane| picture.rows(plane)).try_for_each(|row| out.write_all(row))
}
