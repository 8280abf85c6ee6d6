//! Helpers of the tests of the kernels around the matrix products: embedding, norm, activation and rope.

use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use half::bf16;
use proptest::prelude::TestCaseError;

use crate::halves::Half;
use crate::processors::{Bench, Processor, processors, runtimes_agree};
use crate::support::simt_variant::checking;

/// The hidden sizes and the intermediate sizes of Qwen3-8B and SmolLM2-135M.
pub const RELEASED_WIDTHS: [[usize; 2]; 2] = [[4096, 12_288], [576, 1536]];

/// The NaN that fills all memory that a kernel must write.
pub const POISON: bf16 = bf16::from_bits(0x7fbf);

/// Returns kernels on a processor; on the emulator with access checks (unless FLEXDRAFT_TEST_CHECKING says otherwise),
/// and with the order of threads `schedule`.
fn bench(processor: Processor, schedule: u64) -> Bench {
    let checking = checking(Checking::Accesses);
    Bench::on(processor, SimtOptions { checking, copies: Copies::Eager, schedule })
}

/// Runs a check of kernels on every processor.
pub fn on_every_processor(
    seed: u64,
    check: impl Fn(&Bench) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    processors().try_for_each(|processor| check(&bench(processor, seed % 4)))
}

/// Runs a check of kernels on every runtime, including GPU streams that are given by their addresses.
pub fn on_every_runtime(check: impl Fn(&Bench) -> Result<(), TestCaseError>) {
    runtimes_agree(|bench| check(bench).unwrap(), |(), ()| {});
}

/// Returns whether `found` is `exact` rounded to the type after f32 arithmetic.
pub fn is_rounded<T: Half>(found: T, exact: f64) -> bool {
    (found.f64() - exact).abs() <= exact.abs() * T::ROUNDOFF * 1.01 + 1e-6
}
