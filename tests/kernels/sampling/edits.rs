//! Edited rows are sampled like rows that the host edits before: the logits and the statistics have the same bits.

use flexdraft::kernels::sampling::EditTables;
use flexdraft::processors::{History, LogitProcessors};
use half::{bf16, f16};
use proptest::prelude::*;

use super::batch::{Batch, Outcome, Stored, batch, bench, bits};
use super::way::Way;
use crate::processors::{Processor, processors};
use crate::support::processors as random;
use crate::support::properties::properties;

/// The history of the edited rows: of a sequence whose draft has one token less than the sequence has rows.
#[derive(Clone, Debug)]
struct Past {
    tokens: Vec<u32>,
    prompt_len: usize,
}

type Edited<L> = (Batch<L>, LogitProcessors, Past);

fn edited<L: Stored>() -> impl Strategy<Value = Edited<L>> {
    batch::<L>(1..5, false).prop_flat_map(|batch| {
        let id = 0..batch.vocab as u32;
        let tokens = prop::collection::vec(id, batch.rows.len() + 1..40);
        let past = (tokens, 0usize..8).prop_map(|(tokens, prompt_len)| Past { tokens, prompt_len });
        (random::processors(batch.vocab), past, Just(batch))
            .prop_map(|(processors, past, batch)| (batch, processors, past))
    })
}

/// Checks a batch whose rows after `first` are the rows of one sequence with edits; the rows before have none.
fn check<L: Stored>((batch, parameters, past): &Edited<L>) {
    let first = batch.rows.len() / 3;
    let rows = batch.rows.len() - first;
    let (tokens, draft) = past.tokens.split_at(past.tokens.len() + 1 - rows);
    let history = History {
        tokens,
        prompt_len: past.prompt_len.min(tokens.len()),
        draft,
        stop_ids: &[0, 7, 1_000_000],
    };
    let edits = parameters.edits(history, batch.vocab);
    let mut tables = EditTables::new(batch.rows.len());
    tables.push(first, rows, &edits, batch.vocab).unwrap();
    let mut by_host = batch.clone();
    for (i, row) in by_host.rows.iter_mut().skip(first).enumerate() {
        let mut logits: Vec<f32> = row.iter().map(|logit| logit.value()).collect();
        edits.apply(i, &mut logits);
        *row = logits.into_iter().map(L::of).collect();
    }
    let by_kernel = Batch { edits: Some(tables), ..batch.clone() };
    for processor in processors() {
        let bench = bench(processor);
        assert_same(&by_kernel.run(&bench, false), &by_host.run(&bench, false));
    }
}

fn assert_same<L: Stored>(found: &Outcome<L>, expected: &Outcome<L>) {
    assert_eq!(found.error, expected.error);
    assert!(
        found.stats.iter().map(bits).eq(expected.stats.iter().map(bits)),
        "{:?}, {:?}",
        found.stats,
        expected.stats
    );
    for (found, expected) in found.logits.iter().flatten().zip(expected.logits.iter().flatten()) {
        let (found, expected) = (found.value(), expected.value());
        assert!(
            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
            "{found}, {expected}"
        );
    }
}

proptest! {
    #![proptest_config(properties(96))]

    #[test]
    fn edited_rows_of_f32_are_those_that_the_host_edits(edited in edited::<f32>()) {
        check(&edited);
    }

    #[test]
    fn edited_rows_of_bf16_are_those_that_the_host_edits(edited in edited::<bf16>()) {
        check(&edited);
    }
}

proptest! {
    #![proptest_config(properties(12))]

    #[test]
    fn edited_rows_of_f16_are_those_that_the_host_edits(edited in edited::<f16>()) {
        check(&edited);
    }
}

#[test]
fn an_index_beyond_the_tables_is_reported() {
    let batch = Batch::<f32>::plain(vec![vec![1.0, 2.0, 3.0]], vec![Way::greedy()]);
    let processors = LogitProcessors {
        logit_bias: [(0, 9.0)].into(),
        allowed: Some(random::all_but(2, 3)),
        ..Default::default()
    };
    let history = History { tokens: &[1], prompt_len: 1, draft: &[], stop_ids: &[] };
    let mut tables = EditTables::new(1);
    tables.push(0, 1, &processors.edits(history, 3), 3).unwrap();
    let run = |tables: &EditTables| {
        Batch { edits: Some(tables.clone()), ..batch.clone() }.run(&bench(Processor::Emulator), false)
    };
    let outcome = run(&tables);
    assert_eq!((outcome.stats[0].token, outcome.error), (0, 0));
    // Without the last offset, there is no edit; without the mask, every id is allowed.
    let cut = EditTables { offsets: tables.offsets[..1].to_vec(), ..tables.clone() };
    let outcome = run(&cut);
    assert_eq!((outcome.stats[0].token, outcome.error), (1, 16));
    let cut = EditTables { masks: Vec::new(), edits: Vec::new(), ..tables };
    let outcome = run(&cut);
    assert_eq!((outcome.stats[0].token, outcome.error), (2, 16));
}
