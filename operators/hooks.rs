//! Streams that another server announces: how the path that it names becomes a stream of a source.

use crate::error::FieldError;
use crate::item::StreamId;

/// What stands for the stream's id.
const ID: &str = "{id}";

/// Which paths are streams, and where they are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// What stands before and after the id in a path.
    before: String,
    after: String,
    url: String,
}

impl Hooks {
    /// Of the fields `hooks.path` and `hooks.url`, such as `live/{id}/in` and `rtsp://10.0.0.9/live/{id}/in`.
    ///
    /// # Errors
    /// Where one of them does not say where the id stands.
    pub fn new(path: &str, url: &str) -> Result<Hooks, FieldError> {
        let Some((before, after)) = path.split_once(ID).filter(|(_, after)| !after.contains(ID)) else {
            let error = FieldError::new("hooks.path", "it needs `{id}` once, where the stream's id stands");
            return Err(error.hint("write it like \"live/{id}/in\""));
        };
        if !url.contains(ID) {
            let error = FieldError::new("hooks.url", "it needs `{id}`, or all streams would read the same input");
            return Err(error.hint("write it like \"rtsp://10.0.0.9/live/{id}/in\""));
        }
        Ok(Hooks { before: before.to_owned(), after: after.to_owned(), url: url.to_owned() })
    }

    /// The id in a path; `None` where the path is another.
    ///
    /// # Errors
    /// The text in the id's place, where it cannot be an id.
    pub fn stream<'p>(&self, path: &'p str) -> Option<Result<StreamId, &'p str>> {
        let text = path.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        // More than one step of the path is another path.
        (!text.is_empty() && !text.contains('/')).then(|| StreamId::new(text).ok_or(text))
    }

    /// Where a stream is read from.
    pub fn url(&self, stream: &StreamId) -> String {
        self.url.replace(ID, stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_stream_or_another_path() {
        let hooks = Hooks::new("live/{id}/in", "rtsp://h/live/{id}/in?s={id}").unwrap();
        let door = hooks.stream("live/door/in").unwrap().unwrap();
        assert_eq!(&*door, "door");
        assert_eq!(hooks.url(&door), "rtsp://h/live/door/in?s=door");
        for other in ["live/door/out", "live//in", "live/a/b/in", "other", "", "live/in", "live/door/in/"] {
            assert_eq!(hooks.stream(other), None, "{other}");
        }
        assert_eq!(hooks.stream("live/a b/in"), Some(Err("a b")));
        assert_eq!(hooks.stream("live/a.b/in").map(|id| id.is_ok()), Some(true), "dots are letters of an id");
        assert_eq!(hooks.stream("live/../in"), Some(Err("..")), "and an id is more than dots");
    }

    #[test]
    fn an_id_has_its_place_in_both() {
        for (path, url, field) in [
            ("live/in", "rtsp://h/{id}", "hooks.path"),
            ("{id}/{id}", "rtsp://h/{id}", "hooks.path"),
            ("live/{id}", "rtsp://h/x", "hooks.url"),
        ] {
            let error = Hooks::new(path, url).unwrap_err();
            assert_eq!(error.field, field);
            assert!(error.hint.is_some());
        }
    }
}
