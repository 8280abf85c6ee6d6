//! Access to the files of a model: opens only regular files, and reads them up to a size limit or maps them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::model::LoadError;

/// Size limit of a JSON file or chat template, in bytes. Configurations have kilobytes, and the index of the largest
/// sharded model has some megabytes.
const SIZE_LIMIT: u64 = 64 << 20;

/// The first bytes of the text that Git LFS leaves in place of a file whose contents were not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The bytes of a file, either read into memory or memory-mapped.
pub(in crate::model) type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The way in which a file's bytes get into memory: by reading, or by mapping.
#[derive(Clone, Copy)]
pub(in crate::model) enum FileAccess {
    Read,
    Map,
}

/// Opens a regular file and returns it with its size in bytes. A pipe, which could block for ever, is an
/// error.
pub(in crate::model) fn open(path: &Path) -> Result<(fs::File, u64), LoadError> {
    let io = |source| LoadError::Io { path: path.into(), source };
    // The kind of the file is checked before opening it, because opening a pipe blocks.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(LoadError::NotAFile { path: path.into() });
    }
    let file = fs::File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    Ok((file, bytes))
}

/// Reads all bytes of a small file.
pub(in crate::model) fn read_bytes(path: &Path) -> Result<Vec<u8>, LoadError> {
    read_bytes_up_to(path, SIZE_LIMIT)
}

/// Reads all bytes of a file of at most `limit` bytes.
pub(in crate::model) fn read_bytes_up_to(path: &Path, limit: u64) -> Result<Vec<u8>, LoadError> {
    let (file, bytes) = open(path)?;
    if bytes > limit {
        return Err(LoadError::FileTooLarge { path: path.into(), bytes, limit });
    }
    let mut content = Vec::new();
    file.take(limit)
        .read_to_end(&mut content)
        .map_err(|source| LoadError::Io { path: path.into(), source })?;
    reject_lfs_pointer(path, &content)?;
    Ok(content)
}

/// Returns an error if the contents of a file are a pointer that Git LFS left in its place.
pub(in crate::model) fn reject_lfs_pointer(path: &Path, content: &[u8]) -> Result<(), LoadError> {
    if content.starts_with(LFS_POINTER) { Err(LoadError::LfsPointer { path: path.into() }) } else { Ok(()) }
}

/// Returns the result of reading a file, or `Ok(None)` if the file does not exist.
pub(in crate::model) fn if_exists<T>(result: Result<T, LoadError>) -> Result<Option<T>, LoadError> {
    match result {
        Err(LoadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads or maps a regular file, and returns its bytes.
///
/// # Safety
/// With [`FileAccess::Map`], the contract of [`Checkpoint::map`](crate::model::Checkpoint::map).
pub(in crate::model) unsafe fn load(path: &Path, access: FileAccess) -> Result<Bytes, LoadError> {
    let (mut file, len) = open(path)?;
    let io = |source| LoadError::Io { path: path.into(), source };
    let bytes: Bytes = match access {
        FileAccess::Read => {
            let mut bytes = Vec::new();
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            bytes.try_reserve_exact(len).map_err(|_| io(std::io::ErrorKind::OutOfMemory.into()))?;
            file.read_to_end(&mut bytes).map_err(io)?;
            Arc::new(bytes)
        }
        // SAFETY: the caller guarantees that the file does not change.
        FileAccess::Map => Arc::new(unsafe { memmap2::Mmap::map(&file) }.map_err(io)?),
    };
    reject_lfs_pointer(path, (*bytes).as_ref())?;
    Ok(bytes)
}
