//! Tests acceptance over the vocabularies of Qwen3 and SmolLM2.

use flexdraft::acceptance::Rule;
use flexdraft::layout::GroupSet;
use flexdraft::runtime::simt::Checking;
use flexdraft::sampling::SamplingParams;

use super::oracle::check;
use super::run::run;
use super::sequences::{Generated, Sequence};
use super::{bench, check_independence};
use crate::processors::processors_of_large_cases;

/// Returns sequences to verify by every rule: with drafts close to the target and far from it, with point masses, and
/// without a draft.
pub fn sequences(vocab: usize) -> Vec<Sequence> {
    let mut sequences = vec![];
    for rule in [Rule::Rejection, Rule::Block, Rule::Match] {
        for (temperature, top_k, drafts, distance, has_distribution) in [
            (1.0, 0, 5, 0.5, true),
            (0.8, 40, 7, 0.5, true),
            (1.0, 0, 3, 4.0, true),
            (0.7, 5, 4, 0.5, false),
            (0.0, 0, 6, 0.0, true),
            (1.0, 0, 0, 0.0, true),
        ] {
            let seed = sequences.len() as u64 + 1;
            let params = SamplingParams { temperature, top_k, top_p: 1.0, min_p: 0.0 };
            let (groups, position) = (GroupSet::all(4), 50 + 1000 * sequences.len());
            let generated = Generated {
                rule,
                params,
                drafts,
                distance,
                has_distribution,
                chosen: None,
                groups,
                position,
                seed,
            };
            sequences.push(generated.sequence(vocab));
        }
    }
    sequences
}

#[test]
fn decisions_over_a_large_vocabulary() {
    for processor in processors_of_large_cases() {
        for vocab in [151_936, 49_152] {
            let (bench, sequences) = (bench(processor, Checking::Off, 0), sequences(vocab));
            let outcome = run::<f32>(&bench, vocab, &sequences);
            check_independence(&bench, vocab, &sequences, &outcome).unwrap();
            let (mut compared, mut lengths) = (0, vec![]);
            for (i, sequence) in sequences.iter().enumerate() {
                let verdict = &outcome.verdicts[i];
                if check(sequence, verdict, &outcome.committed[i]).unwrap().is_some() {
                    compared += 1;
                    lengths.push(verdict.accepted);
                }
            }
            lengths.sort_unstable();
            lengths.dedup();
            assert!(compared + 2 >= sequences.len(), "{compared} of {} were compared", sequences.len());
            assert!(lengths.len() >= 3, "drafts are accepted as far as {lengths:?} alone");
        }
    }
}
