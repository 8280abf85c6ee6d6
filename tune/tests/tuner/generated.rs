//! Evaluation of a drafter by generating, on the bundled pair.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use flexdraft::acceptance::Rule;
use flexdraft::decode::{Confidence, Engine, Mode};
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::weights::{ChainConfig, ChainKind};
use flexdraft::model::{DrafterWeights, Model, TargetWeights};
use flexdraft::sampling::SamplingParams;
use flexdraft_tune::chain::{ChainHeads, ChainShape, export_chain};
use flexdraft_tune::drafter::Drafter;
use flexdraft_tune::engine_size::engine_options;
use flexdraft_tune::generated::{Decoding, Evaluation, Report, evaluate, walk_greedy};
use flexdraft_tune::headroom::{Source, measure};
use flexdraft_tune::target::FrozenTarget;
use flexdraft_tune::transcripts::Transcript;
use flexdraft_tune::tune::walk::Walk;
use flexdraft_tune::{Result, TuneError};

use crate::common;

fn pair() -> (TargetWeights, DrafterWeights) {
    let fixtures: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
    let target = TargetWeights::read(&fixtures.join("target")).unwrap();
    let drafter = DrafterWeights::read(&fixtures.join("draft"), &target.config).unwrap();
    (target, drafter)
}

/// Returns the bundled drafter with a chain of random weights.
fn chained(target: &TargetWeights, kind: ChainKind) -> DrafterWeights {
    let frozen = FrozenTarget::new(target, DType::F32, &Device::Cpu).unwrap();
    let chain = common::chain(&frozen, ChainShape { config: ChainConfig { kind, top_k: 4 }, rank: 2 });
    let source: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/draft");
    let dir = tempfile::tempdir().unwrap();
    export_chain(&source, dir.path(), &chain).unwrap();
    DrafterWeights::read(dir.path(), &target.config).unwrap()
}

fn engine_of(target: &TargetWeights, drafter: Option<&DrafterWeights>) -> Engine<Cpu> {
    let options = engine_options(&target.config, 80, 8, 4);
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    Engine::new(Model::new(cpu, target, drafter).unwrap(), Mode::Autoregressive, options).unwrap()
}

fn engine(with_drafter: bool) -> Engine<Cpu> {
    let (target, drafter) = pair();
    engine_of(&target, with_drafter.then_some(&drafter))
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

fn prompts() -> Vec<Vec<u32>> {
    (0..6).map(|i| vec![40 + i, 300, 51 + i]).collect()
}

fn report(decoding: &Decoding) -> Result<Report> {
    let prompts = prompts();
    evaluate(&mut engine(true), &prompts, decoding, &mut |_| ()).map(|evaluation| evaluation.report)
}

#[test]
fn modes_and_batches_give_the_same_report() {
    let parallel = report(&decoding()).unwrap();
    assert!(parallel.compared && parallel.tau > Some(1.2) && parallel.passes_per_token < Some(0.9));
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

/// The acceptance probability of a draft drawn from q is Σ min(p, q) with rejection, and Σ p·q with independent
/// match.
#[test]
fn independent_match_accepts_less() {
    let sampling = SamplingParams::at_temperature(1.0);
    let tau = |as_certain| {
        let confidence = Confidence { threshold: 0.0, ..Confidence::default() };
        report(&Decoding { sampling, as_certain, confidence, ..decoding() }).unwrap().tau
    };
    assert!(tau(true) < tau(false), "{:?} {:?}", tau(true), tau(false));
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

/// Returns the target's own greedy transcripts, and the evaluation that decoded them.
fn greedy(engine: &mut Engine<Cpu>, decoding: &Decoding) -> (Vec<Transcript>, Evaluation) {
    let evaluation = evaluate(engine, &prompts(), decoding, &mut |_| ()).unwrap();
    let pairs = prompts().into_iter().zip(evaluation.responses.iter().cloned());
    (pairs.map(|(prompt, response)| Transcript { prompt, response }).collect(), evaluation)
}

/// A walk through a transcript takes the same steps as decoding. Only in the last step may decoding accept more: drafts
/// beyond the end of the transcript, which it then drops.
#[test]
fn a_walk_takes_the_steps_of_decoding() {
    let (target, plain) = pair();
    let [pair, hidden] = ChainKind::ALL.map(|kind| chained(&target, kind));
    for (drafter, threshold) in [(&plain, 0.0), (&plain, 0.01), (&plain, 0.3), (&pair, 0.3), (&hidden, 0.01)]
    {
        let confidence = Confidence { threshold, ..Confidence::default() };
        let decoding = Decoding { confidence, batch: 1, ..decoding() };
        let mut engine = engine_of(&target, Some(drafter));
        let (transcripts, Evaluation { report: whole, responses }) = greedy(&mut engine, &decoding);
        let mut sum = (0, 0);
        for (index, transcript) in transcripts.iter().enumerate() {
            let (one, written) = (std::slice::from_ref(transcript), std::slice::from_ref(&responses[index]));
            let walked = walk_greedy(&target, drafter, one, written, &decoding).unwrap();
            assert_eq!((walked.transcripts, walked.not_greedy), (1, 0));
            let Walk { steps, tokens, reached, accepted, .. } = walked.walk;
            assert!(steps > 5);
            // The first token of a response comes with its prompt.
            assert_eq!((steps, 1 + tokens), (whole.prompts[index].steps, transcript.response.len()));

            let prompt = std::slice::from_ref(&transcript.prompt);
            let report = evaluate(&mut engine, prompt, &decoding, &mut |_| ()).unwrap().report;
            for (slot, counts) in report.slots.iter().enumerate() {
                for (walked, decoded) in [(reached[slot], counts.reached), (accepted[slot], counts.accepted)]
                {
                    assert!((walked..=walked + 1).contains(&decoded), "slot {slot}: {walked}, {decoded}");
                }
            }
            sum = (sum.0 + steps, sum.1 + tokens);
        }
        // A walk along all transcripts at once gives the sum of the walks along each of them.
        let walked = walk_greedy(&target, drafter, &transcripts, &responses, &decoding).unwrap();
        assert_eq!((walked.walk.steps, walked.walk.tokens), sum);
        assert_eq!(walked.tau, Some(sum.1 as f64 / sum.0 as f64));
    }
}

#[test]
fn transcripts_that_greedy_decoding_does_not_write_are_left_out() {
    let (target, drafter) = pair();
    let (mut transcripts, Evaluation { responses, .. }) = greedy(&mut engine(true), &decoding());
    // Four transcripts are altered: one token differs, one token is added, tokens at the end are missing, and
    // the response is empty.
    transcripts[0].response[20] ^= 1;
    transcripts[1].response.push(7);
    transcripts[2].response.truncate(30);
    transcripts[3].response.clear();
    let walked = walk_greedy(&target, &drafter, &transcripts, &responses, &decoding()).unwrap();
    assert_eq!((walked.transcripts, walked.not_greedy), (5, 1));
    let longer = Decoding { max_new_tokens: 49, ..decoding() };
    let walked = walk_greedy(&target, &drafter, &transcripts, &responses, &longer).unwrap();
    assert_eq!((walked.transcripts, walked.not_greedy), (4, 2));
    let none = walk_greedy(&target, &drafter, &transcripts[..1], &responses[..1], &decoding()).unwrap();
    assert_eq!((none.transcripts, none.not_greedy, none.tau), (0, 1, None));

    let sampling = SamplingParams::at_temperature(1.0);
    let sampled = Decoding { sampling, ..decoding() };
    let refused = |responses: &[Vec<u32>], decoding| {
        walk_greedy(&target, &drafter, &transcripts, responses, decoding).unwrap_err().to_string()
    };
    assert_eq!(refused(&responses, &sampled), "the temperature of a walk is 1, expected 0");
    assert_eq!(
        refused(&responses[1..], &decoding()),
        "the number of responses is 5, expected one per transcript, 6"
    );
}

#[test]
fn the_headroom_is_what_a_chain_could_gain() {
    let (target, exported) = pair();
    let (transcripts, Evaluation { report, responses }) = greedy(&mut engine(true), &decoding());
    let walked = walk_greedy(&target, &exported, &transcripts, &responses, &decoding()).unwrap();
    let headroom = &walked.headroom;
    assert_eq!((headroom.top_k, headroom.tau, headroom.chained_tau), (16, walked.tau, None));
    assert!(headroom.oracle_tau > headroom.tau && headroom.closed.is_none());
    assert_eq!(headroom.recall.len(), 7);
    // A slot 1 that is accepted is among its slot's most likely ids.
    let accepted = walked.walk.accepted[0] as f64 / walked.walk.reached[0] as f64;
    assert!(headroom.recall[0] > accepted && headroom.recall.iter().all(|&recall| recall <= 1.0));
    assert!((headroom.calibration_error - report.calibration_error).abs() < 0.05);

    // A chain that corrects nothing leaves the drafts as they are, and an oracle that may choose every id is always right.
    let frozen = FrozenTarget::new(&target, DType::F32, &Device::Cpu).unwrap();
    let drafter = Drafter::from_weights(&target, &frozen, &exported).unwrap();
    let config = ChainConfig { kind: ChainKind::Pair, top_k: target.config.vocab_size };
    let chain = ChainHeads::new(&frozen, ChainShape { config, rank: 2 }, 0).unwrap();
    let confidence = Confidence { threshold: 0.0, ..Confidence::default() };
    let source =
        Source { target: &frozen, drafter: &drafter, chain: Some(&chain), confidence, counted: None };
    let (walk, headroom) = measure(source, &transcripts).unwrap();
    assert_eq!((headroom.tau, headroom.closed), (headroom.chained_tau, Some(0.0)));
    assert_eq!(walk.tau(), headroom.tau);
    assert!(headroom.recall.iter().all(|&recall| recall == 1.0));
    // After the first token of a response, each step of 8 slots commits 8 of the other 47 tokens.
    assert_eq!(headroom.oracle_tau, Some(47.0 / 6.0));
    // Trigrams that were counted in the walked text itself draft most of it.
    let own = measure(Source { counted: Some(&transcripts), ..source }, &transcripts).unwrap().1;
    assert!(own.trigram_tau > headroom.trigram_tau && own.is_explained_by_counts());
}
