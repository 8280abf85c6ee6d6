//! A small tuning run that learns to count.

use std::path::Path;

use flexdraft::model::config::Architecture;
use flexdraft::model::weights::TargetWeights;
use flexdraft_tune::transcripts::Transcript;
use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{Observer, Settings, StepMetrics, TunedTarget};
use flexdraft_tune::{Result, TuneError};

/// Returns transcripts that count from different starts: the bonus token alone determines the next token.
pub fn counting(count: usize) -> Vec<Transcript> {
    let token = |first: usize, i: usize| ((7 * first + i) % 31) as u32;
    (0..count)
        .map(|first| Transcript {
            prompt: (0..4).map(|i| token(first, i)).collect(),
            response: (4..24).map(|i| token(first, i)).collect(),
        })
        .collect()
}

pub fn settings() -> Settings {
    Settings {
        tail_layers: 2,
        block_size: 4,
        rank: 8,
        steps: 12,
        sequences: 4,
        anchors: 6,
        learning_rate: 3e-3,
        evaluate_every: 6,
        evaluate_on: 3,
        checkpoint_every: 6,
        kept_gib: 0.1,
        ..Settings::default()
    }
}

pub fn target() -> TargetWeights {
    super::target(&super::config(Architecture::Qwen3, false))
}

/// Returns a target without files.
pub fn in_memory(weights: &TargetWeights) -> TunedTarget<'_> {
    TunedTarget { weights, directory: Path::new("a target without files") }
}

/// An observer that records the progress of a run, and can end the run as if the process were killed.
#[derive(Default)]
pub struct Recorder {
    pub losses: Vec<f64>,
    pub rates: Vec<f64>,
    pub taus: Vec<f64>,
    pub killed_at: Option<usize>,
}

impl Observer for Recorder {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        if self.killed_at.is_some_and(|step| metrics.step > step) {
            return Err(TuneError::setting("step", metrics.step, "a run that was killed before it"));
        }
        self.losses.push(metrics.loss);
        self.rates.push(metrics.learning_rate);
        Ok(())
    }

    fn evaluated(&mut self, _: usize, _: usize, walk: &Walk) -> Result<()> {
        self.taus.push(walk.tau().unwrap());
        Ok(())
    }
}
