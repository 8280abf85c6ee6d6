//! The reliability of confidences: how often drafts of a confidence are accepted.

use serde::{Deserialize, Serialize};

/// Number of bins of the reliability diagram, of equal width.
pub const BINS: usize = 10;

/// A bin of the reliability diagram: drafts with similar confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Number of drafts that were verified with all slots before them accepted.
    pub drafts: usize,
    /// Mean confidence of the drafts.
    pub confidence: f64,
    /// Share of the drafts that were accepted.
    pub accepted: f64,
}

/// Counts of drafts by confidence; bin i starts at confidence i/10.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calibration {
    /// For each bin: number of drafts, sum of their confidences, number accepted.
    bins: [(usize, f64, usize); BINS],
}

impl Calibration {
    /// Counts a draft that was verified with all slots before it accepted.
    pub fn add(&mut self, confidence: f32, accepted: bool) {
        let bin = ((f64::from(confidence) * BINS as f64) as usize).min(BINS - 1);
        let (drafts, sum, right) = &mut self.bins[bin];
        *drafts += 1;
        *sum += f64::from(confidence);
        *right += usize::from(accepted);
    }

    /// Returns the reliability diagram.
    pub fn reliability(&self) -> Vec<Bin> {
        let mean = |sum: f64, drafts: usize| if drafts == 0 { 0.0 } else { sum / drafts as f64 };
        let bin = |&(drafts, confidence, accepted): &(usize, f64, usize)| Bin {
            drafts,
            confidence: mean(confidence, drafts),
            accepted: mean(accepted as f64, drafts),
        };
        self.bins.iter().map(bin).collect()
    }

    /// Returns the calibration error: the mean distance between confidence and acceptance over the bins, weighted by
    /// their number of drafts; 0 without drafts.
    pub fn error(&self) -> f64 {
        let all: usize = self.bins.iter().map(|bin| bin.0).sum();
        let distance = |bin: Bin| bin.drafts as f64 * (bin.confidence - bin.accepted).abs();
        self.reliability().into_iter().map(distance).sum::<f64>() / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_mean_distance() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.error(), 0.0);
        for (confidence, accepted) in [(0.75, true), (0.75, false), (0.25, false), (1.0, true)] {
            calibration.add(confidence, accepted);
        }
        // Bin 7 has confidence 0.75 and acceptance 0.5, bin 2 is off by 0.25, and bin 9 is right.
        assert_eq!(calibration.error(), (2.0 * 0.25 + 0.25) / 4.0);
        assert_eq!(calibration.reliability()[9], Bin { drafts: 1, confidence: 1.0, accepted: 1.0 });
    }
}
