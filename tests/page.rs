//! The page at `/` in a real browser, Chromium: streams, results and pictures come, nothing is asked of anybody else,
//! and foreign text stays text.
//!
//! `script/setup --tests` installs what this needs. Without it these tests are skipped with a word, or fail where
//! `ENGINE_REQUIRE_BROWSER` is 1.

use serde_json::Value;
use support::browser::Browser;
use support::{Folder, command, repository, run_graph, run_graph_at};

const CARD: &str = "document.querySelector('article.card[data-stream=\"synthetic\"]')";

#[test]
fn streams_results_and_pictures_appear_and_nothing_leaves_the_machine() {
    let Some(mut browser) = Browser::start() else { return };
    let mut engine = run_graph(&repository().join("graphs/quickstart.toml"), &["--stay"], |_| {});
    let address = engine.address();
    engine.wait_for_graph("results", |graph| graph["total"]["delivered"].as_u64() > Some(2));
    browser.open(&address);

    browser.wait(&format!("{CARD}?.querySelector('.state')?.textContent === 'running'"));
    browser.wait("document.getElementById('connection').textContent === 'Live'");
    browser.wait("document.querySelectorAll('#list li[data-kind=\"detection\"]').length >= 5");
    let result = browser.wait("document.querySelector('#list .what').textContent");
    let result = result.as_str().expect("text");
    assert!(["circle", "square", "triangle"].iter().any(|shape| result.contains(shape)), "{result}");

    // The picture, and the boxes of that very picture: five a second are looked at, so none has to be borrowed.
    browser.wait(&format!("{CARD}.querySelector('img').naturalWidth === 640"));
    browser.wait(&format!("{CARD}.querySelectorAll('svg g:not(.near) rect').length > 0"));
    let labels = browser.wait(&format!("[...{CARD}.querySelectorAll('svg text')].map((text) => text.textContent)"));
    let labels = labels.as_array().expect("a list");
    let is_label = |label: &Value| label.as_str().is_some_and(|text| text.starts_with(['c', 's', 't']));
    assert!(!labels.is_empty() && labels.iter().all(is_label), "{labels:?}");
    let first = browser.wait(&format!("{CARD}.querySelector('img').src"));
    browser.wait(&format!("{CARD}.querySelector('img').src !== {first}"));

    // By keyboard alone: past the link and the switch of pictures, to the stream.
    for _ in 0..3 {
        browser.press("Tab");
    }
    browser.wait(&format!("document.activeElement === {CARD}.querySelector('h3 button')"));
    browser.press("Enter");
    browser.wait("document.getElementById('results-title').textContent === 'Results of synthetic'");
    browser.press("Enter");
    browser.wait("document.getElementById('results-title').textContent === 'Results'");

    for (name, width, height, scheme) in
        [("page-light", 1280, 800, "light"), ("page-dark", 1280, 800, "dark"), ("page-phone", 390, 844, "dark")]
    {
        let path = browser.look(name, width, height, scheme);
        assert!(std::fs::metadata(path).expect("a screenshot").len() > 10_000);
        browser.wait("document.documentElement.scrollWidth <= window.innerWidth");
    }

    let (requests, complaints) = browser.seen();
    assert_eq!(complaints, [""; 0]);
    for part in ["/page.js", "/page.css", "/stats", "/events", "/preview?graph=quickstart&stream=synthetic"] {
        assert!(requests.iter().any(|url| url.starts_with(&format!("{address}{part}"))), "{part}: {requests:?}");
    }
    let own = |url: &String| url.starts_with(&format!("{address}/")) || url.starts_with(&format!("blob:{address}/"));
    let foreign: Vec<_> = requests.iter().filter(|url| !own(url)).collect();
    assert_eq!(foreign, [""; 0]);
    engine.terminate().expect(0);
}

#[test]
fn a_hostile_label_is_shown_as_text() {
    let Some(mut browser) = Browser::start() else { return };
    let hostile = "<img src=x onerror='window.hostile = 1'>";
    let folder = Folder::with_graph(
        r#"
        [sources.scene]
        type = "synthetic"
        seed = 3
        fps = 5

        [operators.shapes]
        type = "detect"
        inputs = ["scene"]
        model = "hostile"

        [sinks.events]
        type = "sse"
        inputs = ["shapes"]
        "#,
    );
    let models = repository().join("models");
    let manifest = std::fs::read_to_string(models.join("shapes.toml")).expect("the manifest");
    let quoted = format!("[{0:?}, {0:?}, {0:?}]", hostile);
    let changed = manifest.replace(r#"["circle", "square", "triangle"]"#, &quoted);
    assert_ne!(changed, manifest);
    std::fs::write(folder.file("hostile.toml"), changed).expect("written");
    std::fs::copy(models.join("shapes.onnx"), folder.file("shapes.onnx")).expect("copied");
    let path = folder.path().to_owned();
    let mut engine = folder.run_with(&[], |command| {
        command.env("ENGINE_MODELS", path);
    });
    browser.open(&engine.address());
    let shown = |part: &str| {
        format!("[...document.querySelectorAll({part:?})].some((part) => part.textContent.includes({hostile:?}))")
    };
    for part in ["svg text", "#list .what", ".latest"] {
        browser.wait(&shown(part));
    }
    browser.wait("document.querySelectorAll('#list img, .latest img').length === 0");
    browser.wait("window.hostile === undefined");
    let (_, complaints) = browser.seen();
    assert_eq!(complaints, [""; 0]);
    engine.terminate().expect(0);
}

#[test]
fn a_lost_connection_is_said_and_found_again() {
    let Some(mut browser) = Browser::start() else { return };
    let quickstart = repository().join("graphs/quickstart.toml");
    let mut engine = run_graph(&quickstart, &["--stay"], |_| {});
    let address = engine.address();
    browser.open(&address);
    browser.wait("document.querySelectorAll('#list li').length > 0");
    engine.terminate().expect(0);
    browser.wait("document.getElementById('lost').checkVisibility() && document.body.classList.contains('stale')");
    browser.wait("document.getElementById('connection').textContent === 'Connection lost'");
    browser.wait(&format!("{CARD} !== null"));

    let mut engine = run_graph_at(address.trim_start_matches("http://"), &quickstart, &["--stay"], |_| {});
    assert_eq!(engine.address(), address);
    browser.wait("document.getElementById('connection').textContent === 'Live'");
    browser.wait("!document.getElementById('lost').checkVisibility()");
    browser.wait("document.querySelector('#list li:first-child .what').textContent.length > 0");
    engine.terminate().expect(0);
}

#[test]
fn forty_streams_have_a_card_each_and_pictures_come() {
    let Some(mut browser) = Browser::start() else { return };
    let streams: Vec<String> = (0..40).map(|index| format!("camera-{index:02}")).collect();
    let folder = Folder::with_graph(&format!(
        "[sources.cameras]\ntype = 'synthetic'\nwidth = 160\nheight = 96\nfps = 2\nstreams = {streams:?}
        [operators.sum]\ntype = 'checksum'\ninputs = ['cameras']
        [sinks.events]\ntype = 'sse'\ninputs = ['sum']\n"
    ));
    let mut engine = folder.run(&[]);
    browser.open(&engine.address());
    browser.wait("document.querySelectorAll('article.card').length === 40");
    browser.wait(
        "[...document.querySelectorAll('.picture')].every((picture) => picture.card.state.textContent === 'running')",
    );
    // All that can be seen, and no others.
    browser.wait(
        "[...document.querySelectorAll('.picture')].filter((picture) => picture.card.isVisible)
            .every((picture) => picture.card.image.naturalWidth === 160)",
    );
    browser.wait("[...document.querySelectorAll('.picture')].some((picture) => picture.card.image.naturalWidth === 0)");
    browser.look("page-forty", 1280, 800, "light");
    let (_, complaints) = browser.seen();
    assert_eq!(complaints, [""; 0]);
    engine.terminate().expect(0);
}

#[test]
fn a_key_is_shown_in_a_form_and_the_routes_are_read_on_a_page() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 64\nheight = 48\nfps = 5\n[operators.sum]\ntype = 'checksum'\n\
         inputs = ['scene']\n[sinks.events]\ntype = 'sse'\ninputs = ['sum']\n",
    );
    let made = command(&["key", "reads"]).output().expect("it runs");
    std::fs::write(folder.file("engine.toml"), &made.stdout).expect("written");
    let key = String::from_utf8(made.stderr).expect("text").lines().next().expect("the key").to_owned();
    let mut engine = folder.run(&["--config", "engine.toml"]);
    let address = engine.address();
    let show = |key: &str| {
        format!(
            "(() => {{ document.getElementById('key').value = {key:?}; document.querySelector('form button').click(); \
             return true; }})()"
        )
    };
    assert_eq!(browser.command(&serde_json::json!({ "open": address })), 401);
    browser.wait(&show("engine_wrong"));
    browser.wait("document.querySelector('[role=alert]')?.textContent === 'this key is not known here'");
    browser.look("page-login-phone", 390, 844, "dark");
    browser.look("page-login", 1280, 800, "light");
    // Nothing lies over anything else.
    browser.wait(
        "[...document.querySelectorAll('input, button')].every((part) => {
            const { left, top, width, height } = part.getBoundingClientRect();
            return document.elementFromPoint(left + width / 2, top + height / 2) === part;
        })",
    );
    browser.wait(&show(&key));
    browser.wait("document.getElementById('connection')?.textContent === 'Live'");
    browser.wait("document.querySelectorAll('#list li[data-kind=\"checksum\"]').length > 0");
    browser.wait("document.querySelector('article.card img')?.naturalWidth === 64");

    let (_, before) = browser.seen();
    browser.open(&format!("{address}/docs"));
    browser.wait("document.querySelectorAll('main.docs section').length >= 20");
    browser.wait("document.getElementById('put/graphs/{name}').textContent.includes('If-Match')");
    browser.look("page-docs", 1280, 800, "dark");
    browser.look("page-docs-phone", 390, 844, "light");
    browser.wait("document.documentElement.scrollWidth <= window.innerWidth");
    let (requests, after) = browser.seen();
    assert_eq!(after[before.len()..], [""; 0]);
    let foreign: Vec<_> = requests.iter().filter(|url| !url.contains(&address)).collect();
    assert_eq!(foreign, [""; 0]);
    assert!(!requests.iter().any(|url| url.contains(&key)), "the key stands in no address");
    engine.terminate().expect(0);
}
