//! What a graph's text may name beyond itself: environment variables, files and hosts.
//!
//! Whoever may edit a file may as well read the environment and the files of the process, and reach what it reaches.
//! Whoever may send a text over HTTP may not: such a text names only what the process was told to allow.

use std::path::{Component, Path, PathBuf};

use operators::reach::Hosts;

/// The last part of a path that stands for the graph files of a folder.
pub const TOML_FILES: &str = "*.toml";

/// What a text may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum References {
    #[default]
    Anything,
    Only {
        /// Names of variables; one that ends in `*` stands for all that begin like it.
        variables: Vec<String>,
        /// Files, and folders with all that is in them.
        paths: Vec<PathBuf>,
        /// What is not allowed wherever it lies: files, and folders with all that is in them, or, where they end in
        /// [`TOML_FILES`], with the files of TOML that are right in them.
        except: Vec<PathBuf>,
        hosts: Hosts,
        /// Whether a tunnel to the internet may be asked for, which starts a program.
        tunnel: bool,
    },
}

impl References {
    /// Leaves paths out of what is allowed.
    pub fn except(&mut self, further: impl IntoIterator<Item = PathBuf>) {
        if let References::Only { except, .. } = self {
            except.extend(further);
        }
    }

    pub fn allow_variable(&self, name: &str) -> bool {
        let References::Only { variables, .. } = self else { return true };
        variables.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => allowed == name,
        })
    }

    /// Whether a file that is to be read, with its links followed, is one of the paths or below one of them. A file that
    /// is not there is none.
    pub fn allow_file(&self, path: &Path) -> bool {
        *self == References::Anything || (path.exists() && self.allow_path(path))
    }

    /// As [`References::allow_file`], of a file that need not be there yet.
    pub fn allow_path(&self, path: &Path) -> bool {
        let References::Only { paths, except, .. } = self else { return true };
        let Some(path) = whole(path) else { return false };
        let contains = |folder: &PathBuf| whole(folder).is_some_and(|folder| path.starts_with(folder));
        let is_one_of = |except: &PathBuf| match except.file_name() {
            Some(name) if name == TOML_FILES => {
                let folder = except.parent().and_then(whole);
                folder.as_deref() == path.parent() && path.extension().is_some_and(|extension| extension == "toml")
            }
            _ => contains(except),
        };
        paths.iter().any(contains) && !except.iter().any(is_one_of)
    }

    /// Whether a host may be named, as it stands in a URL.
    pub fn allow_host(&self, host: &str) -> bool {
        match self {
            References::Anything => true,
            References::Only { hosts, .. } => hosts.allow(host),
        }
    }

    /// Whether a tunnel to the internet may be asked for.
    pub fn allow_tunnel(&self) -> bool {
        match self {
            References::Anything => true,
            References::Only { tunnel, .. } => *tunnel,
        }
    }

    /// The hosts that may be named.
    pub fn hosts(&self) -> Hosts {
        match self {
            References::Anything => Hosts::Anything,
            References::Only { hosts, .. } => hosts.clone(),
        }
    }
}

/// Where a path leads, with links followed as far as it is there. What is not there yet will be plain folders, made when
/// it is written, so `..` behind them leads back to where they are made. `None` where a link leads nowhere: nobody knows
/// where what is written to it comes to lie.
fn whole(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            part => whole.push(part),
        }
        match whole.canonicalize() {
            Ok(there) => whole = there,
            Err(_) if whole.is_symlink() => return None,
            Err(_) => {}
        }
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(paths: Vec<PathBuf>) -> References {
        References::Only {
            variables: Vec::new(),
            paths,
            except: Vec::new(),
            hosts: Hosts::Only(Vec::new()),
            tunnel: false,
        }
    }

    #[test]
    fn variables_are_allowed_by_name_or_by_beginning() {
        assert!(References::Anything.allow_variable("HOME"));
        let some = References::Only {
            variables: vec!["CAMERA_*".into(), "SITE".into()],
            paths: Vec::new(),
            except: Vec::new(),
            hosts: Hosts::Anything,
            tunnel: false,
        };
        for (name, allowed) in
            [("CAMERA_USER", true), ("CAMERA_", true), ("SITE", true), ("SITE_KEY", false), ("HOME", false)]
        {
            assert_eq!(some.allow_variable(name), allowed, "{name}");
        }
    }

    #[test]
    fn files_are_allowed_where_they_really_are() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        std::fs::create_dir(at("keys")).unwrap();
        std::fs::write(at("keys/door"), "x").unwrap();
        std::fs::write(at("keys.txt"), "x").unwrap();
        std::os::unix::fs::symlink(at("keys.txt"), at("keys/link")).unwrap();
        let some = only(vec![at("keys")]);
        for (path, allowed) in [
            ("keys/door", true),
            ("keys/../keys/door", true),
            ("keys/../keys.txt", false),
            ("keys.txt", false),
            ("keys/link", false),
            ("keys/none", false),
        ] {
            assert_eq!(some.allow_file(&at(path)), allowed, "{path}");
        }
        assert!(References::Anything.allow_file(&at("keys.txt")));
    }

    #[test]
    fn what_is_to_be_written_may_not_lie_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        std::fs::create_dir_all(at("out/saved")).unwrap();
        std::fs::write(at("out/engine.toml"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", at("out/etc")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("out/nowhere")).unwrap();
        std::os::unix::fs::symlink(at("out/saved"), at("out/inside")).unwrap();
        let mut some = only(vec![at("out")]);
        for (path, allowed) in [
            ("out/a.jsonl", true),
            ("out/new/b.jsonl", true),
            ("out/new/../b.jsonl", true),
            ("out/inside/b.jsonl", true),
            ("out/engine.toml", true),
            ("out/../b.jsonl", false),
            ("out/new/../../b.jsonl", false),
            ("out/etc/passwd", false),
            ("out/etc/new", false),
            ("out/nowhere", false),
            ("outside", false),
            ("out2/x", false),
        ] {
            assert_eq!(some.allow_path(&at(path)), allowed, "{path}");
        }
        some.except([at("out/engine.toml"), at("out/saved")]);
        for path in ["out/engine.toml", "out/saved/a", "out/inside/a", "out/new/../saved/a"] {
            assert!(!some.allow_path(&at(path)), "{path}");
        }
        assert!(some.allow_path(&at("out/saved.jsonl")));
        some.except([at("out").join(TOML_FILES)]);
        assert!(!some.allow_path(&at("out/new.toml")) && some.allow_path(&at("out/new/new.toml")));
    }

    #[test]
    fn nothing_is_allowed_that_was_not() {
        let none = only(Vec::new());
        assert!(!none.allow_path(Path::new("x")) && !none.allow_host("x") && !none.allow_variable("x"));
        assert!(References::Anything.allow_path(Path::new("x")) && References::Anything.allow_host("x"));
    }
}
