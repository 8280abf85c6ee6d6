//! Tests of the decode loop with the GPU device on the SIMT emulator, which gets the same launches as a GPU.

use std::cell::Cell;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Engine, EngineOptions, Mode, Policy, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::device::gpu::{CpuProducts, Gpu, HeadProducts};
use flexdraft::device::{Device, Precision};
use flexdraft::kernels::Kernels;
use flexdraft::model::Model;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::DType;
use proptest::prelude::*;

use crate::margins::{Margins, NEAR_TIE};
use crate::support::models::{Shapes, Spec, either_drafter, spec};
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::properties::properties;
use crate::support::runs::{Block, Output, blocks, proposing, run};
use crate::support::simt_variant::checking;

pub fn gpu(options: SimtOptions) -> Gpu<CpuProducts> {
    let options = SimtOptions { checking: checking(options.checking), ..options };
    let kernels = Kernels::new(Simt::new(options));
    let stream = kernels.runtime().stream();
    // Attention divides contexts into splits of 64 keys here, so that even short contexts have several.
    Gpu::new(kernels, stream, CpuProducts::new(1).unwrap()).with_split(64)
}

pub fn engine<D: Device>(device: D, spec: &Spec, policy: impl Policy + 'static) -> Engine<D> {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    Engine::new(model, policy, EngineOptions { cache_tokens: 1024, ..EngineOptions::default() }).unwrap()
}

/// A generated request, whose prompt tokens are taken modulo the vocabulary.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub rule: Rule,
    pub proposes: bool,
    pub seed: u64,
}

impl Ask {
    pub fn request(&self, spec: &Spec) -> Request {
        let vocab = spec.vocab as u32;
        let sampling =
            SamplingParams { temperature: self.temperature, top_k: self.top_k, top_p: 1.0, min_p: 0.0 };
        Request {
            sampling,
            rule: self.rule,
            seed: self.seed,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            ..Request::new(self.prompt.iter().map(|id| id % vocab).collect(), self.max_new_tokens)
        }
    }

    fn proposing(&self, spec: &Spec, expected: &Output) -> Request {
        let request = self.request(spec);
        if self.proposes { proposing(request, expected, spec.vocab) } else { request }
    }
}

prop_compose! {
    pub fn ask()(
        prompt in prop::collection::vec(any::<u32>(), 1..80),
        max_new_tokens in 1usize..10,
        temperature in prop::sample::select(vec![0.0f32, 0.0, 1.0, 0.7]),
        top_k in prop::sample::select(vec![0usize, 0, 5]),
        rule in prop::sample::select(vec![Rule::Match, Rule::Rejection, Rule::Block]),
        proposes in any::<bool>(),
        seed in any::<u64>(),
    ) -> Ask {
        Ask { prompt, max_new_tokens, temperature, top_k, rule, proposes, seed }
    }
}

proptest! {
    #![proptest_config(properties(4))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_decoding(
        spec in either_drafter(spec(Shapes::OF_KERNELS)),
        asks in prop::collection::vec(ask(), 1..3),
        seed in any::<u64>(),
    ) {
        let asks: Vec<Ask> = asks.into_iter().map(|ask| {
            // At temperatures above 0, only the rule `match` gives the tokens of autoregressive sampling.
            Ask { rule: if ask.temperature > 0.0 { Rule::Match } else { ask.rule }, ..ask }
        }).collect();
        let late = SimtOptions { copies: Copies::Late, schedule: seed | 1, ..SimtOptions::default() };
        let alone = |ask: &Ask| {
            let mut engine = engine(gpu(SimtOptions::default()), &spec, Mode::Autoregressive);
            run(&mut engine, vec![ask.request(&spec)]).remove(0)
        };
        let ar: Vec<Output> = asks.iter().map(alone).collect();
        let check = |name: &str, mut engine: Engine<Gpu<CpuProducts>>| {
            let requests = asks.iter().zip(&ar).map(|(ask, ar)| ask.proposing(&spec, ar)).collect();
            for (output, expected) in run(&mut engine, requests).iter().zip(&ar) {
                prop_assert_eq!(&output.tokens, &expected.tokens, "{}", name);
            }
            Ok(())
        };
        for mode in spec.drafting_modes() {
            let options = if mode == Mode::Parallel { late } else { SimtOptions::default() };
            check(mode.name(), engine(gpu(options), &spec, mode))?;
        }
        check("any groups", engine(gpu(late), &spec, RandomGroups(seed)))?;
        check("any length", engine(gpu(late), &spec, RandomEverything(RandomGroups(seed))))?;
    }

    /// Parallel and sequential drafting give the same draft tokens, and confidences with the same bits. Committed
    /// tokens would not show a difference: greedy decoding and `match` commit the same tokens whatever is drafted.
    #[test]
    fn drafts_and_what_is_accepted_of_them_are_the_same_in_every_mode(
        spec in spec(Shapes::OF_KERNELS),
        block_size in 2usize..6,
        asks in prop::collection::vec(ask(), 1..3),
        seed in any::<u64>(),
    ) {
        let spec = Spec { block_size, ..spec };
        let late = SimtOptions { copies: Copies::Late, schedule: seed | 1, ..SimtOptions::default() };
        let run = |engine: &mut Engine<Gpu<CpuProducts>>| {
            let requests = asks.iter().map(|ask| Request { record: true, ..ask.request(&spec) }).collect();
            let outputs = run(engine, requests);
            (blocks(&outputs), outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>())
        };
        let parallel = run(&mut engine(gpu(SimtOptions::default()), &spec, Mode::Parallel));
        prop_assert!(parallel.0.iter().all(|block| block.drafted() == block_size - 1));
        prop_assert_eq!(&run(&mut engine(gpu(late), &spec, Mode::Sequential)), &parallel);
        let mixed = RandomGroups(seed);
        prop_assert_eq!(&run(&mut engine(gpu(SimtOptions::default()), &spec, mixed)), &parallel);
    }
}

proptest! {
    #![proptest_config(properties(1))]

    /// Steps with more than 32 candidates are padded. Neither tokens nor the bits of confidences depend on the padding.
    #[test]
    fn padding_changes_no_result(
        spec in either_drafter(spec(Shapes::OF_KERNELS)),
        asks in prop::collection::vec(ask(), 5..7),
        seed in any::<u64>(),
        joined in any::<bool>(),
    ) {
        // The emulator takes minutes for a step of such a batch with more heads.
        let spec = Spec { block_size: 10, head_dim: 64, kv_heads: 1, q_per_kv: spec.q_per_kv.min(2), ..spec };
        let products = if joined { HeadProducts::Joined } else { HeadProducts::Apart };
        let device = |padding| gpu(SimtOptions::default()).with_head_products(products).with_padding(padding);
        let run = |padding, policy: Box<dyn Policy>| {
            let ask = |ask: &Ask| {
                let prompt = ask.prompt.iter().copied().take(20).collect();
                Request { record: true, ..Ask { prompt, max_new_tokens: 3, ..ask.clone() }.request(&spec) }
            };
            let mut engine = engine(device(padding), &spec, policy);
            let outputs = run(&mut engine, asks.iter().map(ask).collect());
            (blocks(&outputs), outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>())
        };
        let policies = || -> Vec<Box<dyn Policy>> {
            let modes = spec.drafting_modes().into_iter().map(|mode| Box::new(mode) as Box<dyn Policy>);
            modes.chain([Box::new(RandomEverything(RandomGroups(seed))) as Box<dyn Policy>]).collect()
        };
        for (number, (plain, padded)) in policies().into_iter().zip(policies()).enumerate() {
            prop_assert_eq!(run(false, plain), run(true, padded), "policy {}", number);
        }
    }
}

#[test]
fn greedy_tokens_and_drafts_are_the_cpu_device_s() {
    let (compared, tokens) = (Cell::new(0), Cell::new(0));
    let (same_drafts, drafts) = (Cell::new(0), Cell::new(0));
    let add = |sum: &Cell<usize>, more| sum.set(sum.get() + more);
    proptest!(properties(4), |(spec in either_drafter(spec(Shapes::OF_KERNELS)), ask in ask())| {
        let mode = spec.drafting_modes()[0];
        let ask = Ask { temperature: 0.0, max_new_tokens: 12, ..ask };
        let margins = Margins::default();
        let mut request = ask.request(&spec);
        request.logits_hook = Some(Box::new(margins.clone()));
        let cpu = || Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 }).unwrap();
        let expected = run(&mut engine(cpu(), &spec, Mode::Autoregressive), vec![request]).remove(0);
        let recorded = || vec![Request { record: true, ..ask.request(&spec) }];
        let found = run(&mut engine(gpu(SimtOptions::default()), &spec, mode), recorded()).remove(0);
        // The CPU device does not round attention's weights to bf16, so its tokens may differ after a near-tie of two
        // logits.
        let parting = expected.tokens.iter().zip(&found.tokens).position(|(a, b)| a != b);
        if let Some(index) = parting {
            let margin = margins.of_token(index);
            prop_assert!(margin < NEAR_TIE, "token {index} differs at {margin} of the logits' range");
        }
        add(&tokens, expected.tokens.len());
        add(&compared, parting.unwrap_or(expected.tokens.len()));
        // After equal tokens, the drafts of the GPU device and the CPU device agree, up to near-ties of logits.
        let drafting = run(&mut engine(cpu(), &spec, mode), recorded()).remove(0);
        let state = |block: &Block| (block.candidates.clone(), block.accepted, block.bonus);
        for (found, expected) in blocks(&[found]).iter().zip(&blocks(&[drafting])) {
            if state(found) != state(expected) {
                break;
            }
            add(&drafts, expected.drafted());
            for (i, (a, b)) in found.draft.iter().zip(&expected.draft).enumerate() {
                add(&same_drafts, usize::from(a == b));
                // A near-tie for the last of a chain's K tokens changes the confidence of all of them; `chains` compares
                // what is drafted and accepted with a chain.
                let [a, b] = [found, expected].map(|block| f32::from_bits(block.confidence[i]));
                prop_assert!(spec.chain.is_some() || (a - b).abs() < 0.1, "confidence {a} and {b}");
            }
        }
    });
    let [compared, tokens, same_drafts, drafts] =
        [compared, tokens, same_drafts, drafts].map(Cell::into_inner);
    assert!(2 * compared >= tokens, "only {compared} of {tokens} tokens were compared");
    assert!(
        5 * same_drafts >= 4 * drafts && drafts >= tokens / 4,
        "{same_drafts} of {drafts} drafts are the same"
    );
}

/// Runs one step that launches every kernel in race mode: every access is checked for bounds, alignment, races and
/// unfinished copies.
#[test]
fn a_checked_run_finds_nothing() {
    let spec = Spec {
        head_dim: 64,
        hidden: 32,
        rank: Some(8),
        dtype: DType::Bf16,
        layers: 2,
        tail: 1,
        ..Spec::default()
    };
    for (schedule, copies) in [(0, Copies::Late), (3, Copies::Eager)] {
        let options = SimtOptions { checking: Checking::Accesses, copies, schedule };
        let ask = |temperature, rule| Ask {
            prompt: (0..70).collect(),
            max_new_tokens: 5,
            temperature,
            top_k: 0,
            rule,
            proposes: false,
            seed: 5,
        };
        let asks = [ask(0.0, Rule::Match), ask(1.0, Rule::Rejection), ask(1.0, Rule::Block)];
        let requests = asks.iter().map(|ask| ask.request(&spec)).collect();
        let outputs = run(&mut engine(gpu(options), &spec, Mode::Parallel), requests);
        assert!(outputs.iter().all(|output| output.tokens.len() == 5));
    }
}

/// Tests an Orthrus drafter on the GPU device with blocks of 64 slots, the largest block size. Its rows and bonus
/// tokens reach the drafting pass by kernels that the FlexDraft drafter does not use.
#[test]
fn orthrus_drafts_blocks_of_64_slots() {
    let spec =
        Spec { head_dim: 64, hidden: 32, dtype: DType::Bf16, layers: 2, block_size: 64, ..Spec::default() }
            .with_orthrus();
    let ask = |temperature, rule| Ask {
        prompt: (0..20).collect(),
        max_new_tokens: 8,
        temperature,
        top_k: 0,
        rule,
        proposes: false,
        seed: 5,
    };
    let asks = [ask(0.0, Rule::Match), ask(1.0, Rule::Block)];
    let options = SimtOptions { checking: Checking::Accesses, copies: Copies::Late, schedule: 3 };
    let cpu = Cpu::new(CpuOptions { threads: 1, precision: Precision::Bf16 }).unwrap();
    let requests = || asks.iter().map(|ask| Request { record: true, ..ask.request(&spec) }).collect();
    let found = run(&mut engine(gpu(options), &spec, Mode::Sequential), requests());
    let expected = run(&mut engine(cpu, &spec, Mode::Sequential), requests());
    let (found, expected) = (blocks(&found[..1]), blocks(&expected[..1]));
    assert!(found.iter().all(|block| block.drafted() == 63));
    let same = found[0].draft.iter().zip(&expected[0].draft).filter(|(a, b)| a == b).count();
    assert!(same >= 56, "{same} of 63 first drafts are the CPU device's");
}
