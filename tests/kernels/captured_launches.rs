//! Captured launches of a step in a CUDA graph: captured once, they serve every step with the same number of rows.
//! Everything that changes from step to step (positions, pages, groups, logits, seeds) is read from device memory.

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::glue::{Embed, Gather, NormRopeAppend, RopeTable};
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{Kernels, KvStrides, PagedKv, PagedKvMut, Paging, PassTables};
use flexdraft::layout::{AttentionShape, GroupSet, Pass, RowKind, SequenceRows};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use half::bf16;
use proptest::prelude::*;

use crate::support::noise::{halves, noise};
use crate::support::properties::properties;
use crate::support::simt_variant::checking;

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 64 };
const PAGING: Paging = Paging { pages: 64, page_size: 32 };
const CANDIDATES: usize = 3;
const SLOTS: usize = 4;
const BATCH: usize = 2;
const SPLIT: usize = 64;
const LONGEST: usize = 800;
const VOCAB: usize = 1500;
const STRIDE: usize = VOCAB.next_multiple_of(8);
const RANK: usize = 16;
const DRAFTED: usize = SLOTS - 1;

/// A step: the position of candidate 0 and the two groups of each sequence.
#[derive(Clone, Debug)]
struct Step {
    sequences: [(usize, [usize; 2]); BATCH],
    seed: u64,
    /// The first page of each sequence.
    pages: [u32; BATCH],
    rules: [Rule; BATCH],
}

/// The longest step that the captured launches must serve.
const FIRST: Step =
    Step { sequences: [(LONGEST, [0, 3]); BATCH], seed: 1, pages: [0, 32], rules: [Rule::Match; BATCH] };

fn step() -> impl Strategy<Value = Step> {
    let sequence = || (0..LONGEST, prop::sample::subsequence(vec![0usize, 1, 2, 3], 2));
    let rule = || prop::sample::select(vec![Rule::Match, Rule::Rejection, Rule::Block]);
    (sequence(), sequence(), any::<u64>(), [0u32..6, 32u32..38], [rule(), rule()]).prop_map(
        |(a, b, seed, pages, rules)| Step {
            sequences: [a, b].map(|(start, groups)| (start, [groups[0], groups[1]])),
            seed,
            pages,
            rules,
        },
    )
}

/// The operands of a layer, of sampling and acceptance, and of drafting the next block: from groups of the pass, and in
/// a separate pass that follows the verdicts.
struct Operands {
    tables: PassTables<Simt>,
    cos_sin: Vec<f32>,
    qkv: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    attended: Vec<bf16>,
    attention_workspace: Vec<u64>,
    logits: Vec<f32>,
    ways: Vec<RowSampling>,
    requests: Vec<Verify>,
    tokens: Vec<i32>,
    stats: Vec<RowStats>,
    workspace: Vec<f32>,
    accept_workspace: Vec<u64>,
    arrived: Vec<u32>,
    verdicts: Vec<Verdict>,
    committed: Vec<i32>,
    /// The draft logits that the last step drew from, and the draft logits of the next block.
    last_logits: Vec<f32>,
    last_ways: Vec<RowSampling>,
    last_stats: Vec<RowStats>,
    next_logits: Vec<f32>,
    next_ways: Vec<RowSampling>,
    next_stats: Vec<RowStats>,
    drafts: Vec<Draft>,
    /// The outputs of the selection. Per draft: bonus token and start; per draft row: its row in the pass, and
    /// the draft row itself (both −1 if the accepted length has no group).
    selected: [Vec<i32>; 4],
    gathered: Vec<bf16>,
    embedded: Vec<bf16>,
    u: Vec<bf16>,
    w2: Vec<bf16>,
    apart: PassTables<Simt>,
    apart_turns: Vec<f32>,
    followed: [i32; BATCH],
    inv_freq: Vec<f32>,
    error: [u32; 1],
}

const ROWS: usize = BATCH * (CANDIDATES + 2 * SLOTS);
const LOGIT_ROWS: usize = BATCH * CANDIDATES;
const DRAFT_ROWS: usize = BATCH * DRAFTED;

impl Operands {
    fn new(kernels: &Kernels<Simt>) -> Self {
        let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
        let cached = PAGING.pages * PAGING.page_size * SHAPE.kv_heads * SHAPE.head_dim;
        let words = attention_workspace_len(SHAPE, ROWS, LONGEST + 4, SPLIT).unwrap().div_ceil(2);
        Operands {
            tables: PassTables::new(simt, &stream, BATCH, 32).unwrap(),
            cos_sin: vec![0.0; ROWS * SHAPE.head_dim],
            qkv: vec![bf16::ZERO; ROWS * SHAPE.qkv_cols()],
            k: vec![bf16::ZERO; cached],
            v: vec![bf16::ZERO; cached],
            attended: vec![bf16::ZERO; ROWS * SHAPE.out_cols()],
            attention_workspace: vec![0; words],
            logits: vec![0.0; LOGIT_ROWS * STRIDE],
            ways: Vec::with_capacity(LOGIT_ROWS),
            requests: Vec::with_capacity(BATCH),
            tokens: vec![0; BATCH * (CANDIDATES - 1)],
            stats: vec![RowStats::zeroed(); LOGIT_ROWS],
            workspace: vec![0.0; workspace_len(LOGIT_ROWS, VOCAB, true).unwrap()],
            accept_workspace: vec![0; accept_workspace_len(BATCH, VOCAB).unwrap().div_ceil(2)],
            arrived: vec![0; BATCH],
            verdicts: vec![Verdict::zeroed(); BATCH],
            committed: vec![0; BATCH * MAX_COMMITTED],
            last_logits: vec![0.0; DRAFT_ROWS * STRIDE],
            last_ways: Vec::with_capacity(DRAFT_ROWS),
            last_stats: vec![RowStats::zeroed(); DRAFT_ROWS],
            next_logits: vec![0.0; DRAFT_ROWS * STRIDE],
            next_ways: Vec::with_capacity(DRAFT_ROWS),
            next_stats: vec![RowStats::zeroed(); DRAFT_ROWS],
            drafts: Vec::with_capacity(BATCH),
            selected: [vec![0; BATCH], vec![0; BATCH], vec![0; DRAFT_ROWS], vec![0; DRAFT_ROWS]],
            gathered: vec![bf16::ZERO; DRAFT_ROWS * SHAPE.out_cols()],
            embedded: vec![bf16::ZERO; BATCH * RANK],
            u: vec![bf16::ZERO; DRAFT_ROWS * RANK],
            w2: halves(9, VOCAB * RANK),
            apart: PassTables::new(simt, &stream, BATCH, 32).unwrap(),
            apart_turns: vec![0.0; BATCH * SLOTS * SHAPE.head_dim],
            followed: [0, 1],
            inv_freq: (0..SHAPE.head_dim / 2).map(|i| 0.5f32.powi(i as i32)).collect(),
            error: [0],
        }
    }

    /// Writes the inputs of a step in place, as the host and the preceding kernels would.
    fn fill(&mut self, kernels: &Kernels<Simt>, step: &Step) {
        let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
        let pages = step.pages.map(|first| (first..first + 26).collect::<Vec<u32>>());
        let sequences = step.sequences.iter().zip(&pages).map(|((start, groups), pages)| SequenceRows {
            pages,
            start: *start,
            candidates: CANDIDATES,
            groups: groups.to_vec(),
            slots: SLOTS,
        });
        self.tables.upload(simt, &stream, &Pass { sequences: sequences.collect() }, PAGING).unwrap();
        let apart = step.sequences.iter().zip(&pages).map(|((start, _), pages)| SequenceRows {
            pages,
            start: *start,
            candidates: 0,
            groups: vec![CANDIDATES - 1],
            slots: SLOTS,
        });
        self.apart.upload(simt, &stream, &Pass { sequences: apart.collect() }, PAGING).unwrap();
        for (i, values) in (0..).zip([&mut self.qkv, &mut self.k, &mut self.v, &mut self.u]) {
            let fresh = halves(step.seed ^ i, values.len());
            values.copy_from_slice(&fresh);
        }
        for (i, logits) in (5..).zip([&mut self.logits, &mut self.last_logits, &mut self.next_logits]) {
            let fresh = noise(step.seed ^ i, logits.len());
            logits.copy_from_slice(&fresh);
        }
        for ways in [&mut self.ways, &mut self.last_ways, &mut self.next_ways] {
            ways.clear();
        }
        self.requests.clear();
        self.drafts.clear();
        let params = SamplingParams::at_temperature(0.8);
        for (i, (start, groups)) in step.sequences.iter().enumerate() {
            for row in 0..CANDIDATES {
                let numbers = Stream::target_draw(step.seed, start + row + 1);
                self.ways.push(RowSampling::new(&params, Some(numbers)).unwrap());
            }
            let request = VerifySequence {
                rule: step.rules[i],
                seed: step.seed,
                position: *start,
                drafts: CANDIDATES - 1,
                first_target: i * CANDIDATES,
                first_draft: Some(i * DRAFTED),
                first_token: i * (CANDIDATES - 1),
                groups: groups.iter().fold(GroupSet::NONE, |set, &k| set.with(k)),
            };
            self.requests.push(Verify::new(&request).unwrap());
            self.drafts.push(
                Draft::new(&DraftGroups {
                    sequence: i,
                    groups: request.groups,
                    first_slot: BATCH * CANDIDATES + i * groups.len() * SLOTS,
                    slots: SLOTS,
                    first_draft: i * DRAFTED,
                })
                .unwrap(),
            );
            for slot in 1..SLOTS {
                self.last_ways.push(RowSampling::new(&params, None).unwrap());
                let numbers = Stream::new(step.seed, Purpose::DraftDraw, slot, 0);
                let way = RowSampling::new(&params, Some(numbers)).unwrap();
                self.next_ways.push(way.relative_to(i as u32));
            }
        }
        self.tokens
            .iter_mut()
            .zip(noise(step.seed ^ 4, 8))
            .for_each(|(token, x)| *token = (x * 100.0) as i32 + 300);
        self.arrived.fill(0);
    }

    fn launch(&mut self, kernels: &Kernels<Simt>) {
        let stream = kernels.runtime().stream();
        let strides = KvStrides::token_major(PAGING.page_size, SHAPE.kv_heads, SHAPE.head_dim);
        kernels
            .rope_table(
                &stream,
                &RopeTable {
                    pass: &self.tables,
                    inv_freq: stream.view(&self.inv_freq),
                    scale: 1.0,
                    cos_sin: stream.view_mut(&mut self.cos_sin),
                },
            )
            .unwrap();
        for kind in [RowKind::Candidates, RowKind::Masks] {
            kernels
                .norm_rope_append(
                    &stream,
                    &NormRopeAppend {
                        pass: &self.tables,
                        kind,
                        qkv: stream.view_mut(&mut self.qkv),
                        cos_sin: stream.view(&self.cos_sin),
                        norms: None,
                        eps: 1e-6,
                        cache: PagedKvMut {
                            k: stream.view_mut(&mut self.k),
                            v: stream.view_mut(&mut self.v),
                            k_strides: strides,
                            v_strides: strides,
                        },
                        shape: SHAPE,
                        error: Some(stream.view_mut(&mut self.error)),
                    },
                )
                .unwrap();
        }
        kernels
            .joint_attention(
                &stream,
                &JointAttention {
                    pass: &self.tables,
                    masks: true,
                    qkv: stream.view(&self.qkv),
                    cache: PagedKv {
                        k: stream.view(&self.k),
                        v: stream.view(&self.v),
                        k_strides: strides,
                        v_strides: strides,
                    },
                    out: stream.view_mut(&mut self.attended),
                    lse: None,
                    workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut self.attention_workspace)),
                    shape: SHAPE,
                    split: SPLIT,
                    error: Some(stream.view_mut(&mut self.error)),
                },
            )
            .unwrap();
        let plain = [
            (&self.logits, &self.ways, &mut self.stats),
            (&self.last_logits, &self.last_ways, &mut self.last_stats),
        ];
        for (logits, ways, stats) in plain {
            let sample = Sample {
                vocab: VOCAB,
                stride: STRIDE,
                logits: LogitRows::Read(stream.view(logits)),
                logit_index: None,
                sampling: stream.view(ways),
                starts: None,
                draft: None,
                calibration: None,
                workspace: stream.view_mut(&mut self.workspace),
                stats: stream.view_mut(stats),
                error: Some(stream.view_mut(&mut self.error)),
            };
            kernels.sample(&stream, sample).unwrap();
        }
        kernels
            .accept(
                &stream,
                &Accept {
                    vocab: VOCAB,
                    stride: STRIDE,
                    sequences: stream.view(&self.requests),
                    target_partials: None,
                    any_block: true,
                    tokens: stream.view(&self.tokens),
                    target: SampledRows {
                        logits: stream.view(&self.logits),
                        stats: stream.view(&self.stats),
                    },
                    draft: Some(SampledRows {
                        logits: stream.view(&self.last_logits),
                        stats: stream.view(&self.last_stats),
                    }),
                    workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut self.accept_workspace)),
                    arrived: stream.view_mut(&mut self.arrived),
                    verdicts: stream.view_mut(&mut self.verdicts),
                    committed: stream.view_mut(&mut self.committed),
                    error: Some(stream.view_mut(&mut self.error)),
                },
            )
            .unwrap();
        self.launch_drafting(kernels);
    }

    fn launch_drafting(&mut self, kernels: &Kernels<Simt>) {
        let stream = kernels.runtime().stream();
        let [bonus, starts, sources, draft_rows] = &mut self.selected;
        let select = SelectDrafts {
            drafts: stream.view(&self.drafts),
            verdicts: stream.view(&self.verdicts),
            bonus: stream.view_mut(bonus),
            starts: stream.view_mut(starts),
            sources: stream.view_mut(sources),
            draft_rows: stream.view_mut(draft_rows),
            error: Some(stream.view_mut(&mut self.error)),
        };
        kernels.select_drafts(&stream, &select).unwrap();
        drop(select);
        let gather = Gather {
            indices: stream.view(sources),
            x: stream.view(&self.attended),
            out: stream.view_mut(&mut self.gathered),
            error: None,
            cols: SHAPE.out_cols(),
        };
        kernels.gather(&stream, &gather).unwrap();
        drop(gather);
        let embed = Embed {
            ids: stream.view(bonus),
            table: stream.view(&self.w2),
            out: stream.view_mut(&mut self.embedded),
            error: Some(stream.view_mut(&mut self.error)),
            cols: RANK,
        };
        kernels.embed(&stream, &embed).unwrap();
        drop(embed);
        let sample = Sample {
            vocab: VOCAB,
            stride: STRIDE,
            logits: LogitRows::Update(stream.view_mut(&mut self.next_logits)),
            logit_index: Some(stream.view(draft_rows)),
            sampling: stream.view(&self.next_ways),
            starts: Some(stream.view(starts)),
            draft: None,
            calibration: Some(Calibration {
                rank: RANK,
                hidden: stream.view(&self.u),
                weight: stream.view(&self.w2),
                bias: None,
            }),
            workspace: stream.view_mut(&mut self.workspace),
            stats: stream.view_mut(&mut self.next_stats),
            error: Some(stream.view_mut(&mut self.error)),
        };
        kernels.sample(&stream, sample).unwrap();
        let follow = FollowVerdicts {
            pass: &mut self.apart,
            sequences: stream.view(&self.followed),
            verdicts: stream.view(&self.verdicts),
            error: Some(stream.view_mut(&mut self.error)),
        };
        kernels.follow_verdicts(&stream, follow).unwrap();
        let table = RopeTable {
            pass: &self.apart,
            inv_freq: stream.view(&self.inv_freq),
            scale: 1.0,
            cos_sin: stream.view_mut(&mut self.apart_turns),
        };
        kernels.rope_table(&stream, &table).unwrap();
    }

    /// Returns the bytes of all outputs.
    fn bits(&self) -> [Vec<u8>; 11] {
        assert_eq!(self.error, [0]);
        [
            bytemuck::cast_slice(&self.attended).to_vec(),
            bytemuck::cast_slice(&self.qkv).to_vec(),
            bytemuck::cast_slice(&self.k).to_vec(),
            bytemuck::cast_slice(&self.verdicts).to_vec(),
            bytemuck::cast_slice(&self.committed).to_vec(),
            bytemuck::cast_slice(&self.next_logits).to_vec(),
            bytemuck::cast_slice(&self.next_stats).to_vec(),
            bytemuck::cast_slice(&self.selected.concat()).to_vec(),
            bytemuck::cast_slice(&self.gathered).to_vec(),
            bytemuck::cast_slice(&self.embedded).to_vec(),
            bytemuck::cast_slice(&self.apart_turns).to_vec(),
        ]
    }
}

proptest! {
    #![proptest_config(properties(4))]

    #[test]
    fn launches_made_for_one_step_serve_the_next(steps in prop::collection::vec(step(), 1..4)) {
        let options = SimtOptions { checking: checking(Checking::Off), ..SimtOptions::default() };
        let kernels = Kernels::new(Simt::new(options));
        let mut captured = Operands::new(&kernels);
        captured.fill(&kernels, &FIRST);
        kernels.runtime().record();
        captured.launch(&kernels);
        let recording = kernels.runtime().take_recording();
        // Attention with a merge is one more launch.
        prop_assert!(recording.len() >= 17, "{}", recording.len());
        for step in &steps {
            captured.fill(&kernels, step);
            // SAFETY: the operands are the operands that `captured` was recorded with, filled in place and borrowed by
            // nothing.
            unsafe { kernels.runtime().replay(&recording) }.unwrap();
            let mut anew = Operands::new(&kernels);
            anew.fill(&kernels, step);
            anew.launch(&kernels);
            prop_assert!(captured.bits() == anew.bits(), "{step:?}");
        }
    }
}
