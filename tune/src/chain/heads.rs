//! The trained weights of a chain, their scores, and the drafts that follow from them.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use flexdraft::model::weights::{ChainConfig, ChainKind, ChainWeights};

use super::slots::{ChainSlots, Likeliest};
use crate::initial::{normals, root_mean_square};
use crate::layers::{frozen_rows, tensor};
use crate::loss::{Labels, Prediction, row_cross_entropy};
use crate::optimizer::{Parameter, load};
use crate::target::FrozenTarget;

/// The streams of random numbers of a chain's initial weights; the calibrator's are 0 and 1.
const STREAMS: [u32; 2] = [2, 3];

/// The sizes that define a chain's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainShape {
    /// The kind of the scores, and the number K of ids per slot that drafting scores.
    pub config: ChainConfig,
    /// Rank r of the two layers.
    pub rank: usize,
}

/// The trained weights of a chain.
#[derive(Debug)]
pub struct ChainHeads {
    config: ChainConfig,
    weights: Layers,
    parameters: Vec<Parameter>,
    /// The type that operands of matrix products are rounded to.
    compute: DType,
}

#[derive(Debug)]
enum Layers {
    Pair {
        /// A `[r, hidden]`, which multiplies the embedding of the token before.
        before: Tensor,
        /// B `[r, hidden]`, which multiplies the embedding of the scored token.
        after: Tensor,
    },
    Hidden {
        /// The half of W1 that multiplies the embedding of the token before, `[r, hidden]`.
        before_half: Tensor,
        /// The half of W1 that multiplies the slot's hidden row, `[r, hidden]`.
        hidden_half: Tensor,
        /// W2, `[hidden, r]`.
        output: Tensor,
    },
}

/// Ids without repetition, and for each of the given ids its index among them.
struct Unique {
    ids: Vec<u32>,
    places: Vec<u32>,
}

impl Unique {
    fn new(ids: &[u32]) -> Self {
        let mut unique = Self { ids: Vec::new(), places: Vec::with_capacity(ids.len()) };
        let mut known = HashMap::new();
        for &id in ids {
            let place = *known.entry(id).or_insert_with(|| {
                unique.ids.push(id);
                unique.ids.len() as u32 - 1
            });
            unique.places.push(place);
        }
        unique
    }

    /// Returns a row of `table` `[unique ids, n]` for each of the given ids.
    fn spread(&self, table: &Tensor) -> Result<Tensor> {
        let places = Tensor::from_slice(&self.places, self.places.len(), &Device::Cpu)?;
        table.index_select(&places.to_device(table.device())?, 0)
    }
}

impl ChainHeads {
    /// Creates a chain that at first changes no logit: its second layer is zero.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn new(target: &FrozenTarget, shape: ChainShape, seed: u64) -> Result<Self> {
        let ChainShape { config, rank } = shape;
        let (hidden, dtype, device) = (target.config().hidden_size, target.dtype(), target.device());
        // A layer is scaled by the size of its input, so that its output has about the size 1.
        let scaled = |stream: u32, input: &Tensor, halves: usize| -> Result<Tensor> {
            let std = ((halves * hidden) as f64).powf(-0.5) / root_mean_square(input)?;
            let values =
                Tensor::from_vec(normals(rank * hidden, std, seed, stream), (rank, hidden), &Device::Cpu)?;
            values.to_dtype(dtype)?.to_device(device)
        };
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, dtype, device);
        let layers = match config.kind {
            ChainKind::Pair => vec![scaled(STREAMS[0], target.embedding(), 1)?, zeros((rank, hidden))?],
            ChainKind::Hidden => vec![
                scaled(STREAMS[0], target.embedding(), 2)?,
                scaled(STREAMS[1], target.norm(), 2)?,
                zeros((hidden, rank))?,
            ],
        };
        Self::with_layers(config, layers, target)
    }

    /// Creates a chain with the weights of an exported chain.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn from_weights(target: &FrozenTarget, exported: &ChainWeights) -> Result<Self> {
        Self::with_layers(exported.config, exported_layers(exported, target)?, target)
    }

    /// Loads the weights of an exported chain of the same kind and rank.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn load_exported(&self, target: &FrozenTarget, exported: &ChainWeights) -> Result<()> {
        let names = self.parameters.iter().map(|parameter| parameter.name.clone());
        self.load(&names.zip(exported_layers(exported, target)?).collect())
    }

    fn with_layers(config: ChainConfig, layers: Vec<Tensor>, target: &FrozenTarget) -> Result<Self> {
        let names: &[&str] = match config.kind {
            ChainKind::Pair => &["chain.before", "chain.after"],
            ChainKind::Hidden => &["chain.before_half", "chain.hidden_half", "chain.output"],
        };
        let parameter = |(name, value): (&&str, Tensor)| {
            let var = Var::from_tensor(&value.force_contiguous()?)?;
            Ok(Parameter { name: (*name).to_owned(), var, decays: true, rate: 1.0 })
        };
        let parameters = names.iter().zip(layers).map(parameter).collect::<Result<Vec<_>>>()?;
        let weights = match &parameters[..] {
            [before, after] => {
                Layers::Pair { before: before.var.as_tensor().clone(), after: after.var.as_tensor().clone() }
            }
            [before, hidden, output] => Layers::Hidden {
                before_half: before.var.as_tensor().clone(),
                hidden_half: hidden.var.as_tensor().clone(),
                output: output.var.as_tensor().clone(),
            },
            _ => return Err(candle_core::Error::msg("a chain has two or three trained tensors")),
        };
        Ok(Self { config, weights, parameters, compute: target.compute() })
    }

    /// Returns the kind of the scores and the number of ids per slot that drafting scores.
    pub fn config(&self) -> ChainConfig {
        self.config
    }

    /// Returns the trained parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Loads the weights of a chain of the same shape.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        load(&self.parameters, tensors)
    }

    /// Returns the tensors of the chain in a drafter's checkpoint, by name, on the CPU.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn tensors(&self) -> Result<[(&'static str, Tensor); 2]> {
        let cpu = |tensor: &Tensor| tensor.detach().to_device(&Device::Cpu);
        Ok(match &self.weights {
            Layers::Pair { before, after } => {
                [("chain.a.weight", cpu(before)?), ("chain.b.weight", cpu(after)?)]
            }
            Layers::Hidden { before_half, hidden_half, output } => {
                let first = Tensor::cat(&[cpu(before_half)?, cpu(hidden_half)?], 1)?;
                [("chain.0.weight", first), ("chain.2.weight", cpu(output)?)]
            }
        })
    }

    /// Returns the chained logits `[rows, ids per row]`: the calibrated logits of the ids plus their scores after the
    /// tokens `before`, one per row. `hidden` are the rows' hidden states `[rows, hidden]`, which only the kind `hidden`
    /// needs. Gradients flow to the chain's weights alone.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory; hidden states that are missing.
    pub fn logits(
        &self,
        target: &FrozenTarget,
        before: &[u32],
        likeliest: &Likeliest,
        hidden: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, per_row) = (before.len(), likeliest.per_row);
        let (before, ids) = (Unique::new(before), Unique::new(&likeliest.ids));
        let compute = self.compute;
        let (factors, scored) = match &self.weights {
            Layers::Pair { before: a, after: b } => {
                let before_rows = frozen_rows(&target.embed(&before.ids)?, a, compute)?;
                let id_rows = frozen_rows(&target.embed(&ids.ids)?, b, compute)?;
                (before.spread(&before_rows)?, ids.spread(&id_rows)?)
            }
            Layers::Hidden { before_half, hidden_half, output } => {
                let Some(hidden) = hidden else {
                    return Err(candle_core::Error::msg("this kind of chain needs the slots' hidden rows"));
                };
                let before_rows = frozen_rows(&target.embed(&before.ids)?, before_half, compute)?;
                let own = frozen_rows(hidden, hidden_half, compute)?;
                let inner = (before.spread(&before_rows)? + own)?.silu()?;
                let correction = crate::layers::linear(&inner, output, compute)?;
                (correction, ids.spread(&target.lm_head_rows(&ids.ids)?)?)
            }
        };
        let scored = scored.reshape((rows, per_row, factors.dim(1)?))?;
        let scores = scored.matmul(&factors.unsqueeze(2)?)?.squeeze(2)?;
        let logits = Tensor::from_slice(&likeliest.logits, (rows, per_row), &Device::Cpu)?;
        logits.to_dtype(scores.dtype())?.to_device(scores.device())? + scores
    }

    /// Returns the weighted sum of the rows' cross-entropies over their most likely ids, and each row's prediction,
    /// whose token is an index into the row's ids. A row whose label is not among its ids must have the weight 0; the
    /// label of a row is the index of its token among the row's ids.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn loss(
        &self,
        target: &FrozenTarget,
        before: &[u32],
        likeliest: &Likeliest,
        hidden: Option<&Tensor>,
        labels: &Labels,
    ) -> Result<(Tensor, Vec<Prediction>)> {
        row_cross_entropy(&self.logits(target, before, likeliest, hidden)?, labels)
    }

    /// Drafts the slots of blocks one after the other, as greedy decoding does: each slot's token is the id of the
    /// largest chained logit after the token drafted before, ties to the lowest id. The predictions are in the order of
    /// the slots; a `confidence` is the largest probability among the slot's K most likely ids.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn draft(&self, target: &FrozenTarget, slots: &ChainSlots) -> Result<Vec<Prediction>> {
        self.draft_after(target, slots, false)
    }

    /// Drafts the slots of blocks as [`draft`](Self::draft) does. If `bonus_only`, every slot's scores take the bonus token
    /// instead of the token drafted before, for comparison.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn draft_after(
        &self,
        target: &FrozenTarget,
        slots: &ChainSlots,
        bonus_only: bool,
    ) -> Result<Vec<Prediction>> {
        let blocks = slots.bonuses.len();
        let mut before = slots.bonuses.clone();
        let mut predictions = vec![Prediction::default(); blocks * slots.slots];
        for slot in 0..slots.slots {
            let rows = || (0..blocks).map(|block| block * slots.slots + slot);
            let likeliest = slots.likeliest.select(rows(), self.config.top_k);
            let hidden = match &slots.hidden {
                Some(hidden) => {
                    let rows: Vec<u32> = rows().map(|row| row as u32).collect();
                    let rows = Tensor::from_vec(rows, blocks, &Device::Cpu)?.to_device(hidden.device())?;
                    Some(hidden.index_select(&rows, 0)?)
                }
                None => None,
            };
            let logits = self.logits(target, &before, &likeliest, hidden.as_ref())?;
            let logits = logits.detach().to_dtype(DType::F32)?.to_vec2::<f32>()?;
            for ((row, logits), before) in rows().zip(&logits).zip(&mut before) {
                let (ids, _) = slots.likeliest.row(row, self.config.top_k);
                predictions[row] = largest(ids, logits);
                if !bonus_only {
                    *before = predictions[row].token;
                }
            }
        }
        Ok(predictions)
    }
}

/// Returns the trained tensors of an exported chain, in the order of the parameters.
fn exported_layers(exported: &ChainWeights, target: &FrozenTarget) -> Result<Vec<Tensor>> {
    let hidden = target.config().hidden_size;
    let [first, second] = [&exported.first, &exported.second]
        .map(|layer| tensor(&layer.weight, target.dtype(), target.device()));
    Ok(match exported.config.kind {
        ChainKind::Pair => vec![first?, second?],
        ChainKind::Hidden => {
            let first = first?;
            vec![first.narrow(1, 0, hidden)?, first.narrow(1, hidden, hidden)?, second?]
        }
    })
}

/// Returns the id of the largest logit, ties to the lowest id, and its probability among the ids.
fn largest(ids: &[u32], logits: &[f32]) -> Prediction {
    let top = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f32 = logits.iter().map(|logit| (logit - top).exp()).sum();
    let token = ids.iter().zip(logits).filter(|&(_, &logit)| logit == top).map(|(&id, _)| id).min();
    Prediction { loss: 0.0, token: token.unwrap_or(0), confidence: 1.0 / sum }
}
