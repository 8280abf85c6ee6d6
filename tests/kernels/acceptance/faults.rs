//! Rows of the target that no token may be drawn from: they end their sequence, and nothing else.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{MAX_COMMITTED, Verdict};
use flexdraft::runtime::simt::Checking;
use flexdraft_reference::{accept, warp};
use half::bf16;
use proptest::prelude::*;

use super::bench;
use super::run::run;
use super::sequences::{Sequence, generated};
use crate::processors::processors;
use crate::support::properties::properties;

const INF: f32 = f32::INFINITY;

/// Returns `row` with a fault: some of its logits are NaN or +∞, or all of them are −∞.
fn spoiled(row: &[f32], kind: usize, id: usize) -> Vec<f32> {
    let mut row = row.to_vec();
    let vocab = row.len();
    match kind {
        0 => row.fill(f32::NEG_INFINITY),
        1 => row.fill(f32::NAN),
        2 => row[id % vocab] = f32::NAN,
        3 => row[id % vocab] = INF,
        _ => (row[id % vocab], row[(id + 5) % vocab]) = (INF, f32::NAN),
    }
    row
}

proptest! {
    #![proptest_config(properties(12))]

    #[test]
    fn a_fault_ends_its_sequence_and_nothing_else(
        vocab in prop_oneof![2usize..40, 2040usize..2100],
        sequences in prop::collection::vec(generated((0usize..7).boxed()), 2..4),
        (spoils, ids) in (prop::collection::vec((any::<prop::sample::Index>(), 0usize..5), 1..3), any::<usize>()),
        of_draft in any::<bool>(),
        half in any::<bool>(),
    ) {
        let mut faulty: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        // The first sequence has faulty rows of the target, and perhaps of the draft.
        for (row, kind) in spoils {
            let Sequence { target, draft, .. } = &mut faulty[0];
            let place = row.index(target.len());
            target[place] = spoiled(&target[place], kind, ids % vocab);
            if let Some(q) = draft.as_mut().and_then(|rows| rows.get_mut(place)).filter(|_| of_draft) {
                *q = spoiled(q, kind, ids / 7 % vocab);
            }
        }
        // Sound rows whose distributions are those that draws from the faulty rows follow.
        let mut sound = faulty.clone();
        let Sequence { target, draft, .. } = &mut sound[0];
        target.iter_mut().chain(draft.iter_mut().flatten()).for_each(|row| *row = warp::sanitize(row));
        for processor in processors() {
            let bench = bench(processor, Checking::Accesses, 0);
            let run = |sequences: &[Sequence]| match half {
                true => run::<bf16>(&bench, vocab, sequences),
                false => run::<f32>(&bench, vocab, sequences),
            };
            let (found, expected) = (run(&faulty), run(&sound));
            for (i, sequence) in faulty.iter().enumerate() {
                let (verdict, without) = (found.verdicts[i], expected.verdicts[i]);
                prop_assert_eq!((without.fault, without.unused), (0, 0));
                let rows = &sequence.target;
                let Some((row, fault)) = accept::first_fault(rows, without.accepted as usize) else {
                    prop_assert_eq!(verdict, without);
                    prop_assert_eq!(&found.committed[i], &expected.committed[i]);
                    continue;
                };
                prop_assert_eq!(i, 0);
                prop_assert_eq!(format!("{:?}", verdict.logits_fault()), format!("{:?}", Some(fault)));
                prop_assert_eq!(verdict.accepted as usize, row);
                prop_assert_eq!(verdict.cached_length, (sequence.position + row + 1) as i64);
                prop_assert!((0..vocab as i32).contains(&verdict.bonus));
                let mut tokens = sequence.tokens[..row].to_vec();
                tokens.resize(MAX_COMMITTED, -1);
                prop_assert_eq!(&found.committed[i], &tokens);
            }
        }
    }
}

/// Each fault, at the first and at the last row of the longest draft.
#[test]
fn faults_are_found_at_both_ends_of_a_draft() {
    let drafts = flexdraft::kernels::acceptance::MAX_DRAFTS;
    for (place, kind, expected) in [(0, 2, 1), (drafts, 2, 1), (0, 3, 2), (drafts, 3, 2), (drafts, 0, 3)] {
        let tokens = vec![3; drafts];
        let mut row = vec![0.0; 20];
        row[3] = 9.0;
        let mut target = vec![row; drafts + 1];
        target[place] = spoiled(&target[place], kind, 3);
        let sequence = Sequence {
            rule: Rule::Match,
            params: flexdraft::sampling::SamplingParams::GREEDY,
            groups: flexdraft::layout::GroupSet::default(),
            position: 11,
            seed: 0,
            target,
            draft: None,
            tokens,
        };
        for processor in processors() {
            let found =
                run::<f32>(&bench(processor, Checking::Accesses, 1), 20, std::slice::from_ref(&sequence));
            let Verdict { accepted, fault, .. } = found.verdicts[0];
            assert_eq!((accepted as usize, fault), (place, expected));
        }
    }
}
