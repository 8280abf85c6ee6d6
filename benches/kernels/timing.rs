//! Times on a GPU: CUDA events around each launch, with the L2 cache flushed before it.

use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute as DeviceAttribute, CUevent_flags as EventFlags};
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DriverError};
use flexdraft::backend::BackendError;
use flexdraft::kernels::KernelError;

use crate::cases::Prepared;

/// Launches that are put on the stream before their times are read.
const TOGETHER: usize = 64;

/// Times launches on one stream.
pub struct Timer {
    stream: Arc<CudaStream>,
    /// Four times as large as the L2 cache.
    flush: CudaSlice<u8>,
    events: Vec<(CudaEvent, CudaEvent)>,
}

/// An error of the driver as a kernel's.
pub fn driver(error: DriverError) -> KernelError {
    BackendError::Driver(error.to_string()).into()
}

impl Timer {
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, KernelError> {
        let l2 = context.attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map_err(driver)?;
        let bytes = 4 * usize::try_from(l2).unwrap_or_default().max(1 << 20);
        let event = || context.new_event(Some(EventFlags::CU_EVENT_DEFAULT));
        let events = (0..TOGETHER).map(|_| Ok((event()?, event()?))).collect::<Result<Vec<_>, _>>();
        Ok(Timer {
            stream: stream.clone(),
            flush: stream.alloc_zeros(bytes).map_err(driver)?,
            events: events.map_err(driver)?,
        })
    }

    /// The seconds of each of `count` launches. Before each, memory larger than the L2 cache is overwritten,
    /// which also gives the host time to put the launch on the stream before its turn comes.
    pub fn seconds(&mut self, count: usize, prepared: &mut dyn Prepared) -> Result<Vec<f64>, KernelError> {
        let mut seconds = Vec::with_capacity(count);
        while seconds.len() < count {
            let together = &self.events[..TOGETHER.min(count - seconds.len())];
            for (start, end) in together {
                prepared.restore()?;
                self.stream.memset_zeros(&mut self.flush).map_err(driver)?;
                start.record(&self.stream).map_err(driver)?;
                prepared.launch()?;
                end.record(&self.stream).map_err(driver)?;
            }
            for (start, end) in together {
                seconds.push(f64::from(start.elapsed_ms(end).map_err(driver)?) / 1e3);
            }
        }
        Ok(seconds)
    }
}
