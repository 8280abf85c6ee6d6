//! Tests that compare the engine with the reference: with a forward pass without any cache, and with the plain decode
//! loop.

use std::sync::{Arc, Mutex};

use flexdraft::acceptance::Rule;
use flexdraft::decode::{BlockRecord, Confidence, Record, Request};
use flexdraft::model::weights::ChainKind;
use flexdraft::processors::LogitProcessors;
use flexdraft::sampling::SamplingParams;
use flexdraft_reference as plain;
use flexdraft_reference::process::RowMask;
use proptest::prelude::*;

use crate::support::models::{ChainSpec, Shapes, Spec, either_drafter, spec};
use crate::support::policies::RandomGroups;
use crate::support::processors::all_but;
use crate::support::properties::properties;
use crate::support::reference;
use crate::support::runs::{engine, run, run_alone};

/// Tolerance for the difference between f32 and f64 results over a few small layers, relative to the largest result.
const TOLERANCE: f64 = 2e-3;

fn close(found: &[f32], expected: &[f64]) -> bool {
    let scale = expected.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(f, e)| (f64::from(*f) - e).abs() < TOLERANCE * scale)
}

/// Returns whether `token` has the largest logit, up to rounding.
fn is_argmax(token: u32, logits: &[f64]) -> bool {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits[token as usize] >= largest - 2.0 * TOLERANCE * largest.abs().max(1.0)
}

type Rows = Arc<Mutex<Vec<(Vec<u32>, Vec<f32>)>>>;

proptest! {
    #![proptest_config(properties(64))]

    /// Compares every row of target logits that a step reads, every committed token, and every drafted token with its
    /// confidence.
    #[test]
    fn logits_tokens_and_drafts_are_those_of_a_forward_pass_without_cache(
        spec in either_drafter(spec(Shapes::SMALL)),
        prompt in prop::collection::vec(any::<u32>(), 1..24),
        seed in any::<u64>(),
    ) {
        let prompt: Vec<u32> = prompt.iter().map(|id| id % spec.vocab as u32).collect();
        let (target, drafter) = spec.weights();
        let (target, drafter) = (reference::target(&target), reference::drafter(&drafter));
        let rows = Rows::default();
        let seen = rows.clone();
        let request = Request {
            record: true,
            confidence: Confidence { threshold: 0.0, ..Confidence::default() },
            logits_hook: Some(Box::new(move |position: usize, prefix: &[u32], logits: &mut [f32]| {
                assert_eq!(position, prefix.len());
                seen.lock().unwrap().push((prefix.to_vec(), logits.to_vec()));
                Ok(())
            })),
            ..Request::new(prompt.clone(), 12)
        };
        let output = run_alone(&spec, RandomGroups(seed), request);

        for (prefix, logits) in rows.lock().unwrap().iter() {
            let expected = plain::model::target_logits(&target, prefix).pop().unwrap();
            prop_assert!(close(logits, &expected), "after {:?}: {:?} and {:?}", prefix, logits, expected);
        }
        let all = [&prompt[..], &output.tokens].concat();
        let expected = plain::model::target_logits(&target, &all);
        for (position, &token) in all.iter().enumerate().skip(prompt.len()) {
            prop_assert!(is_argmax(token, &expected[position - 1]), "position {}", position);
        }
        for record in &output.records {
            let (clean, next) = match record {
                Record::Prefill(next) => (prompt.clone(), next),
                Record::Step(step) => {
                    let accepted = &step.candidates[..=step.accepted];
                    ([&all[..step.position.min(all.len())], accepted].concat(), &step.next)
                }
            };
            let BlockRecord { bonus, draft, confidence } = next;
            let rows = plain::model::draft_rows(&target, &drafter, &clean, *bonus, spec.block_size);
            prop_assert_eq!(rows.len(), draft.len());
            let mut before = *bonus;
            for ((token, confidence), row) in draft.iter().zip(confidence).zip(&rows) {
                let logits = match &drafter.chain {
                    Some(chain) => {
                        plain::chain::chained_logits(target.token_rows(), chain, before, &row.hidden, &row.logits)
                    }
                    None => row.logits.clone(),
                };
                before = *token;
                prop_assert!(is_argmax(*token, &logits));
                let expected: f64 = plain::sample::confidence(&logits);
                prop_assert!((f64::from(*confidence) - expected).abs() < 2.0 * TOLERANCE);
            }
        }
    }
}

/// Each step of the engine equals a step of the reference's own decode loop in f64, under every rule. The seeds are
/// fixed, and none of their draws is a near-tie, at which f32 and f64 could differ.
#[test]
fn the_decode_loop_is_the_references() {
    let vocabulary = |spec: &Spec, n: u32| (0..n).map(|i| (i * i + 3) % spec.vocab as u32).collect();
    let mut accepted = 0;
    for seed in 0..64u64 {
        // From seed 24 on, the drafter has a chain; from seed 40 on, it is an Orthrus drafter.
        let kind = ChainKind::ALL[seed as usize % 2];
        let chain =
            (24..40).contains(&seed).then_some(ChainSpec { kind, rank: 4, top_k: 1 + seed as usize % 7 });
        let gain = [0.5, 1.0, 3.0][seed as usize % 3];
        let spec = Spec { seed, gain, chain, vocab: 11, ..Spec::default() };
        let spec = if seed < 40 { spec } else { spec.with_orthrus() };
        let (target, drafter) = spec.weights();
        let (target, drafter) = (reference::target(&target), reference::drafter(&drafter));
        let (rule, plain_rule) = [
            (Rule::Rejection, plain::accept::Rule::Rejection),
            (Rule::Block, plain::accept::Rule::Block),
            (Rule::Match, plain::accept::Rule::Match),
        ][seed as usize % 3];
        let sampling = [
            SamplingParams::at_temperature(1.0),
            SamplingParams::GREEDY,
            SamplingParams { temperature: 0.8, top_k: 7, top_p: 0.9, min_p: 0.02 },
            SamplingParams::at_temperature(1.5),
        ][seed as usize % 4];
        let processors = [
            LogitProcessors::default(),
            LogitProcessors { repetition_penalty: 1.3, min_tokens: 8, ..LogitProcessors::default() },
            LogitProcessors {
                frequency_penalty: 0.4,
                presence_penalty: 0.3,
                logit_bias: [(2, 0.5), (9, 1.5)].into(),
                bad_words: vec![vec![4], vec![2, 2], vec![3, 1, 2]],
                allowed: Some(all_but(6, spec.vocab)),
                ..LogitProcessors::default()
            },
        ][seed as usize % 5 % 3]
            .clone();
        // Bias and mask act on the drafts of some seeds, and other seeds have a mask for each row: no token follows itself.
        let on_drafts = (seed / 5).is_multiple_of(2);
        let row_mask = (seed % 7 < 2).then_some((|tokens| vec![!(1 << tokens[tokens.len() - 1])]) as RowMask);
        let request = || Request {
            seed,
            rule,
            processors: processors.clone(),
            processors_on_drafts: on_drafts,
            mask_provider: row_mask.map(reference::mask_provider),
            sampling,
            record: true,
            confidence: Confidence { threshold: 0.05, ..Confidence::default() },
            stop_ids: vec![9],
            ..Request::new(vocabulary(&spec, 3 + seed as u32), 24)
        };
        let expected = plain::decode::decode(
            &target,
            &drafter,
            &plain::decode::Request {
                prompt: request().prompt,
                max_new_tokens: 24,
                stop_tokens: vec![9],
                processors: reference::processors(&processors, row_mask),
                processors_on_drafts: on_drafts,
                warping: plain::warp::Warping {
                    temperature: f64::from(sampling.temperature),
                    top_k: sampling.top_k,
                    top_p: f64::from(sampling.top_p),
                    min_p: f64::from(sampling.min_p),
                },
                rule: plain_rule,
                seed,
                block_size: spec.block_size,
                threshold: f64::from(0.05f32),
                strategy: plain::schedule::Strategy::CumulativeProduct,
            },
        );
        for mode in spec.drafting_modes() {
            let output = run(&mut engine(&spec, mode), vec![request()]).remove(0);
            assert_eq!(output.tokens, expected.output, "seed {seed}");
            let mut steps = expected.steps.iter();
            for record in &output.records {
                let Record::Step(step) = record else { continue };
                let expected = steps.next().unwrap();
                let v = expected.verify_len;
                assert_eq!((step.position, step.verify_len), (expected.start, v), "seed {seed}");
                assert_eq!(step.candidates, expected.candidates[..=v], "seed {seed}");
                assert_eq!((step.accepted, step.next.bonus), (expected.accepted, expected.bonus));
                assert_eq!(step.next.draft, expected.draft.tokens, "seed {seed}");
                accepted += step.accepted;
            }
            assert_eq!(steps.next().map(|step| step.start), None, "seed {seed}: a step is missing");
        }
    }
    assert!(accepted > 40, "too little was accepted to compare much: {accepted}");
}
