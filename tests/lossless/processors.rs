//! Tests that logit processors change the target's distribution and nothing else: with processors, every mode still
//! gives the tokens of autoregressive decoding with the same processors, and greedy tokens equal the tokens of transformers.

use std::collections::BTreeMap;
use std::path::Path;

use flexdraft::acceptance::Rule;
use flexdraft::decode::{DecodeError, Engine, EngineOptions, Mode, Policy, Record, Request, StepMode};
use flexdraft::model::{DrafterWeights, Model, TargetWeights};
use flexdraft::processors::{LogitProcessors, ProcessorError};
use flexdraft::sampling::SamplingParams;
use proptest::prelude::*;
use serde::Deserialize;

use crate::every_mode::{Ask, Case, ask};
use crate::support::models::{Shapes, Spec, spec};
use crate::support::policies::RandomGroups;
use crate::support::processors::{all_but, processors};
use crate::support::properties::properties;
use crate::support::runs::{Output, cpu, engine, run, run_alone};

prop_compose! {
    fn spec_and_asks()(spec in spec(Shapes::SMALL))(
        asks in prop::collection::vec((ask(), (processors(spec.vocab), 0.3f32..2.0, any::<u64>())), 1..5),
        spec in Just(spec),
    ) -> (Spec, Vec<(Ask, (LogitProcessors, f32, u64))>) {
        (spec, asks)
    }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn every_mode_gives_the_tokens_of_autoregressive_decoding(
        (spec, asks) in spec_and_asks(),
        greedy in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let request = |(ask, (processors, temperature, seed)): &(Ask, (LogitProcessors, f32, u64))| Request {
            rule: Rule::Match,
            processors: processors.clone(),
            sampling: SamplingParams::at_temperature(if greedy { 0.0 } else { *temperature }),
            seed: *seed,
            ..ask.request(&spec)
        };
        let ar: Vec<Output> =
            asks.iter().map(|ask| run_alone(&spec, Mode::Autoregressive, request(ask))).collect();
        Case { spec: &spec, asks: &asks, ar: &ar, request }.check_every_mode(seed)?;
    }
}

#[derive(Deserialize)]
struct Recording {
    max_new_tokens: usize,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    prompt: Vec<u32>,
    repetition_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
    min_tokens: usize,
    stop_ids: Vec<u32>,
    bad_words: Vec<Vec<u32>>,
    tokens: Vec<u32>,
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    let text = include_str!("../fixtures/transformers/processors.json");
    let recording: Recording = serde_json::from_str(text).unwrap();
    assert_eq!(recording.rows.len(), 40);
    let request = |row: &Row| Request {
        stop_ids: row.stop_ids.clone(),
        processors: LogitProcessors {
            repetition_penalty: row.repetition_penalty,
            logit_bias: row.logit_bias.iter().copied().collect(),
            min_tokens: row.min_tokens,
            bad_words: row.bad_words.clone(),
            ..LogitProcessors::default()
        },
        ..Request::new(row.prompt.clone(), recording.max_new_tokens)
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny");
    let target = TargetWeights::read(&folder.join("target")).unwrap();
    let drafter = DrafterWeights::read(&folder.join("draft"), &target.config).unwrap();
    for mode in [Mode::Autoregressive, Mode::Parallel, Mode::Sequential] {
        let model = Model::new(cpu(2), &target, Some(&drafter)).unwrap();
        let mut engine = Engine::new(model, mode, EngineOptions::default()).unwrap();
        let outputs = run(&mut engine, recording.rows.iter().map(request).collect());
        for (row, output) in recording.rows.iter().zip(&outputs) {
            assert_eq!(output.tokens, row.tokens, "{} after {:?}", mode.name(), row.prompt);
        }
    }
}

/// Returns processors that forbid id 3 by the mask, repeats of ids 0 to 5 by bad words, and the stop id 7 before the
/// tenth token.
fn strict(vocab: usize) -> LogitProcessors {
    LogitProcessors {
        frequency_penalty: 0.2,
        min_tokens: 10,
        bad_words: (0..6).map(|id| vec![id, id]).collect(),
        allowed: Some(all_but(3, vocab)),
        ..LogitProcessors::default()
    }
}

#[test]
fn rejection_and_block_never_emit_what_is_forbidden() {
    let spec = Spec { gain: 0.7, ..Spec::default() };
    for rule in [Rule::Rejection, Rule::Block] {
        let request = |seed| Request {
            seed,
            rule,
            sampling: SamplingParams::at_temperature(1.0),
            stop_ids: vec![7],
            processors: strict(spec.vocab),
            ..Request::new(vec![4, 8, 1], 40)
        };
        let outputs = run(&mut engine(&spec, RandomGroups(8)), (0..20).map(request).collect());
        for output in &outputs {
            let tokens = &output.tokens;
            assert!(tokens.len() == 40 || (tokens.len() > 10 && tokens.ends_with(&[7])), "{tokens:?}");
            assert!(!tokens.contains(&3) && tokens.windows(2).all(|pair| pair[0] != pair[1] || pair[0] > 5));
        }
        assert!(outputs.iter().any(|output| output.tokens.len() < 40), "{rule:?}: the stop id never came");
    }
}

#[test]
fn a_request_without_drafting_verifies_nothing() {
    let spec = Spec::default();
    let request = |drafting| Request { drafting, record: true, ..Request::new(vec![4, 8, 1], 20) };
    for mode in [Mode::Parallel, Mode::Sequential] {
        let outputs = run(&mut engine(&spec, mode), vec![request(false), request(true)]);
        assert_eq!(outputs[0].tokens, outputs[1].tokens);
        let modes = |output: &Output| -> Vec<StepMode> {
            let mode = |record: &Record| match record {
                Record::Step(step) => Some(step.mode),
                Record::Prefill(first) => {
                    assert_eq!(first.draft.is_empty(), output == &outputs[0]);
                    None
                }
            };
            output.records.iter().filter_map(mode).collect()
        };
        assert_eq!(modes(&outputs[0]), [StepMode::Autoregressive; 19]);
        assert!(!modes(&outputs[1]).contains(&StepMode::Autoregressive));
    }
}

#[test]
fn parameters_out_of_range_refuse_the_request() {
    let spec = Spec::default();
    let mut engine = engine(&spec, Mode::Parallel);
    let mut error = |processors| {
        let request = Request { processors, ..Request::new(vec![1], 5) };
        engine.add(request).unwrap_err()
    };
    let off = LogitProcessors::default();
    let out_of_vocabulary = LogitProcessors { logit_bias: BTreeMap::from([(999, 1.0)]), ..off.clone() };
    assert!(matches!(
        error(out_of_vocabulary),
        DecodeError::Processors(ProcessorError::OutOfVocabulary { id: 999, .. })
    ));
    let nothing = LogitProcessors { allowed: Some(vec![0; spec.vocab.div_ceil(32)].into()), ..off };
    assert_eq!(error(nothing), DecodeError::Processors(ProcessorError::NoAllowedId));
}
