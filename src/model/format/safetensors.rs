//! The tensors of a model directory: one safetensors file, or shards with an index.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::files::{Bytes, FileAccess, if_exists, load, open};
use super::json::JsonFile;
use crate::model::LoadError;
use crate::model::load_error::shorten;
use crate::tensor::{DType, Tensor};

/// Size in bytes of the number at the start of a file that gives the header's length.
const PREFIX: usize = 8;

/// The tensors of a model directory, by name. Their bytes are read or mapped once, and the [`Tensor`]s taken
/// from the checkpoint share them.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Entry>,
    /// Tensors that the index lists and their shards lack: by the tensor's name, the path of the shard that
    /// should hold it. Only a model that needs such a tensor cannot be loaded.
    absent: BTreeMap<String, PathBuf>,
}

struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
}

/// The description of a tensor in its file's header.
#[derive(Clone, Debug)]
struct Entry {
    /// Index of the tensor's file in [`Checkpoint::files`].
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Range of the tensor's bytes within the file.
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Reads `model.safetensors` of `dir` into memory, or if it does not exist, the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`LoadError`] if a file is missing or truncated, or if its header does not describe its contents; if a
    /// tensor occurs twice; if the index names a file outside `dir`. A tensor that the index lists and that its
    /// file does not have gives an error only when it is taken, and so does a shard that does not exist.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        // SAFETY: nothing is mapped.
        unsafe { Self::open(dir, FileAccess::Read) }
    }

    /// Opens the files like [`read`](Self::read), but maps them instead of copying them: unused tensors take no memory,
    /// and several processes share the memory of used tensors.
    ///
    /// # Safety
    /// While the checkpoint or a tensor taken from it is alive, no process may change or truncate its files.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read).
    pub unsafe fn map(dir: &Path) -> Result<Self, LoadError> {
        // SAFETY: the caller guarantees that the files do not change.
        unsafe { Self::open(dir, FileAccess::Map) }
    }

    /// # Safety
    /// With [`FileAccess::Map`], the contract of [`map`](Self::map).
    pub(in crate::model) unsafe fn open(dir: &Path, access: FileAccess) -> Result<Self, LoadError> {
        let mut checkpoint =
            Self { dir: dir.into(), files: Vec::new(), tensors: BTreeMap::new(), absent: BTreeMap::new() };
        // SAFETY: the caller upholds the same contract.
        let single = unsafe { checkpoint.add_file(dir.join("model.safetensors"), access) };
        if if_exists(single)?.is_some() {
            return Ok(checkpoint);
        }
        let index_path = dir.join("model.safetensors.index.json");
        let Some(index) = if_exists(JsonFile::read(&index_path))? else {
            return Err(LoadError::NoCheckpoint { dir: dir.into() });
        };
        let weight_map = index.fields().object("weight_map")?;
        let weight_map = weight_map.ok_or_else(|| index.fields().missing("weight_map"))?;
        let mut placed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in weight_map.entries() {
            let shard = shard.as_str().ok_or_else(|| weight_map.invalid(tensor, "a file name"))?;
            placed.entry(shard).or_default().push(tensor);
        }
        for (shard, tensors) in placed {
            if !is_inside(shard) {
                return Err(LoadError::OutsideDirectory { path: index_path, entry: shorten(shard) });
            }
            let path = dir.join(shard);
            // SAFETY: the caller upholds the same contract.
            let file = if_exists(unsafe { checkpoint.add_file(path.clone(), access) })?;
            for name in tensors {
                if checkpoint.tensors.get(name).is_none_or(|entry| Some(entry.file) != file) {
                    checkpoint.absent.insert(name.to_owned(), path.clone());
                }
            }
        }
        Ok(checkpoint)
    }

    /// Adds the tensors of a file, and returns the file's index.
    ///
    /// # Safety
    /// With [`FileAccess::Map`], the contract of [`map`](Self::map).
    unsafe fn add_file(&mut self, path: PathBuf, access: FileAccess) -> Result<usize, LoadError> {
        // SAFETY: the caller upholds the same contract.
        let bytes = unsafe { load(&path, access)? };
        let file = self.files.len();
        for (name, mut entry) in parse_header(&path, (*bytes).as_ref())? {
            entry.file = file;
            if self.tensors.contains_key(&name) {
                return Err(LoadError::DuplicateTensor { path, tensor: name });
            }
            self.tensors.insert(name, entry);
        }
        self.files.push(TensorFile { path, bytes });
        Ok(file)
    }

    /// Returns the path of the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the paths of the files that hold tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Returns every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns whether a tensor with this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns a tensor's shape without reading its elements.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Returns a tensor that shares the checkpoint's bytes.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], or [`LoadError::UnsupportedDType`] if the tensor is not F32, F16 or
    /// BF16.
    pub fn tensor(&self, name: &str) -> Result<Tensor, LoadError> {
        let missing = || LoadError::MissingTensor { path: self.path_of(name).into(), tensor: name.into() };
        let Some(entry) = self.tensors.get(name) else {
            // If the shard with the tensor is missing, the error is about the shard.
            return Err(self.absent.get(name).and_then(|shard| open(shard).err()).unwrap_or_else(missing));
        };
        let file = self.files.get(entry.file).ok_or_else(missing)?;
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                return Err(LoadError::UnsupportedDType {
                    path: file.path.clone(),
                    tensor: name.into(),
                    dtype: other.to_string(),
                });
            }
        };
        Tensor::from_bytes(dtype, &entry.shape, file.bytes.clone(), entry.bytes.clone()).ok_or_else(|| {
            LoadError::Header {
                path: file.path.clone(),
                reason: format!("the bytes of tensor `{name}` do not match its shape"),
            }
        })
    }

    /// Returns a tensor of the checkpoint, which must have the given shape.
    ///
    /// # Errors
    /// The errors of [`tensor`](Self::tensor), and [`LoadError::Shape`].
    pub fn tensor_of_shape(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let tensor = self.tensor(name)?;
        if tensor.shape() == shape {
            return Ok(tensor);
        }
        Err(LoadError::Shape {
            path: self.path_of(name).into(),
            tensor: name.into(),
            expected: shape.to_vec(),
            found: tensor.shape().to_vec(),
        })
    }

    /// Returns the file that holds a tensor or should hold it, or the directory if no file does.
    pub(in crate::model) fn path_of(&self, name: &str) -> &Path {
        let file = self.tensors.get(name).and_then(|entry| self.files.get(entry.file));
        file.map(|file| &file.path).or_else(|| self.absent.get(name)).unwrap_or(&self.dir)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}: {} tensors)", self.dir.display(), self.tensors.len())
    }
}

/// Returns whether a path is plain and relative, without `..` or a root.
fn is_inside(entry: &str) -> bool {
    let mut components = Path::new(entry).components().peekable();
    components.peek().is_some() && components.all(|part| matches!(part, Component::Normal(_)))
}

/// The entries of a safetensors header in file order, including repeated names.
struct HeaderEntries(Vec<(String, HeaderEntry)>);

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for HeaderEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = HeaderEntries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderEntries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(HeaderEntries(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Returns the tensors that a file's header describes. The entries' `file` is 0.
fn parse_header(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Entry)>, LoadError> {
    let wrong = |reason: String| LoadError::Header { path: path.into(), reason };
    let Some(Ok(prefix)) = bytes.get(..PREFIX).map(<[u8; PREFIX]>::try_from) else {
        return Err(wrong(format!("it has {} bytes, expected at least 8", bytes.len())));
    };
    let header_len = u64::from_le_bytes(prefix);
    let data_start = usize::try_from(header_len).ok().and_then(|len| len.checked_add(PREFIX));
    let Some((header, data_start)) =
        data_start.and_then(|end| bytes.get(PREFIX..end).map(|header| (header, end)))
    else {
        return Err(wrong(format!(
            "its header needs {header_len} bytes, and the file has {}; it may be truncated",
            bytes.len()
        )));
    };
    // Repeated names, unknown element types and data beyond the end of the file are checked here, because the
    // safetensors crate does not check them or does not name the tensor.
    let HeaderEntries(mut listed) =
        serde_json::from_slice(header).map_err(|e| wrong(format!("its header is damaged: {e}")))?;
    let data_len = bytes.len() - data_start;
    for (name, HeaderEntry { dtype, data_offsets: (_, end) }) in &listed {
        if *end > data_len as u64 {
            return Err(wrong(format!(
                "tensor `{name}` ends at byte {end} of the data, which has {data_len}; it may be truncated"
            )));
        }
        if serde_json::from_value::<Dtype>(dtype.as_str().into()).is_err() {
            return Err(LoadError::UnsupportedDType {
                path: path.into(),
                tensor: name.clone(),
                dtype: shorten(dtype),
            });
        }
    }
    listed.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(pair) = listed.windows(2).find(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
        let tensor = pair.first().map(|(name, _)| name.clone()).unwrap_or_default();
        return Err(LoadError::DuplicateTensor { path: path.into(), tensor });
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(e.to_string()))?;
    let mut entries = Vec::with_capacity(listed.len());
    for (name, _) in listed {
        let info = metadata
            .info(&name)
            .ok_or_else(|| wrong(format!("tensor `{name}` has a name, but no description")))?;
        let (start, end) = info.data_offsets;
        let entry = Entry {
            file: 0,
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: data_start.saturating_add(start)..data_start.saturating_add(end),
        };
        entries.push((name, entry));
    }
    Ok(entries)
}
