//! A run that starts from an exported drafter.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use flexdraft::model::weights::TargetWeights;
use flexdraft_tune::Result;
use flexdraft_tune::chain::export_chain;
use flexdraft_tune::export::export;
use flexdraft_tune::shortlist::Shortlist;
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::tune::{ChainChoice, Kind, Outcome, Place, Settings, run};

use crate::common;
use crate::common::training::{Recorder, counting, in_memory, settings, target};

const CHAIN: ChainChoice = ChainChoice { kind: Kind::Hidden, rank: 3, top_k: 6 };

/// Number of ids that the exported drafters draft.
const LISTED: usize = 9;

/// Exports a drafter with random weights.
fn export_start(dir: &Path, weights: &TargetWeights, listed: usize, chain: Option<ChainChoice>) {
    let target = FrozenTarget::new(weights, DType::F32, &Device::Cpu).unwrap();
    let shortlist = Shortlist::most_frequent(listed, weights.config.vocab_size, (5..25).rev());
    let drafter = common::drafter(weights, &target, common::SHAPE, &shortlist);
    let parameters = common::parameters(&drafter).unwrap();
    export(dir, &weights.config, common::SHAPE, &shortlist, &parameters).unwrap();
    if let Some(chain) = chain {
        export_chain(dir, dir, &common::chain(&target, chain.shape())).unwrap();
    }
}

/// Returns settings that fit the drafters of [`export_start`].
fn settings_from(dir: &Path) -> Settings {
    Settings {
        init_from: Some(dir.into()),
        rank: common::SHAPE.rank,
        shortlist: LISTED,
        chain: Some(CHAIN),
        ..settings()
    }
}

fn tune(settings: &Settings, out: &Path, recorder: &mut Recorder) -> Result<Outcome> {
    let (target, heldout) = (target(), counting(28).split_off(20));
    let place = Place::alone(&Device::Cpu);
    run(in_memory(&target), counting(20), heldout, settings, out, place, recorder)
        .map(|outcome| outcome.unwrap())
}

fn tensors(drafter: &Path) -> HashMap<String, Vec<half::bf16>> {
    let tensors = candle_core::safetensors::load(drafter.join("model.safetensors"), &Device::Cpu).unwrap();
    let bits = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

/// With steps too small to change a weight, a run exports the drafter that it started from. A chain is added to a drafter
/// without one.
#[test]
fn a_run_starts_from_a_drafter() {
    for (listed, own, chain) in [
        (0, None, None),
        (LISTED, Some(CHAIN), Some(CHAIN)),
        (LISTED, Some(CHAIN), Some(ChainChoice { top_k: 4, ..CHAIN })),
        (LISTED, None, Some(CHAIN)),
        (LISTED, None, Some(ChainChoice { kind: Kind::Pair, ..CHAIN })),
    ] {
        let [start, out] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        export_start(start.path(), &target(), listed, own);
        let settings = Settings {
            learning_rate: 1e-30,
            steps: 1,
            block_size: 5,
            shortlist: listed,
            chain,
            ..settings_from(start.path())
        };
        let outcome = tune(&settings, out.path(), &mut Recorder::default()).unwrap();
        let (before, after) = (tensors(start.path()), tensors(&outcome.drafter.unwrap()));
        let added = if own == chain { 0 } else { 2 * usize::from(own.is_none()) };
        assert_eq!(after.len(), before.len() + added);
        for (name, before) in before {
            assert!(after[&name] == before, "{name} of {own:?} with {chain:?}");
        }
    }
}

/// A run that resumes needs its checkpoint, not the drafter that it started from.
#[test]
fn a_run_that_resumes_does_not_start_again() {
    let [start, whole, parts] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    export_start(start.path(), &target(), LISTED, None);
    let settings = settings_from(start.path());
    let mut uninterrupted = Recorder::default();
    tune(&settings, whole.path(), &mut uninterrupted).unwrap();
    let mut killed = Recorder { killed_at: Some(8), ..Recorder::default() };
    tune(&settings, parts.path(), &mut killed).unwrap_err();
    fs::remove_dir_all(start.path()).unwrap();
    let mut resumed = Recorder::default();
    tune(&settings, parts.path(), &mut resumed).unwrap();
    assert_eq!(resumed.losses, uninterrupted.losses[6..]);
    assert!(tensors(&whole.path().join("drafter")) == tensors(&parts.path().join("drafter")));
    let error = tune(&Settings { init_from: None, ..settings }, parts.path(), &mut Recorder::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another configuration: init_from: "), "{error}");
}

#[test]
fn a_drafter_of_other_sizes_is_refused() {
    let [start, plain, out] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    export_start(start.path(), &target(), LISTED, Some(CHAIN));
    export_start(plain.path(), &target(), 0, None);
    let (chained, plain) = (settings_from(start.path()), settings_from(plain.path()));
    for (settings, message) in [
        (Settings { tail_layers: 1, ..chained.clone() }, "tail_layers is 1, expected 2, as in "),
        (Settings { rank: 4, ..chained.clone() }, "rank is 4, expected 5, as in "),
        (Settings { shortlist: 8, ..chained.clone() }, "shortlist is 8, expected 9, as in "),
        (Settings { shortlist: 0, ..chained.clone() }, "shortlist is 0, expected 9, as in "),
        (plain, "shortlist is 9, expected 31, as in "),
        (Settings { chain: None, ..chained.clone() }, "chain is none, expected hidden of rank 3, as in "),
        (
            Settings { chain: Some(ChainChoice { kind: Kind::Pair, ..CHAIN }), ..chained.clone() },
            "chain is pair of rank 3, expected hidden of rank 3, as in ",
        ),
        (Settings { whole_tail: true, ..chained.clone() }, "expected no value for an Orthrus drafter"),
        (Settings { init_from: Some(out.path().into()), ..chained }, "config.json"),
    ] {
        let error = tune(&settings, out.path(), &mut Recorder::default()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
