//! The measured limits of the device, which are the first line of every file of results.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use flexdraft::device::DeviceError;
use flexdraft::device::gpu::Peaks;
use flexdraft::kernels::KernelError;

use crate::cases::Prepared;
use crate::record::Device;
use crate::timing::Timer;

/// Number of pairs of CUDA events that are timed without work between them, to find the time that the events add.
const LAUNCHES: usize = 32;

struct Nothing;

impl Prepared for Nothing {
    fn launch(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

/// Measures the limits of `context`'s device, and the time that `timer` adds to every measurement.
pub fn measure(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    timer: &mut Timer,
) -> Result<Device, DeviceError> {
    let Peaks { device, copy_bytes_per_second, product_flops_per_second } = Peaks::measure(context, stream)?;
    let mut nothing = timer.seconds(LAUNCHES, &mut Nothing)?;
    nothing.sort_by(f64::total_cmp);
    let seconds_of_nothing = nothing[LAUNCHES / 2];
    Ok(Device { device, copy_bytes_per_second, product_flops_per_second, seconds_of_nothing })
}
