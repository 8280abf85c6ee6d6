//! Tests with SmolLM2-135M-Instruct from its GGUF file: token ids and greedy tokens agree with transformers, and
//! decoding is lossless on a real model. `tests/record/smollm2.py` made the recordings.
//!
//! The file is at `FLEXDRAFT_SMOLLM2`, or where `demo/smollm2.sh` downloads it; without it the tests say so and pass.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use flexdraft::decode::{Engine, EngineOptions, Finish, Flex, Mode, Policy, Record, Request};
use flexdraft::device::cpu::Cpu;
use flexdraft::model::{
    ChatMessage, ChatTemplate, DrafterWeights, Model, ModelConfig, TargetWeights, TemplateVariables,
    Tokenizer,
};
use flexdraft::tensor::{DType, Tensor};
use serde::Deserialize;

use crate::support::policies::{RandomEverything, RandomGroups};
use crate::support::runs::{Output, corrupted_continuation, cpu, run};

/// The smallest distance between two logits that keeps their order; smaller distances may change sign, because sums are
/// added up in another order.
const MARGIN: f32 = 0.02;

#[derive(Deserialize)]
struct Recording {
    texts: Vec<Text>,
    chats: Vec<Chat>,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_without_special: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    /// Returns the distance of the second largest logit from the largest, for each token.
    margins: Vec<f32>,
}

fn recording() -> Recording {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn file(test: &str) -> Option<PathBuf> {
    let given = std::env::var_os("FLEXDRAFT_SMOLLM2").map(PathBuf::from);
    if let Some(path) = &given {
        assert!(path.is_file(), "FLEXDRAFT_SMOLLM2 is {}, which is not a file", path.display());
    }
    let fetched =
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = given.unwrap_or_else(fetched);
    if path.is_file() {
        return Some(path);
    }
    // The measurement is written to stderr directly, because the test harness shows the output of failed tests only.
    let _ = writeln!(
        std::io::stderr(),
        "\n*** SKIPPED {test}: there is no SmolLM2 model. Run demo/smollm2.sh, or set FLEXDRAFT_SMOLLM2. ***"
    );
    None
}

fn engine(path: &Path, drafter: Option<&DrafterWeights>, policy: impl Policy + 'static) -> Engine<Cpu> {
    // SAFETY: no process changes the file.
    let target = unsafe { TargetWeights::map(path) }.unwrap();
    let model = Model::new(cpu(0), &target, drafter).unwrap();
    Engine::new(model, policy, EngineOptions { cache_tokens: 4096, ..EngineOptions::default() }).unwrap()
}

/// The first tokens of two prompts on the GPU's kernels, run by the SIMT emulator, agree with transformers.
#[cfg(feature = "simt")]
#[test]
fn the_kernels_write_what_transformers_writes() {
    use flexdraft::device::gpu::{CpuProducts, Gpu};
    use flexdraft::kernels::Kernels;
    use flexdraft::runtime::{Simt, SimtOptions};

    let Some(path) = file("the_kernels_write_what_transformers_writes") else { return };
    // SAFETY: no process changes the file.
    let target = unsafe { TargetWeights::map(&path) }.unwrap();
    let drafter = DrafterWeights::random(&target.config, 3, 4, 16, DType::Bf16, 1).unwrap();
    let prompts = recording().prompts;
    let mut autoregressive: Option<Vec<Output>> = None;
    for mode in [Mode::Autoregressive, Mode::Parallel] {
        let kernels = Kernels::new(Simt::new(SimtOptions::default()));
        let stream = kernels.runtime().stream();
        let device = Gpu::new(kernels, stream, CpuProducts::new(0).unwrap());
        let model = Model::new(device, &target, Some(&drafter)).unwrap();
        let options = EngineOptions { cache_tokens: 1024, ..EngineOptions::default() };
        let mut engine = Engine::new(model, mode, options).unwrap();
        let requests = prompts.iter().take(2).map(|prompt| Request::new(prompt.ids.clone(), 12)).collect();
        let outputs = run(&mut engine, requests);
        for (output, prompt) in outputs.iter().zip(&prompts) {
            // Tokens may differ at small margins, because activations are bf16 on this device and f32 in the recording.
            let parting = output.tokens.iter().zip(&prompt.tokens).position(|(a, b)| a != b);
            let margin = parting.map_or(0.0, |i| prompt.margins[i]);
            assert!(margin < 0.3, "{mode:?}: token {parting:?} differs at a margin of {margin}");
        }
        let expected = autoregressive.get_or_insert_with(|| outputs.clone());
        for (output, expected) in outputs.iter().zip(expected) {
            assert_eq!(output.tokens, expected.tokens, "{mode:?}");
        }
    }
}

#[test]
fn shape_and_stop_ids() {
    let Some(path) = file("shape_and_stop_ids") else { return };
    let config = ModelConfig::read(&path).unwrap();
    let attention = config.attention;
    assert_eq!((config.layers, config.hidden_size, config.intermediate_size), (30, 576, 1536));
    assert_eq!((attention.q_heads, attention.kv_heads, attention.head_dim), (9, 3, 64));
    assert_eq!((config.vocab_size, config.context_len, config.tied_embeddings), (49_152, 8192, true));
    assert_eq!(config.eos_ids, [2]);
    assert!((config.rms_norm_eps - 1e-5).abs() < 1e-12);
    assert!((f64::from(config.rope.inv_freq[31]) - 1e5f64.powf(-31.0 / 32.0)).abs() < 1e-10);
}

/// Measures the scales that docs/tuning.md mentions: embeddings are thirteen times smaller than normed rows.
#[test]
fn embeddings_are_small_beside_normed_rows() {
    let Some(path) = file("embeddings_are_small_beside_normed_rows") else { return };
    // SAFETY: no process changes the file.
    let target = unsafe { TargetWeights::map(&path) }.unwrap();
    let root_mean_square = |tensor: &Tensor| {
        let values = tensor.to_f32();
        (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let (embeddings, rows) = (root_mean_square(&target.embed), root_mean_square(&target.norm));
    assert!((embeddings - 0.136).abs() < 5e-4 && (rows - 1.83).abs() < 5e-3, "{embeddings} {rows}");
}

#[test]
fn ids_of_texts_and_chats() {
    let Some(path) = file("ids_of_texts_and_chats") else { return };
    let Recording { texts, chats, .. } = recording();
    assert!(texts.len() > 25 && chats.len() > 5);
    let tokenizer = Tokenizer::read(&path, 49_152).unwrap();
    assert_eq!(tokenizer.len(), 49_152);
    assert_eq!(tokenizer.special_ids(), (0..17).collect::<Vec<u32>>());
    for Text { text, ids, decoded, decoded_without_special } in &texts {
        assert_eq!(&tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.encode(text, true).unwrap(), ids, "{text:?}: there is no BOS");
        assert_eq!(&tokenizer.decode(ids, false).unwrap(), decoded, "{text:?}");
        assert_eq!(&tokenizer.decode(ids, true).unwrap(), decoded_without_special, "{text:?}");
    }
    let template = ChatTemplate::read(&path).unwrap();
    for Chat { messages, rendered, ids } in &chats {
        let messages: Vec<_> = messages.iter().map(|m| ChatMessage::new(&*m.role, &*m.content)).collect();
        assert_eq!(&template.render(&TemplateVariables::new(&messages, true)).unwrap(), rendered);
        assert_eq!(&tokenizer.encode(rendered, false).unwrap(), ids, "{rendered:?}");
    }
}

/// Greedy tokens agree with transformers, up to the first place where two logits are almost equal.
#[test]
fn greedy_tokens_are_those_of_transformers() {
    let Some(path) = file("greedy_tokens_are_those_of_transformers") else { return };
    let prompts = recording().prompts;
    assert!(prompts.len() >= 8);
    let requests =
        prompts.iter().map(|prompt| Request::new(prompt.ids.clone(), prompt.tokens.len())).collect();
    let outputs = run(&mut engine(&path, None, Mode::Autoregressive), requests);
    let mut compared = 0;
    for (prompt, Output { tokens, finish, .. }) in prompts.iter().zip(&outputs) {
        assert_eq!((tokens.len(), finish), (96, &Some(Finish::Length)));
        let parting = tokens.iter().zip(&prompt.tokens).position(|(a, b)| a != b);
        let margin = parting.map(|at| prompt.margins[at]);
        assert!(
            margin.is_none_or(|margin| margin < MARGIN),
            "{:?}: token {parting:?} differs, with a margin of {margin:?}",
            prompt.text
        );
        compared += parting.unwrap_or(tokens.len());
    }
    // At least half of the tokens are compared; if all outputs differed early, the test would prove little.
    assert!(compared >= prompts.len() * 96 / 2, "{compared} tokens");
}

/// Every mode gives the same 256 tokens, whatever is drafted: one prompt has a random drafter, the other one drafts of
/// the true continuation with one wrong token per block.
#[test]
fn every_mode_gives_the_tokens_of_autoregressive_decoding() {
    let Some(path) = file("every_mode_gives_the_tokens_of_autoregressive_decoding") else { return };
    let prompts: Vec<Vec<u32>> = recording().prompts.into_iter().take(2).map(|prompt| prompt.ids).collect();
    let plain = || prompts.iter().map(|ids| Request::new(ids.clone(), 256)).collect::<Vec<_>>();
    let expected = run(&mut engine(&path, None, Mode::Autoregressive), plain());
    assert!(expected.iter().all(|output| output.tokens.len() == 256));

    let config = ModelConfig::read(&path).unwrap();
    let drafter = DrafterWeights::random(&config, 3, 4, 16, DType::Bf16, 1).unwrap();
    let requests = || {
        let mut requests = plain();
        let (known, proposing) = (expected[1].tokens.clone(), &mut requests[1]);
        proposing.proposer =
            Some(corrupted_continuation(proposing.prompt.len(), known, config.vocab_size, 3));
        // A threshold of 0 verifies the whole block; a random drafter's confidence would cut it short.
        proposing.confidence.threshold = 0.0;
        proposing.record = true;
        requests
    };
    let check = |name: &str, mut engine: Engine<Cpu>| {
        let outputs = run(&mut engine, requests());
        for (output, expected) in outputs.iter().zip(&expected) {
            assert!(output.tokens == expected.tokens, "{name} has other tokens");
        }
        outputs[1].records.iter().filter_map(accepted).collect::<BTreeSet<_>>()
    };
    check("auto", engine(&path, Some(&drafter), Flex::default()));
    for mode in [Mode::Parallel, Mode::Sequential] {
        let accepted = check(&format!("{mode:?}"), engine(&path, Some(&drafter), mode));
        assert_eq!(accepted, BTreeSet::from([0, 1, 2, 3]), "{mode:?}");
    }
    check("random groups", engine(&path, Some(&drafter), RandomGroups(3)));
    check("random everything", engine(&path, Some(&drafter), RandomEverything(RandomGroups(5))));
}

/// The drafter of `demo/smollm2-drafter` is loaded, and decodes twenty prompts, half of them fragments of text.
#[test]
fn the_drafter_made_for_it_changes_nothing_and_is_accepted() {
    let Some(path) = file("the_drafter_made_for_it_changes_nothing_and_is_accepted") else { return };
    let Recording { prompts, texts, .. } = recording();
    let scraps = texts.into_iter().map(|text| text.ids).filter(|ids| ids.len() > 3).take(10);
    let prompts: Vec<Vec<u32>> = prompts.into_iter().map(|prompt| prompt.ids).chain(scraps).collect();
    assert_eq!(prompts.len(), 20);
    let requests =
        || prompts.iter().map(|ids| Request { record: true, ..Request::new(ids.clone(), 64) }).collect();
    let expected = run(&mut engine(&path, None, Mode::Autoregressive), requests());

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/smollm2-drafter");
    let drafter = DrafterWeights::read(&folder, &ModelConfig::read(&path).unwrap()).unwrap();
    for mode in [Mode::Parallel, Mode::Sequential] {
        let outputs = run(&mut engine(&path, Some(&drafter), mode), requests());
        for (output, expected) in outputs.iter().zip(&expected) {
            assert!(output.tokens == expected.tokens, "{mode:?} has other tokens");
        }
        let steps: Vec<usize> =
            outputs.iter().flat_map(|output| output.records.iter().filter_map(accepted)).collect();
        let tau = 1.0 + steps.iter().sum::<usize>() as f64 / steps.len() as f64;
        assert!(tau > 1.2, "acceptance length {tau}");
    }
}

fn accepted(record: &Record) -> Option<usize> {
    match record {
        Record::Step(step) => Some(step.accepted),
        Record::Prefill(_) => None,
    }
}
