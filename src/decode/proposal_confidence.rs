//! The confidence in the certain tokens of proposals: how often such tokens were accepted.

use std::collections::HashMap;

/// The assumed acceptance rate of certain tokens before any token of the same source and place was verified. Prompt
/// lookup with the bundled target has about this rate at its first places (`docs/cli.md`).
const PRIOR: f64 = 0.75;

/// The weight of the prior, in verified tokens.
const PRIOR_TOKENS: f64 = 8.0;

/// The maximum number of verified tokens of a source and place over which the rate is averaged.
const MEMORY: f64 = 400.0;

/// The tokens of a proposal that count as certain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CertainTokens {
    /// The name of the proposal's source.
    pub(super) source: &'static str,
    /// Whether each token of the proposal counts as certain.
    pub(super) places: Vec<bool>,
}

/// How often certain tokens were accepted, by source and by place in the proposal, given that all tokens before them were.
///
/// A source that pushes tokens as certain gives no probability that the target accepts them, so the engine learns the
/// acceptance rate from earlier verifications. The confidence in a token is therefore known before the token is
/// proposed, and a verify length that depends on it leaves the law of the output as it is.
#[derive(Debug, Default)]
pub(super) struct ProposalConfidence {
    sources: HashMap<&'static str, Vec<Acceptance>>,
}

/// Counts of the verified tokens of a source at a place.
#[derive(Clone, Copy, Debug, Default)]
struct Acceptance {
    accepted: f64,
    verified: f64,
}

impl Acceptance {
    fn add(&mut self, accepted: bool) {
        if self.verified >= MEMORY {
            self.accepted *= 1.0 - 1.0 / MEMORY;
            self.verified *= 1.0 - 1.0 / MEMORY;
        }
        self.accepted += f64::from(u8::from(accepted));
        self.verified += 1.0;
    }

    fn mean(self) -> f32 {
        ((self.accepted + PRIOR * PRIOR_TOKENS) / (self.verified + PRIOR_TOKENS)) as f32
    }
}

impl ProposalConfidence {
    /// Replaces the confidence in the certain tokens of a proposal by the chance that they are accepted, if all tokens
    /// before them are.
    pub(super) fn calibrate(&self, certain: &CertainTokens, confidence: &mut [f32]) {
        let places = self.sources.get(certain.source).map_or(&[][..], Vec::as_slice);
        for (place, (confidence, _)) in
            confidence.iter_mut().zip(&certain.places).enumerate().filter(|(_, (_, certain))| **certain)
        {
            *confidence = places.get(place).copied().unwrap_or_default().mean();
        }
    }

    /// Learns from a verification of `verified` tokens of a proposal that accepted `accepted` of them.
    pub(super) fn observe(&mut self, certain: &CertainTokens, verified: usize, accepted: usize) {
        let tested = (accepted + 1).min(verified).min(certain.places.len());
        let places = self.sources.entry(certain.source).or_default();
        if places.len() < tested {
            places.resize(tested, Acceptance::default());
        }
        let counts = places.iter_mut().zip(&certain.places).take(tested).enumerate();
        for (place, (counts, _)) in counts.filter(|(_, (_, certain))| **certain) {
            counts.add(place < accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certain(source: &'static str, places: &[bool]) -> CertainTokens {
        CertainTokens { source, places: places.to_vec() }
    }

    fn confidence(learned: &ProposalConfidence, source: &'static str) -> Vec<f32> {
        let mut confidence = vec![1.0; 4];
        learned.calibrate(&certain(source, &[true; 4]), &mut confidence);
        confidence
    }

    #[test]
    fn acceptance_is_learned_by_source_and_place() {
        let mut learned = ProposalConfidence::default();
        assert_eq!(confidence(&learned, "a"), [PRIOR as f32; 4]);
        for _ in 0..300 {
            learned.observe(&certain("a", &[true; 4]), 3, 1);
        }
        let [first, second, third, fourth] = confidence(&learned, "a")[..] else { panic!() };
        assert!(first > 0.98 && second < 0.02);
        // The third token was verified, but the second was never accepted; the fourth was not verified.
        assert_eq!([third, fourth], [PRIOR as f32; 2]);
        assert_eq!(confidence(&learned, "b"), [PRIOR as f32; 4]);
    }

    #[test]
    fn tokens_with_a_distribution_keep_their_confidence_and_teach_nothing() {
        let mut learned = ProposalConfidence::default();
        let mixed = certain("a", &[true, false]);
        for _ in 0..20 {
            learned.observe(&mixed, 2, 1);
        }
        let mut confidence = [1.0, 0.25];
        learned.calibrate(&mixed, &mut confidence);
        assert!(confidence[0] > 0.8 && confidence[1] == 0.25);
        assert_eq!(self::confidence(&learned, "a")[1], PRIOR as f32);
    }

    #[test]
    fn old_verifications_are_forgotten() {
        let mut learned = ProposalConfidence::default();
        for accepted in [0, 1] {
            for _ in 0..10_000 {
                learned.observe(&certain("a", &[true]), 1, accepted);
            }
        }
        assert!(confidence(&learned, "a")[0] > 0.97);
    }
}
