//! Sampling: temperature, top-k, top-p and min-p, and the draw of a token.
//!
//! [`warp`] turns logits into *warped scores*: logits relative to the largest, times the reciprocal of the
//! temperature, with −∞ for dropped ids. The reciprocal is rounded to f32 once
//! ([`SamplingParams::inverse_temperature`]), and every device multiplies by it, so that scores have the same
//! bits everywhere. All later operations start from the scores: [`softmax`] gives the distribution, [`draw`]
//! samples it, and the acceptance rules compare two distributions. Because drawing and evaluation share the
//! scores, q is exactly the distribution that a draft was drawn from.
//!
//! NaN logits count as −∞. If some logits are +∞, they share the mass equally; if all are −∞, id 0 has all of
//! it. No input gives an id outside the vocabulary.

use std::cmp::Ordering;

use crate::random::Stream;

/// An error of sampling parameters to which no distribution corresponds.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A temperature that is negative, infinite or NaN.
    #[error("temperature must be finite and at least 0, found {0}")]
    Temperature(f32),
    /// A temperature above 0 whose reciprocal exceeds every f32: below about 2.94e-39.
    #[error("temperature must be 0, or at least 2.94e-39 for a finite reciprocal, found {0:e}")]
    TinyTemperature(f32),
    /// A temperature above [`SamplingParams::MAX_TEMPERATURE`].
    #[error("temperature must be at most {max:e}, found {0:e}", max = SamplingParams::MAX_TEMPERATURE)]
    HugeTemperature(f32),
    /// A top-p outside (0, 1].
    #[error("top-p must be above 0 and at most 1, found {0}")]
    TopP(f32),
    /// A min-p outside [0, 1).
    #[error("min-p must be at least 0 and below 1, found {0}")]
    MinP(f32),
}

/// Parameters that turn logits into a distribution: temperature, then top-k, then top-p, then min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Temperature: the divisor of the logits, applied as a multiplication by
    /// [`inverse_temperature`](Self::inverse_temperature); 0 is greedy decoding.
    pub temperature: f32,
    /// Top-k: the number of largest logits to keep (ties to the lowest id); 0 keeps all.
    pub top_k: usize,
    /// Top-p: the probability mass to keep, as the shortest prefix in descending order whose sum reaches this value
    /// (ties to the lowest id); 1 keeps all.
    pub top_p: f32,
    /// Min-p: the smallest probability to keep, as a fraction of the largest; 0 keeps all.
    pub min_p: f32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self::GREEDY
    }
}

impl SamplingParams {
    /// The highest temperature. Devices compute differences of logits in f32; up to this temperature, a token whose
    /// difference overflows has no probability in exact arithmetic either.
    pub const MAX_TEMPERATURE: f32 = 1e36;

    /// Greedy decoding: temperature 0, which takes the most probable token, ties to the lowest id.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Sampling from the whole distribution at temperature 1.
    pub const WHOLE: Self = Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Sampling from the whole distribution at `temperature`.
    pub fn at_temperature(temperature: f32) -> Self {
        Self { temperature, ..Self::GREEDY }
    }

    /// Returns whether decoding is greedy: whether the temperature is 0.
    pub fn is_greedy(&self) -> bool {
        self.inverse_temperature().is_none()
    }

    /// Returns the factor that logits are multiplied by: 1 / temperature, rounded to f32. `None` means greedy decoding,
    /// which is also the defined result for temperatures that [`validate`](Self::validate) refuses.
    pub fn inverse_temperature(&self) -> Option<f32> {
        let temperature = Some(self.temperature).filter(|&t| t > 0.0 && t <= Self::MAX_TEMPERATURE)?;
        Some(temperature.recip()).filter(|inverse| inverse.is_finite())
    }

    /// Checks the range of every sampling parameter.
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if self.temperature > Self::MAX_TEMPERATURE {
            return Err(SamplingError::HugeTemperature(self.temperature));
        }
        if self.temperature > 0.0 && self.is_greedy() {
            return Err(SamplingError::TinyTemperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        if !(self.min_p >= 0.0 && self.min_p < 1.0) {
            return Err(SamplingError::MinP(self.min_p));
        }
        Ok(())
    }
}

/// Returns the index of the largest value, ties to the lowest index; NaN counts as −∞. Returns 0 for an empty slice.
pub fn argmax(values: impl IntoIterator<Item = f32>) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, value) in values.into_iter().enumerate() {
        if value > best.0 {
            best = (value, id as u32);
        }
    }
    best.1
}

/// Returns the scores `[vocab]` of `logits` `[vocab]` after temperature, top-k, top-p and min-p.
///
/// The order is the order of transformers' logits processors: temperature, top-k, top-p on the renormalised
/// rest, min-p relative to the largest. At temperature 0 only the argmax is kept.
pub fn warp(logits: &[f32], params: &SamplingParams) -> Vec<f32> {
    let mut scores = scaled(logits, params.inverse_temperature());
    if params.top_k > 0 && params.top_k < scores.len() {
        keep_largest(&mut scores, params.top_k);
    }
    if params.top_p < 1.0 {
        keep_nucleus(&mut scores, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let floor = f64::from(params.min_p);
        scores.iter_mut().filter(|s| f64::from(**s).exp() < floor).for_each(|s| *s = f32::NEG_INFINITY);
    }
    scores
}

/// Returns (logit − largest) · inverse temperature for every logit, so that the largest score is 0 at every
/// temperature.
fn scaled(logits: &[f32], inverse_temperature: Option<f32>) -> Vec<f32> {
    let largest = logits.iter().copied().filter(|l| !l.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    let Some(inverse) = inverse_temperature.filter(|_| largest > f32::NEG_INFINITY) else {
        let kept = argmax(logits.iter().copied()) as usize;
        return (0..logits.len()).map(|id| if id == kept { 0.0 } else { f32::NEG_INFINITY }).collect();
    };
    logits
        .iter()
        .map(|&logit| match logit {
            _ if logit == largest => 0.0,
            _ if logit.is_nan() => f32::NEG_INFINITY,
            _ => (logit - largest) * inverse,
        })
        .collect()
}

/// Orders ids by descending score, ties to the lowest id. This is a total order, so a selection is unique.
fn descending(scores: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    let score = |id: u32| scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    move |&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b))
}

fn drop_ids(scores: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn keep_largest(scores: &mut [f32], k: usize) {
    let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
    let (_, _, rest) = ids.select_nth_unstable_by(k - 1, descending(scores));
    drop_ids(scores, rest);
}

/// Only as much of the vocabulary is sorted as the nucleus needs, in growing prefixes.
fn keep_nucleus(scores: &mut [f32], mass: f64) {
    let probability = |score: f32| f64::from(score).exp();
    let target = mass * scores.iter().map(|&s| probability(s)).sum::<f64>();
    let mut ids: Vec<u32> = (0..scores.len() as u32).filter(|&id| scores[id as usize].is_finite()).collect();
    let (mut sorted, mut kept, mut sum) = (0, 0, 0.0);
    while sorted < ids.len() && sum < target {
        let end = (2 * sorted).max(64).min(ids.len());
        let order = descending(scores);
        if end < ids.len() {
            ids[sorted..].select_nth_unstable_by(end - sorted - 1, &order);
        }
        ids[sorted..end].sort_unstable_by(&order);
        for &id in &ids[sorted..end] {
            if sum >= target {
                break;
            }
            sum += probability(scores[id as usize]);
            kept += 1;
        }
        sorted = end;
    }
    drop_ids(scores, &ids[kept..]);
}

/// Returns the distribution `[vocab]` of warped scores: their softmax.
pub fn softmax(scores: &[f32]) -> Vec<f64> {
    let mut weights: Vec<f64> = scores.iter().map(|&s| f64::from(s).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    weights
}

/// Draws an id from warped scores by Gumbel-max: the argmax of score + G(id), with one random number per id, ties to
/// the lowest id.
pub fn draw(scores: &[f32], stream: Stream) -> u32 {
    stream.gumbel_argmax(scores.iter().copied())
}

/// Draws an id with probability proportional to `weights` (not all zero), by Gumbel-max.
pub fn draw_weighted(weights: &[f64], stream: Stream) -> u32 {
    stream.gumbel_argmax(weights.iter().map(|weight| weight.ln() as f32))
}

/// Returns the largest probability of softmax(`logits`) at temperature 1: the confidence of a draft token. Returns 0 if
/// no logit is above −∞, because no token can then be drawn.
pub fn confidence(logits: &[f32]) -> f32 {
    if !logits.iter().any(|&logit| logit > f32::NEG_INFINITY) {
        return 0.0;
    }
    let sum: f64 = scaled(logits, Some(1.0)).iter().map(|&s| f64::from(s).exp()).sum();
    (1.0 / sum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;

    const INF: f32 = f32::INFINITY;

    fn kept(logits: &[f32], params: SamplingParams) -> Vec<usize> {
        let scores = warp(logits, &params);
        (0..scores.len()).filter(|&id| scores[id] > -INF).collect()
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        let base = SamplingParams::at_temperature(1.0);
        assert_eq!(argmax([1.0, 3.0, 3.0]), 1);
        assert_eq!(kept(&[1.0, 2.0, 2.0, 2.0], SamplingParams { top_k: 2, ..base }), [1, 2]);
        assert_eq!(kept(&[0.0, 0.0, 0.0, 0.0], SamplingParams { top_p: 0.5, ..base }), [0, 1]);
        assert_eq!(kept(&[0.0, 0.0, 0.0, 0.0], SamplingParams { top_p: 0.51, ..base }), [0, 1, 2]);
        assert_eq!(kept(&[2.0, 7.0, 7.0], SamplingParams::GREEDY), [1]);
    }

    #[test]
    fn filters_apply_in_order_on_the_renormalised_rest() {
        // Of the probabilities 0.4, 0.3, 0.2, 0.1, top-k 2 leaves 4/7 and 3/7; top-p 0.5 keeps the first.
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln).to_vec();
        let base = SamplingParams::at_temperature(1.0);
        assert_eq!(kept(&logits, SamplingParams { top_p: 0.5, ..base }), [0, 1]);
        assert_eq!(kept(&logits, SamplingParams { top_k: 2, top_p: 0.5, ..base }), [0]);
        assert_eq!(kept(&logits, SamplingParams { min_p: 0.6, ..base }), [0, 1]);
        assert_eq!(kept(&logits, SamplingParams { temperature: 0.5, min_p: 0.6, ..base }), [0]);
    }

    #[test]
    fn nucleus_longer_than_the_first_prefix() {
        let logits: Vec<f32> = (0..1000).map(|i| -(((i * 7919) % 1000) as f32) * 1e-3).collect();
        let params = SamplingParams { top_p: 0.9, ..SamplingParams::at_temperature(1.0) };
        let mut sorted: Vec<f64> = softmax(&warp(&logits, &SamplingParams::at_temperature(1.0)));
        sorted.sort_by(|a, b| b.total_cmp(a));
        let before = |n: usize| sorted[..n].iter().sum::<f64>();
        let expected = (0..).find(|&n| before(n) >= 0.9).unwrap();
        assert_eq!(kept(&logits, params).len(), expected);
    }

    #[test]
    fn odd_logits_have_a_defined_outcome() {
        let one = SamplingParams::at_temperature(1.0);
        assert_eq!(softmax(&warp(&[f32::NAN, 1.0, -INF], &one)), [0.0, 1.0, 0.0]);
        assert_eq!(softmax(&warp(&[INF, 1.0, INF], &one)), [0.5, 0.0, 0.5]);
        assert_eq!(softmax(&warp(&[f32::NAN, -INF], &one)), [1.0, 0.0]);
        assert_eq!(softmax(&warp(&[5.0, 4.0], &SamplingParams::at_temperature(1e-38))), [1.0, 0.0]);
        assert!(warp(&[], &one).is_empty());
        assert_eq!(argmax([f32::NAN, f32::NAN]), 0);
        assert_eq!(confidence(&[f32::NAN, 0.0, 0.0]), 0.5);
        let stream = Stream::new(1, Purpose::TargetDraw, 0, 0);
        assert_eq!(draw(&warp(&[-INF, f32::NAN, 3.0], &one), stream), 2);
        assert_eq!(draw_weighted(&[0.0, 0.0, 1e-300], stream), 2);
    }

    #[test]
    fn a_temperature_without_a_finite_reciprocal_is_refused_and_otherwise_greedy() {
        // The largest temperature whose reciprocal, 2^128, exceeds f32 is 2^−128.
        let largest = f32::from_bits(1 << 21);
        for t in [f32::from_bits(1), 1e-45, 1e-39, largest] {
            let params = SamplingParams::at_temperature(t);
            assert_eq!(params.validate(), Err(SamplingError::TinyTemperature(t)));
            assert_eq!(params.inverse_temperature(), None);
            assert_eq!(warp(&[1.0, 2.0, 2.0], &params), [-INF, 0.0, -INF]);
        }
        let error = SamplingParams::at_temperature(1e-39).validate().unwrap_err().to_string();
        assert_eq!(error, "temperature must be 0, or at least 2.94e-39 for a finite reciprocal, found 1e-39");
        for t in [largest.next_up(), 1e-38, 1.0, SamplingParams::MAX_TEMPERATURE] {
            let params = SamplingParams::at_temperature(t);
            assert_eq!(params.validate(), Ok(()));
            assert!(params.inverse_temperature().is_some_and(|inverse| inverse > 0.0 && inverse.is_finite()));
            // Tied tokens share the probability at the smallest temperatures too.
            assert_eq!(softmax(&warp(&[2.0, 2.0], &params)), [0.5, 0.5]);
        }
        // The score (logit − largest) · inverse temperature may overflow to −∞; the id then has probability 0.
        assert_eq!(warp(&[3e38, -3e38], &SamplingParams::at_temperature(1e-38)), [0.0, -INF]);
    }

    #[test]
    fn a_temperature_at_which_overflowing_differences_would_count_is_refused_and_otherwise_greedy() {
        for t in [SamplingParams::MAX_TEMPERATURE.next_up(), 3e38, f32::MAX] {
            let params = SamplingParams::at_temperature(t);
            assert_eq!(params.validate(), Err(SamplingError::HugeTemperature(t)));
            assert_eq!(params.inverse_temperature(), None);
        }
        let error = SamplingParams::at_temperature(3e38).validate().unwrap_err().to_string();
        assert_eq!(error, "temperature must be at most 1e36, found 3e38");
        // A difference that just overflows has the score −340 at the highest temperature: no weight in f32.
        assert_eq!((-f32::MAX / SamplingParams::MAX_TEMPERATURE).exp(), 0.0);
    }

    #[test]
    fn scores_are_products_with_the_reciprocal() {
        // The numbers 1.9 · (1 / 0.7) and 1.9 / 0.7 differ in f32, so this detects a division.
        let (logit, temperature) = (-1.9f32, 0.7f32);
        assert_ne!(logit * temperature.recip(), logit / temperature);
        let scores = warp(&[0.0, logit], &SamplingParams::at_temperature(temperature));
        assert_eq!(scores, [0.0, logit * temperature.recip()]);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let check = |params: SamplingParams| params.validate().map_err(|e| e.to_string());
        let base = SamplingParams::at_temperature(1.0);
        assert_eq!(check(base), Ok(()));
        for t in [-1.0, f32::NAN, INF] {
            let error = check(SamplingParams { temperature: t, ..base }).unwrap_err();
            assert_eq!(error, format!("temperature must be finite and at least 0, found {t}"));
        }
        for p in [0.0, -0.5, 1.5, f32::NAN] {
            let error = check(SamplingParams { top_p: p, ..base }).unwrap_err();
            assert_eq!(error, format!("top-p must be above 0 and at most 1, found {p}"));
        }
        for p in [1.0, -0.5, f32::NAN] {
            let error = check(SamplingParams { min_p: p, ..base }).unwrap_err();
            assert_eq!(error, format!("min-p must be at least 0 and below 1, found {p}"));
        }
    }
}
