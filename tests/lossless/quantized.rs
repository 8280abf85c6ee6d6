//! Tests that decoding is lossless over a quantised target: a GGUF file with blocks of every format that the CPU device
//! keeps. Its tokens are the tokens of the dequantised target, in every mode and with every rule, in batches and alone.
//! With activations of 8 bits, the tokens of every mode are the tokens of decoding one at a time.

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Engine, EngineOptions, Flex, Mode, Policy, Record, Request};
use flexdraft::device::Precision;
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::weights::{LinearWeights, TargetWeights};
use flexdraft::model::{DrafterWeights, Model, QuantizedWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft::tensor::{BlockFormat, DType, Elements, Tensor};

use crate::support::blocks::random_blocks;
use crate::support::gguf::{File, Value};
use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::runs::{Output, proposing, run};

const VOCAB: usize = 61;
const LAYERS: usize = 2;

/// Returns a GGUF file of a `llama` model with random blocks.
fn file() -> File {
    let mut file = File { version: 3, pairs: Vec::new(), tensors: Vec::new(), data: Vec::new() };
    for (key, value) in [
        ("general.architecture", "llama".into()),
        ("llama.block_count", Value::U32(LAYERS as u32)),
        ("llama.context_length", Value::U32(512)),
        ("llama.embedding_length", Value::U32(256)),
        ("llama.feed_forward_length", Value::U32(512)),
        ("llama.attention.head_count", Value::U32(8)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ] {
        file.set(key, value);
    }
    let mut seed = 0;
    let mut blocks = |file: &mut File, name: &str, format, shape: [usize; 2], gain: f32| {
        seed += 1;
        let matrix = random_blocks(format, shape, gain / (shape[1] as f32).sqrt(), seed);
        let Elements::Blocks(blocks) = matrix.elements() else { unreachable!() };
        file.add_bytes(&format!("{name}.weight"), &shape.map(|n| n as u64), number(format), blocks.bytes());
    };
    let ones = |file: &mut File, name: &str| {
        let bytes: Vec<u8> = (0..256).flat_map(|_| 1f32.to_le_bytes()).collect();
        file.add_bytes(&format!("{name}.weight"), &[256], 0, &bytes);
    };
    blocks(&mut file, "token_embd", BlockFormat::Q6K, [VOCAB, 256], 6.0);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        ones(&mut file, &name("attn_norm"));
        blocks(&mut file, &name("attn_q"), BlockFormat::Q4K, [256, 256], 1.5);
        blocks(&mut file, &name("attn_k"), BlockFormat::Q5K, [64, 256], 1.5);
        blocks(&mut file, &name("attn_v"), BlockFormat::Q6K, [64, 256], 1.5);
        blocks(&mut file, &name("attn_output"), BlockFormat::Q8_0, [256, 256], 1.5);
        ones(&mut file, &name("ffn_norm"));
        blocks(&mut file, &name("ffn_gate"), BlockFormat::Q4_0, [512, 256], 1.5);
        blocks(&mut file, &name("ffn_up"), BlockFormat::Q4_1, [512, 256], 1.5);
        blocks(&mut file, &name("ffn_down"), BlockFormat::Q4K, [256, 512], 1.5);
    }
    ones(&mut file, "output_norm");
    file
}

/// Returns ggml's number of a format.
fn number(format: BlockFormat) -> u32 {
    match format {
        BlockFormat::Q4_0 => 2,
        BlockFormat::Q4_1 => 3,
        BlockFormat::Q8_0 => 8,
        BlockFormat::Q4K => 12,
        BlockFormat::Q5K => 13,
        BlockFormat::Q6K => 14,
    }
}

/// Returns a target with the same numbers in f32.
fn dequantized(target: &TargetWeights) -> TargetWeights {
    let plain = |tensor: &Tensor| Tensor::from_f32(tensor.shape(), tensor.to_f32()).unwrap();
    let mut target = target.clone();
    target.embed = plain(&target.embed);
    target.lm_head = target.embed.clone();
    for layer in &mut target.layers {
        let attention = &mut layer.attention;
        let linears: [&mut LinearWeights; 7] = [
            &mut attention.q,
            &mut attention.k,
            &mut attention.v,
            &mut attention.o,
            &mut layer.gate,
            &mut layer.up,
            &mut layer.down,
        ];
        for linear in linears {
            assert!(linear.weight.block_format().is_some());
            linear.weight = plain(&linear.weight);
        }
    }
    target
}

fn decode(
    target: &TargetWeights,
    drafter: &DrafterWeights,
    (threads, precision): (usize, Precision),
    policy: impl Policy + 'static,
    requests: Vec<Request>,
) -> Vec<Output> {
    let device = Cpu::new(CpuOptions { threads, precision }).unwrap();
    let model = Model::new(device, target, Some(drafter)).unwrap();
    run(&mut Engine::new(model, policy, EngineOptions::default()).unwrap(), requests)
}

#[test]
fn every_mode_and_rule_over_blocks_is_as_over_their_numbers() {
    let target = file().open().unwrap().target_with(QuantizedWeights::Keep).unwrap();
    let sampled = SamplingParams::at_temperature(1.0);
    let rules = [
        (Rule::Rejection, SamplingParams::at_temperature(0.0)),
        (Rule::Match, sampled),
        (Rule::Rejection, sampled),
        (Rule::Block, sampled),
    ];
    check(&target, &dequantized(&target), Precision::F32, &rules);
}

#[test]
fn every_mode_is_lossless_with_activations_of_8_bits() {
    let target = file().open().unwrap().target_with(QuantizedWeights::Keep).unwrap();
    let greedy = (Rule::Rejection, SamplingParams::at_temperature(0.0));
    check(&target, &target, Precision::Q8, &[greedy, (Rule::Match, SamplingParams::at_temperature(1.0))]);
}

/// Checks that the target gives the tokens of `plain`, in every mode, for requests with each of the rules.
fn check(
    target: &TargetWeights,
    plain: &TargetWeights,
    precision: Precision,
    rules: &[(Rule, SamplingParams)],
) {
    let drafter = DrafterWeights::random(&target.config, 1, 6, 16, DType::Bf16, 3).unwrap();
    let on = |threads: usize| (threads, precision);
    let mut accepted = [0; 6];
    for &(rule, sampling) in rules {
        let request = |i: u32| Request {
            rule,
            sampling,
            seed: u64::from(i),
            record: true,
            ..Request::new((0..5 + 21 * i).map(|p| (p * p + 7 * i) % VOCAB as u32).collect(), 40)
        };
        // Without drafts every rule draws the same tokens.
        let requests = || (0..4).map(request).collect::<Vec<_>>();
        let ar = decode(plain, &drafter, on(1), Mode::Autoregressive, requests());
        assert!(ar.windows(2).all(|pair| pair[0].tokens != pair[1].tokens));
        assert_eq!(decode(target, &drafter, on(3), Mode::Autoregressive, requests()), ar);
        let keeps_tokens = rule == Rule::Match || sampling.temperature == 0.0;
        let proposing = || requests().into_iter().zip(&ar).map(|(request, ar)| proposing(request, ar, VOCAB));
        for mode in [Mode::Parallel, Mode::Sequential] {
            let own = decode(target, &drafter, on(1), mode, requests());
            assert_eq!(own, decode(plain, &drafter, on(2), mode, requests()), "{rule:?} {mode:?}");
            let proposed = decode(target, &drafter, on(2), mode, proposing().collect());
            for (index, request) in proposing().enumerate() {
                let alone = decode(target, &drafter, on(1), mode, vec![request]);
                assert_eq!(alone[0].tokens, proposed[index].tokens, "{rule:?} {mode:?} alone");
            }
            for (output, ar) in proposed.iter().chain(&own).zip(ar.iter().cycle()) {
                assert!(!keeps_tokens || output.tokens == ar.tokens, "{rule:?} {mode:?}");
            }
            for record in proposed.iter().flat_map(|output| &output.records) {
                if let Record::Step(step) = record {
                    accepted[step.accepted] += 1;
                }
            }
        }
        if keeps_tokens {
            let tokens = |outputs: &[Output]| outputs.iter().map(|o| o.tokens.clone()).collect::<Vec<_>>();
            let auto = decode(target, &drafter, on(2), Flex::default(), requests());
            let groups = decode(target, &drafter, on(1), RandomGroups(5), proposing().collect());
            let random =
                decode(target, &drafter, on(1), RandomEverything(RandomGroups(6)), proposing().collect());
            assert_eq!([tokens(&auto), tokens(&groups), tokens(&random)], [(); 3].map(|()| tokens(&ar)));
        }
    }
    assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
}
