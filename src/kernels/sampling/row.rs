//! The sampling parameters of a row of logits, and the statistics that sampling returns for the row.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use crate::kernels::params::sampling::{
    FLEXDRAFT_LOGITS_FORBIDDEN, FLEXDRAFT_LOGITS_INFINITE, FLEXDRAFT_LOGITS_NAN, FlexdraftLogitsFault,
    FlexdraftRowSampling, FlexdraftRowStats,
};
use crate::logits::LogitsFault;
use crate::random::Stream;
use crate::runtime::Element;
use crate::sampling::{SamplingError, SamplingParams};

/// How one row of logits is warped (temperature, top-k, top-p and min-p) and drawn from: `FlexdraftRowSampling` of
/// `cuda/sampling/params.h`, validated.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling(FlexdraftRowSampling);

// SAFETY: ten words without padding (40 bytes, as asserted in the header), each valid for any bits; the kernels give
// every value a defined meaning.
unsafe impl bytemuck::Zeroable for RowSampling {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowSampling {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for RowSampling {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for RowSampling {}

impl Element for RowSampling {}

impl RowSampling {
    /// Returns the warping that `params` describe, and a draw with the random numbers of `numbers`. Without `numbers`
    /// the token is that of the largest logit, and `params` still decides the row's probabilities.
    ///
    /// # Errors
    ///
    /// [`SamplingError`] for a parameter out of its range.
    pub fn new(params: &SamplingParams, numbers: Option<Stream>) -> Result<Self, SamplingError> {
        params.validate()?;
        let (seed, purpose_and_slot, position) = numbers.map_or((0, 0, 0), |numbers| numbers.parts());
        Ok(RowSampling(FlexdraftRowSampling {
            seed,
            position,
            inverse_temperature: params.inverse_temperature().unwrap_or(0.0),
            top_p: params.top_p,
            min_score: lowest_score(params.min_p),
            // A top-k that does not fit the kernel's type exceeds the size of every vocabulary, so nothing is dropped.
            top_k: i32::try_from(params.top_k).unwrap_or(0),
            purpose_and_slot,
            sequence: -1,
        }))
    }

    /// Returns the same sampling with a position that counts from the position of sequence `sequence` in
    /// [`Sample::starts`](super::Sample::starts), for a position that only the device knows.
    #[must_use]
    pub fn relative_to(mut self, sequence: u32) -> Self {
        // An index that does not fit the kernel's type is beyond every number of sequences, and the kernel reports it.
        self.0.sequence = i32::try_from(sequence).unwrap_or(i32::MAX);
        self
    }
}

/// Returns min-p as a score: the smallest f32 whose exponential, in double precision, is at least `min_p`; −∞ for 0.
fn lowest_score(min_p: f32) -> f32 {
    if min_p <= 0.0 {
        return f32::NEG_INFINITY;
    }
    let suffices = |score: f32| f64::from(score).exp() >= f64::from(min_p);
    let mut score = f64::from(min_p).ln() as f32;
    while !suffices(score) {
        score = score.next_up();
    }
    while suffices(score.next_down()) {
        score = score.next_down();
    }
    score
}

/// The statistics of one row after sampling: `FlexdraftRowStats` of `cuda/sampling/params.h`.
///
/// The score of an id is 0 if its logit is the largest, otherwise `(logit − max) · inverse_temperature`. An id is kept if
/// its score is above `cut_score`, or equal to it with the id at most `cut_id`. The probability of a kept id is
/// `exp(score − log_sum)`, and of any other id 0. At temperature 0, or if `max` is −∞, `token` has probability 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStats {
    /// The token that was drawn, or the token of the largest logit (ties to the lowest id).
    pub token: i32,
    /// The largest logit of the row.
    pub max: f32,
    /// The natural logarithm of Σ exp(score) over the ids that are kept; 0 at temperature 0.
    pub log_sum: f32,
    /// The probability of `token`.
    pub probability: f32,
    /// The largest probability of the softmax at temperature 1, with nothing dropped; 0 if no logit is above −∞.
    pub confidence: f32,
    /// The logit of `token`.
    pub token_logit: f32,
    /// The probability of the row's token in [`Sample::draft`](super::Sample::draft); 0 without a token.
    pub draft_probability: f32,
    /// The reciprocal of the row's temperature ([`SamplingParams::inverse_temperature`]); 0 for greedy rows.
    pub inverse_temperature: f32,
    /// The lowest score that top-k, top-p and min-p keep; −∞ if nothing is dropped.
    pub cut_score: f32,
    /// The highest id that is kept among the ids whose score is the lowest that is kept.
    pub cut_id: i32,
    /// The number of ids that top-k, top-p and min-p keep; the size of the vocabulary if nothing is dropped.
    pub kept: i32,
    /// The code of the row's fault, which [`logits_fault`](Self::logits_fault) returns; 0 if there is none. The other
    /// fields of a faulty row are as above, with NaN as −∞, but no token of a target may come from it.
    pub fault: i32,
}

impl RowStats {
    /// Returns the reason why no token may be drawn from the row, if there is one.
    pub fn logits_fault(&self) -> Option<LogitsFault> {
        fault_of_code(self.fault)
    }
}

/// Returns the fault with a code of `FlexdraftLogitsFault`; `None` for the code of rows without a fault and for unknown
/// codes.
pub(in crate::kernels) fn fault_of_code(code: i32) -> Option<LogitsFault> {
    match code.cast_unsigned() as FlexdraftLogitsFault {
        FLEXDRAFT_LOGITS_NAN => Some(LogitsFault::Nan),
        FLEXDRAFT_LOGITS_INFINITE => Some(LogitsFault::Infinite),
        FLEXDRAFT_LOGITS_FORBIDDEN => Some(LogitsFault::Forbidden),
        _ => None,
    }
}

const _: () = assert!(size_of::<RowStats>() == size_of::<FlexdraftRowStats>());
const _: () =
    assert!(std::mem::offset_of!(RowStats, fault) == std::mem::offset_of!(FlexdraftRowStats, fault));

// SAFETY: twelve words, each valid for any bits.
unsafe impl bytemuck::Zeroable for RowStats {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowStats {}
// SAFETY: it is plain data, as the kernels declare it.
unsafe impl DeviceRepr for RowStats {}
// SAFETY: every field may be zero.
unsafe impl ValidAsZeroBits for RowStats {}

impl Element for RowStats {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_p_as_a_score_is_exact() {
        assert_eq!(lowest_score(0.0), f32::NEG_INFINITY);
        for min_p in [1e-45, 1e-38, 1e-10, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0 - f32::EPSILON / 2.0] {
            let score = lowest_score(min_p);
            assert!(f64::from(score).exp() >= f64::from(min_p), "{min_p}");
            assert!(f64::from(score.next_down()).exp() < f64::from(min_p), "{min_p}");
        }
    }
}
