//! Tests of acceptance on the SIMT emulator: for all rules, the kernels decide as the reference does for the same rows and
//! random numbers, independently of the rest of the batch.

mod edges;
mod oracle;
mod sequences;

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept, MAX_COMMITTED, MAX_DRAFTS, SampledRows, Verdict, Verify, VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::sampling::RowStats;
use flexdraft::kernels::{KernelError, Kernels};
use flexdraft::layout::GroupSet;
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;
use half::bf16;
use proptest::prelude::*;

use crate::support::properties::properties;
use oracle::check;
use sequences::{Generated, Sequence, generated, run};

fn kernels(checking: Checking, schedule: u64) -> Kernels<Simt> {
    let checking = crate::support::simt_variant::checking(checking);
    Kernels::new(Simt::new(SimtOptions { checking, copies: Copies::Eager, schedule }))
}

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn decisions_are_the_reference_s(
        vocab in prop_oneof![1usize..300, 2040usize..4200],
        sequences in prop::collection::vec(generated((0usize..8).boxed()), 1..5),
        schedule in 0u64..4,
        half in any::<bool>(),
    ) {
        let kernels = kernels(Checking::Off, schedule);
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        let outcome = match half {
            true => run::<bf16>(&kernels, vocab, &sequences),
            false => run::<f32>(&kernels, vocab, &sequences),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            check(sequence, &outcome.verdicts[i], &outcome.committed[i])?;
        }
    }

    #[test]
    fn a_sequence_s_verdict_does_not_depend_on_the_batch(
        vocab in prop_oneof![1usize..40, 2040usize..2100],
        sequences in prop::collection::vec(generated((0usize..8).boxed()), 2..4),
        schedule in 0u64..4,
    ) {
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        let together = run::<f32>(&kernels(Checking::Accesses, schedule), vocab, &sequences);
        for (i, sequence) in sequences.iter().enumerate() {
            let alone = run::<f32>(&kernels(Checking::Off, 0), vocab, std::slice::from_ref(sequence));
            prop_assert_eq!(alone.verdicts[0], together.verdicts[i]);
            prop_assert_eq!(&alone.committed[0], &together.committed[i]);
        }
    }
}

proptest! {
    #![proptest_config(properties(4))]

    #[test]
    fn decisions_about_long_drafts_are_the_reference_s(
        vocab in 1usize..120,
        sequences in prop::collection::vec(generated((8usize..=MAX_DRAFTS).boxed()), 1..3),
    ) {
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        let outcome = run::<f32>(&kernels(Checking::Off, 0), vocab, &sequences);
        for (i, sequence) in sequences.iter().enumerate() {
            check(sequence, &outcome.verdicts[i], &outcome.committed[i])?;
        }
    }
}

/// Drafts of 15 tokens (blocks of 16) and of the largest supported length, by every rule: tests decisions deep in a
/// draft. Only a few sequences may be too close to a tie to be compared.
#[test]
fn drafts_of_15_and_63_tokens() {
    let (mut compared, mut sequences, mut deepest) = (0, Vec::new(), 0);
    for (seed, drafts) in (0..).zip([15, 15, MAX_DRAFTS]) {
        for rule in [Rule::Match, Rule::Rejection, Rule::Block] {
            for distance in [0.0, 0.5] {
                let params = match seed % 2 {
                    0 => SamplingParams::at_temperature(1.0),
                    _ => SamplingParams { top_k: 20, top_p: 0.913, min_p: 0.01, temperature: 0.8 },
                };
                let (groups, has_distribution) = (GroupSet::all(drafts), true);
                let position = 1000 * seed as usize;
                let generated =
                    Generated { rule, params, drafts, distance, has_distribution, groups, position, seed };
                sequences.push(generated.sequence(70));
            }
        }
    }
    let outcome = run::<bf16>(&kernels(Checking::Off, 1), 70, &sequences);
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

#[test]
fn rows_that_do_not_exist() {
    let kernels = kernels(Checking::Accesses, 0);
    let stream = kernels.runtime().stream();
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
    let (target, draft) = (vec![0.0f32; 3 * 8], vec![0.0f32; 2 * 8]);
    let stats: Vec<RowStats> = vec![bytemuck::Zeroable::zeroed(); 3];
    let request = |sequence| Verify::new(&sequence).unwrap();
    let run = |request: Verify, tokens: &[i32]| {
        let mut workspace = vec![0u64; accept_workspace_len(1, 8).unwrap()];
        let (mut arrived, mut error) = ([0u32], [0u32]);
        let mut verdicts: [Verdict; 1] = bytemuck::Zeroable::zeroed();
        let mut committed = [0i32; MAX_COMMITTED];
        let requests = [request];
        kernels.accept(
            &stream,
            &Accept {
                vocab: 8,
                stride: 8,
                sequences: stream.view(&requests),
                target_partials: None,
                any_block: true,
                tokens: stream.view(tokens),
                target: SampledRows { logits: stream.view(&target), stats: stream.view(&stats) },
                draft: Some(SampledRows { logits: stream.view(&draft), stats: stream.view(&stats[..2]) }),
                workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                arrived: stream.view_mut(&mut arrived),
                verdicts: stream.view_mut(&mut verdicts),
                committed: stream.view_mut(&mut committed),
                error: Some(stream.view_mut(&mut error)),
            },
        )?;
        Ok::<_, KernelError>((verdicts[0].accepted, error[0]))
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
