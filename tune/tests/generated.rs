//! Evaluation by generating, on the bundled pair.

use std::path::{Path, PathBuf};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Engine, Mode};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterWeights, Model, TargetWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::engine_size::engine_options;
use flexdraft_tune::generated::{Decoding, Report, evaluate};
use flexdraft_tune::{Result, TuneError};

fn engine(with_drafter: bool) -> Engine<Cpu> {
    let fixtures: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let target = TargetWeights::read(&fixtures.join("target")).unwrap();
    let drafter = DrafterWeights::read(&fixtures.join("draft"), &target.config).unwrap();
    let options = engine_options(&target.config, 80, 8, 4);
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let model = Model::new(cpu, &target, with_drafter.then_some(&drafter)).unwrap();
    Engine::new(model, Mode::Autoregressive, options).unwrap()
}

fn decoding() -> Decoding {
    Decoding {
        max_new_tokens: 48,
        stop_ids: Vec::new(),
        sampling: SamplingParams::GREEDY,
        rule: Rule::Rejection,
        as_certain: false,
        confidence: Confidence::default(),
        mode: Mode::Parallel,
        seed: 3,
        batch: 4,
    }
}

fn report(decoding: &Decoding) -> Result<Report> {
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| vec![40 + i, 300, 51 + i]).collect();
    evaluate(&mut engine(true), &prompts, decoding, &mut |_| ())
}

#[test]
fn modes_and_batches_give_the_same_report() {
    let parallel = report(&decoding()).unwrap();
    assert!(parallel.compared && parallel.tau > 1.2 && parallel.passes_per_token < 0.9);
    assert_eq!((parallel.slots.len(), parallel.prompts.len()), (7, 6));
    assert!(parallel.prompts.iter().all(|prompt| prompt.tokens == 48));
    let drafts: usize = parallel.reliability.iter().map(|bin| bin.drafts).sum();
    assert_eq!(drafts, parallel.slots.iter().map(|slot| slot.reached).sum::<usize>());
    assert_eq!(parallel, report(&Decoding { mode: Mode::Sequential, batch: 1, ..decoding() }).unwrap());
}

#[test]
fn sampled_tokens_are_compared_where_they_must_be_the_same() {
    let sampling = SamplingParams::at_temperature(1.0);
    assert!(!report(&Decoding { sampling, ..decoding() }).unwrap().compared);
    assert!(report(&Decoding { sampling, rule: Rule::Match, ..decoding() }).unwrap().compared);
}

/// A draft drawn from q is accepted in Σ min(p, q) of the cases by rejection, and in Σ p·q by independent match.
#[test]
fn independent_match_accepts_less() {
    let sampling = SamplingParams::at_temperature(1.0);
    let tau = |as_certain| {
        let confidence = Confidence { threshold: 0.0, ..Confidence::default() };
        report(&Decoding { sampling, as_certain, confidence, ..decoding() }).unwrap().tau
    };
    assert!(tau(true) < tau(false), "{} {}", tau(true), tau(false));
}

#[test]
fn a_higher_threshold_verifies_less() {
    let verified = |threshold| {
        let confidence = Confidence { threshold, ..Confidence::default() };
        let slots = report(&Decoding { confidence, ..decoding() }).unwrap().slots;
        slots.iter().map(|slot| slot.verified).sum::<usize>()
    };
    assert!(verified(0.5) < verified(0.01) && verified(0.01) < verified(0.0));
}

#[test]
fn what_cannot_be_evaluated_is_an_error() {
    assert!(matches!(report(&Decoding { batch: 0, ..decoding() }), Err(TuneError::Setting { .. })));
    let error = evaluate(&mut engine(false), &[vec![1]], &decoding(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("needs a drafter"), "{error}");
    let error = evaluate(&mut engine(true), &[vec![]], &decoding(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("the prompt is empty"), "{error}");
}
