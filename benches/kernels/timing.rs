//! Times of launches on a GPU, measured with CUDA events around each launch, with none of its operands in the L2 cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use cudarc::driver::sys::{CUdevice_attribute as DeviceAttribute, CUevent_flags as EventFlags};
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DriverError};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::{KernelError, Kernels};
use flexdraft::runtime::{Cuda, CudaMemory, Runtime, RuntimeError};
use flexdraft::sampling::SamplingParams;

use crate::cases::Prepared;

/// Number of launches that are put on the stream before the host reads their times.
const TOGETHER: usize = 64;

/// Duration of the warm-up launches before the first timed launch: a card that was idle while operands were prepared
/// runs slower at first.
const WARM: Duration = Duration::from_millis(200);

/// Times launches on one stream.
pub struct Timer {
    stream: Arc<CudaStream>,
    kernels: Kernels<Cuda>,
    /// Memory four times as large as the L2 cache; overwriting it removes the operands from the cache.
    overwritten: CudaSlice<u8>,
    read: Reading,
    events: Vec<(CudaEvent, CudaEvent)>,
}

/// The memory that a pass of sampling reads before each timed launch; the reads evict dirty lines from the L2 cache,
/// and the pass writes almost nothing.
struct Reading {
    logits: CudaMemory<f32>,
    ways: CudaMemory<RowSampling>,
    workspace: CudaMemory<f32>,
    stats: CudaMemory<RowStats>,
}

impl Reading {
    /// Number of logits per row of the pass that evicts dirty lines.
    const COLS: usize = 1 << 17;

    fn new(runtime: &Cuda, stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, KernelError> {
        let rows = bytes.div_ceil(4 * Self::COLS);
        let greedy = RowSampling::new(&SamplingParams::GREEDY, None)
            .map_err(|_| RuntimeError::Refused("greedy sampling must be valid"))?;
        let mut ways = runtime.allocate(stream, rows)?;
        runtime.upload(stream, &vec![greedy; rows], &mut ways, 0)?;
        let mut stats = runtime.allocate(stream, rows)?;
        runtime.upload(stream, &vec![RowStats::zeroed(); rows], &mut stats, 0)?;
        let workspace = runtime.allocate(stream, workspace_len(rows, Self::COLS, false)?)?;
        Ok(Reading { logits: runtime.allocate(stream, rows * Self::COLS)?, ways, workspace, stats })
    }

    fn launch(&mut self, kernels: &Kernels<Cuda>, stream: &Arc<CudaStream>) -> Result<(), KernelError> {
        let runtime = kernels.runtime();
        let sample = Sample {
            vocab: Self::COLS,
            stride: Self::COLS,
            logits: LogitRows::Read(runtime.view(stream, &self.logits)),
            logit_index: None,
            sampling: runtime.view(stream, &self.ways),
            starts: None,
            draft: None,
            calibration: None,
            workspace: runtime.view_mut(stream, &mut self.workspace),
            stats: runtime.view_mut(stream, &mut self.stats),
            error: None,
        };
        kernels.sample(stream, sample)
    }
}

/// Converts a driver error to a kernel error.
pub fn driver(error: DriverError) -> KernelError {
    RuntimeError::from(error).into()
}

impl Timer {
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Self, KernelError> {
        let l2 = context.attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map_err(driver)?;
        let bytes = 4 * usize::try_from(l2).unwrap_or_default().max(1 << 20);
        let event = || context.new_event(Some(EventFlags::CU_EVENT_DEFAULT));
        let events = (0..TOGETHER).map(|_| Ok((event()?, event()?))).collect::<Result<Vec<_>, _>>();
        let kernels = Kernels::load(context)?;
        let read = Reading::new(kernels.runtime(), stream, bytes)?;
        Ok(Timer {
            stream: stream.clone(),
            kernels,
            overwritten: stream.alloc_zeros(bytes).map_err(driver)?,
            read,
            events: events.map_err(driver)?,
        })
    }

    /// Launches the kernel without timing it, until the card runs as fast as it does under load.
    pub fn warm_up(&mut self, prepared: &mut dyn Prepared) -> Result<(), KernelError> {
        let start = Instant::now();
        while start.elapsed() < WARM {
            self.seconds(8, prepared)?;
        }
        Ok(())
    }

    /// Returns the duration in seconds of each of `count` launches. Before each, memory larger than the L2 cache is
    /// overwritten and other memory is read, because dirty lines would be written back during the launch. This also
    /// gives the host time to put the launch on the stream before its turn comes.
    pub fn seconds(&mut self, count: usize, prepared: &mut dyn Prepared) -> Result<Vec<f64>, KernelError> {
        let mut seconds = Vec::new();
        while seconds.len() < count {
            let together = &self.events[..TOGETHER.min(count - seconds.len())];
            for (start, end) in together {
                prepared.restore()?;
                self.stream.memset_zeros(&mut self.overwritten).map_err(driver)?;
                self.read.launch(&self.kernels, &self.stream)?;
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
