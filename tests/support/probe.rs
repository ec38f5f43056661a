//! What FFmpeg's own programs see in a file, or at an address.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::ffmpeg;

/// A packet as ffprobe sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Probed {
    /// `SHA256:` and the digest of its bytes.
    pub hash: String,
    /// Seconds.
    pub pts: f64,
    pub is_key: bool,
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

pub fn ffprobe(arguments: &[&str], file: &Path) -> Value {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-of", "json"])
        .args(arguments)
        .arg(file)
        .output()
        .expect("ffprobe is installed");
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// All packets of one track; of MP4 also those that its edit list hides, where `hidden` are asked for.
pub fn packets(file: &Path, track: usize, hidden: bool) -> Vec<Probed> {
    tracks(file, hidden).into_iter().nth(track).unwrap_or_default()
}

/// As [`packets`], of each track.
pub fn tracks(file: &Path, hidden: bool) -> Vec<Vec<Probed>> {
    let select = ["-show_entries", "packet=stream_index,pts_time,flags,data_hash", "-show_data_hash", "sha256"];
    let hide = ["-ignore_editlist", "1"];
    let is_mp4 = file.extension().is_some_and(|extension| extension == "mp4");
    let arguments = if hidden && is_mp4 { [&hide[..], &select].concat() } else { select.to_vec() };
    let probed = ffprobe(&arguments, file);
    let mut tracks = Vec::new();
    for packet in probed["packets"].as_array().expect("packets") {
        let track = packet["stream_index"].as_u64().and_then(|index| usize::try_from(index).ok()).expect("an index");
        if tracks.len() <= track {
            tracks.resize_with(track + 1, Vec::new);
        }
        tracks[track].push(Probed {
            hash: packet["data_hash"].as_str().expect("a hash").to_owned(),
            pts: packet["pts_time"].as_str().map_or(f64::NAN, |time| time.parse().expect("seconds")),
            is_key: packet["flags"].as_str().is_some_and(|flags| flags.starts_with('K')),
        });
    }
    tracks
}

/// The tracks that `tracks = "best"` chooses: the largest video and, where there is sound, that with the most packets.
pub fn best(file: &Path) -> Vec<usize> {
    let probed = ffprobe(&["-show_streams", "-count_packets"], file);
    let of = |kind: &str, size: &dyn Fn(&Value) -> u64| {
        let streams = probed["streams"].as_array().expect("streams").iter();
        let kind = streams.filter(|stream| stream["codec_type"] == kind);
        let best = kind.max_by_key(|stream| size(stream))?;
        best["index"].as_u64().map(|index| usize::try_from(index).expect("small"))
    };
    let area = |stream: &Value| stream["width"].as_u64().unwrap_or(0) * stream["height"].as_u64().unwrap_or(0);
    let count = |stream: &Value| {
        stream["nb_read_packets"].as_str().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
    };
    [of("video", &area), of("audio", &count)].into_iter().flatten().collect()
}

/// The file itself, or where it has start codes and ADTS headers the MP4 that FFmpeg makes of it.
pub fn comparable(file: &Path, folder: &Path) -> PathBuf {
    if file.extension().is_none_or(|extension| extension != "ts") {
        return file.to_owned();
    }
    let path = folder.join("comparable.mp4");
    ffmpeg(&["-copyts", "-i", text(file), "-copyinkf", "-copypriorss", "1", "-c", "copy"], &path);
    path
}

/// FFmpeg decodes all of it without a word.
pub fn assert_decodes(file: &Path) {
    let (decodes, said) = decode(&[file]);
    assert!(decodes, "{}: {said}", file.display());
}

/// As [`assert_decodes`], of each file: so many that one process looks at several of them.
pub fn assert_all_decode(files: &[PathBuf]) {
    const AT_ONCE: usize = 12;
    for some in files.chunks(AT_ONCE) {
        let some: Vec<&Path> = some.iter().map(PathBuf::as_path).collect();
        let (decode, said) = decode(&some);
        if !decode {
            // Alone, the one that does not is named.
            some.iter().for_each(|file| assert_decodes(file));
            panic!("one of {some:?}: {said}");
        }
    }
}

/// Whether FFmpeg decodes all of each file without a word, and what it says.
fn decode(files: &[&Path]) -> (bool, String) {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-xerror", "-nostdin"]);
    for file in files {
        command.args(["-i", text(file)]);
    }
    for input in 0..files.len() {
        // Without this, all that is decoded is of one of them.
        if files.len() > 1 {
            command.args(["-map", &input.to_string()]);
        }
        // With the times that pictures have, also where they come at no steady rate.
        command.args(["-fps_mode", "passthrough", "-enc_time_base", "-1", "-f", "null", "-"]);
    }
    let output = command.output().expect("ffmpeg is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success() && said.is_empty(), said)
}
