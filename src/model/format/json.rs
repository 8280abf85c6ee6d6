//! Reads the JSON files of a model's directory key by key, with errors that name file and key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::read_bytes;
use crate::model::LoadError;
use crate::model::load_error::shorten;

/// A JSON file whose outermost value is an object.
#[derive(Debug)]
pub(in crate::model) struct JsonFile {
    path: PathBuf,
    object: Map<String, Value>,
}

impl JsonFile {
    pub(in crate::model) fn read(path: &Path) -> Result<Self, LoadError> {
        let object = serde_json::from_slice(&read_bytes(path)?)
            .map_err(|source| LoadError::Json { path: path.into(), source })?;
        Ok(Self { path: path.into(), object })
    }

    pub(in crate::model) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.path, &self.object)
    }
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
