//! Benchmark cases of joint draft-and-verify attention, including the merge of its splits.

use std::marker::PhantomData;

use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention};
use flexdraft::kernels::{KernelError, KvStrides, PagedKv, Paging, PassTables, ScoreChanges};
use flexdraft::layout::{AttentionShape, Pass, SequenceRows};
use flexdraft::runtime::Runtime;
use half::bf16;
use serde::Serialize;

use super::{Case, Half, Prepared};
use crate::floor::{self, AttentionRows, Floor, Heads};
use crate::machine::Machine;

/// A benchmark case of attention with equal sequences: `candidates` candidate rows, and `slots` mask rows for each of
/// `groups` mask groups, after `context` cached positions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Attention<T = bf16> {
    pub batch: usize,
    pub context: usize,
    pub candidates: usize,
    pub groups: usize,
    pub slots: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_size: usize,
    /// Number of keys per split, the unit in which attention divides a long sequence.
    #[serde(skip)]
    pub split: usize,
    #[serde(skip)]
    pub half: PhantomData<T>,
}

/// Batch sizes and context lengths of decode steps under usual loads.
const LOADS: [(usize, usize); 5] = [(1, 8192), (4, 8192), (16, 1024), (16, 8192), (64, 1024)];

impl Attention {
    /// Returns the cases for a layer of Qwen3-8B: a plain step, mask-token block attention (one group, no candidates),
    /// and joint passes that verify 4 and 15 draft tokens and draft after each accepted length.
    pub fn all() -> Vec<Self> {
        let layer = |(batch, context), (candidates, groups)| Attention {
            batch,
            context,
            candidates,
            groups,
            slots: 16,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 128,
            page_size: 64,
            split: DEFAULT_SPLIT,
            half: PhantomData,
        };
        let passes = [(1, 0), (0, 1), (5, 5), (16, 16)];
        let mut all: Vec<Self> =
            LOADS.into_iter().flat_map(|load| passes.map(|rows| layer(load, rows))).collect();
        // The remaining cases have long contexts, or the heads of SmolLM2-135M: three query heads per KV head, of 64
        // dimensions, on small pages.
        for rows in [(1, 0), (5, 5)] {
            all.extend([32_768, 131_072].map(|context| layer((1, context), rows)));
            let small =
                Attention { q_heads: 9, kv_heads: 3, head_dim: 64, page_size: 16, ..layer((16, 1024), rows) };
            all.push(small);
        }
        all
    }
}

impl<T> Attention<T> {
    fn shape(&self) -> AttentionShape {
        AttentionShape { q_heads: self.q_heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

struct Operands<'a, R: Runtime, T: Half> {
    machine: &'a Machine<R>,
    shape: AttentionShape,
    split: usize,
    strides: KvStrides,
    pass: PassTables<R>,
    qkv: R::Memory<T>,
    k: R::Memory<T>,
    v: R::Memory<T>,
    out: R::Memory<T>,
    workspace: R::Memory<f32>,
}

impl<T: Half> Case for Attention<T> {
    fn kernel(&self) -> &'static str {
        "joint_attention"
    }

    fn floor(&self) -> Floor {
        let heads = Heads {
            q_heads: self.q_heads as u64,
            kv_heads: self.kv_heads as u64,
            head_dim: self.head_dim as u64,
        };
        let rows = AttentionRows {
            start: self.context as u64,
            candidates: self.candidates as u64,
            groups: (0..self.groups as u64).collect(),
            slots: self.slots as u64,
        };
        floor::attention(heads, &vec![rows; self.batch])
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let (runtime, stream) = (machine.kernels.runtime(), &machine.stream);
        let shape = self.shape();
        let each = (self.context + self.candidates.max(self.groups)).div_ceil(self.page_size);
        let pages = each * self.batch;
        // The pages of a sequence are spread over the cache: every batch-th page, from the last to the first.
        let ids: Vec<Vec<u32>> = (0..self.batch)
            .map(|sequence| (0..each).rev().map(|page| (page * self.batch + sequence) as u32).collect())
            .collect();
        let layout = Pass {
            sequences: ids
                .iter()
                .map(|pages| SequenceRows {
                    pages,
                    start: self.context,
                    candidates: self.candidates,
                    groups: (0..self.groups).collect(),
                    slots: if self.groups > 0 { self.slots } else { 0 },
                })
                .collect(),
        };
        let mut pass = PassTables::new(runtime, stream, self.batch, each)?;
        pass.upload(runtime, stream, &layout, Paging { pages, page_size: self.page_size })?;
        let rows = pass.rows();
        let cached = pages * self.page_size * self.kv_heads * self.head_dim;
        let workspace = machine
            .kernels
            .attention_workspace_len(&pass, true, rows, shape, self.split)
            .ok_or(KernelError::Overflow { kernel: "joint_attention", what: "workspace" })?;
        Ok(Box::new(Operands {
            machine,
            shape,
            split: self.split,
            strides: KvStrides::token_major(self.page_size, self.kv_heads, self.head_dim),
            pass,
            qkv: machine.noise(1, rows * shape.qkv_cols(), T::from_f32)?,
            k: machine.noise(2, cached, T::from_f32)?,
            v: machine.noise(3, cached, T::from_f32)?,
            out: machine.zeros(rows * shape.out_cols())?,
            workspace: machine.zeros(workspace)?,
        }))
    }
}

impl<R: Runtime, T: Half> Prepared for Operands<'_, R, T> {
    fn launch(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        self.machine.kernels.joint_attention(
            stream,
            &JointAttention {
                pass: &self.pass,
                masks: true,
                qkv: runtime.view(stream, &self.qkv).into(),
                cache: PagedKv {
                    k: runtime.view(stream, &self.k),
                    v: runtime.view(stream, &self.v),
                    k_strides: self.strides,
                    v_strides: self.strides,
                },
                out: runtime.view_mut(stream, &mut self.out),
                lse: None,
                workspace: runtime.view_mut(stream, &mut self.workspace),
                shape: self.shape,
                split: self.split,
                scores: ScoreChanges::default(),
                error: None,
            },
        )
    }
}
