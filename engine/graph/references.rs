//! Which references a graph's text may make.
//!
//! Whoever may edit a file may as well read the environment and the files of the process. Whoever may send a text over
//! HTTP may not: such a text names only what the process was told to show.

use std::path::{Path, PathBuf};

/// What `${env.…}` and `${file.…}` may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum References {
    #[default]
    Anything,
    Only {
        /// Names of variables; one that ends in `*` stands for all that begin like it.
        variables: Vec<String>,
        /// Files, and folders with all that is in them.
        paths: Vec<PathBuf>,
    },
}

impl References {
    pub fn allow_variable(&self, name: &str) -> bool {
        let References::Only { variables, .. } = self else { return true };
        variables.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => allowed == name,
        })
    }

    /// Whether `path`, with its links followed, is one of the paths or below one of them. A file that is not there is
    /// none.
    pub fn allow_file(&self, path: &Path) -> bool {
        let References::Only { paths, .. } = self else { return true };
        let Ok(path) = path.canonicalize() else { return false };
        paths.iter().filter_map(|allowed| allowed.canonicalize().ok()).any(|allowed| path.starts_with(allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_allowed_by_name_or_by_beginning() {
        assert!(References::Anything.allow_variable("HOME"));
        let some = References::Only { variables: vec!["CAMERA_*".into(), "SITE".into()], paths: Vec::new() };
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
        let some = References::Only { variables: Vec::new(), paths: vec![at("keys")] };
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
}
