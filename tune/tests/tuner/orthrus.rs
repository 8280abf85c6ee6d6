//! Orthrus drafters: the packed forward drafts what the official implementation drafts, and a tuned drafter is stored as
//! an Orthrus model.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use flexdraft::decode::{BlockRecord, Confidence, Engine, EngineOptions, Mode, Record, Request};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterKind, Model, ModelWeights};
use flexdraft_tune::drafter::{Drafter, DrafterShape};
use flexdraft_tune::export::OrthrusExport;
use flexdraft_tune::loss::{Prediction, predict};
use flexdraft_tune::shortlist::Shortlist;
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::transcripts::Transcript;
use flexdraft_tune::tune::{Batch, Corpus, DrafterChoice, Pick, Place, Settings, TunedTarget, run};
use flexdraft_tune::{TuneError, hash};
use serde::Deserialize;

use crate::common;
use crate::common::training::{Recorder, settings};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A target and its drafter in training, which draft at positions of transcripts.
struct Pair {
    target: FrozenTarget,
    drafter: Drafter,
}

impl Pair {
    fn of(weights: &ModelWeights) -> Self {
        let target = FrozenTarget::new(&weights.target, DType::F32, &Device::Cpu).unwrap();
        let drafter = weights.drafter.as_ref().unwrap();
        let drafter = Drafter::from_weights(&weights.target, &target, drafter).unwrap();
        Self { target, drafter }
    }

    /// Returns the predictions for a block after each anchor of one transcript.
    fn draft(&self, tokens: &[u32], anchors: Vec<usize>) -> Vec<Vec<Prediction>> {
        let transcript = Transcript { prompt: tokens.to_vec(), response: Vec::new() };
        let mut corpus = Corpus::new(vec![transcript], self.drafter.tail_layers(), 1.0, &self.target);
        let batch = Batch::new(&mut corpus, &self.target, vec![Pick { transcript: 0, anchors }]).unwrap();
        let block_size = self.drafter.block_size();
        let slots = self.drafter.forward(&self.target, &batch.rows(block_size)).unwrap();
        let (head, calibration) = self.drafter.factors(&slots);
        assert!(calibration.is_none());
        predict(&[head]).unwrap().chunks(block_size - 1).map(<[_]>::to_vec).collect()
    }
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    max_new_tokens: usize,
    output: Vec<u32>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    start: usize,
    draft: Vec<u32>,
    confidence: Vec<f32>,
}

/// The recordings' README says how to compare with them: the official loop shortens blocks near the end.
#[test]
fn the_packed_forward_drafts_as_the_official_implementation() {
    let dir = fixture("orthrus");
    let weights = ModelWeights::read(&dir).unwrap();
    let pair = Pair::of(&weights);
    let block_size = weights.drafter.unwrap().config.block_size;
    let cases: Vec<Case> =
        serde_json::from_str(&std::fs::read_to_string(dir.join("cases.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 12);
    let mut compared = 0;
    for (number, case) in cases.iter().enumerate() {
        let end = case.prompt.len() + case.max_new_tokens;
        let whole: Vec<&Step> = case.steps.iter().take_while(|step| step.start + block_size <= end).collect();
        let tokens = [&case.prompt[..], &case.output].concat();
        let drafts = pair.draft(&tokens, whole.iter().map(|step| step.start - 1).collect());
        for (step, draft) in whole.iter().zip(drafts) {
            let (name, drafted) = (format!("case {number} at {}", step.start), draft.iter().map(|p| p.token));
            assert_eq!(drafted.collect::<Vec<_>>(), step.draft, "{name}");
            for (prediction, official) in draft.iter().zip(&step.confidence) {
                assert!((prediction.confidence - official).abs() < 1e-5, "{name}: {}", prediction.confidence);
            }
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared}");
}

/// A drafter that was written beside its target drafts in the engine as in training, and leaves the target as it was.
#[test]
fn an_exported_model_drafts_in_the_engine_as_in_training() {
    let source = fixture("transformers/models/qwen3");
    let weights = flexdraft::model::TargetWeights::read(&source).unwrap();
    let config = &weights.config;
    let target = FrozenTarget::new(&weights, DType::F32, &Device::Cpu).unwrap();
    let shape = DrafterShape {
        kind: DrafterKind::Orthrus,
        tail_layers: config.layers,
        block_size: 5,
        rank: 0,
        whole_tail: false,
    };
    let (mask_token, dir) = (9, tempfile::tempdir().unwrap());
    let shortlist = Shortlist::All(config.vocab_size);
    let drafter = common::drafter(&weights, &target, shape, &shortlist);
    let export = OrthrusExport::begin(dir.path(), &source, config, shape.block_size, mask_token).unwrap();
    export.write(config, &common::parameters(&drafter).unwrap()).unwrap();

    let model = ModelWeights::read(dir.path()).unwrap();
    assert_eq!(hash::of_target(&model.target).hex(), hash::of_target(&weights).hex());
    let pair = Pair::of(&model);
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let model = Model::new(cpu, &model.target, model.drafter.as_ref()).unwrap();
    let mut engine = Engine::new(model, Mode::Sequential, EngineOptions::default()).unwrap();
    let request = Request {
        confidence: Confidence { threshold: 0.0, ..Confidence::default() },
        record: true,
        ..Request::new(vec![1, 5, 2, 8, 3], 24)
    };
    let prompt = request.prompt.clone();
    engine.add(request).unwrap();
    // The position of each recorded block's bonus token.
    let (mut tokens, mut blocks): (_, Vec<(usize, BlockRecord)>) = (prompt.clone(), Vec::new());
    while !engine.is_idle() {
        for committed in engine.step().unwrap() {
            tokens.extend(committed.tokens);
            match committed.record {
                Some(Record::Prefill(block)) => blocks.push((prompt.len(), block)),
                Some(Record::Step(step)) => blocks.push((step.position + step.accepted + 1, step.next)),
                None => {}
            }
        }
    }
    // The engine may commit more tokens than it was asked for, so the text ends before the last block's bonus token.
    blocks.retain(|(position, _)| *position < tokens.len());
    assert!(blocks.len() > 4, "{}", blocks.len());
    let drafts = pair.draft(&tokens, blocks.iter().map(|(position, _)| position - 1).collect());
    for ((position, block), draft) in blocks.iter().zip(drafts) {
        assert_eq!(draft.iter().map(|p| p.token).collect::<Vec<_>>(), block.draft, "at {position}");
        for (prediction, confidence) in draft.iter().zip(&block.confidence) {
            assert!((prediction.confidence - confidence).abs() < 1e-4, "at {position}");
        }
    }
}

#[test]
fn targets_and_settings_that_do_not_fit_are_refused() {
    let refused = |directory: &Path, settings: Settings| {
        let weights = flexdraft::model::TargetWeights::read(directory).unwrap();
        let transcript = || Transcript { prompt: vec![1, 2], response: vec![3, 4, 5, 6] };
        let (dir, target) = (tempfile::tempdir().unwrap(), TunedTarget { weights: &weights, directory });
        let text = (0..8).map(|_| transcript()).collect();
        let place = Place::alone(&Device::Cpu);
        let recorder = &mut Recorder::default();
        let run = run(target, text, vec![transcript()], &settings, dir.path(), place, recorder);
        match run.unwrap_err() {
            error @ TuneError::Setting { .. } => error.to_string(),
            error => panic!("{error}"),
        }
    };
    let orthrus = || Settings { kind: DrafterChoice::Orthrus, ..settings() };
    let qwen3 = fixture("transformers/models/qwen3");
    assert_eq!(
        refused(&fixture("transformers/models/llama"), orthrus()),
        "the target of an Orthrus drafter is a llama model, expected a Qwen3 model"
    );
    assert_eq!(
        refused(&fixture("orthrus"), orthrus()),
        "the target of an Orthrus drafter is an Orthrus model, expected a Qwen3 model without a drafter"
    );
    let message = refused(&qwen3, Settings { mask_token: Some(1 << 20), ..orthrus() });
    assert!(message.starts_with("mask_token is 1048576, expected below "), "{message}");
    let message = refused(&qwen3, Settings { mask_token: Some(1), ..settings() });
    assert!(message.starts_with("mask_token is 1, expected no value"), "{message}");
    let message = refused(&qwen3, Settings { shortlist: 5, ..orthrus() });
    assert!(message.starts_with("shortlist is 5, expected 0"), "{message}");
}
