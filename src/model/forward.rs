//! The forward pass: a target and its drafter on a device.
//!
//! Candidate rows run through all L layers with the target's own weights. Mask rows exist only in the tail:
//! they enter the first tail layer as `mask_embedding`, use the drafter's attention projectors, and share the
//! target's norms and MLP with the candidate rows of the same pass (Attention Tuning).
//!
//! For an Orthrus drafter, the tail is all layers, slot 0 of a mask group enters as the bonus token's embedding, and
//! mask rows run in drafting passes only.

use std::ops::Range;

use super::config::rope::no_rotation;
use super::config::{DrafterKind, ModelConfig};
use super::layers::{Drafter, Layer, ScoreLayers};
use super::weights::{DrafterWeights, TargetWeights, model_shape};
use crate::device::{
    AttentionRows, CalibratorOutput, Corrections, Device, DeviceError, DraftSelection, DraftTables,
    DraftingPass, LinearPart, Rope, RowKind, SlotRows, StepTables, Verification,
};
use crate::layout::{Prediction, SequenceRows};

/// A target on a device, with or without a drafter, ready to run.
pub struct Model<D: Device> {
    device: D,
    config: ModelConfig,
    embed: D::Linear,
    layers: Vec<Layer<D>>,
    norm: D::Vector,
    /// The output projection (LM head); `None` if it is the embedding.
    lm_head: Option<D::Linear>,
    drafter: Option<Drafter<D>>,
    /// A rotation that leaves q and k as they are, for layers without rotary embedding.
    no_rotation: Rope,
}

/// Buffers for the activations of a pass, reused from step to step.
pub struct Workspace<D: Device> {
    hidden: D::Buffer,
    normed: D::Buffer,
    qkv: D::Buffer,
    attended: D::Buffer,
    delta: D::Buffer,
    gate_up: D::Buffer,
    activated: D::Buffer,
    gathered: D::Buffer,
    head_input: D::Buffer,
    bonus: D::Buffer,
    bonus_hidden: D::Buffer,
    calibrator_hidden: D::Buffer,
}

/// Numbers of the rows that a layer computes together: candidate rows come first, then mask rows.
#[derive(Clone, Copy)]
struct PassRows {
    candidates: usize,
    total: usize,
}

impl<D: Device> Model<D> {
    /// Loads the weights of a target and a drafter onto `device`. The drafter must belong to this target (its loader
    /// checks that).
    pub fn new(
        device: D,
        target: &TargetWeights,
        drafter: Option<&DrafterWeights>,
    ) -> Result<Self, DeviceError> {
        let config = target.config.clone();
        if let Some(drafter) = drafter
            && drafter.attention.len() > target.layers.len()
        {
            return Err(DeviceError::Shape {
                operation: "model",
                operand: "drafter layers",
                expected: vec![target.layers.len()],
                found: vec![drafter.attention.len()],
            });
        }
        device.check_model(&model_shape(target, drafter))?;
        let whole = |weight| device.new_linear(&[LinearPart::new(weight, None)]);
        Ok(Self {
            embed: whole(&target.embed)?,
            layers: target.layers.iter().map(|layer| Layer::new(&device, layer)).collect::<Result<_, _>>()?,
            norm: device.new_vector(&target.norm)?,
            lm_head: if config.tied_embeddings { None } else { Some(whole(&target.lm_head)?) },
            drafter: drafter.map(|weights| Drafter::new(&device, weights, config.hidden_size)).transpose()?,
            no_rotation: no_rotation(config.attention.head_dim),
            config,
            device,
        })
    }

    /// Returns the device that holds the weights.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Drops the weights and returns the device.
    pub fn into_device(self) -> D {
        self.device
    }

    /// Returns the target's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the block size S that the drafter was trained with, or `None` without a drafter.
    pub fn block_size(&self) -> Option<usize> {
        self.drafter.as_ref().map(|drafter| drafter.block_size)
    }

    /// Returns the kind of the drafter, or `None` without a drafter.
    pub fn drafter_kind(&self) -> Option<DrafterKind> {
        self.drafter.as_ref().map(|drafter| drafter.kind)
    }

    /// Returns the token that each slot of the drafter's mask groups predicts.
    pub fn prediction(&self) -> Prediction {
        self.drafter_kind().map_or(Prediction::OwnPosition, DrafterKind::prediction)
    }

    /// Prepares the device for steps with up to `sequences` sequences and up to `prompt_rows` additional rows
    /// of prompts.
    pub fn prepare(&self, sequences: usize, prompt_rows: usize) -> Result<(), DeviceError> {
        let slots = self.block_size().unwrap_or(1);
        let drafts = sequences.saturating_mul(slots);
        // A pass has at most one mask group for every accepted length. Layers share shapes, so all of them are prepared
        // for the largest number of rows.
        let groups =
            if self.drafter_kind().is_some_and(DrafterKind::drafts_while_verifying) { slots } else { 0 };
        let masks = drafts.saturating_mul(groups);
        let rows = drafts.saturating_add(prompt_rows).saturating_add(masks);
        let prepare = |layer, rows| self.device.prepare(layer, rows, false);
        let drafters = self.drafter.iter().flat_map(|drafter| &drafter.attention);
        for attention in self.layers.iter().map(|layer| &layer.attention).chain(drafters) {
            prepare(&attention.qkv, rows)?;
            prepare(&attention.o, rows)?;
        }
        for layer in &self.layers {
            prepare(&layer.gate_up, rows)?;
            prepare(&layer.down, rows)?;
        }
        // With S slots per group, a sequence has at most S candidates and S groups with S − 1 drafted slots
        // each: the head computes S² rows, which is also the number of its mask rows.
        let joined = masks.min(self.device.joined_head_rows(self.head_layer()));
        self.device.prepare(self.head_layer(), drafts.max(joined), true)?;
        if let Some(calibrator) = self.drafter.as_ref().and_then(|drafter| drafter.calibrator.as_ref()) {
            prepare(&calibrator.bonus_half, sequences)?;
            prepare(&calibrator.hidden_half, drafts)?;
        }
        if let Some(chain) = self.drafter.as_ref().and_then(|drafter| drafter.chain.as_ref()) {
            // The bonus tokens, and the ids that the chain scores in each slot.
            let tokens = drafts.saturating_mul(chain.top_k).saturating_add(sequences);
            match &chain.scores {
                ScoreLayers::Pair { before, after } => {
                    self.device.prepare(before, tokens, true)?;
                    self.device.prepare(after, tokens, true)?;
                }
                ScoreLayers::Hidden { before_half, hidden_half, output } => {
                    prepare(before_half, tokens)?;
                    prepare(hidden_half, drafts)?;
                    self.device.prepare(output, tokens, true)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a KV cache of `pages` pages of `page_size` tokens for all layers.
    pub fn new_cache(&self, pages: usize, page_size: usize) -> Result<D::Cache, DeviceError> {
        self.device.new_cache(self.layers.len(), pages, page_size, self.config.attention)
    }

    /// Makes an empty logits buffer [0, vocab].
    pub fn new_logits(&self) -> D::Buffer {
        self.device.new_logits(self.config.vocab_size)
    }

    /// Makes the buffers for the activations of a pass.
    pub fn new_workspace(&self) -> Workspace<D> {
        let hidden = || self.device.new_buffer(self.config.hidden_size);
        let rank = self.drafter.as_ref().and_then(|d| d.calibrator.as_ref()).map_or(0, |c| c.rank);
        Workspace {
            hidden: hidden(),
            normed: hidden(),
            qkv: self.device.new_buffer(self.config.attention.qkv_cols()),
            attended: self.device.new_buffer(self.config.attention.out_cols()),
            delta: hidden(),
            gate_up: self.device.new_buffer(2 * self.config.intermediate_size),
            activated: self.device.new_buffer(self.config.intermediate_size),
            gathered: hidden(),
            head_input: hidden(),
            bonus: hidden(),
            bonus_hidden: self.device.new_buffer(rank),
            calibrator_hidden: self.device.new_buffer(rank),
        }
    }

    /// Begins a step and runs its forward pass. Appends the candidates' KV to the cache and leaves every row's final
    /// hidden state in the workspace. Returns the tables of the step, for [`verify`](Device::verify).
    ///
    /// A pass without candidates runs the tail only: this is sequential drafting.
    pub fn forward<'a>(
        &'a self,
        tables: StepTables<'a, D::Buffer>,
        cache: &mut D::Cache,
        work: &mut Workspace<D>,
    ) -> Result<D::Tables<'a>, DeviceError> {
        let StepTables { pass, tokens, .. } = tables;
        let candidates = pass.candidate_rows();
        if tokens.len() != candidates {
            return Err(DeviceError::Shape {
                operation: "forward",
                operand: "tokens",
                expected: vec![candidates],
                found: vec![tokens.len()],
            });
        }
        let total = pass.total_rows();
        if total > candidates
            && let Some(kind) = self.drafter_kind().filter(|kind| !kind.drafts_while_verifying())
        {
            return Err(DeviceError::Contract {
                operation: "forward",
                operand: "mask rows",
                expected: "none, because the drafter's mask groups begin with the bonus token",
                found: format!("{} rows for {}", total - candidates, kind.name()),
            });
        }
        let (mut laid_out, tables) = self.device.begin(tables, cache)?;
        let rows = PassRows { candidates, total };
        self.run(&mut laid_out, rows, tokens, cache, work)?;
        Ok(tables)
    }

    /// Runs the tail layers for a [drafting pass](Verification::begin_drafting).
    pub fn draft_forward(
        &self,
        drafting: DraftingPass<'_>,
        verification: &mut D::Verification<'_>,
        cache: &mut D::Cache,
        work: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        if let Some(drafter) = self.drafter.as_ref().filter(|drafter| drafter.kind == DrafterKind::Orthrus) {
            self.embed_groups(drafter, drafting, verification, work)?;
        }
        let mut laid_out = verification.begin_drafting(drafting, cache)?;
        let rows = PassRows { candidates: 0, total: drafting.pass.total_rows() };
        self.run(&mut laid_out, rows, &[], cache, work)
    }

    /// Writes the hidden states with which the groups of a drafting pass enter the first layer of an Orthrus drafter: the
    /// embedding of the bonus token in slot 0, the mask embedding in all other slots.
    fn embed_groups(
        &self,
        drafter: &Drafter<D>,
        DraftingPass { pass, verdicts }: DraftingPass<'_>,
        verification: &mut D::Verification<'_>,
        work: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        let Workspace { bonus, hidden, .. } = work;
        // The bonus tokens' embeddings, then the mask embedding: `rows` repeats them.
        let mask = verdicts.len();
        verification.embed_bonus(&self.embed, verdicts, bonus)?;
        self.device.resize(bonus, mask + 1)?;
        self.device.fill_rows(&drafter.mask_embedding, mask..mask + 1, bonus)?;
        let group = |(index, rows): (usize, &SequenceRows<'_>)| {
            std::iter::repeat_n(index, rows.slots.min(1))
                .chain(std::iter::repeat_n(mask, rows.slots.saturating_sub(1)))
        };
        let rows: Vec<usize> = pass.sequences.iter().enumerate().flat_map(group).collect();
        self.device.gather(bonus, &rows, hidden)
    }

    fn run(
        &self,
        pass: &mut D::Pass<'_>,
        PassRows { candidates, total }: PassRows,
        tokens: &[u32],
        cache: &mut D::Cache,
        work: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        let device = &self.device;
        for buffer in [
            &mut work.hidden,
            &mut work.normed,
            &mut work.qkv,
            &mut work.attended,
            &mut work.delta,
            &mut work.gate_up,
            &mut work.activated,
        ] {
            device.resize(buffer, total)?;
        }
        device.embed(&self.embed, tokens, 0, &mut work.hidden)?;

        let tail = self.tail();
        // Number of rows to whose hidden states the previous layer's output has not been added yet.
        let mut pending = 0;
        for (index, layer) in self.layers.iter().enumerate() {
            let in_tail = index >= tail.start && total > candidates;
            let rows = if in_tail { total } else { candidates };
            if rows == 0 {
                continue;
            }
            // The mask rows of an Orthrus drafter are in `hidden` already.
            if index == tail.start
                && in_tail
                && let Some(drafter) = &self.drafter
            {
                device.add(&work.delta, 0..pending, &mut work.hidden)?;
                pending = 0;
                if drafter.kind == DrafterKind::FlexDraft {
                    device.fill_rows(&drafter.mask_embedding, candidates..total, &mut work.hidden)?;
                }
            }
            let (norm, eps) = (&layer.input_norm, self.config.rms_norm_eps);
            let Workspace { delta, hidden, normed, .. } = work;
            match pending {
                0 => device.rms_norm(hidden, 0..rows, norm, eps, normed)?,
                _ => device.add_rms_norm(delta, 0..rows, hidden, norm, eps, normed)?,
            }
            self.layer(index, layer, pass, PassRows { candidates, total: rows }, cache, work)?;
            pending = rows;
        }
        device.add(&work.delta, 0..pending, &mut work.hidden)
    }

    /// Returns the tail layers, in which the drafter works; empty without a drafter.
    fn tail(&self) -> Range<usize> {
        let layers = self.layers.len();
        layers - self.drafter.as_ref().map_or(0, |drafter| drafter.attention.len())..layers
    }

    /// Runs one decoder layer over the first `total` rows of the pass: all rows, or only the candidates. The
    /// layer's input is in `normed`, and the output of the MLP stays in `delta`, because the next layer's norm adds it to the hidden states in one operation.
    fn layer(
        &self,
        index: usize,
        layer: &Layer<D>,
        pass: &mut D::Pass<'_>,
        PassRows { candidates, total: rows }: PassRows,
        cache: &mut D::Cache,
        work: &mut Workspace<D>,
    ) -> Result<(), DeviceError> {
        let (device, config) = (&self.device, &self.config);
        let mask_attention = self
            .drafter
            .as_ref()
            .and_then(|drafter| drafter.attention.get(index.checked_sub(self.tail().start)?))
            .filter(|_| rows > candidates);

        let kinds = [
            (RowKind::Candidates, Some(&layer.attention), 0..candidates),
            (RowKind::Masks, mask_attention, candidates..rows),
        ];
        for (kind, attention, range) in &kinds {
            let Some(attention) = attention.filter(|_| !range.is_empty()) else { continue };
            device.linear(&attention.qkv, &work.normed, range.clone(), &mut work.qkv)?;
            let without_rope = config.layers_without_rope.contains(&index);
            let rope = if without_rope { &self.no_rotation } else { &config.rope };
            let transform = attention.transform(config, rope);
            device.norm_rope_append(&transform, pass, *kind, &mut work.qkv, index, cache)?;
        }
        let attending = AttentionRows { pass: &*pass, masks: rows > candidates };
        device.joint_attention(config.attention, attending, &work.qkv, index, cache, &mut work.attended)?;
        for (_, attention, range) in kinds {
            let Some(attention) = attention.filter(|_| !range.is_empty()) else { continue };
            device.linear(&attention.o, &work.attended, range, &mut work.delta)?;
        }
        let Workspace { delta, hidden, normed, .. } = work;
        let norm = &layer.post_attention_norm;
        device.add_rms_norm(delta, 0..rows, hidden, norm, config.rms_norm_eps, normed)?;
        device.linear(&layer.gate_up, &work.normed, 0..rows, &mut work.gate_up)?;
        device.silu_mul(&work.gate_up, 0..rows, &mut work.activated)?;
        device.linear(&layer.down, &work.activated, 0..rows, &mut work.delta)
    }

    /// Computes the target's logits for rows `rows` of the most recent pass; the buffer `logits` becomes [rows.len(),
    /// vocab].
    pub fn logits(
        &self,
        rows: &[usize],
        work: &mut Workspace<D>,
        logits: &mut D::Buffer,
    ) -> Result<(), DeviceError> {
        self.device.gather(&work.hidden, rows, &mut work.gathered)?;
        self.head(rows.len(), work, logits, 0)
    }

    /// Computes the target's logits for the hidden states of `rows` gathered rows, and stores them in the
    /// buffer `logits` from row `first_row` on, as its last rows.
    fn head(
        &self,
        rows: usize,
        work: &mut Workspace<D>,
        logits: &mut D::Buffer,
        first_row: usize,
    ) -> Result<(), DeviceError> {
        let device = &self.device;
        device.resize(&mut work.head_input, rows)?;
        device.resize(logits, first_row.saturating_add(rows))?;
        let all = 0..rows;
        let eps = self.config.rms_norm_eps;
        device.rms_norm(&work.gathered, all.clone(), &self.norm, eps, &mut work.head_input)?;
        device.linear_to(self.head_layer(), &work.head_input, all, first_row, logits)
    }

    fn head_layer(&self) -> &D::Linear {
        self.lm_head.as_ref().unwrap_or(&self.embed)
    }

    /// Returns whether [`logits`](Self::logits) should compute the logits of all mask groups together with the
    /// logits of the candidates: [`Device::joins_head_products`] for this model's head.
    pub fn joins_head_products(&self, candidates: usize, slots: usize, drafted: usize) -> bool {
        let head = self.head_layer();
        let rows = candidates.saturating_add(slots);
        slots > 0
            && rows <= self.device.joined_head_rows(head)
            && self.device.joins_head_products(head, candidates, slots, drafted)
    }

    /// Samples new draft tokens from the calibrated logits of the mask groups that match the accepted lengths
    /// in `verification`. Their [`SlotRows`] say where these logits are: in the last rows that
    /// [`logits`](Self::logits) computed, or not computed yet, in which case this function computes them.
    ///
    /// `lm_head(h) + W2 · silu(W1 · [embed(bonus); h] + b1) + b2` (Bonus-guided Calibration), or
    /// `lm_head(h)` for a drafter without calibrator. A chain corrects these by the token of the slot before.
    pub fn draft(
        &self,
        drafts: DraftTables<'_>,
        verification: &mut D::Verification<'_>,
        work: &mut Workspace<D>,
        logits: &mut D::Buffer,
    ) -> Result<(), DeviceError> {
        let device = &self.device;
        let DraftTables { drafts: of, rows } = drafts;
        let owner = drafts.owners();
        let selection = verification.select_drafts(drafts)?;
        if let SlotRows::Pass { first_logits } = rows {
            selection.gather(&work.hidden, &mut work.gathered)?;
            self.head(owner.len(), work, logits, first_logits)?;
        }
        let Some(drafter) = self.drafter.as_ref().filter(|d| d.calibrator.is_some() || d.chain.is_some())
        else {
            return selection.draft(Corrections::NONE, logits);
        };
        // The selected rows after the final norm, which are the input of the LM head.
        let normed = match rows {
            SlotRows::Pass { .. } => &work.head_input,
            SlotRows::Logits => {
                selection.gather(&work.head_input, &mut work.gathered)?;
                &work.gathered
            }
        };
        let chain =
            drafter.chain.as_ref().map(|chain| chain.operands(&self.embed, self.head_layer(), normed));
        let Some(calibrator) = &drafter.calibrator else {
            return selection.draft(Corrections { calibration: None, chain }, logits);
        };
        device.resize(&mut work.bonus_hidden, of.len())?;
        device.resize(&mut work.calibrator_hidden, owner.len())?;
        selection.embed_bonus(&self.embed, &mut work.bonus)?;
        device.linear(&calibrator.bonus_half, &work.bonus, 0..of.len(), &mut work.bonus_hidden)?;
        let all = 0..owner.len();
        device.linear(&calibrator.hidden_half, normed, all, &mut work.calibrator_hidden)?;
        device.silu_add(&work.bonus_hidden, &owner, &mut work.calibrator_hidden)?;
        let calibration = CalibratorOutput { hidden: &work.calibrator_hidden, output: &calibrator.output };
        selection.draft(Corrections { calibration: Some(calibration), chain }, logits)
    }
}
