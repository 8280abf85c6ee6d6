//! Tests that the captured launches from logits to tokens (edits and masks, calibration, warping, chains and acceptance)
//! serve steps with other inputs and fewer sequences.

use std::collections::{BTreeMap, BTreeSet};

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, ChosenRows, DraftDistributions, MAX_COMMITTED, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::chain::{ChainChoose, ChainScore, ChainWalk};
use flexdraft::kernels::sampling::{
    Calibration, EditTables, Edits, LogitEdit, LogitRows, RowEdits, RowSampling, RowStats, Sample,
    workspace_len,
};
use flexdraft::kernels::selection::{Draft, DraftGroups};
use flexdraft::layout::GroupSet;
use flexdraft::processors::{History, LogitProcessors};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::{Element, Runtime, SimtOptions};
use flexdraft::sampling::SamplingParams;
use half::bf16;

use super::on_a_foreign_stream;
use crate::bench::{Bench, Operand};
use crate::noise::{halves, noise};
use crate::process::{succeeds, this_test};

const BATCH: usize = 2;
const CANDIDATES: usize = 4;
const DRAFTED: usize = CANDIDATES - 1;
const TARGET_ROWS: usize = BATCH * CANDIDATES;
const DRAFT_ROWS: usize = BATCH * DRAFTED;
const VOCAB: usize = 2500;
const STRIDE: usize = VOCAB.next_multiple_of(8);
const RANK: usize = 16;
const CHOSEN: usize = 5;
/// Elements of a factor of the chain.
const FACTOR: usize = 8;
/// Upper bounds of the tables of edits, whose lengths differ from step to step.
const EDITS: usize = 64;
const OFFSETS: usize = 16;
const MASK_WORDS: usize = TARGET_ROWS * VOCAB.div_ceil(32);

/// A step: the rule and the sampling parameters of each sequence, and what changes the logits.
struct Step {
    seed: u64,
    sequences: Vec<(Rule, SamplingParams)>,
    processors: LogitProcessors,
    /// Whether each row has a mask of its own, in place of one mask of the sequence.
    masks_by_row: bool,
}

fn steps() -> Vec<Step> {
    let warm = SamplingParams::at_temperature(0.7);
    let truncated = SamplingParams { top_k: 40, top_p: 0.9, min_p: 0.001, ..warm };
    let penalties =
        LogitProcessors { repetition_penalty: 1.3, presence_penalty: 0.4, ..LogitProcessors::default() };
    let masked = LogitProcessors {
        allowed: Some((0..VOCAB.div_ceil(32) as u32).map(|word| !word.wrapping_mul(2_654_435_761)).collect()),
        ..LogitProcessors::default()
    };
    let biased = LogitProcessors {
        logit_bias: BTreeMap::from([(3, 4.0), (1500, -2.0), (2499, 3.5)]),
        bad_words: vec![vec![17], vec![2048]],
        ..LogitProcessors::default()
    };
    let step = |seed, sequences: &[_], processors: &LogitProcessors, masks_by_row| Step {
        seed,
        sequences: sequences.to_vec(),
        processors: processors.clone(),
        masks_by_row,
    };
    vec![
        step(1, &[(Rule::Match, SamplingParams::GREEDY); 2], &LogitProcessors::default(), false),
        step(2, &[(Rule::Rejection, truncated), (Rule::Block, warm)], &masked, false),
        step(3, &[(Rule::Block, truncated)], &penalties, false),
        step(4, &[(Rule::Match, warm), (Rule::Rejection, truncated)], &biased, true),
        step(5, &[(Rule::Block, warm), (Rule::Match, SamplingParams::GREEDY)], &biased, false),
        step(6, &[(Rule::Rejection, warm)], &LogitProcessors::default(), true),
    ]
}

/// The operands of the launches.
struct Operands<R: Runtime> {
    logits: Operand<R, f32>,
    target_index: Operand<R, i32>,
    target_sampling: Operand<R, RowSampling>,
    /// The draft token of each row of the target, or −1.
    row_tokens: Operand<R, i32>,
    row_edits: Operand<R, RowEdits>,
    offsets: Operand<R, i32>,
    edits: Operand<R, LogitEdit>,
    masks: Operand<R, u32>,
    target_workspace: Operand<R, f32>,
    target_stats: Operand<R, RowStats>,
    draft_logits: Operand<R, f32>,
    draft_index: Operand<R, i32>,
    draft_sampling: Operand<R, RowSampling>,
    starts: Operand<R, i32>,
    hidden: Operand<R, bf16>,
    weight: Operand<R, bf16>,
    draft_workspace: Operand<R, f32>,
    draft_stats: Operand<R, RowStats>,
    /// The chain: sequence 1 draws its draft with it.
    chained: Operand<R, Draft>,
    owners: Operand<R, i32>,
    ids: Operand<R, i32>,
    chosen: Operand<R, f32>,
    before: Operand<R, f32>,
    after: Operand<R, f32>,
    scores: Operand<R, f32>,
    requests: Operand<R, Verify>,
    tokens: Operand<R, i32>,
    accept_workspace: Operand<R, f32>,
    arrived: Operand<R, u32>,
    verdicts: Operand<R, Verdict>,
    committed: Operand<R, i32>,
    error: Operand<R, u32>,
}

impl<R: Runtime> Operands<R> {
    fn new(bench: &Bench<R>) -> Self {
        fn zeros<R: Runtime, T: Element>(bench: &Bench<R>, len: usize) -> Operand<R, T> {
            bench.memory(&vec![T::zeroed(); len])
        }
        Self {
            logits: zeros(bench, TARGET_ROWS * STRIDE),
            target_index: zeros(bench, TARGET_ROWS),
            target_sampling: zeros(bench, TARGET_ROWS),
            row_tokens: zeros(bench, TARGET_ROWS),
            row_edits: zeros(bench, TARGET_ROWS),
            offsets: zeros(bench, OFFSETS),
            edits: zeros(bench, EDITS),
            masks: zeros(bench, MASK_WORDS),
            target_workspace: zeros(bench, workspace_len(TARGET_ROWS, VOCAB, false).unwrap()),
            target_stats: zeros(bench, TARGET_ROWS),
            draft_logits: zeros(bench, DRAFT_ROWS * STRIDE),
            draft_index: zeros(bench, DRAFT_ROWS),
            draft_sampling: zeros(bench, DRAFT_ROWS),
            starts: zeros(bench, BATCH),
            hidden: zeros(bench, DRAFT_ROWS * RANK),
            weight: bench.memory(&halves(99, VOCAB * RANK)),
            draft_workspace: zeros(bench, workspace_len(DRAFT_ROWS, VOCAB, true).unwrap()),
            draft_stats: zeros(bench, DRAFT_ROWS),
            chained: zeros(bench, 1),
            owners: bench.memory(&[0, 0, 0, 1, 1, 1]),
            ids: zeros(bench, DRAFT_ROWS * CHOSEN),
            chosen: zeros(bench, DRAFT_ROWS * CHOSEN),
            before: zeros(bench, (BATCH + DRAFT_ROWS * CHOSEN) * FACTOR),
            after: zeros(bench, DRAFT_ROWS * CHOSEN * FACTOR),
            scores: zeros(bench, DRAFT_ROWS * CHOSEN * CHOSEN),
            requests: zeros(bench, BATCH),
            tokens: zeros(bench, DRAFT_ROWS),
            accept_workspace: zeros(bench, accept_workspace_len(BATCH, VOCAB).unwrap()),
            arrived: zeros(bench, BATCH),
            verdicts: zeros(bench, BATCH),
            committed: zeros(bench, BATCH * MAX_COMMITTED),
            error: zeros(bench, 1),
        }
    }

    /// Writes the inputs of a step in place. A sequence beyond the step is padding, and keeps the last step's inputs
    /// where no kernel may read them.
    fn fill(&mut self, bench: &Bench<R>, step: &Step) {
        // The target agrees with the drafter more or less, so sequences accept some tokens and reject others.
        let drafted =
            noise(step.seed, DRAFT_ROWS * STRIDE).into_iter().map(|x| x * x * x).collect::<Vec<_>>();
        let mut logits = noise(step.seed + 100, TARGET_ROWS * STRIDE);
        let mut tokens = vec![0; DRAFT_ROWS];
        let mut row_tokens = vec![-1; TARGET_ROWS];
        let (mut target_index, mut draft_index) = (vec![-1; TARGET_ROWS], vec![-1; DRAFT_ROWS]);
        let unused = RowSampling::new(&SamplingParams::GREEDY, None).unwrap();
        let (mut target_sampling, mut draft_sampling) = (vec![unused; TARGET_ROWS], vec![unused; DRAFT_ROWS]);
        let mut tables = EditTables::new(TARGET_ROWS);
        let mut requests = Vec::new();
        // A kernel that takes the start of another sequence draws other tokens.
        let starts: [usize; BATCH] = std::array::from_fn(|i| 40 + step.seed as usize + 10 * i);
        for (i, (_, params)) in step.sequences.iter().enumerate() {
            for j in 0..DRAFTED {
                let (row, target) = (i * DRAFTED + j, i * CANDIDATES + j);
                let drafted = &drafted[row * STRIDE..][..VOCAB];
                let best = (0..VOCAB).max_by(|&a, &b| drafted[a].total_cmp(&drafted[b])).unwrap();
                tokens[row] = best as i32;
                row_tokens[target] = best as i32;
                draft_index[row] = row as i32;
                for (to, drafted) in logits[target * STRIDE..].iter_mut().zip(drafted) {
                    *to = *to * 0.3 + drafted;
                }
                let numbers = Stream::new(step.seed, Purpose::DraftDraw, j + 1, 0);
                draft_sampling[row] = RowSampling::new(params, Some(numbers)).unwrap().relative_to(i as u32);
            }
            for row in 0..CANDIDATES {
                target_index[i * CANDIDATES + row] = (i * CANDIDATES + row) as i32;
                let numbers = Stream::target_draw(step.seed, starts[i] + row + 1);
                target_sampling[i * CANDIDATES + row] = RowSampling::new(params, Some(numbers)).unwrap();
            }
            let draft: Vec<u32> = tokens[i * DRAFTED..][..DRAFTED].iter().map(|&id| id as u32).collect();
            let history =
                History { tokens: &[5, 900, 5, 2400], prompt_len: 2, draft: &draft, stop_ids: &[7] };
            let mut edits = step.processors.edits(history, VOCAB);
            if step.masks_by_row {
                let masks = (0..CANDIDATES * VOCAB.div_ceil(32)).map(|word| !(1 << (word * 7 % 32)));
                edits.allow_by_row(masks.collect(), VOCAB);
            }
            tables.push(i * CANDIDATES, CANDIDATES, &edits, VOCAB).unwrap();
        }
        for (i, &start) in starts.iter().enumerate() {
            let live = step.sequences.get(i);
            let request = VerifySequence {
                rule: live.map_or(Rule::Match, |(rule, _)| *rule),
                seed: step.seed,
                position: start,
                drafts: live.map_or(0, |_| DRAFTED),
                first_target: i * CANDIDATES,
                first_draft: Some(i * DRAFTED),
                first_token: i * DRAFTED,
                groups: GroupSet::all(DRAFTED),
            };
            let verify = Verify::new(&request).unwrap();
            requests.push(if i == 1 { verify.with_chained_draft_at(DRAFTED).unwrap() } else { verify });
        }
        let chained = DraftGroups {
            sequence: 1,
            groups: GroupSet::NONE,
            first_slot: 0,
            slots: CANDIDATES,
            first_draft: DRAFTED,
        };
        bench.write(&logits, &mut self.logits, 0);
        bench.write(&target_index, &mut self.target_index, 0);
        bench.write(&target_sampling, &mut self.target_sampling, 0);
        bench.write(&row_tokens, &mut self.row_tokens, 0);
        bench.write(&tables.rows, &mut self.row_edits, 0);
        bench.write(&tables.offsets, &mut self.offsets, 0);
        bench.write(&tables.edits, &mut self.edits, 0);
        bench.write(&tables.masks, &mut self.masks, 0);
        bench.write(&drafted, &mut self.draft_logits, 0);
        bench.write(&draft_index, &mut self.draft_index, 0);
        bench.write(&draft_sampling, &mut self.draft_sampling, 0);
        bench.write(&starts.map(|start| start as i32), &mut self.starts, 0);
        bench.write(&halves(step.seed + 200, DRAFT_ROWS * RANK), &mut self.hidden, 0);
        bench.write(&[Draft::new(&chained).unwrap()], &mut self.chained, 0);
        bench.write(&noise(step.seed + 300, self.before.len()), &mut self.before, 0);
        bench.write(&noise(step.seed + 400, self.after.len()), &mut self.after, 0);
        bench.write(&requests, &mut self.requests, 0);
        bench.write(&tokens, &mut self.tokens, 0);
    }

    fn launch(&mut self, bench: &Bench<R>) {
        let Bench { kernels, stream } = bench;
        let edits = Edits {
            rows: bench.view(&self.row_edits),
            offsets: bench.view(&self.offsets),
            edits: bench.view(&self.edits),
            masks: bench.view(&self.masks),
        };
        let sample = Sample {
            vocab: VOCAB,
            stride: STRIDE,
            logits: LogitRows::Edit(bench.view_mut(&mut self.logits), edits),
            logit_index: Some(bench.view(&self.target_index)),
            sampling: bench.view(&self.target_sampling),
            starts: None,
            draft: Some(bench.view(&self.row_tokens)),
            calibration: None,
            workspace: bench.view_mut(&mut self.target_workspace),
            stats: bench.view_mut(&mut self.target_stats),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.sample(stream, sample).unwrap();
        self.launch_drafts(bench);
        let accept = Accept {
            vocab: VOCAB,
            stride: STRIDE,
            sequences: bench.view(&self.requests),
            any_block: true,
            tokens: bench.view(&self.tokens),
            target: SampledRows { logits: bench.view(&self.logits), stats: bench.view(&self.target_stats) },
            target_partials: Some(bench.view(&self.target_workspace)),
            draft: Some(DraftDistributions {
                logits: Some(bench.view(&self.draft_logits)),
                chosen: Some(ChosenRows {
                    count: CHOSEN,
                    ids: bench.view(&self.ids),
                    logits: bench.view(&self.chosen),
                }),
                stats: bench.view(&self.draft_stats),
            }),
            workspace: bench.view_mut(&mut self.accept_workspace),
            arrived: bench.view_mut(&mut self.arrived),
            verdicts: bench.view_mut(&mut self.verdicts),
            committed: bench.view_mut(&mut self.committed),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.accept(stream, &accept).unwrap();
    }

    /// Launches the draws of the drafts: of sequence 0 from calibrated logits, of sequence 1 with the chain.
    fn launch_drafts(&mut self, bench: &Bench<R>) {
        let Bench { kernels, stream } = bench;
        let sample = Sample {
            vocab: VOCAB,
            stride: STRIDE,
            logits: LogitRows::Update(bench.view_mut(&mut self.draft_logits)),
            logit_index: Some(bench.view(&self.draft_index)),
            sampling: bench.view(&self.draft_sampling),
            starts: Some(bench.view(&self.starts)),
            draft: None,
            calibration: Some(Calibration {
                rank: RANK,
                hidden: bench.view(&self.hidden).into(),
                weight: bench.view(&self.weight).into(),
                bias: None,
            }),
            workspace: bench.view_mut(&mut self.draft_workspace),
            stats: bench.view_mut(&mut self.draft_stats),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.sample(stream, sample).unwrap();
        let choose = ChainChoose {
            vocab: VOCAB,
            stride: STRIDE,
            logits: bench.view(&self.draft_logits),
            logit_index: Some(bench.view(&self.draft_index)),
            partials: bench.view(&self.draft_workspace),
            calibrated: true,
            count: CHOSEN,
            ids: bench.view_mut(&mut self.ids),
            chosen: bench.view_mut(&mut self.chosen),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.chain_choose(stream, &choose).unwrap();
        drop(choose);
        let score = ChainScore {
            rank: FACTOR,
            count: CHOSEN,
            drafts: BATCH,
            before: bench.view(&self.before),
            before_stride: FACTOR,
            after: bench.view(&self.after),
            after_stride: FACTOR,
            owners: bench.view(&self.owners),
            scores: bench.view_mut(&mut self.scores),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.chain_score(stream, &score).unwrap();
        drop(score);
        let walk = ChainWalk {
            drafts: bench.view(&self.chained),
            logit_index: Some(bench.view(&self.draft_index)),
            sampling: bench.view(&self.draft_sampling),
            starts: Some(bench.view(&self.starts)),
            count: CHOSEN,
            ids: bench.view(&self.ids),
            scores: bench.view(&self.scores),
            chosen: bench.view_mut(&mut self.chosen),
            stats: bench.view_mut(&mut self.draft_stats),
            error: Some(bench.view_mut(&mut self.error)),
        };
        kernels.chain_walk(stream, &walk).unwrap();
    }

    /// Returns the verdicts of a step, and the bytes of everything that the launches wrote.
    fn result(&self, bench: &Bench<R>) -> (Vec<Verdict>, Vec<Vec<u8>>) {
        fn bytes<R: Runtime, T: Element>(bench: &Bench<R>, operand: &Operand<R, T>) -> Vec<u8> {
            bytemuck::cast_slice(&bench.host(operand)).to_vec()
        }
        assert_eq!(bench.host(&self.error), [0]);
        // Each launch leaves the counters as the next one needs them.
        assert_eq!(bench.host(&self.arrived), [0; BATCH]);
        let written = vec![
            bytes(bench, &self.logits),
            bytes(bench, &self.target_stats),
            bytes(bench, &self.draft_logits),
            bytes(bench, &self.draft_stats),
            bytes(bench, &self.ids),
            bytes(bench, &self.chosen),
            bytes(bench, &self.verdicts),
            bytes(bench, &self.committed),
        ];
        (bench.host(&self.verdicts), written)
    }
}

/// Returns what each step gives if its launches are made anew on the emulator.
fn expected() -> Vec<(Vec<Verdict>, Vec<Vec<u8>>)> {
    let bench = Bench::emulator(SimtOptions::default());
    let run = |step: &Step| {
        let mut operands = Operands::new(&bench);
        operands.fill(&bench, step);
        operands.launch(&bench);
        operands.result(&bench)
    };
    steps().iter().map(run).collect()
}

#[test]
fn captured_decisions_serve_steps_with_other_inputs() {
    for policies in
        [[("STREAMS", "eager"), ("CHECKING", "accesses")], [("STREAMS", "late"), ("CHECKING", "off")]]
    {
        succeeds(this_test!(), policies[0].1, &policies, || {
            on_a_foreign_stream(|foreign| {
                let bench = &foreign.bench;
                let mut operands = Operands::new(bench);
                // The captured launches have the operands of a step that is never replayed.
                operands.fill(bench, &Step { seed: 7, ..steps().remove(4) });
                // SAFETY: the operands stay where they are.
                let graph = unsafe { foreign.captured(|| operands.launch(bench)) };
                let mut found = Vec::new();
                for step in steps() {
                    operands.fill(bench, &step);
                    graph.launch();
                    found.push(operands.result(bench));
                }
                for ((found, expected), step) in found.iter().zip(expected()).zip(steps()) {
                    assert!(
                        *found == expected,
                        "step {}: {:?}, expected {:?}",
                        step.seed,
                        found.0,
                        expected.0
                    );
                }
                // The steps reject, accept in part and accept all.
                let verdicts = found.iter().zip(steps()).flat_map(|((verdicts, _), step)| {
                    verdicts[..step.sequences.len()]
                        .iter()
                        .map(|verdict| verdict.accepted)
                        .collect::<Vec<_>>()
                });
                let accepted: BTreeSet<i32> = verdicts.collect();
                assert!(accepted.len() >= 3 && accepted.contains(&(DRAFTED as i32)), "{accepted:?}");
                // Padding accepts nothing.
                assert_eq!(found[2].0[1], Verdict { accepted: 0, ..found[2].0[1] });
            });
        });
    }
}
