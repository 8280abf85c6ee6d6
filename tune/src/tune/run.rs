//! A tuning run: training steps, evaluations, checkpoints.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Tensor};
use flexdraft::model::TargetWeights;
use flexdraft::model::weights::ChainKind;
use serde::Serialize;

use super::batch::{Batch, Pick, SlotLabels, labelled_rows, picks};
use super::chain_rows::ChainRows;
use super::checks::{Amounts, TO_WALK, check_weights, usable_transcripts};
use super::clean::Corpus;
use super::description::{Description, Evaluated, check_same_run, of_transcripts};
use super::ranks::{Place, Ranks, sum_numbers};
use super::settings::{DrafterChoice, Settings};
use super::walk::{Drafting, Walk, walk};
use crate::chain::{ChainHeads, ChainSlots, TRAINED_IDS, export_chain};
use crate::checkpoint;
use crate::drafter::{Drafter, DrafterShape, SlotFactors};
use crate::error::{Result, TuneError};
use crate::export::{OrthrusExport, export};
use crate::hash;
use crate::loss::cross_entropy;
use crate::optimizer::{AdamW, schedule_steps};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;
use crate::transcripts::Transcript;

/// Number of transcripts that the initial mask embedding is averaged over.
const ENTRY_TRANSCRIPTS: usize = 8;

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
/// [`TuneError::Setting`], also for a transcript with ids outside the target's vocabulary;
/// [`TuneError::TooLittleData`]; [`TuneError::OtherRun`] if the checkpoint belongs to other settings, transcripts or
/// another target; [`TuneError::NotFinite`] for a loss that is not a number; [`TuneError::WeightsNotFinite`]; errors of
/// files and tensors.
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
    let mut state = State::start(target, frozen, train, heldout, settings, ranks, out)?;
    state.agree()?;
    if ranks.rank() == 0 {
        checkpoint::write_json(&out.join("settings.json"), settings)?;
    }
    let begun = Instant::now();
    while state.description.step < settings.steps {
        let metrics = state.step(&usable, begun)?;
        let (step, last) = (metrics.step, metrics.step == settings.steps);
        let saves = step % settings.checkpoint_every == 0 || last;
        if ranks.rank() == 0 {
            observer.step(&metrics)?;
            if step % settings.evaluate_every == 0 || last {
                let walk = state.evaluate()?;
                observer.evaluated(step, metrics.anchors, &walk)?;
            }
            if saves {
                state.save()?;
            }
        }
        if saves {
            // No rank passes the next step's sums before rank 0 has saved its checkpoint.
            state.saved = step;
        }
    }
    // No rank exits before rank 0 has saved its checkpoint: rank 0 could not tell a finished rank from a lost one.
    sum_numbers(ranks, [0.0], device)?;
    if ranks.rank() != 0 {
        return Ok(None);
    }
    let best = state.description.best.unwrap_or(Evaluated { step: 0, tau: 1.0 });
    let drafter = (!settings.whole_tail).then(|| drafter_dir(out));
    Ok(Some(Outcome { tau: best.tau, step: best.step, drafter }))
}

struct State<'a> {
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
    optimizer: AdamW,
    /// The running mean of the weights, by name; empty if no mean is kept.
    mean: HashMap<String, Tensor>,
    description: Description,
    /// The step of the checkpoint on disk.
    saved: usize,
    /// The directory that gets the best drafter, if the drafter is stored with its target.
    orthrus: Option<OrthrusExport>,
}

impl<'a> State<'a> {
    fn start(
        tuned: TunedTarget<'a>,
        target: FrozenTarget,
        train: Vec<Transcript>,
        heldout: Vec<Transcript>,
        settings: &'a Settings,
        ranks: &'a dyn Ranks,
        out: &'a Path,
    ) -> Result<Self> {
        let weights = tuned.weights;
        let shape = settings.shape(&weights.config);
        let mask_token = settings.mask_token(&weights.config);
        let path = out.join("checkpoint.safetensors");
        let found = match path.exists() {
            true => Some(checkpoint::load::<Description>(&path)?),
            false => None,
        };
        let of_target = hash::of_target(weights).hex();
        let data = of_transcripts(&train, &heldout);
        if let Some((_, description)) = &found {
            check_same_run(&path, description, settings, &of_target, &data)?;
        }
        let exported = drafter_dir(out);
        let orthrus = if settings.kind == DrafterChoice::Orthrus && !settings.whole_tail && ranks.rank() == 0
        {
            let source = tuned.directory;
            Some(OrthrusExport::begin(&exported, source, &weights.config, shape.block_size, mask_token)?)
        } else {
            None
        };
        if let Some((_, description)) = &found {
            let weights_file = match &orthrus {
                Some(export) => export.drafter_path(),
                None => exported.join("model.safetensors"),
            };
            if let Some(best) = description.best
                && !settings.whole_tail
                && ranks.rank() == 0
                && !weights_file.is_file()
            {
                let reason = format!(
                    "expected the run's best drafter, from step {}, found none; put it back, or begin in another folder",
                    best.step
                );
                return Err(TuneError::File { path: exported, reason });
            }
        }
        let shortlist = match &found {
            Some((_, description)) if !description.shortlist.is_empty() => {
                Shortlist::of(description.shortlist.clone())
            }
            Some(_) => Shortlist::All(weights.config.vocab_size),
            None => {
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
        let chained = chain.as_ref().map_or(&[][..], ChainHeads::parameters);
        let mut optimizer = AdamW::new([drafter.parameters(), chained].concat(), settings.adam)?;
        let mut mean = HashMap::new();
        let description = match found {
            Some((mut tensors, description)) => {
                if settings.ema > 0.0 {
                    mean = take_mean(&mut tensors);
                }
                if let Some(tensor) = optimizer.restore(tensors, description.step)? {
                    let reason = format!("tensor `{tensor}` is missing or has another shape than the run's");
                    return Err(TuneError::File { path, reason });
                }
                let scheduled = match description.schedule_steps {
                    0 => description.settings.steps,
                    steps => steps,
                };
                let schedule_steps = schedule_steps(description.step, scheduled, settings.steps);
                Description { schedule_steps, ..description }
            }
            None => Description {
                target: of_target,
                settings: settings.clone(),
                data,
                step: 0,
                schedule_steps: settings.steps,
                anchors: 0,
                shortlist: match &shortlist {
                    Shortlist::All(_) => Vec::new(),
                    Shortlist::Some { ids, .. } => ids.clone(),
                },
                best: None,
            },
        };
        let saved = description.step;
        Ok(Self {
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
            optimizer,
            mean,
            description,
            saved,
            orthrus,
        })
    }

    /// Copies the weights and moments of rank 0 to every rank.
    fn agree(&mut self) -> Result<()> {
        if self.ranks.count() == 1 {
            return Ok(());
        }
        let mut state: Vec<_> = self.optimizer.state().into_iter().collect();
        state.sort_by(|(a, _), (b, _)| a.cmp(b));
        let own = |tensor: Tensor| if self.ranks.rank() == 0 { Ok(tensor) } else { tensor.zeros_like() };
        let agreed = state.into_iter().map(|(name, tensor)| Ok((name, self.ranks.sum(&own(tensor)?)?)));
        let agreed = agreed.collect::<candle_core::Result<HashMap<_, _>>>()?;
        self.optimizer.restore(agreed, self.description.step)?;
        Ok(())
    }

    fn step(&mut self, usable: &[usize], begun: Instant) -> Result<StepMetrics> {
        let start = Instant::now();
        let Settings { sequences, anchors, block_size, gamma, seed, .. } = *self.settings;
        let step = self.description.step;
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
        let [loss_value, right, first_slots, row_count] = sum_numbers(self.ranks, numbers, loss.device())?;
        let not_finite = |loss| TuneError::NotFinite { step: step + 1, loss, checkpoint: self.saved };
        if !loss_value.is_finite() {
            return Err(not_finite(loss_value));
        }
        let gradients = self.optimizer.gradients(&loss.backward()?).into_iter();
        let summed = gradients.map(|gradient| gradient.map(|gradient| self.ranks.sum(&gradient)).transpose());
        let gradients = summed.collect::<candle_core::Result<Vec<_>>>()?;
        let learning_rate = self.settings.schedule(self.description.schedule_steps).rate(step);
        let gradient_norm = self.optimizer.step(gradients, learning_rate)?;
        if !gradient_norm.is_finite() {
            return Err(not_finite(gradient_norm));
        }
        self.average()?;
        self.description.step += 1;
        self.description.anchors += anchors;
        Ok(StepMetrics {
            step: self.description.step,
            anchors: self.description.anchors,
            loss: loss_value,
            slot_1_accuracy: right / first_slots.max(1.0),
            gradient_norm,
            learning_rate,
            seconds: begun.elapsed().as_secs_f64(),
            rows_per_second: row_count / start.elapsed().as_secs_f64(),
        })
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

    /// Updates the running mean of the weights after a step.
    fn average(&mut self) -> Result<()> {
        let decay = self.settings.ema;
        if decay == 0.0 {
            return Ok(());
        }
        for parameter in self.optimizer.parameters() {
            let value = parameter.var.as_detached_tensor();
            let mean = match self.mean.get(&parameter.name) {
                Some(mean) => (mean.affine(decay, 0.0)? + value.affine(1.0 - decay, 0.0)?)?,
                None => value.copy()?,
            };
            self.mean.insert(parameter.name.clone(), mean);
        }
        Ok(())
    }

    /// Walks the held-out transcripts, and exports the drafter if its acceptance length is the best so far.
    fn evaluate(&mut self) -> Result<Walk> {
        check_weights(&self.optimizer, self.description.step, self.saved)?;
        let own = self.parameters()?;
        if !self.mean.is_empty() {
            self.load(&self.mean)?;
        }
        let confidence = self.settings.confidence();
        let (count, shortlist) = (self.settings.evaluate_on, &self.shortlist);
        let drafting =
            Drafting { target: &self.target, drafter: &self.drafter, chain: self.chain.as_ref(), shortlist };
        let walk = walk(drafting, &mut self.heldout, count, &confidence)?;
        let Some(tau) = walk.tau() else {
            return Err(TuneError::TooLittleData {
                path: self.out.into(),
                found: 0,
                unit: TO_WALK,
                needed: 1,
            });
        };
        // Of two equal drafters the later one has seen more data.
        if self.description.best.is_none_or(|best| tau >= best.tau) {
            self.description.best = Some(Evaluated { step: self.description.step, tau });
            if !self.settings.whole_tail {
                let (config, parameters) = (&self.weights.config, self.parameters()?);
                let dir = drafter_dir(self.out);
                match &self.orthrus {
                    Some(orthrus) => orthrus.write(config, &parameters)?,
                    None => export(&dir, config, self.shape, shortlist, &parameters)?,
                }
                if let Some(chain) = &self.chain {
                    export_chain(&dir, &dir, chain)?;
                }
            }
        }
        if !self.mean.is_empty() {
            self.load(&own)?;
        }
        Ok(walk)
    }

    /// Loads the weights of the drafter and of its chain.
    fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.drafter.load(tensors)?;
        Ok(self.chain.as_ref().map_or(Ok(()), |chain| chain.load(tensors))?)
    }

    /// Returns copies of the weights of the drafter and of its chain, by name.
    fn parameters(&self) -> Result<HashMap<String, Tensor>> {
        let parameters = self.optimizer.parameters().iter();
        parameters.map(|p| Ok((p.name.clone(), p.var.as_detached_tensor().copy()?))).collect()
    }

    fn save(&self) -> Result<()> {
        check_weights(&self.optimizer, self.description.step, self.saved)?;
        let mut tensors = self.optimizer.state();
        tensors.extend(self.mean.iter().map(|(name, mean)| (format!("{MEAN}{name}"), mean.clone())));
        checkpoint::save(&self.out.join("checkpoint.safetensors"), &tensors, &self.description)
    }
}

/// Returns the directory of the best drafter of the run in `out`.
fn drafter_dir(out: &Path) -> PathBuf {
    out.join("drafter")
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
