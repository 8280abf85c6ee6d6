//! Tests of the driver calls of a step on the GPU device. Calls are counted on the SIMT emulator, whose steps make the
//! same calls as a GPU's.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Engine, EngineOptions, Mode, Policy, Record, Request, StepMode};
use flexdraft::device::gpu::{CpuProducts, Gpu, HeadProducts};
use flexdraft::device::{
    AttentionRows, AttentionShape, Device, LinearPart, QkTransform, Rope, RowKind, StepTables,
};
use flexdraft::kernels::Kernels;
use flexdraft::kernels::sampling::RowStats;
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::model::Model;
use flexdraft::processors::LogitProcessors;
use flexdraft::runtime::simt::Calls;
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{DType, Tensor};

use crate::support::models::Spec;
use crate::support::policies::RandomGroups;
use crate::support::processors::all_but;
use crate::support::runs::{Output, blocks, run};

fn spec() -> Spec {
    let (head_dim, hidden, block_size, rank, dtype) = (64, 32, 4, Some(8), DType::Bf16);
    Spec { layers: 2, tail: 1, head_dim, hidden, block_size, rank, dtype, ..Spec::default() }
}

fn gpu() -> Gpu<CpuProducts> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    Gpu::new(kernels, stream, CpuProducts::new(1).unwrap())
}

fn engine(policy: impl Policy + 'static) -> Engine<Gpu<CpuProducts>> {
    engine_on(gpu(), policy)
}

fn engine_on(device: Gpu<CpuProducts>, policy: impl Policy + 'static) -> Engine<Gpu<CpuProducts>> {
    engine_of(&spec(), device, policy)
}

fn engine_of(
    spec: &Spec,
    device: Gpu<CpuProducts>,
    policy: impl Policy + 'static,
) -> Engine<Gpu<CpuProducts>> {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    Engine::new(model, policy, EngineOptions { cache_tokens: 1024, ..EngineOptions::default() }).unwrap()
}

fn take_calls(engine: &Engine<Gpu<CpuProducts>>) -> Calls {
    engine.model().device().kernels().runtime().take_calls()
}

/// Returns one request for each acceptance rule.
fn requests() -> Vec<Request> {
    [(Rule::Match, 0.0), (Rule::Match, 1.0), (Rule::Rejection, 1.0), (Rule::Block, 0.8)]
        .into_iter()
        .map(|(rule, temperature)| Request {
            rule,
            sampling: SamplingParams::at_temperature(temperature),
            seed: 9,
            record: true,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            ..Request::new(vec![3, 1, 4, 1, 5], 60)
        })
        .collect()
}

/// Bytes copied on the device in a step of [`requests`] whose sequences verify three drafts each: the hidden rows that
/// the head reads, the statistics of the draft rows, and the kernels' error reports. Logits (rows of [`Spec::vocab`]
/// elements) are not copied.
const TARGET_ROWS: u64 = 4 * 4 * 32 * 2;
const DRAWS: u64 = 4 * 3 * size_of::<RowStats>() as u64;
const ERROR_WORD: u64 = 8;

/// Returns the requests of [`requests`], each with penalties, bias, a minimum length, bad words and a mask.
fn processed_requests() -> Vec<Request> {
    let processors = LogitProcessors {
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        presence_penalty: 0.1,
        logit_bias: [(2, 0.5), (7, -1.0)].into(),
        min_tokens: 90,
        bad_words: vec![vec![1, 5], vec![3]],
        allowed: Some(all_but(4, spec().vocab)),
    };
    let mut requests = requests();
    for request in &mut requests {
        (request.processors, request.stop_ids) = (processors.clone(), vec![6]);
    }
    requests
}

/// Checks that a step copied `others` bytes on the device, and the tables of a pass over four sequences: ten numbers of 4
/// bytes per sequence, twelve more, and the pages.
fn expect_copied_bytes(calls: &Calls, others: u64) {
    let pages = (calls.copied_bytes - others - 4 * (10 * 4 + 12)) / (4 * 4);
    assert!(pages.is_power_of_two() && pages <= 8, "{calls:?}");
    assert_eq!(calls.copied_bytes, others + 4 * (10 * 4 + 12 + 4 * pages), "{calls:?}");
}

/// Serves the requests once, so that memory grows to the needs of their steps, then serves the requests again. Returns
/// the calls of ten steps in which every sequence decodes, with the modes of each step's records.
fn steady_steps(policy: impl Policy + 'static) -> Vec<(Calls, Vec<StepMode>)> {
    steady_steps_of(engine(policy), requests)
}

fn steady_steps_of(
    mut engine: Engine<Gpu<CpuProducts>>,
    requests: fn() -> Vec<Request>,
) -> Vec<(Calls, Vec<StepMode>)> {
    run(&mut engine, requests());
    for request in requests() {
        engine.add(request).unwrap();
    }
    for _ in 0..3 {
        engine.step().unwrap();
    }
    take_calls(&engine);
    (0..10)
        .map(|_| {
            let committed = engine.step().unwrap();
            assert_eq!(committed.len(), 4);
            assert!(committed.iter().all(|committed| committed.finish.is_none()));
            let mode = |record: Option<Record>| match record {
                Some(Record::Step(step)) => step.mode,
                other => panic!("{other:?}"),
            };
            (take_calls(&engine), committed.into_iter().map(|committed| mode(committed.record)).collect())
        })
        .collect()
}

#[test]
fn a_parallel_step_allocates_nothing_and_waits_once() {
    for (calls, modes) in steady_steps(Mode::Parallel) {
        assert!(modes.iter().all(|&mode| mode == StepMode::Parallel), "{modes:?}");
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        assert!(calls.uploads == 1 && calls.launches <= 28, "{calls:?}");
        assert_eq!(calls.copies, 4, "{calls:?}");
        expect_copied_bytes(&calls, TARGET_ROWS + DRAWS + ERROR_WORD);
    }
}

#[test]
fn logit_processors_cost_no_wait_no_launch_and_no_copy() {
    for mode in [Mode::Parallel, Mode::Autoregressive, Mode::Sequential] {
        let plain = steady_steps(mode);
        let processed = steady_steps_of(engine(mode), processed_requests);
        for ((plain, _), (processed, _)) in plain.iter().zip(&processed) {
            assert!(plain.downloads > 0 && plain.launches > 0);
            let counts = |calls: &Calls| {
                let Calls { allocations, uploads, downloads, launches, copies, .. } = *calls;
                [allocations, uploads, downloads, launches, copies]
            };
            assert_eq!(counts(processed), counts(plain), "{mode:?}");
        }
    }
}

/// Returns the requests of [`requests`], which all ask for log-probabilities.
fn requests_with_logprobs() -> Vec<Request> {
    requests().into_iter().map(|request| Request { logprobs: Some(2), ..request }).collect()
}

#[test]
fn log_probabilities_cost_one_wait_a_step() {
    for mode in [Mode::Parallel, Mode::Autoregressive, Mode::Sequential] {
        let plain = steady_steps(mode);
        let asked = steady_steps_of(engine(mode), requests_with_logprobs);
        for ((plain, _), (asked, _)) in plain.iter().zip(&asked) {
            assert_eq!((asked.downloads, plain.downloads), (2, 1), "{mode:?}");
            assert_eq!(
                (asked.launches, asked.uploads, asked.allocations),
                (plain.launches, plain.uploads, 0)
            );
            // The rows of all requests are neighbours, and copied together.
            assert_eq!(asked.copies, plain.copies + 1, "{mode:?}");
        }
    }
}

#[test]
fn a_parallel_step_with_one_head_product_copies_no_rows_of_candidates() {
    let device = gpu().with_head_products(HeadProducts::Joined);
    for (calls, modes) in steady_steps_of(engine_on(device, Mode::Parallel), requests) {
        assert!(modes.iter().all(|&mode| mode == StepMode::Parallel), "{modes:?}");
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        assert!(calls.uploads == 1 && calls.launches <= 28, "{calls:?}");
        assert_eq!(calls.copies, 3, "{calls:?}");
        expect_copied_bytes(&calls, DRAWS + ERROR_WORD);
    }
}

#[test]
fn an_autoregressive_step_allocates_nothing_and_waits_once() {
    for (calls, _) in steady_steps(Mode::Autoregressive) {
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        assert!(calls.uploads == 1 && calls.launches <= 17, "{calls:?}");
        assert_eq!(calls.copies, 3, "{calls:?}");
        expect_copied_bytes(&calls, TARGET_ROWS / 4 + ERROR_WORD);
    }
}

#[test]
fn a_sequential_step_allocates_nothing_and_waits_once() {
    for (calls, modes) in steady_steps(Mode::Sequential) {
        assert!(modes.iter().all(|&mode| mode == StepMode::Sequential), "{modes:?}");
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        assert!(calls.uploads == 1 && calls.launches <= 34, "{calls:?}");
        // A sequential step makes one copy more than a parallel step: the tables of the drafting pass.
        assert_eq!(calls.copies, 5, "{calls:?}");
    }
}

/// Tests that the host waits only once in a step with an Orthrus drafter, because the device itself looks up the bonus
/// tokens that begin the mask groups.
#[test]
fn a_step_with_orthrus_allocates_nothing_and_waits_once() {
    for (calls, modes) in
        steady_steps_of(engine_of(&spec().with_orthrus(), gpu(), Mode::Sequential), requests)
    {
        assert!(modes.iter().all(|&mode| mode == StepMode::Sequential), "{modes:?}");
        assert_eq!((calls.allocations, calls.downloads), (0, 1), "{calls:?}");
        // The rows that gather the embeddings of a group are on the device since an earlier step with as many groups.
        assert_eq!(calls.uploads, 1, "{calls:?}");
        assert_eq!(calls.copies, 5, "{calls:?}");
    }
}

/// Head counts and head size of the attention tests, whose cache has 1024 pages of 16 tokens.
const SHAPE: AttentionShape = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 64 };

/// Returns a sequence of four candidates and one mask group, after `start` positions, on the given pages.
fn with_group(pages: &[u32], start: usize) -> SequenceRows<'_> {
    SequenceRows { pages, start, candidates: 4, groups: vec![1], slots: 3 }
}

#[test]
fn only_the_pages_of_a_pass_are_uploaded() {
    let device = gpu();
    let cache = device.new_cache(1, 1024, 16, SHAPE).unwrap();
    let uploaded = |batch: usize, pages: usize| {
        let lists: Vec<Vec<u32>> =
            (0..batch).map(|i| (i * pages..(i + 1) * pages).map(|page| page as u32).collect()).collect();
        let sequences = lists.iter().map(|pages| with_group(pages, 16 * pages.len() - 8)).collect();
        device.kernels().runtime().take_calls();
        device.begin(StepTables::new(&Pass { sequences }, &[]), &cache).unwrap();
        let calls = device.kernels().runtime().take_calls();
        assert_eq!(calls.uploads, 1);
        (calls.uploaded_bytes, calls.allocations)
    };
    // The tables have ten numbers of 4 bytes per sequence, with the sequences rounded up to a power of two, then one
    // number per page, with the pages rounded up to a power of two. The first pass allocates its tables, and the memory
    // that receives the upload.
    assert_eq!(uploaded(4, 8), (4 * (10 * 4 + 12) + 4 * 4 * 8, 2));
    assert_eq!(uploaded(4, 256).0, 4 * (10 * 4 + 12) + 4 * 4 * 256);
    assert_eq!(uploaded(3, 8), (4 * (10 * 4 + 12) + 4 * 3 * 8, 0));
    assert_eq!(uploaded(1, 8), (4 * (10 * 4 + 12) + 4 * 8, 0));
    // The five page numbers of each sequence are padded to eight.
    assert_eq!(uploaded(2, 5), (4 * (10 * 4 + 12) + 4 * 2 * 8, 0));
    assert_eq!(uploaded(2, 300), (4 * (10 * 2 + 12) + 4 * 2 * 512, 1));
}

/// An operation on a pass reads that pass's own tables, even if another pass was laid out later.
#[test]
fn passes_that_are_laid_out_together_are_apart() {
    let device = gpu();
    let pages: Vec<u32> = (0..8).rev().collect();
    let passes: Vec<Pass<'_>> =
        [20, 50, 37].into_iter().map(|start| Pass { sequences: vec![with_group(&pages, start)] }).collect();
    let weight = |rows: usize, cols: usize| {
        let values = (0..rows * cols).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
        device
            .new_linear(&[LinearPart::new(&Tensor::from_f32(&[rows, cols], values).unwrap(), None)])
            .unwrap()
    };
    let (table, head) = (weight(11, SHAPE.qkv_cols()), weight(8, SHAPE.out_cols()));
    let ropes = [1.0, 0.3].map(|scale| Rope { inv_freq: vec![0.1; SHAPE.head_dim / 2], scale });
    let run = |together: bool| {
        let mut cache = device.new_cache(1, 1024, 16, SHAPE).unwrap();
        let mut laid_out: Vec<_> =
            passes.iter().map(|pass| device.begin(StepTables::new(pass, &[]), &cache).unwrap().0).collect();
        let mut found = Vec::new();
        for (index, pass) in passes.iter().enumerate() {
            if !together {
                laid_out[index] = device.begin(StepTables::new(pass, &[]), &cache).unwrap().0;
            }
            let rows = pass.total_rows();
            for rope in &ropes {
                let transform = QkTransform { shape: SHAPE, norms: None, eps: 0.0, rope };
                let mut qkv = device.new_buffer(SHAPE.qkv_cols());
                device.resize(&mut qkv, rows).unwrap();
                device.embed(&table, &[1, 2, 3, 4, 5, 6, 7], 0, &mut qkv).unwrap();
                for kind in [RowKind::Candidates, RowKind::Masks] {
                    let pass = &mut laid_out[index];
                    device.norm_rope_append(&transform, pass, kind, &mut qkv, 0, &mut cache).unwrap();
                }
                for masks in [false, true] {
                    let (mut out, mut logits) = (device.new_buffer(SHAPE.out_cols()), device.new_logits(8));
                    let rows = if masks { rows } else { pass.candidate_rows() };
                    device.resize(&mut out, rows).unwrap();
                    device.resize(&mut logits, rows).unwrap();
                    let attending = AttentionRows { pass: &laid_out[index], masks };
                    device.joint_attention(SHAPE, attending, &qkv, 0, &cache, &mut out).unwrap();
                    device.linear(&head, &out, 0..rows, &mut logits).unwrap();
                    for row in 0..rows {
                        let mut note = |row: &mut [f32]| found.push(row.to_vec());
                        device.edit_row(&mut logits, row, &mut note).unwrap();
                    }
                }
            }
        }
        found
    };
    let together = run(true);
    assert!(together.iter().flatten().all(|x| x.is_finite()));
    assert_eq!(together, run(false));
    // The second of `ropes`, the rotary embeddings, has another scale than the first, so their results must differ.
    assert_ne!(together[..11], together[11..22]);
}

#[test]
fn a_pass_is_for_the_pages_it_was_checked_against() {
    let device = gpu();
    let [cache, mut other] = [8, 9].map(|pages| device.new_cache(1, pages, 16, SHAPE).unwrap());
    let pass = Pass { sequences: vec![with_group(&[0, 1], 20)] };
    let mut pass = device.begin(StepTables::new(&pass, &[]), &cache).unwrap().0;
    let rope = Rope { inv_freq: vec![0.1; SHAPE.head_dim / 2], scale: 1.0 };
    let transform = QkTransform { shape: SHAPE, norms: None, eps: 0.0, rope: &rope };
    let (mut qkv, mut out) = (device.new_buffer(SHAPE.qkv_cols()), device.new_buffer(SHAPE.out_cols()));
    device.resize(&mut qkv, 7).unwrap();
    device.resize(&mut out, 7).unwrap();
    let error = device.norm_rope_append(&transform, &mut pass, RowKind::Masks, &mut qkv, 0, &mut other);
    let message = "norm_rope_append: cache [pages, page_size] has shape [9, 16], expected [8, 16]";
    assert_eq!(error.unwrap_err().to_string(), message);
    let attending = AttentionRows { pass: &pass, masks: true };
    let error = device.joint_attention(SHAPE, attending, &qkv, 0, &other, &mut out);
    let message = "joint_attention: cache [pages, page_size] has shape [9, 16], expected [8, 16]";
    assert_eq!(error.unwrap_err().to_string(), message);
}

/// If the cache is too small for all sequences, the engine suspends some of them with their drafts. The drafts are
/// verified when the sequences are back, in a batch with sequences whose drafts are still where the previous step left
/// them.
#[test]
fn drafts_of_preempted_requests_keep_their_distributions() {
    let served = |head_products, cache_tokens| {
        let (target, drafter) = spec().weights();
        let device = gpu().with_head_products(head_products);
        let model = Model::new(device, &target, Some(&drafter)).unwrap();
        let options = EngineOptions { cache_tokens, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Mode::Parallel, options).unwrap();
        // The first request ends early, so a suspended request can continue.
        let mut ids = Vec::new();
        for (request, max_new_tokens) in requests().into_iter().skip(1).zip([20, 30, 30]) {
            ids.push(engine.add(Request { max_new_tokens, ..request }).unwrap());
        }
        let mut outputs = vec![Output::default(); ids.len()];
        let mut copies = Vec::new();
        while !engine.is_idle() {
            for committed in engine.step().unwrap() {
                let index = ids.iter().position(|&id| id == committed.id).unwrap();
                outputs[index].tokens.extend(committed.tokens);
                outputs[index].records.extend(committed.record);
            }
            copies.push(take_calls(&engine).copies);
        }
        // The first three steps do not count, because memory grows in them.
        (outputs, copies.into_iter().skip(3).max().unwrap())
    };
    let (expected, copies) = served(HeadProducts::Apart, 1024);
    assert_eq!(copies, 4);
    for (head_products, steady) in [(HeadProducts::Apart, 4), (HeadProducts::Joined, 3)] {
        let (outputs, copies) = served(head_products, 80);
        assert_eq!((blocks(&outputs), tokens(&outputs)), (blocks(&expected), tokens(&expected)));
        // The four further copies are the logits and statistics of two suspended sequences' drafts.
        assert!(copies >= steady + 4, "nothing was set aside and put beside others");
    }
}

fn tokens(outputs: &[Output]) -> Vec<&[u32]> {
    outputs.iter().map(|output| &output.tokens[..]).collect()
}

#[test]
fn an_accepted_length_without_a_group_waits_once_more() {
    for (calls, _) in steady_steps(RandomGroups(4)) {
        assert!(calls.downloads <= 2, "{calls:?}");
        // A step drafts twice at most, from its joint pass and from a drafting pass, so it copies the statistics of
        // draft rows, the error reports and the tables of a pass twice at most.
        let passes = 2 * 4 * (10 * 4 + 12 + 4 * 8);
        let most = TARGET_ROWS + 2 * DRAWS + 2 * ERROR_WORD + passes;
        assert!(calls.copies <= 9 && calls.copied_bytes <= most, "{calls:?}");
        assert!(calls.uploads <= 3, "{calls:?}");
    }
}

#[test]
fn a_logits_hook_waits_for_its_own_rows() {
    let mut engine = engine(Mode::Parallel);
    let hook = |_: usize, _: &[u32], logits: &mut [f32]| {
        logits[0] = f32::NEG_INFINITY;
        Ok(())
    };
    let [with, without] = [Some(Box::new(hook) as _), None];
    for logits_hook in [with, without] {
        engine.add(Request { logits_hook, ..requests().remove(0) }).unwrap();
    }
    for _ in 0..5 {
        engine.step().unwrap();
    }
    take_calls(&engine);
    let committed = engine.step().unwrap();
    let Some(Record::Step(step)) = &committed[0].record else { panic!("{committed:?}") };
    assert_eq!(take_calls(&engine).downloads, step.verify_len as u64 + 2);
}
