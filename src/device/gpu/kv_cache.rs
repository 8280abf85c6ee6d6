//! The KV cache of the GPU device.

use half::bf16;

use super::check::expect;
use super::memory::allocate;
use crate::device::{AttentionShape, DeviceError};
use crate::kernels::{KvStrides, PagedKv, PagedKvMut, Paging};
use crate::runtime::Runtime;

/// A paged KV cache: keys and values `[page, token, head, dim]` for each layer.
#[derive(Debug)]
pub struct GpuKvCache<R: Runtime> {
    layers: Vec<[R::Memory<bf16>; 2]>,
    paging: Paging,
    shape: AttentionShape,
}

impl<R: Runtime> GpuKvCache<R> {
    /// Makes a cache of zeros.
    pub(super) fn new(
        queue: (&R, &R::Stream),
        layers: usize,
        paging: Paging,
        shape: AttentionShape,
    ) -> Result<Self, DeviceError> {
        let Paging { pages, page_size } = paging;
        let token = shape.kv_heads.checked_mul(shape.head_dim);
        let len = token.and_then(|token| pages.checked_mul(page_size)?.checked_mul(token));
        let len = len.ok_or(DeviceError::Overflow { operation: "new_cache", operand: "the KV cache" })?;
        let one = || allocate(queue, len, "the KV cache");
        let made = (0..layers).map(|_| Ok([one()?, one()?])).collect::<Result<_, DeviceError>>();
        let layers = made.map_err(|error| match error {
            // The error states the bytes of all layers, which the cache needs.
            DeviceError::OutOfMemory { what, bytes } => {
                DeviceError::OutOfMemory { what, bytes: bytes.saturating_mul(2 * layers) }
            }
            other => other,
        })?;
        Ok(Self { layers, paging, shape })
    }

    /// Returns the number of pages, and the tokens per page.
    pub(super) fn paging(&self) -> Paging {
        self.paging
    }

    /// Views one layer of the cache, for a kernel that reads it with heads of `shape`.
    pub(super) fn view<'a>(
        &'a self,
        operation: &'static str,
        (runtime, stream): (&R, &'a R::Stream),
        layer: usize,
        shape: AttentionShape,
    ) -> Result<PagedKv<'a>, DeviceError> {
        self.check(operation, shape)?;
        let strides = self.strides();
        let [k, v] = self.layers.get(layer).ok_or_else(|| self.no_layer(operation, layer))?;
        let (k, v) = (runtime.view(stream, k), runtime.view(stream, v));
        Ok(PagedKv { k, v, k_strides: strides, v_strides: strides })
    }

    /// Views one layer of the cache, for a kernel that writes it with heads of `shape`.
    pub(super) fn view_mut<'a>(
        &'a mut self,
        operation: &'static str,
        (runtime, stream): (&R, &'a R::Stream),
        layer: usize,
        shape: AttentionShape,
    ) -> Result<PagedKvMut<'a>, DeviceError> {
        self.check(operation, shape)?;
        let (strides, missing) = (self.strides(), self.no_layer(operation, layer));
        let [k, v] = self.layers.get_mut(layer).ok_or(missing)?;
        let (k, v) = (runtime.view_mut(stream, k), runtime.view_mut(stream, v));
        Ok(PagedKvMut { k, v, k_strides: strides, v_strides: strides })
    }

    fn strides(&self) -> KvStrides {
        KvStrides::token_major(self.paging.page_size, self.shape.kv_heads, self.shape.head_dim)
    }

    fn check(&self, operation: &'static str, shape: AttentionShape) -> Result<(), DeviceError> {
        let dims = |shape: AttentionShape| vec![shape.q_heads, shape.kv_heads, shape.head_dim];
        expect(operation, "cache", dims(shape), dims(self.shape))
    }

    fn no_layer(&self, operation: &'static str, index: usize) -> DeviceError {
        DeviceError::OutOfRange { operation, what: "layer", index, limit: self.layers.len() }
    }
}
