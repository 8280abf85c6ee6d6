//! Tests of the LM head's matrix products in a step with mask groups: either one product for candidates and groups
//! together, or one before the verdict and one after it. Both ways give the same bits; measured times decide between
//! them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::decode_loop::{Ask, ask};
use crate::support::models::{Shapes, Spec, spec};
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::runs::{Block, Output, blocks};
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Engine, EngineOptions, Mode, Policy, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::gpu::{CpuProducts, Gpu, HeadProducts, ProductMemory, ProductOut, Products, Weights};
use flexdraft::device::{
    Device, DeviceError, DraftRows, DraftTables, LinearPart, SlotRows, StepResults, StepTables, Verification,
    VerifyRows,
};
use flexdraft::kernels::Kernels;
use flexdraft::layout::{GroupSet, Pass, Prediction, SequenceRows};
use flexdraft::model::Model;
use flexdraft::runtime::simt::{Copies, SimtStream};
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{DType, Tensor};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// A product library that counts the products of logits and reports made-up times.
struct Timed {
    products: CpuProducts,
    seconds: fn(usize) -> Option<f32>,
    heads: AtomicUsize,
}

impl Products for Timed {
    type Runtime = Simt;
    type Layer = <CpuProducts as Products>::Layer;

    fn new_layer(
        &self,
        simt: &Simt,
        stream: &SimtStream,
        weights: &Weights,
    ) -> Result<Self::Layer, DeviceError> {
        self.products.new_layer(simt, stream, weights)
    }

    fn weight<'a>(&self, layer: &'a Self::Layer) -> &'a Vec<bf16> {
        self.products.weight(layer)
    }

    fn seconds(&self, _: &Self::Layer, rows: usize, logits: bool) -> Option<f32> {
        assert!(logits);
        (self.seconds)(rows)
    }

    fn multiply(
        &self,
        simt: &Simt,
        stream: &SimtStream,
        layer: &Self::Layer,
        x: &Vec<bf16>,
        rows: Range<usize>,
        out: ProductOut<'_, Simt>,
    ) -> Result<(), DeviceError> {
        if matches!(out.memory, ProductMemory::F32(_)) {
            self.heads.fetch_add(1, Ordering::Relaxed);
        }
        self.products.multiply(simt, stream, layer, x, rows, out)
    }
}

fn timed(seconds: fn(usize) -> Option<f32>) -> Gpu<Timed> {
    let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    let stream = kernels.runtime().stream();
    let products = CpuProducts::new(1).unwrap();
    Gpu::new(kernels, stream, Timed { products, seconds, heads: AtomicUsize::new(0) })
}

fn gpu(head_products: HeadProducts, copies: Copies) -> Gpu<CpuProducts> {
    let kernels = Kernels::new(Simt::new(SimtOptions { copies, ..SimtOptions::default() }));
    let stream = kernels.runtime().stream();
    Gpu::new(kernels, stream, CpuProducts::new(1).unwrap()).with_split(64).with_head_products(head_products)
}

/// The output of an engine's run: the tokens of every request, and the verified and drafted tokens of each step.
type Yield = (Vec<Vec<u32>>, Vec<Block>);

/// Serves the requests with an engine; request i is added after `2 i` steps.
fn serve<D: Device>(
    device: D,
    spec: &Spec,
    policy: impl Policy + 'static,
    cache_tokens: usize,
    requests: Vec<Request>,
) -> Yield {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    // With 24 rows of prompts per step, some sequences still read their prompts while others decode.
    let options = EngineOptions { cache_tokens, prefill_rows: 24, ..EngineOptions::default() };
    let mut engine = Engine::new(model, policy, options).unwrap();
    let mut outputs: Vec<Output> = requests.iter().map(|_| Output::default()).collect();
    let (mut waiting, mut ids) = (requests.into_iter(), Vec::new());
    for step in 0.. {
        if step % 2 == 0
            && let Some(request) = waiting.next()
        {
            ids.push(engine.add(request).unwrap());
        }
        if engine.is_idle() && waiting.len() == 0 {
            break;
        }
        for committed in engine.step().unwrap() {
            let index = ids.iter().position(|&id| id == committed.id).unwrap();
            outputs[index].tokens.extend(committed.tokens);
            outputs[index].records.extend(committed.record);
        }
    }
    let blocks = blocks(&outputs);
    (outputs.into_iter().map(|output| output.tokens).collect(), blocks)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.div_ceil(16),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_step_gives_the_same_bits_with_one_product_or_two(
        spec in spec(Shapes::OF_KERNELS),
        block_size in 2usize..6,
        asks in prop_oneof![
            prop::collection::vec(ask(), 1..2),
            prop::collection::vec(ask(), 5..6),
        ],
        // A cache with room for little more than one request suspends the other requests with their drafts.
        cache_tokens in prop::sample::select(vec![128usize, 1024]),
        policy in 0..3,
        seed in any::<u64>(),
    ) {
        let spec = Spec { block_size, ..spec };
        let serve = |head_products, copies| {
            let device = gpu(head_products, copies);
            let requests = |ask: &Ask| Request { record: true, ..ask.request(&spec) };
            let requests = asks.iter().map(requests).collect();
            match policy {
                0 => serve(device, &spec, Mode::Parallel, cache_tokens, requests),
                1 => serve(device, &spec, RandomGroups(seed), cache_tokens, requests),
                _ => serve(device, &spec, RandomEverything(RandomGroups(seed)), cache_tokens, requests),
            }
        };
        let apart = serve(HeadProducts::Apart, Copies::Eager);
        prop_assert_eq!(serve(HeadProducts::Joined, Copies::Late), apart);
    }
}

/// Returns a small model whose drafts have one to three tokens, with or without a calibrator.
fn small(rank: Option<usize>) -> Spec {
    let (head_dim, hidden, block_size, dtype) = (64, 32, 4, DType::Bf16);
    Spec { layers: 2, tail: 1, head_dim, hidden, block_size, rank, dtype, ..Spec::default() }
}

/// Runs one step of two sequences; returns its verdicts and drafts, and the bits of the logits that the drafts were
/// drawn from.
fn one_step<D: Device>(device: D, spec: &Spec, joined: bool) -> (StepResults, Vec<Vec<u32>>) {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let (device, drafted) = (model.device(), spec.block_size - 1);
    let (mut cache, mut work) = (model.new_cache(8, 16).unwrap(), model.new_workspace());
    let (mut logits, mut results) = (model.new_logits(), device.new_results());
    let rows = |pages, candidates, groups| SequenceRows {
        pages,
        start: 0,
        candidates,
        groups,
        slots: spec.block_size,
    };
    let pass = Pass { sequences: vec![rows(&[3], 3, vec![0, 2]), rows(&[5], 2, vec![0, 1])] };
    let mut tables = StepTables::new(&pass, &[1, 2, 3, 4, 5]);
    model.forward(tables, &mut cache, &mut work).unwrap();

    let candidates: Vec<usize> = (0..pass.candidate_rows()).collect();
    let groups: Vec<(usize, usize)> = vec![(0, 0), (0, 2), (1, 0), (1, 1)];
    let slots = groups.iter().flat_map(|&(sequence, k)| pass.group_rows(sequence, k).unwrap().skip(1));
    let all: Vec<usize> = candidates.iter().copied().chain(slots).collect();
    let mut drawn_from = model.new_logits();
    let target_logits = if joined { &mut drawn_from } else { &mut logits };
    model.logits(if joined { &all } else { &candidates }, &mut work, target_logits).unwrap();
    // The first sequence's draft consists of the target's greedy tokens; the second's draft token is outside the
    // vocabulary.
    let largest = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
    let mut accepted = Vec::new();
    for row in 0..2 {
        device.edit_row(target_logits, row, &mut |row| accepted.push(largest(row))).unwrap();
    }
    let samplings = [SamplingParams::GREEDY, SamplingParams::at_temperature(1.0)];
    let verify = |first_row, draft, sampling| VerifyRows {
        first_row,
        draft,
        draft_logits: None,
        edits: None,
        sampling,
        rule: Rule::Rejection,
        seed: 3,
        start: 0,
    };
    let requests = [verify(0, &accepted[..], &samplings[0]), verify(3, &[u32::MAX][..], &samplings[1])];
    let first_rows = match joined {
        true => [5, 5 + 2 * drafted],
        false => [(0, 0), (1, 0)].map(|(sequence, k)| pass.group_rows(sequence, k).unwrap().start),
    };
    let drafts: Vec<DraftRows<'_>> = (0..2)
        .map(|sequence| DraftRows {
            sequence,
            groups: [GroupSet::NONE.with(0).with(2), GroupSet::all(1)][sequence],
            first_row: first_rows[sequence],
            slots: spec.block_size,
            prediction: Prediction::OwnPosition,
            processors: None,
            sampling: &samplings[sequence],
            rule: Rule::Rejection,
            seed: 3,
        })
        .collect();
    let rows = if joined { SlotRows::Logits } else { SlotRows::Pass { first_logits: 0 } };
    // The step runs again, with drafts whose accepted lengths are known.
    tables.logits_rows = if joined { &all } else { &candidates };
    (tables.sequences, tables.drafts) = (&requests, DraftTables { drafts: &drafts, rows });
    let (drafts, tables) = (tables.drafts, model.forward(tables, &mut cache, &mut work).unwrap());
    let target_logits = if joined { &mut drawn_from } else { &mut logits };
    model.logits(if joined { &all } else { &candidates }, &mut work, target_logits).unwrap();
    let mut verification = device.verify(tables, target_logits, &mut results).unwrap();
    model.draft(drafts, &mut verification, &mut work, &mut drawn_from).unwrap();
    let found = verification.read().unwrap();
    assert_eq!(found.verdicts.iter().map(|verdict| verdict.accepted).collect::<Vec<_>>(), [2, 0]);
    // The accepted length 2 selects the first sequence's second mask group, and the accepted length 0 the second
    // sequence's first group.
    let rows = match joined {
        true => [5 + drafted, 5 + 2 * drafted],
        false => [0, drafted],
    };
    let mut bits = Vec::new();
    for row in rows.into_iter().flat_map(|first| first..first + drafted) {
        let mut note = |row: &mut [f32]| bits.push(row.iter().map(|x| x.to_bits()).collect());
        device.edit_row(&mut drawn_from, row, &mut note).unwrap();
    }
    (found, bits)
}

/// Draft tokens are verified against the same draft distributions q from which they were drawn. The requests'
/// distributions differ from slot to slot, so wrong rows would change the accepted lengths, and every accepted length
/// occurs.
#[test]
fn drafts_are_verified_against_what_they_were_drawn_from() {
    let spec = small(Some(8));
    let requests = || {
        let request = |(index, (rule, temperature))| Request {
            rule,
            sampling: SamplingParams::at_temperature(temperature),
            seed: index,
            record: true,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            ..Request::new(vec![3, 1, 4, 1, 5], 60)
        };
        let rules = [(Rule::Rejection, 0.3), (Rule::Block, 0.3), (Rule::Rejection, 0.1), (Rule::Block, 0.6)];
        (0..).zip(rules).map(request).collect()
    };
    let serve = |head_products| {
        let device = gpu(head_products, Copies::Eager);
        serve(device, &spec, Mode::Parallel, 1024, requests())
    };
    let apart = serve(HeadProducts::Apart);
    let accepted = |a| apart.1.iter().filter(|block| block.accepted == a).count();
    assert!((0..4).all(|a| accepted(a) > 2), "{:?}", [0, 1, 2, 3].map(accepted));
    assert_eq!(serve(HeadProducts::Joined), apart);
}

#[test]
fn the_logits_of_drafts_are_the_same_bits() {
    for rank in [Some(8), None] {
        let spec = small(rank);
        let gpu = || gpu(HeadProducts::ByTime, Copies::Late);
        let (found, bits) = one_step(gpu(), &spec, false);
        assert_eq!((bits.len(), found.drafts.len()), (2 * 3, 2));
        assert_eq!(one_step(gpu(), &spec, true), (found, bits), "{rank:?}");
        let cpu = || Cpu::new(CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap();
        assert_eq!(one_step(cpu(), &spec, true), one_step(cpu(), &spec, false), "{rank:?}");
    }
}

#[test]
fn the_cpu_device_gives_the_same_bits_with_one_product_or_two() {
    let ask = |temperature, rule| Ask {
        prompt: (0..40).collect(),
        max_new_tokens: 20,
        temperature,
        top_k: 0,
        rule,
        proposes: false,
        seed: 5,
    };
    let asks = [(0.0, Rule::Match), (1.0, Rule::Match), (1.0, Rule::Rejection), (0.8, Rule::Block)];
    let asks = asks.map(|(temperature, rule)| ask(temperature, rule));
    let spec = small(Some(8));
    let cpu = || Cpu::new(CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap();
    for (cache_tokens, seed) in [(1024, 1), (128, 2)] {
        let serve = |device| {
            let requests = asks.iter().map(|ask| Request { record: true, ..ask.request(&spec) }).collect();
            serve(device, &spec, RandomEverything(RandomGroups(seed)), cache_tokens, requests)
        };
        assert_eq!(serve(cpu().with_joined_heads()), serve(cpu()));
    }
}

#[test]
fn times_decide_how_many_products_there_are() {
    let head = |device: &Gpu<Timed>, vocab: usize| {
        let weight = Tensor::from_bf16(&[vocab, 8], vec![bf16::ONE; 8 * vocab]).unwrap();
        device.new_linear(&[LinearPart::new(&weight, None)]).unwrap()
    };
    let joins = |seconds| {
        let device = timed(seconds);
        device.joins_head_products(&head(&device, 40), 5, 75, 15)
    };
    // Reading the weights dominates the time of few rows, so there one joined product takes about half the time of two
    // products.
    assert!(joins(|rows| Some(1.0 + rows as f32 / 100.0)));
    assert!(!joins(|rows| Some(1.0 + rows as f32 / 50.0)));
    assert!(joins(|rows| Some(if rows <= 80 { 1.99 } else { 9.0 } - if rows <= 15 { 0.99 } else { 0.0 })));
    // The device does not join the products if one takes as long as two, or if a time is unknown.
    assert!(!joins(|rows| Some(if rows == 80 { 2.0 } else { 1.0 })));
    assert!(!joins(|rows| (rows != 80).then_some(1.0)));
    assert!(!joins(|rows| (rows != 5).then_some(0.1)));
    assert!(!joins(|_| None));

    // The device joins the LM head's products for candidates and slots only while their logits take at most 256 MiB.
    let device = timed(|_| None);
    assert_eq!(device.joined_head_rows(&head(&device, 1000)), (256 << 20) / 4000);
    assert_eq!(device.joined_head_rows(&head(&device, 1001)), (256 << 20) / 4032);
    let device = device.with_head_products(HeadProducts::Apart);
    assert_eq!(device.joined_head_rows(&head(&device, 1000)), 0);
}

/// An engine uses one or two products of the LM head per decode step, depending on the measured times of its row
/// counts.
#[test]
fn an_engine_asks_for_the_times_of_its_rows() {
    let heads = |seconds| {
        let spec = small(Some(8));
        let (target, drafter) = spec.weights();
        let model = Model::new(timed(seconds), &target, Some(&drafter)).unwrap();
        let options = EngineOptions { cache_tokens: 1024, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Mode::Parallel, options).unwrap();
        for _ in 0..2 {
            engine.add(Request::new(vec![3, 1, 4], 40)).unwrap();
        }
        for _ in 0..4 {
            engine.step().unwrap();
        }
        let heads =
            |engine: &Engine<Gpu<Timed>>| engine.model().device().products().heads.load(Ordering::Relaxed);
        let before = heads(&engine);
        for _ in 0..3 {
            engine.step().unwrap();
        }
        heads(&engine) - before
    };
    // The test does not know the number of rows of a step, because confidence may shorten the verified draft.
    assert_eq!(heads(|_| Some(1.0)), 3);
    assert_eq!(heads(|rows| Some(rows as f32)), 6);
}
