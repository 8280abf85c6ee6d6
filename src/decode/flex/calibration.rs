//! Calibration of confidences: how often draft tokens with a given confidence are accepted.
//!
//! A confidence is the drafter's probability of its own token. Some drafters are overconfident, and slots differ. The
//! calibration keeps, per range of confidences and per slot, the average difference between acceptance and confidence,
//! given that all earlier tokens of the draft were accepted. Both corrections begin at 0 and gain weight with the
//! number of verified tokens.

/// Upper limits of the ranges of confidences.
const LIMITS: [f32; 12] = [0.05, 0.12, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.97, 0.99, f32::INFINITY];

/// Number of verified tokens at which a correction has half of its full weight.
const PRIOR: f64 = 8.0;
const SLOT_PRIOR: f64 = 24.0;
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

    fn mean(&self, prior: f64) -> f64 {
        self.sum / (self.count + prior)
    }
}

/// The corrections of confidences that were learned from verifications.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfidenceCalibration {
    ranges: [Surplus; LIMITS.len()],
    slots: Vec<Surplus>,
}

impl ConfidenceCalibration {
    fn range(confidence: f32) -> usize {
        LIMITS.iter().position(|&limit| confidence < limit).unwrap_or(LIMITS.len() - 1)
    }

    fn of_range(&self, confidence: f32) -> f64 {
        f64::from(confidence) + self.ranges[Self::range(confidence)].mean(PRIOR)
    }

    /// Returns the chance that the draft token of slot j, counted from 0, is accepted if all earlier tokens are.
    pub(super) fn chance(&self, slot: usize, confidence: f32) -> f64 {
        let of_slot = self.slots.get(slot).map_or(0.0, |surplus| surplus.mean(SLOT_PRIOR));
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

    /// Learns from a verification of `verified` draft tokens that accepted `accepted` of them.
    pub(super) fn observe(&mut self, confidences: &[f32], verified: usize, accepted: usize) {
        let tested = (accepted + 1).min(verified).min(confidences.len());
        if self.slots.len() < tested {
            self.slots.resize(tested, Surplus::default());
        }
        for (slot, &confidence) in confidences[..tested].iter().enumerate() {
            let outcome = f64::from(u8::from(slot < accepted));
            let expected = self.of_range(confidence);
            self.slots[slot].add(outcome - expected);
            self.ranges[Self::range(confidence)].add(outcome - f64::from(confidence));
        }
    }
}
