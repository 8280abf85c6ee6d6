//! The training loop: it learns, goes on where it was stopped, and stops where it has to.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Barrier, Mutex};
use std::thread;

use candle_core::{Device, Tensor};
use flexdraft::model::config::Architecture;
use flexdraft::model::weights::TargetWeights;
use flexdraft_tune::optimizer::AdamSettings;
use flexdraft_tune::transcripts::Transcript;
use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::tune::{Compute, Observer, Outcome, Place, Ranks, Settings, StepMetrics, run};
use flexdraft_tune::{Result, TuneError};

/// Counting, from different starts: what comes next follows from the bonus token alone.
fn counting(count: usize) -> Vec<Transcript> {
    let token = |first: usize, i: usize| ((7 * first + i) % 31) as u32;
    (0..count)
        .map(|first| Transcript {
            prompt: (0..4).map(|i| token(first, i)).collect(),
            response: (4..24).map(|i| token(first, i)).collect(),
        })
        .collect()
}

fn settings() -> Settings {
    Settings {
        tail_layers: 2,
        block_size: 4,
        rank: 8,
        steps: 12,
        sequences: 4,
        anchors: 6,
        learning_rate: 3e-3,
        evaluate_every: 6,
        evaluate_on: 3,
        checkpoint_every: 6,
        kept_gib: 0.1,
        ..Settings::default()
    }
}

fn target() -> TargetWeights {
    common::target(&common::config(Architecture::Qwen3, false))
}

/// Keeps what it is told, and may end the run as a killed process would.
#[derive(Default)]
struct Recorder {
    losses: Vec<f64>,
    taus: Vec<f64>,
    killed_at: Option<usize>,
}

impl Observer for Recorder {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        if self.killed_at.is_some_and(|step| metrics.step > step) {
            return Err(TuneError::setting("step", metrics.step, "a run that was killed before it"));
        }
        self.losses.push(metrics.loss);
        Ok(())
    }

    fn evaluated(&mut self, _: usize, _: usize, walk: &Walk) -> Result<()> {
        self.taus.push(walk.tau());
        Ok(())
    }
}

fn tune(target: &TargetWeights, settings: &Settings, out: &Path, recorder: &mut Recorder) -> Result<Outcome> {
    run(target, counting(20), counting(28).split_off(20), settings, out, Place::alone(&Device::Cpu), recorder)
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

/// One of two threads that tune together.
struct Thread<'a> {
    rank: usize,
    meeting: &'a Barrier,
    sums: &'a Mutex<Vec<Tensor>>,
}

impl Ranks for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        2
    }

    fn sum(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        self.sums.lock().unwrap().push(tensor.copy()?);
        self.meeting.wait();
        let sum = {
            let sums = self.sums.lock().unwrap();
            &sums[0] + &sums[1]
        };
        if self.meeting.wait().is_leader() {
            self.sums.lock().unwrap().clear();
        }
        self.meeting.wait();
        sum
    }
}

#[test]
fn two_ranks_learn_what_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut alone = Recorder::default();
    let target = target();
    tune(&target, &settings(), dir.path(), &mut alone).unwrap();

    let (meeting, sums) = (Barrier::new(2), Mutex::new(Vec::new()));
    let together = tempfile::tempdir().unwrap();
    let tune_as = |rank: usize| {
        let ranks = Thread { rank, meeting: &meeting, sums: &sums };
        let place = Place { device: &Device::Cpu, ranks: &ranks };
        let heldout = counting(28).split_off(20);
        let mut recorder = Recorder::default();
        let outcome =
            run(&target, counting(20), heldout, &settings(), together.path(), place, &mut recorder).unwrap();
        assert_eq!(outcome.is_some(), rank == 0);
        recorder
    };
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| tune_as(1));
        (tune_as(0), second.join().unwrap())
    });
    assert_eq!(first.losses.len(), alone.losses.len());
    for (together, alone) in first.losses.iter().zip(&alone.losses) {
        assert!((together - alone).abs() < 1e-4 * alone, "{:?} {:?}", first.losses, alone);
    }
    // Rank 0 alone has files and something to tell.
    assert!(second.losses.is_empty() && second.taus.is_empty());
    assert_eq!(first.taus.len(), alone.taus.len());
    assert!(together.path().join("checkpoint.safetensors").is_file());

    let odd = Settings { sequences: 3, ..settings() };
    let ranks = Thread { rank: 0, meeting: &meeting, sums: &sums };
    let place = Place { device: &Device::Cpu, ranks: &ranks };
    let result = run(&target, counting(20), counting(4), &odd, dir.path(), place, &mut Recorder::default());
    assert!(matches!(result, Err(TuneError::Setting { setting: "sequences", .. })));
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
    for ema in [0.0, 0.9] {
        let settings = Settings { ema, ..settings() };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut uninterrupted = Recorder::default();
        tune(&target(), &settings, whole.path(), &mut uninterrupted).unwrap();

        let mut killed = Recorder { killed_at: Some(8), ..Recorder::default() };
        tune(&target(), &settings, parts.path(), &mut killed).unwrap_err();
        assert_eq!(killed.losses, uninterrupted.losses[..8]);
        let mut resumed = Recorder::default();
        tune(&target(), &settings, parts.path(), &mut resumed).unwrap();
        // From the checkpoint of step 6 on.
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
    let error =
        run(&target(), counting(21), counting(4), &settings(), dir.path(), place, &mut Recorder::default())
            .unwrap_err();
    assert!(matches!(error, TuneError::OtherRun { what: "set of transcripts", .. }), "{error}");
    // What was refused has changed nothing.
    let kept: Settings =
        serde_json::from_slice(&fs::read(dir.path().join("settings.json")).unwrap()).unwrap();
    assert_eq!(kept, settings());
    // Longer is not something else.
    let longer = Settings { steps: 14, evaluate_every: 7, ..settings() };
    let mut recorder = Recorder::default();
    tune(&target(), &longer, dir.path(), &mut recorder).unwrap();
    assert_eq!((recorder.losses.len(), recorder.taus.len()), (2, 1));
}

#[test]
fn transcripts_of_another_vocabulary_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (prompt, message) in [(vec![31], "number 2 with token 31"), (vec![], "number 2 with no token")] {
        let transcripts =
            [counting(2), vec![Transcript { prompt, response: Vec::new() }], counting(8)].concat();
        let place = Place::alone(&Device::Cpu);
        let result = run(
            &target(),
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
    let few = Settings { sequences: 100, ..settings() };
    let error = tune(&target(), &few, dir.path(), &mut Recorder::default()).unwrap_err();
    assert!(matches!(error, TuneError::TooLittleData { found: 20, needed: 100, .. }), "{error}");
}
