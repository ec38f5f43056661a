//! How a type declares the fields of its table, and how values are written by people.
//!
//! A [`Field`] is data: `engine check` validates tables against it (so that all mistakes of a node come at once, with
//! spans), and the reference and the editor schema are generated from it. A type's own `Config` is then read with
//! [`read`], which should not fail on a table that passed the check.

use std::fmt;
use std::time::Duration as StdDuration;

use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::FieldError;

/// One field of a node's table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub value: FieldType,
    pub presence: Presence,
    /// One sentence with units.
    pub summary: &'static str,
}

impl Field {
    /// The same field in the table of one stream: left out there, it is what the node says.
    #[must_use]
    pub const fn of_one_stream(self) -> Field {
        Field { presence: Presence::Optional, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Presence {
    Required,
    /// May be left out; nothing stands in for it.
    Optional,
    /// May be left out; this, written as TOML, stands in for it.
    Default(&'static str),
}

/// What a field's value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FieldType {
    String,
    Boolean,
    /// Inclusive bounds.
    Integer {
        minimum: i64,
        maximum: i64,
    },
    /// Inclusive bounds; whole numbers are accepted too.
    Number {
        minimum: f64,
        maximum: f64,
    },
    /// `"6s"`, `"100ms"`, `"1h 30m"`.
    Duration,
    /// `"64MiB"`, `"1.5 GB"`, or a whole number of bytes.
    Size,
    /// Frames a second: a positive number, or a ratio such as `"30000/1001"`.
    Rate,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The path of a file that must exist, or a glob that must match.
    InputPath,
    /// The path of a file that will be written.
    OutputPath,
    /// A URL, or the path of a file that describes one. Its type says which of them it takes.
    Url,
    /// The name of a model of the catalog.
    Model,
    /// A list of these.
    List(&'static FieldType),
    /// One of these, or a list of them.
    OneOrList(&'static FieldType),
    /// A table with keys of the user's choice.
    Map(&'static FieldType),
    /// A table with these fields.
    Table(&'static [Field]),
    /// One of several forms.
    Either(&'static [FieldType]),
}

/// Reads a type's configuration from its checked table.
pub fn read<T: DeserializeOwned>(table: toml::Table) -> Result<T, Vec<FieldError>> {
    toml::Value::Table(table).try_into().map_err(|error: toml::de::Error| vec![FieldError::new("", error.message())])
}

/// A length of time, written `"6s"`, `"100ms"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub StdDuration);

/// Parses a length of time as people write it.
pub fn parse_duration(text: &str) -> Result<StdDuration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|_| format!("`{text}` is not a length of time; write it like \"6s\", \"100ms\" or \"1h 30m\""))
}

/// A number of bytes, written `"64MiB"`, `"1.5GB"`, or as a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Parses a number of bytes as people write it: KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB of 1000.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write it like \"64MiB\", \"1.5GB\" or 65536");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if bytes.is_finite() && (0.0..=9.0e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A number of bytes as people read it, in binary units.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// Items a second, as an exact ratio. Both parts are positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    pub numerator: u64,
    pub denominator: u64,
}

impl Rate {
    pub fn as_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// The rate whose period is `every`, to the microsecond; `None` for zero.
    pub fn from_period(every: StdDuration) -> Option<Rate> {
        let micros = u64::try_from(every.as_micros()).ok()?;
        (micros > 0).then(|| Rate::reduced(1_000_000, micros))
    }

    fn reduced(numerator: u64, denominator: u64) -> Rate {
        let divisor = greatest_common_divisor(numerator, denominator);
        Rate { numerator: numerator / divisor, denominator: denominator / divisor }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1 {
            write!(formatter, "{}", self.numerator)
        } else {
            write!(formatter, "{}/{}", self.numerator, self.denominator)
        }
    }
}

const fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Parses a rate: `2`, `29.97`, `30000/1001`. Decimals are taken to the millionth. At most 1000 a second.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("`{text}` is not a rate; write a positive number such as 2, 0.5 or \"30000/1001\"");
    let rate = if let Some((numerator, denominator)) = text.split_once('/') {
        let numerator: u32 = numerator.trim().parse().map_err(|_| wrong())?;
        let denominator: u32 = denominator.trim().parse().map_err(|_| wrong())?;
        (u64::from(numerator), u64::from(denominator))
    } else {
        let number: f64 = text.trim().parse().map_err(|_| wrong())?;
        if !number.is_finite() || !(0.0..=1000.0).contains(&number) {
            return Err(wrong());
        }
        ((number * 1e6).round() as u64, 1_000_000)
    };
    if rate.0 == 0 || rate.1 == 0 || rate.0 > rate.1.saturating_mul(1000) {
        return Err(wrong());
    }
    Ok(Rate::reduced(rate.0, rate.1))
}

/// One value or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMany::One(value) => vec![value],
            OneOrMany::Many(values) => values,
        }
    }
}

/// Reads a value that is written as text or as a number.
struct TextOrNumber<T>(fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.0)(&number.to_string()).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        (self.0)(&number.to_string()).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(parse_duration)).map(Duration)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(parse_size)).map(Size)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(parse_rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["", "MiB", "-1", "1e400", "12 parsecs", "1.2.3"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_exact() {
        assert_eq!(parse_rate("30000/1001"), Ok(Rate { numerator: 30000, denominator: 1001 }));
        assert_eq!(parse_rate("0.5"), Ok(Rate { numerator: 1, denominator: 2 }));
        for wrong in ["0", "-2", "1/0", "nan", "2000", "fast"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("1h 30m"), Ok(StdDuration::from_secs(5400)));
        assert!(parse_duration("6").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = (parse_size(&text), parse_rate(&text), parse_duration(&text));
        }
    }
}
