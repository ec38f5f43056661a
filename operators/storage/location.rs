//! `s3://BUCKET/KEY`, as people write it.

use crate::error::FieldError;

/// A place in S3: a bucket, and a key or the beginning of keys in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    pub bucket: String,
    /// Without a slash in front; may be empty.
    pub key: String,
}

const SCHEME: &str = "s3://";

/// Whether `text` is meant to be a place in S3.
pub fn is_s3(text: &str) -> bool {
    text.starts_with(SCHEME)
}

impl S3Location {
    /// Reads `s3://BUCKET/KEY`; the key may be left out.
    ///
    /// # Errors
    /// What is wrong with it, in words that go on from its text.
    pub fn parse(text: &str) -> Result<S3Location, String> {
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| "does not begin with `s3://`".to_owned())?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if let Some(why) = wrong_bucket(bucket) {
            return Err(why);
        }
        Ok(S3Location { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// As [`S3Location::parse`], as a mistake of a field.
    ///
    /// # Errors
    /// The mistake, with how it is written.
    pub fn of_field(field: &str, text: &str) -> Result<S3Location, FieldError> {
        S3Location::parse(text).map_err(|why| {
            FieldError::new(field, format!("`{text}` {why}")).hint("write it like \"s3://bucket/folder/video.mp4\"")
        })
    }
}

/// Why `bucket` cannot be the name of a bucket. What S3 itself takes differs by age and maker; this is what none takes.
pub fn wrong_bucket(bucket: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if bucket.is_empty() {
        Some("names no bucket".to_owned())
    } else if let Some(wrong) = bucket.chars().find(|c| !allowed(*c)) {
        Some(format!("names a bucket with `{}` in it", wrong.escape_debug()))
    } else if bucket.len() > 255 {
        Some("names a bucket of more than 255 characters".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_with_and_without_a_key() {
        let read = |text| S3Location::parse(text).map(|place| (place.bucket, place.key));
        let place = |bucket: &str, key: &str| Ok((bucket.to_owned(), key.to_owned()));
        assert_eq!(read("s3://clips/door/a b.mp4"), place("clips", "door/a b.mp4"));
        assert_eq!(read("s3://clips"), place("clips", ""));
        assert_eq!(read("s3://clips/"), place("clips", ""));
        assert_eq!(read("s3://"), Err("names no bucket".to_owned()));
        assert_eq!(read("s3:///a"), Err("names no bucket".to_owned()));
        assert!(read("s3://a b/c").unwrap_err().contains("` `"));
        assert!(read("/clips").is_err());
    }
}
