//! The kernels, loaded for a device of candle.

use candle_core::{DType, Device, Result, Tensor};
use flexdraft::kernels::{Faults, Kernels as Loaded};
use flexdraft::runtime::{Simt, SimtOptions};

use crate::error::Error;
use crate::operands::{Elements, Operands, Slot};

/// The kernels of flexdraft on a device of candle: a CUDA device (feature `cuda`), or the CPU, on which the SIMT emulator
/// runs the kernels' sources.
///
/// Launches on a CUDA device are put on candle's stream, and methods do not wait for them.
#[derive(Debug)]
pub struct Kernels {
    pub(crate) processor: Processor,
    pub(crate) device: Device,
    faults: Tensor,
}

#[derive(Debug)]
pub(crate) enum Processor {
    Emulator(Loaded<Simt>),
    #[cfg(feature = "cuda")]
    Gpu(Loaded<flexdraft::runtime::Cuda>, std::sync::Arc<cudarc::driver::CudaStream>),
}

/// Evaluates an expression with the loaded kernels and their stream: the code is the same for every processor.
macro_rules! on_processor {
    ($kernels:expr, |$loaded:ident, $stream:ident| $body:expr) => {
        match &$kernels.processor {
            $crate::processor::Processor::Emulator($loaded) => {
                let $stream = &$loaded.runtime().stream();
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::processor::Processor::Gpu($loaded, $stream) => $body,
        }
    };
}
pub(crate) use on_processor;

/// Launches a kernel over the memory of its operands.
macro_rules! launch {
    ($kernels:expr, $operands:expr, |$loaded:ident, $stream:ident, $memory:ident| $launch:expr) => {
        $crate::processor::on_processor!($kernels, |$loaded, $stream| {
            let queue = flexdraft::runtime::Runtime::queue($loaded.runtime(), $stream);
            $operands.hold(queue, &mut |$memory| $launch)
        })
    };
}
pub(crate) use launch;

impl Kernels {
    /// Loads the kernels for `device`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] for a Metal device, or a CUDA device without the feature `cuda`; [`Error::Kernel`] if the
    /// driver cannot load the kernels.
    pub fn new(device: &Device) -> Result<Self> {
        let processor = match device {
            Device::Cpu => Processor::Emulator(Loaded::new(Simt::new(SimtOptions::default()))),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let stream = cuda.cuda_stream();
                let loaded =
                    Loaded::load(stream.context()).map_err(|error| crate::error::refused(error.into()))?;
                Processor::Gpu(loaded, stream)
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => return Err(Error::Unavailable("CUDA").into()),
            Device::Metal(_) => return Err(Error::Unavailable("Metal").into()),
        };
        let faults = Tensor::zeros(1, DType::U32, device)?;
        Ok(Kernels { processor, device: device.clone(), faults })
    }

    /// Returns the device of the kernels.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the faults that kernels found in the data of their operands since the last call, such as a token id out
    /// of range. The host waits for the device. The documentation of the operands states the result in that case; a
    /// kernel never accesses memory outside its operands.
    ///
    /// # Errors
    ///
    /// The errors of candle's copies.
    pub fn take_faults(&self) -> Result<Option<Faults>> {
        let word = self.faults.to_vec1::<u32>()?.first().copied().unwrap_or(0);
        if word != 0 {
            self.faults.zero_set()?;
        }
        Ok(Faults::of(word))
    }

    /// Starts the list of the operands of a kernel.
    pub(crate) fn operands(&self, kernel: &'static str) -> Operands<'_> {
        Operands::new(kernel, &self.device)
    }

    /// Adds the word of faults to the operands.
    pub(crate) fn faults(&self, operands: &mut Operands<'_>) -> Result<Slot> {
        operands.write("error word", &self.faults, Elements::Index, &[1])
    }
}
