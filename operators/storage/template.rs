//! Names of objects with something of the item in them: `{stream}/{year}/{month}/{day}/{seq:09}.jpg`.
//!
//! | name | what |
//! |---|---|
//! | `{graph}`, `{node}`, `{stream}` | their names |
//! | `{seq}` | the item's number in its stream; of several records, that of the first |
//! | `{index}` | of a segment, its number among those of its stream; else as `{seq}` |
//! | `{name}` | of a segment, its file name; else the stream, the number and an ending |
//! | `{year}`, `{month}`, `{day}`, `{hour}`, `{minute}`, `{second}` | of the item's time (UTC), padded with zeros |
//! | `{time}` | of that, all in one: `20260302T101530.250000Z` |
//! | `{date:FORMAT}` | of that, by strftime's letters, such as `{date:%Y/%m/%d}` |
//!
//! Numbers take a width: `{seq:09}` is filled up with zeros.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime;

use crate::error::FieldError;
use crate::item::StreamId;

/// What is filled in.
#[derive(Clone, Debug)]
pub struct Names<'a> {
    pub graph: &'a str,
    pub node: &'a str,
    pub stream: &'a StreamId,
    pub seq: u64,
    pub index: u64,
    pub name: &'a str,
    pub time: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Graph,
    Node,
    Stream,
    Name,
    Seq(usize),
    Index(usize),
    /// In strftime's letters.
    Date(String),
}

/// A name with places to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

const TIME: &str = "%Y%m%dT%H%M%S.%6fZ";
const PLACES: &str = "`{graph}`, `{node}`, `{stream}`, `{name}`, `{seq}`, `{index}`, `{time}`, `{year}`, `{month}`, `{day}`, `{hour}`, \
     `{minute}`, `{second}` or `{date:%Y/%m/%d}`";

impl Template {
    /// Reads the template that `field` has.
    ///
    /// # Errors
    /// Where a place is not known, or names of two items could be the same.
    pub fn of_field(field: &str, text: &str) -> Result<Template, FieldError> {
        let template = Template::parse(text).map_err(|why| {
            FieldError::new(field, format!("`{text}` is no name for objects: {why}"))
                .hint(format!("write {PLACES}; `{{{{` stands for `{{`"))
        })?;
        let has = |which: fn(&Part) -> bool| template.parts.iter().any(which);
        let numbered = has(|part| matches!(part, Part::Seq(_) | Part::Index(_) | Part::Name));
        if !numbered {
            let message = format!("`{text}` gives all items of a stream one name: each would overwrite the one before");
            return Err(FieldError::new(field, message).hint("add `{seq}`, or `{name}` for the file name of a segment"));
        }
        if !has(|part| matches!(part, Part::Stream | Part::Name)) {
            let message = format!("`{text}` gives the items of two streams one name: they would overwrite each other");
            return Err(FieldError::new(field, message).hint("add `{stream}`"));
        }
        Ok(template)
    }

    fn parse(text: &str) -> Result<Template, String> {
        if text.starts_with('/') {
            return Err("it begins with a slash".to_owned());
        }
        if text.contains('\0') {
            return Err("there is a zero byte in it".to_owned());
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, behind) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = behind.strip_prefix("{{").or_else(|| behind.strip_prefix("}}")) {
                plain.push_str(&behind[..1]);
                rest = after;
                continue;
            }
            let inner = behind.strip_prefix('{').ok_or("a `}` has no `{` before it")?;
            let (place, after) = inner.split_once('}').ok_or("a `{` has no `}` behind it")?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(self::place(place)?);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Template { parts })
    }

    /// The name for an item.
    pub fn fill(&self, names: &Names<'_>) -> String {
        let stamp = Timestamp::try_from(names.time).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Graph => text.push_str(names.graph),
                Part::Node => text.push_str(names.node),
                Part::Stream => text.push_str(names.stream),
                Part::Name => text.push_str(names.name),
                Part::Seq(width) => text.push_str(&format!("{:0width$}", names.seq)),
                Part::Index(width) => text.push_str(&format!("{:0width$}", names.index)),
                // It was tried when the template was read.
                Part::Date(format) => text.push_str(&strtime::format(format, stamp).unwrap_or_default()),
            }
        }
        text
    }

    /// The same with graph and node filled in: two that are equal write the same objects.
    pub fn of_node(&self, graph: &str, node: &str) -> String {
        let text = |part: &Part| match part {
            Part::Graph => graph.to_owned(),
            Part::Node => node.to_owned(),
            Part::Text(plain) => plain.clone(),
            other => format!("{{{other:?}}}"),
        };
        self.parts.iter().map(text).collect()
    }
}

fn place(text: &str) -> Result<Part, String> {
    let (name, detail) = match text.split_once(':') {
        Some((name, detail)) => (name, Some(detail)),
        None => (text, None),
    };
    let width = || match detail {
        None => Ok(0),
        Some(digits) => digits
            .parse::<usize>()
            .ok()
            .filter(|width| *width <= 32)
            .ok_or_else(|| format!("`{{{text}}}` has no width: write it like `{{{name}:06}}`")),
    };
    let date = |format: &str| match strtime::format(format, Timestamp::UNIX_EPOCH) {
        Ok(shown) if !shown.is_empty() => Ok(Part::Date(format.to_owned())),
        Ok(_) => Err(format!("`{{{text}}}` says nothing")),
        Err(error) => Err(format!("`{{{text}}}`: {error}")),
    };
    if detail.is_some() && !["seq", "index", "date"].contains(&name) {
        return Err(format!("`{{{name}}}` takes no `:`"));
    }
    match name {
        "graph" => Ok(Part::Graph),
        "node" => Ok(Part::Node),
        "stream" => Ok(Part::Stream),
        "name" => Ok(Part::Name),
        "seq" => Ok(Part::Seq(width()?)),
        "index" => Ok(Part::Index(width()?)),
        "date" => date(detail.unwrap_or("%Y-%m-%d")),
        "time" => date(TIME),
        "year" => date("%Y"),
        "month" => date("%m"),
        "day" => date("%d"),
        "hour" => date("%H"),
        "minute" => date("%M"),
        "second" => date("%S"),
        _ => Err(format!("`{{{}}}` is not known", text.escape_debug())),
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

    fn fill(text: &str) -> String {
        let stream = StreamId::new("cam").unwrap();
        let names = Names {
            graph: "door",
            node: "archive",
            stream: &stream,
            seq: 30,
            index: 2,
            name: "cam_chunk_0002.mp4",
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_446_530_250),
        };
        Template::of_field("key", text).unwrap().fill(&names)
    }

    #[test]
    fn every_place_is_filled() {
        assert_eq!(fill("{graph}/{node}/{stream}/{seq:06}.jpg"), "door/archive/cam/000030.jpg");
        assert_eq!(fill("{year}/{month}/{day}/{hour}{minute}{second}_{name}"), "2026/03/02/101530_cam_chunk_0002.mp4");
        assert_eq!(fill("{stream}_{index:04}_{time}"), "cam_0002_20260302T101530.250000Z");
        assert_eq!(fill("{date:%Y/%m/%d}/{date}/{stream}{seq}"), "2026/03/02/2026-03-02/cam30");
        assert_eq!(fill("{{x}}{name}"), "{x}cam_chunk_0002.mp4");
    }

    #[test]
    fn what_would_overwrite_is_refused() {
        let why = |text: &str| Template::of_field("key", text).unwrap_err().message;
        assert!(why("{stream}/{time}.jpg").contains("overwrite the one before"));
        assert!(why("{seq}.jpg").contains("overwrite each other"));
        for (wrong, said) in [
            ("{sequence}", "`{sequence}` is not known"),
            ("{seq:wide}", "has no width"),
            ("{stream", "no `}` behind it"),
            ("stream}", "no `{` before it"),
            ("/{stream}/{seq}", "begins with a slash"),
            ("{stream:04}{seq}", "takes no `:`"),
            ("{date:%!}{name}", "`{date:%!}`"),
        ] {
            assert!(why(wrong).contains(said), "{wrong}: {}", why(wrong));
        }
    }

    #[test]
    fn two_nodes_with_one_template_write_the_same_objects_unless_it_names_them() {
        let of = |text: &str, node: &str| Template::of_field("key", text).unwrap().of_node("door", node);
        assert_eq!(of("{stream}/{seq}", "a"), of("{stream}/{seq}", "b"));
        assert_ne!(of("{node}/{stream}/{seq}", "a"), of("{node}/{stream}/{seq}", "b"));
        assert_ne!(of("{stream}/{seq}", "a"), of("{stream}/{index}", "a"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = Template::of_field("key", &text);
        }
    }
}
