//! Names with placeholders, such as `{stream}_chunk_{index:04}.mp4`.
//!
//! `{index:04}` is the index with at least four digits. `{{` and `}}` stand for one brace.

use std::fmt::Write as _;

/// What a placeholder may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The id of the stream.
    Stream,
    /// The number of what is named, from 0.
    Index,
    /// The name that what is stored has already.
    Name,
}

impl Placeholder {
    const fn word(self) -> &'static str {
        match self {
            Placeholder::Stream => "stream",
            Placeholder::Index => "index",
            Placeholder::Name => "name",
        }
    }
}

/// What the placeholders of one name stand for.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    pub stream: &'a str,
    pub index: u64,
    pub name: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Placeholder),
    /// The index, with zeros in front up to so many digits.
    Padded(usize),
}

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// More digits than any index has.
const MOST_DIGITS: usize = 20;

impl Template {
    /// Reads a name in which `known` placeholders may stand.
    ///
    /// # Errors
    /// In words, where a brace has no partner or a placeholder is not known.
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
            Part::Value(other) => *other == placeholder,
            Part::Padded(_) => placeholder == Placeholder::Index,
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
            Part::Value(_) | Part::Padded(_) => None,
        })
    }

    pub fn render(&self, values: &Values<'_>) -> String {
        let mut name = String::new();
        for part in &self.parts {
            // Writing to a string cannot fail.
            let _ = match part {
                Part::Text(text) => name.write_str(text),
                Part::Value(Placeholder::Stream) => name.write_str(values.stream),
                Part::Value(Placeholder::Name) => name.write_str(values.name),
                Part::Value(Placeholder::Index) => write!(name, "{}", values.index),
                Part::Padded(digits) => write!(name, "{:0digits$}", values.index),
            };
        }
        name
    }
}

fn placeholder(inside: &str, known: &[Placeholder]) -> Result<Part, String> {
    let (word, format) = inside.split_once(':').map_or((inside, None), |(word, format)| (word, Some(format)));
    let Some(found) = known.iter().copied().find(|known| known.word() == word) else {
        let words: Vec<String> = known.iter().map(|known| format!("`{{{}}}`", known.word())).collect();
        return Err(format!("nothing is known for `{{{inside}}}`; there is {}", words.join(", ")));
    };
    match format {
        None => Ok(Part::Value(found)),
        Some(format) if found == Placeholder::Index => {
            let digits = format.strip_prefix('0').and_then(|digits| digits.parse().ok());
            match digits.filter(|digits| (1..=MOST_DIGITS).contains(digits)) {
                Some(digits) => Ok(Part::Padded(digits)),
                None => Err(format!("`{{{inside}}}` is no number of digits; write it like `{{index:04}}`")),
            }
        }
        Some(_) => Err(format!("`{{{inside}}}` takes no number of digits; write `{{{word}}}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Placeholder; 3] = [Placeholder::Stream, Placeholder::Index, Placeholder::Name];

    fn rendered(text: &str) -> Result<String, String> {
        let values = Values { stream: "door", index: 7, name: "a.mp4" };
        Template::parse(text, &ALL).map(|template| template.render(&values))
    }

    #[test]
    fn placeholders_are_filled_in() {
        assert_eq!(rendered("out/{stream}_chunk_{index:04}.mp4").unwrap(), "out/door_chunk_0007.mp4");
        assert_eq!(rendered("{{{index}}}{name}").unwrap(), "{7}a.mp4");
        let template = Template::parse("{stream}/{index:02}", &ALL).unwrap();
        assert!(template.has(Placeholder::Index) && !template.has(Placeholder::Name) && !template.is_plain());
        assert_eq!(template.text().collect::<Vec<_>>(), ["/"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("{strem}", "nothing is known for `{strem}`; there is `{stream}`, `{index}`, `{name}`"),
            ("a{", "has no partner"),
            ("a}", "has no partner"),
            ("{index:4}", "no number of digits; write it like `{index:04}`"),
            ("{index:099}", "no number of digits"),
            ("{stream:04}", "takes no number of digits"),
        ] {
            let said = rendered(text).unwrap_err();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert!(Template::parse("{name}", &ALL[..2]).is_err(), "only what is known here");
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
