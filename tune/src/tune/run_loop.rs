//! The loop of every training run: steps, evaluations on held-out transcripts, checkpoints.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use serde::Serialize;

use super::checks::{TO_WALK, check_weights};
use super::description::{Description, Evaluated, check_same_run};
use super::ranks::Ranks;
use super::training::TrainingSettings;
use super::walk::Walk;
use crate::checkpoint;
use crate::error::{Result, TuneError};
use crate::optimizer::{AdamW, schedule_steps};

/// The metrics of one training step.
#[derive(Clone, Debug, Serialize)]
pub struct StepMetrics {
    /// Number of steps so far.
    pub step: usize,
    /// Number of anchors seen so far.
    pub anchors: usize,
    /// Weighted cross-entropy of the step, plus the chain's if there is one.
    pub loss: f64,
    /// Share of slot 1's labels that were the most probable token.
    pub slot_1_accuracy: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Seconds since this process started its part of the run.
    pub seconds: f64,
    /// Mask rows per second during the step.
    pub rows_per_second: f64,
}

/// Receives the progress of a tuning run.
pub trait Observer {
    /// Receives the metrics of a step, after every step.
    fn step(&mut self, metrics: &StepMetrics) -> Result<()>;

    /// Receives the result of walking the held-out transcripts, at `step` steps and `anchors` anchors.
    fn evaluated(&mut self, step: usize, anchors: usize, walk: &Walk) -> Result<()>;
}

/// The result of a tuning run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The best acceptance length τ on the held-out transcripts.
    pub tau: f64,
    /// The step that reached `tau`.
    pub step: usize,
    /// Folder of the drafter; `None` for a run that gives no usable drafter.
    pub drafter: Option<PathBuf>,
}

/// The loss of a step and its gradients.
pub(super) struct StepGradients {
    pub loss: f64,
    /// Share of slot 1's labels that were the most probable token.
    pub slot_1_accuracy: f64,
    /// The gradient of each of the optimizer's parameters, if it has one.
    pub gradients: Vec<Option<Tensor>>,
    pub anchors: usize,
    pub mask_rows: f64,
}

/// The weights that a run trains.
pub(super) trait Trainee {
    /// Returns the loss of step `step`, counted from 0, and its gradients. The step learns from transcripts among
    /// `usable`.
    fn gradients(&mut self, optimizer: &AdamW, usable: &[usize], step: usize) -> Result<StepGradients>;

    /// Receives the weights after a step.
    fn stepped(&mut self, _optimizer: &AdamW) -> Result<()> {
        Ok(())
    }

    /// Walks the held-out transcripts, and exports the drafter if `is_best` says that the walk is the best so far.
    fn evaluate(&mut self, optimizer: &AdamW, is_best: &mut dyn FnMut(&Walk) -> Result<bool>)
    -> Result<Walk>;

    /// Returns the tensors that a checkpoint holds in addition to the optimizer's.
    fn further_tensors(&self) -> HashMap<String, Tensor> {
        HashMap::new()
    }
}

/// A run's checkpoint: its tensors and its description.
pub(super) type Found<S> = (HashMap<String, Tensor>, Description<S>);

/// The progress of a run.
pub(super) struct Run<'a, S> {
    pub description: Description<S>,
    pub optimizer: AdamW,
    out: &'a Path,
    /// The step of the checkpoint on disk.
    saved: usize,
}

/// Returns the checkpoint of the run in the folder `out`, if there is one.
///
/// # Errors
/// [`TuneError::OtherRun`] if the checkpoint belongs to another run than the one that `now` describes; errors of files.
pub(super) fn find_checkpoint<S: TrainingSettings>(
    out: &Path,
    now: &Description<S>,
) -> Result<Option<Found<S>>> {
    let path = checkpoint_path(out);
    if !path.exists() {
        return Ok(None);
    }
    let found = checkpoint::load::<Description<S>>(&path)?;
    check_same_run(&path, &found.1, now)?;
    Ok(Some(found))
}

/// Checks that the best drafter of a resumed run is still in its folder, if the run had evaluated one. `weights` is the
/// drafter's file in the folder `drafter`.
///
/// # Errors
/// [`TuneError::File`].
pub(super) fn check_best_drafter<S>(found: &Description<S>, drafter: &Path, weights: &Path) -> Result<()> {
    match found.best {
        Some(best) if !weights.is_file() => {
            let reason = format!(
                "expected the run's best drafter, from step {}, found none; put it back, or begin in another folder",
                best.step
            );
            Err(TuneError::File { path: drafter.into(), reason })
        }
        _ => Ok(()),
    }
}

/// Returns the folder of the best drafter of the run in the folder `out`.
pub(super) fn drafter_dir(out: &Path) -> PathBuf {
    out.join("drafter")
}

fn checkpoint_path(out: &Path) -> PathBuf {
    out.join("checkpoint.safetensors")
}

impl<'a, S: TrainingSettings> Run<'a, S> {
    /// Begins the run that `description` describes, or continues it from the checkpoint `found`. `optimizer` has the
    /// initial weights.
    ///
    /// # Errors
    /// [`TuneError::File`] for a checkpoint without a tensor of the run; candle's errors: out of memory.
    pub fn begin(
        out: &'a Path,
        description: Description<S>,
        mut optimizer: AdamW,
        found: Option<Found<S>>,
    ) -> Result<Self> {
        let Some((tensors, found)) = found else {
            return Ok(Self { description, optimizer, out, saved: 0 });
        };
        if let Some(tensor) = optimizer.restore(tensors, found.step)? {
            let reason = format!("tensor `{tensor}` is missing or has another shape than the run's");
            return Err(TuneError::File { path: checkpoint_path(out), reason });
        }
        let scheduled = match found.schedule_steps {
            0 => found.settings.training().steps,
            steps => steps,
        };
        let settings = description.settings;
        let schedule_steps = schedule_steps(found.step, scheduled, settings.training().steps);
        let saved = found.step;
        Ok(Self { description: Description { settings, schedule_steps, ..found }, optimizer, out, saved })
    }

    /// Trains to the last step, and evaluates and saves where the settings say so. Rank 0 alone writes files and
    /// reports to `observer`.
    ///
    /// # Errors
    /// [`TuneError::NotFinite`]; [`TuneError::WeightsNotFinite`]; [`TuneError::TooLittleData`] if an evaluation walks no
    /// step; errors of `trainee`, `observer` and files.
    pub fn train(
        &mut self,
        trainee: &mut impl Trainee,
        usable: &[usize],
        ranks: &dyn Ranks,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let training = self.description.settings.training();
        let begun = Instant::now();
        while self.description.step < training.steps {
            let metrics = self.step(trainee, usable, begun)?;
            let (step, last) = (metrics.step, metrics.step == training.steps);
            let saves = step % training.checkpoint_every == 0 || last;
            if ranks.rank() == 0 {
                observer.step(&metrics)?;
                if step % training.evaluate_every == 0 || last {
                    let walk = self.evaluate(trainee)?;
                    observer.evaluated(step, metrics.anchors, &walk)?;
                }
                if saves {
                    self.save(trainee)?;
                }
            }
            if saves {
                // No rank passes the next step's sums before rank 0 has saved its checkpoint.
                self.saved = step;
            }
        }
        Ok(())
    }

    /// Returns the result of the complete run, whose best drafter is in the folder `drafter`.
    ///
    /// # Errors
    /// [`TuneError::TooLittleData`] for a run without an evaluation, which took fewer steps than its checkpoint had.
    pub fn outcome(&self, drafter: Option<PathBuf>) -> Result<Outcome> {
        let Evaluated { step, tau } = self.description.best.ok_or_else(|| self.nothing_walked())?;
        Ok(Outcome { tau, step, drafter })
    }

    fn step(&mut self, trainee: &mut impl Trainee, usable: &[usize], begun: Instant) -> Result<StepMetrics> {
        let start = Instant::now();
        let step = self.description.step;
        let StepGradients { loss, slot_1_accuracy, gradients, anchors, mask_rows } =
            trainee.gradients(&self.optimizer, usable, step)?;
        let not_finite = |loss| TuneError::NotFinite { step: step + 1, loss, checkpoint: self.saved };
        if !loss.is_finite() {
            return Err(not_finite(loss));
        }
        let schedule = self.description.settings.training().schedule(self.description.schedule_steps);
        let learning_rate = schedule.rate(step);
        let gradient_norm = self.optimizer.step(gradients, learning_rate)?;
        if !gradient_norm.is_finite() {
            return Err(not_finite(gradient_norm));
        }
        trainee.stepped(&self.optimizer)?;
        self.description.step += 1;
        self.description.anchors += anchors;
        Ok(StepMetrics {
            step: self.description.step,
            anchors: self.description.anchors,
            loss,
            slot_1_accuracy,
            gradient_norm,
            learning_rate,
            seconds: begun.elapsed().as_secs_f64(),
            rows_per_second: mask_rows / start.elapsed().as_secs_f64(),
        })
    }

    fn evaluate(&mut self, trainee: &mut impl Trainee) -> Result<Walk> {
        let step = self.description.step;
        check_weights(&self.optimizer, step, self.saved)?;
        let mut best = self.description.best;
        let walk = trainee.evaluate(&self.optimizer, &mut |walk| {
            let tau = walk.tau().ok_or_else(|| self.nothing_walked())?;
            // Of two equal drafters the later one has seen more data.
            let is_best = best.is_none_or(|best| tau >= best.tau);
            if is_best {
                best = Some(Evaluated { step, tau });
            }
            Ok(is_best)
        })?;
        self.description.best = best;
        Ok(walk)
    }

    fn nothing_walked(&self) -> TuneError {
        TuneError::TooLittleData { path: self.out.into(), found: 0, unit: TO_WALK, needed: 1 }
    }

    fn save(&self, trainee: &impl Trainee) -> Result<()> {
        check_weights(&self.optimizer, self.description.step, self.saved)?;
        let mut tensors = self.optimizer.state();
        tensors.extend(trainee.further_tensors());
        checkpoint::save(&checkpoint_path(self.out), &tensors, &self.description)
    }
}
