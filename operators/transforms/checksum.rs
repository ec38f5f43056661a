//! `checksum`: the MD5 of each picture's visible planes, to prove that a picture is exact.
//!
//! The planes are hashed in the order Y, U, V without padding. The interleaved chroma of NV12 is taken apart first, so
//! that a picture has one checksum whichever of the two layouts its decoder chose. A large picture takes a tenth of a
//! second, so this is work for the pool.

use std::sync::Arc;

use md5::{Digest, Md5};

use crate::error::{FieldError, ItemError, StartError};
use crate::inference::session::Sessions;
use crate::item::{Frame, Item, Kind, Origin, Payload, PixelFormat, RecordBody};
use crate::operator::{BuildContext, Built, Execution, PoolOperator, Produces, Registration, Role, Runner};

/// Samples of interleaved chroma that are taken apart at once.
const PIECE: usize = 1024;

/// Lower-case hexadecimal MD5 of the visible planes of `frame`.
pub fn md5(frame: &Frame) -> String {
    let mut digest = Md5::new();
    for plane in 0..frame.format.planes() {
        if frame.format == PixelFormat::Nv12 && plane == 1 {
            for component in 0..2 {
                for row in frame.rows(plane) {
                    // Piece by piece through the stack: nothing is allocated.
                    for pairs in row.chunks(2 * PIECE) {
                        let mut samples = [0; PIECE];
                        let found = pairs.iter().skip(component).step_by(2);
                        let length = found.clone().count();
                        samples.iter_mut().zip(found).for_each(|(sample, found)| *sample = *found);
                        digest.update(&samples[..length]);
                    }
                }
            }
        } else {
            frame.rows(plane).for_each(|row| digest.update(row));
        }
    }
    hex::encode(digest.finalize())
}

struct Checksum {
    origin: Origin,
}

impl PoolOperator for Checksum {
    fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        Ok(Box::new(ChecksumRunner { origin: self.origin.clone() }))
    }

    fn memory(&self) -> u64 {
        0
    }
}

struct ChecksumRunner {
    origin: Origin,
}

impl Runner for ChecksumRunner {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        let Payload::Frame(frame) = &item.payload else {
            return Err(ItemError::Failed(format!("checksum takes frames, not {}", item.payload.kind().plural())));
        };
        let record = self.origin.record(item, RecordBody::Checksum { md5: md5(frame) });
        Ok(Payload::Record(Arc::new(record)))
    }
}

fn build(context: &BuildContext, _table: toml::Table) -> Result<Built, Vec<FieldError>> {
    Ok(Built::Pool(Arc::new(Checksum { origin: context.origin.clone() })))
}

pub static REGISTRATION: Registration = Registration {
    name: "checksum",
    role: Role::Operator,
    summary: "Makes a record with the MD5 of each picture's visible planes, Y, U, V, without padding. Where a file says \
              how to turn its pictures, it is of the turned ones.",
    execution: Execution::Pool,
    accepts: &[Kind::Frame],
    produces: Produces::Kinds(&[Kind::Record]),
    fields: &[],
    example: "[operators.exact]\ntype = \"checksum\"\ninputs = [\"cameras\"]\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{ColorMatrix, ColorRange, PictureBuffer};
    use crate::lease::{Counts, Verdict};
    use crate::testing;
    use crate::time::MediaTime;

    struct Planes(Vec<(Vec<u8>, usize)>);

    impl PictureBuffer for Planes {
        fn plane(&self, index: usize) -> &[u8] {
            &self.0[index].0
        }

        fn stride(&self, index: usize) -> usize {
            self.0[index].1
        }
    }

    /// Rows of `row` counted-up bytes from `first` on, each followed by `padding` bytes of noise.
    fn plane(first: u8, row: usize, rows: usize, padding: u8) -> (Vec<u8>, usize) {
        let bytes = (0..rows).flat_map(|y| {
            let visible = (0..row).map(move |x| first + (y * row + x) as u8);
            visible.chain(std::iter::repeat_n(padding, usize::from(padding)))
        });
        (bytes.collect(), row + usize::from(padding))
    }

    fn frame(format: PixelFormat, width: u32, height: u32, planes: Vec<(Vec<u8>, usize)>) -> Frame {
        Frame {
            width,
            height,
            format,
            matrix: ColorMatrix::Bt601,
            range: ColorRange::Limited,
            buffer: Box::new(Planes(planes)),
            index: Some(7),
            truth: None,
        }
    }

    #[test]
    fn padding_is_not_hashed_and_odd_sizes_round_up() {
        let tight = frame(PixelFormat::Yuv420p, 3, 3, vec![plane(0, 3, 3, 0), plane(50, 2, 2, 0), plane(90, 2, 2, 0)]);
        let padded = frame(PixelFormat::Yuv420p, 3, 3, vec![plane(0, 3, 3, 5), plane(50, 2, 2, 1), plane(90, 2, 2, 9)]);
        // Of the bytes 0..=8, 50..=53, 90..=93, computed with md5sum.
        assert_eq!(md5(&tight), "48f3dfb39b6536850d008cffcc1ceff0");
        assert_eq!(md5(&padded), md5(&tight));
    }

    #[test]
    fn interleaved_chroma_gives_the_same_sum_as_planes() {
        let planar = frame(PixelFormat::Yuv420p, 3, 3, vec![plane(0, 3, 3, 0), plane(50, 2, 2, 0), plane(90, 2, 2, 0)]);
        let interleaved = vec![50, 90, 51, 91, 52, 92, 53, 93];
        let nv12 = frame(PixelFormat::Nv12, 3, 3, vec![plane(0, 3, 3, 4), (interleaved, 4)]);
        assert_eq!(md5(&nv12), md5(&planar));
    }

    #[test]
    fn rows_longer_than_a_piece_are_taken_apart_whole() {
        let width = 5 * PIECE + 3;
        let row =
            |first: u8, length: usize| (0..length).map(|x| first.wrapping_add((x / 7) as u8)).collect::<Vec<u8>>();
        let (luma, u, v) = (row(1, width), row(2, width.div_ceil(2)), row(3, width.div_ceil(2)));
        let chroma: Vec<u8> = u.iter().zip(&v).flat_map(|(u, v)| [*u, *v]).collect();
        let side = u32::try_from(width).unwrap();
        let interleaved = vec![(luma.clone(), width), (chroma, 2 * u.len())];
        let planar = vec![(luma, width), (u.clone(), u.len()), (v.clone(), v.len())];
        let [nv12, planar] = [(PixelFormat::Nv12, interleaved), (PixelFormat::Yuv420p, planar)]
            .map(|(format, planes)| md5(&frame(format, side, 1, planes)));
        assert_eq!(nv12, planar);
    }

    #[test]
    fn it_never_works_on_a_dataflow_worker() {
        assert_eq!(REGISTRATION.execution, Execution::Pool);
        let built = build(&crate::transforms::reference::context(std::path::Path::new("")), toml::Table::new());
        assert!(matches!(built, Ok(Built::Pool(_))));
    }

    #[test]
    fn one_record_for_each_frame() {
        let origin = Origin { graph: "graph".into(), node: "exact".into() };
        let operator = Checksum { origin };
        let picture = frame(PixelFormat::Gray8, 2, 1, vec![plane(0, 2, 1, 0)]);
        let sum = md5(&picture);
        let (item, account) = testing::item(3, MediaTime::from_micros(100_000), Payload::Frame(Arc::new(picture)));
        let mut runner = operator.runner(&mut Sessions::default()).unwrap();
        let Payload::Record(record) = runner.run(&item).unwrap() else { panic!("no record") };
        assert_eq!(record.id, "graph/exact/test/3");
        assert_eq!((record.frame, record.width, record.height), (Some(7), Some(2), Some(1)));
        assert!(matches!(&record.body, RecordBody::Checksum { md5 } if *md5 == sum));
        item.lease.ack.settle(Verdict::Delivered);
        assert_eq!(account.snapshot(), Counts { read: 1, delivered: 1, ..Counts::default() });
    }
}
