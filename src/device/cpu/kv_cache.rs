//! The paged KV cache of the CPU device.

use half::bf16;

use super::check;
use super::page_layout::PageLayout;
use crate::device::{AttentionShape, DeviceError, Precision};

/// Keys and values of every layer, in the element type of the device's [`Precision`].
#[derive(Debug)]
pub struct CpuKvCache {
    store: Store,
    layers: usize,
    paging: PageLayout,
}

#[derive(Debug)]
enum Store {
    F32(Planes<Vec<f32>>),
    Bf16(Planes<Vec<bf16>>),
}

/// Keys and values, each `[layers, pages, kv_heads, page_size, head_dim]`, or one layer of them. The head
/// dimension comes before the token dimension because attention reads one head of many tokens at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes<P> {
    pub(super) keys: P,
    pub(super) values: P,
}

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum CacheLayer<'a> {
    F32(Planes<&'a [f32]>),
    Bf16(Planes<&'a [bf16]>),
}

impl CpuKvCache {
    pub(super) fn new(
        layers: usize,
        pages: usize,
        page_size: usize,
        shape: AttentionShape,
        precision: Precision,
    ) -> Result<Self, DeviceError> {
        check::heads("new_cache", shape)?;
        check::shape("new_cache", "a page", &[page_size.max(1)], &[page_size])?;
        let AttentionShape { kv_heads, head_dim, .. } = shape;
        let paging = PageLayout { pages, page_size, kv_heads, head_dim };
        let element = match precision {
            Precision::F32 | Precision::Q8 => size_of::<f32>(),
            Precision::Bf16 => size_of::<bf16>(),
        };
        let len = [page_size, kv_heads, head_dim, pages].iter().try_fold(layers, |n, &m| n.checked_mul(m));
        let size = len.and_then(|len| Some((len, len.checked_mul(2 * element)?)));
        let (len, bytes) =
            size.ok_or(DeviceError::Overflow { operation: "new_cache", operand: "the KV cache" })?;
        let store = match precision {
            Precision::F32 | Precision::Q8 => zeroed(len).map(Store::F32),
            Precision::Bf16 => zeroed(len).map(Store::Bf16),
        };
        let store = store.ok_or(DeviceError::OutOfMemory { what: "KV cache", bytes })?;
        Ok(Self { store, layers, paging })
    }

    pub(super) fn paging(&self) -> PageLayout {
        self.paging
    }

    /// Checks that layer `layer` exists, and that its heads match `shape`.
    pub(super) fn check(
        &self,
        operation: &'static str,
        layer: usize,
        shape: AttentionShape,
    ) -> Result<(), DeviceError> {
        check::heads(operation, shape)?;
        let found = [self.paging.kv_heads, self.paging.head_dim];
        check::shape(operation, "cache [kv_heads, head_dim]", &[shape.kv_heads, shape.head_dim], &found)?;
        check::index(operation, "layer", layer, self.layers)
    }

    /// Returns a layer, which must exist.
    pub(super) fn layer(&self, layer: usize) -> CacheLayer<'_> {
        let len = self.paging.layer_len();
        let range = layer * len..(layer + 1) * len;
        match &self.store {
            Store::F32(planes) => {
                CacheLayer::F32(Planes { keys: &planes.keys[range.clone()], values: &planes.values[range] })
            }
            Store::Bf16(planes) => {
                CacheLayer::Bf16(Planes { keys: &planes.keys[range.clone()], values: &planes.values[range] })
            }
        }
    }

    /// Writes the keys and values `[kv_heads, head_dim]` of one position. The layer must exist, and `pages`
    /// must [`cover`](PageLayout::cover) the position.
    pub(super) fn append(
        &mut self,
        layer: usize,
        pages: &[u32],
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let paging = self.paging;
        let layer = layer * paging.layer_len();
        let heads = keys.chunks_exact(paging.head_dim).zip(values.chunks_exact(paging.head_dim));
        for (kv_head, (keys, values)) in heads.enumerate() {
            let first = layer + paging.head(pages, position, kv_head);
            let head = first..first + paging.head_dim;
            match &mut self.store {
                Store::F32(planes) => {
                    planes.keys[head.clone()].copy_from_slice(keys);
                    planes.values[head].copy_from_slice(values);
                }
                Store::Bf16(planes) => {
                    round(keys, &mut planes.keys[head.clone()]);
                    round(values, &mut planes.values[head]);
                }
            }
        }
    }
}

fn round(from: &[f32], to: &mut [bf16]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = bf16::from_f32(from);
    }
}

/// Allocates zeroed memory. The system provides each page when it is first written.
fn zeroed<T: bytemuck::Zeroable>(len: usize) -> Option<Planes<Vec<T>>> {
    let plane = || bytemuck::allocation::try_zeroed_vec(len).ok();
    Some(Planes { keys: plane()?, values: plane()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 2 };

    #[test]
    fn a_token_is_where_its_page_is() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut cache = CpuKvCache::new(2, 3, 4, SHAPE, precision).unwrap();
            let pages = [2, 0];
            cache.append(1, &pages, 5, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
            // Position 5 of the sequence is token 1 of its second page, page 0. The four tokens of head 0
            // come first in each page.
            let expected = [(2, 1.0), (3, 2.0), (10, 3.0), (11, 4.0)];
            let non_zero = |values: Vec<f32>| -> Vec<(usize, f32)> {
                values.into_iter().enumerate().filter(|(_, value)| *value != 0.0).collect()
            };
            let (keys, values) = match cache.layer(1) {
                CacheLayer::F32(planes) => (planes.keys.to_vec(), planes.values.to_vec()),
                CacheLayer::Bf16(planes) => {
                    let widen = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect();
                    (widen(planes.keys), widen(planes.values))
                }
            };
            assert_eq!(non_zero(keys), expected);
            assert_eq!(non_zero(values), expected.map(|(index, value)| (index, value + 4.0)));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let new = |layers, pages, page_size| {
            CpuKvCache::new(layers, pages, page_size, SHAPE, Precision::F32).map_err(|e| e.to_string())
        };
        assert_eq!(new(1, 1, 0).unwrap_err(), "new_cache: a page has shape [0], expected [1]");
        let bytes = (1u64 << 40) * 4 * 8 * 4;
        assert_eq!(new(1, 1 << 40, 4).unwrap_err(), format!("out of memory: KV cache needs {bytes} bytes"));
        for (layers, pages, page_size) in
            [(usize::MAX, 1, 1), (1, usize::MAX, 1), (1, 1, usize::MAX), (usize::MAX, 0, 1)]
        {
            assert_eq!(
                new(layers, pages, page_size).unwrap_err(),
                "new_cache: the size of the KV cache overflows"
            );
        }
        for (layers, pages) in [(0, 5), (5, 0)] {
            assert!(new(layers, pages, 4).is_ok());
        }
    }

    #[test]
    fn positions_must_be_covered_by_pages_that_exist() {
        let paging = CpuKvCache::new(1, 3, 4, SHAPE, Precision::F32).unwrap().paging();
        let cover = |pages: &[u32], len| paging.cover("attend", pages, len).map_err(|e| e.to_string());
        assert_eq!(cover(&[], 0), Ok(()));
        assert_eq!(cover(&[2, 0], 8), Ok(()));
        // A page beyond the needed positions may have any id.
        assert_eq!(cover(&[2, 7], 4), Ok(()));
        assert_eq!(cover(&[2, 7], 5).unwrap_err(), "attend: page id 7 is out of range, the limit is 3");
        assert_eq!(cover(&[2, 0], 9).unwrap_err(), "attend: position 8 is out of range, the limit is 8");
        assert!(cover(&[2, 0], usize::MAX).is_err());
    }
}
