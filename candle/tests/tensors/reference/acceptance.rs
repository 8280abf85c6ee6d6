//! Acceptance of draft tokens, and the bonus token.

#[path = "../../../../tests/kernels/acceptance/oracle.rs"]
mod oracle;
#[allow(dead_code)]
#[path = "../../../../tests/kernels/acceptance/sequences.rs"]
mod sequences;

use candle_core::Tensor;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{MAX_COMMITTED, Verdict, Verify, VerifySequence};
use flexdraft::kernels::chain::MAX_CHOSEN;
use flexdraft::random::Purpose;
use flexdraft_candle::{Accept, DraftDistributions, Sample, Sampled, SampledLogits, read_table, table};
use flexdraft_reference::chain::likeliest;
use proptest::prelude::*;

use super::sampling::way::Way;
use super::sampling::{sampling, stored};
use crate::properties::properties;
use crate::support::{Stored, both, of_stored, tensor, values};
use sequences::{Sequence, generated, ids_above};

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn decisions_are_the_reference_s(
        vocab in 1usize..300,
        sequences in prop::collection::vec(generated((0usize..8).boxed()), 1..5),
        stored in 0..3,
    ) {
        let sequences: Vec<Sequence> = sequences.iter().map(|sequence| sequence.sequence(vocab)).collect();
        of_stored!(stored, check(vocab, &sequences))?;
    }
}

/// The rows of all sequences, one sequence's after the other's.
#[derive(Default)]
struct Rows {
    target: Vec<Vec<f32>>,
    target_ways: Vec<Way>,
    draft: Vec<Vec<f32>>,
    draft_ways: Vec<Way>,
    tokens: Vec<i32>,
    verifies: Vec<Verify>,
}

impl Rows {
    fn push(&mut self, sequence: &Sequence) {
        let (drafts, first_draft) = (sequence.tokens.len(), self.draft.len());
        let rule = sequence.effective_rule();
        let verify = Verify::new(&VerifySequence {
            rule,
            seed: sequence.seed,
            position: sequence.position,
            drafts,
            first_target: self.target.len(),
            first_draft: sequence.draft.is_some().then_some(first_draft),
            first_token: self.tokens.len(),
            groups: sequence.groups,
        });
        // Drafts with few possible ids are given by their chosen ids.
        let chained =
            |rows: &Vec<Vec<f32>>| drafts > 0 && rows.iter().all(|row| ids_above(row) <= MAX_CHOSEN);
        let verify = verify.unwrap();
        self.verifies.push(match sequence.draft.as_ref().is_some_and(chained) {
            true => verify.with_chained_draft_at(first_draft).unwrap(),
            false => verify,
        });
        for (i, row) in sequence.target.iter().enumerate() {
            let draws = drafts == 0 || rule == Rule::Match;
            let numbers = (sequence.seed, Purpose::TargetDraw, 0, sequence.position + i + 1);
            self.target_ways.push(Way {
                params: sequence.params,
                numbers: draws.then_some(numbers),
                draft: -1,
            });
            self.target.push(row.clone());
        }
        for row in sequence.draft.iter().flatten() {
            self.draft_ways.push(Way { params: sequence.params, numbers: None, draft: -1 });
            self.draft.push(row.clone());
        }
        self.tokens.extend(&sequence.tokens);
    }

    /// Returns the most likely ids of the draft rows with their logits: all possible ids if these are few.
    fn chosen(&self, vocab: usize) -> (Tensor, Tensor) {
        let (count, rows) = (MAX_CHOSEN.min(vocab), self.draft.len());
        let of_row =
            |row: &Vec<f32>| likeliest(row, count).into_iter().map(|id| id as i32).collect::<Vec<_>>();
        let ids: Vec<Vec<i32>> = self.draft.iter().map(of_row).collect();
        let logits =
            self.draft.iter().zip(&ids).flat_map(|(row, ids)| ids.iter().map(|&id| row[id as usize]));
        (tensor(&ids.concat(), &[rows, count]), tensor(&logits.collect::<Vec<f32>>(), &[rows, count]))
    }
}

fn check<L: Stored>(vocab: usize, sequences: &[Sequence]) -> Result<(), TestCaseError> {
    let (kernels, mut rows) = (both().0, Rows::default());
    sequences.iter().for_each(|sequence| rows.push(sequence));
    let sample = |logits: &Tensor, ways: &[Way]| -> Sampled {
        let args = Sample {
            vocab,
            logits: SampledLogits::Read(logits),
            logit_index: None,
            sampling: &sampling(ways),
            starts: None,
            draft: None,
            calibration: None,
        };
        kernels.sample(&args).unwrap()
    };
    let target = stored::<L>(&rows.target);
    let target_sampled = sample(&target, &rows.target_ways);
    let draft = (!rows.draft.is_empty()).then(|| {
        let logits = stored::<L>(&rows.draft);
        let sampled = sample(&logits, &rows.draft_ways);
        (logits, rows.chosen(vocab), sampled.stats)
    });
    let accepted = kernels
        .accept(&Accept {
            vocab,
            sequences: &table(&rows.verifies, kernels.device()).unwrap(),
            any_block: sequences.iter().any(|sequence| sequence.effective_rule() == Rule::Block),
            tokens: &tensor(&rows.tokens, &[rows.tokens.len()]),
            target: &target,
            target_stats: &target_sampled.stats,
            target_partials: Some(&target_sampled.partials),
            draft: draft.as_ref().map(|(logits, (ids, chosen), stats)| DraftDistributions {
                logits: Some(logits),
                chosen: Some((ids, chosen)),
                stats,
            }),
        })
        .unwrap();
    prop_assert_eq!(kernels.take_faults().unwrap(), None);
    let verdicts: Vec<Verdict> = read_table(&accepted.verdicts).unwrap();
    let committed = values::<i32>(&accepted.committed);
    for ((sequence, verdict), committed) in
        sequences.iter().zip(&verdicts).zip(committed.chunks(MAX_COMMITTED))
    {
        oracle::check(sequence, verdict, committed)?;
    }
    Ok(())
}
