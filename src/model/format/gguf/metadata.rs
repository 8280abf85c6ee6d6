//! The metadata of a GGUF file: key-value pairs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Number, Value};

use super::reader::{ReadFault, Reader};
use crate::model::LoadError;
use crate::model::format::json::Fields;

/// Limit on the nesting depth of arrays in the metadata. No known key nests even once.
const MAX_DEPTH: usize = 4;

/// Number of array elements that an error message shows.
const SHOWN_ELEMENTS: usize = 4;

/// Types of metadata values and of array elements, in the order of their type numbers in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_number(number: u32) -> Option<Self> {
        const ALL: [ValueType; 13] = [
            ValueType::U8,
            ValueType::I8,
            ValueType::U16,
            ValueType::I16,
            ValueType::U32,
            ValueType::I32,
            ValueType::F32,
            ValueType::Bool,
            ValueType::String,
            ValueType::Array,
            ValueType::U64,
            ValueType::I64,
            ValueType::F64,
        ];
        ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Returns the size of a value in bytes, if all values of the type have the same size.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// An array in the metadata, whose bytes exist in the file. The elements are decoded on request.
#[derive(Clone, Debug)]
struct Array {
    element: ValueType,
    len: usize,
    /// Range of all elements' bytes within the file.
    bytes: Range<usize>,
}

/// The key-value pairs of a GGUF file. Numbers, flags and strings are stored as the corresponding JSON values; of an
/// array, only the first elements are stored, and the location of all elements.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    values: Map<String, Value>,
    arrays: BTreeMap<String, Array>,
}

impl Metadata {
    /// Reads `count` key-value pairs of the metadata.
    pub(super) fn parse(reader: &mut Reader<'_>, count: u64) -> Result<Self, ReadFault> {
        let mut metadata = Self::default();
        for _ in 0..count {
            let key = reader.text()?;
            let value = match value_type(reader, key)? {
                ValueType::Array => {
                    let array = skip_array(reader, key, 0)?;
                    let value = first_elements(reader, &array)?;
                    metadata.arrays.insert(key.to_owned(), array);
                    value
                }
                scalar => read_value(reader, scalar)?,
            };
            if metadata.values.insert(key.to_owned(), value).is_some() {
                return Err(ReadFault::invalid(format!("key `{key}` occurs more than once")));
            }
        }
        Ok(metadata)
    }

    /// Returns the metadata's values by key. An array appears as a list of its first elements.
    pub(super) fn fields<'a>(&'a self, path: &'a Path) -> Fields<'a> {
        Fields::new(path, &self.values)
    }

    /// Returns the strings of an array in the metadata; `bytes` are the bytes of the file.
    pub(super) fn strings<'a>(
        &self,
        path: &Path,
        bytes: &'a [u8],
        key: &str,
    ) -> Result<Option<Vec<&'a str>>, LoadError> {
        self.elements(path, bytes, key, ValueType::String, "an array of strings", Reader::text)
    }

    /// Returns the integers of an array in the metadata; `bytes` are the bytes of the file.
    pub(super) fn integers(
        &self,
        path: &Path,
        bytes: &[u8],
        key: &str,
    ) -> Result<Option<Vec<i32>>, LoadError> {
        let read = |reader: &mut Reader<'_>| reader.array().map(i32::from_le_bytes);
        self.elements(path, bytes, key, ValueType::I32, "an array of 32-bit signed integers", read)
    }

    /// Returns an array of 32-bit floats; `bytes` are the bytes of the file.
    pub(super) fn floats(&self, path: &Path, bytes: &[u8], key: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let read = |reader: &mut Reader<'_>| reader.array().map(f32::from_le_bytes);
        self.elements(path, bytes, key, ValueType::F32, "an array of 32-bit floats", read)
    }

    fn elements<'a, T>(
        &self,
        path: &Path,
        bytes: &'a [u8],
        key: &str,
        element: ValueType,
        expected: &str,
        read: impl Fn(&mut Reader<'a>) -> Result<T, ReadFault>,
    ) -> Result<Option<Vec<T>>, LoadError> {
        if !self.values.contains_key(key) {
            return Ok(None);
        }
        let array = self.arrays.get(key).filter(|array| array.element == element);
        let array = array.ok_or_else(|| self.fields(path).invalid(key, expected))?;
        let mut reader = Reader::at(bytes, array.bytes.start);
        (0..array.len)
            .map(|_| read(&mut reader))
            .collect::<Result<Vec<T>, ReadFault>>()
            .map(Some)
            .map_err(|fault| fault.in_file(path))
    }
}

fn value_type(reader: &mut Reader<'_>, key: &str) -> Result<ValueType, ReadFault> {
    let number = reader.u32()?;
    ValueType::from_number(number)
        .ok_or_else(|| ReadFault::invalid(format!("key `{key}` has value type {number}, expected 0 to 12")))
}

/// Skips an array in the metadata and returns where its elements are; the reader is behind the array's own
/// value type.
fn skip_array(reader: &mut Reader<'_>, key: &str, depth: usize) -> Result<Array, ReadFault> {
    if depth == MAX_DEPTH {
        return Err(ReadFault::invalid(format!(
            "key `{key}` nests arrays more than {MAX_DEPTH} levels deep"
        )));
    }
    let element = value_type(reader, key)?;
    let len = reader.count()?;
    let start = reader.position();
    match element.size() {
        Some(size) => {
            let bytes = len.checked_mul(size).ok_or(ReadFault::End)?;
            reader.take(bytes)?;
        }
        // Every string takes at least the eight bytes of its length, so a damaged `len` cannot keep this loop
        // going beyond the end of the file.
        None if element == ValueType::String => (0..len).try_for_each(|_| reader.string().map(drop))?,
        None => (0..len).try_for_each(|_| skip_array(reader, key, depth + 1).map(drop))?,
    }
    Ok(Array { element, len, bytes: start..reader.position() })
}

/// Returns the first elements of an array as JSON, followed by the number of the remaining elements.
fn first_elements(reader: &Reader<'_>, array: &Array) -> Result<Value, ReadFault> {
    let mut reader = reader.reread(array.bytes.start);
    let shown = if array.element == ValueType::Array { 0 } else { array.len.min(SHOWN_ELEMENTS) };
    let mut elements = Vec::with_capacity(shown + 1);
    for _ in 0..shown {
        elements.push(read_value(&mut reader, array.element)?);
    }
    if shown < array.len {
        elements.push(format!("{} more", array.len - shown).into());
    }
    Ok(Value::Array(elements))
}

/// Reads a value of the metadata that is not an array.
fn read_value(reader: &mut Reader<'_>, value_type: ValueType) -> Result<Value, ReadFault> {
    // JSON has no infinity and no NaN, so they become strings. As text, they give an error where a number is expected.
    let float = |x: f64| Number::from_f64(x).map_or_else(|| Value::String(x.to_string()), Value::Number);
    Ok(match value_type {
        ValueType::U8 => u8::from_le_bytes(reader.array()?).into(),
        ValueType::I8 => i8::from_le_bytes(reader.array()?).into(),
        ValueType::U16 => u16::from_le_bytes(reader.array()?).into(),
        ValueType::I16 => i16::from_le_bytes(reader.array()?).into(),
        ValueType::U32 => reader.u32()?.into(),
        ValueType::I32 => i32::from_le_bytes(reader.array()?).into(),
        ValueType::U64 => reader.u64()?.into(),
        ValueType::I64 => i64::from_le_bytes(reader.array()?).into(),
        ValueType::F32 => float(f32::from_le_bytes(reader.array()?).into()),
        ValueType::F64 => float(f64::from_le_bytes(reader.array()?)),
        ValueType::Bool => match reader.array()? {
            [0] => false.into(),
            [1] => true.into(),
            [other] => return Err(ReadFault::invalid(format!("a flag is {other}, expected 0 or 1"))),
        },
        ValueType::String | ValueType::Array => reader.text()?.into(),
    })
}
