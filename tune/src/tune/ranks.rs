//! The ranks of a run: processes that tune one drafter together, each with its own sequences.

use candle_core::{DType, Device, Result, Tensor};

/// A process of a run, and its sums over all processes.
///
/// Every rank holds the whole drafter and takes its share of each step's sequences. Gradients are summed over the
/// ranks before the optimizer step, so all ranks make the same step. A sum that is not a number ends the run on every
/// rank. A rank whose run ends with an error of its own takes part in no more sums, and the other ranks would wait
/// for it: their sums must fail, or the process that started the ranks must end them all.
pub trait Ranks {
    /// Returns the number of this process in the run, from 0. Rank 0 evaluates and writes the run's files.
    fn rank(&self) -> usize;

    /// Returns the number of processes in the run.
    fn count(&self) -> usize;

    /// Returns the sum of a tensor over the ranks, with the same bits on each rank. All ranks must make the same calls
    /// with equal shapes.
    ///
    /// # Errors
    /// Candle's errors: out of memory, a lost rank.
    fn sum(&self, tensor: &Tensor) -> Result<Tensor>;
}

/// The place where a process runs: its device, and the ranks of its run.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The device that holds the tensors.
    pub device: &'a Device,
    /// The processes that tune together.
    pub ranks: &'a dyn Ranks,
}

impl<'a> Place<'a> {
    /// Returns a place on `device` in a run of one process.
    pub fn alone(device: &'a Device) -> Self {
        Self { device, ranks: &Alone }
    }
}

/// The rank of a run with only one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }
}

/// Sums numbers over the ranks.
pub(super) fn sum_numbers<const N: usize>(
    ranks: &dyn Ranks,
    numbers: [f64; N],
    device: &Device,
) -> Result<[f64; N]> {
    if ranks.count() == 1 {
        return Ok(numbers);
    }
    let own = Tensor::new(&numbers, &Device::Cpu)?.to_dtype(DType::F32)?.to_device(device)?;
    let sum = ranks.sum(&own)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(std::array::from_fn(|i| sum.get(i).copied().unwrap_or(f64::NAN)))
}
