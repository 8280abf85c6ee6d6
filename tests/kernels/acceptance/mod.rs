//! Tests of acceptance: for all rules, the kernels decide as the reference does for the same rows and random numbers,
//! independently of the rest of the batch.

mod edges;
mod faults;
mod on_the_emulator;
mod oracle;
mod released_models;
mod run;
mod sequences;

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::KernelError;
use flexdraft::kernels::acceptance::{
    Accept, DraftDistributions, MAX_COMMITTED, MAX_DRAFTS, SampledRows, Verdict, Verify, VerifySequence,
    accept_workspace_len,
};
use flexdraft::kernels::sampling::RowStats;
use flexdraft::layout::GroupSet;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::sampling::SamplingParams;
use half::{bf16, f16};
use proptest::prelude::*;

use crate::processors::{Bench, Processor, processors, runtimes_agree};
use crate::support::properties::properties;
use oracle::check;
use run::{Outcome, run};
use sequences::{Generated, Sequence, generated};

fn bench(processor: Processor, checking: Checking, schedule: u64) -> Bench {
    let checking = crate::support::simt_variant::checking(checking);
    Bench::on(processor, SimtOptions { checking, copies: Copies::Eager, schedule })
}

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn decisions_are_the_reference_s(
        vocab in prop_oneof![1usize..300, 2040usize..4200],
        sequences in prop::collection::vec(generated((0usize..8).boxed()), 1..5),
        schedule in 0u64..4,
        stored in 0..3,
    ) {
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        for processor in processors() {
            let bench = bench(processor, Checking::Off, schedule);
            let outcome = match stored {
                0 => run::<bf16>(&bench, vocab, &sequences),
                1 => run::<f16>(&bench, vocab, &sequences),
                _ => run::<f32>(&bench, vocab, &sequences),
            };
            for (i, sequence) in sequences.iter().enumerate() {
                check(sequence, &outcome.verdicts[i], &outcome.committed[i])?;
            }
        }
    }

    #[test]
    fn a_sequence_s_verdict_does_not_depend_on_the_batch(
        vocab in prop_oneof![1usize..40, 2040usize..2100],
        sequences in prop::collection::vec(generated((0usize..8).boxed()), 2..4),
        schedule in 0u64..4,
    ) {
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        for processor in processors() {
            let together = run::<f32>(&bench(processor, Checking::Accesses, schedule), vocab, &sequences);
            check_independence(&bench(processor, Checking::Off, 0), vocab, &sequences, &together)?;
        }
    }
}

/// Checks that the verdicts and committed tokens of sequences are the same for the sequences in another order, and for
/// each sequence alone.
fn check_independence(
    bench: &Bench,
    vocab: usize,
    sequences: &[Sequence],
    together: &Outcome,
) -> Result<(), TestCaseError> {
    let reversed: Vec<Sequence> = sequences.iter().rev().cloned().collect();
    let mut permuted = run::<f32>(bench, vocab, &reversed);
    permuted.verdicts.reverse();
    permuted.committed.reverse();
    prop_assert_eq!(&permuted, together, "in another order");
    for (i, sequence) in sequences.iter().enumerate() {
        let alone = run::<f32>(bench, vocab, std::slice::from_ref(sequence));
        prop_assert_eq!(alone.verdicts[0], together.verdicts[i]);
        prop_assert_eq!(&alone.committed[0], &together.committed[i]);
    }
    Ok(())
}

proptest! {
    #![proptest_config(properties(4))]

    #[test]
    fn decisions_about_long_drafts_are_the_reference_s(
        vocab in 1usize..120,
        sequences in prop::collection::vec(generated((8usize..=MAX_DRAFTS).boxed()), 1..3),
    ) {
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        for processor in processors() {
            let outcome = run::<f32>(&bench(processor, Checking::Off, 0), vocab, &sequences);
            for (i, sequence) in sequences.iter().enumerate() {
                check(sequence, &outcome.verdicts[i], &outcome.committed[i])?;
            }
        }
    }
}

/// Tests decisions deep in a draft: drafts of 15 tokens (blocks of 16) and of the largest supported length, by every
/// rule. Only a few sequences may be too close to a tie to be compared.
#[test]
fn drafts_of_15_and_63_tokens() {
    let mut sequences = Vec::new();
    for (seed, drafts) in (0..).zip([15, 15, MAX_DRAFTS]) {
        for rule in [Rule::Match, Rule::Rejection, Rule::Block] {
            for distance in [0.0, 0.5] {
                let params = match seed % 2 {
                    0 => SamplingParams::at_temperature(1.0),
                    _ => SamplingParams { top_k: 20, top_p: 0.913, min_p: 0.01, temperature: 0.8 },
                };
                let (groups, has_distribution) = (GroupSet::all(drafts), true);
                let position = 1000 * seed as usize;
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
                sequences.push(generated.sequence(70));
            }
        }
    }
    for (processor, is_f16) in processors().flat_map(|processor| [(processor, false), (processor, true)]) {
        let bench = bench(processor, Checking::Off, 1);
        let outcome = match is_f16 {
            false => run::<bf16>(&bench, 70, &sequences),
            true => run::<f16>(&bench, 70, &sequences),
        };
        let (mut compared, mut deepest) = (0, 0);
        for (i, sequence) in sequences.iter().enumerate() {
            let verdict = &outcome.verdicts[i];
            if check(sequence, verdict, &outcome.committed[i]).unwrap().is_some() {
                compared += 1;
                deepest = deepest.max(verdict.accepted);
            }
        }
        assert!(compared + 3 >= sequences.len(), "{compared} of {} were compared", sequences.len());
        assert_eq!(deepest, MAX_DRAFTS as i32);
    }
}

#[test]
fn rows_that_do_not_exist() {
    for processor in processors() {
        check_rows_that_do_not_exist(&bench(processor, Checking::Accesses, 0));
    }
}

fn check_rows_that_do_not_exist(bench: &Bench) {
    let sound = VerifySequence {
        rule: Rule::Rejection,
        seed: 1,
        position: 3,
        drafts: 2,
        first_target: 0,
        first_draft: Some(0),
        first_token: 0,
        groups: GroupSet::default(),
    };
    let (target, draft) = (bench.memory(&[0.0f32; 3 * 8]), bench.memory(&[0.0f32; 2 * 8]));
    let [target_stats, draft_stats] = [3, 2].map(|rows| bench.memory(&vec![RowStats::zeroed(); rows]));
    let request = |sequence| Verify::new(&sequence).unwrap();
    let run = |request: Verify, tokens: &[i32]| {
        let (requests, tokens) = (bench.memory(&[request]), bench.memory(tokens));
        let mut workspace = bench.memory(&vec![0f32; accept_workspace_len(1, 8).unwrap()]);
        let (mut arrived, mut error) = (bench.memory(&[0u32]), bench.memory(&[0u32]));
        let mut verdicts = bench.memory(&[Verdict::zeroed()]);
        let mut committed = bench.memory(&[0i32; MAX_COMMITTED]);
        let args = Accept {
            vocab: 8,
            stride: 8,
            sequences: bench.view(&requests),
            target_partials: None,
            any_block: true,
            tokens: bench.view(&tokens),
            target: SampledRows { logits: bench.view(&target), stats: bench.view(&target_stats) },
            draft: Some(DraftDistributions {
                logits: Some(bench.view(&draft)),
                chosen: None,
                stats: bench.view(&draft_stats),
            }),
            workspace: bench.view_mut(&mut workspace),
            arrived: bench.view_mut(&mut arrived),
            verdicts: bench.view_mut(&mut verdicts),
            committed: bench.view_mut(&mut committed),
            error: Some(bench.view_mut(&mut error)),
        };
        bench.kernels.accept(&bench.stream, &args)?;
        drop(args);
        Ok::<_, KernelError>((bench.host(&verdicts)[0].accepted, bench.host(&error)[0]))
    };
    for rule in [Rule::Match, Rule::Rejection, Rule::Block] {
        let sound = VerifySequence { rule, ..sound };
        assert_eq!(run(request(sound), &[1, 2]).unwrap().1, 0);
        for wrong in [
            VerifySequence { first_target: 1, ..sound },
            VerifySequence { first_target: i32::MAX as usize, ..sound },
            VerifySequence { first_draft: Some(1), ..sound },
            VerifySequence { first_token: 1, ..sound },
        ] {
            assert_eq!(run(request(wrong), &[1, 2]).unwrap(), (-1, 16));
        }
        for first in [1, i32::MAX as usize] {
            let wrong = request(sound).with_draft_stats_at(first).unwrap();
            assert_eq!(run(wrong, &[1, 2]).unwrap(), (-1, 16));
        }
        assert_eq!(run(request(sound), &[1]).unwrap(), (-1, 16));
    }
}

#[test]
fn is_the_same_on_every_runtime() {
    for vocab in [100, 5001] {
        let sequences = released_models::sequences(vocab);
        runtimes_agree(
            |bench| run::<f32>(bench, vocab, &sequences),
            |expected, found| {
                assert_eq!(found.committed, expected.committed, "{vocab} ids");
                for (found, expected) in found.verdicts.iter().zip(&expected.verdicts) {
                    let decision = |v: &Verdict| (v.accepted, v.bonus, v.group, v.cached_length);
                    assert_eq!(decision(found), decision(expected), "{vocab} ids");
                    assert!((found.probability - expected.probability).abs() < 1e-3);
                }
            },
        );
    }
}
