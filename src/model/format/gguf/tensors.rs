//! Reads the tensors of a GGUF file: restores permuted rows, and keeps quantised blocks or converts them to bf16.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::header::{Header, Stored};
use super::quantization::{Quantization, TensorType};
use super::{Gguf, QuantizedWeights};
use crate::model::LoadError;
use crate::model::format::files::{Bytes, open};
use crate::tensor::{MAX_BLOCK_LEN, Tensor};

impl Gguf {
    /// Returns a tensor with its stored elements; quantised elements become bf16.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], [`LoadError::UnsupportedQuantization`] or [`LoadError::OutOfMemory`].
    pub fn tensor(&self, name: &str) -> Result<Tensor, LoadError> {
        let shape = &self.header.tensor(name)?.shape;
        self.tensor_of_shape(name, shape, None, QuantizedWeights::Bf16)
    }

    /// Returns a tensor of the file, which must have the given shape. If its rows are permuted, the permutation is
    /// undone. Only a matrix can keep its blocks.
    pub(in crate::model) fn tensor_of_shape(
        &self,
        name: &str,
        shape: &[usize],
        permuted_heads: Option<usize>,
        quantized: QuantizedWeights,
    ) -> Result<Tensor, LoadError> {
        let stored = self.stored_of_shape(name, shape)?;
        let rows = RowOrder::new(shape, permuted_heads);
        let bytes = self.files.get(self.header.tensor(name)?.file);
        bytes
            .and_then(|bytes| decode(stored, bytes, shape, &rows, quantized))
            .ok_or_else(|| LoadError::OutOfMemory { tensor: name.into(), shape: shape.to_vec() })
    }

    /// Returns how a tensor is stored, which must have the given shape.
    pub(in crate::model) fn stored_of_shape(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<&Stored, LoadError> {
        let found = &self.header.tensor(name)?.shape;
        if found != shape {
            return Err(LoadError::Shape {
                path: self.header.path_of(name).into(),
                tensor: name.into(),
                expected: shape.to_vec(),
                found: found.clone(),
            });
        }
        self.header.stored(name)
    }

    /// Returns the number of elements of a quantised tensor that are infinite or NaN, block by block, so that the tensor
    /// is never dequantised as a whole. `None` if the tensor is not quantised or cannot be read.
    pub(in crate::model) fn non_finite_in_blocks(&self, name: &str) -> Option<usize> {
        let stored = self.header.stored(name).ok()?;
        let TensorType::Quantized(format) = stored.kind else { return None };
        let bytes = self.files.get(self.header.tensor(name).ok()?.file)?;
        let blocks = (**bytes).as_ref().get(stored.bytes.clone())?;
        let count = |block: &[u8]| {
            let mut elements = [bf16::ZERO; MAX_BLOCK_LEN];
            format.dequantize(block, &mut elements);
            elements[..format.block_len()].iter().filter(|x| !x.is_finite()).count()
        };
        Some(blocks.par_chunks_exact(format.block_bytes()).map(count).sum())
    }
}

impl Header {
    /// Reads one tensor from a GGUF file, without the rest of the data.
    pub(in crate::model) fn read_tensor(&self, name: &str) -> Result<Tensor, LoadError> {
        let path = self.path_of(name);
        let io = |source| LoadError::Io { path: path.into(), source };
        let shape = &self.tensor(name)?.shape;
        let Stored { kind, bytes } = self.stored(name)?;
        let (mut file, _) = open(path)?;
        file.seek(SeekFrom::Start(bytes.start as u64)).map_err(io)?;
        let mut read = Vec::new();
        file.take(bytes.len() as u64).read_to_end(&mut read).map_err(io)?;
        if read.len() != bytes.len() {
            return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let stored = Stored { kind: *kind, bytes: 0..read.len() };
        let bytes: Bytes = Arc::new(read);
        decode(&stored, &bytes, shape, &RowOrder::new(shape, None), QuantizedWeights::Bf16)
            .ok_or_else(|| LoadError::OutOfMemory { tensor: name.into(), shape: shape.clone() })
    }
}

/// The order of a stored tensor's rows, relative to the model's tensor.
struct RowOrder {
    count: usize,
    columns: usize,
    /// Size of a head, if the rows of each head are permuted.
    permuted_head_dim: Option<usize>,
}

impl RowOrder {
    fn new(shape: &[usize], permuted_heads: Option<usize>) -> Self {
        // A bias [out] has `out` rows of one element, and is permuted like the weight [out, in].
        let (count, columns) = match *shape {
            [count, columns] => (count, columns),
            [count] if permuted_heads.is_some() => (count, 1),
            _ => (1, shape.iter().product()),
        };
        let permuted_head_dim = permuted_heads.map(|heads| count / heads.max(1)).filter(|&dim| dim > 0);
        Self { count, columns, permuted_head_dim }
    }

    /// Returns the index of the stored row that is row `row` of the model's tensor.
    fn stored(&self, row: usize) -> usize {
        match self.permuted_head_dim {
            None => row,
            Some(head_dim) => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (part, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + part
            }
        }
    }
}

/// Decodes the stored bytes of a tensor; returns `None` if memory runs out.
fn decode(
    stored: &Stored,
    bytes: &Bytes,
    shape: &[usize],
    rows: &RowOrder,
    quantized: QuantizedWeights,
) -> Option<Tensor> {
    let keep = quantized == QuantizedWeights::Keep && shape.len() == 2;
    match stored.kind {
        TensorType::Plain(dtype) => {
            let (bytes, range) = in_order(stored, bytes, rows)?;
            Tensor::from_bytes(dtype, shape, bytes, range)
        }
        TensorType::Quantized(Quantization::Kept(format)) if keep => {
            let (bytes, range) = in_order(stored, bytes, rows)?;
            Tensor::from_blocks(format, shape, bytes, range)
        }
        TensorType::Quantized(format) => {
            let source = (**bytes).as_ref().get(stored.bytes.clone())?;
            Tensor::from_bf16(shape, dequantize(format, source, rows)?)
        }
    }
}

/// Returns the bytes of a tensor with its rows in the model's order: the file's own bytes, or a copy if the file has
/// another order.
fn in_order(stored: &Stored, bytes: &Bytes, rows: &RowOrder) -> Option<(Bytes, Range<usize>)> {
    if rows.permuted_head_dim.is_none() {
        return Some((bytes.clone(), stored.bytes.clone()));
    }
    let source = (**bytes).as_ref().get(stored.bytes.clone())?;
    let row_bytes = stored.kind.row_bytes(rows.columns)?;
    let mut permuted = Vec::new();
    permuted.try_reserve_exact(source.len()).ok()?;
    for row in 0..rows.count {
        let start = rows.stored(row) * row_bytes;
        permuted.extend_from_slice(source.get(start..start + row_bytes)?);
    }
    let range = 0..permuted.len();
    Some((Arc::new(permuted), range))
}

fn dequantize(format: Quantization, source: &[u8], rows: &RowOrder) -> Option<Vec<bf16>> {
    let row_bytes = TensorType::Quantized(format).row_bytes(rows.columns)?;
    let elements = rows.count.checked_mul(rows.columns)?;
    let mut out = Vec::new();
    out.try_reserve_exact(elements).ok()?;
    out.resize(elements, bf16::ZERO);
    out.par_chunks_mut(rows.columns.max(1)).enumerate().for_each(|(row, out)| {
        let start = rows.stored(row) * row_bytes;
        format.dequantize(source.get(start..start + row_bytes).unwrap_or(&[]), out);
    });
    Some(out)
}
