//! JSON files of a model's directory, read key by key with errors that name file and key.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::LoadError;

/// The largest JSON file or template that is read. Configurations have kilobytes, the index of the
/// largest sharded model some megabytes.
const SIZE_LIMIT: u64 = 64 << 20;

/// Characters of a value that an error message repeats.
const SHOWN_CHARS: usize = 80;

/// Opens a regular file; a pipe, which could block for ever, is an error. Also its size in bytes.
pub(super) fn open(path: &Path) -> Result<(fs::File, u64), LoadError> {
    let io = |source| LoadError::Io { path: path.into(), source };
    // Before opening it: to open a pipe blocks.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    let file = fs::File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    Ok((file, bytes))
}

/// The bytes of a small file.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, LoadError> {
    read_bytes_up_to(path, SIZE_LIMIT)
}

/// The bytes of a file of at most `limit` bytes.
pub(super) fn read_bytes_up_to(path: &Path, limit: u64) -> Result<Vec<u8>, LoadError> {
    let (file, bytes) = open(path)?;
    if bytes > limit {
        return Err(LoadError::FileTooLarge { path: path.into(), bytes, limit });
    }
    let mut content = Vec::new();
    file.take(limit)
        .read_to_end(&mut content)
        .map_err(|source| LoadError::Io { path: path.into(), source })?;
    Ok(content)
}

/// `Ok(None)` where the file does not exist.
pub(super) fn if_exists<T>(result: Result<T, LoadError>) -> Result<Option<T>, LoadError> {
    match result {
        Err(LoadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// A JSON file whose outermost value is an object.
#[derive(Debug)]
pub(super) struct JsonFile {
    path: PathBuf,
    object: Map<String, Value>,
}

impl JsonFile {
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let object = serde_json::from_slice(&read_bytes(path)?)
            .map_err(|source| LoadError::Json { path: path.into(), source })?;
        Ok(Self { path: path.into(), object })
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::new(&self.path, &self.object)
    }
}

/// The fields of an object in a JSON file. `null` counts as absent, as it does for transformers.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Dotted path of the object within the file, empty or ending in a dot.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The fields of an object that a file holds at its outermost level.
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), object }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it with `null`.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.object.iter()
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, LoadError> {
        self.typed(key, "an object", Value::as_object).map(|object| {
            object.map(|object| Fields { path: self.path, prefix: format!("{}{key}.", self.prefix), object })
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, LoadError> {
        self.typed(key, "a list", Value::as_array)
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number above 0", |value| {
            value.as_f64().filter(|x| x.is_finite() && *x > 0.0)
        })
    }

    /// A whole number in 1..=`limit`; Python writes some of them as floats.
    pub(super) fn count(&self, key: &str, limit: usize) -> Result<Option<usize>, LoadError> {
        let whole = |value: &Value| {
            let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x));
            let integer = value.as_u64().or_else(|| float().map(|x| x as u64))?;
            usize::try_from(integer).ok().filter(|n| (1..=limit).contains(n))
        };
        self.typed(key, &format!("a whole number in 1..={limit}"), whole)
    }

    pub(super) fn required_count(&self, key: &str, limit: usize) -> Result<usize, LoadError> {
        self.count(key, limit)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn missing(&self, key: &str) -> LoadError {
        LoadError::MissingKey { path: self.path.into(), key: self.name(key) }
    }

    pub(super) fn invalid(&self, key: &str, expected: impl Into<String>) -> LoadError {
        LoadError::InvalidKey {
            path: self.path.into(),
            key: self.name(key),
            value: self.shown(key),
            expected: expected.into(),
        }
    }

    pub(super) fn unsupported(&self, key: &str, supported: impl Into<String>) -> LoadError {
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

/// The beginning of a text, for an error message.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
