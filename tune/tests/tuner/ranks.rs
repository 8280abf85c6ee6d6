//! Several ranks tune one drafter: they learn the same as a single rank, resume where they stopped, and stop
//! together.

use std::fs;
use std::path::Path;
use std::thread;

use candle_core::Device;
use flexdraft::model::weights::TargetWeights;
use flexdraft_tune::tune::{Compute, Outcome, Place, Settings, run};
use flexdraft_tune::{Result, TuneError};

use crate::common::ranks::{Fault, Meeting, Thread};
use crate::common::training::{Recorder, counting, in_memory, settings, target};

/// Tunes with `count` ranks, and returns the progress that each rank reported and how it ended. The last rank
/// has the fault; rank 0 may be killed.
fn tune(
    target: &TargetWeights,
    settings: &Settings,
    out: &Path,
    count: usize,
    fault: Fault,
    killed_at: Option<usize>,
) -> Vec<(Recorder, Result<Option<Outcome>>)> {
    let meeting = Meeting::of(count);
    let tune_as = |rank: usize| {
        let fault = if rank + 1 == count { fault } else { Fault::None };
        let ranks = Thread::new(rank, &meeting, fault);
        let place = Place { device: &Device::Cpu, ranks: &ranks };
        let heldout = counting(28).split_off(20);
        let mut recorder = Recorder { killed_at, ..Recorder::default() };
        let outcome = run(in_memory(target), counting(20), heldout, settings, out, place, &mut recorder);
        (recorder, outcome)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|rank| scope.spawn(move || tune_as(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Returns the progress that rank 0 of a complete run reported.
fn to_the_end(target: &TargetWeights, settings: &Settings, out: &Path, count: usize) -> Recorder {
    let mut ended = tune(target, settings, out, count, Fault::None, None).into_iter();
    let (first, outcome) = ended.next().unwrap();
    assert!(outcome.unwrap().is_some());
    for (recorder, outcome) in ended {
        // Only rank 0 writes files and reports progress.
        assert!(outcome.unwrap().is_none() && recorder.losses.is_empty() && recorder.taus.is_empty());
    }
    first
}

fn files(dir: &Path) -> [Vec<u8>; 2] {
    ["drafter/model.safetensors", "checkpoint.safetensors"].map(|name| fs::read(dir.join(name)).unwrap())
}

#[test]
fn they_learn_what_one_does() {
    let (alone, together) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = target();
    let one = to_the_end(&target, &settings(), alone.path(), 1);
    let two = to_the_end(&target, &settings(), together.path(), 2);
    assert_eq!((two.losses.len(), two.taus.len()), (one.losses.len(), one.taus.len()));
    for (together, alone) in two.losses.iter().zip(&one.losses) {
        assert!((together - alone).abs() < 1e-4 * alone, "{:?} {:?}", two.losses, one.losses);
    }
    files(together.path());

    let odd = Settings { sequences: 3, ..settings() };
    for (_, outcome) in tune(&target, &odd, alone.path(), 2, Fault::None, None) {
        assert!(matches!(outcome, Err(TuneError::Setting { setting: "sequences", .. })));
    }
}

#[test]
fn a_run_that_was_killed_goes_on_with_the_same_bits() {
    let target = target();
    for (count, compute, ema) in [(2, Compute::F32, 0.9), (4, Compute::F32, 0.0), (2, Compute::Bf16, 0.0)] {
        let settings = Settings { compute, ema, ..settings() };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let uninterrupted = to_the_end(&target, &settings, whole.path(), count);

        let killed = tune(&target, &settings, parts.path(), count, Fault::None, Some(8));
        assert_eq!(killed[0].0.losses, uninterrupted.losses[..8]);
        assert!(matches!(&killed[0].1, Err(TuneError::Setting { setting: "step", .. })));
        // The other ranks were in the next step when rank 0 was killed; they must end with an error instead of
        // waiting for ever.
        for (_, outcome) in &killed[1..] {
            let error = outcome.as_ref().unwrap_err();
            assert!(
                matches!(error, TuneError::Tensor(_)) && error.to_string().contains("has left"),
                "{error}"
            );
        }
        // The last checkpoint before the end at step 8 is the checkpoint of step 6, so the run resumes there.
        let resumed = to_the_end(&target, &settings, parts.path(), count);
        assert_eq!(resumed.losses, uninterrupted.losses[6..]);
        assert_eq!(resumed.taus, uninterrupted.taus[1..]);
        assert!(files(whole.path()) == files(parts.path()), "{count} ranks, {compute:?}");
    }
}

#[test]
fn a_part_that_is_not_a_number_stops_all_and_keeps_the_checkpoint() {
    let target = target();
    let whole = tempfile::tempdir().unwrap();
    let uninterrupted = to_the_end(&target, &settings(), whole.path(), 2);
    for fault in [Fault::Loss(8), Fault::Gradient(8)] {
        let out = tempfile::tempdir().unwrap();
        for (rank, (recorder, outcome)) in
            tune(&target, &settings(), out.path(), 2, fault, None).into_iter().enumerate()
        {
            let error = outcome.unwrap_err();
            let TuneError::NotFinite { step: 8, loss, checkpoint: 6 } = error else {
                panic!("{fault:?}, rank {rank}: {error}")
            };
            assert!(loss.is_nan());
            assert_eq!(recorder.losses.len(), if rank == 0 { 7 } else { 0 });
        }
        let resumed = to_the_end(&target, &settings(), out.path(), 2);
        assert_eq!(resumed.losses, uninterrupted.losses[6..]);
        assert!(files(whole.path()) == files(out.path()), "{fault:?}");
    }
}

#[test]
fn a_rank_that_is_lost_stops_the_others() {
    let target = target();
    let out = tempfile::tempdir().unwrap();
    let ended = tune(&target, &settings(), out.path(), 4, Fault::Lost(8), None);
    for (rank, (_, outcome)) in ended.into_iter().enumerate() {
        let error = outcome.unwrap_err();
        let expected = if rank == 3 { "this rank is lost" } else { "another rank has left" };
        assert!(matches!(error, TuneError::Tensor(_)) && error.to_string().contains(expected), "{error}");
    }
    let resumed = to_the_end(&target, &settings(), out.path(), 4);
    assert_eq!(resumed.losses.len(), 6);
}
