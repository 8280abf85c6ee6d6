//! The memory of tensors, locked for the duration of a launch.
//!
//! A tensor's storage is behind a lock, and candle gives the memory for writing only to its in-place operations, one tensor
//! at a time. A launch therefore takes one lock after the other, each inside the one before, in the order of the storages'
//! addresses, which is candle's own order. Tensors that share a storage share its lock.
//!
//! On the CPU, a launch has ended when it returns, and the locks are still held. On CUDA, a launch is put on candle's
//! stream, in the order of the calls. Candle frees memory in the order of that stream too, so a tensor may be dropped
//! before a launch that uses it has run.

use std::cell::RefCell;
use std::ptr;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

use crate::error::Error;

/// The address and the number of elements of a storage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub address: u64,
    pub len: usize,
}

/// A storage that a launch uses, by one of the tensors that share it.
#[derive(Debug)]
pub(crate) struct Used<'a> {
    /// A tensor of the storage; if the launch writes the storage, a tensor that it writes.
    pub tensor: &'a Tensor,
    /// Whether the launch writes the storage.
    pub written: bool,
}

/// Returns a number that two tensors have in common if they share a storage.
pub(crate) fn storage_of(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    ptr::from_ref(&*storage).addr()
}

/// Locks storages, which are in ascending order of [`storage_of`], and calls `then` with their spans.
pub(crate) fn lock(
    storages: &[Used<'_>],
    spans: &mut Vec<Span>,
    then: &mut dyn FnMut(&[Span]) -> Result<()>,
) -> Result<()> {
    let Some((used, rest)) = storages.split_first() else { return then(spans) };
    let mut inner = |span| {
        spans.push(span);
        lock(rest, spans, then)
    };
    if used.written {
        return used.tensor.inplace_op1(&Lock(RefCell::new(&mut inner)));
    }
    let (storage, _) = used.tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => inner(host_span(storage)?),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => device_span(storage, &mut inner),
        _ => Err(unavailable()),
    }
}

/// The part of a launch that needs the address of a storage.
type Inner<'a> = &'a mut dyn FnMut(Span) -> Result<()>;

/// An in-place operation that locks a storage for writing, and then goes on with the launch.
struct Lock<'a>(RefCell<Inner<'a>>);

impl InplaceOp1 for Lock<'_> {
    fn name(&self) -> &'static str {
        "flexdraft"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        (self.0.borrow_mut())(host_span_mut(storage)?)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        device_span_mut(storage, &mut **self.0.borrow_mut())
    }
}

/// Returns the error for a storage that no operand has: the check of operands allows no such device or type.
fn unavailable() -> candle_core::Error {
    Error::Unavailable("tensors of this kind").into()
}

fn host_span(storage: &CpuStorage) -> Result<Span> {
    fn span<T>(elements: &[T]) -> Result<Span> {
        Ok(Span { address: elements.as_ptr() as u64, len: elements.len() })
    }
    match storage {
        CpuStorage::BF16(elements) => span(elements),
        CpuStorage::F16(elements) => span(elements),
        CpuStorage::F32(elements) => span(elements),
        CpuStorage::I32(elements) => span(elements),
        CpuStorage::U32(elements) => span(elements),
        CpuStorage::I64(elements) => span(elements),
        _ => Err(unavailable()),
    }
}

fn host_span_mut(storage: &mut CpuStorage) -> Result<Span> {
    fn span<T>(elements: &mut [T]) -> Result<Span> {
        Ok(Span { address: elements.as_mut_ptr() as u64, len: elements.len() })
    }
    match storage {
        CpuStorage::BF16(elements) => span(elements),
        CpuStorage::F16(elements) => span(elements),
        CpuStorage::F32(elements) => span(elements),
        CpuStorage::I32(elements) => span(elements),
        CpuStorage::U32(elements) => span(elements),
        CpuStorage::I64(elements) => span(elements),
        _ => Err(unavailable()),
    }
}

#[cfg(feature = "cuda")]
mod device {
    use candle_core::cuda_backend::CudaStorageSlice as Slice;
    use candle_core::{CudaStorage, Result};
    use cudarc::driver::{DevicePtr, DevicePtrMut};

    use super::{BackendStorage, Inner, Span, unavailable};

    /// Calls `inner` with the span of a storage that launches on candle's stream read. Cudarc's guard, which notes the
    /// use, lives until the launch is on the stream.
    pub fn device_span(storage: &CudaStorage, inner: Inner<'_>) -> Result<()> {
        let stream = storage.device().cuda_stream();
        macro_rules! span {
            ($($kind:ident),*) => {
                match &storage.slice {
                    $(Slice::$kind(slice) => {
                        let (address, _used) = slice.device_ptr(&stream);
                        inner(Span { address, len: slice.len() })
                    })*
                    _ => Err(unavailable()),
                }
            };
        }
        span!(BF16, F16, F32, I32, U32, I64)
    }

    /// Does the same for a storage that launches write.
    pub fn device_span_mut(storage: &mut CudaStorage, inner: Inner<'_>) -> Result<()> {
        let stream = storage.device().cuda_stream();
        macro_rules! span {
            ($($kind:ident),*) => {
                match &mut storage.slice {
                    $(Slice::$kind(slice) => {
                        let len = slice.len();
                        let (address, _used) = slice.device_ptr_mut(&stream);
                        inner(Span { address, len })
                    })*
                    _ => Err(unavailable()),
                }
            };
        }
        span!(BF16, F16, F32, I32, U32, I64)
    }
}

#[cfg(feature = "cuda")]
use device::{device_span, device_span_mut};
