//! An example of FlexDraft in a plain candle program: a Qwen3 whose attention, sampling and acceptance are flexdraft's
//! kernels decodes with the bundled drafter, and writes what it writes alone.
//!
//!     cargo run --release -p flexdraft-candle --example decode
//!
//! The program drafts in parallel mode with one sequence and a verify length of a whole block. It leaves the drafter's
//! chain out, which changes drafts only.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor, safetensors};
use flexdraft::acceptance::Rule;
use flexdraft::kernels::Paging;
use flexdraft::kernels::acceptance::{Verdict, Verify, VerifySequence};
use flexdraft::kernels::sampling::RowSampling;
use flexdraft::kernels::selection::{Draft, DraftGroups};
use flexdraft::layout::{GroupSet, Pass, RowKind, SequenceRows};
use flexdraft::model::Tokenizer;
use flexdraft::sampling::SamplingParams;
use flexdraft_candle::{
    Accept, Calibration, JointAttention, Kernels, KvCache, NormRopeAppend, PassTables, Projections as Heads,
    RotatedProjections, Sample, Sampled, SampledLogits, ScoreChanges, read_table, table, tokens,
};

const LAYERS: usize = 5;
const FIRST_TAIL_LAYER: usize = 1;
const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 2048;
const EPS: f64 = 1e-6;
const ROPE_THETA: f32 = 10_000.0;

/// The number of slots per mask group. The drafter was trained with 16; fewer rows are faster on the emulator.
const SLOTS: usize = 8;
const PAGES: usize = 16;
const PAGE_SIZE: usize = 16;

/// A projection without a bias.
struct Linear(Tensor);

impl Linear {
    /// Computes the products of `x` `[rows, inputs]` with the weight. Candle sums a product of several rows in another order
    /// than a product of one row. A row should have the same bits in every pass, so this is one product per row.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = (0..x.dim(0)?).map(|row| x.narrow(0, row, 1)?.matmul(&self.0));
        Tensor::cat(&rows.collect::<Result<Vec<Tensor>>>()?, 0)
    }
}

/// The tensors of a checkpoint, by name.
struct Weights(HashMap<String, Tensor>);

impl Weights {
    fn read(folder: &Path) -> Result<Self> {
        safetensors::load(folder.join("model.safetensors"), &Device::Cpu).map(Weights)
    }

    fn bf16(&self, name: &str) -> Result<Tensor> {
        self.0.get(name).cloned().ok_or_else(|| candle_core::Error::CannotFindTensor { path: name.into() })
    }

    fn f32(&self, name: &str) -> Result<Tensor> {
        self.bf16(name)?.to_dtype(DType::F32)
    }

    fn linear(&self, name: &str) -> Result<Linear> {
        Ok(Linear(self.f32(&format!("{name}.weight"))?.t()?))
    }
}

/// The projections and the q/k norms of a layer's attention: the target's for candidate rows, the drafter's for mask rows.
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Tensor,
    k_norm: Tensor,
}

impl Projections {
    fn new(weights: &Weights, layer: &str) -> Result<Self> {
        let name = |part: &str| format!("{layer}.self_attn.{part}");
        Ok(Projections {
            q: weights.linear(&name("q_proj"))?,
            k: weights.linear(&name("k_proj"))?,
            v: weights.linear(&name("v_proj"))?,
            o: weights.linear(&name("o_proj"))?,
            q_norm: weights.f32(&name("q_norm.weight"))?,
            k_norm: weights.f32(&name("k_norm.weight"))?,
        })
    }

    /// Returns q, k and v of each row, next to each other.
    fn qkv(&self, x: &Tensor) -> Result<Tensor> {
        Tensor::cat(&[self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?], 1)
    }
}

/// A layer of the target.
struct Layer {
    input_norm: Tensor,
    attention: Projections,
    post_attention_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The calibrator: `W2·silu(W1·[embed(bonus); h] + b1) + b2`.
struct Calibrator {
    w1: Linear,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
}

/// A target and its drafter.
pub struct Program {
    kernels: Kernels,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    lm_head: Linear,
    inv_freq: Tensor,
    mask_attention: Vec<Projections>,
    mask_embedding: Tensor,
    calibrator: Calibrator,
}

/// The tokens that a run decoded.
#[derive(Debug)]
pub struct Decoded {
    /// The tokens after the prompt.
    pub tokens: Vec<u32>,
    /// The number of passes through the target after the prompt.
    pub steps: usize,
}

/// The KV cache of a sequence, and the tables of the passes over it.
struct State {
    caches: Vec<(Tensor, Tensor)>,
    /// The pass below the tail, which has candidates alone.
    candidates: PassTables,
    /// The pass in the tail, which has candidates and mask groups.
    joint: PassTables,
}

/// The hidden rows of candidates and mask groups after the last norm.
struct Hidden {
    candidates: Tensor,
    masks: Tensor,
}

fn rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(weight)
}

/// Applies one function to the candidate rows and another one to the mask rows behind them.
fn by_kind(
    x: &Tensor,
    candidates: usize,
    of_candidates: impl Fn(&Tensor) -> Result<Tensor>,
    of_masks: Option<impl Fn(&Tensor) -> Result<Tensor>>,
) -> Result<Tensor> {
    let first = of_candidates(&x.narrow(0, 0, candidates)?)?;
    match of_masks {
        None => Ok(first),
        Some(of_masks) => {
            let masks = x.narrow(0, candidates, x.dim(0)? - candidates)?;
            Tensor::cat(&[first, of_masks(&masks)?], 0)
        }
    }
}

impl Program {
    /// Reads a target and its drafter.
    pub fn read(target: &Path, drafter: &Path) -> Result<Self> {
        let (weights, drafter) = (Weights::read(target)?, Weights::read(drafter)?);
        let layer = |index: usize| -> Result<Layer> {
            let name = format!("model.layers.{index}");
            Ok(Layer {
                input_norm: weights.f32(&format!("{name}.input_layernorm.weight"))?,
                attention: Projections::new(&weights, &name)?,
                post_attention_norm: weights.f32(&format!("{name}.post_attention_layernorm.weight"))?,
                gate: weights.linear(&format!("{name}.mlp.gate_proj"))?,
                up: weights.linear(&format!("{name}.mlp.up_proj"))?,
                down: weights.linear(&format!("{name}.mlp.down_proj"))?,
            })
        };
        let masks = (0..LAYERS - FIRST_TAIL_LAYER)
            .map(|index| Projections::new(&drafter, &format!("layers.{index}")));
        let frequency = |i: usize| ROPE_THETA.powf(-((2 * i) as f32) / HEAD_DIM as f32);
        let inv_freq: Vec<f32> = (0..HEAD_DIM / 2).map(frequency).collect();
        let embedding = weights.f32("model.embed_tokens.weight")?;
        Ok(Program {
            kernels: Kernels::new(&Device::Cpu)?,
            lm_head: Linear(embedding.t()?),
            embedding,
            layers: (0..LAYERS).map(layer).collect::<Result<_>>()?,
            norm: weights.f32("model.norm.weight")?,
            inv_freq: Tensor::new(inv_freq, &Device::Cpu)?,
            mask_attention: masks.collect::<Result<_>>()?,
            mask_embedding: drafter.f32("mask_embedding")?,
            calibrator: Calibrator {
                w1: drafter.linear("anchor_bias_mlp.0")?,
                b1: drafter.f32("anchor_bias_mlp.0.bias")?,
                w2: drafter.bf16("anchor_bias_mlp.2.weight")?,
                b2: drafter.f32("anchor_bias_mlp.2.bias")?,
            },
        })
    }

    fn state(&self) -> Result<State> {
        let shape = (PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM);
        let cache = || Tensor::zeros(shape, DType::BF16, &Device::Cpu);
        Ok(State {
            caches: (0..LAYERS).map(|_| Ok((cache()?, cache()?))).collect::<Result<_>>()?,
            candidates: self.kernels.pass_tables(1, PAGES)?,
            joint: self.kernels.pass_tables(1, PAGES)?,
        })
    }

    /// Runs the tokens `ids` at the positions from `start` on, with a mask group after each candidate of `groups`.
    fn forward(&self, state: &mut State, ids: &Tensor, start: usize, groups: &[usize]) -> Result<Hidden> {
        let (candidates, masks) = (ids.dim(0)?, groups.len() * SLOTS);
        let pages: Vec<u32> = (0..PAGES as u32).collect();
        let paging = Paging { pages: PAGES, page_size: PAGE_SIZE };
        for (tables, groups) in [(&mut state.candidates, &[][..]), (&mut state.joint, groups)] {
            let groups = groups.to_vec();
            let rows = SequenceRows { pages: &pages, start, candidates, groups, slots: SLOTS };
            self.kernels.upload_pass(tables, &Pass { sequences: vec![rows] }, paging)?;
        }
        let cos_sin = self.kernels.rope_table(&state.joint, &self.inv_freq, candidates + masks, 1.0)?;
        let mut x = self.embedding.index_select(ids, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let drafter = index.checked_sub(FIRST_TAIL_LAYER).filter(|_| masks > 0);
            let drafter = drafter.map(|index| &self.mask_attention[index]);
            let pass = if drafter.is_some() { &state.joint } else { &state.candidates };
            if drafter.is_some() && x.dim(0)? == candidates {
                let slots = self.mask_embedding.broadcast_as((masks, self.mask_embedding.dim(0)?))?;
                x = Tensor::cat(&[&x, &slots.contiguous()?], 0)?;
            }
            let normed = rms_norm(&x, &layer.input_norm)?;
            let of_masks = drafter.map(|drafter| |x: &Tensor| drafter.qkv(x));
            let qkv = by_kind(&normed, candidates, |x| layer.attention.qkv(x), of_masks)?;
            let qkv = qkv.to_dtype(DType::BF16)?;
            let (k, v) = &state.caches[index];
            let cache = KvCache { k, v };
            let kinds = [(RowKind::Candidates, Some(&layer.attention)), (RowKind::Masks, drafter)];
            for (kind, projections) in kinds {
                let Some(Projections { q_norm, k_norm, .. }) = projections else { continue };
                self.kernels.norm_rope_append(&NormRopeAppend {
                    pass,
                    kind,
                    qkv: RotatedProjections::Fused(&qkv),
                    cos_sin: &cos_sin.narrow(0, 0, qkv.dim(0)?)?,
                    norms: Some((q_norm, k_norm)),
                    eps: EPS as f32,
                    cache,
                    q_heads: Q_HEADS,
                })?;
            }
            let attended = self.kernels.joint_attention(&JointAttention {
                pass,
                masks: drafter.is_some(),
                qkv: Heads::Fused(&qkv),
                cache,
                q_heads: Q_HEADS,
                split: None,
                scores: ScoreChanges::default(),
            })?;
            let of_masks = drafter.map(|drafter| |x: &Tensor| drafter.o.forward(x));
            let attended = attended.out.to_dtype(DType::F32)?;
            x = (x + by_kind(&attended, candidates, |x| layer.attention.o.forward(x), of_masks)?)?;
            let normed = rms_norm(&x, &layer.post_attention_norm)?;
            let activated = (layer.gate.forward(&normed)?.silu()? * layer.up.forward(&normed)?)?;
            x = (x + layer.down.forward(&activated)?)?;
        }
        let x = rms_norm(&x, &self.norm)?;
        Ok(Hidden { candidates: x.narrow(0, 0, candidates)?, masks: x.narrow(0, candidates, masks)? })
    }

    /// Samples each row of logits greedily.
    fn sample(&self, logits: &Tensor, calibration: Option<Calibration<'_>>) -> Result<Sampled> {
        let greedy = RowSampling::new(&SamplingParams::GREEDY, None).map_err(candle_core::Error::wrap)?;
        self.kernels.sample(&Sample {
            vocab: VOCAB,
            logits: SampledLogits::Read(logits),
            logit_index: None,
            sampling: &table(&vec![greedy; logits.dim(0)?], logits.device())?,
            starts: None,
            draft: None,
            calibration,
        })
    }

    /// Draws the next draft from the mask group that matches the verdict. Returns the bonus token and the draft tokens.
    fn draft(&self, masks: &Tensor, verdicts: &Tensor, groups: usize) -> Result<Tensor> {
        let draft = DraftGroups {
            sequence: 0,
            groups: GroupSet::all(groups - 1),
            first_slot: 0,
            slots: SLOTS,
            first_draft: 0,
        };
        let drafts = table(&[Draft::new(&draft).map_err(candle_core::Error::wrap)?], masks.device())?;
        let selected = self.kernels.select_drafts(&drafts, verdicts, SLOTS - 1)?;
        let h = masks.index_select(&selected.sources.to_dtype(DType::U32)?, 0)?;
        let bonus = self.embedding.index_select(&selected.bonus.to_dtype(DType::U32)?, 0)?;
        let bonus = bonus.broadcast_as(h.shape())?.contiguous()?;
        let Calibrator { w1, b1, w2, b2 } = &self.calibrator;
        let hidden = w1.forward(&Tensor::cat(&[&bonus, &h], 1)?)?.broadcast_add(b1)?.silu()?;
        let calibration = Calibration { hidden: &hidden.to_dtype(DType::BF16)?, weight: w2, bias: Some(b2) };
        let sampled = self.sample(&self.lm_head.forward(&h)?, Some(calibration))?;
        Tensor::cat(&[&selected.bonus, &tokens(&sampled.stats)?], 0)
    }

    /// Decodes at least `count` tokens after the prompt, with drafts.
    pub fn decode(&self, prompt: &[u32], count: usize) -> Result<Decoded> {
        let mut state = self.state()?;
        let mut decoded = Decoded { tokens: Vec::new(), steps: 0 };
        // The candidates of the first pass are the prompt, and no candidate is a draft.
        let (mut ids, mut start, mut drafts) = (Tensor::new(prompt, &Device::Cpu)?, 0, 0);
        loop {
            let known = ids.dim(0)? - drafts;
            let groups: Vec<usize> = (known - 1..known + drafts).collect();
            let hidden = self.forward(&mut state, &ids, start, &groups)?;
            let position = start + known - 1;
            let logits = self.lm_head.forward(&hidden.candidates.narrow(0, known - 1, drafts + 1)?)?;
            let sampled = self.sample(&logits, None)?;
            let verify = Verify::new(&VerifySequence {
                rule: Rule::Match,
                seed: 0,
                position,
                drafts,
                first_target: 0,
                first_draft: None,
                first_token: 0,
                groups: GroupSet::all(drafts),
            });
            let accepted = self.kernels.accept(&Accept {
                vocab: VOCAB,
                sequences: &table(&[verify.map_err(candle_core::Error::wrap)?], logits.device())?,
                any_block: false,
                tokens: &ids.narrow(0, known, drafts)?,
                target: &logits,
                target_stats: &sampled.stats,
                target_partials: Some(&sampled.partials),
                draft: None,
            })?;
            let next = self.draft(&hidden.masks, &accepted.verdicts, groups.len())?;
            let verdict: Vec<Verdict> = read_table(&accepted.verdicts)?;
            let committed = accepted.committed.narrow(1, 0, verdict[0].accepted as usize + 1)?;
            decoded.tokens.extend(committed.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?);
            if decoded.tokens.len() >= count {
                decoded.tokens.truncate(count);
                return Ok(decoded);
            }
            decoded.steps += 1;
            (ids, start, drafts) = (next.to_dtype(DType::U32)?, verdict[0].cached_length as usize, SLOTS - 1);
        }
    }

    /// Decodes `count` tokens after the prompt, one per pass.
    pub fn decode_alone(&self, prompt: &[u32], count: usize) -> Result<Decoded> {
        let mut state = self.state()?;
        let mut decoded = Decoded { tokens: Vec::new(), steps: 0 };
        let (mut ids, mut start) = (Tensor::new(prompt, &Device::Cpu)?, 0);
        loop {
            let rows = ids.dim(0)?;
            let hidden = self.forward(&mut state, &ids, start, &[])?;
            let logits = self.lm_head.forward(&hidden.candidates.narrow(0, rows - 1, 1)?)?;
            let token = tokens(&self.sample(&logits, None)?.stats)?.to_dtype(DType::U32)?;
            decoded.tokens.extend(token.to_vec1::<u32>()?);
            if decoded.tokens.len() == count {
                return Ok(decoded);
            }
            decoded.steps += 1;
            (ids, start) = (token, start + rows);
        }
    }
}

/// Runs the example.
pub fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/tiny");
    let program = Program::read(&folder.join("target"), &folder.join("drafter"))?;
    let tokenizer = Tokenizer::read(&folder.join("target"), VOCAB)?;
    let prompt = tokenizer.encode("/// Adds packed 32-bit integers in `a` and `b`.\n", true)?;
    let drafted = program.decode(&prompt, 48)?;
    let alone = program.decode_alone(&prompt, 48)?;
    println!("{}", tokenizer.decode(&drafted.tokens, true)?);
    println!("{} passes with drafts, {} alone", drafted.steps, alone.steps);
    assert_eq!(drafted.tokens, alone.tokens, "drafts change no token");
    assert!(drafted.steps < alone.steps, "some drafts of the bundled drafter are accepted");
    Ok(())
}
