//! The drafter in training: projectors of the tail, the mask embedding and the calibrator.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use flexdraft::model::DrafterKind;
use flexdraft::model::weights::{DrafterWeights, LinearWeights, TargetWeights};

use crate::attention::{Groups, Prefix};
use crate::initial::{normals, root_mean_square};
use crate::layers::{Linear, Projectors, frozen_norm, linear, mlp, norm, tensor};
use crate::loss::Factor;
use crate::optimizer::{Parameter, load};
use crate::shortlist::Shortlist;
use crate::target::FrozenTarget;

/// A drafter in training: trained tensors, and the frozen tensors that it shares with its target.
#[derive(Debug)]
pub struct Drafter {
    kind: DrafterKind,
    block_size: usize,
    projectors: Vec<Projectors>,
    /// The mask embedding `[1, hidden]`, the row with which every mask token enters the tail. A FlexDraft drafter trains
    /// it; the mask embedding of an Orthrus drafter is a frozen row of the target's embedding.
    mask_embedding: Tensor,
    calibrator: Option<Calibrator>,
    /// Norms and MLP of each tail layer if the whole tail is trained; empty otherwise.
    rest: Vec<RestOfLayer>,
    parameters: Vec<Parameter>,
    /// The LM head's rows for the token ids that the drafter may draft, `[listed, hidden]`.
    lm_head: Tensor,
}

/// The weights of a decoder layer besides its attention projectors.
#[derive(Debug)]
struct RestOfLayer {
    /// `[hidden]`
    input_norm: Tensor,
    /// `[hidden]`
    post_attention_norm: Tensor,
    /// Gate and up projections, one below the other, `[2 · intermediate, hidden]`.
    gate_up: Tensor,
    /// The down projection, `[hidden, intermediate]`.
    down: Tensor,
}

impl RestOfLayer {
    fn mlp(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        mlp(&norm(x, &self.post_attention_norm, eps)?, &self.gate_up, &self.down)
    }
}

#[derive(Debug)]
struct Calibrator {
    /// The half of the calibrator's W1 that multiplies the bonus token's embedding, `[rank, hidden]`.
    bonus_half: Tensor,
    /// The half of the calibrator's W1 that multiplies the hidden state, `[rank, hidden]`.
    hidden_half: Tensor,
    /// `[rank]`
    bias: Tensor,
    /// The calibrator's W2 with b2 as its last column, for the token ids that the drafter may draft, `[listed,
    /// rank + 1]`.
    output: Tensor,
    /// The type that operands of matrix products are rounded to.
    compute: DType,
}

/// The mask rows of several sequences; the slots of an anchor are consecutive.
#[derive(Debug)]
pub struct MaskRows<'a> {
    /// For each sequence, the mask groups of its anchors and, per tail layer, the keys and values that the
    /// groups see.
    pub sequences: Vec<(Groups, &'a [Prefix])>,
    /// Position of each mask row in its sequence.
    pub positions: Vec<usize>,
    /// Bonus token of each anchor.
    pub bonuses: Vec<u32>,
}

/// Two pairs of factors whose products add up to the logits of the S − 1 slots that draft, for every anchor: slots 1..S of
/// a FlexDraft drafter, or slots 0..S − 1 of an Orthrus drafter, whose slots predict the next position.
#[derive(Debug)]
pub struct SlotFactors {
    /// Final hidden states, `[anchors · (S − 1), hidden]`.
    pub hidden: Tensor,
    /// The calibrator's activations silu(W1 · [embed(bonus); h] + b1) and a column of ones, `[anchors · (S − 1), rank +
    /// 1]`.
    pub calibration: Option<Tensor>,
}

impl Drafter {
    /// Creates a drafter that starts as the target's own tail. Its calibrator has rank `rank` and at first changes
    /// nothing; if `rank` is 0, the drafter has no calibrator. `entry` is the mask embedding, `[hidden]`, which a FlexDraft
    /// drafter trains and an Orthrus drafter keeps.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn new(
        weights: &TargetWeights,
        target: &FrozenTarget,
        shape: DrafterShape,
        shortlist: &Shortlist,
        entry: &Tensor,
        seed: u64,
    ) -> Result<Self> {
        let (dtype, device) = (target.dtype(), target.device());
        let mut parameters = Vec::new();
        let mut var = |name: String, value: Tensor, decays: bool| -> Result<Tensor> {
            let var = Var::from_tensor(&value.contiguous()?)?;
            let tensor = var.as_tensor().clone();
            parameters.push(Parameter { name, var, decays, rate: 1.0 });
            Ok(tensor)
        };
        let mut rest = Vec::new();
        if shape.whole_tail {
            for (index, layer) in target.tail(shape.tail_layers).iter().enumerate() {
                let mut copy = |name: &str, value: &Tensor| {
                    let decays = value.rank() > 1;
                    // The trained variable needs memory of its own: `to_dtype` returns the frozen tensor itself
                    // if it already has the type.
                    let value = value.to_dtype(dtype)?.copy()?;
                    var(format!("layers.{index}.{name}.weight"), value, decays)
                };
                rest.push(RestOfLayer {
                    input_norm: copy("input_layernorm", &layer.input_norm)?,
                    post_attention_norm: copy("post_attention_layernorm", &layer.post_attention_norm)?,
                    gate_up: copy("mlp.gate_up_proj", &layer.gate_up.weight)?,
                    down: copy("mlp.down_proj", &layer.down.weight)?,
                });
            }
        }
        let first = weights.layers.len().saturating_sub(shape.tail_layers);
        let mut projectors = Vec::with_capacity(shape.tail_layers);
        for (index, layer) in weights.layers[first..].iter().enumerate() {
            let start = Projectors::new(&layer.attention, dtype, device)?;
            let mut linear = |name: &str, linear: Linear| -> Result<Linear> {
                let name = format!("layers.{index}.self_attn.{name}");
                let bias = match linear.bias {
                    Some(bias) => Some(var(format!("{name}.bias"), bias, false)?),
                    None => None,
                };
                let weight = var(format!("{name}.weight"), linear.weight.to_dtype(dtype)?, true)?;
                Ok(Linear { weight, bias, compute: target.compute() })
            };
            let (qkv, o) = (linear("qkv_proj", start.qkv)?, linear("o_proj", start.o)?);
            let qk_norms = match start.qk_norms {
                None => None,
                Some((q, k)) => {
                    let name = |which| format!("layers.{index}.self_attn.{which}_norm.weight");
                    Some((var(name("q"), q, false)?, var(name("k"), k, false)?))
                }
            };
            projectors.push(Projectors { qkv, o, qk_norms });
        }
        let entry = entry.to_dtype(dtype)?.unsqueeze(0)?;
        let mask_embedding = match shape.kind {
            DrafterKind::FlexDraft => var("mask_embedding".into(), entry, false)?,
            DrafterKind::Orthrus => entry,
        };
        let (hidden, rank) = (target.config().hidden_size, shape.rank);
        let calibrator = if rank == 0 {
            None
        } else {
            // Token embeddings are often far smaller than normed hidden rows. Each half is scaled by the size of its
            // input; otherwise the bonus token would have hardly any effect.
            let mut half = |name: &str, stream: u32, input: &Tensor| {
                let std = (2.0 * hidden as f64).powf(-0.5) / root_mean_square(input)?;
                let values = normals(rank * hidden, std, seed, stream);
                let values = Tensor::from_vec(values, (rank, hidden), &Device::Cpu)?.to_dtype(dtype)?;
                var(format!("calibrator.{name}"), values.to_device(device)?, true)
            };
            let bonus_half = half("bonus_half", 0, target.embedding())?;
            let hidden_half = half("hidden_half", 1, target.norm())?;
            let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, device);
            Some(Calibrator {
                bonus_half,
                hidden_half,
                bias: var("calibrator.bias".into(), zeros(&[rank])?, false)?,
                output: var("calibrator.output".into(), zeros(&[shortlist.len(), rank + 1])?, true)?,
                compute: target.compute(),
            })
        };
        let lm_head = shortlist.rows(target.lm_head())?;
        Ok(Self {
            kind: shape.kind,
            block_size: shape.block_size,
            projectors,
            mask_embedding,
            calibrator,
            rest,
            parameters,
            lm_head,
        })
    }

    /// Creates a drafter with the weights of an exported drafter, over the whole vocabulary.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn from_weights(
        weights: &TargetWeights,
        target: &FrozenTarget,
        exported: &DrafterWeights,
    ) -> Result<Self> {
        let (dtype, device) = (target.dtype(), target.device());
        let rank = exported.calibrator.as_ref().map_or(0, |calibrator| calibrator.hidden.weight.shape()[0]);
        let shape = DrafterShape {
            kind: exported.config.kind,
            tail_layers: exported.config.tail_layers,
            block_size: exported.config.block_size,
            rank,
            whole_tail: false,
        };
        let entry = tensor(&exported.mask_embedding, dtype, device)?;
        let shortlist = Shortlist::All(weights.config.vocab_size);
        let drafter = Self::new(weights, target, shape, &shortlist, &entry, 0)?;
        drafter.load_exported(target, exported, &shortlist)?;
        Ok(drafter)
    }

    /// Loads the weights of an exported drafter of the same shape. Rows of the calibrator's W2 and b2 for ids outside
    /// `shortlist`, the shortlist of this drafter, are not used.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn load_exported(
        &self,
        target: &FrozenTarget,
        exported: &DrafterWeights,
        shortlist: &Shortlist,
    ) -> Result<()> {
        let (dtype, device) = (target.dtype(), target.device());
        let entry = tensor(&exported.mask_embedding, dtype, device)?.unsqueeze(0)?;
        let mut tensors = HashMap::from([("mask_embedding".to_owned(), entry)]);
        for (index, attention) in exported.attention.iter().enumerate() {
            let projectors = Projectors::new(attention, dtype, device)?;
            let name = |part: &str| format!("layers.{index}.self_attn.{part}");
            for (part, linear) in [("qkv_proj", projectors.qkv), ("o_proj", projectors.o)] {
                tensors.insert(name(&format!("{part}.weight")), linear.weight);
                if let Some(bias) = linear.bias {
                    tensors.insert(name(&format!("{part}.bias")), bias);
                }
            }
            if let Some((q, k)) = projectors.qk_norms {
                tensors.insert(name("q_norm.weight"), q);
                tensors.insert(name("k_norm.weight"), k);
            }
        }
        if let Some(calibrator) = &exported.calibrator {
            let hidden = target.config().hidden_size;
            let w1 = tensor(&calibrator.hidden.weight, dtype, device)?;
            let bias = |linear: &LinearWeights| match &linear.bias {
                Some(bias) => tensor(bias, dtype, device),
                None => Tensor::zeros(linear.weight.shape()[0], dtype, device),
            };
            let w2 = tensor(&calibrator.output.weight, dtype, device)?;
            let output = Tensor::cat(&[w2, bias(&calibrator.output)?.unsqueeze(1)?], 1)?;
            tensors.insert("calibrator.bonus_half".into(), w1.narrow(1, 0, hidden)?);
            tensors.insert("calibrator.hidden_half".into(), w1.narrow(1, hidden, hidden)?);
            tensors.insert("calibrator.bias".into(), bias(&calibrator.hidden)?);
            tensors.insert("calibrator.output".into(), shortlist.rows(&output)?);
        }
        self.load(&tensors)
    }

    /// Sets the calibrator's learning rate to `rate` times the learning rate of the other parameters. Call it before
    /// making an optimizer, which copies the parameters.
    pub fn set_calibrator_rate(&mut self, rate: f64) {
        let calibrator = self.parameters.iter_mut().filter(|p| p.name.starts_with("calibrator."));
        calibrator.for_each(|parameter| parameter.rate = rate);
    }

    /// Returns the trained parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns S, the number of slots of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Returns N, the number of tail layers.
    pub fn tail_layers(&self) -> usize {
        self.projectors.len()
    }

    /// Loads the weights of a drafter of the same shape.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        load(&self.parameters, tensors)
    }

    /// Returns the rows with which mask rows enter the first tail layer: `[1, hidden]` if all mask rows enter with the same
    /// values, or else `[rows, hidden]`.
    fn entry(&self, target: &FrozenTarget, rows: &MaskRows<'_>) -> Result<Tensor> {
        match self.kind {
            DrafterKind::FlexDraft => Ok(self.mask_embedding.clone()),
            // Slot 0 enters as the embedding of the bonus token.
            DrafterKind::Orthrus => {
                let (anchors, hidden) = (rows.bonuses.len(), target.config().hidden_size);
                let bonuses = target.embed(&rows.bonuses)?.unsqueeze(1)?;
                let masks = self.mask_embedding.broadcast_as((anchors, self.block_size - 1, hidden))?;
                Tensor::cat(&[bonuses, masks.contiguous()?], 1)?.reshape((anchors * self.block_size, hidden))
            }
        }
    }

    /// Returns the first slot of a block whose output drafts a token.
    fn first_drafting_slot(&self) -> usize {
        match self.kind {
            DrafterKind::FlexDraft => 1,
            DrafterKind::Orthrus => 0,
        }
    }

    /// Runs mask rows through the tail, and returns the factors of the logits of the slots that draft.
    ///
    /// # Errors
    /// Candle's errors: mismatched shapes, out of memory.
    pub fn forward(&self, target: &FrozenTarget, rows: &MaskRows<'_>) -> Result<SlotFactors> {
        let heads = target.heads();
        let rotation = target.rotation(&rows.positions)?;
        let row_count = rows.positions.len();
        let hidden = target.config().hidden_size;
        let mut x = self.entry(target, rows)?;
        for (index, (layer, projectors)) in
            target.tail(self.projectors.len()).iter().zip(&self.projectors).enumerate()
        {
            let rest = self.rest.get(index);
            let normed = match rest {
                None => frozen_norm(&x, &layer.input_norm, heads.eps)?,
                Some(rest) => norm(&x, &rest.input_norm, heads.eps)?,
            };
            let qkv = projectors.qkv.forward(&normed)?;
            // If all mask rows enter the tail with the same values, one row stands for all of them before the first
            // attention.
            let qkv = match qkv.dims2()? {
                (1, columns) => qkv.broadcast_as((row_count, columns))?.contiguous()?,
                _ => qkv,
            };
            let sequences: Vec<(Groups, Option<Prefix>)> = rows
                .sequences
                .iter()
                .map(|(groups, prefixes)| (groups.clone(), prefixes.get(index).cloned()))
                .collect();
            let attended = heads.attend(&qkv, projectors.norms(), &rotation, &sequences)?;
            x = projectors.o.forward(&attended)?.broadcast_add(&x)?;
            let added = match rest {
                None => layer.mlp(&x)?,
                Some(rest) => rest.mlp(&x, heads.eps)?,
            };
            x = (x + added)?;
        }
        let normed = frozen_norm(&x, target.norm(), heads.eps)?;
        let (anchors, slots) = (rows.bonuses.len(), self.block_size - 1);
        let normed = normed.reshape((anchors, self.block_size, hidden))?.narrow(
            1,
            self.first_drafting_slot(),
            slots,
        )?;
        let normed = normed.contiguous()?.reshape((anchors * slots, hidden))?;
        let calibration = match &self.calibrator {
            None => None,
            Some(calibrator) => Some(calibrator.forward(&target.embed(&rows.bonuses)?, &normed, slots)?),
        };
        Ok(SlotFactors { hidden: normed, calibration })
    }

    /// Returns the factors of the logits: the LM head's pair and, if there is a calibrator, the calibrator's pair.
    pub fn factors<'a>(&'a self, slots: &'a SlotFactors) -> (Factor<'a>, Option<Factor<'a>>) {
        let compute = self.lm_head.dtype();
        let calibration = slots.calibration.as_ref().zip(self.calibrator.as_ref());
        (
            Factor { x: &slots.hidden, w: &self.lm_head, compute },
            calibration.map(|(x, calibrator)| Factor { x, w: &calibrator.output, compute }),
        )
    }
}

impl Calibrator {
    /// Computes the calibrator's activations `[anchors · slots, rank + 1]` from the bonus tokens' embeddings `[anchors,
    /// hidden]` and the slots' hidden states `[anchors · slots, hidden]`.
    fn forward(&self, bonuses: &Tensor, hidden: &Tensor, slots: usize) -> Result<Tensor> {
        let (anchors, rank) = (bonuses.dim(0)?, self.bias.dim(0)?);
        let bonus = linear(bonuses, &self.bonus_half, self.compute)?.broadcast_add(&self.bias)?;
        let own = linear(hidden, &self.hidden_half, self.compute)?.reshape((anchors, slots, rank))?;
        let u = own.broadcast_add(&bonus.unsqueeze(1)?)?.silu()?.reshape((anchors * slots, rank))?;
        let ones = Tensor::ones((anchors * slots, 1), u.dtype(), u.device())?;
        Tensor::cat(&[u, ones], 1)
    }
}

/// The sizes that define a drafter's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrafterShape {
    /// The kind of drafter.
    pub kind: DrafterKind,
    /// N, the number of tail layers; all layers of the target for an Orthrus drafter.
    pub tail_layers: usize,
    /// S, the number of slots of a block.
    pub block_size: usize,
    /// Rank r of the calibrator; 0 for a drafter without one.
    pub rank: usize,
    /// True if the tail's norms and MLPs are trained with its projectors. No engine runs such a drafter, because its
    /// mask rows do not share the target's MLPs; it is for comparison.
    pub whole_tail: bool,
}
