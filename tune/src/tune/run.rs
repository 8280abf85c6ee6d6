//! A tuning run: training steps, evaluations, checkpoints.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use flexdraft::model::TargetWeights;
use flexdraft::model::weights::ChainKind;

use super::batch::{Batch, Pick, SlotLabels, labelled_rows, picks};
use super::chain_rows::ChainRows;
use super::checks::{Amounts, usable_transcripts};
use super::clean::Corpus;
use super::description::{Description, of_transcripts};
use super::ranks::{Place, Ranks, sum_numbers};
use super::run_loop::{
    Observer, Outcome, Run, StepGradients, Trainee, check_best_drafter, drafter_dir, find_checkpoint,
};
use super::settings::{DrafterChoice, Settings};
use super::start::Start;
use super::training::TrainingSettings;
use super::walk::{Drafting, Walk, walk};
use crate::chain::{ChainHeads, ChainSlots, TRAINED_IDS, export_chain};
use crate::checkpoint;
use crate::drafter::{Drafter, DrafterShape, SlotFactors};
use crate::error::{Result, TuneError};
use crate::export::{OrthrusExport, export};
use crate::hash;
use crate::loss::cross_entropy;
use crate::optimizer::AdamW;
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;

/// Number of transcripts that the initial mask embedding is averaged over.
const ENTRY_TRANSCRIPTS: usize = 8;

/// The target of a tuning run.
#[derive(Clone, Copy, Debug)]
pub struct TunedTarget<'a> {
    /// The target's weights.
    pub weights: &'a TargetWeights,
    /// The directory that the weights were read from. An Orthrus drafter is stored with a copy of the directory's files; a
    /// FlexDraft drafter does not need them.
    pub directory: &'a Path,
}

/// Tunes a drafter for `target` on `train`, and keeps the drafter with the best τ on `heldout` in `out/drafter`. If
/// `out` holds a checkpoint, the run resumes from it. If several ranks tune together, `sequences` is divided among
/// them; all ranks but rank 0 only train, and their result is `None`. The settings are written to `out` as
/// settings.json.
///
/// # Errors
/// [`TuneError::Setting`], also for a transcript with ids outside the target's vocabulary, and for a setting that differs
/// from the drafter that the run starts from; [`TuneError::TooLittleData`]; [`TuneError::OtherRun`] if the checkpoint
/// belongs to other settings, transcripts or another target; [`TuneError::NotFinite`] for a loss that is not a number;
/// [`TuneError::WeightsNotFinite`]; errors of files and tensors.
pub fn run(
    target: TunedTarget<'_>,
    train: Vec<Transcript>,
    heldout: Vec<Transcript>,
    settings: &Settings,
    out: &Path,
    place: Place<'_>,
    observer: &mut dyn Observer,
) -> Result<Option<Outcome>> {
    let weights = target.weights;
    settings.validate(&weights.config)?;
    let Place { device, ranks } = place;
    if ranks.count() == 0 || !settings.sequences.is_multiple_of(ranks.count()) {
        let expected = format!("a multiple of the number of ranks, {}", ranks.count());
        return Err(TuneError::setting("sequences", settings.sequences, expected));
    }
    fs::create_dir_all(out).map_err(TuneError::io("create", out))?;
    let amounts = Amounts { sequences: settings.sequences, evaluate_on: settings.evaluate_on };
    let usable = usable_transcripts(&train, &heldout, &weights.config, amounts, out)?;
    let frozen = FrozenTarget::new(weights, settings.compute.into(), device)?;
    let (mut run, mut tuned) = Tuned::begin(target, frozen, [train, heldout], settings, ranks, out)?;
    agree(&mut run, ranks)?;
    if ranks.rank() == 0 {
        checkpoint::write_json(&out.join("settings.json"), settings)?;
    }
    run.train(&mut tuned, &usable, ranks, observer)?;
    // No rank exits before rank 0 has saved its checkpoint: rank 0 could not tell a finished rank from a lost one.
    sum_numbers(ranks, [0.0], device)?;
    if ranks.rank() != 0 {
        return Ok(None);
    }
    run.outcome((!settings.whole_tail).then(|| drafter_dir(out))).map(Some)
}

/// Copies the weights and moments of rank 0 to every rank.
fn agree(run: &mut Run<'_, Settings>, ranks: &dyn Ranks) -> Result<()> {
    if ranks.count() == 1 {
        return Ok(());
    }
    let mut state: Vec<_> = run.optimizer.state().into_iter().collect();
    state.sort_by(|(a, _), (b, _)| a.cmp(b));
    let own = |tensor: Tensor| if ranks.rank() == 0 { Ok(tensor) } else { tensor.zeros_like() };
    let agreed = state.into_iter().map(|(name, tensor)| Ok((name, ranks.sum(&own(tensor)?)?)));
    let agreed = agreed.collect::<candle_core::Result<HashMap<_, _>>>()?;
    run.optimizer.restore(agreed, run.description.step)?;
    Ok(())
}

/// A drafter that a run tunes, and what it learns from.
struct Tuned<'a> {
    settings: &'a Settings,
    ranks: &'a dyn Ranks,
    out: &'a Path,
    weights: &'a TargetWeights,
    shape: DrafterShape,
    target: FrozenTarget,
    train: Corpus,
    heldout: Corpus,
    shortlist: Shortlist,
    drafter: Drafter,
    chain: Option<ChainHeads>,
    /// The running mean of the weights, by name; empty if no mean is kept.
    mean: HashMap<String, Tensor>,
    /// The directory that gets the best drafter, if the drafter is stored with its target.
    orthrus: Option<OrthrusExport>,
}

impl<'a> Tuned<'a> {
    /// Begins the run, or continues it from its checkpoint.
    fn begin(
        tuned: TunedTarget<'a>,
        target: FrozenTarget,
        [train, heldout]: [Vec<Transcript>; 2],
        settings: &'a Settings,
        ranks: &'a dyn Ranks,
        out: &'a Path,
    ) -> Result<(Run<'a, Settings>, Self)> {
        let weights = tuned.weights;
        let shape = settings.shape(&weights.config);
        let mask_token = settings.mask_token(&weights.config);
        let data = of_transcripts(&train, &heldout);
        let mut description = Description::new(hash::of_target(weights).hex(), settings, data);
        let mut found = find_checkpoint(out, &description)?;
        let exported = drafter_dir(out);
        let exports = !settings.whole_tail && ranks.rank() == 0;
        let orthrus = if settings.kind == DrafterChoice::Orthrus && exports {
            let source = tuned.directory;
            Some(OrthrusExport::begin(&exported, source, &weights.config, shape.block_size, mask_token)?)
        } else {
            None
        };
        if let Some((_, description)) = found.as_ref().filter(|_| exports) {
            let file = match &orthrus {
                Some(export) => export.drafter_path(),
                None => exported.join("model.safetensors"),
            };
            check_best_drafter(description, &exported, &file)?;
        }
        let start = match &found {
            Some(_) => None,
            None => Start::read(settings, &weights.config)?,
        };
        let shortlist = match (&found, &start) {
            (Some((_, description)), _) if !description.shortlist.is_empty() => {
                Shortlist::of(description.shortlist.clone())
            }
            (Some(_), _) => Shortlist::All(weights.config.vocab_size),
            (None, Some(start)) => start.shortlist().clone(),
            (None, None) => {
                let tokens = train.iter().flat_map(|transcript| transcript.response.iter().copied());
                Shortlist::most_frequent(settings.shortlist, weights.config.vocab_size, tokens)
            }
        };
        let mut train = Corpus::new(train, shape.tail_layers, settings.kept_gib, &target);
        let heldout = Corpus::new(heldout, shape.tail_layers, settings.kept_gib / 8.0, &target);
        let entry = match settings.kind {
            DrafterChoice::FlexDraft => train.entry_mean(&target, ENTRY_TRANSCRIPTS)?,
            DrafterChoice::Orthrus => target.embed(&[mask_token])?.squeeze(0)?,
        };
        let mut drafter = Drafter::new(weights, &target, shape, &shortlist, &entry, settings.seed)?;
        drafter.set_calibrator_rate(settings.calibrator_rate);
        let chain = settings.chain.map(|chain| ChainHeads::new(&target, chain.shape(), settings.seed));
        let chain = chain.transpose()?;
        if let Some(start) = start {
            start.load(&target, &drafter, chain.as_ref())?;
        }
        let chained = chain.as_ref().map_or(&[][..], ChainHeads::parameters);
        let optimizer = AdamW::new([drafter.parameters(), chained].concat(), settings.adam)?;
        let mut mean = HashMap::new();
        if let Some((tensors, _)) = found.as_mut().filter(|_| settings.ema > 0.0) {
            mean = take_mean(tensors);
        }
        if let Shortlist::Some { ids, .. } = &shortlist {
            description.shortlist.clone_from(ids);
        }
        let run = Run::begin(out, description, optimizer, found)?;
        let tuned = Self {
            settings,
            ranks,
            out,
            weights,
            shape,
            target,
            train,
            heldout,
            shortlist,
            drafter,
            chain,
            mean,
            orthrus,
        };
        Ok((run, tuned))
    }

    /// Returns the loss of the chain over the slots of a step, if there is a chain and a slot that it can learn from. Its
    /// gradient flows to the chain alone: the drafter learns the same as without a chain.
    fn chain_loss(
        &self,
        factors: &SlotFactors,
        bonuses: &[u32],
        labels: &SlotLabels,
    ) -> Result<Option<Tensor>> {
        let Some(chain) = &self.chain else { return Ok(None) };
        let keeps_hidden = chain.config().kind == ChainKind::Hidden;
        let (drafter, shortlist) = (&self.drafter, &self.shortlist);
        let slots = ChainSlots::new(drafter, factors, bonuses, shortlist, TRAINED_IDS, keeps_hidden)?;
        let mut rows = ChainRows::default();
        rows.add(labels, shortlist, &slots.likeliest, slots.hidden.as_ref())?;
        Ok(rows.loss(chain, &self.target)?.map(|(loss, _)| loss))
    }

    /// Loads the weights of the drafter and of its chain.
    fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.drafter.load(tensors)?;
        Ok(self.chain.as_ref().map_or(Ok(()), |chain| chain.load(tensors))?)
    }

    /// Exports the drafter with its present weights.
    fn export(&self, optimizer: &AdamW) -> Result<()> {
        let (dir, config, parameters) = (drafter_dir(self.out), &self.weights.config, copies(optimizer)?);
        match &self.orthrus {
            Some(orthrus) => orthrus.write(config, &parameters)?,
            None => export(&dir, config, self.shape, &self.shortlist, &parameters)?,
        }
        match &self.chain {
            Some(chain) => export_chain(&dir, &dir, chain),
            None => Ok(()),
        }
    }
}

impl Trainee for Tuned<'_> {
    fn gradients(&mut self, optimizer: &AdamW, usable: &[usize], step: usize) -> Result<StepGradients> {
        let Settings { sequences, anchors, block_size, gamma, seed, .. } = *self.settings;
        let mut picks = picks(self.train.transcripts(), usable, step, [sequences, anchors], seed)?;
        let anchors_of = |picks: &[Pick]| picks.iter().map(|pick| pick.anchors.len()).sum::<usize>();
        let anchors = anchors_of(&picks);
        // Every rank draws the transcripts and anchors of all ranks, so that the loss is the mean over all of
        // them.
        let mut labels =
            SlotLabels::new(&picks, self.train.transcripts(), block_size, gamma, &self.shortlist)?;
        labels.divide(labels.weight());
        let share = sequences / self.ranks.count();
        let rest = picks.split_off((self.ranks.rank() * share).min(picks.len()));
        let first = anchors_of(&picks) * (block_size - 1);
        let picks: Vec<Pick> = rest.into_iter().take(share).collect();
        let slot_labels = labels.rows(first, anchors_of(&picks) * (block_size - 1));
        let batch = Batch::new(&mut self.train, &self.target, picks)?;
        let rows = batch.rows(block_size);
        let factors = self.drafter.forward(&self.target, &rows)?;
        let (head, calibration) = self.drafter.factors(&factors);
        let SlotLabels { labels, slots, .. } = &slot_labels;
        let (loss, predictions) = cross_entropy(Some(head), calibration, labels)?;
        let loss = match self.chain_loss(&factors, &rows.bonuses, &slot_labels)? {
            Some(chain_loss) => (loss + chain_loss)?,
            None => loss,
        };
        let first_slots: Vec<usize> = labelled_rows(labels).filter(|&row| slots[row] == 1).collect();
        let right = first_slots.iter().filter(|&&row| predictions[row].token == labels.ids[row]).count();
        let own_loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let numbers = [own_loss, right as f64, first_slots.len() as f64, rows.positions.len() as f64];
        let [summed_loss, right, first_slots, mask_rows] = sum_numbers(self.ranks, numbers, loss.device())?;
        let gradients = optimizer.gradients(&loss.backward()?).into_iter();
        let summed = gradients.map(|gradient| gradient.map(|gradient| self.ranks.sum(&gradient)).transpose());
        Ok(StepGradients {
            loss: summed_loss,
            slot_1_accuracy: right / first_slots.max(1.0),
            gradients: summed.collect::<candle_core::Result<_>>()?,
            anchors,
            mask_rows,
        })
    }

    /// Updates the running mean of the weights.
    fn stepped(&mut self, optimizer: &AdamW) -> Result<()> {
        let decay = self.settings.ema;
        if decay == 0.0 {
            return Ok(());
        }
        for parameter in optimizer.parameters() {
            let value = parameter.var.as_detached_tensor();
            let mean = match self.mean.get(&parameter.name) {
                Some(mean) => (mean.affine(decay, 0.0)? + value.affine(1.0 - decay, 0.0)?)?,
                None => value.copy()?,
            };
            self.mean.insert(parameter.name.clone(), mean);
        }
        Ok(())
    }

    fn evaluate(
        &mut self,
        optimizer: &AdamW,
        is_best: &mut dyn FnMut(&Walk) -> Result<bool>,
    ) -> Result<Walk> {
        let own = copies(optimizer)?;
        if !self.mean.is_empty() {
            self.load(&self.mean)?;
        }
        let (training, shortlist) = (self.settings.training(), &self.shortlist);
        let drafting =
            Drafting { target: &self.target, drafter: &self.drafter, chain: self.chain.as_ref(), shortlist };
        let walk = walk(drafting, &mut self.heldout, training.evaluate_on, &training.confidence())?;
        if is_best(&walk)? && !self.settings.whole_tail {
            self.export(optimizer)?;
        }
        if !self.mean.is_empty() {
            self.load(&own)?;
        }
        Ok(walk)
    }

    fn further_tensors(&self) -> HashMap<String, Tensor> {
        self.mean.iter().map(|(name, mean)| (format!("{MEAN}{name}"), mean.clone())).collect()
    }
}

/// Returns copies of the trained weights, by name.
fn copies(optimizer: &AdamW) -> Result<HashMap<String, Tensor>> {
    let parameters = optimizer.parameters().iter();
    parameters.map(|p| Ok((p.name.clone(), p.var.as_detached_tensor().copy()?))).collect()
}

/// Prefix of the names of averaged weights in a checkpoint.
const MEAN: &str = "mean of ";

fn take_mean(tensors: &mut HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let names: Vec<String> = tensors.keys().filter(|name| name.starts_with(MEAN)).cloned().collect();
    names
        .into_iter()
        .filter_map(|name| Some((name[MEAN.len()..].to_owned(), tensors.remove(&name)?)))
        .collect()
}
