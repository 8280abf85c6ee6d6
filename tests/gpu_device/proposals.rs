//! Tests of proposals from outside the model on the GPU device, and of requests that share cache pages.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    Engine, EngineOptions, HookError, Mode, Policy, PromptLookup, Proposal, Proposer, Request,
};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::gpu::{CpuProducts, Gpu};
use flexdraft::device::{
    AttentionShape, Device, DraftLogits, SequenceVerdict, StepTables, Verification, VerifyRows,
};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::model::Model;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::sampling::{SamplingParams, warp};
use flexdraft::tensor::DType;
use proptest::prelude::*;

use crate::decode_loop::{engine, gpu};
use crate::support::models::{Shapes, Spec, either_drafter, spec};
use crate::support::noise::SplitMix;
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::runs::{blocks, corrupted_continuation, run};

/// Returns a source that draws tokens from logits that depend on the tokens so far.
pub fn drawing(vocab: usize) -> Box<dyn Proposer> {
    Box::new(move |prefix: &[u32], proposal: &mut Proposal<'_>| -> Result<(), HookError> {
        for _ in 0..3 + prefix.len() % 3 {
            let sum: u64 = prefix.iter().chain(proposal.tokens()).map(|&token| u64::from(token) + 1).sum();
            let mut random = SplitMix(sum);
            let logits: Vec<f32> = (0..vocab).map(|_| 2.0 * random.signed()).collect();
            proposal.draw(&logits)?;
        }
        Ok(())
    })
}

fn without_drafter(
    spec: &Spec,
    options: SimtOptions,
    policy: impl Policy + 'static,
) -> Engine<Gpu<CpuProducts>> {
    let model = Model::new(gpu(options), &spec.weights().0, None).unwrap();
    let options = EngineOptions { cache_tokens: 1024, proposers: true, ..EngineOptions::default() };
    Engine::new(model, policy, options).unwrap()
}

fn request(spec: &Spec, prompt: &[u32], (rule, temperature): (Rule, f32)) -> Request {
    Request {
        rule,
        sampling: SamplingParams { top_p: 0.9, ..SamplingParams::at_temperature(temperature) },
        seed: 11,
        ..Request::new(prompt.iter().map(|id| id % spec.vocab as u32).collect(), 14)
    }
}

proptest! {
    #![proptest_config(properties(2))]

    #[test]
    fn proposals_change_no_token(
        spec in either_drafter(spec(Shapes::OF_KERNELS)),
        prompt in prop::collection::vec(any::<u32>(), 1..40),
        seed in any::<u64>(),
    ) {
        // The emulator's time is that of the heads, and of the mask rows.
        let spec = Spec { kv_heads: 1, q_per_kv: spec.q_per_kv.min(2), ..spec };
        let asks = [(Rule::Block, 0.0), (Rule::Match, 1.0)];
        let late = SimtOptions { copies: Copies::Late, schedule: seed | 1, ..SimtOptions::default() };
        let plain = || asks.map(|ask| request(&spec, &prompt, ask)).into();
        let expected = run(&mut engine(gpu(SimtOptions::default()), &spec, Mode::Autoregressive), plain());
        let requests = || {
            let mut requests = Vec::new();
            for (ask, expected) in asks.into_iter().zip(&expected) {
                let known = expected.tokens.clone();
                let sources: [Box<dyn Proposer>; 3] = [
                    Box::new(PromptLookup { shortest: 1, ..PromptLookup::default() }),
                    drawing(spec.vocab),
                    corrupted_continuation(prompt.len(), known, spec.vocab, 9),
                ];
                let with = |source| Request { proposer: Some(source), ..request(&spec, &prompt, ask) };
                requests.extend(sources.map(with));
            }
            requests
        };
        let check = |mut engine: Engine<Gpu<CpuProducts>>| {
            for (index, output) in run(&mut engine, requests()).iter().enumerate() {
                prop_assert_eq!(&output.tokens, &expected[index / 3].tokens, "request {}", index);
            }
            Ok(())
        };
        check(engine(gpu(late), &spec, spec.drafting_modes()[0]))?;
        check(engine(gpu(SimtOptions::default()), &spec, RandomEverything(RandomGroups(seed))))?;
        check(without_drafter(&spec, late, Mode::Sequential))?;
    }
}

/// Verifies certain and drawn proposals on the CPU device and on the GPU device, from the same logits and with the same
/// random numbers. The verdicts are equal, because none of the fixed draws is a near-tie.
#[test]
fn verdicts_on_proposals_are_the_cpu_device_s() {
    const VOCAB: usize = 37;
    const DRAFTED: usize = 5;
    let mut random = SplitMix(3);
    let mut row = || (0..VOCAB).map(|_| 2.0 * random.signed()).collect::<Vec<f32>>();
    let (mut accepted, mut rejected) = (0, 0);
    for seed in 0..40 {
        let rules = [Rule::Rejection, Rule::Block, Rule::Rejection, Rule::Block];
        let sampling = [
            SamplingParams::at_temperature(1.0),
            SamplingParams { top_k: 9, ..SamplingParams::at_temperature(0.7) },
            SamplingParams { top_p: 0.8, min_p: 0.05, ..SamplingParams::at_temperature(1.3) },
        ][seed as usize % 3];
        let target: Vec<Vec<f32>> = (0..4 * (DRAFTED + 1)).map(|_| row()).collect();
        // Half of the target's rows are near to the drafts' rows, so that drafts are accepted.
        let q: Vec<Vec<f32>> = (0..4 * DRAFTED)
            .map(|i| {
                let near = &target[i / DRAFTED * (DRAFTED + 1) + i % DRAFTED];
                near.iter().zip(row()).map(|(near, own)| near + 0.4 * own).collect()
            })
            .collect();
        let scores: Vec<Vec<f32>> = q.iter().map(|row| warp(row, &sampling)).collect();
        let best =
            |row: &Vec<f32>| (0..VOCAB as u32).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
        let tokens: Vec<u32> = scores.iter().filter_map(best).collect();
        let case =
            Case { target: &target, scores: &scores, tokens: &tokens, sampling: &sampling, rules, seed };
        let cpu = Cpu::new(CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap();
        let expected = case.verdicts(&cpu);
        assert_eq!(case.verdicts(&gpu(SimtOptions::default())), expected, "seed {seed}");
        accepted += expected.iter().map(|verdict| verdict.accepted).sum::<usize>();
        rejected += expected.iter().map(|verdict| DRAFTED - verdict.accepted).sum::<usize>();
    }
    assert!(accepted > 50 && rejected > 50, "{accepted} accepted, {rejected} rejected");
}

/// The verification of four proposals: the first two were drawn, the others are certain.
struct Case<'a> {
    target: &'a [Vec<f32>],
    scores: &'a [Vec<f32>],
    tokens: &'a [u32],
    sampling: &'a SamplingParams,
    rules: [Rule; 4],
    seed: u64,
}

impl Case<'_> {
    fn verdicts<D: Device>(&self, device: &D) -> Vec<SequenceVerdict> {
        let (vocab, drafted) = (self.scores[0].len(), self.tokens.len() / 4);
        let mut logits = device.new_logits(vocab);
        device.resize(&mut logits, self.target.len()).unwrap();
        for (index, row) in self.target.iter().enumerate() {
            device.edit_row(&mut logits, index, &mut |to| to.copy_from_slice(row)).unwrap();
        }
        let buffers: Vec<D::Buffer> = (0..2)
            .map(|index| {
                let mut buffer = device.new_logits(vocab);
                device.upload_draft(&self.scores[index * drafted..][..drafted], &mut buffer).unwrap();
                buffer
            })
            .collect();
        let sequences: Vec<_> = (0..4)
            .map(|index| VerifyRows {
                first_row: index * (drafted + 1),
                draft: &self.tokens[index * drafted..][..drafted],
                draft_logits: buffers.get(index).map(|logits| DraftLogits {
                    logits,
                    first_row: 0,
                    first_draw: 0,
                    is_warped: true,
                }),
                edits: None,
                sampling: self.sampling,
                rule: self.rules[index],
                seed: self.seed,
                start: 7 * index,
            })
            .collect();
        // The pass has a row for each row of logits; its keys and values are of no use here.
        let shape = AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 64 };
        let cache = device.new_cache(1, 4 * 4, 16, shape).unwrap();
        let pages: Vec<u32> = (0..4 * 4).collect();
        let rows = |index: usize| SequenceRows {
            pages: &pages[4 * index..][..4],
            start: 7 * index,
            candidates: drafted + 1,
            groups: vec![],
            slots: 1,
        };
        let pass = Pass { sequences: (0..4).map(rows).collect() };
        let ids = vec![0; self.target.len()];
        let logits_rows: Vec<usize> = (0..self.target.len()).collect();
        let tables = StepTables {
            logits_rows: &logits_rows,
            sequences: &sequences,
            vocab,
            ..StepTables::new(&pass, &ids)
        };
        let (_, tables) = device.begin(tables, &cache).unwrap();
        let mut results = device.new_results();
        let mut verification = device.verify(tables, &mut logits, &mut results).unwrap();
        verification.read().unwrap().verdicts
    }
}

/// Runs certain and drawn proposals of `rejection` and `block` in race mode: every access is checked for bounds,
/// alignment, races and unfinished copies.
#[test]
fn a_checked_run_finds_nothing() {
    let (layers, tail, head_dim, hidden, dtype) = (2, 1, 64, 32, DType::Bf16);
    let spec = Spec { layers, tail, head_dim, hidden, dtype, rank: Some(8), ..Spec::default() };
    let options = SimtOptions { checking: Checking::Accesses, copies: Copies::Late, schedule: 3 };
    let asks = [(Rule::Rejection, 1.0), (Rule::Block, 0.8)];
    let prompt: Vec<u32> = (0..20).map(|i| i % 4).collect();
    let requests = || {
        let with = |ask, source| Request {
            proposer: Some(source),
            max_new_tokens: 6,
            ..request(&spec, &prompt, ask)
        };
        let lookups = asks.map(|ask| with(ask, Box::new(PromptLookup::default()) as Box<dyn Proposer>));
        lookups.into_iter().chain(asks.map(|ask| with(ask, drawing(spec.vocab)))).collect::<Vec<_>>()
    };
    for mut engine in
        [engine(gpu(options), &spec, Mode::Parallel), without_drafter(&spec, options, Mode::Sequential)]
    {
        assert!(run(&mut engine, requests()).iter().all(|output| output.tokens.len() == 6));
    }
}

/// Requests that share pages of the cache have the tokens, drafts and confidences of requests that read everything.
#[test]
fn shared_pages_hold_what_would_be_computed() {
    let (layers, tail, head_dim, hidden, dtype) = (2, 1, 64, 32, DType::Bf16);
    let spec = Spec { layers, tail, head_dim, hidden, dtype, rank: Some(8), ..Spec::default() };
    let prompt: Vec<u32> = (0..100).map(|i| i * i % 27).collect();
    for mode in [Mode::Parallel, Mode::Sequential] {
        let requests = || {
            let rules = [(Rule::Match, 0.0), (Rule::Rejection, 1.0), (Rule::Block, 1.0)];
            let whole = rules.map(|ask| Request { record: true, ..request(&spec, &prompt, ask) });
            let parts = rules.map(|ask| Request { record: true, ..request(&spec, &prompt[..70], ask) });
            whole.into_iter().chain(parts).collect::<Vec<_>>()
        };
        let serve = |prefix_cache| {
            let (target, drafter) = spec.weights();
            let model = Model::new(gpu(SimtOptions::default()), &target, Some(&drafter)).unwrap();
            let options = EngineOptions { cache_tokens: 1024, prefix_cache, ..EngineOptions::default() };
            let mut engine = Engine::new(model, mode, options).unwrap();
            let outputs = [run(&mut engine, requests()), run(&mut engine, requests())].concat();
            (blocks(&outputs), engine.stats().prefixes.tokens_reused)
        };
        let (expected, none) = serve(false);
        let (found, reused) = serve(true);
        assert_eq!(found, expected);
        // Of the first six requests, five reuse what the first has read; of the next six, all do.
        assert_eq!((none, reused), (0, 2 * 96 + 3 * 64 + 3 * 96 + 3 * 64));
    }
}
