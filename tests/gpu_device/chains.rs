//! Tests of drafters with a chain (Chained Calibration) on the GPU device, on the SIMT emulator: the output is that of
//! autoregressive decoding, drafts have the same bits in every mode, and drafts and verdicts equal the CPU device's.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Mode, Policy, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::{DeviceError, Precision};
use flexdraft::kernels::ExceededLimit;
use flexdraft::model::Model;
use flexdraft::model::weights::ChainKind;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;

use crate::decode_loop::{engine, gpu};
use crate::proposals::drawing;
use crate::support::models::{ChainSpec, Spec};
use crate::support::policies::RandomGroups;
use crate::support::runs::{Block, Output, blocks, run};

/// A small vocabulary: a chain of 6 ids leaves out half of the ids, and drafts are accepted often enough that verdicts
/// depend on q.
const VOCAB: u32 = 12;

fn spec(kind: ChainKind, top_k: usize) -> Spec {
    Spec {
        layers: 2,
        tail: 1,
        head_dim: 64,
        hidden: 32,
        vocab: VOCAB as usize,
        block_size: 5,
        rank: Some(8),
        dtype: DType::Bf16,
        chain: Some(ChainSpec { kind, rank: 16, top_k }),
        ..Spec::default()
    }
}

/// Returns `count` requests with prompts of different lengths.
fn requests(count: usize, sampling: SamplingParams, rule: Rule, seed: u64) -> Vec<Request> {
    let request = |i: usize| Request {
        sampling,
        rule,
        seed: seed + i as u64,
        record: true,
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        ..Request::new(
            (0..3 + 7 * i as u32).map(|id| (id * 11 + i as u32 + seed as u32) % VOCAB).collect(),
            9,
        )
    };
    (0..count).map(request).collect()
}

fn tokens(outputs: &[Output]) -> Vec<&[u32]> {
    outputs.iter().map(|output| &output.tokens[..]).collect()
}

const SAMPLED: SamplingParams = SamplingParams { temperature: 1.5, top_k: 0, top_p: 1.0, min_p: 0.0 };
const TRUNCATED: SamplingParams = SamplingParams { temperature: 0.8, top_k: 4, top_p: 0.9, min_p: 0.05 };

#[test]
fn every_mode_gives_the_tokens_of_autoregressive_decoding() {
    for kind in ChainKind::ALL {
        let spec = spec(kind, 6);
        for sampling in [SamplingParams::GREEDY, SAMPLED, TRUNCATED] {
            for count in [1, 5] {
                let asked = || requests(count, sampling, Rule::Match, 3);
                let on = |mode| run(&mut engine(gpu(SimtOptions::default()), &spec, mode), asked());
                let expected = on(Mode::Autoregressive);
                for mode in [Mode::Parallel, Mode::Sequential] {
                    assert_eq!(tokens(&on(mode)), tokens(&expected), "{} {}", kind.name(), mode.name());
                }
            }
        }
    }
}

#[test]
fn drafts_have_the_same_bits_in_every_mode_and_batch() {
    let late = SimtOptions { copies: Copies::Late, schedule: 5, ..SimtOptions::default() };
    for (kind, top_k) in ChainKind::ALL.into_iter().zip([6, 32]) {
        let spec = spec(kind, top_k);
        for (sampling, rule) in
            [(SamplingParams::GREEDY, Rule::Match), (SAMPLED, Rule::Rejection), (TRUNCATED, Rule::Block)]
        {
            let asked = || requests(5, sampling, rule, 17);
            let parallel = run(&mut engine(gpu(late), &spec, Mode::Parallel), asked());
            assert!(blocks(&parallel).iter().all(|block| block.drafted() == 4));
            let sequential = run(&mut engine(gpu(SimtOptions::default()), &spec, Mode::Sequential), asked());
            assert_eq!(blocks(&sequential), blocks(&parallel));
            let padded = gpu(late).with_padding(true);
            let mixed = run(&mut engine(padded, &spec, RandomGroups(9)), asked());
            assert_eq!(blocks(&mixed), blocks(&parallel));
            for (request, together) in asked().into_iter().zip(&parallel).step_by(2) {
                let alone = run(&mut engine(gpu(late), &spec, Mode::Parallel), vec![request]);
                assert_eq!(blocks(&alone), blocks(std::slice::from_ref(together)));
            }
        }
    }
}

/// How many draft tokens and verdicts of the GPU device equal the CPU device's, after equal steps.
#[derive(Debug, Default)]
struct Agreement {
    drafts: usize,
    same_drafts: usize,
    verdicts: usize,
    same_verdicts: usize,
}

impl Agreement {
    fn add(&mut self, found: &[Block], expected: &[Block]) {
        for (found, expected) in found.iter().zip(expected) {
            // After a near-tie the devices verify other tokens.
            if found.candidates != expected.candidates {
                return;
            }
            self.verdicts += 1;
            if (found.accepted, found.bonus) != (expected.accepted, expected.bonus) {
                return;
            }
            self.same_verdicts += 1;
            self.drafts += expected.drafted();
            self.same_drafts += found.draft.iter().zip(&expected.draft).filter(|(a, b)| a == b).count();
            for (a, b) in found.confidence.iter().zip(&expected.confidence) {
                let [a, b] = [a, b].map(|&bits| f32::from_bits(bits));
                assert!(found.draft != expected.draft || (a - b).abs() < 0.05, "confidence {a} and {b}");
            }
        }
    }
}

/// Compares drafts and verdicts with the CPU device's, which are enumerated and compared with the reference
/// elsewhere. The devices have the same random numbers and round activations alike, so only near-ties differ: a q that is
/// not the distribution that was drawn from, or a token that the chain does not see, changes many more.
#[test]
fn drafts_and_verdicts_are_the_cpu_device_s() {
    for kind in ChainKind::ALL {
        let spec = spec(kind, 6);
        for (sampling, rule) in [
            (SamplingParams::GREEDY, Rule::Match),
            (SAMPLED, Rule::Match),
            (SAMPLED, Rule::Rejection),
            (TRUNCATED, Rule::Rejection),
            (SAMPLED, Rule::Block),
            (TRUNCATED, Rule::Block),
        ] {
            let mut agreement = Agreement::default();
            for (seed, mode) in [(100, Mode::Parallel), (200, Mode::Sequential)] {
                let cpu = Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 }).unwrap();
                let asked = || requests(5, sampling, rule, seed);
                let found = run(&mut engine(gpu(SimtOptions::default()), &spec, mode), asked());
                let expected = run(&mut engine(cpu, &spec, mode), asked());
                for (found, expected) in found.iter().zip(&expected) {
                    let [found, expected] =
                        [found, expected].map(|output| blocks(std::slice::from_ref(output)));
                    agreement.add(&found, &expected);
                }
            }
            let name = format!("{} {rule:?} {sampling:?}: {agreement:?}", kind.name());
            println!("{name}");
            assert!(agreement.verdicts >= 40, "{name}");
            assert!(20 * agreement.same_verdicts >= 19 * agreement.verdicts, "{name}");
            assert!(20 * agreement.same_drafts >= 19 * agreement.drafts, "{name}");
        }
    }
}

/// In one step, some sequences verify tokens that a source drew from whole rows of logits, and others the drafts of a
/// chain.
#[test]
fn proposals_beside_chained_drafts_are_verified_as_on_the_cpu_device() {
    for (kind, rule) in ChainKind::ALL.into_iter().zip([Rule::Rejection, Rule::Block]) {
        let spec = Spec { vocab: 61, ..spec(kind, 6) };
        let asked = || {
            let mut requests = requests(5, SamplingParams::at_temperature(1.0), rule, 300);
            requests.iter_mut().step_by(2).for_each(|request| request.proposer = Some(drawing(61)));
            requests
        };
        let cpu = Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 }).unwrap();
        let found = run(&mut engine(gpu(SimtOptions::default()), &spec, Mode::Parallel), asked());
        let expected = run(&mut engine(cpu, &spec, Mode::Parallel), asked());
        let mut agreement = Agreement::default();
        for (found, expected) in found.iter().zip(&expected) {
            let [found, expected] = [found, expected].map(|output| blocks(std::slice::from_ref(output)));
            agreement.add(&found, &expected);
        }
        assert!(
            agreement.verdicts >= 20 && agreement.same_verdicts + 1 >= agreement.verdicts,
            "{agreement:?}"
        );
    }
}

/// The drafts depend on the chain: without its weights, other tokens are drafted.
#[test]
fn the_chain_changes_drafts() {
    for kind in ChainKind::ALL {
        let chained = Spec { vocab: 61, ..spec(kind, 6) };
        let alone = Spec { chain: None, ..chained.clone() };
        let drafts = |spec: &Spec| {
            let asked = requests(10, SamplingParams::GREEDY, Rule::Match, 1);
            let outputs = run(&mut engine(gpu(SimtOptions::default()), spec, Mode::Parallel), asked);
            outputs.iter().map(|output| blocks(std::slice::from_ref(output)).remove(0)).collect::<Vec<_>>()
        };
        let (chained, alone) = (drafts(&chained), drafts(&alone));
        assert!(chained.iter().zip(&alone).all(|(chained, alone)| chained.bonus == alone.bonus));
        let differ =
            chained.iter().zip(&alone).filter(|(chained, alone)| chained.draft != alone.draft).count();
        assert!(differ >= 1, "{}: all of 10 drafts are the same", kind.name());
    }
}

/// Runs the kernels of a chain in race mode: every access is checked for bounds, alignment, races and unfinished copies.
#[test]
fn a_checked_run_finds_nothing() {
    for (kind, copies) in ChainKind::ALL.into_iter().zip([Copies::Late, Copies::Eager]) {
        let options = SimtOptions { checking: Checking::Accesses, copies, schedule: 3 };
        for (rule, mode) in [(Rule::Rejection, Mode::Parallel), (Rule::Block, Mode::Sequential)] {
            let asked = requests(3, TRUNCATED, rule, 4);
            let outputs = run(&mut engine(gpu(options), &spec(kind, 32), mode), asked);
            assert!(outputs.iter().all(|output| output.tokens.len() == 9));
        }
    }
}

/// Kernels read the hidden layer of a chain's scores in chunks of 8 elements. A drafter whose chain has another rank is
/// refused when it is loaded, not when it drafts.
#[test]
fn a_chain_of_a_rank_beyond_the_kernels_is_refused_at_loading() {
    let load = |kind, rank| {
        let spec = Spec { chain: Some(ChainSpec { kind, rank, top_k: 6 }), ..spec(kind, 6) };
        let (target, drafter) = spec.weights();
        Model::new(gpu(SimtOptions::default()), &target, Some(&drafter)).map(drop)
    };
    let limit = ExceededLimit { what: "rank of the chain", found: 12, supported: "multiples of 8" };
    assert_eq!(load(ChainKind::Hidden, 12), Err(DeviceError::UnsupportedModel(limit)));
    assert_eq!(load(ChainKind::Hidden, 16), Ok(()));
    // The factors of pairs have no such limit.
    let odd = Spec {
        chain: Some(ChainSpec { kind: ChainKind::Pair, rank: 12, top_k: 6 }),
        ..spec(ChainKind::Pair, 6)
    };
    let asked = requests(2, SamplingParams::GREEDY, Rule::Match, 3);
    assert_eq!(run(&mut engine(gpu(SimtOptions::default()), &odd, Mode::Parallel), asked).len(), 2);
}
