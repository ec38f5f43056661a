//! ONNX Runtime's shared library: finding it and loading it, once for the process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::error::StartError;

/// The environment variable that names the library and wins over every search.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

const LIBRARY: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// ONNX Runtime, loaded by the first caller. An error is remembered too: the library is not looked for twice.
pub fn environment() -> Result<&'static Environment, StartError> {
    static ENVIRONMENT: OnceLock<Result<Environment, (String, String)>> = OnceLock::new();
    let load = || {
        let library = library()?;
        let failed = |error: &dyn std::fmt::Display| {
            (format!("ONNX Runtime, {}, cannot be loaded: {error}", library.display()), advice())
        };
        let builder = ort::init_from(&library).map_err(|error| failed(&error))?;
        let environment = builder.with_name("engine").with_telemetry(false).build().map_err(|error| failed(&error))?;
        // Its warnings tell of its own optimisations, once for each session, and name neither node nor model.
        environment.set_log_level(LogLevel::Error);
        Ok(environment)
    };
    ENVIRONMENT
        .get_or_init(load)
        .as_ref()
        .map_err(|(message, hint)| StartError::new(message.clone()).hint(hint.clone()))
}

fn advice() -> String {
    format!("run `script/setup`, or set {LIBRARY_VARIABLE} to the path of {LIBRARY}")
}

fn library() -> Result<PathBuf, (String, String)> {
    let chosen = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let binary = std::env::current_exe().ok();
    find(chosen, binary.as_deref())
}

/// The library: where the user says, else beside the binary, in `../lib`, or in `.local/onnxruntime` of a folder
/// above the binary.
fn find(chosen: Option<PathBuf>, binary: Option<&Path>) -> Result<PathBuf, (String, String)> {
    if let Some(path) = chosen {
        // A bare name is left to the dynamic linker's own search.
        if path.components().count() == 1 || path.is_file() {
            return Ok(path);
        }
        let message = format!("ONNX Runtime is missing: {LIBRARY_VARIABLE} names {}, which is no file", path.display());
        return Err((message, advice()));
    }
    let folder = binary.and_then(Path::parent);
    let beside = folder.map(|folder| folder.join(LIBRARY));
    let installed = folder.and_then(Path::parent).map(|prefix| prefix.join("lib").join(LIBRARY));
    let set_up =
        folder.into_iter().flat_map(Path::ancestors).map(|above| above.join(".local/onnxruntime").join(LIBRARY));
    beside.into_iter().chain(installed).chain(set_up).find(|path| path.is_file()).ok_or_else(|| {
        let around = folder.map_or_else(|| "the binary".into(), |folder| folder.display().to_string());
        (format!("ONNX Runtime is missing: there is no {LIBRARY} around {around}"), advice())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_library_is_found_relative_to_the_binary() {
        let root = tempfile::tempdir().unwrap();
        let binary = root.path().join("target/release/engine");
        assert!(find(None, Some(&binary)).unwrap_err().0.contains(LIBRARY));
        // Each place wins over those before it.
        for place in [".local/onnxruntime", "target/lib", "target/release"] {
            fs::create_dir_all(root.path().join(place)).unwrap();
            fs::write(root.path().join(place).join(LIBRARY), "").unwrap();
            assert_eq!(find(None, Some(&binary)), Ok(root.path().join(place).join(LIBRARY)));
        }
    }

    #[test]
    fn the_users_choice_wins_and_must_be_there() {
        let root = tempfile::tempdir().unwrap();
        let chosen = root.path().join("other.so");
        let (message, hint) = find(Some(chosen.clone()), None).unwrap_err();
        assert!(message.contains("other.so") && hint.contains("script/setup"));
        fs::write(&chosen, "").unwrap();
        assert_eq!(find(Some(chosen.clone()), None), Ok(chosen));
        assert_eq!(find(Some("libonnxruntime.so.1".into()), None), Ok("libonnxruntime.so.1".into()));
    }
}
