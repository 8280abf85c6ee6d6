//! The example that decodes the bundled pair.

use std::path::Path;

use flexdraft::decode::{Engine, EngineOptions, Mode, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{Model, TargetWeights, Tokenizer};

use crate::example;
use crate::margins::{Margins, NEAR_TIE};

#[test]
fn the_example_runs() {
    example::main().unwrap();
}

/// The program writes what it writes alone, and what the engine writes. The engine's CPU device does not round attention's
/// operands to bf16, so its tokens may differ after a near-tie, and are compared up to there.
#[test]
fn decodes_as_alone_and_as_the_engine() {
    const TOKENS: usize = 40;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/tiny");
    let program = example::Program::read(&folder.join("target"), &folder.join("drafter")).unwrap();
    let target = TargetWeights::read(&folder.join("target")).unwrap();
    let tokenizer = Tokenizer::read(&folder.join("target"), target.config.vocab_size).unwrap();
    let mut same = 0;
    for text in [
        "/// Subtracts packed 16-bit integers in `b` from `a`.\n",
        "#[inline]\n#[target_feature(enable = \"sse2\")]\n",
    ] {
        let prompt = tokenizer.encode(text, true).unwrap();
        let drafted = program.decode(&prompt, TOKENS).unwrap();
        let alone = program.decode_alone(&prompt, TOKENS).unwrap();
        assert_eq!(drafted.tokens, alone.tokens, "{text}");
        assert_eq!(alone.steps, TOKENS - 1);
        assert!(drafted.steps < alone.steps, "{} steps", drafted.steps);

        let cpu = Cpu::new(CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap();
        let model = Model::new(cpu, &target, None).unwrap();
        let mut engine = Engine::new(model, Mode::Autoregressive, EngineOptions::default()).unwrap();
        let margins = Margins::default();
        let logits_hook = Some(Box::new(margins.clone()) as _);
        engine.add(Request { logits_hook, ..Request::new(prompt, TOKENS) }).unwrap();
        let mut expected = Vec::new();
        while !engine.is_idle() {
            expected.extend(engine.step().unwrap().into_iter().flat_map(|committed| committed.tokens));
        }
        assert_eq!(expected.len(), TOKENS);
        let parting = drafted.tokens.iter().zip(&expected).position(|(a, b)| a != b);
        if let Some(token) = parting {
            let margin = margins.of_token(token);
            assert!(margin < NEAR_TIE, "{text}: token {token} differs at {margin} of the logits' range");
        }
        same += parting.unwrap_or(TOKENS);
    }
    assert!(10 * same >= 8 * 2 * TOKENS, "{same} of {} tokens are the engine's", 2 * TOKENS);
}
