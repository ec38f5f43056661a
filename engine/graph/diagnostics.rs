//! What is wrong with a graph file, where, and what to do about it; as text for people and as JSON for editors.
//!
//! Every diagnostic has a stable [`Code`]. Positions are byte ranges of the file as written, so a value that came from
//! the environment or from a file is shown as its `${…}`, never as itself.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The graph runs; this is worth knowing.
    Note,
    /// The graph runs, but probably not as meant.
    Warning,
    /// The graph cannot run.
    Error,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal $severity:ident,)+) => {
        /// The kinds of diagnostic. The text of a code never changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The stable name, as it stands in brackets behind the severity.
            pub const fn text(self) -> &'static str {
                match self { $(Code::$name => $text,)+ }
            }

            pub const fn severity(self) -> Severity {
                match self { $(Code::$name => Severity::$severity,)+ }
            }
        }
    };
}

codes! {
    /// The file is larger than [`super::parse::LARGEST_FILE`].
    FileTooLarge = "file-too-large" Error,
    NotUtf8 = "not-utf8" Error,
    Syntax = "syntax" Error,
    /// A number that does not fit 64 bits, or a value nested too deeply.
    UnusableValue = "unusable-value" Error,
    UnknownTable = "unknown-table" Error,
    /// There is a `[chaos]`, and no `--chaos`.
    ChaosNotAllowed = "chaos-not-allowed" Error,
    NotATable = "not-a-table" Error,
    BadName = "bad-name" Error,
    DuplicateName = "duplicate-name" Error,
    MissingType = "missing-type" Error,
    UnknownType = "unknown-type" Error,
    /// The type exists, but belongs into another table.
    WrongTable = "wrong-table" Error,
    UnknownField = "unknown-field" Error,
    MissingField = "missing-field" Error,
    /// A field that other nodes take.
    InapplicableField = "inapplicable-field" Error,
    WrongValueType = "wrong-value-type" Error,
    OutOfRange = "out-of-range" Error,
    BadDuration = "bad-duration" Error,
    BadSize = "bad-size" Error,
    BadRate = "bad-rate" Error,
    BadChoice = "bad-choice" Error,
    MissingFile = "missing-file" Error,
    /// A glob passes over files or folders that it cannot take.
    LeftOut = "left-out" Warning,
    UnknownModel = "unknown-model" Error,
    /// The model is known, but its files are missing or are not what its manifest says.
    UnusableModel = "unusable-model" Error,
    /// A type's own check of its table failed.
    InvalidNode = "invalid-node" Error,
    MissingInputs = "missing-inputs" Error,
    UnknownInput = "unknown-input" Error,
    /// What is said of a node is said of none that is there.
    UnknownNode = "unknown-node" Error,
    InputIsSink = "input-is-sink" Error,
    DuplicateInput = "duplicate-input" Error,
    /// The same items come to a node along two ways: it would get them twice, and out of order.
    RepeatedItems = "repeated-items" Error,
    /// Two `sse` sinks publish the records of one node.
    PublishedTwice = "published-twice" Warning,
    WrongKind = "wrong-kind" Error,
    /// The model behind a `preprocess` takes other tensors than it makes.
    WrongTensor = "wrong-tensor" Error,
    Cycle = "cycle" Error,
    NoSources = "no-sources" Error,
    NoSinks = "no-sinks" Error,
    UnusedNode = "unused-node" Warning,
    DuplicateStream = "duplicate-stream" Error,
    SharedResource = "shared-resource" Error,
    /// A sink would write a file that the graph reads, or is made of.
    OverwritesInput = "overwrites-input" Error,
    BudgetTooSmall = "budget-too-small" Error,
    BudgetWithoutEffect = "budget-without-effect" Warning,
    DropOldestPackets = "drop-oldest-packets" Error,
    DropGopWithoutPackets = "drop-gop-without-packets" Error,
    SharedFate = "shared-fate" Note,
    UnknownVariable = "unknown-variable" Error,
    UnsetEnvironment = "unset-environment" Error,
    UnreadableValue = "unreadable-value" Error,
    /// A graph that comes over HTTP names what it may not.
    ForbiddenReference = "forbidden-reference" Error,
    /// A graph that comes over HTTP has stars where credentials stood: it was read from an answer, which covers them.
    CoveredSecret = "covered-secret" Error,
    BadSubstitution = "bad-substitution" Error,
    UnknownSetting = "unknown-setting" Error,
    UnusedParameter = "unused-parameter" Warning,
    /// The id of a stream is made of a secret value, and ids are shown everywhere.
    SecretName = "secret-name" Warning,
}

/// One thing to say about a graph file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub code: Code,
    /// A plain sentence, without a full stop.
    pub message: String,
    /// Bytes of the file; `None` where it is about the file as a whole.
    pub span: Option<Range<usize>>,
    /// Other places that belong to it, each with what is there.
    pub related: Vec<(Range<usize>, String)>,
    /// What to do next.
    pub hint: Option<String>,
}

impl Diagnostic {
    pub fn new(code: Code, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        Diagnostic { span: Some(span), ..Diagnostic::of_file(code, message) }
    }

    /// About the file as a whole.
    pub fn of_file(code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic { code, message: message.into(), span: None, related: Vec::new(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn maybe_hint(mut self, hint: Option<String>) -> Diagnostic {
        self.hint = hint.or(self.hint);
        self
    }

    #[must_use]
    pub fn related(mut self, span: Range<usize>, what: impl Into<String>) -> Diagnostic {
        self.related.push((span, what.into()));
        self
    }

    pub const fn severity(&self) -> Severity {
        self.code.severity()
    }

    /// The diagnostic as text for people, ending with a line break. `file` and `text` are what it is about.
    pub fn render(&self, file: &str, text: &str, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let level = match self.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let title = level.primary_title(&self.message).id(self.code.text());
        let mut group = match &self.span {
            None => Group::with_title(title).element(Origin::path(file)),
            Some(span) => {
                let window = Window::around(text, std::iter::once(span).chain(self.related.iter().map(|(at, _)| at)));
                let mut snippet = Snippet::source(window.text)
                    .line_start(window.first_line)
                    .path(file)
                    .annotation(AnnotationKind::Primary.span(window.local(span)));
                for (at, what) in &self.related {
                    snippet = snippet.annotation(AnnotationKind::Context.span(window.local(at)).label(what));
                }
                Group::with_title(title).element(snippet)
            }
        };
        if let Some(hint) = &self.hint {
            let hint = annotate_snippets::normalize_untrusted_str(hint);
            group = group.element(Level::HELP.with_name("hint").message(hint));
        }
        let mut rendered = renderer.render(&[group]);
        rendered.push('\n');
        rendered
    }

    /// The diagnostic as data for editors and other programs.
    fn to_json<'a>(&'a self, lines: &Lines<'a>) -> JsonDiagnostic<'a> {
        JsonDiagnostic {
            code: self.code.text(),
            severity: self.severity(),
            message: &self.message,
            location: self.span.as_ref().map(|span| JsonLocation::new(lines, span)),
            related: self
                .related
                .iter()
                .map(|(span, message)| JsonRelated { message, location: JsonLocation::new(lines, span) })
                .collect(),
            hint: self.hint.as_deref(),
        }
    }
}

/// A [`Diagnostic`] as JSON.
#[derive(Serialize)]
struct JsonDiagnostic<'a> {
    code: &'static str,
    severity: Severity,
    message: &'a str,
    #[serde(flatten)]
    location: Option<JsonLocation<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    related: Vec<JsonRelated<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonRelated<'a> {
    message: &'a str,
    #[serde(flatten)]
    location: JsonLocation<'a>,
}

/// Of a text with more mistakes than these, nobody reads on.
const MOST_TOLD: usize = 100;

/// What is told of `diagnostics`, in their order, and how many are left out. Errors are left out last.
pub fn told(diagnostics: &[Diagnostic]) -> (Vec<&Diagnostic>, usize) {
    let left_out = diagnostics.len().saturating_sub(MOST_TOLD);
    if left_out == 0 {
        return (diagnostics.iter().collect(), 0);
    }
    let is_error = |found: &&Diagnostic| found.severity() == Severity::Error;
    let mut room_for_others = MOST_TOLD.saturating_sub(diagnostics.iter().filter(is_error).count());
    let has_room = |found: &&Diagnostic| {
        if is_error(found) {
            return true;
        }
        let has_room = room_for_others > 0;
        room_for_others = room_for_others.saturating_sub(1);
        has_room
    };
    (diagnostics.iter().filter(has_room).take(MOST_TOLD).collect(), left_out)
}

/// Diagnostics of `text` as data, and how many more there are.
pub fn told_json(text: &str, diagnostics: &[Diagnostic]) -> (Vec<serde_json::Value>, usize) {
    let (told, left_out) = told(diagnostics);
    let lines = Lines::of(text);
    (told.into_iter().map(|found| serde_json::json!(found.to_json(&lines))).collect(), left_out)
}

/// What `engine check --format json` says of one file, called `file`, with `text` in it.
pub fn listed_json(file: &str, text: &str, diagnostics: &[Diagnostic]) -> serde_json::Value {
    let (diagnostics, left_out) = told_json(text, diagnostics);
    let mut listed = serde_json::json!({ "file": file, "diagnostics": diagnostics });
    if left_out > 0 {
        listed["left_out"] = left_out.into();
    }
    listed
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Lines<'a> {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    /// Line and column of a byte, both from 1, the column in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let at = self.text.floor_char_boundary(at);
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        (line, self.text[start..at].chars().count() + 1)
    }
}

/// Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Serialize)]
struct JsonLocation<'a> {
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
    /// The text that would be underlined.
    text: &'a str,
}

impl<'a> JsonLocation<'a> {
    fn new(lines: &Lines<'a>, span: &Range<usize>) -> JsonLocation<'a> {
        let span = on_boundaries(lines.text, span);
        let (line, column) = lines.position(span.start);
        let (end_line, end_column) = lines.position(span.end);
        JsonLocation { line, column, end_line, end_column, text: &lines.text[span] }
    }
}

/// Line and column of a byte, both from 1, the column in characters.
pub fn position(text: &str, at: usize) -> (usize, usize) {
    Lines::of(text).position(at)
}

/// A range that can be sliced, whatever came in.
fn on_boundaries(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    start..text.ceil_char_boundary(span.end).max(start)
}

/// The lines of a file that a diagnostic shows, so that rendering does not depend on the size of the file.
struct Window<'a> {
    text: &'a str,
    start: usize,
    first_line: usize,
}

impl<'a> Window<'a> {
    fn around<'s>(text: &'a str, spans: impl Iterator<Item = &'s Range<usize>> + Clone) -> Window<'a> {
        let first = spans.clone().map(|span| span.start).min().unwrap_or(0);
        let last = spans.map(|span| span.end).max().unwrap_or(0);
        let shown = on_boundaries(text, &(first..last));
        let start = text[..shown.start].rfind('\n').map_or(0, |at| at + 1);
        let end = text[shown.end..].find('\n').map_or(text.len(), |at| shown.end + at);
        Window { text: &text[start..end], start, first_line: position(text, start).0 }
    }

    fn local(&self, span: &Range<usize>) -> Range<usize> {
        let shifted = span.start.saturating_sub(self.start)..span.end.saturating_sub(self.start);
        on_boundaries(self.text, &shifted)
    }
}

/// The candidate that somebody who wrote `written` most likely meant.
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong, at least one; a swap of neighbours is one mistake.
    let most = (written.chars().count() / 3).max(1);
    let folded = written.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", or else what there is.
pub fn suggestion<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
    what: &str,
) -> Option<String> {
    if let Some(near) = nearest(written, candidates.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let all: Vec<&str> = candidates.into_iter().collect();
    (!all.is_empty()).then(|| format!("{what}: {}", listed(&all)))
}

/// "`a`, `b` and `c`"; long lists are cut.
pub fn listed(names: &[&str]) -> String {
    const MOST: usize = 20;
    let quoted: Vec<String> = names.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    if names.len() > MOST {
        return format!("{} and {} more", quoted.join(", "), names.len() - MOST);
    }
    match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_words() {
        let texts: BTreeSet<&str> = Code::ALL.iter().map(|code| code.text()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(texts.iter().all(|text| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-' || b == b'8')));
    }

    #[test]
    fn a_diagnostic_shows_place_text_and_hint() {
        let text = "[sources.a]\ntype = \"x\"\ntreshold = 1\n";
        let diagnostic = Diagnostic::new(Code::UnknownField, 23..31, "unknown field `treshold`").hint("did you mean?");
        insta::assert_snapshot!(diagnostic.render("a.toml", text, false), @r"
        error[unknown-field]: unknown field `treshold`
         --> a.toml:3:1
          |
        3 | treshold = 1
          | ^^^^^^^^
          |
          = hint: did you mean?
        ");
    }

    #[test]
    fn of_many_mistakes_the_first_are_told_and_the_rest_is_counted() {
        let warning = || Diagnostic::new(Code::UnusedNode, 0..1, "w");
        let error = || Diagnostic::new(Code::Syntax, 1..2, "e");
        let few: Vec<_> = (0..MOST_TOLD).map(|_| warning()).collect();
        assert_eq!(told(&few).1, 0);
        let many: Vec<_> = few.iter().cloned().chain([error(), warning(), error()]).collect();
        let (shown, left_out) = told(&many);
        assert_eq!((shown.len(), left_out), (MOST_TOLD, 3));
        assert_eq!(shown.iter().filter(|found| found.code == Code::Syntax).count(), 2);
        let listed = listed_json("x.toml", "ab", &many);
        assert_eq!(listed["left_out"], 3);
        assert_eq!(listed["diagnostics"].as_array().unwrap().len(), MOST_TOLD);
        assert_eq!(listed_json("x.toml", "ab", &few).get("left_out"), None);
    }

    #[test]
    fn columns_count_characters() {
        let text = "a\nß = 1\n";
        assert_eq!(position(text, text.find('=').unwrap()), (2, 3));
        assert_eq!(position(text, 3), (2, 1), "inside a character is its start");
    }

    #[test]
    fn ranges_outside_the_text_do_not_panic() {
        let diagnostic = Diagnostic::new(Code::Syntax, 3..900, "x").related(500..900, "y");
        assert!(diagnostic.render("a.toml", "ä\nü", false).contains("error[syntax]: x"));
        let (told, left_out) = told_json("ä\nü", &[diagnostic]);
        assert_eq!((told[0]["line"].as_u64(), told[0]["end_column"].as_u64(), left_out), (Some(2), Some(2), 0));
    }

    #[test]
    fn suggestions_are_near_or_none() {
        assert_eq!(nearest("treshold", ["threshold", "labels"]), Some("threshold"));
        assert_eq!(nearest("fps", ["every", "phase"]), None);
        assert_eq!(suggestion("zzz", ["a", "b"], "there are"), Some("there are: `a` and `b`".to_owned()));
    }
}
