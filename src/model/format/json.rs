//! Reads the JSON files of a model's directory key by key, with errors that name file and key.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::read_bytes;
use crate::model::LoadError;
use crate::model::load_error::shorten;
use crate::model::load_warning::LoadWarning;

/// A JSON file whose outermost value is an object.
#[derive(Debug)]
pub(in crate::model) struct JsonFile {
    path: PathBuf,
    object: Map<String, Value>,
}

impl JsonFile {
    pub(in crate::model) fn read(path: &Path) -> Result<Self, LoadError> {
        Self::parse(path, &read_bytes(path)?)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, LoadError> {
        let object = serde_json::from_slice(&with_quoted_constants(bytes))
            .map_err(|source| LoadError::Json { path: path.into(), source })?;
        Ok(Self { path: path.into(), object })
    }

    pub(in crate::model) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.path, &self.object)
    }
}

/// Puts quotes around `NaN`, `Infinity` and `-Infinity`, which Python writes and JSON does not have. As text,
/// these constants give an error only where a number is expected.
fn with_quoted_constants(bytes: &[u8]) -> Cow<'_, [u8]> {
    const CONSTANTS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut out: Vec<u8> = Vec::new();
    let (mut position, mut copied, mut in_text) = (0, 0, false);
    while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
        let constant = CONSTANTS.into_iter().find(|constant| !in_text && rest.starts_with(constant));
        position += match (constant, rest.first()) {
            (Some(constant), _) => {
                out.extend(bytes.get(copied..position).unwrap_or_default());
                out.extend([b"\"", constant, b"\""].concat());
                copied = position + constant.len();
                constant.len()
            }
            (None, Some(b'\\')) if in_text => 2,
            (None, first) => {
                in_text ^= first == Some(&b'"');
                1
            }
        };
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend(bytes.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

/// The fields of an object in a JSON file. `null` counts as absent, as in transformers.
#[derive(Clone, Debug)]
pub(in crate::model) struct Fields<'a> {
    path: &'a Path,
    /// Path of the object within the file, joined by dots; empty or ending in a dot.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Returns the fields of a file's outermost object.
    pub(in crate::model) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), object }
    }

    pub(in crate::model) fn path(&self) -> &'a Path {
        self.path
    }

    pub(in crate::model) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns whether the object has the key, even if its value is `null`.
    pub(in crate::model) fn contains(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(in crate::model) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.object.iter()
    }

    pub(in crate::model) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, LoadError> {
        self.typed(key, "an object", Value::as_object).map(|object| {
            object.map(|object| Fields { path: self.path, prefix: format!("{}{key}.", self.prefix), object })
        })
    }

    pub(in crate::model) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(in crate::model) fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(in crate::model) fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, LoadError> {
        self.typed(key, "a list", Value::as_array)
    }

    /// Returns the value of a key, which must be a finite number.
    pub(in crate::model) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// Returns the value of a key, which must be a finite number above 0.
    pub(in crate::model) fn positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number above 0", |value| {
            value.as_f64().filter(|x| x.is_finite() && *x > 0.0)
        })
    }

    /// Returns the value of a key, which must be a whole number in 1..=`limit`. Python writes some whole numbers as
    /// floats.
    pub(in crate::model) fn count(&self, key: &str, limit: usize) -> Result<Option<usize>, LoadError> {
        let whole = |value: &Value| {
            let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x));
            let integer = value.as_u64().or_else(|| float().map(|x| x as u64))?;
            usize::try_from(integer).ok().filter(|n| (1..=limit).contains(n))
        };
        self.typed(key, &format!("a whole number from 1 to {limit}"), whole)
    }

    pub(in crate::model) fn required_count(&self, key: &str, limit: usize) -> Result<usize, LoadError> {
        self.count(key, limit)?.ok_or_else(|| self.missing(key))
    }

    /// Returns the value of a key, which must be a token id.
    pub(in crate::model) fn token_id(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.typed(key, "a token id", |value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
    }

    pub(in crate::model) fn missing(&self, key: &str) -> LoadError {
        LoadError::MissingKey { path: self.path.into(), key: self.name(key) }
    }

    pub(in crate::model) fn invalid(&self, key: &str, expected: impl Into<String>) -> LoadError {
        LoadError::InvalidKey {
            path: self.path.into(),
            key: self.name(key),
            value: self.shown(key),
            expected: expected.into(),
        }
    }

    pub(in crate::model) fn unsupported(&self, key: &str, supported: impl Into<String>) -> LoadError {
        LoadError::UnsupportedKey {
            path: self.path.into(),
            key: self.name(key),
            value: self.shown(key),
            supported: supported.into(),
        }
    }

    /// Returns the warning about a key that is not read.
    pub(in crate::model) fn unread(&self, key: &str) -> LoadWarning {
        LoadWarning::UnreadKey { path: self.path.into(), key: self.name(key), value: self.shown(key) }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn shown(&self, key: &str) -> String {
        shorten(&self.object.get(key).unwrap_or(&Value::Null).to_string())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.invalid(key, expected)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn constants_of_python_are_text() {
        let json = br#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \"Infinity\\", "d": 1, "e":NaN}"#;
        let file = JsonFile::parse(Path::new("config.json"), json).unwrap();
        let fields = file.fields();
        assert_eq!(fields.text("a").unwrap(), Some("NaN"));
        assert_eq!(fields.list("b").unwrap().unwrap(), &["-Infinity", "Infinity"].map(Value::from));
        assert_eq!(fields.text("c").unwrap(), Some("NaN \"Infinity\\"));
        assert_eq!(fields.number("d").unwrap(), Some(1.0));
        assert_eq!(
            fields.number("a").unwrap_err().to_string(),
            "config.json: `a` is \"NaN\", expected a finite number"
        );
        assert!(JsonFile::parse(Path::new("config.json"), b"{\"a\": NaNa}").is_err());
        assert!(JsonFile::parse(Path::new("config.json"), b"{\"a\\").is_err());
    }
}
