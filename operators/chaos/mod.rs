//! Faults on purpose: what a graph's `[chaos]` does to a node, as wrappers round what was built.
//!
//! Whether something happens to an item is decided by the seed, the node, the stream and the item's number alone, so a
//! run repeats; how long a connection holds is decided the same way, and counted on the injected clock. What chaos takes
//! away is counted as dropped, under the node and a reason that begins with `chaos: `: whatever else is missing is a
//! mistake of the engine.

mod operator;
mod resumed;
mod sink;
mod source;
mod weather;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence, parse_duration};
use crate::error::FieldError;
use crate::operator::{Built, Role, Source};
use crate::sources::scene::stream_seed;

const SHARE: FieldType = FieldType::Number { minimum: 0.0, maximum: 1.0 };

const LATENCY: Field = Field {
    name: "latency",
    value: FieldType::Duration,
    presence: Presence::Optional,
    summary: "Each item is held up for a time of its own, at most this long.",
};

/// What `[chaos.nodes.NAME]` takes where NAME is a source.
pub static SOURCE_FIELDS: [Field; 4] = [
    Field {
        name: "flap",
        value: FieldType::Duration,
        presence: Presence::Optional,
        summary: "Each stream loses its connection after such a time on average, and connects again.",
    },
    LATENCY,
    Field {
        name: "loss",
        value: SHARE,
        presence: Presence::Optional,
        summary: "The share of pictures and packets that get lost, from 0 to 1.",
    },
    Field {
        name: "pts_jump",
        value: FieldType::Table(&JUMP_FIELDS),
        presence: Presence::Optional,
        summary: "The clock of each stream's input jumps, and what comes of that is repaired.",
    },
];

static JUMP_FIELDS: [Field; 2] = [
    Field {
        name: "every",
        value: FieldType::Duration,
        presence: Presence::Required,
        summary: "The time between two jumps, on average.",
    },
    Field {
        name: "by",
        value: FieldType::String,
        presence: Presence::Required,
        summary: "How far it jumps: a length of time, with `-` in front where it jumps back.",
    },
];

/// What it takes where NAME is an operator.
pub static OPERATOR_FIELDS: [Field; 2] = [
    Field {
        name: "panic",
        value: SHARE,
        presence: Presence::Optional,
        summary: "The share of items at which the operator panics, from 0 to 1.",
    },
    LATENCY,
];

/// What it takes where NAME is a sink.
pub static SINK_FIELDS: [Field; 2] = [
    Field {
        name: "fail",
        value: SHARE,
        presence: Presence::Optional,
        summary: "The share of items that the sink fails to take, from 0 to 1.",
    },
    LATENCY,
];

/// What `[chaos.nodes.NAME]` takes where NAME plays this role.
pub fn fields(role: Role) -> &'static [Field] {
    match role {
        Role::Source => &SOURCE_FIELDS,
        Role::Operator => &OPERATOR_FIELDS,
        Role::Sink => &SINK_FIELDS,
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    flap: Option<config::Duration>,
    latency: Option<config::Duration>,
    loss: f64,
    pts_jump: Option<JumpConfig>,
    panic: f64,
    fail: f64,
}

#[derive(Deserialize)]
struct JumpConfig {
    every: config::Duration,
    by: String,
}

/// The longest that an item may be held up; beyond it, nobody tells a slow node from a dead one.
const LONGEST_LATENCY: Duration = Duration::from_secs(24 * 3600);
/// The longest mean time between two events.
const LONGEST_MEAN: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is done to one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Disturbance {
    seed: u64,
    node: Arc<str>,
    flap: Option<Duration>,
    latency: Duration,
    loss: f64,
    jump: Option<Jump>,
    panic: f64,
    fail: f64,
}

/// Jumps of an input's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Jump {
    every: Duration,
    /// Microseconds.
    by: i64,
}

impl Disturbance {
    /// Reads the table of `node`, which was checked against [`fields`].
    ///
    /// # Errors
    /// What cannot be meant.
    pub fn read(seed: u64, node: &str, table: toml::Table) -> Result<Disturbance, Vec<FieldError>> {
        let config: Config = config::read(table)?;
        let mut mistakes = Vec::new();
        let most = |field: &str, value: Option<Duration>, most: Duration| {
            let too_long = value.is_some_and(|value| value > most);
            too_long.then(|| {
                let hours = most.as_secs() / 3600;
                FieldError::new(field, format!("`{field}` is at most {hours} hours"))
                    .hint("write a time in which somebody sees what comes of it, such as \"30s\"")
            })
        };
        mistakes.extend(most("latency", config.latency.map(|latency| latency.0), LONGEST_LATENCY));
        mistakes.extend(most("flap", config.flap.map(|flap| flap.0), LONGEST_MEAN));
        let every = config.pts_jump.as_ref().map(|jump| jump.every.0);
        mistakes.extend(most("pts_jump.every", every, LONGEST_MEAN));
        let zero = |field: &str| {
            FieldError::new(field, format!("`{field}` is a mean time between two events, and cannot be zero"))
                .hint("leave it out where nothing is to happen")
        };
        if config.flap.is_some_and(|flap| flap.0.is_zero()) {
            mistakes.push(zero("flap"));
        }
        let jump = config.pts_jump.map(|jump| {
            if jump.every.0.is_zero() {
                mistakes.push(zero("pts_jump.every"));
            }
            let by = signed(&jump.by).unwrap_or_else(|message| {
                let hint = "write it like \"10s\", or \"-10s\" where the clock jumps back";
                mistakes.push(FieldError::new("pts_jump.by", message).hint(hint));
                0
            });
            Jump { every: jump.every.0, by }
        });
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Disturbance {
            seed,
            node: node.into(),
            flap: config.flap.map(|flap| flap.0),
            latency: config.latency.map(|latency| latency.0).unwrap_or_default(),
            loss: config.loss,
            jump,
            panic: config.panic,
            fail: config.fail,
        })
    }

    /// What was built, with this done to it.
    pub fn applied(&self, built: Built, clock: &Arc<dyn Clock>) -> Built {
        let clock = clock.clone();
        match built {
            Built::Source(source) => Built::Source(self.of_source(source)),
            Built::Inline(inner) => Built::Inline(Arc::new(operator::Inline { inner, chaos: self.clone(), clock })),
            Built::Pool(inner) => Built::Pool(Arc::new(operator::Pool { inner, chaos: self.clone(), clock })),
            Built::Io(inner) => Built::Io(Arc::new(operator::Io { inner, chaos: self.clone(), clock })),
            Built::Sink(inner) => Built::Sink(Arc::new(sink::Disturbed { inner, chaos: self.clone(), clock })),
        }
    }

    /// The same for a source.
    pub fn of_source(&self, source: Arc<dyn Source>) -> Arc<dyn Source> {
        Arc::new(source::Disturbed::new(source, self.clone()))
    }

    /// The seed of its faults.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether connections get lost.
    pub fn flaps(&self) -> bool {
        self.flap.is_some()
    }

    fn dice(&self, stream: &str, what: &str) -> Dice {
        let of_node = stream_seed(self.seed, &self.node);
        Dice(stream_seed(stream_seed(of_node, stream), what))
    }

    /// How long item `seq` of `stream` is held up.
    fn delay(&self, stream: &str, seq: u64) -> Duration {
        if self.latency.is_zero() {
            Duration::ZERO
        } else {
            self.latency.mul_f64(self.dice(stream, "latency").roll(seq))
        }
    }

    /// Whether a panic strikes at item `seq` of `stream`.
    fn panics(&self, stream: &str, seq: u64) -> bool {
        self.dice(stream, "panic").hits(seq, self.panic)
    }

    /// Whether item `seq` of `stream` is not taken.
    fn fails(&self, stream: &str, seq: u64) -> bool {
        self.dice(stream, "fail").hits(seq, self.fail)
    }
}

/// Microseconds of a length of time that may have a sign.
fn signed(text: &str) -> Result<i64, String> {
    let (sign, length) = match text.trim().strip_prefix('-') {
        Some(length) => (-1, length),
        None => (1, text.trim()),
    };
    let micros = i64::try_from(parse_duration(length)?.as_micros()).ok().filter(|micros| *micros > 0);
    micros.map(|micros| sign * micros).ok_or_else(|| format!("a clock cannot jump by `{text}`"))
}

/// Numbers that look random and are the same for the same seed.
#[derive(Clone, Copy, Debug)]
struct Dice(u64);

impl Dice {
    /// The `n`-th number, from 0 up to but not including 1.
    fn roll(self, n: u64) -> f64 {
        // Consecutive numbers are spread before they are mixed.
        let spread = self.0.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (stream_seed(spread, "n") >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether the `n`-th number lies in a share of all.
    fn hits(self, n: u64, share: f64) -> bool {
        share > 0.0 && self.roll(n) < share
    }

    /// The `n`-th of times that are exponentially distributed, as those between independent events are.
    fn interval(self, n: u64, mean: Duration) -> Duration {
        // At most 37 times the mean: the smallest number above zero is 2^-53.
        mean.mul_f64(-(1.0 - self.roll(n)).ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Disturbance, Vec<FieldError>> {
        Disturbance::read(7, "cameras", text.parse().unwrap())
    }

    #[test]
    fn what_is_rolled_has_its_rate_and_repeats() {
        let chaos = read("loss = 0.1\nlatency = \"50ms\"").unwrap();
        let lost = |stream: &str, seed: u64| -> Vec<u64> {
            let chaos = Disturbance { seed, ..chaos.clone() };
            (0..20_000).filter(|seq| chaos.dice(stream, "loss").hits(*seq, chaos.loss)).collect()
        };
        let door = lost("door", 7);
        assert!((1_850..2_150).contains(&door.len()), "{}", door.len());
        assert_eq!(door, lost("door", 7), "the same seed, the same losses");
        assert_ne!(door, lost("door", 8));
        assert_ne!(door, lost("yard", 7), "streams have fates of their own");
        let runs = door.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
        assert!((130..270).contains(&runs), "one loss says nothing of the next: {runs}");
        let delays: Vec<Duration> = (0..10_000).map(|seq| chaos.delay("door", seq)).collect();
        assert!(delays.iter().all(|delay| *delay < Duration::from_millis(50)));
        let mean = delays.iter().sum::<Duration>() / 10_000;
        assert!((24..=26).contains(&mean.as_millis()), "{mean:?}");
    }

    #[test]
    fn intervals_have_their_mean() {
        let dice = read("flap = \"30s\"").unwrap().dice("door", "flap");
        let intervals: Vec<Duration> = (0..10_000).map(|n| dice.interval(n, Duration::from_secs(30))).collect();
        let mean = intervals.iter().sum::<Duration>() / 10_000;
        assert!((29.0..31.0).contains(&mean.as_secs_f64()), "{mean:?}");
        let short = intervals.iter().filter(|interval| **interval < Duration::from_secs(30)).count();
        assert!((6_150..6_500).contains(&short), "1 - 1/e of them are shorter than the mean: {short}");
    }

    #[test]
    fn jumps_have_a_sign() {
        assert_eq!(signed("1500ms"), Ok(1_500_000));
        assert_eq!(signed(" -2s"), Ok(-2_000_000));
        for text in ["", "-", "5", "--5s", "0s", "soon"] {
            assert!(signed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, field) in [
            ("flap = \"0s\"", "flap"),
            ("pts_jump = { every = \"0s\", by = \"1s\" }", "pts_jump.every"),
            ("pts_jump = { every = \"1s\", by = \"far\" }", "pts_jump.by"),
            ("latency = \"5000000000000000h\"", "latency"),
            ("latency = \"24h 1ms\"", "latency"),
            ("flap = \"31days\"", "flap"),
            ("pts_jump = { every = \"31days\", by = \"1s\" }", "pts_jump.every"),
        ] {
            let errors = read(text).unwrap_err();
            assert_eq!((errors.len(), errors[0].field.as_str()), (1, field), "{errors:?}");
            assert!(errors[0].hint.is_some(), "{text}");
        }
        let all = "latency = \"2days\"\nflap = \"0s\"\npts_jump = { every = \"0s\", by = \"1s\" }";
        assert_eq!(read(all).unwrap_err().len(), 3);
        assert!(read("latency = \"24h\"\nflap = \"30days\"\npts_jump = { every = \"30days\", by = \"-1h\" }").is_ok());
    }

    /// What a trait of the contract asks of its implementations, by the names of its functions.
    fn asked<'t>(text: &'t str, head: &str) -> Vec<&'t str> {
        let start = [":", " {", "<"].iter().find_map(|end| text.find(&format!("{head}{end}")));
        let start = start.unwrap_or_else(|| panic!("there is no `{head}`"));
        let body = text[start..].split("\n}\n").next().unwrap_or_default();
        let functions = body.lines().filter_map(|line| {
            let line = line.strip_prefix("    ")?;
            let line = line.strip_prefix("async ").unwrap_or(line);
            line.strip_prefix("fn ")?.split('(').next()
        });
        functions.collect()
    }

    /// What has a default is easily forgotten in a wrapper, and a node would be another one under chaos.
    #[test]
    fn everything_that_is_asked_of_a_node_is_passed_on() {
        let contract = include_str!("../operator.rs");
        let (operator, sink, source) =
            (include_str!("operator.rs"), include_str!("sink.rs"), include_str!("source.rs"));
        for (text, role, wrapper) in [
            (operator, "InlineOperator", "Inline"),
            (operator, "StreamOperator", "InlineState"),
            (operator, "PoolOperator", "Pool"),
            (operator, "Runner", "PoolRunner"),
            (operator, "IoOperator", "Io"),
            (operator, "IoRunner", "DisturbedConversation"),
            (sink, "Sink", "Disturbed"),
            (sink, "SinkWriter", "DisturbedWriter"),
            (source, "Source", "Disturbed"),
            (source, "Outlet", "DisturbedOutlet"),
        ] {
            let wanted = asked(contract, &format!("pub trait {role}"));
            assert!(!wanted.is_empty(), "`{role}` asks for something");
            let passed_on = asked(text, &format!("impl {role} for {wrapper}"));
            // A disturbed `sample` is not pushed into its source.
            for function in wanted.into_iter().filter(|function| *function != "sampling") {
                assert!(passed_on.contains(&function), "`{wrapper}` does not pass on `{role}::{function}`");
            }
        }
    }
}
