//! Tests that the captured launches of a step serve every step with the same number of rows: everything that changes
//! from step to step (positions, pages, groups, logits, seeds) is read from device memory. On a GPU the capture is a
//! CUDA graph; the SIMT emulator repeats recorded launches.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::attention::{JointAttention, attention_workspace_len};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{KvStrides, PagedKv, PagedKvMut, Paging, PassTables, ScoreChanges};
use flexdraft::layout::{AttentionShape, GroupSet, Pass, RowKind, SequenceRows};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{Element, SimtOptions};
use flexdraft::sampling::SamplingParams;
use half::bf16;
use proptest::prelude::*;

use crate::any_runtime::{AnyRuntime, AnyStream};
use crate::processors::{Bench, Operand, processors};
use crate::support::gpu::gpu_for_a_capture;
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

/// A generated step: the position of candidate 0 and the two mask groups of each sequence.
#[derive(Clone, Debug)]
struct Step {
    sequences: [(usize, [usize; 2]); BATCH],
    seed: u64,
    /// The id of the first page of each sequence.
    pages: [u32; BATCH],
    rules: [Rule; BATCH],
}

/// The longest step that the captured launches must serve.
const FIRST: Step =
    Step { sequences: [(LONGEST, [0, 2]); BATCH], seed: 1, pages: [0, 32], rules: [Rule::Match; BATCH] };

fn step() -> impl Strategy<Value = Step> {
    let sequence = || (0..LONGEST, prop::sample::subsequence(vec![0usize, 1, 2], 2));
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

/// The operands of a whole step: of a layer, of sampling and acceptance, and of drafting the next block: from groups of
/// the pass, and in a separate pass that follows the verdicts.
struct Operands {
    tables: PassTables<AnyRuntime>,
    cos_sin: Operand<f32>,
    qkv: Operand<bf16>,
    k: Operand<bf16>,
    v: Operand<bf16>,
    attended: Operand<bf16>,
    attention_workspace: Operand<f32>,
    logits: Operand<f32>,
    ways: Operand<RowSampling>,
    requests: Operand<Verify>,
    tokens: Operand<i32>,
    stats: Operand<RowStats>,
    workspace: Operand<f32>,
    accept_workspace: Operand<f32>,
    arrived: Operand<u32>,
    verdicts: Operand<Verdict>,
    committed: Operand<i32>,
    /// The draft logits that the last step drew its draft from, and the draft logits of the next block.
    last_logits: Operand<f32>,
    last_ways: Operand<RowSampling>,
    last_stats: Operand<RowStats>,
    next_logits: Operand<f32>,
    next_ways: Operand<RowSampling>,
    next_stats: Operand<RowStats>,
    drafts: Operand<Draft>,
    /// The outputs of the kernel that selects the next draft. Per draft: bonus token and start; per draft row: its row
    /// in the pass, and the draft row itself (both −1 if the accepted length has no group).
    selected: [Operand<i32>; 4],
    gathered: Operand<bf16>,
    embedded: Operand<bf16>,
    u: Operand<bf16>,
    w2: Operand<bf16>,
    apart: PassTables<AnyRuntime>,
    apart_turns: Operand<f32>,
    followed: Operand<i32>,
    inv_freq: Operand<f32>,
    error: Operand<u32>,
}

const ROWS: usize = BATCH * (CANDIDATES + 2 * SLOTS);
const LOGIT_ROWS: usize = BATCH * CANDIDATES;
const DRAFT_ROWS: usize = BATCH * DRAFTED;

impl Operands {
    fn new(bench: &Bench) -> Self {
        fn zeros<T: Element>(bench: &Bench, len: usize) -> Operand<T> {
            bench.memory(&vec![T::zeroed(); len])
        }
        let cached = PAGING.pages * PAGING.page_size * SHAPE.kv_heads * SHAPE.head_dim;
        let tables = || PassTables::new(bench.runtime(), &bench.stream, BATCH, 32).unwrap();
        let attention_workspace = attention_workspace_len(SHAPE, ROWS, LONGEST + 4, SPLIT).unwrap();
        let inv_freq: Vec<f32> = (0..SHAPE.head_dim / 2).map(|i| 0.5f32.powi(i as i32)).collect();
        Operands {
            tables: tables(),
            cos_sin: zeros(bench, ROWS * SHAPE.head_dim),
            qkv: zeros(bench, ROWS * SHAPE.qkv_cols()),
            k: zeros(bench, cached),
            v: zeros(bench, cached),
            attended: zeros(bench, ROWS * SHAPE.out_cols()),
            attention_workspace: zeros(bench, attention_workspace),
            logits: zeros(bench, LOGIT_ROWS * STRIDE),
            ways: zeros(bench, LOGIT_ROWS),
            requests: zeros(bench, BATCH),
            tokens: zeros(bench, BATCH * (CANDIDATES - 1)),
            stats: zeros(bench, LOGIT_ROWS),
            workspace: zeros(bench, workspace_len(LOGIT_ROWS, VOCAB, true).unwrap()),
            accept_workspace: zeros(bench, accept_workspace_len(BATCH, VOCAB).unwrap()),
            arrived: zeros(bench, BATCH),
            verdicts: zeros(bench, BATCH),
            committed: zeros(bench, BATCH * MAX_COMMITTED),
            last_logits: zeros(bench, DRAFT_ROWS * STRIDE),
            last_ways: zeros(bench, DRAFT_ROWS),
            last_stats: zeros(bench, DRAFT_ROWS),
            next_logits: zeros(bench, DRAFT_ROWS * STRIDE),
            next_ways: zeros(bench, DRAFT_ROWS),
            next_stats: zeros(bench, DRAFT_ROWS),
            drafts: zeros(bench, BATCH),
            selected: [BATCH, BATCH, DRAFT_ROWS, DRAFT_ROWS].map(|len| zeros(bench, len)),
            gathered: zeros(bench, DRAFT_ROWS * SHAPE.out_cols()),
            embedded: zeros(bench, BATCH * RANK),
            u: zeros(bench, DRAFT_ROWS * RANK),
            w2: bench.memory(&halves(9, VOCAB * RANK)),
            apart: tables(),
            apart_turns: zeros(bench, BATCH * SLOTS * SHAPE.head_dim),
            followed: bench.memory(&[0, 1]),
            inv_freq: bench.memory(&inv_freq),
            error: zeros(bench, 1),
        }
    }

    /// Writes the inputs of a step in place, as the host and the preceding kernels would.
    fn fill(&mut self, bench: &Bench, step: &Step) {
        let (runtime, stream) = (bench.runtime(), &bench.stream);
        let pages = step.pages.map(|first| (first..first + 26).collect::<Vec<u32>>());
        let sequences = step.sequences.iter().zip(&pages).map(|((start, groups), pages)| SequenceRows {
            pages,
            start: *start,
            candidates: CANDIDATES,
            groups: groups.to_vec(),
            slots: SLOTS,
        });
        self.tables.upload(runtime, stream, &Pass { sequences: sequences.collect() }, PAGING).unwrap();
        let apart = step.sequences.iter().zip(&pages).map(|((start, _), pages)| SequenceRows {
            pages,
            start: *start,
            candidates: 0,
            groups: vec![CANDIDATES - 1],
            slots: SLOTS,
        });
        self.apart.upload(runtime, stream, &Pass { sequences: apart.collect() }, PAGING).unwrap();
        for (i, values) in (0..).zip([&mut self.qkv, &mut self.k, &mut self.v, &mut self.u]) {
            bench.write(&halves(step.seed ^ i, values.len()), values, 0);
        }
        for (i, logits) in (5..).zip([&mut self.logits, &mut self.last_logits, &mut self.next_logits]) {
            bench.write(&noise(step.seed ^ i, logits.len()), logits, 0);
        }
        let (mut ways, mut last_ways, mut next_ways) = (vec![], vec![], vec![]);
        let (mut requests, mut drafts) = (vec![], vec![]);
        let params = SamplingParams::at_temperature(0.8);
        for (i, (start, groups)) in step.sequences.iter().enumerate() {
            for row in 0..CANDIDATES {
                let numbers = Stream::target_draw(step.seed, start + row + 1);
                ways.push(RowSampling::new(&params, Some(numbers)).unwrap());
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
            requests.push(Verify::new(&request).unwrap());
            drafts.push(
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
                last_ways.push(RowSampling::new(&params, None).unwrap());
                let numbers = Stream::new(step.seed, Purpose::DraftDraw, slot, 0);
                let way = RowSampling::new(&params, Some(numbers)).unwrap();
                next_ways.push(way.relative_to(i as u32));
            }
        }
        bench.write(&ways, &mut self.ways, 0);
        bench.write(&last_ways, &mut self.last_ways, 0);
        bench.write(&next_ways, &mut self.next_ways, 0);
        bench.write(&requests, &mut self.requests, 0);
        bench.write(&drafts, &mut self.drafts, 0);
        let tokens = noise(step.seed ^ 4, self.tokens.len()).into_iter().map(|x| (x * 100.0) as i32 + 300);
        bench.write(&tokens.collect::<Vec<_>>(), &mut self.tokens, 0);
        bench.write(&[0; BATCH], &mut self.arrived, 0);
    }

    fn launch(&mut self, bench: &Bench) {
        let Bench { kernels, stream } = bench;
        let strides = KvStrides::token_major(PAGING.page_size, SHAPE.kv_heads, SHAPE.head_dim);
        kernels
            .rope_table(
                stream,
                &RopeTable {
                    pass: &self.tables,
                    inv_freq: bench.view(&self.inv_freq),
                    scale: 1.0,
                    cos_sin: bench.view_mut(&mut self.cos_sin),
                },
            )
            .unwrap();
        for kind in [RowKind::Candidates, RowKind::Masks] {
            kernels
                .norm_rope_append(
                    stream,
                    &NormRopeAppend {
                        pass: &self.tables,
                        kind,
                        qkv: bench.view_mut(&mut self.qkv).into(),
                        cos_sin: bench.view(&self.cos_sin),
                        norms: None,
                        eps: 1e-6,
                        cache: PagedKvMut {
                            k: bench.view_mut(&mut self.k),
                            v: bench.view_mut(&mut self.v),
                            k_strides: strides,
                            v_strides: strides,
                        },
                        shape: SHAPE,
                        error: Some(bench.view_mut(&mut self.error)),
                    },
                )
                .unwrap();
        }
        kernels
            .joint_attention(
                stream,
                &JointAttention {
                    pass: &self.tables,
                    masks: true,
                    qkv: bench.view(&self.qkv).into(),
                    cache: PagedKv {
                        k: bench.view(&self.k),
                        v: bench.view(&self.v),
                        k_strides: strides,
                        v_strides: strides,
                    },
                    out: bench.view_mut(&mut self.attended),
                    lse: None,
                    workspace: bench.view_mut(&mut self.attention_workspace),
                    shape: SHAPE,
                    split: SPLIT,
                    scores: ScoreChanges::default(),
                    error: Some(bench.view_mut(&mut self.error)),
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
                logits: LogitRows::Read(bench.view(logits)),
                logit_index: None,
                sampling: bench.view(ways),
                starts: None,
                draft: None,
                calibration: None,
                workspace: bench.view_mut(&mut self.workspace),
                stats: bench.view_mut(stats),
                error: Some(bench.view_mut(&mut self.error)),
            };
            kernels.sample(stream, sample).unwrap();
        }
        kernels
            .accept(
                stream,
                &Accept {
                    vocab: VOCAB,
                    stride: STRIDE,
                    sequences: bench.view(&self.requests),
                    target_partials: None,
                    any_block: true,
                    tokens: bench.view(&self.tokens),
                    target: SampledRows { logits: bench.view(&self.logits), stats: bench.view(&self.stats) },
                    draft: Some(DraftDistributions {
                        logits: Some(bench.view(&self.last_logits)),
                        chosen: None,
                        stats: bench.view(&self.last_stats),
                    }),
                    workspace: bench.view_mut(&mut self.accept_workspace),
                    arrived: bench.view_mut(&mut self.arrived),
                    verdicts: bench.view_mut(&mut self.verdicts),
                    committed: bench.view_mut(&mut self.committed),
                    error: Some(bench.view_mut(&mut self.error)),
                },
            )
            .unwrap();
        self.launch_drafting(bench);
    }

    fn launch_drafting(&mut self, bench: &Bench) {
        let Bench { kernels, stream } = bench;
        let [bonus, starts, sources, draft_rows] = &mut self.selected;
        let select = SelectDrafts {
            drafts: bench.view(&self.drafts),
            verdicts: bench.view(&self.verdicts),
            bonus: bench.view_mut(bonus),
            starts: bench.view_mut(starts),
            sources: bench.view_mut(sources),
            draft_rows: bench.view_mut(draft_rows),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.select_drafts(stream, &select).unwrap();
        drop(select);
        let gather = Gather {
            indices: bench.view(sources),
            x: bench.view(&self.attended),
            out: bench.view_mut(&mut self.gathered),
            error: None,
            cols: SHAPE.out_cols(),
        };
        kernels.gather(stream, &gather).unwrap();
        drop(gather);
        let embed = Embed {
            ids: bench.view(bonus),
            table: bench.view(&self.w2),
            out: bench.view_mut(&mut self.embedded),
            error: Some(bench.view_mut(&mut self.error)),
            cols: RANK,
        };
        kernels.embed(stream, &embed).unwrap();
        drop(embed);
        let sample = Sample {
            vocab: VOCAB,
            stride: STRIDE,
            logits: LogitRows::Update(bench.view_mut(&mut self.next_logits)),
            logit_index: Some(bench.view(draft_rows)),
            sampling: bench.view(&self.next_ways),
            starts: Some(bench.view(starts)),
            draft: None,
            calibration: Some(Calibration {
                rank: RANK,
                hidden: bench.view(&self.u).into(),
                weight: bench.view(&self.w2).into(),
                bias: None,
            }),
            workspace: bench.view_mut(&mut self.workspace),
            stats: bench.view_mut(&mut self.next_stats),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.sample(stream, sample).unwrap();
        let follow = FollowVerdicts {
            pass: &mut self.apart,
            sequences: bench.view(&self.followed),
            verdicts: bench.view(&self.verdicts),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.follow_verdicts(stream, follow).unwrap();
        let table = RopeTable {
            pass: &self.apart,
            inv_freq: bench.view(&self.inv_freq),
            scale: 1.0,
            cos_sin: bench.view_mut(&mut self.apart_turns),
        };
        kernels.rope_table(stream, &table).unwrap();
    }

    /// Returns the bytes of all outputs of the step.
    fn bits(&self, bench: &Bench) -> Vec<Vec<u8>> {
        fn bytes<T: Element>(bench: &Bench, operand: &Operand<T>) -> Vec<u8> {
            bytemuck::cast_slice(&bench.host(operand)).to_vec()
        }
        assert_eq!(bench.host(&self.error), [0]);
        let mut bits: Vec<Vec<u8>> = self.selected.iter().map(|table| bytes(bench, table)).collect();
        let halves = [&self.attended, &self.qkv, &self.k, &self.gathered, &self.embedded];
        bits.extend(halves.map(|operand| bytes(bench, operand)));
        bits.extend([&self.next_logits, &self.apart_turns].map(|operand| bytes(bench, operand)));
        bits.extend([bytes(bench, &self.verdicts), bytes(bench, &self.committed)]);
        bits.push(bytes(bench, &self.next_stats));
        bits
    }

    /// Captures the launches of a step, and returns a function that launches them again.
    fn capture<'a>(&mut self, bench: &'a Bench) -> Box<dyn Fn() + 'a> {
        if let Some(simt) = bench.emulator() {
            simt.record();
            self.launch(bench);
            let recording = simt.take_recording();
            // A step has at least 17 launches, and one more if attention has to merge splits.
            assert!(recording.len() >= 17, "{}", recording.len());
            // SAFETY: the test calls this only while the operands exist, filled in place and borrowed by nothing.
            return Box::new(move || unsafe { simt.replay(&recording) }.unwrap());
        }
        let AnyStream::Gpu(stream) = &bench.stream else { panic!("a stream of cudarc's is captured") };
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        self.launch(bench);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        Box::new(move || graph.launch().unwrap())
    }
}

proptest! {
    #![proptest_config(properties(4))]

    #[test]
    fn launches_made_for_one_step_serve_the_next(steps in prop::collection::vec(step(), 1..4)) {
        gpu_for_a_capture();
        for processor in processors() {
            let options = SimtOptions { checking: checking(Checking::Off), ..SimtOptions::default() };
            let bench = Bench::on(processor, options);
            let mut captured = Operands::new(&bench);
            captured.fill(&bench, &FIRST);
            let launch_again = captured.capture(&bench);
            let mut outputs = Vec::new();
            for step in &steps {
                captured.fill(&bench, step);
                launch_again();
                let mut anew = Operands::new(&bench);
                anew.fill(&bench, step);
                anew.launch(&bench);
                let found = captured.bits(&bench);
                prop_assert!(found == anew.bits(&bench), "{step:?}");
                outputs.push(found);
            }
            // Steps with other inputs give other outputs, so the comparison can fail.
            prop_assert!(outputs.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
