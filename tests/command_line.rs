//! What the command line says of itself, and how it answers mistakes.

use support::{command, repository};

fn answer(arguments: &[&str]) -> String {
    let output = command(arguments).current_dir(repository().join("tests/graphs")).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let code = output.status.code().expect("no signal");
    format!("exit code: {code}\n----- stdout -----\n{}----- stderr -----\n{}", text(output.stdout), text(output.stderr))
}

#[test]
fn help() {
    insta::assert_snapshot!("help", answer(&["--help"]));
    let commands = commands();
    assert!(commands.len() >= 15, "{commands:?}");
    for command in commands {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let answer = answer(&arguments);
        assert!(answer.starts_with("exit code: 0\n"), "{answer}");
        insta::assert_snapshot!(command.replace(' ', "-"), answer);
    }
}

/// The commands that `engine --help` names, those of a command after it: `models`, `models pull`.
fn commands() -> Vec<String> {
    let mut all = Vec::new();
    for command in commands_below(&[]) {
        // Only a command that is a group lists commands of its own.
        all.extend(commands_below(&[&command]).iter().map(|below| format!("{command} {below}")));
        all.push(command);
    }
    all
}

fn commands_below(group: &[&str]) -> Vec<String> {
    let output = command(&[group, &["--help"]].concat()).output().expect("it runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with(' '));
    // Further lines of a summary are indented deeper.
    let listed = listed.filter(|line| !line.starts_with("   "));
    let names = listed.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn usage_errors() {
    let wrong: [(&str, &[&str]); 31] = [
        ("set-for-a-folder", &["run", "mistakes", "--set", "threshold=1"]),
        ("nothing", &[]),
        ("unknown-command", &["rnu", "plain.toml"]),
        ("run-without-file", &["run"]),
        ("unknown-option", &["run", "plain.toml", "--worker", "2"]),
        ("no-such-file", &["run", "no-such.toml"]),
        ("a-folder", &["plan", "mistakes"]),
        ("no-time", &["run", "plain.toml", "--for", "soon"]),
        ("no-workers", &["run", "plain.toml", "--workers", "0"]),
        ("no-format", &["run", "plain.toml", "--log-format", "xml"]),
        ("no-value", &["run", "plain.toml", "--set", "rate"]),
        ("check-without-file", &["check"]),
        ("plan-without-file", &["plan"]),
        ("plan-no-format", &["plan", "plain.toml", "--format", "svg"]),
        ("plan-no-such-file", &["plan", "no-such.toml"]),
        ("bench-without-file", &["bench"]),
        ("bench-no-such-file", &["bench", "no-such.toml"]),
        ("test-without-file", &["test"]),
        ("test-no-such-file", &["test", "no-such.toml"]),
        ("list-no-such-type", &["list", "detct"]),
        ("top-no-address", &["top", "ftp://127.0.0.1"]),
        ("metrics-no-format", &["run", "plain.toml", "--metrics", "statsd"]),
        ("metrics-interval-too-short", &["run", "plain.toml", "--metrics", "emf", "--metrics-interval", "1ms"]),
        ("completions-no-shell", &["completions", "cmd"]),
        ("predict-no-bytes", &["run", "plain.toml", "--predict-max-bytes", "0"]),
        ("predict-no-size", &["run", "plain.toml", "--predict-max-bytes", "many"]),
        ("predict-no-pixels", &["run", "plain.toml", "--predict-max-pixels", "0"]),
        ("probe-without-url", &["probe"]),
        ("probe-no-time", &["probe", "no-such.mp4", "--watch", "0s"]),
        ("models-inspect-without-file", &["models", "inspect"]),
        ("models-bench-no-threads", &["models", "bench", "shapes", "--threads", "0"]),
    ];
    for (name, arguments) in wrong {
        let answer = answer(arguments);
        assert!(answer.starts_with("exit code: 2\n"), "{arguments:?}: {answer}");
        insta::assert_snapshot!(name, answer);
    }
}

#[test]
fn mistakes_that_are_none_of_the_command_line() {
    let wrong: [(&str, &[&str]); 9] = [
        ("mistakes-in-the-graph", &["run", "mistakes/unknown-field/a.toml"]),
        ("no-address", &["run", "plain.toml", "--listen", "nowhere"]),
        ("no-log-level", &["run", "plain.toml", "--log", "loud=very"]),
        ("test-without-tests", &["test", "plain.toml"]),
        ("man-no-folder", &["man", "--out", "plain.toml/man1"]),
        ("no-such-parameter", &["run", "plain.toml", "--set", "rate=fast"]),
        ("probe-no-such-file", &["probe", "no-such.mp4"]),
        ("probe-no-port", &["probe", "rtsp://admin:se/cret@127.0.0.1/main"]),
        ("models-inspect-no-such-file", &["models", "inspect", "no-such.onnx"]),
    ];
    for (name, arguments) in wrong {
        let answer = answer(arguments);
        assert!(answer.starts_with("exit code: 1\n"), "{arguments:?}: {answer}");
        insta::assert_snapshot!(name, answer);
    }
}

/// What nobody could write was not done.
#[test]
fn a_full_disk_is_a_failure() {
    for arguments in [&["completions", "bash"][..], &["man"], &["list"], &["plan", "plain.toml"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("the system has it");
        let mut command = command(arguments);
        command.current_dir(repository().join("tests/graphs")).stdout(full);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("error: cannot write to the standard output: No space left"), "{arguments:?}: {said}");
    }
}

/// What `bash` offers behind `line`, of which the last word is empty.
fn offered(script: &std::path::Path, line: &[&str]) -> Vec<String> {
    const ASK: &str = ". \"$1\"; shift; COMP_WORDS=(\"$@\" ''); COMP_CWORD=$#; _engine engine '' \"${@: -1}\"; \
                       printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = std::process::Command::new("bash");
    let output =
        bash.args(["-c", ASK, "bash"]).arg(script).arg("engine").args(line).output().expect("bash is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn bash_offers_the_commands_of_each_group() {
    let script = command(&["completions", "bash"]).output().expect("it runs").stdout;
    let folder = support::Folder::with_graph("");
    let file = folder.file("completions");
    std::fs::write(&file, script).expect("written");
    for group in [&[][..], &["models"]] {
        let offered = offered(&file, group);
        for command in commands_below(group) {
            assert!(offered.contains(&command), "`{command}` of {group:?} is not among {offered:?}");
        }
        assert_eq!(offered.contains(&"pull".to_owned()), group == ["models"], "{offered:?}");
    }
}

/// `bash -n` reads the script without running it, where there is a bash.
#[test]
fn completions_for_every_shell_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = command(&["completions", shell]).output().expect("it runs");
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).expect("text");
        for command in commands() {
            let name = command.rsplit(' ').next().expect("a word");
            assert!(script.contains(name), "{shell} does not complete {command}");
        }
        assert!(script.contains("no-skip"), "{shell} does not complete options");
        if shell == "bash" {
            let folder = support::Folder::with_graph("");
            std::fs::write(folder.file("completions"), &script).expect("written");
            let read = std::process::Command::new("bash").arg("-n").arg(folder.file("completions")).status();
            assert!(read.expect("bash is installed").success());
        }
    }
}

#[test]
fn a_manual_page_for_every_command() {
    let output = command(&["man"]).output().expect("it runs");
    let page = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && page.contains(".TH engine 1"), "{page}");

    let folder = support::Folder::with_graph("");
    let out = folder.file("share/man1");
    let output = command(&["man", "--out", out.to_str().expect("text")]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut pages: Vec<String> = std::fs::read_dir(&out)
        .expect("it was made")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    pages.sort();
    let mut expected: Vec<String> =
        commands().iter().map(|command| format!("engine-{}.1", command.replace(' ', "-"))).collect();
    expected.push("engine.1".to_owned());
    expected.sort();
    assert_eq!(pages, expected);
    let page = std::fs::read_to_string(out.join("engine-test.1")).expect("text");
    assert!(page.contains("\\-\\-filter") && page.contains("Exit status"), "{page}");
}
