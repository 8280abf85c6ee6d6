//! A reader of the header of a GGUF file, whose bytes may end at any place.

use std::path::Path;

use crate::model::LoadError;
use crate::model::load_error::shorten;

/// The reason why the header of a GGUF file could not be read.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The bytes end before the header does.
    End,
    /// The bytes are not a valid header.
    Invalid(String),
}

impl ReadFault {
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    pub(super) fn in_file(self, path: &Path) -> LoadError {
        let reason = match self {
            Self::End => "its header goes beyond the end of the file; it may be truncated".to_owned(),
            Self::Invalid(reason) => reason,
        };
        LoadError::Gguf { path: path.into(), reason }
    }
}

/// A reader of consecutive little-endian values.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn at(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    /// Returns a reader of the same bytes at another position.
    pub(super) fn reread(&self, position: usize) -> Self {
        Self { position, ..*self }
    }

    /// Returns the number of bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], ReadFault> {
        let end = self.position.checked_add(len).ok_or(ReadFault::End)?;
        let taken = self.bytes.get(self.position..end).ok_or(ReadFault::End)?;
        self.position = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadFault> {
        self.take(N)?.try_into().map_err(|_| ReadFault::End)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ReadFault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ReadFault> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads the number of elements of a list whose elements take at least one byte each.
    pub(super) fn count(&mut self) -> Result<usize, ReadFault> {
        let count = usize::try_from(self.u64()?).map_err(|_| ReadFault::End)?;
        if count > self.bytes.len().saturating_sub(self.position) { Err(ReadFault::End) } else { Ok(count) }
    }

    /// Reads the bytes of a string: its length in eight bytes, then that number of bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], ReadFault> {
        let len = self.count()?;
        self.take(len)
    }

    /// Reads a string that must be UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str, ReadFault> {
        let bytes = self.string()?;
        std::str::from_utf8(bytes).map_err(|_| {
            ReadFault::invalid(format!("`{}` is not UTF-8", shorten(&String::from_utf8_lossy(bytes))))
        })
    }
}
