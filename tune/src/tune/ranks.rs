//! Several processes that tune one drafter together, each with sequences of its own.

use candle_core::{DType, Device, Result, Tensor};

/// This process's place among those of a run.
///
/// Every rank holds the drafter and takes its share of each step's sequences; gradients are summed over the ranks
/// before the optimizer moves, so that all of them move alike. A sum that is not a number ends the run on every rank. A
/// rank whose run ends with an error of its own sums no more, and the others would wait for it: their sums have to fail,
/// or whoever started the ranks has to end them all.
pub trait Ranks {
    /// Which of the ranks this is, from 0. Rank 0 evaluates and writes the run's files.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// The sum of a tensor over the ranks, the same bits on each of them. Every rank calls it equally often with
    /// equal shapes.
    ///
    /// # Errors
    /// Those of candle: no memory, a rank that is lost.
    fn sum(&self, tensor: &Tensor) -> Result<Tensor>;
}

/// Where a run's part of this process computes.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// What its tensors are on.
    pub device: &'a Device,
    /// The processes that it tunes together with.
    pub ranks: &'a dyn Ranks,
}

impl<'a> Place<'a> {
    /// A device of one process.
    pub fn alone(device: &'a Device) -> Self {
        Self { device, ranks: &Alone }
    }
}

/// One process by itself.
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
