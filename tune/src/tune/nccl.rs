//! Ranks on the GPUs of one machine, one process per GPU, with sums computed by NCCL.

use std::ffi::c_char;
use std::fmt;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
};
use cudarc::nccl::{Comm, Id, ReduceOp};

use super::ranks::Ranks;
use crate::hex;

/// The id that all ranks of a run share; one process hands it to the others as text.
#[derive(Clone, Copy)]
pub struct Meeting(Id);

impl Meeting {
    /// Creates a new id for the ranks of a run.
    ///
    /// # Errors
    /// NCCL's errors.
    pub fn new() -> Result<Self> {
        Id::new().map(Self).map_err(nccl_error)
    }

    /// Reads an id from the text that [`fmt::Display`] wrote; returns `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        hex::decode(text).map(|bytes| Self(Id::uninit(bytes.map(|byte| byte as c_char))))
    }
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0.internal().iter().map(|&byte| byte as u8)))
    }
}

/// A rank of a run on several GPUs, with its NCCL communicator.
#[derive(Debug)]
pub struct Nccl {
    comm: Comm,
}

impl Nccl {
    /// Joins `count` ranks as number `rank`, and waits for the others to join. Sums are computed on `device`, in
    /// order with its other work.
    ///
    /// # Errors
    /// An error if `device` is not a CUDA device; NCCL's errors.
    pub fn join(meeting: Meeting, rank: usize, count: usize, device: &Device) -> Result<Self> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let comm = Comm::from_rank(stream, rank, count, meeting.0).map_err(nccl_error)?;
        Ok(Self { comm })
    }
}

impl Ranks for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn count(&self) -> usize {
        self.comm.world_size()
    }

    fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.detach().to_dtype(DType::F32)?.contiguous()?.apply_op1_no_bwd(&Sum(&self.comm))
    }
}

struct Sum<'a>(&'a Comm);

impl CustomOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "sum over ranks"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(Error::msg("a sum by NCCL expects a tensor on a GPU, found one on the CPU"))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device().clone();
        let Some((first, last)) = layout.contiguous_offsets() else {
            return Err(Error::msg("a sum by NCCL expects a contiguous tensor"));
        };
        let own = storage.as_cuda_slice::<f32>()?.slice(first..last);
        let mut sum = device.alloc_zeros::<f32>(last - first)?;
        self.0.all_reduce(&own, &mut sum, &ReduceOp::Sum).map_err(nccl_error)?;
        Ok((CudaStorage::wrap_cuda_slice(sum, device), layout.shape().clone()))
    }
}

fn nccl_error(error: cudarc::nccl::result::NcclError) -> Error {
    Error::msg(format!("NCCL: {error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meeting_survives_as_text() {
        let id = std::array::from_fn(|i| i as u8 as c_char);
        let text = Meeting(Id::uninit(id)).to_string();
        assert_eq!(text.len(), 256);
        assert_eq!(Meeting::parse(&text).map(|meeting| *meeting.0.internal()), Some(id));
        assert!(Meeting::parse(&text[2..]).is_none());
    }
}
