//! Benchmark cases of acceptance: the scan over a batch's draft tokens, by each rule.

use std::marker::PhantomData;

use flexdraft::acceptance::Rule;
use flexdraft::kernels::KernelError;
use flexdraft::kernels::acceptance::{
    Accept, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::sampling::{LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::layout::GroupSet;
use flexdraft::random::Purpose;
use flexdraft::runtime::Runtime;
use half::bf16;
use serde::Serialize;

use super::sampling::{Stored, way};
use super::{Case, Prepared};
use crate::floor::{self, Floor, Scan};
use crate::machine::Machine;

/// A benchmark case of acceptance with `drafts` draft tokens for each of `batch` sequences; half of the draft tokens are
/// accepted.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Acceptance<L = f32> {
    pub batch: usize,
    pub drafts: usize,
    pub vocab: usize,
    /// The acceptance rule: `match`, `rejection` or `block`.
    pub rule: &'static str,
    #[serde(skip)]
    pub logits: PhantomData<L>,
}

/// Number of vocabulary ids that are searched for a token that the rule certainly accepts or certainly rejects.
const LOOKED_AT: usize = 4096;

impl Acceptance {
    /// Returns the cases with Qwen3-8B's vocabulary, for batches of 1 to 64.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for rule in ["match", "rejection", "block"] {
            for batch in [1, 4, 16, 64] {
                let case = |drafts| Acceptance { batch, drafts, vocab: 151_936, rule, logits: PhantomData };
                all.extend([4, 15].map(case));
            }
        }
        all
    }
}

impl Acceptance<bf16> {
    /// Returns cases of the rules `rejection` and `block` with bf16 logits.
    pub fn of_bf16() -> Vec<Self> {
        ["rejection", "block"]
            .map(|rule| Acceptance { batch: 16, drafts: 15, vocab: 151_936, rule, logits: PhantomData })
            .to_vec()
    }
}

impl<L> Acceptance<L> {
    fn rule(&self) -> Rule {
        match self.rule {
            "match" => Rule::Match,
            "rejection" => Rule::Rejection,
            _ => Rule::Block,
        }
    }
}

/// Rows of logits with the statistics that sampling computed for each row.
struct Rows<R: Runtime, L: Stored> {
    logits: R::Memory<L>,
    stats: R::Memory<RowStats>,
}

struct Operands<'a, R: Runtime, L: Stored> {
    machine: &'a Machine<R>,
    vocab: usize,
    stride: usize,
    block: bool,
    sequences: R::Memory<Verify>,
    tokens: R::Memory<i32>,
    target: Rows<R, L>,
    draft: Rows<R, L>,
    workspace: R::Memory<f32>,
    arrived: R::Memory<u32>,
    verdicts: R::Memory<Verdict>,
    committed: R::Memory<i32>,
}

/// Returns random rows of logits with the statistics that sampling computes.
fn sampled<R: Runtime, L: Stored>(
    machine: &Machine<R>,
    seed: u64,
    rows: usize,
    vocab: usize,
    purpose: Purpose,
) -> Result<Rows<R, L>, KernelError> {
    let (runtime, stream) = (machine.kernels.runtime(), &machine.stream);
    let stride = vocab.next_multiple_of(8);
    let logits = machine.noise(seed, rows * stride, L::from_f32)?;
    let ways: Vec<RowSampling> = (0..rows).map(|row| way(row, purpose, false)).collect();
    let ways = machine.memory(&ways)?;
    let mut workspace = machine.zeros(workspace_len(rows, vocab, false)?)?;
    let mut stats = machine.zeros(rows)?;
    machine.kernels.sample(
        stream,
        Sample {
            vocab,
            stride,
            logits: LogitRows::Read(runtime.view(stream, &logits)),
            logit_index: None,
            sampling: runtime.view(stream, &ways),
            starts: None,
            draft: None,
            calibration: None,
            workspace: runtime.view_mut(stream, &mut workspace),
            stats: runtime.view_mut(stream, &mut stats),
            error: None,
        },
    )?;
    Ok(Rows { logits, stats })
}

impl<L: Stored> Case for Acceptance<L> {
    fn kernel(&self) -> &'static str {
        match L::NAME {
            "f32" => "accept",
            "bf16" => "accept_bf16",
            _ => "accept_f16",
        }
    }

    fn floor(&self) -> Floor {
        let scan = match self.rule() {
            Rule::Match => Scan::Statistics,
            Rule::Rejection => Scan::Rejection,
            Rule::Block => Scan::Block,
        };
        floor::acceptance(
            self.batch as u64,
            self.drafts as u64,
            self.vocab as u64,
            size_of::<L>() as u64,
            scan,
        )
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let (runtime, stream) = (machine.kernels.runtime(), &machine.stream);
        let Acceptance { batch, drafts, vocab, .. } = *self;
        let stride = vocab.next_multiple_of(8);
        let target_rows = batch * (drafts + 1);
        let target = sampled::<R, L>(machine, 1, target_rows, vocab, Purpose::TargetDraw)?;
        let draft = sampled::<R, L>(machine, 2, batch * drafts, vocab, Purpose::DraftDraw)?;
        let mut target_stats = vec![RowStats::default(); target_rows];
        runtime.download(stream, &target.stats, 0, &mut target_stats)?;

        let mut tokens = Vec::new();
        let looked_at = vocab.min(LOOKED_AT);
        let (mut p, mut q) = (vec![L::zeroed(); looked_at], vec![L::zeroed(); looked_at]);
        for sequence in 0..batch {
            for i in 0..drafts {
                let row = sequence * (drafts + 1) + i;
                runtime.download(stream, &target.logits, row * stride, &mut p)?;
                runtime.download(stream, &draft.logits, (sequence * drafts + i) * stride, &mut q)?;
                // The vocabulary ids whose logits differ most between target and draft, in either direction.
                let gain = |id: &usize| {
                    let (p, q): (f32, f32) = (p[*id].into(), q[*id].into());
                    p - q
                };
                let by_gain = |a: &usize, b: &usize| gain(a).total_cmp(&gain(b));
                let accepted = i < drafts / 2;
                let token = match (self.rule(), accepted) {
                    (Rule::Match, true) => target_stats[row].token,
                    (Rule::Match, false) => (target_stats[row].token + 1) % vocab as i32,
                    (_, true) => (0..looked_at).max_by(by_gain).unwrap_or(0) as i32,
                    (_, false) => (0..looked_at).min_by(by_gain).unwrap_or(0) as i32,
                };
                tokens.push(token);
            }
        }
        let sequence = |i: usize| VerifySequence {
            rule: self.rule(),
            seed: 9,
            position: 100,
            drafts,
            first_target: i * (drafts + 1),
            first_draft: Some(i * drafts),
            first_token: i * drafts,
            groups: GroupSet::all(drafts),
        };
        let sequences =
            (0..batch).map(|i| Verify::new(&sequence(i))).collect::<Result<Vec<Verify>, KernelError>>()?;
        let workspace = accept_workspace_len(batch, vocab)
            .ok_or(KernelError::Overflow { kernel: "accept", what: "workspace" })?;
        Ok(Box::new(Operands {
            machine,
            vocab,
            stride,
            block: self.rule() == Rule::Block,
            sequences: machine.memory(&sequences)?,
            tokens: machine.memory(&tokens)?,
            target,
            draft,
            workspace: machine.zeros(workspace)?,
            arrived: machine.zeros(batch)?,
            verdicts: machine.zeros(batch)?,
            committed: machine.zeros(batch * MAX_COMMITTED)?,
        }))
    }
}

impl<R: Runtime, L: Stored> Prepared for Operands<'_, R, L> {
    fn launch(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        self.machine.kernels.accept(
            stream,
            &Accept {
                vocab: self.vocab,
                stride: self.stride,
                sequences: runtime.view(stream, &self.sequences),
                target_partials: None,
                any_block: self.block,
                tokens: runtime.view(stream, &self.tokens),
                target: SampledRows {
                    logits: runtime.view(stream, &self.target.logits),
                    stats: runtime.view(stream, &self.target.stats),
                },
                draft: Some(DraftDistributions {
                    logits: Some(runtime.view(stream, &self.draft.logits)),
                    chosen: None,
                    stats: runtime.view(stream, &self.draft.stats),
                }),
                workspace: runtime.view_mut(stream, &mut self.workspace),
                arrived: runtime.view_mut(stream, &mut self.arrived),
                verdicts: runtime.view_mut(stream, &mut self.verdicts),
                committed: runtime.view_mut(stream, &mut self.committed),
                error: None,
            },
        )
    }
}
