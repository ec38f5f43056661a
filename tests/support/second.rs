//! What a demuxer that has nothing to do with FFmpeg sees in an MP4.

use std::path::Path;

use re_mp4::Mp4;
use sha2::{Digest, Sha256};

use super::probe::Probed;

/// A packet as it lies in the file.
struct Sample {
    hash: String,
    /// Seconds since the track's first packet is shown.
    pts: f64,
    is_key: bool,
}

/// All packets of each track.
fn tracks(file: &Path) -> Vec<Vec<Sample>> {
    let (mp4, bytes) = Mp4::read_file(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let tracks = mp4.tracks().values().map(|track| {
        let first = track.samples.first().map_or(0, |sample| sample.composition_timestamp);
        let sample = |sample: &re_mp4::Sample| Sample {
            hash: format!("SHA256:{}", hex::encode(Sha256::digest(&bytes[sample.byte_range()]))),
            pts: (sample.composition_timestamp - first) as f64 / sample.timescale as f64,
            is_key: sample.is_sync,
        };
        track.samples.iter().map(sample).collect()
    });
    tracks.collect()
}

/// How many packets each track has; fails unless all of them lie in the file.
pub fn counts(file: &Path) -> Vec<usize> {
    tracks(file).iter().map(Vec::len).collect()
}

/// `SHA256:` and the digest of the bytes of all packets, by track.
pub fn hashes(file: &Path) -> Vec<Vec<String>> {
    let of = |samples: Vec<Sample>| samples.into_iter().map(|sample| sample.hash).collect();
    tracks(file).into_iter().map(of).collect()
}

/// Fails unless the second demuxer finds the packets in `file` that ffprobe has found, all of them, also those that an
/// edit list hides: in their order, with the same bytes, times and keyframes.
pub fn assert_agrees(file: &Path, probed: &[Vec<Probed>]) {
    let seen = tracks(file);
    assert_eq!(seen.len(), probed.len(), "{}: tracks", file.display());
    for (track, (seen, probed)) in seen.iter().zip(probed).enumerate() {
        assert_eq!(seen.len(), probed.len(), "{}, track {track}: packets", file.display());
        let begin = probed.first().map_or(0.0, |packet| packet.pts);
        for (place, (seen, probed)) in seen.iter().zip(probed).enumerate() {
            let at = format!("{}, track {track}, packet {place}", file.display());
            assert_eq!((&seen.hash, seen.is_key), (&probed.hash, probed.is_key), "{at}");
            assert!((seen.pts - (probed.pts - begin)).abs() < 1e-5, "{at}: {} s, {} s", seen.pts, probed.pts - begin);
        }
    }
}
