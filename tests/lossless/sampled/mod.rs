//! Tests that the rules `rejection` and `block` are lossless in the engine: the token frequencies in a million seeded
//! runs of each rule, on a model with four tokens, are compared with the exact distribution from the reference's
//! forward passes (f64, without a cache). Engines with planted bugs fail the same comparison.

pub mod altered;
mod statistics;

use std::collections::BTreeMap;
use std::ops::Range;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{
    Committed, Confidence, Engine, EngineOptions, Flex, Mode, Policy, PromptLookup, Record, Request,
};
use flexdraft::device::Device;
use flexdraft::model::forward::Model;
use flexdraft::model::weights::ChainKind;
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::model::target_logits;
use flexdraft_reference::warp::Warping;

use crate::support::models::{ChainSpec, Spec};
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::reference;
use crate::support::runs::cpu;
use altered::{Alteration, Altered};
use statistics::p_value;

const RUNS: u64 = 1 << 20;
/// The number of runs for each further truncation, for each kind of chain and for each planted bug: enough to find
/// every planted bug.
const FEWER_RUNS: u64 = 1 << 16;
/// Number of tokens that each run generates; their joint distribution is compared.
const GENERATED: usize = 5;
const PROMPT: [u32; 1] = [1];
/// The probability, over seeds, that a correct build fails one comparison. There are 2 rules × (1 + 3 settings + 2
/// kinds of chains) × (4 policies and their sum) = 60 comparisons, and 6 with an Orthrus drafter: 7e-7 in all.
const FALSE_ALARM: f64 = 1e-8;

fn spec() -> Spec {
    Spec {
        layers: 1,
        tail: 1,
        kv_heads: 1,
        q_per_kv: 1,
        head_dim: 4,
        hidden: 4,
        vocab: 4,
        block_size: 4,
        rank: Some(4),
        context_len: 32,
        seed: 47,
        gain: 2.0,
        ..Spec::default()
    }
}

fn engine<D: Device>(
    device: D,
    chain: Option<ChainSpec>,
    policy: impl Policy + 'static,
    free_verify_len: bool,
) -> Engine<D> {
    engine_of(&Spec { chain, ..spec() }, device, policy, free_verify_len)
}

fn engine_of<D: Device>(
    spec: &Spec,
    device: D,
    policy: impl Policy + 'static,
    free_verify_len: bool,
) -> Engine<D> {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let options =
        EngineOptions { cache_tokens: 2048, page_size: 4, free_verify_len, ..EngineOptions::default() };
    Engine::new(model, policy, options).unwrap()
}

fn request(rule: Rule, sampling: SamplingParams, seed: u64) -> Request {
    Request {
        rule,
        sampling,
        seed,
        confidence: Confidence { threshold: 0.25, ..Confidence::default() },
        ..Request::new(PROMPT.to_vec(), GENERATED)
    }
}

/// Counts how often each sequence of tokens was generated; the first token is the most significant digit of the index.
fn tally<D: Device>(
    engine: &mut Engine<D>,
    mut seeds: Range<u64>,
    request: impl Fn(u64) -> Request,
    mut observe: impl FnMut(&[Record]),
) -> Vec<u64> {
    let vocab = spec().vocab;
    let mut counts = vec![0; vocab.pow(GENERATED as u32)];
    let mut running = BTreeMap::new();
    loop {
        while running.len() < 64
            && let Some(seed) = seeds.next()
        {
            running.insert(engine.add(request(seed)).unwrap(), (0, Vec::new()));
        }
        if running.is_empty() {
            return counts;
        }
        for Committed { id, tokens, finish, record, .. } in engine.step().unwrap() {
            let (index, records) = running.get_mut(&id).unwrap();
            *index = tokens.iter().fold(*index, |index, &token| index * vocab + token as usize);
            records.extend(record);
            if finish.is_some() {
                counts[*index] += 1;
                observe(records);
                running.remove(&id);
            }
        }
    }
}

/// Returns the exact distribution of the generated tokens after [`PROMPT`], in the order of [`tally`].
fn exact_law(sampling: SamplingParams) -> Vec<f64> {
    law_after(&PROMPT, sampling)
}

/// Returns the exact distribution of the generated tokens after a prompt, in the order of [`tally`].
fn law_after(prompt: &[u32], sampling: SamplingParams) -> Vec<f64> {
    let target = reference::target(&spec().weights().0);
    let warping = Warping {
        temperature: sampling.temperature.into(),
        top_k: sampling.top_k,
        top_p: sampling.top_p.into(),
        min_p: sampling.min_p.into(),
    };
    let next = |tokens: &[u32]| {
        let logits = target_logits(&target, tokens).pop().unwrap();
        flexdraft_reference::warp::warp(&logits, &warping).probabilities
    };
    let mut law = vec![(prompt.to_vec(), 1.0)];
    for _ in 0..GENERATED {
        let extend = |(tokens, weight): &(Vec<u32>, f64)| -> Vec<(Vec<u32>, f64)> {
            let each = |(token, p)| ([&tokens[..], &[token]].concat(), weight * p);
            (0..).zip(next(tokens)).map(each).collect()
        };
        law = law.iter().flat_map(extend).collect();
    }
    law.into_iter().map(|(_, weight)| weight).collect()
}

/// The number of recorded steps per pair of verify length and accepted length: for first steps after the prompt, and
/// for later steps.
type Branches = BTreeMap<(usize, usize), [u64; 2]>;

/// Compares the tokens of `runs` runs with the exact distribution: for each policy by itself, and for all policies
/// together; most runs are sequential.
fn assert_lossless(rule: Rule, sampling: SamplingParams, chain: Option<ChainSpec>, runs: u64) -> Branches {
    let law = exact_law(sampling);
    let mut branches = Branches::new();
    let mut total = vec![0; law.len()];
    let mut start = 0;
    let mut compare = |name: &str, mut engine: Engine<_>, runs: u64| {
        let seeds = start..start + runs;
        start += runs;
        let recorded = |seed| Request { record: seed % 4 == 0, ..request(rule, sampling, seed) };
        let counts = tally(&mut engine, seeds, recorded, |records| {
            let steps = records.iter().filter_map(|record| match record {
                Record::Step(step) => Some((step.verify_len, step.accepted)),
                Record::Prefill(_) => None,
            });
            for (index, step) in steps.enumerate() {
                branches.entry(step).or_default()[index.min(1)] += 1;
            }
        });
        total.iter_mut().zip(&counts).for_each(|(total, count)| *total += count);
        let p = p_value(&counts, &law);
        assert!(p > FALSE_ALARM, "{rule:?}, {sampling:?}, {chain:?}, {name}: chi-square p-value {p}");
    };
    compare("sequential", engine(cpu(1), chain, Mode::Sequential, false), runs / 8 * 5);
    compare("parallel", engine(cpu(1), chain, Mode::Parallel, false), runs / 16);
    compare("groups", engine(cpu(1), chain, RandomGroups(1), false), runs / 16);
    compare("everything", engine(cpu(1), chain, RandomEverything(RandomGroups(2)), true), runs / 4);
    assert_eq!(start, runs);
    let p = p_value(&total, &law);
    assert!(p > FALSE_ALARM, "{rule:?}, {sampling:?}, {chain:?}: chi-square p-value {p}");
    branches
}

/// Tests `rejection` and `block` with an Orthrus drafter, which draws its drafts from other slots, after the bonus
/// token is known. The target is that of the other tests, so the exact distribution is the same.
#[test]
fn orthrus_is_lossless() {
    let spec = spec().with_orthrus();
    let mut accepted = [0u64; 4];
    for (rule, sampling) in [(Rule::Rejection, full()), (Rule::Block, full()), (Rule::Block, truncated()[1])]
    {
        let law = exact_law(sampling);
        let policies: [(Box<dyn Policy>, bool); 2] =
            [(Box::new(Mode::Sequential), false), (Box::new(RandomEverything(RandomGroups(3))), true)];
        for (policy, free_verify_len) in policies {
            let mut engine = engine_of(&spec, cpu(1), policy, free_verify_len);
            let recorded = |seed| Request { record: true, ..request(rule, sampling, seed) };
            let counts = tally(&mut engine, 0..FEWER_RUNS, recorded, |records| {
                for record in records {
                    if let Record::Step(step) = record {
                        accepted[step.accepted] += 1;
                    }
                }
            });
            let p = p_value(&counts, &law);
            assert!(p > FALSE_ALARM, "{rule:?}, {sampling:?}: chi-square p-value {p}");
        }
    }
    assert!(accepted.iter().all(|&count| count >= 1000), "accepted lengths {accepted:?}");
}

/// Tests `rejection` and `block` with proposals that are looked up in the text, if `Flex` chooses how much of them is
/// verified, by confidences that are learned from earlier proposals.
#[test]
fn proposals_of_a_length_that_flex_chooses_are_lossless() {
    let prompt = [1, 3, 2, 3, 1];
    let law = law_after(&prompt, full());
    let mut lengths = [[0u64; 4]; 4];
    for rule in [Rule::Rejection, Rule::Block] {
        let model = Model::new(cpu(1), &spec().weights().0, None).unwrap();
        let options = EngineOptions { proposers: true, free_verify_len: true, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Flex::default(), options).unwrap();
        let looking = |seed| Request {
            proposer: Some(Box::new(PromptLookup { longest: 2, shortest: 1, tokens: 3 })),
            prompt: prompt.to_vec(),
            record: true,
            ..request(rule, full(), seed)
        };
        let counts = tally(&mut engine, 0..FEWER_RUNS, looking, |records| {
            for record in records {
                if let Record::Step(step) = record {
                    lengths[step.verify_len][step.accepted] += 1;
                }
            }
        });
        let p = p_value(&counts, &law);
        assert!(p > FALSE_ALARM, "{rule:?}: chi-square p-value {p}");
    }
    assert!(lengths[0][0] > 100 && lengths[3].iter().all(|&count| count > 100), "{lengths:?}");
}

fn full() -> SamplingParams {
    SamplingParams::at_temperature(0.8)
}

fn truncated() -> [SamplingParams; 3] {
    [
        SamplingParams { top_k: 3, ..full() },
        SamplingParams { top_p: 0.85, ..full() },
        SamplingParams { min_p: 0.25, ..full() },
    ]
}

/// A fully accepted draft ends with a draw from the target's p_v, every other draft with a draw from a residual.
fn assert_every_branch(branches: &Branches) {
    for verify_len in 0..spec().block_size {
        for accepted in 0..=verify_len {
            let [first, later] = branches.get(&(verify_len, accepted)).copied().unwrap_or_default();
            assert!(first >= 1000 && later >= 1000, "v {verify_len}, a {accepted}: {first}, {later}");
        }
    }
}

#[test]
fn rejection_is_lossless() {
    assert_every_branch(&assert_lossless(Rule::Rejection, full(), None, RUNS));
}

#[test]
fn block_is_lossless() {
    assert_every_branch(&assert_lossless(Rule::Block, full(), None, RUNS));
}

#[test]
fn truncated_distributions_are_kept() {
    for sampling in truncated() {
        for rule in [Rule::Rejection, Rule::Block] {
            assert_lossless(rule, sampling, None, FEWER_RUNS);
        }
    }
}

#[test]
fn chained_drafts_are_lossless() {
    for kind in ChainKind::ALL {
        let chain = Some(ChainSpec { kind, rank: 3, top_k: 2 });
        for rule in [Rule::Rejection, Rule::Block] {
            assert_lossless(rule, full(), chain, FEWER_RUNS);
        }
    }
}

/// The distance of target and drafter is large enough to reveal a wrong residual, and small enough for drafts to be
/// accepted.
#[test]
fn target_and_draft_differ_as_a_test_needs_it() {
    for sampling in [&[full()][..], &truncated()].concat() {
        let distances = altered::Distances::default();
        let alteration = Alteration::Observe(distances.clone());
        let mut engine = engine(Altered { cpu: cpu(1), alteration }, None, Mode::Sequential, false);
        tally(&mut engine, 0..4096, |seed| request(Rule::Rejection, sampling, seed), |_| ());
        let means: Vec<f64> =
            distances.lock().unwrap().iter().map(|(sum, count)| sum / *count as f64).collect();
        assert_eq!(means.len(), spec().block_size - 1);
        assert!(means.iter().all(|mean| (0.2..=0.7).contains(mean)), "{sampling:?}: {means:?}");
    }
}

fn assert_found(alteration: Alteration, rule: Rule, sampling: SamplingParams) {
    let device = Altered { cpu: cpu(1), alteration: alteration.clone() };
    let mut engine = engine(device, None, Mode::Sequential, false);
    let counts = tally(&mut engine, 0..FEWER_RUNS, |seed| request(rule, sampling, seed), |_| ());
    let p = p_value(&counts, &exact_law(sampling));
    assert!(p < FALSE_ALARM, "{alteration:?} passes under {rule:?}: chi-square p-value {p}");
}

#[test]
fn position_keyed_block_is_found() {
    assert_found(Alteration::PositionKeyed, Rule::Block, full());
}

#[test]
fn a_residual_without_clamping_is_found() {
    assert_found(Alteration::ResidualNotClamped, Rule::Rejection, full());
    assert_found(Alteration::ResidualNotClamped, Rule::Block, full());
}

#[test]
fn a_draft_distribution_before_warping_is_found() {
    assert_found(Alteration::DraftNotWarped, Rule::Rejection, full());
    assert_found(Alteration::DraftNotWarped, Rule::Block, full());
}
