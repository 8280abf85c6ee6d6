//! Weights in host memory: typed views of bytes that are owned or memory-mapped, and blocks of quantised elements.

mod blocks;

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

pub use self::blocks::{BlockFormat, Blocks};
pub(crate) use self::blocks::{MAX_BLOCK_LEN, half, nibbles};

/// Element types of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// The type f32, IEEE 754 single precision.
    F32,
    /// The type f16, IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl DType {
    /// Returns the size of one element of this type in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The elements of a [`Tensor`], in row-major order.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Single-precision elements.
    F32(&'a [f32]),
    /// Half-precision elements.
    F16(&'a [f16]),
    /// bfloat16 elements.
    Bf16(&'a [bf16]),
    /// Quantised elements; every row is a sequence of whole blocks.
    Blocks(Blocks<'a>),
}

impl Elements<'_> {
    /// Returns the number of elements of the tensor.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::Blocks(x) => x.len(),
        }
    }

    /// Returns whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the elements `range` as f32 into `out`, which has the same length as `range`. Elements outside either are
    /// left alone.
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F32(x) => out.iter_mut().zip(x.get(range).unwrap_or(&[])).for_each(|(o, &x)| *o = x),
            Self::F16(x) => {
                out.iter_mut().zip(x.get(range).unwrap_or(&[])).for_each(|(o, x)| *o = x.to_f32());
            }
            Self::Bf16(x) => {
                out.iter_mut().zip(x.get(range).unwrap_or(&[])).for_each(|(o, x)| *o = x.to_f32());
            }
            Self::Blocks(x) => x.read_f32(range, out),
        }
    }
}

/// The memory that holds a tensor's bytes.
#[derive(Clone)]
enum Storage {
    F32(Arc<Vec<f32>>),
    F16(Arc<Vec<f16>>),
    Bf16(Arc<Vec<bf16>>),
    /// A range of a file's mapping that other tensors share (or of any other shared bytes), aligned for the element
    /// type.
    Bytes(DType, Arc<dyn AsRef<[u8]> + Send + Sync>, Range<usize>),
    /// A range of shared bytes with blocks, which need no alignment.
    Blocks(BlockFormat, Arc<dyn AsRef<[u8]> + Send + Sync>, Range<usize>),
}

/// A row-major tensor on the host; clones share its bytes.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.block_format() {
            Some(format) => write!(f, "Tensor({format} {:?})", self.shape),
            None => write!(f, "Tensor({} {:?})", self.dtype(), self.shape),
        }
    }
}

impl Tensor {
    /// Makes a tensor without elements.
    pub(crate) fn empty() -> Self {
        Self { shape: vec![0], storage: Storage::F32(Arc::default()) }
    }

    /// Makes a tensor that owns its f32 elements; returns `None` if their number is not the product of `shape`.
    pub fn from_f32(shape: &[usize], elements: Vec<f32>) -> Option<Self> {
        Self::checked(shape, elements.len(), || Storage::F32(Arc::new(elements)))
    }

    /// Makes a tensor that owns its f16 elements; returns `None` if their number is not the product of `shape`.
    pub fn from_f16(shape: &[usize], elements: Vec<f16>) -> Option<Self> {
        Self::checked(shape, elements.len(), || Storage::F16(Arc::new(elements)))
    }

    /// Makes a tensor that owns its bf16 elements; returns `None` if their number is not the product of `shape`.
    pub fn from_bf16(shape: &[usize], elements: Vec<bf16>) -> Option<Self> {
        Self::checked(shape, elements.len(), || Storage::Bf16(Arc::new(elements)))
    }

    /// Makes a tensor from the little-endian elements in `range` of `bytes`. The tensor keeps the bytes alive, and
    /// copies them only if they are not aligned for `dtype`. `None` if the range is not within the bytes, or its length
    /// does not match `shape`.
    pub fn from_bytes(
        dtype: DType,
        shape: &[usize],
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Option<Self> {
        let slice = (*bytes).as_ref().get(range.clone())?;
        if slice.len() % dtype.size() != 0 {
            return None;
        }
        let aligned = (slice.as_ptr() as usize).is_multiple_of(dtype.size());
        let storage = match (aligned, dtype) {
            (true, _) => Storage::Bytes(dtype, bytes.clone(), range),
            (false, DType::F32) => Storage::F32(Arc::new(
                slice.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            )),
            (false, DType::F16) => Storage::F16(Arc::new(
                slice.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect(),
            )),
            (false, DType::Bf16) => Storage::Bf16(Arc::new(
                slice.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect(),
            )),
        };
        Self::checked(shape, slice.len() / dtype.size(), || storage)
    }

    /// Makes a tensor of quantised elements from the blocks in `range` of `bytes`, which the tensor keeps alive and does
    /// not copy. `None` if the range is not within the bytes, if its length does not match `shape`, or if a row, the last
    /// dimension, is not whole blocks.
    pub fn from_blocks(
        format: BlockFormat,
        shape: &[usize],
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Option<Self> {
        let len = (*bytes).as_ref().get(range.clone())?.len();
        format.bytes_of(*shape.last()?)?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (format.bytes_of(elements)? == len)
            .then(|| Self { shape: shape.to_vec(), storage: Storage::Blocks(format, bytes, range) })
    }

    fn checked(shape: &[usize], elements: usize, storage: impl FnOnce() -> Storage) -> Option<Self> {
        let expected = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (expected == elements).then(|| Self { shape: shape.to_vec(), storage: storage() })
    }

    /// Returns the type of the tensor's elements. Elements of [blocks](Self::block_format) are dequantised to f32.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::F32(_) => DType::F32,
            Storage::F16(_) => DType::F16,
            Storage::Bf16(_) => DType::Bf16,
            Storage::Bytes(dtype, ..) => *dtype,
            Storage::Blocks(..) => DType::F32,
        }
    }

    /// Returns the format of the tensor's blocks if its elements are quantised.
    pub fn block_format(&self) -> Option<BlockFormat> {
        match &self.storage {
            Storage::Blocks(format, ..) => Some(*format),
            _ => None,
        }
    }

    /// Returns the length of each dimension of the tensor, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the size of all elements of the tensor in bytes, as they are stored.
    pub fn byte_len(&self) -> usize {
        match self.elements() {
            Elements::Blocks(blocks) => blocks.bytes().len(),
            elements => elements.len() * self.dtype().size(),
        }
    }

    /// Returns the tensor's elements in row-major order.
    pub fn elements(&self) -> Elements<'_> {
        match &self.storage {
            Storage::F32(x) => Elements::F32(x),
            Storage::F16(x) => Elements::F16(x),
            Storage::Bf16(x) => Elements::Bf16(x),
            Storage::Blocks(format, bytes, range) => {
                let bytes = (**bytes).as_ref().get(range.clone()).unwrap_or(&[]);
                Elements::Blocks(Blocks::new(*format, bytes))
            }
            Storage::Bytes(dtype, bytes, range) => {
                // The range is valid and aligned: `from_bytes` checked both, and an owner's bytes do not move.
                let bytes = (**bytes).as_ref().get(range.clone()).unwrap_or(&[]);
                match dtype {
                    DType::F32 => Elements::F32(bytemuck::try_cast_slice(bytes).unwrap_or(&[])),
                    DType::F16 => Elements::F16(bytemuck::try_cast_slice(bytes).unwrap_or(&[])),
                    DType::Bf16 => Elements::Bf16(bytemuck::try_cast_slice(bytes).unwrap_or(&[])),
                }
            }
        }
    }

    /// Returns row `index` of a matrix as a vector, or `None` if there is no such row. The row shares the bytes of a
    /// tensor made [from bytes](Self::from_bytes) or [from blocks](Self::from_blocks), and is a copy otherwise.
    pub fn row(&self, index: usize) -> Option<Self> {
        let &[rows, cols] = self.shape.as_slice() else { return None };
        if index >= rows {
            return None;
        }
        let range = index * cols..(index + 1) * cols;
        let storage = match &self.storage {
            Storage::F32(x) => Storage::F32(Arc::new(x.get(range)?.to_vec())),
            Storage::F16(x) => Storage::F16(Arc::new(x.get(range)?.to_vec())),
            Storage::Bf16(x) => Storage::Bf16(Arc::new(x.get(range)?.to_vec())),
            Storage::Bytes(dtype, bytes, all) => {
                let byte = |element: usize| all.start + element * dtype.size();
                Storage::Bytes(*dtype, bytes.clone(), byte(range.start)..byte(range.end))
            }
            Storage::Blocks(format, bytes, all) => {
                let size = format.bytes_of(cols)?;
                let start = all.start + index * size;
                Storage::Blocks(*format, bytes.clone(), start..start + size)
            }
        };
        Some(Self { shape: vec![cols], storage })
    }

    /// Returns all elements of the tensor as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let elements = self.elements();
        let mut out = vec![0.0; elements.len()];
        elements.read_f32(0..elements.len(), &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bytes_aligned_or_not_read_the_same() {
        let values = [1.5f32, -2.0, 0.25];
        let mut bytes = vec![0u8; 1];
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        let shifted: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(bytes.clone());
        let straight: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(bytes[1..].to_vec());
        let a = Tensor::from_bytes(DType::F32, &[3], shifted, 1..13).unwrap();
        let b = Tensor::from_bytes(DType::F32, &[3, 1], straight.clone(), 0..12).unwrap();
        assert_eq!(a.to_f32(), values);
        assert_eq!(b.to_f32(), values);
        assert_eq!(b.byte_len(), 12);
        assert!(Tensor::from_bytes(DType::F32, &[4], straight.clone(), 0..12).is_none());
        assert!(Tensor::from_bytes(DType::F32, &[3], straight.clone(), 4..16).is_none());
        assert!(Tensor::from_bytes(DType::F32, &[usize::MAX, 2], straight, 0..12).is_none());
    }

    #[test]
    fn blocks_are_rows_of_whole_blocks() {
        // Each block has the scale 1 and 32 numbers.
        let block = |first: i8| -> Vec<u8> {
            let quants = (0..32).map(|i| (first + i).cast_unsigned());
            f16::ONE.to_le_bytes().into_iter().chain(quants).collect()
        };
        let bytes: Vec<u8> = [vec![9], block(0), block(-16), block(32), block(-64)].concat();
        let bytes: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(bytes);
        let make =
            |shape: &[usize], range| Tensor::from_blocks(BlockFormat::Q8_0, shape, bytes.clone(), range);
        let matrix = make(&[2, 64], 1..137).unwrap();
        assert_eq!((matrix.byte_len(), matrix.block_format()), (136, Some(BlockFormat::Q8_0)));
        assert_eq!(format!("{matrix:?}"), "Tensor(Q8_0 [2, 64])");
        let values = matrix.to_f32();
        assert_eq!((values[1], values[32], values[64], values[127]), (1.0, -16.0, 32.0, -33.0));
        let mut middle = [0.0; 70];
        matrix.elements().read_f32(30..100, &mut middle);
        assert_eq!(middle, values[30..100]);
        let mut beyond = [7.0; 4];
        matrix.elements().read_f32(126..130, &mut beyond);
        assert_eq!(beyond, [-34.0, -33.0, 7.0, 7.0]);
        let row = matrix.row(1).unwrap();
        assert_eq!((row.shape(), row.to_f32()), (&[64][..], values[64..].to_vec()));
        assert!(matrix.row(2).is_none());
        assert!(make(&[4, 33], 1..137).is_none(), "rows that are not whole blocks");
        assert!(make(&[8, 16], 1..137).is_none(), "rows of half blocks");
        assert!(make(&[2, 64], 0..135).is_none() && make(&[2, 64], 2..138).is_none());
        assert!(make(&[], 1..1).is_none() && make(&[usize::MAX, 64], 1..137).is_none());
    }

    #[test]
    fn rows_of_a_matrix() {
        let values = [0.5f32, 1.0, 2.0, -4.0, 8.0, 16.0];
        let half = |x: f32| f16::from_f32(x);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shifted: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new([vec![0; 4], bytes].concat());
        let matrices = [
            Tensor::from_f32(&[3, 2], values.to_vec()),
            Tensor::from_f16(&[3, 2], values.map(half).to_vec()),
            Tensor::from_bf16(&[3, 2], values.map(bf16::from_f32).to_vec()),
            Tensor::from_bytes(DType::F32, &[3, 2], shifted, 4..28),
        ];
        for matrix in matrices.map(Option::unwrap) {
            let row = matrix.row(1).unwrap();
            assert_eq!((row.shape(), row.to_f32(), row.dtype()), (&[2][..], vec![2.0, -4.0], matrix.dtype()));
            assert!(matrix.row(3).is_none() && row.row(0).is_none());
        }
    }
}
