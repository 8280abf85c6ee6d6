//! The paged KV cache.

use half::bf16;

use super::check;
use super::simd::Element;
use crate::device::{AttentionShape, DeviceError, Precision};

/// Keys and values of one layer, each `[pages][page_size][kv_heads][head_dim]`.
#[derive(Debug)]
pub(super) struct Layer<T> {
    pub(super) keys: Box<[T]>,
    pub(super) values: Box<[T]>,
}

impl<T: bytemuck::Zeroable> Layer<T> {
    /// The system hands out zeroed memory lazily: a page costs nothing before it is used.
    fn zeroed(len: usize) -> Option<Self> {
        let plane = || bytemuck::allocation::try_zeroed_slice_box(len).ok();
        Some(Self { keys: plane()?, values: plane()? })
    }
}

/// The layers, in the element type of the device's [`Precision`].
#[derive(Debug)]
pub(super) enum Layers {
    F32(Vec<Layer<f32>>),
    Bf16(Vec<Layer<bf16>>),
}

/// A paged KV cache over all layers. A page holds the same positions in every layer.
#[derive(Debug)]
pub struct KvCache {
    pub(super) layers: Layers,
    pub(super) paging: Paging,
}

/// Where things are within a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paging {
    pub(super) pages: usize,
    pub(super) page_size: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Paging {
    /// Values a token has in one layer's keys, and as many in its values.
    fn token_len(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The first element of KV head 0 at `position` of the sequence whose pages are `pages`, which
    /// [`covers`](Self::covers) the position.
    #[inline(always)]
    pub(super) fn token(self, pages: &[u32], position: usize) -> usize {
        let page = pages[position / self.page_size] as usize;
        (page * self.page_size + position % self.page_size) * self.token_len()
    }

    /// That positions 0..`len` have pages, and that those exist.
    pub(super) fn covers(
        self,
        operation: &'static str,
        pages: &[u32],
        len: usize,
    ) -> Result<(), DeviceError> {
        if len == 0 {
            return Ok(());
        }
        let last = len - 1;
        // Far enough from the largest integer for the positions of mask rows beyond it.
        let end = pages.len().saturating_mul(self.page_size).min(isize::MAX as usize);
        check::index(operation, "position", last, end)?;
        for &page in &pages[..=last / self.page_size] {
            check::index(operation, "page id", page as usize, self.pages)?;
        }
        Ok(())
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
        if page_size == 0 {
            check::shape("new_cache", "a page", &[1], &[0])?;
        }
        let AttentionShape { kv_heads, head_dim, .. } = shape;
        let element = match precision {
            Precision::F32 => size_of::<f32>(),
            Precision::Bf16 => size_of::<bf16>(),
        };
        let bytes = [2, layers, page_size, kv_heads, head_dim, element];
        let bytes = bytes.iter().try_fold(pages, |bytes, &n| bytes.checked_mul(n));
        let layers = bytes.and_then(|_| {
            let len = pages * page_size * kv_heads * head_dim;
            match precision {
                Precision::F32 => Some(Layers::F32(zeroed(layers, len)?)),
                Precision::Bf16 => Some(Layers::Bf16(zeroed(layers, len)?)),
            }
        });
        let paging = Paging { pages, page_size, kv_heads, head_dim };
        match layers {
            Some(layers) => Ok(Self { layers, paging }),
            None => Err(DeviceError::OutOfMemory { what: "KV cache", bytes: bytes.unwrap_or(usize::MAX) }),
        }
    }

    /// That there is a layer `layer`, and that its heads are those of `shape`.
    pub(super) fn check(
        &self,
        operation: &'static str,
        layer: usize,
        shape: AttentionShape,
    ) -> Result<(), DeviceError> {
        check::heads(operation, shape)?;
        let found = [self.paging.kv_heads, self.paging.head_dim];
        check::shape(operation, "cache [kv_heads, head_dim]", &[shape.kv_heads, shape.head_dim], &found)?;
        let layers = match &self.layers {
            Layers::F32(layers) => layers.len(),
            Layers::Bf16(layers) => layers.len(),
        };
        check::index(operation, "layer", layer, layers)
    }

    /// Writes the keys and values `[kv_heads · head_dim]` of one position, all operands checked.
    pub(super) fn append(
        &mut self,
        layer: usize,
        pages: &[u32],
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let start = self.paging.token(pages, position);
        let token = start..start + self.paging.token_len();
        match &mut self.layers {
            Layers::F32(layers) => {
                let layer = &mut layers[layer];
                layer.keys[token.clone()].copy_from_slice(keys);
                layer.values[token].copy_from_slice(values);
            }
            Layers::Bf16(layers) => {
                let layer = &mut layers[layer];
                store_bf16(keys, &mut layer.keys[token.clone()]);
                store_bf16(values, &mut layer.values[token]);
            }
        }
    }
}

fn store_bf16(from: &[f32], to: &mut [bf16]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = bf16::from_f32(from);
    }
}

fn zeroed<T: Element + bytemuck::Zeroable>(layers: usize, len: usize) -> Option<Vec<Layer<T>>> {
    let mut all = Vec::new();
    all.try_reserve_exact(layers).ok()?;
    for _ in 0..layers {
        all.push(Layer::zeroed(len)?);
    }
    Some(all)
}
