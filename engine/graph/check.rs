//! From a graph file to a graph that can be planned, or to everything that is wrong with it.

mod combinations;

use std::path::PathBuf;
use std::sync::Arc;

use operators::clock::{Clock, SystemClock};
use operators::config::FieldType;
use operators::error::FieldError;
use operators::inference::model::Catalog;
use operators::item::{Origin, is_name};
use operators::operator::{BuildContext, Built, NoPublisher, Publisher, Registration};
use operators::progress::Progress;
use operators::reach::Hosts;
use operators::sinks::hls::store::Playlists;

use super::answers;
use super::cases::{self, Case};
use super::chaos::{self, Disturbances};
use super::demand::{Edge, Node};
use super::diagnostics::{Code, Diagnostic, Severity};
use super::fields::FieldChecker;
use super::files;
use super::identity::Template;
use super::nodes::{self, Declaration};
use super::parse::{self, Data, Table};
use super::permission;
use super::places::Places;
use super::references::References;
use super::secrecy;
use super::state;
use super::substitute::{self, Environment, Secrets, Setting, Substituted};
use super::wiring::{self, Wiring};

/// Looks up an environment variable.
pub type Variables = dyn Fn(&str) -> Option<String> + Send + Sync;

/// What nodes are built with, and where references look.
#[derive(Clone)]
pub struct Surroundings {
    pub registry: &'static [&'static Registration],
    /// Relative paths are relative to this folder.
    pub folder: PathBuf,
    /// Where the graph was read from, if from a file: nothing may overwrite it.
    pub file: Option<PathBuf>,
    pub models: Arc<Catalog>,
    pub clock: Arc<dyn Clock>,
    pub publisher: Arc<dyn Publisher>,
    pub playlists: Arc<Playlists>,
    /// The value of an environment variable.
    pub variable: Arc<Variables>,
    /// Which variables, files and hosts a text may name.
    pub references: References,
    /// Whether a text may have a `[chaos]`.
    pub chaos: bool,
}

impl Surroundings {
    /// The process's own environment and working directory, with nobody subscribed to records.
    pub fn of_process(models: Arc<Catalog>) -> Surroundings {
        Surroundings {
            registry: operators::OPERATORS,
            folder: PathBuf::from("."),
            file: None,
            models,
            clock: Arc::new(SystemClock),
            publisher: Arc::new(NoPublisher),
            playlists: Arc::default(),
            variable: Arc::new(|name| std::env::var(name).ok()),
            references: References::Anything,
            chaos: false,
        }
    }
}

/// A graph without mistakes. Nodes that lead to no sink are part of it, but not of its plan.
pub struct Graph {
    pub name: Arc<str>,
    /// Each node stands behind its inputs.
    pub nodes: Vec<Node>,
    /// What plans and messages must not show.
    pub secrets: Arc<Secrets>,
    /// The hosts that its inputs may lead on to.
    pub hosts: Hosts,
}

/// What came of checking a file.
pub struct Checked {
    /// In the order of the file; what is about the file as a whole comes first.
    pub diagnostics: Vec<Diagnostic>,
    /// Present where no diagnostic is an error.
    pub graph: Option<Graph>,
}

impl Checked {
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.severity() == severity).count()
    }
}

/// Checks the bytes of a graph file, its tests included. `name` is the graph's: the file's stem, or what it was put
/// under.
pub fn check(name: &str, bytes: &[u8], settings: &[Setting], surroundings: &Surroundings) -> Checked {
    let (text, document) = match document(bytes) {
        Ok(read) => read,
        Err(diagnostics) => return Checked { diagnostics, graph: None },
    };
    let mut found = Vec::new();
    cases::read(&document, text, surroundings.registry, &mut found);
    check_document(name, text, document, found, settings, surroundings)
}

/// The tests of a graph file, or what is wrong with them.
///
/// # Errors
/// Every mistake in the file's TOML or in its tests.
pub fn tests(bytes: &[u8], surroundings: &Surroundings) -> Result<Vec<Case>, Vec<Diagnostic>> {
    let (text, document) = document(bytes)?;
    let mut found = Vec::new();
    let cases = cases::read(&document, text, surroundings.registry, &mut found);
    if found.is_empty() { Ok(cases) } else { Err(found) }
}

/// Checks the graph that a test of a file runs. Places are those of the file.
pub fn check_test(name: &str, bytes: &[u8], case: &Case, settings: &[Setting], surroundings: &Surroundings) -> Checked {
    let (text, document) = match document(bytes) {
        Ok(read) => read,
        Err(diagnostics) => return Checked { diagnostics, graph: None },
    };
    let document = case.document(&document, surroundings.registry);
    let mut checked = check_document(name, text, document, Vec::new(), settings, surroundings);
    for mistake in &mut checked.diagnostics {
        // The user knows nothing of the sink that takes the records.
        if mistake.code == Code::WrongKind && mistake.span.as_ref() == Some(&case.node.span) {
            mistake.message = format!("`{}` makes no records, so there is nothing to look at", case.node.name);
            mistake.hint = Some("name an operator that makes records".to_owned());
        }
    }
    let sources = checked.graph.iter().flat_map(|graph| &graph.nodes).filter_map(|node| Some((node, node.source()?)));
    let endless: Vec<Diagnostic> = sources
        .filter(|(_, source)| !source.is_finite())
        .map(|(node, _)| {
            let message = format!("the input for `{}` never ends, so the test would not end either", node.name);
            let hint = "give `synthetic` a number of `frames`, and a file no `loop`";
            Diagnostic::new(Code::InvalidNode, case.input_span(&node.name), message).hint(hint)
        })
        .collect();
    if !endless.is_empty() {
        checked.diagnostics.extend(endless);
        checked.graph = None;
    }
    checked
}

fn document(bytes: &[u8]) -> Result<(&str, Table), Vec<Diagnostic>> {
    let text = parse::decode(bytes).map_err(|diagnostic| vec![diagnostic])?;
    Ok((text, parse::parse(text)?))
}

/// Checks a parsed document; `about_tests` is what was found before.
fn check_document(
    name: &str,
    text: &str,
    mut document: Table,
    about_tests: Vec<Diagnostic>,
    settings: &[Setting],
    surroundings: &Surroundings,
) -> Checked {
    let mut found = Vec::new();
    if !is_name(name) {
        let message = format!("`{}` cannot name a graph", name.escape_debug());
        let hint = "rename the file: a graph is called like its file, with 1 to 128 of `A-Z a-z 0-9 _ . -`";
        found.push(Diagnostic::of_file(Code::BadName, message).hint(hint));
    }
    let environment = Environment {
        variable: &*surroundings.variable,
        folder: surroundings.folder.clone(),
        references: surroundings.references.clone(),
    };
    // A reference that leads nowhere leaves its own text behind: what else is said of that value would be noise.
    let Substituted { mut secrets, unresolved } =
        substitute::substitute(&mut document, text, settings, &environment, &mut found);
    let mut checker = FieldChecker { text, folder: &surroundings.folder, diagnostics: Vec::new() };
    let kept = state::take(&mut document, &mut checker);
    let about_chaos = chaos::take(&mut document);
    let mut declared = nodes::declarations(document, surroundings.registry, &mut checker);
    let disturbances = chaos::read(about_chaos, &declared, surroundings.chaos, &mut checker);
    let nowhere = Places::of(unresolved.iter().filter(|place| !place.is_empty()));
    let noise = |diagnostic: &Diagnostic| diagnostic.span.as_ref().is_some_and(|span| nowhere.any_within(span));
    found.extend(about_tests);
    let mut forbidden = permission::check(&declared, &surroundings.folder, &surroundings.references);
    forbidden.extend(kept.iter().flat_map(|kept| kept.forbidden(&surroundings.folder, &surroundings.references)));
    let refused: Vec<_> = forbidden.iter().filter_map(|diagnostic| diagnostic.span.clone()).collect();
    // What is said of a file that may not be named would tell whether it is there.
    let secret = Places::of(&refused);
    let tells = |diagnostic: &Diagnostic| secret.any_around(diagnostic.span.as_ref().unwrap_or(&(0..0)));
    let about_values = checker.diagnostics.into_iter();
    found.extend(about_values.filter(|diagnostic| !noise(diagnostic) && !tells(diagnostic)));
    found.extend(forbidden.into_iter().filter(|diagnostic| !noise(diagnostic)));
    let meaningless = Places::of(unresolved.iter().chain(&refused));
    let means_nothing = |value: &parse::Value| value.encloses_any(&meaningless);
    declared.iter_mut().for_each(|node| node.distrust(means_nothing));
    let mut wrong = Vec::new();
    let wiring = wiring::wire(&declared, surroundings.registry, &mut wrong);
    found.extend(wrong.into_iter().filter(|diagnostic| !noise(diagnostic)));
    secrecy::cover_expansions(&declared, &surroundings.folder, &mut secrets);
    let graph: Arc<str> = name.into();
    let progress = state::progress(kept.as_ref(), &graph, &declared, &wiring, &surroundings.folder);
    let with_progress = declared.iter().zip(&progress);
    let built: Vec<Option<Built>> = with_progress
        .map(|(node, progress)| build(node, &context(&graph, node, surroundings, progress), surroundings, &mut found))
        .collect();
    found.extend(permission::check_built(&declared, &built, &surroundings.references));
    combinations::counts(&declared, &built, &mut found);
    combinations::streams(&declared, &built, &mut found);
    files::report_shared(&declared, &built, &mut found);
    secrecy::report_names(&declared, &built, &secrets, &mut found);
    let state = kept.as_ref().map(|kept| kept.path(&surroundings.folder).join(operators::progress::FILE));
    files::report_overwrites(&declared, &built, surroundings, &secrets, state, &mut found);
    combinations::tensors(&declared, &built, &wiring, &mut found);
    answers::report(&declared, &built, &wiring, &mut found);
    combinations::refusals(&declared, &built, &wiring, &mut found);
    disturbances.report_meaningless(&declared, &built, &mut found);
    let (nodes, origins) = assemble(&graph, &declared, built, &wiring, &disturbances, surroundings, &progress);
    combinations::overflow(&declared, &wiring, &mut found);
    combinations::bounds(&nodes, &origins, &mut found);
    combinations::joins(&nodes, &origins, &mut found);
    combinations::shared_fate(&nodes, &origins, &mut found);
    for diagnostic in &mut found {
        redact(diagnostic, &secrets);
    }
    found.sort_by_key(|diagnostic| diagnostic.span.as_ref().map(|span| (span.start, span.end)));
    let sound = found.iter().all(|diagnostic| diagnostic.severity() != Severity::Error);
    let hosts = surroundings.references.hosts();
    let whole = || Graph { name: graph, nodes, secrets: Arc::new(secrets), hosts };
    Checked { diagnostics: found, graph: sound.then(whole) }
}

fn redact(diagnostic: &mut Diagnostic, secrets: &Secrets) {
    diagnostic.message = secrets.redact(&diagnostic.message);
    diagnostic.hint = diagnostic.hint.as_deref().map(|hint| secrets.redact(hint));
    for (_, what) in &mut diagnostic.related {
        *what = secrets.redact(what);
    }
}

fn build(
    node: &Declaration,
    context: &BuildContext,
    surroundings: &Surroundings,
    found: &mut Vec<Diagnostic>,
) -> Option<Built> {
    let registration = node.registration?;
    let mut table = node.table.to_toml();
    table.retain(|name, _| !node.faulty.contains(name));
    let errors = match (registration.build)(context, table) {
        Ok(built) => return node.sound.then_some(built),
        Err(errors) => errors,
    };
    let models = &surroundings.models;
    let told = errors.into_iter().filter(|error| node.sound || !is_consequence(node, error));
    found.extend(told.map(|error| field_error(node, registration, models, error)));
    None
}

/// Whether a mistake may be there only because other fields of the node are, which were left out: it is about none of
/// those that were not, or it names one of those that were.
fn is_consequence(node: &Declaration, error: &FieldError) -> bool {
    let field = error.field.split('.').next().unwrap_or_default();
    if node.table.get(field).is_none() || node.faulty.contains(field) {
        return true;
    }
    let names = |text: &str| {
        let mut quoted = text.match_indices('`').map(|(at, _)| &text[at + 1..]);
        quoted.any(|rest| {
            let within = &rest[..rest.find('`').map_or(rest.len(), |at| at + 1)];
            within.match_indices(['`', ' ', '.']).any(|(at, _)| node.faulty.contains(&within[..at]))
        })
    };
    names(&error.message) || error.hint.as_deref().is_some_and(names)
}

fn context(
    graph: &Arc<str>,
    node: &Declaration,
    surroundings: &Surroundings,
    progress: &Option<Progress>,
) -> BuildContext {
    BuildContext {
        origin: Origin { graph: graph.clone(), node: node.name.as_str().into() },
        folder: surroundings.folder.clone(),
        models: surroundings.models.clone(),
        clock: surroundings.clock.clone(),
        publisher: surroundings.publisher.clone(),
        progress: progress.clone(),
        playlists: surroundings.playlists.clone(),
    }
}

fn field_error(node: &Declaration, registration: &Registration, models: &Catalog, error: FieldError) -> Diagnostic {
    let field = registration.fields.iter().find(|field| field.name == error.field);
    let code = match (field.map(|field| field.value), node.table.get(&error.field).map(|value| &value.data)) {
        (Some(FieldType::Model), Some(Data::String(name))) if !models.names().any(|known| known == name) => {
            Code::UnknownModel
        }
        (Some(FieldType::Model), _) => Code::UnusableModel,
        _ => Code::InvalidNode,
    };
    let message = one_line(&error.message);
    Diagnostic::new(code, node.place(&error.field), message).maybe_hint(error.hint)
}

/// The words of a message that may show an excerpt of another file (a manifest) below its first line.
fn one_line(message: &str) -> String {
    let excerpt = |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty() && !excerpt(line));
    lines.collect::<Vec<_>>().join(": ").trim_end_matches('.').to_owned()
}

/// The nodes that could be ordered, in that order, and with their inputs renumbered; beside each, its declaration.
fn assemble<'a>(
    graph: &Arc<str>,
    declared: &'a [Declaration],
    mut built: Vec<Option<Built>>,
    wiring: &Wiring,
    disturbances: &Disturbances,
    surroundings: &Surroundings,
    progress: &[Option<Progress>],
) -> (Vec<Node>, Vec<&'a Declaration>) {
    let mut places = vec![usize::MAX; declared.len()];
    let (mut nodes, mut origins) = (Vec::new(), Vec::new());
    for &index in &wiring.order {
        let declaration = &declared[index];
        let Some(registration) = declaration.registration else { continue };
        places[index] = nodes.len();
        let inputs = wiring.links[index]
            .iter()
            .filter(|link| places[link.from] != usize::MAX)
            .filter_map(|link| Some(Edge { from: places[link.from], kind: link.kind? }))
            .collect();
        origins.push(declaration);
        let planned_streams = planned_streams(declaration, built[index].as_ref());
        let chaos = disturbances.of(&declaration.name).cloned();
        let disturbed = |built: Built| match &chaos {
            Some(chaos) => chaos.applied(built, &surroundings.clock),
            None => built,
        };
        nodes.push(Node {
            name: declaration.name.as_str().into(),
            registration,
            built: built[index].take().map(disturbed),
            inputs,
            budget: declaration.budget.as_ref().map(|(budget, _)| *budget).unwrap_or_default(),
            overflow: declaration.overflow.as_ref().map(|(overflow, _)| *overflow),
            on_error: declaration.on_error,
            max_streams: declaration.max_streams,
            planned_streams,
            template: Template {
                registration,
                context: context(graph, declaration, surroundings, &progress[index]),
                table: declaration.table.to_toml(),
                chaos,
            },
        });
    }
    (nodes, origins)
}

/// How many streams of a source the plan counts with: as many as it may have, where the file says so or all of them come
/// later; those that it finds, at once; else those that it declares.
fn planned_streams(declaration: &Declaration, built: Option<&Built>) -> u32 {
    let Some(Built::Source(source)) = built else { return 0 };
    let declared = u32::try_from(source.streams().len()).unwrap_or(u32::MAX);
    let at_once = u32::try_from(source.at_once()).unwrap_or(u32::MAX).min(declaration.max_streams);
    if declaration.says_max_streams || source.awaits_streams() && declared == 0 {
        declaration.max_streams
    } else if source.discovery().is_some() {
        declared.saturating_add(at_once)
    } else {
        declared
    }
}

#[cfg(test)]
mod tests {
    use operators::item::Kind;

    use super::super::diagnostics::listed_json;
    use super::super::plan::Overflow;
    use super::super::planner::{PlanOptions, build_plan};
    use super::super::testing::{REGISTRY, surroundings};
    use super::*;

    fn found(text: &str) -> Vec<&'static str> {
        let checked = check("test", text.as_bytes(), &[], &surroundings());
        assert_eq!(checked.graph.is_some(), checked.count(Severity::Error) == 0);
        checked.diagnostics.iter().map(|diagnostic| diagnostic.code.text()).collect()
    }

    fn rendered(text: &str) -> String {
        let checked = check("test", text.as_bytes(), &[], &surroundings());
        let all: Vec<String> = checked.diagnostics.iter().map(|found| found.render("test.toml", text, false)).collect();
        all.join("\n")
    }

    const CAMERA: &str = "[sources.cam]\ntype = \"camera\"\n";

    #[test]
    fn the_oldest_packets_may_not_be_dropped() {
        let on_the_sink =
            format!("{CAMERA}[sinks.disk]\ntype = \"recorder\"\ninputs = [\"cam\"]\noverflow = \"drop_oldest\"\n");
        insta::assert_snapshot!(rendered(&on_the_sink), @r#"
        error[drop-oldest-packets]: `drop_oldest` would drop packets, and every picture up to the next keyframe with them
         --> test.toml:6:12
          |
        6 | overflow = "drop_oldest"
          |            ^^^^^^^^^^^^^
          |
          = hint: write `overflow = "drop_gop"`, which drops whole groups of pictures
        "#);
        let on_the_source =
            format!("{CAMERA}overflow = \"drop_oldest\"\n[sinks.disk]\ntype = \"recorder\"\ninputs = [\"cam\"]\n");
        insta::assert_snapshot!(rendered(&on_the_source), @r#"
        error[drop-oldest-packets]: `drop_oldest` would drop packets, and every picture up to the next keyframe with them
         --> test.toml:3:12
          |
        3 | overflow = "drop_oldest"
          |            ^^^^^^^^^^^^^
          |
          = hint: write `overflow = "drop_gop"`, which drops whole groups of pictures
        "#);
        assert!(found(&on_the_sink.replace("drop_oldest", "drop_gop")).is_empty());
    }

    #[test]
    fn a_live_packet_tap_drops_groups_and_a_frame_tap_the_oldest() {
        let text = format!(
            "{CAMERA}[sinks.disk]\ntype = \"recorder\"\ninputs = [\"cam\"]\n[sinks.screen]\ntype = \"screen\"\ninputs = [\"cam\"]\n"
        );
        let checked = check("test", text.as_bytes(), &[], &surroundings());
        let plan = build_plan(&checked.graph.unwrap(), PlanOptions { workers: None, pool_threads: None, cores: 17 });
        let taps: Vec<_> = plan.taps.iter().map(|tap| (tap.kind, tap.overflow)).collect();
        assert_eq!(taps, [(Kind::Packet, Overflow::DropGop), (Kind::Frame, Overflow::DropOldest)]);
        assert_eq!((plan.workers, plan.pool_threads), (2, 17));
    }

    #[test]
    fn a_chain_as_long_as_a_file_can_hold_is_no_trouble() {
        let mut text = CAMERA.to_owned();
        for n in 0..10_000 {
            let input = if n == 0 { "cam".to_owned() } else { format!("n{}", n - 1) };
            text.push_str(&format!("[operators.n{n}]\ntype=\"sample\"\nfps=1\ninputs=[\"{input}\"]\n"));
        }
        text.push_str("[sinks.s]\ntype = \"screen\"\ninputs = [\"n9999\"]\n");
        assert_eq!(found(&text), [""; 0]);
        let looped = text.replace("inputs=[\"cam\"]", "inputs=[\"n9999\"]");
        assert_eq!(found(&looped), ["unused-node", "cycle"]);
    }

    #[test]
    fn kinds_pass_through_what_passes_them_on() {
        let text = format!(
            "{CAMERA}[operators.few]\ntype = \"sample\"\nfps = 1\ninputs = [\"cam\"]\n[sinks.disk]\ntype = \"recorder\"\ninputs = [\"few\"]\n"
        );
        assert_eq!(found(&text), ["wrong-kind"]);
    }

    #[test]
    fn a_broken_node_says_nothing_of_its_neighbours() {
        let text = "[sources.cam]\ntype = \"camrea\"\n[operators.few]\ntype = \"sample\"\nfps = 1\ninputs = [\"cam\"]\n[sinks.s]\ntype = \"screen\"\ninputs = [\"few\"]\n";
        assert_eq!(found(text), ["unknown-type"]);
    }

    fn found_by_operators(text: &str) -> Vec<String> {
        let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
        let checked = check("test", text.as_bytes(), &[], &surroundings);
        let place = |diagnostic: &Diagnostic| diagnostic.span.clone().map_or("", |span| &text[span]).to_owned();
        checked.diagnostics.iter().map(|found| format!("{} {}", found.code.text(), place(found))).collect()
    }

    #[test]
    fn streams_are_named_as_their_type_names_them() {
        let text = "[sources.a]\ntype = \"synthetic\"\n[sources.b]\ntype = \"synthetic\"\n\
            [sinks.x]\ntype = \"blackhole\"\ninputs = [\"a\", \"b\"]\n";
        let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
        let checked = check("test", text.as_bytes(), &[], &surroundings);
        let hint = checked.diagnostics[0].hint.as_deref();
        assert_eq!(hint, Some("give one of them another id: `streams = [\"ID\"]`"));
    }

    #[test]
    fn a_reference_to_nothing_hides_no_mistake_elsewhere() {
        let text = "[sources.s]\ntype = \"file\"\npath = \"${vidio}\"\n\
            [operators.d]\ntype = \"sample\"\ninputs = [\"s\"]\nfps = 2\nevery = \"1s\"\n\
            [operators.c]\ntype = \"detect\"\ninputs = [\"d\"]\nmodel = \"yolox_nanoo\"\n\
            [sinks.x]\ntype = \"file\"\ninputs = [\"c\"]\npath = \"-\"\n";
        assert_eq!(
            found_by_operators(text),
            ["unknown-variable ${vidio}", "invalid-node \"1s\"", "unknown-model \"yolox_nanoo\""]
        );
    }

    #[test]
    fn a_mistake_in_one_field_hides_none_in_another() {
        let graph = |fields: &str| {
            format!(
                "[sources.s]\ntype = \"synthetic\"\n[operators.c]\ninputs = [\"s\"]\n{fields}\n\
                 [sinks.x]\ntype = \"blackhole\"\ninputs = [\"c\"]\n"
            )
        };
        let text = graph("type = \"detect\"\nmodel = \"shapez\"\nthreshold = 1.5");
        assert_eq!(found_by_operators(&text), ["unknown-model \"shapez\"", "out-of-range 1.5"]);
        let text = graph("type = \"preprocess\"\nwidth = 0\nheight = 8");
        assert_eq!(found_by_operators(&text), ["out-of-range 0"], "that there is no width is no second mistake");
        let text = graph("type = \"preprocess\"\nwidth = 8\nheight = 8\nresize = \"letterbocks\"\npad = 3\nstd = [1]");
        assert_eq!(found_by_operators(&text), ["bad-choice \"letterbocks\"", "invalid-node [1]"]);
    }

    #[test]
    fn what_a_parameter_stands_for_in_vain_is_said_once() {
        let text = "[params]\na = \"${env.GONE}\"\n[sources.s]\ntype = \"synthetic\"\nseed = \"${a}\"\n\
            [sinks.x]\ntype = \"blackhole\"\ninputs = [\"s\"]\n";
        assert_eq!(found_by_operators(text), ["unset-environment ${env.GONE}"]);
        let set = Setting { name: "a".to_owned(), value: "x".to_owned() };
        let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
        let checked = check("test", text.as_bytes(), &[set], &surroundings);
        let codes: Vec<Code> = checked.diagnostics.iter().map(|found| found.code).collect();
        assert_eq!(codes, [Code::UnsetEnvironment, Code::WrongValueType], "what was set is checked");
    }

    #[test]
    fn a_typing_error_in_the_table_of_a_stream_is_found() {
        let graph =
            |source: &str| format!("[sources.s]\n{source}\n[sinks.x]\ntype = \"blackhole\"\ninputs = [\"s\"]\n");
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("a.mp4");
        std::fs::write(&video, "x").unwrap();
        let text = graph(&format!(
            "type = \"file\"\nstreams.a = {{ path = \"{}\", lop = true }}\nstreams.b = {{ loop = true }}",
            video.display()
        ));
        assert_eq!(found_by_operators(&text), ["unknown-field lop", "missing-field loop"]);
        let text = graph(
            "type = \"rtsp\"\nstreams.a = { url = \"rtsp://a\", transprot = \"udp\" }\n\
             streams.b = { url = \"rtsp://b\", transport = \"udp\", read_timeout = \"3s\", skip = false }",
        );
        assert_eq!(found_by_operators(&text), ["unknown-field transprot"]);
        let text = graph("type = \"url\"\nstreams.a = { url = \"srt://a:1\", transport = \"udp\" }");
        assert_eq!(found_by_operators(&text), ["unknown-field transport"]);
    }

    #[test]
    fn the_largest_stream_decides_whether_a_budget_holds_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let clip = |name: &str, width: usize, height: usize| {
            let path = folder.path().join(name);
            let mut bytes = format!("YUV4MPEG2 W{width} H{height} F25:1 C420jpeg\nFRAME\n").into_bytes();
            bytes.resize(bytes.len() + width * height * 3 / 2, 16);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let (small, large) = (clip("small.y4m", 64, 48), clip("large.y4m", 1280, 720));
        for (a, b) in [(&small, &large), (&large, &small)] {
            let text = format!(
                "[sources.s]\ntype = \"file\"\nstreams.a = \"{a}\"\nstreams.b = \"{b}\"\n\
                 budget = {{ bytes = \"256KiB\" }}\n[sinks.x]\ntype = \"blackhole\"\ninputs = [\"s\"]\n"
            );
            assert_eq!(found_by_operators(&text), ["budget-too-small \"256KiB\""]);
            let roomy = text.replace("256KiB", "24MiB");
            let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
            let graph = check("test", roomy.as_bytes(), &[], &surroundings).graph.unwrap();
            let plan = build_plan(&graph, PlanOptions { workers: None, pool_threads: None, cores: 2 });
            let memory = plan.memory();
            let each = |what: &str| memory.terms.iter().find(|term| term.what.contains(what)).unwrap().each;
            assert_eq!(each("behind the tap"), 24 << 20, "a stream may grow: all that its budget allows");
            assert!(each("between decoder and taps") >= 1280 * 720 * 3 / 2);
        }
    }

    const VALID: &str = "[params]\nrate = 2\n[sources.cam]\ntype = \"camera\"\nbudget = { items = 3, bytes = \"64MiB\" }\n[operators.few]\ntype = \"sample\"\nfps = \"${rate}\"\ninputs = [\"cam\"]\n[sinks.screen]\ntype = \"screen\"\ninputs = [\"few\"]\noverflow = \"drop_oldest\"\non_error = \"stop\"\n[[test]]\nname = \"x\"\nnode = \"few\"\ncount = { at_least = 1 }\ninput.cam = { type = \"camera\" }\n";

    #[test]
    fn each_of_very_many_mistakes_is_found_once() {
        let count = 20_000;
        let mut text =
            "[sources.cam]\ntype = \"camera\"\n[sinks.out]\ntype = \"screen\"\ninputs = [\"cam\"]\n".to_owned();
        for number in 0..count {
            text.push_str(&format!("wrong_{number} = {number}\n"));
        }
        // With a look at each mistake for each field, this alone takes longer than all other tests together.
        let found = found(&text);
        assert_eq!(found.len(), count);
        assert!(found.iter().all(|code| *code == "unknown-field"));
    }

    #[test]
    fn the_graph_that_is_mutated_is_valid() {
        assert_eq!(found(VALID), [""; 0]);
    }

    fn survives(bytes: &[u8]) {
        let checked = check("test", bytes, &[], &surroundings());
        let text = String::from_utf8_lossy(bytes);
        for diagnostic in &checked.diagnostics {
            assert!(diagnostic.render("test.toml", &text, false).contains(diagnostic.code.text()));
        }
        let told = listed_json("test.toml", &text, &checked.diagnostics);
        assert!(told["diagnostics"].as_array().unwrap().len() <= checked.diagnostics.len());
        for case in tests(bytes, &surroundings()).unwrap_or_default() {
            check_test("test", bytes, &case, &[], &surroundings());
        }
        if let Some(graph) = checked.graph {
            let plan = build_plan(&graph, PlanOptions { workers: None, pool_threads: None, cores: 2 });
            assert!(!plan.sinks.is_empty());
            super::super::explain::explain(&plan, &graph.secrets).text();
        }
    }

    #[test]
    fn fuzzed_bytes_never_panic() {
        bolero::check!().with_iterations(2000).with_max_len(512).for_each(survives);
    }

    proptest::proptest! {
        #[test]
        fn mutated_graphs_never_panic(
            cuts in proptest::collection::vec((0usize..VALID.len(), 0usize..12, "[\\[\\]a-z\"\\.=\\$\\{\\}0-9\n ]{0,6}"), 1..5),
        ) {
            let mut bytes = VALID.as_bytes().to_vec();
            for (at, length, insert) in cuts {
                let at = at.min(bytes.len());
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, insert.bytes());
            }
            survives(&bytes);
        }

        #[test]
        fn lines_in_another_order_never_panic(order in proptest::collection::vec(0usize..20, 1..30)) {
            let lines: Vec<&str> = VALID.lines().collect();
            let text: Vec<&str> = order.into_iter().map(|line| lines[line % lines.len()]).collect();
            survives(text.join("\n").as_bytes());
        }
    }

    #[test]
    fn the_registry_of_these_tests_has_no_type_twice() {
        for (index, one) in REGISTRY.iter().enumerate() {
            assert!(REGISTRY[..index].iter().all(|other| (other.role, other.name) != (one.role, one.name)));
        }
    }
}
