//! Benchmark cases of the kernels of Chained Calibration: the choice of the most likely ids, the scores of all pairs of
//! neighbouring tokens, and the walk that draws the tokens.

use std::marker::PhantomData;

use flexdraft::kernels::KernelError;
use flexdraft::kernels::chain::{ChainChoose, ChainScore, ChainWalk};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups};
use flexdraft::layout::GroupSet;
use flexdraft::random::Purpose;
use flexdraft::runtime::Runtime;
use serde::Serialize;

use super::sampling::{Stored, way};
use super::{Case, Prepared};
use crate::floor::{self, Floor};
use crate::machine::Machine;

/// Batch sizes of a decode step.
const BATCHES: [usize; 3] = [1, 16, 64];

/// A benchmark case of the kernel `chain_choose`, `chain_score` or `chain_walk`, for `batch` drafts with `slots` slots
/// each.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Chain<L = f32> {
    #[serde(skip)]
    pub kernel: &'static str,
    pub batch: usize,
    pub slots: usize,
    /// The number of chosen ids per slot.
    pub count: usize,
    /// The size of the vocabulary for `chain_choose`, and the elements per factor for `chain_score`.
    pub size: usize,
    #[serde(skip)]
    pub stored: PhantomData<L>,
}

impl Chain {
    /// Returns the cases with the shapes of Qwen3-8B and scores of the kind `pair` with rank 256.
    pub fn all() -> Vec<Self> {
        let over_batches = |(kernel, size)| {
            BATCHES.map(|batch| Chain { kernel, batch, slots: 16, count: 16, size, stored: PhantomData })
        };
        [("chain_choose", 151_936), ("chain_score", 256), ("chain_walk", 0)]
            .into_iter()
            .flat_map(over_batches)
            .collect()
    }
}

impl Chain<half::bf16> {
    /// Returns the cases of scores of the kind `hidden`, whose factors are rows of Qwen3-8B's LM head.
    pub fn of_bf16() -> Vec<Self> {
        let scores = |batch| Chain {
            kernel: "chain_score",
            batch,
            slots: 16,
            count: 16,
            size: 4096,
            stored: PhantomData,
        };
        BATCHES.map(scores).to_vec()
    }
}

struct Operands<'a, R: Runtime, L: Stored> {
    machine: &'a Machine<R>,
    kernel: &'static str,
    batch: usize,
    rows: usize,
    count: usize,
    size: usize,
    /// The logits of `chain_choose`, and the factors of the scored ids of `chain_score`.
    stored: R::Memory<L>,
    partials: R::Memory<f32>,
    before: R::Memory<f32>,
    owners: R::Memory<i32>,
    scores: R::Memory<f32>,
    drafts: R::Memory<Draft>,
    ways: R::Memory<RowSampling>,
    ids: R::Memory<i32>,
    chosen: R::Memory<f32>,
    /// A copy of the logits in `chosen`, from which every walk restores them.
    pristine: R::Memory<f32>,
    stats: R::Memory<RowStats>,
}

impl<L: Stored> Case for Chain<L> {
    fn kernel(&self) -> &'static str {
        match (self.kernel, L::NAME) {
            ("chain_choose", "bf16") => "chain_choose_bf16",
            ("chain_choose", "f16") => "chain_choose_f16",
            ("chain_score", "bf16") => "chain_score_bf16",
            ("chain_score", "f16") => "chain_score_f16",
            (kernel, _) => kernel,
        }
    }

    fn floor(&self) -> Floor {
        let Chain { batch, slots, count, size, .. } = *self;
        let [batch, rows, count, size] = [batch, batch * (slots - 1), count, size].map(|x| x as u64);
        let bytes = size_of::<L>() as u64;
        match self.kernel {
            "chain_choose" => floor::chain_choose(rows, size, bytes, count),
            "chain_score" => floor::chain_score(batch, rows, size, bytes, count),
            _ => floor::chain_walk(batch, rows, count),
        }
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let Chain { kernel, batch, slots, count, size, .. } = *self;
        let rows = batch * (slots - 1);
        let stride = size.next_multiple_of(8).max(8);
        let (chooses, scores) = (kernel == "chain_choose", kernel == "chain_score");
        // Operands of the other kernels are not used, and as short as memory can be.
        let used = |uses: bool, len: usize| if uses { len } else { 1 };
        let draft = |sequence| DraftGroups {
            sequence,
            groups: GroupSet::NONE,
            first_slot: 0,
            slots,
            first_draft: sequence * (slots - 1),
        };
        let drafts = (0..batch).map(|i| Draft::new(&draft(i))).collect::<Result<Vec<_>, _>>()?;
        let owners: Vec<i32> = (0..rows).map(|row| (row / (slots - 1)) as i32).collect();
        let ways: Vec<RowSampling> = (0..rows).map(|row| way(row, Purpose::DraftDraw, false)).collect();
        let ids: Vec<i32> = (0..rows * count).map(|i| (i % count * 5 + i / count) as i32).collect();
        let stored = if chooses { rows * stride } else { used(scores, rows * count * stride) };
        let mut operands = Operands {
            machine,
            kernel,
            batch,
            rows,
            count,
            size,
            stored: machine.noise(1, stored, L::from_f32)?,
            partials: machine.zeros(used(chooses, workspace_len(rows, size, false)?))?,
            before: machine.f32_noise(2, used(scores, (batch + rows * count) * stride))?,
            owners: machine.memory(&owners)?,
            scores: machine.f32_noise(3, rows * count * count)?,
            drafts: machine.memory(&drafts)?,
            ways: machine.memory(&ways)?,
            ids: machine.memory(&ids)?,
            chosen: machine.f32_noise(4, rows * count)?,
            pristine: machine.f32_noise(4, rows * count)?,
            stats: machine.zeros(rows)?,
        };
        if chooses {
            operands.pass_over_logits()?;
        }
        Ok(Box::new(operands))
    }
}

impl<R: Runtime, L: Stored> Operands<'_, R, L> {
    /// Makes the partial results that `chain_choose` reads.
    fn pass_over_logits(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        let args = Sample {
            vocab: self.size,
            stride: self.size.next_multiple_of(8),
            logits: LogitRows::Read(runtime.view(stream, &self.stored)),
            logit_index: None,
            sampling: runtime.view(stream, &self.ways),
            starts: None,
            draft: None,
            calibration: None,
            workspace: runtime.view_mut(stream, &mut self.partials),
            stats: runtime.view_mut(stream, &mut self.stats),
            error: None,
        };
        self.machine.kernels.sample_partials(stream, args)
    }
}

impl<R: Runtime, L: Stored> Prepared for Operands<'_, R, L> {
    fn restore(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        if self.kernel == "chain_walk" {
            let len = self.rows * self.count;
            runtime.copy(stream, &self.pristine, 0..len, &mut self.chosen, 0)?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<(), KernelError> {
        let (kernels, stream) = (&self.machine.kernels, &self.machine.stream);
        let (runtime, count) = (kernels.runtime(), self.count);
        let stride = self.size.next_multiple_of(8);
        match self.kernel {
            "chain_choose" => {
                let args = ChainChoose {
                    vocab: self.size,
                    stride,
                    logits: runtime.view(stream, &self.stored),
                    logit_index: None,
                    partials: runtime.view(stream, &self.partials),
                    calibrated: false,
                    count,
                    ids: runtime.view_mut(stream, &mut self.ids),
                    chosen: runtime.view_mut(stream, &mut self.chosen),
                    error: None,
                };
                kernels.chain_choose(stream, &args)
            }
            "chain_score" => {
                let args = ChainScore {
                    rank: self.size,
                    count,
                    drafts: self.batch,
                    before: runtime.view(stream, &self.before),
                    before_stride: stride,
                    after: runtime.view(stream, &self.stored),
                    after_stride: stride,
                    owners: runtime.view(stream, &self.owners),
                    scores: runtime.view_mut(stream, &mut self.scores),
                    error: None,
                };
                kernels.chain_score(stream, &args)
            }
            _ => {
                let args = ChainWalk {
                    drafts: runtime.view(stream, &self.drafts),
                    logit_index: None,
                    sampling: runtime.view(stream, &self.ways),
                    starts: None,
                    count,
                    ids: runtime.view(stream, &self.ids),
                    scores: runtime.view(stream, &self.scores),
                    chosen: runtime.view_mut(stream, &mut self.chosen),
                    stats: runtime.view_mut(stream, &mut self.stats),
                    error: None,
                };
                kernels.chain_walk(stream, &args)
            }
        }
    }
}
