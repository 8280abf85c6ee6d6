//! The paged KV cache.

use half::bf16;

use super::check;
use crate::device::{AttentionShape, DeviceError, Precision};

/// Keys and values of every layer in pages `[layer][page][token][kv_head][head_dim]`.
pub struct KvCache {
    keys: Store,
    values: Store,
    layers: usize,
    pages: usize,
    page_size: usize,
    shape: AttentionShape,
}

enum Store {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Store {
    fn new(len: usize, precision: Precision) -> Result<Self, DeviceError> {
        let size = match precision {
            Precision::F32 => size_of::<f32>(),
            Precision::Bf16 => size_of::<bf16>(),
        };
        let bytes = len.saturating_mul(size);
        let out_of_memory = |_| DeviceError::OutOfMemory { what: "the KV cache", bytes };
        // Zeroed memory, so that the system hands out pages as they are first written.
        match precision {
            Precision::F32 => bytemuck::allocation::try_zeroed_vec(len).map(Self::F32).map_err(out_of_memory),
            Precision::Bf16 => {
                bytemuck::allocation::try_zeroed_vec(len).map(Self::Bf16).map_err(out_of_memory)
            }
        }
    }

    fn write(&mut self, first: usize, from: &[f32]) {
        match self {
            Self::F32(to) => to[first..first + from.len()].copy_from_slice(from),
            Self::Bf16(to) => {
                to[first..].iter_mut().zip(from).for_each(|(to, &from)| *to = bf16::from_f32(from));
            }
        }
    }

    fn read(&self, first: usize, to: &mut [f32]) {
        match self {
            Self::F32(from) => to.copy_from_slice(&from[first..first + to.len()]),
            Self::Bf16(from) => to.iter_mut().zip(&from[first..]).for_each(|(to, from)| *to = from.to_f32()),
        }
    }
}

impl KvCache {
    pub(super) fn new(
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
        precision: Precision,
    ) -> Result<Self, DeviceError> {
        check::heads("new_cache", shape)?;
        let len = [layers, pages, page_size, shape.kv_heads, shape.head_dim]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .unwrap_or(usize::MAX);
        let store = || Store::new(len, precision);
        Ok(Self { keys: store()?, values: store()?, layers, pages, page_size, shape })
    }

    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    pub(super) fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// First element of a token's KV head. Layer, page and head exist; the position is in the page table.
    fn offset(&self, layer: usize, pages: &[u32], position: usize, head: usize) -> usize {
        let page = pages[position / self.page_size] as usize;
        let token = (layer * self.pages + page) * self.page_size + position % self.page_size;
        (token * self.shape.kv_heads + head) * self.shape.head_dim
    }

    /// Writes the K and V heads of a token.
    pub(super) fn append(&mut self, layer: usize, pages: &[u32], position: usize, k: &[f32], v: &[f32]) {
        let first = self.offset(layer, pages, position, 0);
        self.keys.write(first, k);
        self.values.write(first, v);
    }

    pub(super) fn read_key(&self, layer: usize, pages: &[u32], position: usize, head: usize, to: &mut [f32]) {
        self.keys.read(self.offset(layer, pages, position, head), to);
    }

    pub(super) fn read_value(
        &self,
        layer: usize,
        pages: &[u32],
        position: usize,
        head: usize,
        to: &mut [f32],
    ) {
        self.values.read(self.offset(layer, pages, position, head), to);
    }
}
