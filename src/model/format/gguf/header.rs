//! The header of a GGUF file: its metadata, and the list of its tensors.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::metadata::Metadata;
use super::parts::SplitPart;
use super::quantization::TensorType;
use super::reader::{ReadFault, Reader};
use crate::model::LoadError;
use crate::model::format::files::{Bytes, open, reject_lfs_pointer};
use crate::model::format::json::Fields;
use crate::model::load_error::shorten;

/// The maximum number of dimensions of a ggml tensor.
const MAX_DIMENSIONS: u32 = 4;

/// Alignment of tensor data, in bytes, unless the key `general.alignment` sets another alignment.
const DEFAULT_ALIGNMENT: usize = 32;

/// The largest alignment of tensor data that is accepted, in bytes.
const MAX_ALIGNMENT: usize = 1 << 20;

/// Number of bytes that are read first if only the header of a file is wanted; a longer header needs further
/// reads.
const FIRST_READ: usize = 16 << 20;

/// The header of a model: the metadata of its first file, and the tensor descriptions of all its files.
pub(in crate::model) struct Header {
    path: PathBuf,
    /// The files of the model; several if it is split.
    files: Vec<PathBuf>,
    /// The bytes of the whole first file, or at least of its whole header.
    bytes: Bytes,
    metadata: Metadata,
    tensors: BTreeMap<String, TensorInfo>,
}

/// One file of a model, with its parsed header.
pub(super) struct ParsedFile {
    /// The bytes of the whole file, or at least of its whole header.
    bytes: Bytes,
    parsed: Parsed,
}

/// A tensor, as described by the header.
#[derive(Clone, Debug)]
pub(in crate::model) struct TensorInfo {
    /// Index of the tensor's file in [`Header::files`].
    pub(in crate::model) file: usize,
    /// The shape, outermost dimension first.
    pub(in crate::model) shape: Vec<usize>,
    /// Storage type and location of the elements, or the name of an unsupported type.
    pub(in crate::model) stored: Result<Stored, String>,
}

/// Storage type and location of a tensor's elements.
#[derive(Clone, Debug)]
pub(in crate::model) struct Stored {
    pub(in crate::model) kind: TensorType,
    /// Range of the tensor's bytes within the file.
    pub(in crate::model) bytes: Range<usize>,
}

impl Header {
    /// Reads the headers of a model's files, and as little of the data as possible.
    pub(in crate::model) fn read(path: &Path) -> Result<Self, LoadError> {
        let (header, _) = Self::assemble(path, ParsedFile::read(path)?, ParsedFile::read)?;
        Ok(header)
    }

    /// Joins the headers of a model's files. `first` is the file at `path`, and `open` opens further files.
    /// Returns the bytes of each file too.
    pub(super) fn assemble(
        path: &Path,
        first: ParsedFile,
        open: impl Fn(&Path) -> Result<ParsedFile, LoadError>,
    ) -> Result<(Self, Vec<Bytes>), LoadError> {
        let place = SplitPart::read(path, &first.parsed.metadata)?;
        let files = place.paths(path)?;
        let mut parts = Vec::new();
        let mut first = Some(first);
        for (index, file) in files.iter().enumerate() {
            let part = match first.take_if(|_| index == place.index) {
                Some(part) => part,
                None => open(file)?,
            };
            let expected = SplitPart { index, ..place };
            let found = SplitPart::read(file, &part.parsed.metadata)?;
            if found != expected {
                return Err(LoadError::Gguf {
                    path: file.clone(),
                    reason: format!(
                        "its metadata say that it is part {} of {} of a split model, its name that it is part \
                         {} of {}",
                        found.index + 1,
                        found.count,
                        expected.index + 1,
                        expected.count
                    ),
                });
            }
            parts.push(part);
        }
        Self::join(path, files, parts)
    }

    fn join(
        path: &Path,
        files: Vec<PathBuf>,
        parts: Vec<ParsedFile>,
    ) -> Result<(Self, Vec<Bytes>), LoadError> {
        let (mut tensors, mut bytes, mut metadata) = (BTreeMap::new(), Vec::new(), None);
        for ((index, file), part) in files.iter().enumerate().zip(parts) {
            for (name, info) in part.parsed.tensors {
                if tensors.insert(name.clone(), TensorInfo { file: index, ..info }).is_some() {
                    return Err(LoadError::DuplicateTensor { path: file.clone(), tensor: shorten(&name) });
                }
            }
            bytes.push(part.bytes);
            metadata.get_or_insert(part.parsed.metadata);
        }
        let (Some(metadata), Some(first)) = (metadata, bytes.first().cloned()) else {
            return Err(LoadError::Gguf { path: path.into(), reason: "it is no file of a model".into() });
        };
        let header = Self { path: path.into(), files, bytes: first, metadata, tensors };
        let key = "split.tensors.count";
        let found = header.tensors.len();
        match header.fields().get(key).map(|count| count.as_u64()) {
            Some(count) if header.files.len() > 1 && count != Some(found as u64) => {
                Err(header.fields().invalid(key, format!("{found}, the tensors of all its files")))
            }
            _ => Ok((header, bytes)),
        }
    }

    pub(in crate::model) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the paths of the model's files.
    pub(in crate::model) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns the file that holds a tensor.
    pub(in crate::model) fn path_of(&self, name: &str) -> &Path {
        let file = self.tensors.get(name).and_then(|info| self.files.get(info.file));
        file.unwrap_or(&self.path)
    }

    /// Returns the metadata's numbers, flags and strings; see [`Metadata::fields`].
    pub(in crate::model) fn fields(&self) -> Fields<'_> {
        self.metadata.fields(&self.path)
    }

    /// Returns an array of strings in the metadata.
    pub(in crate::model) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, LoadError> {
        self.metadata.strings(&self.path, (*self.bytes).as_ref(), key)
    }

    /// Returns an array of floats in the metadata.
    pub(in crate::model) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.metadata.floats(&self.path, (*self.bytes).as_ref(), key)
    }

    /// Returns an array of integers in the metadata.
    pub(in crate::model) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, LoadError> {
        self.metadata.integers(&self.path, (*self.bytes).as_ref(), key)
    }

    /// Returns every tensor with its name, sorted.
    pub(in crate::model) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    pub(in crate::model) fn tensor(&self, name: &str) -> Result<&TensorInfo, LoadError> {
        let missing = || LoadError::MissingTensor { path: self.path.clone(), tensor: name.into() };
        self.tensors.get(name).ok_or_else(missing)
    }

    pub(in crate::model) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns storage type and location of a tensor.
    pub(in crate::model) fn stored(&self, name: &str) -> Result<&Stored, LoadError> {
        self.tensor(name)?.stored.as_ref().map_err(|found| LoadError::UnsupportedQuantization {
            path: self.path_of(name).into(),
            tensor: name.into(),
            found: found.clone(),
        })
    }
}

impl ParsedFile {
    /// Reads the header of a file, and as little of the data as possible.
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.into(), source };
        let (mut file, file_len) = open(path)?;
        let file_len = usize::try_from(file_len).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        let mut wanted = FIRST_READ.min(file_len);
        loop {
            let missing = wanted.saturating_sub(bytes.len()) as u64;
            let read = file.by_ref().take(missing).read_to_end(&mut bytes).map_err(io)?;
            let ended = read == 0 || bytes.len() >= file_len;
            match parse(&bytes, file_len) {
                Err(ReadFault::End) if !ended => wanted = wanted.saturating_mul(2).min(file_len),
                parsed => return Self::new(path, Arc::new(bytes), parsed),
            }
        }
    }

    /// Parses the header of the file `path`, whose contents are `bytes`.
    pub(super) fn parse(path: &Path, bytes: Bytes) -> Result<Self, LoadError> {
        let file = (*bytes).as_ref();
        let parsed = parse(file, file.len());
        Self::new(path, bytes, parsed)
    }

    fn new(path: &Path, bytes: Bytes, parsed: Result<Parsed, ReadFault>) -> Result<Self, LoadError> {
        reject_lfs_pointer(path, (*bytes).as_ref())?;
        Ok(Self { parsed: parsed.map_err(|fault| fault.in_file(path))?, bytes })
    }
}

struct Parsed {
    metadata: Metadata,
    /// The tensor descriptions of a header, in file order, including repeated names.
    tensors: Vec<(String, TensorInfo)>,
}

/// Reads a header from `bytes`, the beginning of a file of `file_len` bytes.
fn parse(bytes: &[u8], file_len: usize) -> Result<Parsed, ReadFault> {
    let mut reader = Reader::at(bytes, 0);
    let magic: [u8; 4] = reader.array()?;
    if magic != *b"GGUF" {
        let found = magic.escape_ascii();
        return Err(ReadFault::invalid(format!("it starts with the bytes `{found}`, expected `GGUF`")));
    }
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(ReadFault::invalid("it is big-endian; supported: little-endian"));
        }
        version => return Err(ReadFault::invalid(format!("it is of version {version}; supported: 2, 3"))),
    }
    let tensor_count = reader.u64()?;
    let pair_count = reader.u64()?;
    let metadata = Metadata::parse(&mut reader, pair_count)?;
    let alignment = alignment(&metadata)?;
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(RawInfo::parse(&mut reader)?);
    }
    let data_start = reader.position().checked_next_multiple_of(alignment).ok_or(ReadFault::End)?;
    let tensors = infos
        .into_iter()
        .map(|info| info.locate(data_start, alignment, file_len))
        .collect::<Result<Vec<_>, ReadFault>>()?;
    reject_overlaps(&tensors)?;
    Ok(Parsed { metadata, tensors })
}

fn alignment(metadata: &Metadata) -> Result<usize, ReadFault> {
    let key = "general.alignment";
    let fields = metadata.fields(Path::new(""));
    let value = fields.count(key, MAX_ALIGNMENT).ok().map(|value| value.unwrap_or(DEFAULT_ALIGNMENT));
    value.filter(|value| value.is_power_of_two()).ok_or_else(|| {
        let found = fields.get(key).map_or_else(String::new, |value| shorten(&value.to_string()));
        ReadFault::invalid(format!("`{key}` is {found}, expected a power of two up to {MAX_ALIGNMENT}"))
    })
}

/// A tensor description as the file stores it.
struct RawInfo<'a> {
    name: &'a str,
    /// The tensor's dimensions, innermost first.
    dimensions: Vec<u64>,
    kind: u32,
    /// Offset of the tensor's bytes within the file's data section.
    offset: u64,
}

impl<'a> RawInfo<'a> {
    fn parse(reader: &mut Reader<'a>) -> Result<Self, ReadFault> {
        let name = reader.text()?;
        let rank = reader.u32()?;
        if rank > MAX_DIMENSIONS {
            return Err(ReadFault::invalid(format!(
                "tensor `{}` has {rank} dimensions, expected at most {MAX_DIMENSIONS}",
                shorten(name)
            )));
        }
        let dimensions = (0..rank).map(|_| reader.u64()).collect::<Result<Vec<u64>, ReadFault>>()?;
        Ok(Self { name, dimensions, kind: reader.u32()?, offset: reader.u64()? })
    }

    fn locate(
        self,
        data_start: usize,
        alignment: usize,
        file_len: usize,
    ) -> Result<(String, TensorInfo), ReadFault> {
        let wrong = |what: &str| ReadFault::invalid(format!("tensor `{}` {what}", shorten(self.name)));
        let too_large = || wrong("has more elements than fit into memory");
        let shape: Vec<usize> = self
            .dimensions
            .iter()
            .rev()
            .map(|&dimension| usize::try_from(dimension).map_err(|_| too_large()))
            .collect::<Result<_, _>>()?;
        // After this check, later uses of the number of elements cannot overflow.
        let elements = shape.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension));
        elements.and_then(|elements| elements.checked_mul(8)).ok_or_else(too_large)?;
        let stored = match TensorType::from_number(self.kind) {
            Err(name) => Err(name),
            Ok(kind) => {
                let (rows, columns) = match shape.split_last() {
                    Some((&columns, outer)) => (outer.iter().product::<usize>(), columns),
                    None => (1, 1),
                };
                let row_bytes = kind.row_bytes(columns).ok_or_else(|| {
                    wrong(&format!("has rows of {columns} elements, expected whole blocks"))
                })?;
                let len = rows.checked_mul(row_bytes).ok_or_else(too_large)?;
                let offset = usize::try_from(self.offset).ok();
                if offset.is_none_or(|offset| offset % alignment != 0) {
                    return Err(wrong(&format!(
                        "begins at byte {}, expected a multiple of {alignment}",
                        self.offset
                    )));
                }
                let start = offset.and_then(|offset| offset.checked_add(data_start));
                let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= file_len);
                let (Some(start), Some(end)) = (start, end) else {
                    return Err(wrong("goes beyond the end of the file; it may be truncated"));
                };
                Ok(Stored { kind, bytes: start..end })
            }
        };
        Ok((self.name.to_owned(), TensorInfo { file: 0, shape, stored }))
    }
}

/// Rejects tensors that share bytes: such tensors could be dequantised to any multiple of the file's size.
fn reject_overlaps(tensors: &[(String, TensorInfo)]) -> Result<(), ReadFault> {
    let mut ranges: Vec<(&Range<usize>, &str)> = tensors
        .iter()
        .filter_map(|(name, info)| info.stored.as_ref().ok().map(|stored| (&stored.bytes, name.as_str())))
        .filter(|(bytes, _)| !bytes.is_empty())
        .collect();
    ranges.sort_by_key(|(bytes, _)| bytes.start);
    match ranges.windows(2).find(|pair| matches!(pair, [(a, _), (b, _)] if a.end > b.start)) {
        Some([(_, a), (_, b)]) => {
            Err(ReadFault::invalid(format!("tensors `{}` and `{}` overlap", shorten(a), shorten(b))))
        }
        _ => Ok(()),
    }
}
