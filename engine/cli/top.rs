//! `engine top`: watches a running engine from a terminal, by its HTTP interface.

mod screen;
mod statistics;

use std::io::{self, IsTerminal};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use operators::address::masked;
use operators::config::parse_duration;
use operators::error::StartError;
use operators::inference::download::trusted;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::SUCCESS;
use super::input;
use super::run::failed;
use screen::{Screen, Sort};
use statistics::Statistics;

/// Shows a running engine: what limits each graph, its streams and nodes, their rates, queues, ages and drops
///
/// Rates and shares are of the last five seconds. Keys: up, down, page up, page down scroll; s sorts streams by another
/// column; q ends. Where the standard output is no terminal, one frame is printed as text.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine top
  engine top http://10.0.0.5:8000 --interval 5s
  ENGINE_KEY=$(cat key) engine top https://engine.example:8443
  engine top --once | grep -A1 'graph `door`'

Exit status: 0, 1 when no engine answers, 2 for a wrong command line.")]
pub struct Arguments {
    /// Where the engine listens; https is trusted by the roots that are compiled in, or those in SSL_CERT_FILE
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8000", value_parser = address)]
    url: String,
    /// A key of the engine, where it asks for one; better in the environment than where others see it
    #[arg(long, env = "ENGINE_KEY", value_name = "KEY", hide_env_values = true, value_parser = sendable)]
    key: Option<String>,
    /// Print one frame as text and end
    #[arg(long)]
    once: bool,
    /// Time between two looks
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "1s")]
    interval: Duration,
    /// What to sort streams by
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let page = match Page::new(&arguments.url, arguments.key.clone()) {
        Ok(page) => page,
        Err(error) => return failed(&error),
    };
    let first = match page.read() {
        Ok(statistics) => statistics,
        Err(error) => return failed(&error),
    };
    if arguments.once || !io::stdout().is_terminal() {
        let mut screen = Screen::new(page.shown(), arguments.sort);
        screen.saw(Ok(first));
        input::print(&screen.text(columns()));
        return SUCCESS;
    }
    match watch(page, first, arguments) {
        Ok(()) => SUCCESS,
        Err(error) => {
            let error = StartError::new(format!("cannot draw on this terminal: {error}"));
            failed(&error.hint("`engine top --once` prints one frame as text"))
        }
    }
}

/// A bare `host:port` is taken for one of HTTP.
fn address(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: ureq::http::Uri = url.parse().map_err(|error| format!("{error}; write it as http://127.0.0.1:8000"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(url.trim_end_matches('/').to_owned()),
        _ => Err("an engine listens to HTTP; write it as http://127.0.0.1:8000".to_owned()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time < Duration::from_millis(100) => Err("write a time of at least 100ms, such as 1s".to_owned()),
        time => Ok(time),
    }
}

/// How wide a frame is that is printed as text.
fn columns() -> u16 {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .filter(|columns| *columns >= 40)
        .unwrap_or(100)
}

/// The longest that an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can stand in a header.
fn sendable(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_plain { Ok(text.to_owned()) } else { Err("`engine key` prints keys that can be sent".to_owned()) }
}

/// Where statistics are read.
struct Page {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
}

impl Page {
    fn new(url: &str, key: Option<String>) -> Result<Page, StartError> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A key goes to nobody but the one it was meant for.
            .max_redirects(0)
            .tls_config(trusted(url)?)
            .timeout_global(Some(PATIENCE));
        Ok(Page { agent: config.build().new_agent(), url: url.to_owned(), key })
    }

    /// The address as everybody may see it.
    fn shown(&self) -> String {
        masked(&self.url)
    }

    fn read(&self) -> Result<Statistics, StartError> {
        let shown = self.shown();
        let silent = |why: String| {
            StartError::new(format!("no engine answers at {shown}: {why}"))
                .hint("start one with `engine run GRAPH`, or say where it listens: `engine top http://HOST:PORT`")
        };
        let strange = |what: String| {
            StartError::new(format!("what answers at {shown} is no engine: {what}"))
                .hint("`engine run` logs the address that it listens at")
        };
        let mut request = self.agent.get(format!("{}/stats", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = request.call().map_err(|error| silent(cause(&error)))?;
        let text = answer.body_mut().read_to_string().map_err(|error| silent(cause(&error)))?;
        if answer.status().as_u16() == 401 {
            let what = if self.key.is_some() { "does not know this key" } else { "asks for a key" };
            let hint = "set ENGINE_KEY to a key that the engine knows; `engine key NAME` makes one";
            return Err(StartError::new(format!("the engine at {shown} {what}")).hint(hint));
        }
        if answer.status().as_u16() == 429 {
            let hint = "look more rarely, with `--interval`; the engine's `rate` says how often a key may ask";
            return Err(StartError::new(format!("the engine at {shown} is asked too often")).hint(hint));
        }
        if !answer.status().is_success() {
            return Err(strange(format!("`/stats` is answered with status {}", answer.status().as_u16())));
        }
        serde_json::from_str(&text).map_err(|error| strange(format!("`/stats` does not say what it should: {error}")))
    }
}

/// What the system said, without the number that nobody reads.
fn cause(error: &ureq::Error) -> String {
    let text = match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

/// Between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(100);

type Seen = Result<Statistics, StartError>;

/// Draws until somebody ends it.
fn watch(page: Page, first: Statistics, arguments: &Arguments) -> io::Result<()> {
    let mut screen = Screen::new(page.shown(), arguments.sort);
    screen.saw(Ok(first));
    // Looking may take as long as the network does; the keyboard must not wait for it.
    let (sender, seen) = bounded::<Seen>(1);
    let (_alive, gone) = bounded::<()>(0);
    let interval = arguments.interval;
    std::thread::Builder::new().name("look".to_owned()).spawn(move || look(&page, interval, &sender, &gone))?;
    let mut terminal = ratatui::try_init()?;
    let outcome = loop {
        if let Ok(statistics) = seen.try_recv() {
            screen.saw(statistics);
        }
        if let Err(error) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(error);
        }
        match key(&mut screen) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ratatui::try_restore()?;
    outcome
}

fn look(page: &Page, interval: Duration, sender: &Sender<Seen>, gone: &Receiver<()>) {
    while gone.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        if sender.send(page.read()).is_err() {
            return;
        }
    }
}

/// Waits for a key, not for long, and does what it says; `false` for the end.
fn key(screen: &mut Screen) -> io::Result<bool> {
    if !event::poll(KEYS)? {
        return Ok(true);
    }
    let Event::Key(key) = event::read()? else { return Ok(true) };
    if key.kind == KeyEventKind::Release {
        return Ok(true);
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Ok(false),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(false),
        KeyCode::Char('s') => screen.sort_by_next(),
        KeyCode::Down => screen.scroll(1),
        KeyCode::Up => screen.scroll(-1),
        KeyCode::PageDown => screen.scroll(10),
        KeyCode::PageUp => screen.scroll(-10),
        KeyCode::Home => screen.scroll(i32::MIN),
        _ => {}
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_out_what_is_always_the_same() {
        assert_eq!(address("127.0.0.1:9000/"), Ok("http://127.0.0.1:9000".to_owned()));
        assert_eq!(address("https://engine.example"), Ok("https://engine.example".to_owned()));
        for wrong in ["ftp://127.0.0.1", "http://", "a b"] {
            assert!(address(wrong).unwrap_err().contains("http://127.0.0.1:8000"), "{wrong}");
        }
    }
}
