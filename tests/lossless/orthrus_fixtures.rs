//! Tests that the engine gives the same tokens as the official implementation of Orthrus.
//!
//! The tests run a small trained model of 12 recorded runs on the CPU device.

use flexdraft::decode::{BlockRecord, Engine, EngineOptions, Flex, Mode, Policy, Record};
use flexdraft::device::cpu::Cpu;
use flexdraft::model::{Model, ModelWeights};

use crate::support::official_orthrus::{BLOCK_SIZE, Case, cases, fixture};
use crate::support::runs::{Output, cpu, run};

fn engine(policy: impl Policy + 'static) -> Engine<Cpu> {
    let weights = ModelWeights::read(&fixture()).unwrap();
    let model = Model::new(cpu(2), &weights.target, weights.drafter.as_ref()).unwrap();
    Engine::new(model, policy, EngineOptions::default()).unwrap()
}

/// Checks that an output equals the recorded output of the official implementation in its tokens, and in the steps in
/// which the official loop had a whole block.
fn compare(name: &str, case: &Case, output: &Output) {
    assert_eq!(output.tokens, case.output, "{name}");
    let mut records = output.records.iter();
    let Some(Record::Prefill(prefill)) = records.next() else { panic!("{name}: no prefill record") };
    let mut block = prefill;
    let mut compared = 0;
    for (index, official) in case.whole_steps().enumerate() {
        let name = format!("{name}, step {index}");
        let Some(Record::Step(step)) = records.next() else { panic!("{name}: no record") };
        let BlockRecord { bonus, draft, confidence } = block;
        assert_eq!((*bonus, draft), (official.anchor, &official.draft), "{name}");
        assert_eq!(confidence.len(), official.confidence.len(), "{name}");
        for (found, expected) in confidence.iter().zip(&official.confidence) {
            assert!((found - expected).abs() < 1e-5, "{name}: confidence {found}, official {expected}");
        }
        assert_eq!((step.position, step.verify_len), (official.start, BLOCK_SIZE - 1), "{name}");
        assert_eq!((step.accepted, step.next.bonus), (official.accepted, official.bonus), "{name}");
        block = &step.next;
        compared += 1;
    }
    assert!(compared > 0, "{name}");
}

#[test]
fn all_cases_alone_and_in_one_batch() {
    let cases = cases();
    let mut engine = engine(Mode::Sequential);
    let batched = run(&mut engine, cases.iter().map(Case::request).collect());
    for (index, (case, output)) in cases.iter().zip(&batched).enumerate() {
        let name = format!("case {index}");
        compare(&name, case, output);
        if index % 5 == 0 {
            assert_eq!(&run(&mut engine, vec![case.request()])[0], output, "{name}");
        }
    }
}

#[test]
fn output_without_drafts_and_with_some() {
    let cases = cases();
    let requests = || cases.iter().map(Case::request).collect();
    let outputs =
        [run(&mut engine(Mode::Autoregressive), requests()), run(&mut engine(Flex::default()), requests())];
    for outputs in &outputs {
        for (case, output) in cases.iter().zip(outputs) {
            assert_eq!(output.tokens, case.output);
        }
    }
}
