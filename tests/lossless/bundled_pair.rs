//! Tests of the target and drafter in the repository: drafts are accepted on prompts that neither model was trained on,
//! and do not change the tokens.

use std::fs;
use std::path::Path;

use flexdraft::decode::{Engine, EngineOptions, Mode, Record, Request};
use flexdraft::model::{DrafterWeights, Model, TargetWeights, Tokenizer};

use crate::support::runs::{cpu, run};

const PROMPTS: usize = 20;
const NEW_TOKENS: usize = 128;

#[test]
fn drafts_are_accepted_and_change_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny");
    let target = TargetWeights::read(&folder.join("target")).unwrap();
    let drafter = DrafterWeights::read(&folder.join("drafter"), &target.config).unwrap();
    let tokenizer = Tokenizer::read(&folder.join("target"), target.config.vocab_size).unwrap();
    let unseen = fs::read_to_string(folder.join("unseen.jsonl")).unwrap();
    let prompts: Vec<Vec<u32>> = unseen
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| tokenizer.encode(line["prompt"].as_str().unwrap(), true).unwrap())
        .collect();
    // The chosen prompts come from all parts of the list.
    let chosen = || prompts.iter().step_by(prompts.len() / PROMPTS).take(PROMPTS);
    assert_eq!(chosen().count(), PROMPTS);

    let outputs = [Mode::Autoregressive, Mode::Parallel, Mode::Sequential].map(|mode| {
        let model = Model::new(cpu(2), &target, Some(&drafter)).unwrap();
        let mut engine = Engine::new(model, mode, EngineOptions::default()).unwrap();
        let requests =
            chosen().map(|prompt| Request { record: true, ..Request::new(prompt.clone(), NEW_TOKENS) });
        run(&mut engine, requests.collect())
    });
    let [ar, drafted @ ..] = &outputs;
    for drafted in drafted {
        for (drafted, ar) in drafted.iter().zip(ar) {
            assert_eq!(drafted.tokens, ar.tokens);
        }
    }
    let accepted: Vec<usize> = drafted[0]
        .iter()
        .flat_map(|output| &output.records)
        .filter_map(|record| match record {
            Record::Step(step) => Some(step.accepted),
            Record::Prefill(_) => None,
        })
        .collect();
    let tau = 1.0 + accepted.iter().sum::<usize>() as f64 / accepted.len() as f64;
    assert!(tau > LEAST_ACCEPTANCE_LENGTH, "acceptance length {tau}");
}

/// The bundled drafter's acceptance length is higher (`demo/tiny/README.md`); a value far below it means that the
/// models or their loading have lost something.
const LEAST_ACCEPTANCE_LENGTH: f64 = 1.7;
