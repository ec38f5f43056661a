//! `engine probe`: says what is in a video or under the URL of a camera, and how to begin with it.

use std::fmt::Write as _;
use std::time::Duration;

use operators::address::Address;
use operators::clock::SystemClock;
use operators::config::parse_duration;
use operators::item::StreamId;
use operators::sources::probe::{Look, Probe, ProbedFormat, probe};

use super::input::{self, Format};
use super::run::failed;
use super::{FAILURE, SUCCESS};

/// Looks at a video file or a live URL: tracks, codecs, rate, keyframes, how long it takes, and a graph to start from
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine probe videos/door.mp4
  engine probe rtsp://10.0.0.7/main
  engine probe \"$CAMERA_URL\" --transport udp --timeout 20s --format json

Credentials in the URL are not shown. Exit status: 0 when it shows video, 1 when not, 2 for a wrong command line.")]
pub struct Arguments {
    /// A file, or a URL of FFmpeg (rtsp, http, srt, rtmp, udp, …)
    #[arg(value_name = "URL")]
    url: String,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// How RTSP carries media
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// How long it may take to answer
    #[arg(long, value_name = "TIME", value_parser = wait, default_value = "10s")]
    timeout: Duration,
    /// How long to watch it at most; it ends sooner when two groups of pictures have been seen
    #[arg(long, value_name = "TIME", value_parser = wait, default_value = "10s")]
    watch: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Transport {
    #[default]
    Tcp,
    Udp,
}

fn wait(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    match parse_duration(text)? {
        time if time.is_zero() || time > LONGEST => Err("write a time up to a day, such as 10s".to_owned()),
        time => Ok(time),
    }
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let look = Look {
        input: arguments.url.clone(),
        udp: arguments.transport == Transport::Udp,
        timeout: arguments.timeout,
        watch: arguments.watch,
        one_picture: false,
    };
    let found = match probe(&look, &SystemClock) {
        Ok(found) => found,
        Err(error) => return failed(&error),
    };
    let graph = graph(&look, &found);
    match arguments.format {
        Format::Text => input::print(&text(&found, &graph)),
        Format::Json => {
            let json = serde_json::to_value(&found).map(|mut json| {
                json["graph"] = graph.into();
                json
            });
            match json {
                Ok(json) => input::print(&format!("{json:#}\n")),
                Err(error) => {
                    input::print_error(&format!("error: what was found cannot be written as JSON: {error}\n"));
                    return FAILURE;
                }
            }
        }
    }
    SUCCESS
}

/// At most two digits after the point, and none that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn text(found: &Probe, graph: &str) -> String {
    let mut text = format!("{}: {}", found.input, found.container);
    // Writing to a string does not fail.
    if let Some(seconds) = found.seconds {
        let _ = write!(text, ", {} s", number(seconds));
    }
    let _ = write!(text, "\nopened in {:.0} ms", found.opened_ms);
    match found.first_picture_ms {
        Some(milliseconds) => {
            let _ = writeln!(text, ", first picture {milliseconds:.0} ms later");
        }
        None => text.push_str(", no picture came out of it\n"),
    }
    text.push('\n');
    for track in &found.tracks {
        let what = match &track.format {
            ProbedFormat::Video { width, height, frame_rate } => {
                let rate = frame_rate.map(|rate| format!(", {} pictures/s", number(rate))).unwrap_or_default();
                format!("video  {}, {width}x{height}{rate}", track.codec)
            }
            ProbedFormat::Audio { sample_rate, channels } => {
                let plural = if *channels == 1 { "" } else { "s" };
                format!("audio  {}, {sample_rate} Hz, {channels} channel{plural}", track.codec)
            }
        };
        let _ = writeln!(text, "track {}  {what}", track.index);
    }
    let video = &found.video;
    let _ = writeln!(
        text,
        "\nof track {} were seen {} pictures in {} s:",
        video.track,
        video.packets,
        number(video.seconds)
    );
    if let Some(rate) = video.measured_rate {
        let _ = writeln!(text, "  {} pictures/s", number(rate));
    }
    if let Some(bits) = video.bits_per_second {
        let _ = writeln!(text, "  {} kbit/s", bits / 1000);
    }
    let _ = match video.group_of_pictures {
        Some([fewest, most]) if fewest == most => writeln!(text, "  a keyframe every {most} pictures"),
        Some([fewest, most]) => writeln!(text, "  a keyframe every {fewest} to {most} pictures"),
        None => writeln!(text, "  keyframes: {}", video.keyframes),
    };
    let _ = writeln!(text, "  B-frames: {}", if video.b_frames { "yes" } else { "no" });
    let _ = writeln!(text, "  clock: {} s a tick", video.clock);
    let _ = write!(text, "\na graph file to start from:\n\n{graph}");
    text
}

/// A graph that plays the input and runs everywhere: no model, records on the standard output.
fn graph(look: &Look, found: &Probe) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut graph = String::new();
    let source = if found.live {
        let (kind, name) = match Address::parse(&look.input) {
            Some(address) if address.scheme.to_ascii_lowercase().starts_with("rtsp") => ("rtsp", "camera"),
            _ => ("url", "channel"),
        };
        // What is secret belongs into the environment.
        let url = if found.input == look.input { quoted(&look.input) } else { "\"${env.CAMERA_URL}\"".to_owned() };
        if found.input != look.input {
            let _ = writeln!(graph, "# CAMERA_URL holds the URL with its credentials.");
        }
        let udp = if kind == "rtsp" && look.udp { "transport = \"udp\"\n" } else { "" };
        let _ = write!(graph, "[sources.{name}]\ntype = \"{kind}\"\n{udp}streams.{name} = {url}\n");
        name
    } else {
        let stem = std::path::Path::new(&look.input).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let stream = StreamId::sanitised(&stem);
        // A dot would nest the key.
        let key = if stream.contains('.') { quoted(&stream) } else { stream.to_string() };
        let path = look.input.strip_prefix("file://").unwrap_or(&look.input);
        let _ = write!(graph, "[sources.video]\ntype = \"file\"\nstreams.{key} = {}\n", quoted(path));
        "video"
    };
    let _ = write!(
        graph,
        "\n[operators.twice_a_second]\ntype = \"sample\"\ninputs = [\"{source}\"]\nfps = 2\n\n\
         # A model goes here: type = \"detect\" or \"classify\", and its `model`.\n\
         [operators.looked_at]\ntype = \"checksum\"\ninputs = [\"twice_a_second\"]\n\n\
         [sinks.out]\ntype = \"file\"\ninputs = [\"looked_at\"]\npath = \"-\"\n"
    );
    graph
}
