//! The engine gives the same tokens as the official implementation of FlexDraft.
//!
//! `tests/fixtures/tiny` holds a small trained pair and 24 recorded runs; its README describes the recordings and how
//! to compare with them.

use std::path::Path;

use flexdraft::decode::{
    BlockRecord, Confidence, ConfidenceStrategy, Engine, EngineOptions, Mode, Record, Request,
};
use flexdraft::device::cpu::Cpu;
use flexdraft::model::Model;
use flexdraft::model::{DrafterWeights, TargetWeights};
use serde::Deserialize;

use crate::support::runs::{Output, cpu, run};

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    block_size: usize,
    threshold: f32,
    strategy: String,
    max_new_tokens: usize,
    output: Vec<u32>,
    ar_output: Vec<u32>,
    acceptance_lengths: Vec<usize>,
    num_groups: Vec<usize>,
    candidates: Vec<Vec<u32>>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    start: usize,
    groups: usize,
    accepted: usize,
    bonus: u32,
    draft: Vec<u32>,
    confidence: Vec<f32>,
}

impl Case {
    fn request(&self) -> Request {
        let strategy = match self.strategy.as_str() {
            "cumulative_product" => ConfidenceStrategy::CumulativeProduct,
            "min_confidence" => ConfidenceStrategy::MinConfidence,
            other => panic!("unknown strategy {other}"),
        };
        Request {
            block_size: Some(self.block_size),
            confidence: Confidence { threshold: self.threshold, strategy },
            record: true,
            ..Request::new(self.prompt.clone(), self.max_new_tokens)
        }
    }
}

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny")
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&std::fs::read_to_string(fixture().join("cases.json")).unwrap()).unwrap()
}

fn engine(mode: Mode) -> Engine<Cpu> {
    let target = TargetWeights::read(&fixture().join("target")).unwrap();
    let drafter = DrafterWeights::read(&fixture().join("draft"), &target.config).unwrap();
    let model = Model::new(cpu(2), &target, Some(&drafter)).unwrap();
    Engine::new(model, mode, EngineOptions::default()).unwrap()
}

fn compare(name: &str, case: &Case, output: &Output) {
    assert_eq!(output.tokens, case.output, "{name}");
    let mut records = output.records.iter();
    let Some(Record::Prefill(prefill)) = records.next() else { panic!("{name}: no prefill record") };
    assert_eq!(prefill.bonus, case.candidates[0][0], "{name}");
    assert_eq!(prefill.draft, case.candidates[0][1..], "{name}");

    let steps: Vec<_> = records
        .map(|record| match record {
            Record::Step(step) => step,
            Record::Prefill(_) => panic!("{name}: two prefill records"),
        })
        .collect();
    // The official loop may make one more step after the last token is known.
    assert!(steps.len() == case.steps.len() || steps.len() + 1 == case.steps.len(), "{name}");
    for (index, (step, official)) in steps.iter().zip(&case.steps).enumerate() {
        let name = format!("{name}, step {index}");
        assert_eq!(step.position, official.start, "{name}");
        assert_eq!(step.verify_len + 1, case.num_groups[index], "{name}");
        assert_eq!(step.verify_len + 1, official.groups, "{name}");
        assert_eq!(step.candidates, case.candidates[index][..=step.verify_len], "{name}");
        assert_eq!(step.accepted, official.accepted, "{name}");
        assert_eq!(step.accepted + 1, case.acceptance_lengths[index], "{name}");
        let BlockRecord { bonus, draft, confidence } = &step.next;
        assert_eq!((*bonus, draft), (official.bonus, &official.draft), "{name}");
        assert_eq!(confidence.len(), official.confidence.len(), "{name}");
        for (found, expected) in confidence.iter().zip(&official.confidence) {
            assert!((found - expected).abs() < 1e-5, "{name}: confidence {found}, official {expected}");
        }
    }
}

#[test]
fn all_cases_alone_and_in_one_batch() {
    let cases = cases();
    assert_eq!(cases.len(), 24);
    for mode in [Mode::Parallel, Mode::Sequential] {
        let mut engine = engine(mode);
        let batched = run(&mut engine, cases.iter().map(Case::request).collect());
        for (index, (case, output)) in cases.iter().zip(&batched).enumerate() {
            let name = format!("case {index}, {mode:?}");
            compare(&name, case, output);
            if index % 5 == 0 {
                assert_eq!(&run(&mut engine, vec![case.request()])[0], output, "{name}");
            }
        }
    }
}

#[test]
fn autoregressive_output() {
    let cases = cases();
    let outputs = run(&mut engine(Mode::Autoregressive), cases.iter().map(Case::request).collect());
    for (case, output) in cases.iter().zip(&outputs) {
        assert_eq!(output.tokens, case.ar_output);
    }
}
