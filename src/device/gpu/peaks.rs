//! A GPU's measured peaks, from which lower bounds of the times of kernels and of whole steps are computed.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags as EventFlags;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use half::bf16;

use super::cublas::EstimatedProduct;
use super::cublas_is_present;
use super::cuda::missing;
use crate::device::DeviceError;
use crate::runtime::{Cuda, RuntimeError};

/// Number of bytes of the measured copy: far more than an L2 cache holds.
const COPIED: usize = 1 << 30;

/// Rows, columns and depth of the measured product.
const PRODUCT: usize = 8192;

/// Numbers of untimed runs, in which the GPU's clocks rise, and of timed runs after them.
const WARM_UP: usize = 16;
const TIMED: usize = 32;

/// A GPU's peak bandwidth and arithmetic, measured with the GPU's own clock.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Peaks {
    /// The GPU's name.
    pub device: String,
    /// Bytes per second, read plus written, of a copy of 1 GiB in device memory.
    pub copy_bytes_per_second: f64,
    /// Floating-point operations per second of a bf16 product of 8192³ by cuBLASLt; a multiply-add is two.
    pub product_flops_per_second: f64,
}

impl Peaks {
    /// Measures the peaks of CUDA device `ordinal`, best before a [`Gpu`](super::Gpu) uses it: memory that only one
    /// stream uses needs no events, and events would be timed too.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] if there is no driver, no such device or no cuBLASLt, otherwise an error of the
    /// driver or of cuBLASLt.
    pub fn of_device(ordinal: usize) -> Result<Self, DeviceError> {
        let context = Cuda::context(ordinal).map_err(|error| missing(ordinal, error))?;
        Self::measure(&context, &context.default_stream())
    }

    /// Measures the peaks of the GPU of `context` by work on `stream`. The work uses 2 GiB of device memory. Each
    /// peak is the median of 32 times. A run takes long enough for the host to submit the next run meanwhile, and
    /// displaces the contents of the L2 cache.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unavailable`] without cuBLASLt, otherwise an error of the driver or of cuBLASLt.
    pub fn measure(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        if !cublas_is_present() {
            let reason = "cuBLASLt (libcublasLt.so) cannot be found".into();
            return Err(DeviceError::Unavailable {
                requested: format!("cuda:{}", context.ordinal()),
                reason,
            });
        }
        Ok(Self {
            device: context.name().map_err(driver)?,
            copy_bytes_per_second: 2.0 * COPIED as f64 / copy_seconds(context, stream)?,
            product_flops_per_second: 2.0 * (PRODUCT as f64).powi(3) / product_seconds(context, stream)?,
        })
    }
}

fn copy_seconds(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<f64, DeviceError> {
    let from: CudaSlice<u8> = stream.alloc_zeros(COPIED).map_err(driver)?;
    let mut to: CudaSlice<u8> = stream.alloc_zeros(COPIED).map_err(driver)?;
    median_seconds(context, stream, || stream.memcpy_dtod(&from, &mut to).map_err(driver))
}

fn product_seconds(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<f64, DeviceError> {
    let matrix = || stream.clone_htod(&operand()).map_err(driver);
    let (a, b) = (matrix()?, matrix()?);
    let mut out: CudaSlice<bf16> = stream.alloc_zeros(PRODUCT * PRODUCT).map_err(driver)?;
    let mut product = EstimatedProduct::new(context, stream, [PRODUCT; 3])?;
    median_seconds(context, stream, || product.run(stream, &a, &b, &mut out))
}

/// Returns the elements of one factor of the measured product. Powers and signs alternate, so that the tensor cores
/// draw about the power that they draw with real weights.
fn operand() -> Vec<bf16> {
    let element = |i: usize| bf16::from_f32(((i * 0x9e37) >> 4 & 0xff) as f32 / 128.0 - 1.0);
    (0..PRODUCT * PRODUCT).map(element).collect()
}

/// Returns the median time of `work` on `stream`, between two events.
fn median_seconds(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    mut work: impl FnMut() -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    for _ in 0..WARM_UP {
        work()?;
    }
    let event = || context.new_event(Some(EventFlags::CU_EVENT_DEFAULT)).map_err(driver);
    let mut events = Vec::with_capacity(TIMED);
    for _ in 0..TIMED {
        let (start, end) = (event()?, event()?);
        start.record(stream).map_err(driver)?;
        work()?;
        end.record(stream).map_err(driver)?;
        events.push((start, end));
    }
    let elapsed =
        events.iter().map(|(start, end)| Ok(f64::from(start.elapsed_ms(end).map_err(driver)?) / 1e3));
    let mut seconds = elapsed.collect::<Result<Vec<f64>, DeviceError>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds.get(TIMED / 2).copied().unwrap_or(f64::INFINITY))
}

fn driver(error: DriverError) -> DeviceError {
    RuntimeError::from(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there() {
        // No machine has a GPU with this ordinal.
        let ordinal = usize::from(u16::MAX);
        match Peaks::of_device(ordinal) {
            Err(DeviceError::Unavailable { requested, reason }) => {
                assert_eq!(requested, "cuda:65535");
                assert!(!reason.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
}
