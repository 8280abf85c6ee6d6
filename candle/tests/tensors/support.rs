//! Helpers that the tests share: random operands, and comparisons of bits.

use bytemuck::Pod;
use candle_core::{Device, Tensor, WithDType};
use flexdraft::kernels::sampling::{Logit, RowSampling};
use flexdraft::kernels::{HalfFloat, Kernels as Wrappers};
use flexdraft::random::Stream;
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use flexdraft_candle::{Kernels, TableRow, read_table};
use half::{bf16, f16};

// The generators of the kernels' own tests use this module, which the whole workspace shares.
#[allow(dead_code)]
#[path = "../../../tests/support/noise.rs"]
pub mod noise;

/// Returns the kernels on candle's CPU, and the Rust wrappers on an emulator.
pub fn both() -> (Kernels, Wrappers<Simt>) {
    (Kernels::new(&Device::Cpu).unwrap(), Wrappers::new(Simt::new(SimtOptions::default())))
}

pub fn tensor<T: WithDType>(values: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

/// Returns the elements of a tensor in row-major order.
pub fn values<T: WithDType>(tensor: &Tensor) -> Vec<T> {
    tensor.flatten_all().unwrap().to_vec1::<T>().unwrap()
}

/// Checks that a tensor has the bits of `expected`, in row-major order.
pub fn same<T: WithDType + Pod>(found: &Tensor, expected: &[T]) {
    let found = values::<T>(found);
    assert_eq!(bytemuck::cast_slice::<T, u8>(&found), bytemuck::cast_slice::<T, u8>(expected));
}

/// Checks that a table has the bits of `expected`.
pub fn same_table<T: TableRow>(found: &Tensor, expected: &[T]) {
    let found: Vec<T> = read_table(found).unwrap();
    assert_eq!(bytemuck::cast_slice::<T, u8>(&found), bytemuck::cast_slice::<T, u8>(expected));
}

/// Returns the warping and the draw of a row at position 120.
pub fn sampling_row(temperature: f32, numbers: Stream) -> RowSampling {
    let params = SamplingParams { top_k: 20, top_p: 0.95, ..SamplingParams::at_temperature(temperature) };
    RowSampling::new(&params, Some(numbers)).unwrap()
}

/// The types of rows and caches.
pub trait Half: HalfFloat + WithDType + Pod {
    /// The unit roundoff: the largest relative error of rounding to the type.
    const ROUNDOFF: f64;
}

impl Half for bf16 {
    const ROUNDOFF: f64 = 1.0 / 256.0;
}

impl Half for f16 {
    const ROUNDOFF: f64 = 1.0 / 2048.0;
}

/// A type that stores logits, with the type of its calibrators.
pub trait Stored: Logit + WithDType + Pod {
    /// The distance of neighbouring numbers of magnitude 1.
    const EPSILON: f64;
    /// A magnitude from which sums may overflow.
    const LARGE: f64;
    type Calibrator: Half;
}

impl Stored for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    const LARGE: f64 = 3.38e38;
    type Calibrator = f16;
}

impl Stored for bf16 {
    const EPSILON: f64 = 1.0 / 128.0;
    const LARGE: f64 = 3.38e38;
    type Calibrator = bf16;
}

impl Stored for f16 {
    const EPSILON: f64 = 1.0 / 1024.0;
    const LARGE: f64 = 65472.0;
    type Calibrator = f16;
}

/// Calls a generic function with the number of a type that stores logits: 0 for f32, 1 for bf16, 2 for f16.
macro_rules! of_stored {
    ($stored:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        match $stored {
            0 => $function::<f32>($($argument),*),
            1 => $function::<half::bf16>($($argument),*),
            _ => $function::<half::f16>($($argument),*),
        }
    };
}
pub(crate) use of_stored;

/// A small generator of operands (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Returns a number from 0 to `end` − 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns numbers from −2 to 2.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
    }

    pub fn halves<T: Half>(&mut self, len: usize) -> Vec<T> {
        self.floats(len).into_iter().map(|x| T::from_f64(x.into())).collect()
    }

    pub fn logits<L: Stored>(&mut self, len: usize) -> Vec<L> {
        self.floats(len).into_iter().map(|x| L::from_f64(x.into())).collect()
    }

    /// Returns indices from −1 to `end`; −1 and `end` are out of range.
    pub fn indices(&mut self, len: usize, end: usize) -> Vec<i32> {
        (0..len).map(|_| self.below(end + 2) as i32 - 1).collect()
    }
}
