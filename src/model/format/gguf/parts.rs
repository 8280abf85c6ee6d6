//! The files of a split GGUF model: their paths, and a file's number among them.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::model::LoadError;

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";

/// The maximum number of files of a model; the metadata count them with 16 bits.
const MAX_COUNT: usize = u16::MAX as usize;

/// The place of a file among the files of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitPart {
    /// Index of the file among the model's files.
    pub(super) index: usize,
    /// Number of the model's files; 1 for a model that is not split.
    pub(super) count: usize,
}

impl SplitPart {
    /// Reads `split.no` and `split.count`. Without them, the file is a whole model.
    pub(super) fn read(path: &Path, metadata: &Metadata) -> Result<Self, LoadError> {
        let fields = metadata.fields(path);
        let whole = Self { index: 0, count: 1 };
        if fields.get(COUNT).is_none_or(|count| count.as_u64() == Some(0)) {
            return Ok(whole);
        }
        let count = fields.required_count(COUNT, MAX_COUNT)?;
        if count == 1 {
            return Ok(whole);
        }
        let number = fields.get(NUMBER).ok_or_else(|| fields.missing(NUMBER))?;
        let index = number.as_u64().and_then(|index| usize::try_from(index).ok());
        match index.filter(|index| *index < count) {
            Some(index) => Ok(Self { index, count }),
            None => Err(fields.invalid(NUMBER, format!("a number below `{COUNT}`, {count}"))),
        }
    }

    /// Returns the paths of all files of a split model, given the path of one of them.
    ///
    /// # Errors
    /// [`LoadError::Gguf`] if the name does not say which part it is; [`LoadError::MissingParts`].
    pub(super) fn paths(&self, path: &Path) -> Result<Vec<PathBuf>, LoadError> {
        let Self { index, count } = *self;
        if count == 1 {
            return Ok(vec![path.into()]);
        }
        let ending = |index: usize| format!("-{:05}-of-{count:05}.gguf", index + 1);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&ending(index)) else {
            let (number, ending) = (index + 1, ending(index));
            return Err(LoadError::Gguf {
                path: path.into(),
                reason: format!(
                    "it is part {number} of {count} of a split model, and without `{ending}` at the end of \
                     its name the other parts cannot be found"
                ),
            });
        };
        let paths: Vec<PathBuf> =
            (0..count).map(|index| path.with_file_name(format!("{stem}{}", ending(index)))).collect();
        let missing: Vec<PathBuf> =
            paths.iter().filter(|part| *part != path && !part.is_file()).cloned().collect();
        if missing.is_empty() {
            return Ok(paths);
        }
        Err(LoadError::MissingParts { path: path.into(), count, missing })
    }
}
