//! Names with something of an item in them: `{stream}_chunk_{index:04}.mp4`, `{stream}/{date:%Y/%m/%d}/{seq:09}.jpg`.
//!
//! | placeholder | what |
//! |---|---|
//! | `{graph}`, `{node}`, `{stream}` | their names |
//! | `{seq}` | the item's number in its stream; of several records, that of the first |
//! | `{index}` | of a segment, its number among those of its stream; else as `{seq}` |
//! | `{name}` | of a segment, its file name; else the stream, the number and an ending |
//! | `{year}`, `{month}`, `{day}`, `{hour}`, `{minute}`, `{second}` | of the item's time (UTC), filled up with zeros |
//! | `{time}` | of that, all in one: `20260302T101530.250000Z` |
//! | `{date:FORMAT}` | of that, by strftime's letters, such as `{date:%Y/%m/%d}`; `{date}` alone is `{date:%Y-%m-%d}` |
//!
//! Numbers take a count of digits: `{seq:09}` is filled up with zeros. `{{` and `}}` stand for one brace.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime;

/// What a placeholder may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    Graph,
    Node,
    Stream,
    Name,
    Index,
    Seq,
    /// The item's time, and each part of it.
    Time,
}

impl Placeholder {
    /// All of them.
    pub const ALL: &[Placeholder] = &[
        Placeholder::Stream,
        Placeholder::Index,
        Placeholder::Name,
        Placeholder::Seq,
        Placeholder::Graph,
        Placeholder::Node,
        Placeholder::Time,
    ];

    const fn words(self) -> &'static [&'static str] {
        match self {
            Placeholder::Graph => &["graph"],
            Placeholder::Node => &["node"],
            Placeholder::Stream => &["stream"],
            Placeholder::Name => &["name"],
            Placeholder::Index => &["index"],
            Placeholder::Seq => &["seq"],
            Placeholder::Time => &["date", "time", "year", "month", "day", "hour", "minute", "second"],
        }
    }
}

/// What the placeholders of one name stand for; those that a template does not know may stay as they are by default.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    pub graph: &'a str,
    pub node: &'a str,
    pub stream: &'a str,
    pub name: &'a str,
    pub index: u64,
    pub seq: u64,
    pub time: SystemTime,
}

impl Default for Values<'_> {
    fn default() -> Self {
        Values { graph: "", node: "", stream: "", name: "", index: 0, seq: 0, time: SystemTime::UNIX_EPOCH }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Word(Placeholder),
    /// With zeros in front up to so many digits.
    Number(Placeholder, usize),
    /// In strftime's letters.
    Date(String),
}

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// More digits than any number has.
const MOST_DIGITS: usize = 20;
const TIME: &str = "%Y%m%dT%H%M%S.%6fZ";
const DATE: &str = "%Y-%m-%d";

impl Template {
    /// Reads a name in which `known` placeholders may stand.
    ///
    /// # Errors
    /// In words, where a brace has no partner, a placeholder is not known or its format is wrong.
    pub fn parse(text: &str, known: &[Placeholder]) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(place) = rest.find(['{', '}']) {
            plain.push_str(&rest[..place]);
            let from = &rest[place..];
            if let Some(behind) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
                plain.push_str(&from[..1]);
                rest = behind;
                continue;
            }
            let inside = from.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let Some((inside, behind)) = inside else {
                return Err(format!("a brace of `{text}` has no partner; write `{{{{` or `}}}}` for a brace itself"));
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(placeholder(inside, known)?);
            rest = behind;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Template { parts })
    }

    /// Whether a placeholder stands in it.
    pub fn has(&self, placeholder: Placeholder) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Text(_) => false,
            Part::Word(other) | Part::Number(other, _) => *other == placeholder,
            Part::Date(_) => placeholder == Placeholder::Time,
        })
    }

    /// Whether it is the same for everything.
    pub fn is_plain(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// Its text without the placeholders.
    pub fn text(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Word(_) | Part::Number(..) | Part::Date(_) => None,
        })
    }

    pub fn render(&self, values: &Values<'_>) -> String {
        let mut name = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Word(Placeholder::Graph) => name.push_str(values.graph),
                Part::Word(Placeholder::Node) => name.push_str(values.node),
                Part::Word(Placeholder::Stream) => name.push_str(values.stream),
                Part::Word(_) => name.push_str(values.name),
                Part::Number(number, digits) => {
                    let number = if *number == Placeholder::Index { values.index } else { values.seq };
                    // Writing to a string cannot fail.
                    let _ = write!(name, "{number:0digits$}");
                }
                Part::Date(format) => name.push_str(&date_name(format, values.time)),
            }
        }
        name
    }

    /// The same with graph and node filled in: two that are equal give the same names.
    pub fn of_node(&self, graph: &str, node: &str) -> String {
        let text = |part: &Part| match part {
            Part::Word(Placeholder::Graph) => graph.to_owned(),
            Part::Word(Placeholder::Node) => node.to_owned(),
            Part::Text(plain) => plain.clone(),
            other => format!("{{{other:?}}}"),
        };
        self.parts.iter().map(text).collect()
    }
}

fn placeholder(inside: &str, known: &[Placeholder]) -> Result<Part, String> {
    let (word, format) = inside.split_once(':').map_or((inside, None), |(word, format)| (word, Some(format)));
    let Some(found) = known.iter().copied().find(|known| known.words().contains(&word)) else {
        let words = known.iter().flat_map(|known| known.words());
        let words: Vec<String> = words.map(|word| format!("`{{{word}}}`")).collect();
        return Err(format!("nothing is known for `{{{}}}`; there is {}", inside.escape_debug(), words.join(", ")));
    };
    match (found, format) {
        (Placeholder::Index | Placeholder::Seq, None) => Ok(Part::Number(found, 0)),
        (Placeholder::Index | Placeholder::Seq, Some(format)) => {
            let digits = format.strip_prefix('0').and_then(|digits| digits.parse().ok());
            match digits.filter(|digits| (1..=MOST_DIGITS).contains(digits)) {
                Some(digits) => Ok(Part::Number(found, digits)),
                None => Err(format!("`{{{inside}}}` is no number of digits; write it like `{{{word}:04}}`")),
            }
        }
        (Placeholder::Time, Some(format)) if word == "date" => date(inside, format),
        (_, Some(_)) => Err(format!("`{{{inside}}}` takes no number of digits; write `{{{word}}}`")),
        (Placeholder::Time, None) => date(inside, letters(word)),
        (_, None) => Ok(Part::Word(found)),
    }
}

/// A time or a part of it in strftime's letters.
fn letters(word: &str) -> &'static str {
    match word {
        "time" => TIME,
        "year" => "%Y",
        "month" => "%m",
        "day" => "%d",
        "hour" => "%H",
        "minute" => "%M",
        "second" => "%S",
        _ => DATE,
    }
}

fn date(inside: &str, format: &str) -> Result<Part, String> {
    match strtime::format(format, Timestamp::UNIX_EPOCH) {
        // `..` would lead out of the folder.
        Ok(shown) if shown.split('/').any(|part| !part.is_empty() && part.bytes().all(|byte| byte == b'.')) => {
            Err(format!("`{{{inside}}}` leads to another folder; write it like `{{date:%Y/%m/%d}}`"))
        }
        Ok(shown) if !shown.is_empty() => Ok(Part::Date(format.to_owned())),
        Ok(_) => Err(format!("`{{{inside}}}` says nothing; write it like `{{date:%Y/%m/%d}}`")),
        Err(error) => Err(format!("`{{{inside}}}`: {error}; write it like `{{date:%Y/%m/%d}}`")),
    }
}

/// A time as file names have it, to the microsecond: `20260302T101530.250000Z`.
pub fn time_name(time: SystemTime) -> String {
    date_name(TIME, time)
}

/// A time by strftime's letters, which must be right.
pub fn date_name(format: &str, time: SystemTime) -> String {
    let stamp = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    strtime::format(format, stamp).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn rendered(text: &str) -> Result<String, String> {
        let values = Values {
            graph: "door",
            node: "archive",
            stream: "cam",
            name: "a.mp4",
            index: 7,
            seq: 30,
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_446_530_250),
        };
        Template::parse(text, Placeholder::ALL).map(|template| template.render(&values))
    }

    #[test]
    fn placeholders_are_filled_in() {
        for (text, name) in [
            ("out/{stream}_chunk_{index:04}.mp4", "out/cam_chunk_0007.mp4"),
            ("{{{index}}}{name}", "{7}a.mp4"),
            ("{graph}/{node}/{stream}/{seq:06}.jpg", "door/archive/cam/000030.jpg"),
            ("{year}/{month}/{day}/{hour}{minute}{second}", "2026/03/02/101530"),
            ("{stream}_{time}", "cam_20260302T101530.250000Z"),
            ("{date:%Y/%m/%d}/{date}/{seq}", "2026/03/02/2026-03-02/30"),
        ] {
            assert_eq!(rendered(text).unwrap(), name);
        }
        let template = Template::parse("{stream}/{index:02}", Placeholder::ALL).unwrap();
        assert!(template.has(Placeholder::Index) && !template.has(Placeholder::Name) && !template.is_plain());
        assert_eq!(template.text().collect::<Vec<_>>(), ["/"]);
        assert!(Template::parse("{hour}", Placeholder::ALL).unwrap().has(Placeholder::Time));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("{strem}", "nothing is known for `{strem}`; there is `{stream}`, `{index}`, `{name}`"),
            ("a{", "has no partner"),
            ("a}", "has no partner"),
            ("{index:4}", "no number of digits; write it like `{index:04}`"),
            ("{seq:wide}", "no number of digits; write it like `{seq:04}`"),
            ("{index:099}", "no number of digits"),
            ("{stream:04}", "takes no number of digits"),
            ("{hour:%H}", "takes no number of digits"),
            ("{date:%!}", "`{date:%!}`"),
            ("{date:}", "says nothing"),
            ("{date:..}", "leads to another folder"),
            ("{date:.}{date:.}", "leads to another folder"),
            ("{date:%Y/../..}", "leads to another folder"),
        ] {
            let said = rendered(text).unwrap_err();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert!(Template::parse("{name}", &[Placeholder::Stream]).is_err(), "only what is known here");
    }

    #[test]
    fn two_nodes_with_one_template_give_the_same_names_unless_it_names_them() {
        let of = |text: &str, node: &str| Template::parse(text, Placeholder::ALL).unwrap().of_node("door", node);
        assert_eq!(of("{stream}/{seq}", "a"), of("{stream}/{seq}", "b"));
        assert_ne!(of("{node}/{stream}/{seq}", "a"), of("{node}/{stream}/{seq}", "b"));
        assert_ne!(of("{stream}/{seq}", "a"), of("{stream}/{index}", "a"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = rendered(&text);
        }

        #[test]
        fn text_without_braces_stays(text in "[^{}]*") {
            prop_assert_eq!(rendered(&text).unwrap(), text);
        }
    }
}
