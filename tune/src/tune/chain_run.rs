//! A run that trains the chain of a frozen drafter.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use flexdraft::model::{DrafterKind, DrafterWeights, TargetWeights};

use super::batch::{Pick, SlotLabels, choose_anchors, in_order};
use super::chain_rows::ChainRows;
use super::chain_settings::{ChainSettings, Kind};
use super::checks::{Amounts, usable_transcripts};
use super::description::{Description, of_transcripts};
use super::kept_slots::{FrozenDrafter, KeptSlots};
use super::ranks::Alone;
use super::run_loop::{
    Observer, Outcome, Run, StepGradients, Trainee, check_best_drafter, drafter_dir, find_checkpoint,
};
use super::training::TrainingSettings;
use super::walk::{Walk, drafted_positions};
use crate::chain::{ChainHeads, export_chain};
use crate::checkpoint;
use crate::drafter::Drafter;
use crate::error::{Result, TuneError};
use crate::hash;
use crate::optimizer::AdamW;
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;

/// The share of the memory for kept slots that the held-out transcripts may take.
const HELDOUT_SHARE: f64 = 0.25;

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
    let (mut run, mut trained) = TrainedChain::begin(source, frozen, [train, heldout], settings, out)?;
    checkpoint::write_json(&out.join("settings.json"), settings)?;
    run.train(&mut trained, &usable, &Alone, observer)?;
    run.outcome((!settings.bonus_only).then(|| drafter_dir(out)))
}

/// A chain that a run trains, and what it learns from.
struct TrainedChain<'a> {
    settings: &'a ChainSettings,
    source: FrozenSource<'a>,
    out: &'a Path,
    frozen: FrozenDrafter<'a>,
    train: KeptSlots,
    heldout: KeptSlots,
    heads: ChainHeads,
}

impl<'a> TrainedChain<'a> {
    /// Begins the run, or continues it from its checkpoint.
    fn begin(
        source: FrozenSource<'a>,
        frozen: FrozenDrafter<'a>,
        [train, heldout]: [Vec<Transcript>; 2],
        settings: &'a ChainSettings,
        out: &'a Path,
    ) -> Result<(Run<'a, ChainSettings>, Self)> {
        let tensors = source.dir.join("model.safetensors");
        let bytes = fs::read(&tensors).map_err(TuneError::io("read", &tensors))?;
        let data = of_transcripts(&train, &heldout);
        let description = Description {
            drafter: hash::Fnv::default().with(&bytes).hex(),
            ..Description::new(hash::of_target(source.target).hex(), settings, data)
        };
        let found = find_checkpoint(out, &description)?;
        if let Some((_, description)) = found.as_ref().filter(|_| !settings.bonus_only) {
            let exported = drafter_dir(out);
            check_best_drafter(description, &exported, &exported.join("model.safetensors"))?;
        }
        let heads = ChainHeads::new(frozen.target, settings.shape(), settings.seed)?;
        let optimizer = AdamW::new(heads.parameters().to_vec(), settings.adam)?;
        let run = Run::begin(out, description, optimizer, found)?;
        let anchors = |(index, transcript): (usize, &Transcript)| {
            choose_anchors(transcript, index, 0, settings.anchors, settings.seed)
        };
        let anchors = train.iter().enumerate().map(anchors).collect();
        let positions = heldout.iter().map(|transcript| drafted_positions(transcript).collect()).collect();
        let trained = Self {
            settings,
            source,
            out,
            train: KeptSlots::new(train, anchors, settings.kept_gib * (1.0 - HELDOUT_SHARE), &frozen),
            heldout: KeptSlots::new(heldout, positions, settings.kept_gib * HELDOUT_SHARE, &frozen),
            frozen,
            heads,
        };
        Ok((run, trained))
    }
}

impl Trainee for TrainedChain<'_> {
    fn gradients(&mut self, optimizer: &AdamW, usable: &[usize], step: usize) -> Result<StepGradients> {
        let block_size = self.frozen.drafter.block_size();
        let shortlist = Shortlist::All(self.frozen.target.config().vocab_size);
        let (mut rows, mut anchors) = (ChainRows::default(), 0);
        for (transcript, _) in in_order(usable, step, self.settings.sequences, self.settings.seed) {
            let pick = Pick { transcript, anchors: self.train.anchors(transcript).to_vec() };
            anchors += pick.anchors.len();
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
                let gradients = optimizer.gradients(&loss.backward()?);
                let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                (loss, gradients, rows.slot_1_accuracy(&predictions))
            }
            // No label is among the most likely ids of its slot.
            None => (0.0, vec![None; self.heads.parameters().len()], 0.0),
        };
        let mask_rows = (anchors * block_size) as f64;
        Ok(StepGradients { loss, slot_1_accuracy, gradients, anchors, mask_rows })
    }

    fn evaluate(&mut self, _: &AdamW, is_best: &mut dyn FnMut(&Walk) -> Result<bool>) -> Result<Walk> {
        let training = self.settings.training();
        let (mut walk, confidence) = (Walk::default(), training.confidence());
        let count = training.evaluate_on.min(self.heldout.transcripts().len());
        for transcript in 0..count {
            if self.heldout.anchors(transcript).is_empty() {
                continue;
            }
            let slots = self.heldout.slots(&self.frozen, transcript)?;
            let predictions = self.heads.draft_after(self.frozen.target, &slots, self.settings.bonus_only)?;
            let walked = &self.heldout.transcripts()[transcript];
            walk.take_transcript(walked, &predictions, slots.slots, &confidence);
        }
        if is_best(&walk)? && !self.settings.bonus_only {
            export_chain(self.source.dir, &drafter_dir(self.out), &self.heads)?;
        }
        Ok(walk)
    }
}
