//! The training loop learns, resumes where it stopped, and stops when it must.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use flexdraft::model::DrafterWeights;
use flexdraft::model::config::Architecture;
use flexdraft::model::weights::{ChainConfig, TargetWeights};
use flexdraft_tune::optimizer::AdamSettings;
use flexdraft_tune::transcripts::Transcript;
use flexdraft_tune::tune::{ChainChoice, Compute, Kind, Outcome, Place, Settings, TrainingSettings, run};
use flexdraft_tune::{Result, TuneError};

use crate::common;
use crate::common::training::{Recorder, counting, in_memory, settings, target};

fn tune(target: &TargetWeights, settings: &Settings, out: &Path, recorder: &mut Recorder) -> Result<Outcome> {
    run(
        in_memory(target),
        counting(20),
        counting(28).split_off(20),
        settings,
        out,
        Place::alone(&Device::Cpu),
        recorder,
    )
    .map(|outcome| outcome.unwrap())
}

#[test]
fn a_drafter_learns_to_count() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        Settings { steps: 300, rank: 32, evaluate_every: 50, learning_rate: 2e-2, anchors: 20, ..settings() };
    let mut recorder = Recorder::default();
    let outcome = tune(&target(), &settings, dir.path(), &mut recorder).unwrap();
    assert!(recorder.losses[299] < 0.5 * recorder.losses[0], "{:?}", recorder.losses);
    assert!(outcome.tau > 2.0, "{:?}", recorder.taus);
    assert_eq!(outcome.tau, recorder.taus.iter().fold(0.0, |a: f64, &b| a.max(b)));
    assert!(outcome.drafter.unwrap().join("model.safetensors").is_file());
}

/// A chain that is trained with the rest improves the drafts, and leaves the rest as it would be without a chain.
#[test]
fn a_chain_learns_with_the_rest() {
    let run = |chain, shortlist| {
        let dir = tempfile::tempdir().unwrap();
        // Clipping would couple the chain's gradient to the rest.
        let adam = AdamSettings { clip: 1e9, ..AdamSettings::default() };
        let settings = Settings {
            steps: 100,
            rank: 4,
            chain,
            shortlist,
            adam,
            evaluate_every: 100,
            learning_rate: 2e-2,
            anchors: 20,
            ..settings()
        };
        let outcome = tune(&target(), &settings, dir.path(), &mut Recorder::default()).unwrap();
        let exported = outcome.drafter.unwrap();
        let weights = DrafterWeights::read(&exported, &target().config).unwrap();
        let tensors =
            candle_core::safetensors::load(exported.join("model.safetensors"), &Device::Cpu).unwrap();
        (outcome.tau, weights, tensors)
    };
    let (plain_tau, plain, plain_tensors) = run(None, 0);
    assert!(plain.chain.is_none());
    for (kind, shortlist) in [(Kind::Pair, 0), (Kind::Hidden, 30)] {
        let (tau, chained, tensors) = run(Some(ChainChoice { kind, rank: 16, top_k: 12 }), shortlist);
        assert!(tau > plain_tau + 0.3, "{kind:?}: {tau} and {plain_tau} without a chain");
        assert_eq!(chained.chain.unwrap().config, ChainConfig { kind: kind.into(), top_k: 12 });
        assert_eq!(tensors.len(), plain_tensors.len() + 2);
        if shortlist == 0 {
            let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
            assert!(plain_tensors.iter().all(|(name, tensor)| bits(tensor) == bits(&tensors[name])));
        }
    }
}

#[test]
fn products_of_bf16_learn_what_those_of_f32_do() {
    let losses = |compute| {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::default();
        let settings = Settings { steps: 40, compute, ..settings() };
        tune(&target(), &settings, dir.path(), &mut recorder).unwrap();
        recorder.losses
    };
    let (whole, rounded) = (losses(Compute::F32), losses(Compute::Bf16));
    assert_ne!(whole, rounded);
    for (whole, rounded) in whole.iter().zip(&rounded) {
        assert!((whole - rounded).abs() < 0.02 * whole, "{whole} {rounded}");
    }
    assert!(rounded[39] < 0.9 * rounded[0]);
}

#[test]
fn a_run_that_was_killed_goes_on_with_the_same_numbers() {
    let chain = |kind| Some(ChainChoice { kind, rank: 4, top_k: 6 });
    for (ema, compute, chain) in [
        (0.0, Compute::F32, None),
        (0.9, Compute::F32, None),
        (0.0, Compute::Bf16, None),
        (0.9, Compute::F32, chain(Kind::Pair)),
        (0.0, Compute::F32, chain(Kind::Hidden)),
    ] {
        let settings = Settings { ema, compute, chain, ..settings() };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut uninterrupted = Recorder::default();
        tune(&target(), &settings, whole.path(), &mut uninterrupted).unwrap();

        let mut killed = Recorder { killed_at: Some(8), ..Recorder::default() };
        tune(&target(), &settings, parts.path(), &mut killed).unwrap_err();
        assert_eq!(killed.losses, uninterrupted.losses[..8]);
        let mut resumed = Recorder::default();
        tune(&target(), &settings, parts.path(), &mut resumed).unwrap();
        // The last checkpoint before the end at step 8 is the checkpoint of step 6, so the run resumes there.
        assert_eq!(resumed.losses, uninterrupted.losses[6..]);
        assert_eq!(resumed.taus, uninterrupted.taus[1..]);
        let model = |dir: &Path| fs::read(dir.join("drafter/model.safetensors")).unwrap();
        assert!(model(whole.path()) == model(parts.path()));
    }
}

#[test]
fn a_run_is_not_continued_with_something_else() {
    let dir = tempfile::tempdir().unwrap();
    tune(&target(), &settings(), dir.path(), &mut Recorder::default()).unwrap();
    let another = Settings { gamma: 5.0, ..settings() };
    let error = tune(&target(), &another, dir.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(error, TuneError::OtherRun { what: "configuration", .. }), "{error}");
    let config = common::config(Architecture::Qwen3, false);
    let other = TargetWeights::random(&config, flexdraft::tensor::DType::F32, 8).unwrap();
    let error = tune(&other, &settings(), dir.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(error, TuneError::OtherRun { what: "target", .. }), "{error}");
    let place = Place::alone(&Device::Cpu);
    let error = run(
        in_memory(&target()),
        counting(21),
        counting(4),
        &settings(),
        dir.path(),
        place,
        &mut Recorder::default(),
    )
    .unwrap_err();
    assert!(matches!(error, TuneError::OtherRun { what: "set of transcripts", .. }), "{error}");
    // The runs that were refused left the folder's settings as they were.
    let kept: Settings =
        serde_json::from_slice(&fs::read(dir.path().join("settings.json")).unwrap()).unwrap();
    assert_eq!(kept, settings());
    // A run may resume with more steps than it began with.
    let longer = Settings { steps: 14, evaluate_every: 7, ..settings() };
    let mut recorder = Recorder::default();
    tune(&target(), &longer, dir.path(), &mut recorder).unwrap();
    assert_eq!((recorder.losses.len(), recorder.taus.len()), (2, 1));
    // The run was complete, so the learning rate stays at the end of its schedule, a tenth of the peak.
    assert_eq!(recorder.rates, [0.1 * settings().learning_rate; 2]);
}

/// A run that is continued before its end, with more steps, falls over the new number of steps.
#[test]
fn an_unfinished_run_takes_a_new_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let mut killed = Recorder { killed_at: Some(8), ..Recorder::default() };
    tune(&target(), &settings(), dir.path(), &mut killed).unwrap_err();
    let mut recorder = Recorder::default();
    let longer = Settings { steps: 24, ..settings() };
    tune(&target(), &longer, dir.path(), &mut recorder).unwrap();
    let schedule = longer.training().schedule(24);
    assert_eq!(recorder.rates, (6..24).map(|step| schedule.rate(step)).collect::<Vec<_>>());
}

#[test]
fn transcripts_of_another_vocabulary_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let outside = "a token id is 31 in transcript 2, expected below 31";
    let empty = "the number of tokens is 0 in transcript 2, expected at least 1";
    for (prompt, message) in [(vec![31], outside), (vec![], empty)] {
        let transcripts =
            [counting(2), vec![Transcript { prompt, response: Vec::new() }], counting(8)].concat();
        let place = Place::alone(&Device::Cpu);
        let result = run(
            in_memory(&target()),
            transcripts,
            counting(4),
            &settings(),
            dir.path(),
            place,
            &mut Recorder::default(),
        );
        let error = result.unwrap_err();
        assert!(matches!(error, TuneError::Setting { .. }) && error.to_string().contains(message), "{error}");
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let wild = Settings { learning_rate: 1e30, warmup: 0.9, checkpoint_every: 1, steps: 50, ..settings() };
    let adam = AdamSettings { clip: 1e30, ..AdamSettings::default() };
    let wild = Settings { adam, ..wild };
    let error = tune(&target(), &wild, dir.path(), &mut Recorder::default()).unwrap_err();
    let TuneError::NotFinite { step, checkpoint, .. } = error else { panic!("{error}") };
    assert!(checkpoint < step);
    assert_eq!(checkpoint > 0, dir.path().join("checkpoint.safetensors").is_file());
}

/// The first step has a finite gradient, and a learning rate beyond f32.
#[test]
fn weights_that_are_not_finite_are_neither_saved_nor_exported() {
    let dir = tempfile::tempdir().unwrap();
    let absurd = Settings { learning_rate: 1e300, steps: 1, ..settings() };
    let error = tune(&target(), &absurd, dir.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(error, TuneError::WeightsNotFinite { step: 1, checkpoint: 0, .. }), "{error}");
    assert!(!dir.path().join("checkpoint.safetensors").exists());
    assert!(!dir.path().join("drafter").exists());
}

#[test]
fn an_evaluation_without_a_step_is_refused() {
    for (response, kept) in [(1, false), (2, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut heldout = counting(3);
        heldout.iter_mut().for_each(|transcript| transcript.response.truncate(response));
        // The evaluation does not reach this transcript.
        heldout.extend(counting(1));
        let (settings, place) = (Settings { steps: 1, ..settings() }, Place::alone(&Device::Cpu));
        let run = run(
            in_memory(&target()),
            counting(20),
            heldout,
            &settings,
            dir.path(),
            place,
            &mut Recorder::default(),
        );
        match run {
            Ok(_) => assert!(kept, "responses of {response} tokens"),
            Err(TuneError::TooLittleData { found: 0, needed: 1, .. }) => assert!(!kept),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn transcripts_beyond_the_context_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = target();
    let response = vec![1; target.config.context_len];
    let long = [counting(20), vec![Transcript { prompt: vec![1], response }]].concat();
    let place = Place::alone(&Device::Cpu);
    let error =
        run(in_memory(&target), long, counting(3), &settings(), dir.path(), place, &mut Recorder::default())
            .unwrap_err();
    let context = target.config.context_len;
    assert_eq!(
        error.to_string(),
        format!(
            "the number of tokens is {} in transcript 20, expected at most {context}, the target's context",
            context + 1
        )
    );
}

#[test]
fn a_run_whose_drafter_is_gone_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    tune(&target(), &settings(), dir.path(), &mut Recorder::default()).unwrap();
    let drafter = dir.path().join("drafter");
    fs::remove_dir_all(&drafter).unwrap();
    let error = tune(&target(), &settings(), dir.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(&error, TuneError::File { path, .. } if *path == drafter), "{error}");
}

#[test]
fn checkpoints_that_are_damaged_are_named() {
    let dir = tempfile::tempdir().unwrap();
    tune(&target(), &settings(), dir.path(), &mut Recorder::default()).unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = tune(&target(), &settings(), dir.path(), &mut Recorder::default()).unwrap_err();
        assert!(matches!(&error, TuneError::File { path: named, .. } if *named == path), "{length}: {error}");
    }
}

#[test]
fn impossible_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: Settings, name: &str| {
        let error = tune(&target(), &settings, dir.path(), &mut Recorder::default()).unwrap_err();
        assert!(matches!(error, TuneError::Setting { setting, .. } if setting == name), "{error}");
    };
    refused(Settings { tail_layers: 4, ..settings() }, "tail_layers");
    refused(Settings { tail_layers: 0, ..settings() }, "tail_layers");
    refused(Settings { block_size: 1, ..settings() }, "block_size");
    refused(Settings { block_size: 65, ..settings() }, "block_size");
    refused(Settings { gamma: 0.0, ..settings() }, "gamma");
    refused(Settings { learning_rate: f64::NAN, ..settings() }, "learning_rate");
    refused(Settings { ema: 1.0, ..settings() }, "ema");
    refused(Settings { evaluate_every: 0, ..settings() }, "evaluate_every");
    refused(Settings { evaluate_on: 0, ..settings() }, "evaluate_on");
    refused(Settings { kept_gib: -1.0, ..settings() }, "kept_gib");
    let adam = AdamSettings { eps: -1e-8, ..AdamSettings::default() };
    refused(Settings { adam, ..settings() }, "adam.eps");
    let chain = ChainChoice { top_k: 33, ..ChainChoice::default() };
    refused(Settings { chain: Some(chain), ..settings() }, "chain.top_k");
    let chain = ChainChoice { rank: 0, ..ChainChoice::default() };
    refused(Settings { chain: Some(chain), ..settings() }, "chain.rank");
    // Without a calibrator, no bias would keep the other ids from being drafted.
    refused(Settings { rank: 0, shortlist: 9, ..settings() }, "shortlist");
    let few = Settings { sequences: 100, ..settings() };
    let error = tune(&target(), &few, dir.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(error, TuneError::TooLittleData { found: 20, needed: 100, .. }), "{error}");
}
