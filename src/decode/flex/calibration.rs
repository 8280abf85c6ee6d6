//! Calibration of confidences: how often draft tokens with a given confidence are accepted.
//!
//! A confidence is the drafter's probability of its own token. On text that a drafter was not trained on, drafters are
//! usually overconfident, and slots differ. The calibration keeps, per range of confidences and per slot, the average
//! difference between acceptance and confidence, given that all earlier tokens of the draft were accepted. The correction
//! of a range begins at the excess over all ranges, which begins at the excess that drafters usually have; the correction of
//! a slot begins at 0. The corrections gain weight with the number of verified tokens.

/// Upper limits of the ranges of confidences.
const LIMITS: [f32; 12] = [0.05, 0.12, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.97, 0.99, f32::INFINITY];

/// Number of verified tokens at which a correction has half of its full weight.
const PRIOR: f64 = 8.0;
const SLOT_PRIOR: f64 = 24.0;
/// The excess of a drafter's confidences before any token was verified, as a fraction of the confidence, and the sum of
/// confidences at which the verified tokens have half of the full weight. On MT-Bench, the confidences of SmolLM2's drafter
/// exceed acceptance by 0.14 (demo/smollm2-drafter/README.md), a third of the confidence. A drafter that pays is worth its
/// rows in spite of this discount; without the discount, a drafter that does not pay drafts for dozens of steps before its
/// acceptance shows that.
const EXCESS: f64 = 0.25;
const EXCESS_PRIOR: f64 = 8.0;
/// Number of drafts after which the excess before any token was verified has shrunk to 1/e. If the discount keeps the policy
/// from verifying any draft token, acceptance cannot show that the discount is too large, so the discount shrinks with time.
const EXCESS_DRAFTS: f64 = 64.0;
/// The maximum number of verified tokens that a correction averages over.
const MEMORY: f64 = 400.0;

/// The average of acceptance minus expectation.
#[derive(Clone, Copy, Debug, Default)]
struct Surplus {
    sum: f64,
    count: f64,
}

impl Surplus {
    fn add(&mut self, surplus: f64) {
        if self.count >= MEMORY {
            self.sum *= 1.0 - 1.0 / MEMORY;
            self.count *= 1.0 - 1.0 / MEMORY;
        }
        self.sum += surplus;
        self.count += 1.0;
    }

    /// Returns the mean with `weight` more tokens of the surplus `prior`.
    fn mean(&self, weight: f64, prior: f64) -> f64 {
        (self.sum + weight * prior) / (self.count + weight)
    }
}

/// The corrections of confidences that were learned from verifications.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfidenceCalibration {
    /// The excess of confidences before any token was verified, as a fraction of the confidence. Falls with every draft.
    first_excess: f64,
    /// Sums over verified tokens: confidences, and what they exceeded acceptance by.
    confidences: f64,
    excesses: f64,
    ranges: [Surplus; LIMITS.len()],
    slots: Vec<Surplus>,
}

impl ConfidenceCalibration {
    /// Makes the calibration of a drafter's confidences, which are usually too high. [`Default`] makes the calibration of
    /// confidences that are taken to be right until acceptance shows otherwise.
    pub(super) fn of_drafter() -> Self {
        Self { first_excess: EXCESS, ..Self::default() }
    }

    fn range(confidence: f32) -> usize {
        LIMITS.iter().position(|&limit| confidence < limit).unwrap_or(LIMITS.len() - 1)
    }

    /// Returns the fraction of the confidence that acceptance is lower by, over all ranges.
    fn excess(&self) -> f64 {
        (self.excesses + EXCESS_PRIOR * self.first_excess) / (self.confidences + EXCESS_PRIOR)
    }

    fn of_range(&self, confidence: f32) -> f64 {
        let surplus = self.ranges[Self::range(confidence)];
        let confidence = f64::from(confidence);
        confidence + surplus.mean(PRIOR, -self.excess() * confidence)
    }

    /// Returns the chance that the draft token of slot j, counted from 0, is accepted if all earlier tokens are.
    pub(super) fn chance(&self, slot: usize, confidence: f32) -> f64 {
        let of_slot = self.slots.get(slot).map_or(0.0, |surplus| surplus.mean(SLOT_PRIOR, 0.0));
        (self.of_range(confidence) + of_slot).clamp(0.001, 0.999)
    }

    /// Appends to `curve` the chances that the first j + 1 draft tokens are all accepted, for each slot j.
    pub(super) fn survival(&self, confidences: &[f32], curve: &mut Vec<f32>) {
        let mut product = 1.0;
        curve.extend(confidences.iter().enumerate().map(|(slot, &confidence)| {
            product *= self.chance(slot, confidence);
            product as f32
        }));
    }

    /// Learns from a step that had a draft with these confidences, verified `verified` of its tokens and accepted `accepted` of
    /// them.
    pub(super) fn observe(&mut self, confidences: &[f32], verified: usize, accepted: usize) {
        if !confidences.is_empty() {
            self.first_excess *= 1.0 - 1.0 / EXCESS_DRAFTS;
        }
        let tested = (accepted + 1).min(verified).min(confidences.len());
        if self.slots.len() < tested {
            self.slots.resize(tested, Surplus::default());
        }
        for (slot, &confidence) in confidences[..tested].iter().enumerate() {
            let outcome = f64::from(u8::from(slot < accepted));
            let expected = self.of_range(confidence);
            if self.confidences >= MEMORY {
                self.confidences *= 1.0 - 1.0 / MEMORY;
                self.excesses *= 1.0 - 1.0 / MEMORY;
            }
            self.confidences += f64::from(confidence);
            self.excesses += f64::from(confidence) - outcome;
            self.slots[slot].add(outcome - expected);
            self.ranges[Self::range(confidence)].add(outcome - f64::from(confidence));
        }
    }

    /// Learns from a draft token that no step verified, whether it equals the committed token at its position. Only the
    /// correction of its range learns: the policy verifies nothing of the drafts that look worst, so these tokens say too
    /// little good about other ranges and about slots.
    pub(super) fn compare(&mut self, confidence: f32, is_equal: bool) {
        let outcome = f64::from(u8::from(is_equal));
        self.ranges[Self::range(confidence)].add(outcome - f64::from(confidence));
    }
}

#[cfg(test)]
mod tests {
    use super::ConfidenceCalibration;

    /// Verifies draft tokens of the confidence `seen`: `times` tokens, and `accepted` of them are accepted.
    fn learn(calibration: &mut ConfidenceCalibration, seen: f32, accepted: usize, times: usize) {
        for index in 0..times {
            let is_accepted = (index + 1) * accepted / times > index * accepted / times;
            calibration.observe(&[seen], 1, usize::from(is_accepted));
        }
    }

    #[test]
    fn confidences_of_a_drafter_count_for_less_until_acceptance_bears_them_out() {
        let mut calibration = ConfidenceCalibration::of_drafter();
        assert!((calibration.chance(0, 0.8) - 0.6).abs() < 1e-6, "{}", calibration.chance(0, 0.8));
        assert!((ConfidenceCalibration::default().chance(0, 0.8) - 0.8).abs() < 1e-6);
        learn(&mut calibration, 0.9, 180, 200);
        assert!((calibration.chance(0, 0.9) - 0.9).abs() < 0.02, "{}", calibration.chance(0, 0.9));
        // No token of the confidence 0.5 was verified, but the drafter's excess is known.
        assert!((calibration.chance(1, 0.5) - 0.5).abs() < 0.02, "{}", calibration.chance(1, 0.5));
    }

    #[test]
    fn drafts_that_are_not_verified_lose_their_discount() {
        let mut calibration = ConfidenceCalibration::of_drafter();
        (0..300).for_each(|_| calibration.observe(&[0.8], 0, 0));
        assert!((calibration.chance(0, 0.8) - 0.8).abs() < 0.01, "{}", calibration.chance(0, 0.8));
    }

    #[test]
    fn a_drafter_that_is_too_sure_is_known_in_ranges_that_were_not_verified() {
        let mut calibration = ConfidenceCalibration::of_drafter();
        learn(&mut calibration, 0.9, 90, 200);
        let chance = calibration.chance(1, 0.5);
        assert!((0.2..0.3).contains(&chance), "half of the confidence, not {chance}");
    }

    #[test]
    fn tokens_that_were_not_verified_teach_their_range_alone() {
        let mut calibration = ConfidenceCalibration::of_drafter();
        let other = calibration.chance(0, 0.5);
        (0..200).for_each(|index| calibration.compare(0.9, index % 10 != 0));
        assert!((calibration.chance(0, 0.9) - 0.9).abs() < 0.02, "{}", calibration.chance(0, 0.9));
        assert_eq!(calibration.chance(0, 0.5), other);
    }
}
