//! What the device can do, in the line that every file of results begins with.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use flexdraft::device::DeviceError;
use flexdraft::device::gpu::Ceilings;
use flexdraft::kernels::KernelError;

use crate::cases::Prepared;
use crate::record::Device;
use crate::timing::Timer;

/// Pairs of events with nothing between them.
const LAUNCHES: usize = 32;

struct Nothing;

impl Prepared for Nothing {
    fn launch(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

/// Measures the ceilings of `context`'s device, and what `timer` adds to every time.
pub fn measure(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    timer: &mut Timer,
) -> Result<Device, DeviceError> {
    let Ceilings { device, copy_bytes_per_second, product_flops_per_second } =
        Ceilings::measure(context, stream)?;
    let mut nothing = timer.seconds(LAUNCHES, &mut Nothing)?;
    nothing.sort_by(f64::total_cmp);
    let seconds_of_nothing = nothing[LAUNCHES / 2];
    Ok(Device { device, copy_bytes_per_second, product_flops_per_second, seconds_of_nothing })
}
