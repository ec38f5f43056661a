//! `--config engine.toml` and its flags: how the process listens, who may use it, and what texts that come over HTTP may
//! name. A graph file says none of this.
//!
//! What a flag says wins over what the file says; a list that is given by flags takes the place of the file's list.

use std::path::{Path, PathBuf};
use std::time::Duration;

use operators::config;
use operators::error::StartError;
use operators::reach::{HostPattern, Hosts};
use serde::Deserialize;

use crate::control::ControlConfig;
use crate::control::guard::Access;
use crate::control::keys::{Key, Role};
use crate::control::rate::Rate;
use crate::control::tls::TlsFiles;
use crate::graph::references::References;

/// What the process is told beside its graphs.
#[derive(Clone, Default, clap::Args)]
pub struct ProcessArguments {
    /// Process settings: address, keys, limits, certificate, and what texts that come over HTTP may name
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve results, statistics and health; port 0 takes a free one [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Listen beyond this machine without keys, and be called by any name: whoever reaches the address may do everything
    #[arg(long)]
    insecure: bool,
    /// Serve HTTPS with this certificate (PEM, with those that lead to its authority); read anew when the file changes
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Requests of each key, or of each address where there are no keys, such as 100/s or 600/m
    #[arg(long, value_name = "RATE")]
    rate_limit: Option<Rate>,
    /// The origin whose pages may read answers, such as https://example.org; * for any, none for none [default: *]
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Option<String>,
    /// Lets graphs that come over HTTP name this environment variable; NAME* stands for all that begin so. May be given
    /// several times
    #[arg(long = "allow-env", value_name = "NAME", value_delimiter = ',')]
    allow_env: Vec<String>,
    /// Lets graphs that come over HTTP read and write this file, or the files in this folder. May be given several times
    #[arg(long = "allow-path", value_name = "PATH")]
    allow_path: Vec<PathBuf>,
    /// Lets graphs that come over HTTP name this host: a name, *.example.org for all below it, a network such as
    /// 10.0.0.0/8, or * for any. May be given several times
    #[arg(long = "allow-host", value_name = "HOST", value_delimiter = ',')]
    allow_host: Vec<HostPattern>,
    /// Lets graphs that come over HTTP open the engine to the internet, by a tunnel of an hls sink
    #[arg(long)]
    allow_tunnel: bool,
}

/// The file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<String>,
    allow_origin: Option<String>,
    #[serde(default)]
    keys: Vec<KeyConfig>,
    #[serde(default)]
    limits: LimitsConfig,
    #[serde(default)]
    allow: AllowConfig,
    tls: Option<TlsConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyConfig {
    name: String,
    role: Role,
    sha256: String,
    rate: Option<Rate>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsConfig {
    rate: Option<Rate>,
    connections: Option<usize>,
    connections_each: Option<usize>,
    subscribers: Option<usize>,
    header_size: Option<config::Size>,
    header_time: Option<config::Duration>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowConfig {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    paths: Vec<PathBuf>,
    #[serde(default)]
    hosts: Vec<HostPattern>,
    #[serde(default)]
    tunnel: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsConfig {
    certificate: PathBuf,
    key: PathBuf,
}

/// What came of the file and the flags.
#[derive(Debug)]
pub struct ProcessSettings {
    pub control: ControlConfig,
    /// What texts that come over HTTP may name.
    pub references: References,
}

impl ProcessArguments {
    /// Reads the file and puts the flags over it.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn settings(&self) -> Result<ProcessSettings, StartError> {
        let file = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let wrong = |message: String| {
            let error = StartError::new(message);
            match &self.config {
                Some(path) => error.hint(format!("correct `{}`; docs/security.md has an example", path.display())),
                None => error,
            }
        };
        let mut keys: Vec<Key> = Vec::new();
        for KeyConfig { name, role, sha256, rate } in file.keys {
            let key = Key::new(&name, role, &sha256, rate).map_err(wrong)?;
            if keys.iter().any(|other| other.name == key.name || other.hash == key.hash) {
                return Err(wrong(format!("the key `{name}` is there twice")));
            }
            keys.push(key);
        }
        let defaults = ControlConfig::default();
        let limits = file.limits;
        let max_connections = limits.connections.unwrap_or(defaults.max_connections);
        // Some connections are left for those who ask how the engine is.
        let most_subscribers = max_connections.saturating_sub(max_connections.div_ceil(16)).max(1);
        let max_subscribers = limits.subscribers.unwrap_or(defaults.max_subscribers.min(most_subscribers));
        if max_connections < 2 || max_subscribers == 0 || max_subscribers >= max_connections {
            return Err(wrong(format!(
                "{max_connections} connections and {max_subscribers} subscribers cannot be: the connections have to be \
                 more than the subscribers, so that `/health` is answered"
            )));
        }
        if limits.connections_each == Some(0) {
            return Err(wrong("`connections_each` is 0: nobody could connect".to_owned()));
        }
        let header_timeout = limits.header_time.map_or(defaults.header_timeout, |time| time.0);
        if header_timeout.is_zero() || header_timeout > Duration::from_secs(3600) {
            return Err(wrong("`header_time` is out of range: write a time up to an hour, such as \"10s\"".to_owned()));
        }
        let max_header_bytes = limits.header_size.map_or(Ok(defaults.max_header_bytes), |size| match size.0 {
            bytes @ 8192..=1_048_576 => Ok(bytes as usize),
            _ => Err(wrong("`header_size` is out of range: write 8KiB to 1MiB".to_owned())),
        })?;
        let tls = match (self.tls_cert.clone(), self.tls_key.clone(), file.tls) {
            (Some(certificate), Some(key), _) => Some(TlsFiles { certificate, key }),
            (None, None, Some(TlsConfig { certificate, key })) => Some(TlsFiles { certificate, key }),
            (None, None, None) => None,
            (Some(certificate), None, Some(tls)) => Some(TlsFiles { certificate, key: tls.key }),
            (None, Some(key), Some(tls)) => Some(TlsFiles { certificate: tls.certificate, key }),
            (given, _, None) => {
                let (given, missing) =
                    if given.is_some() { ("--tls-cert", "--tls-key") } else { ("--tls-key", "--tls-cert") };
                let error = StartError::new(format!("`{given}` is given without `{missing}`"));
                return Err(error.hint("a certificate and its private key belong together"));
            }
        };
        let allow_origin = self.allow_origin.clone().or(file.allow_origin).or(defaults.allow_origin.clone());
        let references = References::Only {
            variables: either(&self.allow_env, file.allow.env),
            // What opens the engine, or says who may, is no graph's affair, wherever it lies.
            except: self.config.iter().cloned().chain(tls.iter().map(|tls| tls.key.clone())).collect(),
            paths: either(&self.allow_path, file.allow.paths),
            hosts: Hosts::Only(either(&self.allow_host, file.allow.hosts)),
            tunnel: self.allow_tunnel || file.allow.tunnel,
        };
        let rate = self.rate_limit.or(limits.rate);
        let control = ControlConfig {
            listen: self.listen.clone().or(file.listen).unwrap_or(defaults.listen.clone()),
            allow_origin: allow_origin.filter(|origin| origin != "none"),
            header_timeout,
            max_header_bytes,
            max_connections,
            max_connections_each: limits.connections_each,
            max_subscribers,
            access: Access { keys, rate, insecure: self.insecure },
            tls,
            ..defaults
        };
        Ok(ProcessSettings { control, references })
    }
}

/// The list of the flags, or else of the file.
fn either<T: Clone>(flags: &[T], file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags.to_vec() }
}

fn read(path: &Path) -> Result<File, StartError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
            _ => error.to_string(),
        };
        StartError::new(format!("`{shown}` cannot be read: {why}")).hint("name the file with `--config FILE`")
    })?;
    toml::from_str(&text).map_err(|error| {
        StartError::new(format!("`{shown}` is not understood: {}", error.to_string().trim_end()))
            .hint("docs/security.md has an example; graphs are in files of their own")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str, flags: &[&str]) -> Result<ProcessSettings, StartError> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            process: ProcessArguments,
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.toml");
        std::fs::write(&path, text).unwrap();
        let line = ["engine", "--config", path.to_str().unwrap()].into_iter().chain(flags.iter().copied());
        let line: Line = clap::Parser::try_parse_from(line).map_err(|error| StartError::new(error.to_string()))?;
        line.process.settings()
    }

    const WHOLE: &str = "listen = \"0.0.0.0:8443\"\nallow_origin = \"https://example.org\"\n\
        [[keys]]\nname = \"dashboard\"\nrole = \"read\"\nrate = \"10/s\"\n\
        sha256 = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"\n\
        [limits]\nrate = \"100/s\"\nconnections = 64\nheader_size = \"8KiB\"\nheader_time = \"5s\"\n\
        [allow]\nenv = [\"CAMERA_*\"]\npaths = [\"videos\"]\nhosts = [\"*.example.org\", \"10.0.0.0/8\"]\n\
        [tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"\n";

    #[test]
    fn the_file_says_how_the_process_listens() {
        let ProcessSettings { control, references } = settings(WHOLE, &[]).unwrap();
        assert_eq!(
            (control.listen.as_str(), control.allow_origin.as_deref()),
            ("0.0.0.0:8443", Some("https://example.org"))
        );
        assert_eq!((control.max_connections, control.max_subscribers, control.max_header_bytes), (64, 60, 8192));
        assert_eq!(control.header_timeout, Duration::from_secs(5));
        assert_eq!(control.access.rate, Some("100/s".parse().unwrap()));
        let [key] = &control.access.keys[..] else { panic!("one key") };
        assert_eq!((&*key.name, key.role, key.rate), ("dashboard", Role::Read, Some("10/s".parse().unwrap())));
        assert_eq!(control.tls.unwrap().key, Path::new("server.key"));
        assert!(references.allow_variable("CAMERA_USER") && !references.allow_variable("HOME"));
        assert!(references.allow_host("a.example.org") && references.allow_host("10.1.2.3"));
        assert!(!references.allow_host("11.1.2.3") && !references.allow_tunnel());
    }

    #[test]
    fn the_documented_file_is_sound_and_says_the_defaults() {
        let ProcessSettings { control, references } = settings(include_str!("../../docs/engine.toml"), &[]).unwrap();
        let defaults = ControlConfig::default();
        assert_eq!(control.access.keys.len(), 2);
        assert_eq!(
            (control.max_connections, control.max_subscribers, control.max_header_bytes, control.header_timeout),
            (defaults.max_connections, defaults.max_subscribers, defaults.max_header_bytes, defaults.header_timeout)
        );
        assert!(control.tls.is_some() && references.allow_host("camera.example.org"));
    }

    #[test]
    fn flags_win() {
        let flags =
            ["--listen", "127.0.0.1:0", "--allow-host", "one,two", "--rate-limit", "5/m", "--tls-key", "other.key"];
        let ProcessSettings { control, references } = settings(WHOLE, &flags).unwrap();
        assert_eq!((control.listen.as_str(), control.access.rate), ("127.0.0.1:0", Some("5/m".parse().unwrap())));
        let tls = control.tls.unwrap();
        assert_eq!((tls.certificate.to_str(), tls.key.to_str()), (Some("server.pem"), Some("other.key")));
        assert!(references.allow_host("two") && !references.allow_host("a.example.org"), "the list is another");
        assert!(references.allow_variable("CAMERA_USER"), "other lists stay");
        for (text, flags) in [("", &["--allow-tunnel"][..]), ("[allow]\ntunnel = true", &[])] {
            assert!(settings(text, flags).unwrap().references.allow_tunnel(), "{text} {flags:?}");
        }
        assert_eq!(settings("", &["--allow-origin", "none"]).unwrap().control.allow_origin, None);
        assert_eq!(settings("", &[]).unwrap().control, ControlConfig::default());
    }

    #[test]
    fn mistakes_say_what_to_write() {
        let key = "[[keys]]\nname = \"a\"\nrole = \"read\"\nsha256 = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"\n";
        for (text, flags, says) in [
            ("lisen = \"x\"", &[][..], "lisen"),
            ("[[keys]]\nname = \"a\"\nrole = \"admin\"\nsha256 = \"\"", &[], "admin"),
            (&format!("{key}{key}"), &[], "twice"),
            ("[[keys]]\nname = \"a\"\nrole = \"read\"\nsha256 = \"abc\"", &[], "engine key a"),
            ("[limits]\nrate = \"many\"", &[], "100/s"),
            ("[limits]\nconnections = 10\nsubscribers = 10", &[], "connections have to be more"),
            ("[limits]\nheader_size = \"1KiB\"", &[], "8KiB"),
            ("[limits]\nconnections_each = 0", &[], "connections_each"),
            ("[limits]\nheader_time = \"0s\"", &[], "header_time"),
            ("[allow]\nhosts = [\"10.0.0.0/99\"]", &[], "10.0.0.0/99"),
            ("", &["--tls-cert", "a.pem"], "`--tls-cert` is given without `--tls-key`"),
            ("", &["--tls-key", "a.key"], "`--tls-key` is given without `--tls-cert`"),
        ] {
            let error = settings(text, flags).map(|_| ()).unwrap_err();
            assert!(error.message.contains(says) && error.hint.is_some(), "{text} {flags:?}: {error} {:?}", error.hint);
        }
    }
}
