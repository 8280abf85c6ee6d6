//! Tests that sampled output with chained drafts follows the target's law on the GPU device, on the SIMT emulator:
//! 512 runs (at the usual effort) each of `rejection` and `block` against the probabilities of the device's own logits.

use std::collections::BTreeMap;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Engine, EngineOptions, Mode, Policy, Record, Request};
use flexdraft::device::gpu::{CpuProducts, Gpu};
use flexdraft::model::Model;
use flexdraft::model::weights::ChainKind;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::Checking;
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;

use crate::decode_loop::gpu;
use crate::statistics::p_value;
use crate::support::models::{ChainSpec, Spec};
use crate::support::properties::{effort, scaled};

const VOCAB: usize = 4;
/// Number of tokens that each run generates; their joint distribution is compared.
const GENERATED: usize = 3;
const RUNS: u32 = 512;
/// The probability, over seeds, that a correct build fails one of the two comparisons.
const FALSE_ALARM: f64 = 1e-6;

fn spec(kind: ChainKind) -> Spec {
    Spec {
        layers: 1,
        tail: 1,
        kv_heads: 1,
        q_per_kv: 1,
        head_dim: 64,
        hidden: 8,
        vocab: VOCAB,
        block_size: 4,
        rank: Some(8),
        chain: Some(ChainSpec { kind, rank: 8, top_k: 2 }),
        dtype: DType::Bf16,
        seed: 5,
        gain: 2.0,
        ..Spec::default()
    }
}

fn engine(spec: &Spec, policy: impl Policy + 'static) -> Engine<Gpu<CpuProducts>> {
    let (target, drafter) = spec.weights();
    let device = gpu(SimtOptions { checking: Checking::Off, ..SimtOptions::default() });
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    Engine::new(model, policy, EngineOptions { cache_tokens: 2048, ..EngineOptions::default() }).unwrap()
}

/// Returns the exact law of the tokens after `prompt`, from the log-probabilities of the device's logits; the first token is
/// the most significant digit of the index.
fn exact_law(spec: &Spec, prompt: u32) -> Vec<f64> {
    let mut engine = engine(spec, Mode::Autoregressive);
    let mut law = vec![(vec![prompt], 1.0)];
    for _ in 0..GENERATED {
        let asked = |(tokens, _): &(Vec<u32>, f64)| {
            let request = Request { logprobs: Some(VOCAB), ..Request::new(tokens.clone(), 1) };
            engine.add(request).unwrap()
        };
        let ids: Vec<_> = law.iter().map(asked).collect();
        let mut rows = BTreeMap::new();
        while !engine.is_idle() {
            for report in engine.step().unwrap() {
                rows.extend(report.logprobs.into_iter().map(|found| (report.id, found.top)));
            }
        }
        let mut next = Vec::new();
        for ((tokens, weight), id) in law.iter().zip(&ids) {
            let mut row = rows[id].clone();
            row.sort_by_key(|&(token, _)| token);
            assert_eq!(row.len(), VOCAB);
            next.extend(row.into_iter().map(|(token, logprob)| {
                ([&tokens[..], &[token]].concat(), weight * f64::from(logprob).exp())
            }));
        }
        law = next;
    }
    law.into_iter().map(|(_, weight)| weight).collect()
}

#[test]
fn chained_drafts_are_lossless_on_the_emulator() {
    let cases = [
        (ChainKind::Pair, Rule::Rejection, Mode::Parallel),
        (ChainKind::Hidden, Rule::Block, Mode::Sequential),
    ];
    for (kind, rule, mode) in cases {
        let spec = spec(kind);
        let law = exact_law(&spec, 1);
        let mut engine = engine(&spec, mode);
        let request = |seed| Request {
            rule,
            sampling: SamplingParams::at_temperature(1.0),
            seed,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            record: true,
            ..Request::new(vec![1], GENERATED)
        };
        let ids: Vec<_> =
            (0..u64::from(scaled(RUNS, effort()))).map(|seed| engine.add(request(seed)).unwrap()).collect();
        let mut runs: BTreeMap<_, usize> = ids.into_iter().map(|id| (id, 0)).collect();
        let (mut accepted, mut steps) = ([0u64; 4], 0);
        while !engine.is_idle() {
            steps += 1;
            for report in engine.step().unwrap() {
                let index = runs.get_mut(&report.id).unwrap();
                *index = report.tokens.iter().fold(*index, |index, &token| VOCAB * index + token as usize);
                if let Some(Record::Step(step)) = report.record {
                    accepted[step.accepted] += 1;
                }
            }
        }
        let mut counts = vec![0; law.len()];
        runs.into_values().for_each(|index| counts[index] += 1);
        let p = p_value(&counts, &law);
        let count: u64 = counts.iter().sum();
        let name = format!("{} {rule:?} {}", kind.name(), mode.name());
        println!("{name}: {count} runs in {steps} steps, p {p:.3}, accepted lengths {accepted:?}.");
        assert!(p > FALSE_ALARM, "{name}: chi-square p-value {p}");
        assert!(accepted.iter().all(|&count| count > 10), "{accepted:?}");
    }
}
