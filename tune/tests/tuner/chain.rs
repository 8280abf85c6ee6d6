//! Training the chain of a frozen drafter: it learns, resumes where it stopped, and leaves the drafter as it is.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use flexdraft::model::weights::{ChainConfig, ChainKind};
use flexdraft::model::{DrafterWeights, TargetWeights};
use flexdraft_tune::export::export;
use flexdraft_tune::shortlist::Shortlist;
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::tune::{ChainSettings, FrozenSource, Kind, Outcome, run_chain};
use flexdraft_tune::{Result, TuneError};

use crate::common;
use crate::common::training::{Recorder, counting, target};

/// Exports a drafter with random weights to `dir`.
fn drafter(target: &TargetWeights, dir: &Path) -> DrafterWeights {
    let frozen = FrozenTarget::new(target, DType::F32, &Device::Cpu).unwrap();
    let shortlist = Shortlist::All(target.config.vocab_size);
    let drafter = common::drafter(target, &frozen, common::SHAPE, &shortlist);
    let mut parameters = common::parameters(&drafter).unwrap();
    // A small calibrator keeps all ids within reach of a chain.
    let output = parameters["calibrator.output"].affine(0.1, 0.0).unwrap();
    parameters.insert("calibrator.output".into(), output);
    export(dir, &target.config, common::SHAPE, &shortlist, &parameters).unwrap();
    DrafterWeights::read(dir, &target.config).unwrap()
}

fn settings(kind: Kind) -> ChainSettings {
    ChainSettings {
        kind,
        rank: 8,
        steps: 12,
        sequences: 4,
        anchors: 6,
        learning_rate: 1e-2,
        evaluate_every: 6,
        evaluate_on: 3,
        checkpoint_every: 6,
        kept_gib: 0.1,
        ..ChainSettings::default()
    }
}

fn train(source: &Path, settings: &ChainSettings, out: &Path, recorder: &mut Recorder) -> Result<Outcome> {
    let target = target();
    let drafter = DrafterWeights::read(source, &target.config).unwrap();
    let source = FrozenSource { target: &target, drafter: &drafter, dir: source };
    run_chain(source, counting(20), counting(28).split_off(20), settings, out, &Device::Cpu, recorder)
}

fn tensors(dir: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap()
}

/// The token before a slot determines the slot's token, so a chain alone can learn to count.
#[test]
fn a_chain_learns_to_count() {
    for kind in [Kind::Pair, Kind::Hidden] {
        let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drafter(&target(), source.path());
        let settings =
            ChainSettings { steps: 200, top_k: 31, rank: 24, learning_rate: 3e-2, ..settings(kind) };
        let mut recorder = Recorder::default();
        let outcome = train(source.path(), &settings, out.path(), &mut recorder).unwrap();
        assert!(recorder.losses[199] < 0.3 * recorder.losses[0], "{:?}", recorder.losses);
        assert!(outcome.tau > 1.8, "{kind:?} {:?}", recorder.taus);
        assert_eq!(outcome.tau, recorder.taus.iter().fold(0.0, |a: f64, &b| a.max(b)));
    }
}

/// The bonus token alone tells a pair of tokens nothing about the slot between them.
#[test]
fn a_chain_of_the_bonus_token_learns_less() {
    let source = tempfile::tempdir().unwrap();
    drafter(&target(), source.path());
    let tau = |bonus_only| {
        let out = tempfile::tempdir().unwrap();
        let settings = ChainSettings {
            bonus_only,
            steps: 200,
            top_k: 31,
            rank: 24,
            learning_rate: 3e-2,
            ..settings(Kind::Pair)
        };
        let outcome = train(source.path(), &settings, out.path(), &mut Recorder::default()).unwrap();
        assert_eq!(outcome.drafter.is_some(), !bonus_only);
        assert_eq!(out.path().join("drafter").exists(), !bonus_only);
        // A complete run is continued, with or without a drafter.
        train(source.path(), &settings, out.path(), &mut Recorder::default()).unwrap();
        outcome.tau
    };
    let (bonus_only, chained) = (tau(true), tau(false));
    assert!(chained > 1.25 * bonus_only, "{chained} {bonus_only}");
}

#[test]
fn a_run_that_was_killed_goes_on_with_the_same_numbers() {
    for (kind, kept_gib) in [(Kind::Pair, 0.1), (Kind::Hidden, 0.1), (Kind::Hidden, 0.0)] {
        let source = tempfile::tempdir().unwrap();
        drafter(&target(), source.path());
        let settings = ChainSettings { kept_gib, ..settings(kind) };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut uninterrupted = Recorder::default();
        train(source.path(), &settings, whole.path(), &mut uninterrupted).unwrap();

        let mut killed = Recorder { killed_at: Some(8), ..Recorder::default() };
        train(source.path(), &settings, parts.path(), &mut killed).unwrap_err();
        assert_eq!(killed.losses, uninterrupted.losses[..8]);
        let mut resumed = Recorder::default();
        train(source.path(), &settings, parts.path(), &mut resumed).unwrap();
        assert_eq!(resumed.losses, uninterrupted.losses[6..]);
        assert_eq!(resumed.taus, uninterrupted.taus[1..]);
        let model = |dir: &Path| fs::read(dir.join("drafter/model.safetensors")).unwrap();
        assert!(model(whole.path()) == model(parts.path()));
    }
}

/// The exported drafter is the frozen drafter with two more tensors and two more keys, and its chain can be trained again.
#[test]
fn the_drafter_stays_as_it_is() {
    let (source, out, again) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = target();
    drafter(&target, source.path());
    let config: PathBuf = source.path().join("config.json");
    let mut with_card: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    with_card["flexdraft_card"] = serde_json::json!({ "block_size": 4, "acceptance_lengths": { "p": 2.0 } });
    fs::write(&config, with_card.to_string()).unwrap();
    let before = tensors(source.path());
    train(source.path(), &settings(Kind::Pair), out.path(), &mut Recorder::default()).unwrap();

    let exported = out.path().join("drafter");
    let after = tensors(&exported);
    assert_eq!(after.len(), before.len() + 2);
    for (name, tensor) in &before {
        let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
        assert_eq!(bits(tensor), bits(&after[name]), "{name}");
    }
    let chain = DrafterWeights::read(&exported, &target.config).unwrap().chain.unwrap();
    assert_eq!(chain.config, ChainConfig { kind: ChainKind::Pair, top_k: 16 });
    assert_eq!(chain.first.weight.shape(), [8, 12]);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(exported.join("config.json")).unwrap()).unwrap();
    // The card's acceptance length was measured without the chain.
    assert!(config.get("flexdraft_card").is_none());

    let hidden = ChainSettings { top_k: 3, ..settings(Kind::Hidden) };
    train(&exported, &hidden, again.path(), &mut Recorder::default()).unwrap();
    let chain = DrafterWeights::read(&again.path().join("drafter"), &target.config).unwrap().chain.unwrap();
    assert_eq!(chain.config, ChainConfig { kind: ChainKind::Hidden, top_k: 3 });
}

#[test]
fn a_run_is_not_continued_with_something_else() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drafter(&target(), source.path());
    let pair = settings(Kind::Pair);
    train(source.path(), &pair, out.path(), &mut Recorder::default()).unwrap();
    let refused = |settings: &ChainSettings, source: &Path| {
        train(source, settings, out.path(), &mut Recorder::default()).unwrap_err()
    };
    let error = refused(&ChainSettings { gamma: 5.0, ..pair.clone() }, source.path());
    assert!(error.to_string().contains("another configuration: gamma: 4.0 there, gamma: 5.0 now"), "{error}");
    let error = refused(&pair, &out.path().join("drafter"));
    assert!(matches!(error, TuneError::OtherRun { what: "drafter", .. }), "{error}");
    let mut recorder = Recorder::default();
    let longer = ChainSettings { steps: 14, evaluate_every: 7, ..pair };
    train(source.path(), &longer, out.path(), &mut recorder).unwrap();
    assert_eq!((recorder.losses.len(), recorder.taus.len()), (2, 1));
    // The run was complete, so the learning rate stays at the end of its schedule, a tenth of the peak.
    assert_eq!(recorder.rates, [0.1 * settings(Kind::Pair).learning_rate; 2]);
}

#[test]
fn impossible_settings_are_named() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drafter(&target(), source.path());
    let refused = |settings: ChainSettings, name: &str| {
        let error = train(source.path(), &settings, out.path(), &mut Recorder::default()).unwrap_err();
        assert!(matches!(error, TuneError::Setting { setting, .. } if setting == name), "{error}");
    };
    let pair = || settings(Kind::Pair);
    refused(ChainSettings { rank: 0, ..pair() }, "rank");
    refused(ChainSettings { top_k: 33, ..pair() }, "top_k");
    refused(ChainSettings { gamma: 0.0, ..pair() }, "gamma");
    refused(ChainSettings { learning_rate: f64::NAN, ..pair() }, "learning_rate");
    refused(ChainSettings { warmup: 1.0, ..pair() }, "warmup");
    refused(ChainSettings { kept_gib: -1.0, ..pair() }, "kept_gib");
    refused(ChainSettings { evaluate_on: 0, ..pair() }, "evaluate_on");
    // Weights that are not finite are neither saved nor exported.
    let absurd = ChainSettings { learning_rate: 1e300, steps: 1, ..pair() };
    let error = train(source.path(), &absurd, out.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(error, TuneError::WeightsNotFinite { step: 1, checkpoint: 0, .. }), "{error}");
    assert!(!out.path().join("drafter").exists() && !out.path().join("checkpoint.safetensors").exists());
}
