//! A run that trains the chain of a frozen drafter: training steps, evaluations, checkpoints.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use flexdraft::model::{DrafterKind, DrafterWeights, TargetWeights};
use serde::{Deserialize, Serialize};

use super::batch::{Pick, SlotLabels, choose_anchors, in_order};
use super::chain_rows::ChainRows;
use super::chain_settings::{ChainSettings, Kind};
use super::checks::{Amounts, TO_WALK, check_weights, usable_transcripts};
use super::description::{Evaluated, of_transcripts};
use super::kept_slots::{FrozenDrafter, KeptSlots};
use super::run::{Observer, Outcome, StepMetrics};
use super::walk::{Walk, drafted_positions};
use crate::chain::{ChainHeads, export_chain};
use crate::checkpoint;
use crate::drafter::Drafter;
use crate::error::{Result, TuneError, settings_difference};
use crate::hash;
use crate::optimizer::{AdamW, schedule_steps};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;

/// The share of the memory for kept slots that the held-out transcripts may take.
const HELDOUT_SHARE: f64 = 0.25;

/// The description of a run in its checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Description {
    target: String,
    /// Hash of the frozen drafter's checkpoint.
    drafter: String,
    settings: ChainSettings,
    /// Hash of the transcripts.
    data: String,
    step: usize,
    /// Number of steps over which the learning rate falls.
    schedule_steps: usize,
    anchors: usize,
    best: Option<Evaluated>,
}

/// A drafter that is frozen while its chain is trained.
#[derive(Clone, Copy, Debug)]
pub struct FrozenSource<'a> {
    /// The weights of the drafter's target.
    pub target: &'a TargetWeights,
    /// The drafter's weights; a chain that it has is not used.
    pub drafter: &'a DrafterWeights,
    /// The drafter's directory.
    pub dir: &'a Path,
}

/// Trains a chain for the frozen drafter `source` on `train`, and keeps the drafter with the chain that has the best τ on
/// `heldout` in `out/drafter`. If `out` holds a checkpoint, the run resumes from it. The settings are written to `out` as
/// settings.json.
///
/// # Errors
/// [`TuneError::Setting`], also for a transcript with ids outside the target's vocabulary;
/// [`TuneError::TooLittleData`]; [`TuneError::OtherRun`] if the checkpoint belongs to other settings, transcripts, or
/// another target or drafter; [`TuneError::NotFinite`] for a loss that is not a number;
/// [`TuneError::WeightsNotFinite`]; errors of files and tensors.
pub fn run_chain(
    source: FrozenSource<'_>,
    train: Vec<Transcript>,
    heldout: Vec<Transcript>,
    settings: &ChainSettings,
    out: &Path,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    settings.validate()?;
    if source.drafter.config.kind != DrafterKind::FlexDraft {
        let expected = "FlexDraft: other drafters have no chain";
        return Err(TuneError::setting("the drafter's kind", source.drafter.config.kind.name(), expected));
    }
    fs::create_dir_all(out).map_err(TuneError::io("create", out))?;
    let amounts = Amounts { sequences: settings.sequences, evaluate_on: settings.evaluate_on };
    let usable = usable_transcripts(&train, &heldout, &source.target.config, amounts, out)?;
    let target = FrozenTarget::new(source.target, settings.compute.into(), device)?;
    let drafter = Drafter::from_weights(source.target, &target, source.drafter)?;
    let frozen =
        FrozenDrafter { target: &target, drafter: &drafter, keeps_hidden: settings.kind == Kind::Hidden };
    let mut state = State::start(source, frozen, train, heldout, settings, out)?;
    checkpoint::write_json(&out.join("settings.json"), settings)?;
    let begun = Instant::now();
    while state.description.step < settings.steps {
        let metrics = state.step(&usable, begun)?;
        let (step, last) = (metrics.step, metrics.step == settings.steps);
        observer.step(&metrics)?;
        if step % settings.evaluate_every == 0 || last {
            let walk = state.evaluate(source.dir)?;
            observer.evaluated(step, metrics.anchors, &walk)?;
        }
        if step % settings.checkpoint_every == 0 || last {
            state.save()?;
        }
    }
    let drafter = (!settings.bonus_only).then(|| state.drafter_dir());
    // The last step is evaluated.
    let best = state.description.best.ok_or(TuneError::TooLittleData {
        path: out.into(),
        found: 0,
        unit: TO_WALK,
        needed: 1,
    })?;
    Ok(Outcome { tau: best.tau, step: best.step, drafter })
}

struct State<'a> {
    settings: &'a ChainSettings,
    out: &'a Path,
    frozen: FrozenDrafter<'a>,
    train: KeptSlots,
    heldout: KeptSlots,
    heads: ChainHeads,
    optimizer: AdamW,
    description: Description,
    /// The step of the checkpoint on disk.
    saved: usize,
}

impl<'a> State<'a> {
    fn start(
        source: FrozenSource<'_>,
        frozen: FrozenDrafter<'a>,
        train: Vec<Transcript>,
        heldout: Vec<Transcript>,
        settings: &'a ChainSettings,
        out: &'a Path,
    ) -> Result<Self> {
        let path = out.join("checkpoint.safetensors");
        let tensors = source.dir.join("model.safetensors");
        let bytes = fs::read(&tensors).map_err(TuneError::io("read", &tensors))?;
        let mut description = Description {
            target: hash::of_target(source.target).hex(),
            drafter: hash::Fnv::default().with(&bytes).hex(),
            settings: settings.clone(),
            data: of_transcripts(&train, &heldout),
            step: 0,
            schedule_steps: settings.steps,
            anchors: 0,
            best: None,
        };
        let heads = ChainHeads::new(frozen.target, settings.shape(), settings.seed)?;
        let mut optimizer = AdamW::new(heads.parameters().to_vec(), settings.adam)?;
        if path.exists() {
            let (state, found) = checkpoint::load::<Description>(&path)?;
            check_same_run(&path, &found, &description)?;
            let exported = out.join("drafter");
            if let Some(best) = found.best
                && !settings.bonus_only
                && !exported.join("model.safetensors").is_file()
            {
                let reason = format!(
                    "expected the run's best drafter, from step {}, found none; put it back, or begin in another folder",
                    best.step
                );
                return Err(TuneError::File { path: exported, reason });
            }
            if let Some(tensor) = optimizer.restore(state, found.step)? {
                let reason = format!("tensor `{tensor}` is missing or has another shape than the run's");
                return Err(TuneError::File { path, reason });
            }
            let schedule_steps = schedule_steps(found.step, found.schedule_steps, settings.steps);
            description = Description { settings: settings.clone(), schedule_steps, ..found };
        }
        let anchors = |(index, transcript): (usize, &Transcript)| {
            choose_anchors(transcript, index, 0, settings.anchors, settings.seed)
        };
        let anchors = train.iter().enumerate().map(anchors).collect();
        let positions = heldout.iter().map(|transcript| drafted_positions(transcript).collect()).collect();
        let saved = description.step;
        Ok(Self {
            settings,
            out,
            train: KeptSlots::new(train, anchors, settings.kept_gib * (1.0 - HELDOUT_SHARE), &frozen),
            heldout: KeptSlots::new(heldout, positions, settings.kept_gib * HELDOUT_SHARE, &frozen),
            frozen,
            heads,
            optimizer,
            description,
            saved,
        })
    }

    fn step(&mut self, usable: &[usize], begun: Instant) -> Result<StepMetrics> {
        let start = Instant::now();
        let step = self.description.step;
        let block_size = self.frozen.drafter.block_size();
        let shortlist = Shortlist::All(self.frozen.target.config().vocab_size);
        let (mut rows, mut anchors, mut row_count) = (ChainRows::default(), 0, 0);
        for (transcript, _) in in_order(usable, step, self.settings.sequences, self.settings.seed) {
            let pick = Pick { transcript, anchors: self.train.anchors(transcript).to_vec() };
            anchors += pick.anchors.len();
            row_count += pick.anchors.len() * block_size;
            let slots = self.train.slots(&self.frozen, transcript)?;
            let (transcripts, gamma) = (self.train.transcripts(), self.settings.gamma);
            let mut labels =
                SlotLabels::new(std::slice::from_ref(&pick), transcripts, block_size, gamma, &shortlist)?;
            if self.settings.bonus_only {
                let bonus = |row: usize| slots.bonuses[row / slots.slots.max(1)];
                labels.before = (0..labels.before.len()).map(bonus).collect();
            }
            rows.add(&labels, &shortlist, &slots.likeliest, slots.hidden.as_ref())?;
        }
        rows.normalise();
        let (loss, gradients, slot_1_accuracy) = match rows.loss(&self.heads, self.frozen.target)? {
            Some((loss, predictions)) => {
                let gradients = self.optimizer.gradients(&loss.backward()?);
                let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                (loss, gradients, rows.slot_1_accuracy(&predictions))
            }
            // No label is among the likeliest ids of its slot.
            None => (0.0, vec![None; self.heads.parameters().len()], 0.0),
        };
        let not_finite = |loss| TuneError::NotFinite { step: step + 1, loss, checkpoint: self.saved };
        if !loss.is_finite() {
            return Err(not_finite(loss));
        }
        let learning_rate = self.settings.schedule(self.description.schedule_steps).rate(step);
        let gradient_norm = self.optimizer.step(gradients, learning_rate)?;
        if !gradient_norm.is_finite() {
            return Err(not_finite(gradient_norm));
        }
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
            rows_per_second: row_count as f64 / start.elapsed().as_secs_f64(),
        })
    }

    /// Walks the held-out transcripts, and exports the drafter if its acceptance length is the best so far.
    fn evaluate(&mut self, source: &Path) -> Result<Walk> {
        let step = self.description.step;
        check_weights(&self.optimizer, step, self.saved)?;
        let (mut walk, confidence) = (Walk::default(), self.settings.confidence());
        let count = self.settings.evaluate_on.min(self.heldout.transcripts().len());
        for transcript in 0..count {
            if self.heldout.anchors(transcript).is_empty() {
                continue;
            }
            let slots = self.heldout.slots(&self.frozen, transcript)?;
            let predictions = self.heads.draft_after(self.frozen.target, &slots, self.settings.bonus_only)?;
            let walked = &self.heldout.transcripts()[transcript];
            walk.take_transcript(walked, &predictions, slots.slots, &confidence);
        }
        let Some(tau) = walk.tau() else {
            let path = self.out.into();
            return Err(TuneError::TooLittleData { path, found: 0, unit: TO_WALK, needed: 1 });
        };
        // Of two equal drafters the later one has seen more data.
        if self.description.best.is_none_or(|best| tau >= best.tau) {
            self.description.best = Some(Evaluated { step, tau });
            if !self.settings.bonus_only {
                export_chain(source, &self.drafter_dir(), &self.heads)?;
            }
        }
        Ok(walk)
    }

    fn drafter_dir(&self) -> PathBuf {
        self.out.join("drafter")
    }

    fn save(&mut self) -> Result<()> {
        check_weights(&self.optimizer, self.description.step, self.saved)?;
        let path = self.out.join("checkpoint.safetensors");
        checkpoint::save(&path, &self.optimizer.state(), &self.description)?;
        self.saved = self.description.step;
        Ok(())
    }
}

/// Checks that a checkpoint belongs to the run that would resume from it.
///
/// # Errors
/// [`TuneError::OtherRun`] naming what differs.
fn check_same_run(path: &Path, found: &Description, now: &Description) -> Result<()> {
    let differs = |what, found: &str, expected: &str| {
        let (found, expected) = (found.to_owned(), expected.to_owned());
        Err(TuneError::OtherRun { path: path.into(), what, found, expected })
    };
    for (what, found, now) in [
        ("target", &found.target, &now.target),
        ("drafter", &found.drafter, &now.drafter),
        ("set of transcripts", &found.data, &now.data),
    ] {
        if found != now {
            return differs(what, found, now);
        }
    }
    // A run may resume with another number of steps and other reporting intervals.
    let comparable = |settings: &ChainSettings| ChainSettings {
        steps: 1,
        evaluate_every: 1,
        evaluate_on: 1,
        checkpoint_every: 1,
        kept_gib: 0.0,
        ..settings.clone()
    };
    match settings_difference(&comparable(&found.settings), &comparable(&now.settings)) {
        Some((found, now)) => differs("configuration", &found, &now),
        None => Ok(()),
    }
}
