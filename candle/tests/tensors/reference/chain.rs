//! The chain of a draft.

use flexdraft::kernels::sampling::RowStats;
use flexdraft::kernels::selection::{Draft, DraftGroups};
use flexdraft::layout::GroupSet;
use flexdraft_candle::{ChainChoose, ChainScore, ChainWalk, Sample, SampledLogits, read_table, table};
use flexdraft_reference::chain::likeliest;
use proptest::prelude::*;

use super::sampling::generators::{Shape, logits, noise, numbers, params, shape};
use super::sampling::oracle::check_row;
use super::sampling::way::Way;
use super::sampling::{loaded, sampling, stored};
use crate::properties::properties;
use crate::support::{Stored, both, of_stored, tensor, values};

/// The rows of one draft.
type Rows = Vec<(u64, Shape, Way)>;

fn row() -> impl Strategy<Value = (u64, Shape, Way)> {
    let way = (params(), numbers()).prop_map(|(params, numbers)| Way { params, numbers, draft: -1 });
    (any::<u64>(), shape(), way)
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn a_draft_is_the_reference_s(
        (vocab, count) in prop_oneof![4 => 1usize..200, 1 => 1000usize..1100]
            .prop_flat_map(|vocab| (Just(vocab), 1..=vocab.min(32))),
        rows in prop::collection::vec(row(), 1..5),
        rank in 1usize..20,
        stored in 0..3,
    ) {
        of_stored!(stored, check(vocab, count, &rows, rank))?;
    }
}

fn check<L: Stored>(vocab: usize, count: usize, rows: &Rows, rank: usize) -> Result<(), TestCaseError> {
    const NONE: f32 = f32::NEG_INFINITY;
    let kernels = both().0;
    let generated: Vec<Vec<f32>> = rows.iter().map(|row| logits(row.0, vocab, row.1)).collect();
    let ways: Vec<Way> = rows.iter().map(|row| row.2).collect();
    let (logits, sampling) = (stored::<L>(&generated), sampling(&ways));
    let partials = kernels
        .sample_partials(&Sample {
            vocab,
            logits: SampledLogits::Read(&logits),
            logit_index: None,
            sampling: &sampling,
            starts: None,
            draft: None,
            calibration: None,
        })
        .unwrap();
    let chosen = kernels
        .chain_choose(&ChainChoose {
            vocab,
            logits: &logits,
            logit_index: None,
            partials: &partials,
            calibrated: false,
            count,
        })
        .unwrap();
    let (ids, before_walk) = (values::<i32>(&chosen.ids), values::<f32>(&chosen.logits));
    for (r, row) in loaded::<L>(&logits, vocab).iter().enumerate() {
        let found = &ids[r * count..][..count];
        prop_assert!(likeliest(row, count).iter().zip(found).all(|(&id, &found)| id as i32 == found));
        let logits: Vec<f32> = found.iter().map(|&id| row[id as usize].max(NONE)).collect();
        prop_assert_eq!(&before_walk[r * count..][..count], &logits[..]);
    }

    // The factors of the bonus token and of the chosen ids; elements beyond the rank do not matter.
    let stride = rank.next_multiple_of(8);
    let (before, after) = (1 + rows.len() * count, rows.len() * count);
    let before = tensor(&noise(rows[0].0 ^ 1, before * stride, 1.0), &[before, stride]);
    let after_rows: Vec<L> =
        noise(rows[0].0 ^ 2, after * stride, 1.0).into_iter().map(|x| L::from_f64(x.into())).collect();
    let after = tensor(&after_rows, &[after, stride]);
    let scores = kernels
        .chain_score(&ChainScore {
            rank,
            count,
            drafts: 1,
            before: &before,
            after: &after,
            owners: &tensor(&vec![0i32; rows.len()], &[rows.len()]),
        })
        .unwrap();
    let (before_rows, found) = (values::<f32>(&before), values::<f32>(&scores));
    for (r, table) in found.chunks(count * count).enumerate() {
        for (pair, &found) in table.iter().enumerate() {
            let (a, b) = (pair / count, pair % count);
            if r == 0 && a > 0 {
                prop_assert_eq!(found, 0.0);
                continue;
            }
            let first = if r == 0 { 0 } else { 1 + (r - 1) * count + a };
            let before = before_rows[first * stride..][..rank].iter().map(|&x| f64::from(x));
            let after = after_rows[(r * count + b) * stride..][..rank].iter().map(|x| x.to_f64());
            let products: Vec<f64> = before.zip(after).map(|(x, y)| x * y).collect();
            let (exact, size): (f64, f64) = (products.iter().sum(), products.iter().map(|x| x.abs()).sum());
            prop_assert!((f64::from(found) - exact).abs() <= 1e-6 * size, "{found}, not {exact}");
        }
    }

    let groups = DraftGroups {
        sequence: 0,
        groups: GroupSet::NONE,
        first_slot: 0,
        slots: rows.len() + 1,
        first_draft: 0,
    };
    let walked = kernels
        .chain_walk(&ChainWalk {
            drafts: &table(&[Draft::new(&groups).unwrap()], kernels.device()).unwrap(),
            logit_index: None,
            sampling: &sampling,
            starts: None,
            chosen: &chosen,
            scores: &scores,
        })
        .unwrap();
    let (stats, chained): (Vec<RowStats>, _) = (read_table(&walked).unwrap(), values::<f32>(&chosen.logits));
    let mut place = 0; // of the token before, among the chosen ids of its row
    for (r, (stats, way)) in stats.into_iter().zip(&ways).enumerate() {
        let of_row = r * count..(r + 1) * count;
        let scores = &found[(r * count + place) * count..][..count];
        let sums: Vec<f32> = before_walk[of_row.clone()].iter().zip(scores).map(|(l, s)| l + s).collect();
        prop_assert_eq!(&chained[of_row.clone()], &sums[..]);
        // Every id that is not chosen has the logit −∞.
        let mut dense = vec![NONE; vocab];
        ids[of_row.clone()].iter().zip(&sums).for_each(|(&id, &sum)| dense[id as usize] = sum);
        check_row(&of_all_ids(stats, &sums, way, vocab), &dense, way);
        place = ids[of_row].iter().position(|&id| id == stats.token && stats.max > NONE).unwrap_or(0);
    }
    // A NaN among the logits is a fault, and no other fault occurs.
    let has_nan = generated.iter().flatten().any(|logit| logit.is_nan());
    prop_assert_eq!(
        kernels.take_faults().unwrap().map_or(0, |faults| faults.word()),
        if has_nan { 4 } else { 0 }
    );
    Ok(())
}

/// Returns the statistics of a row as if its distribution had been made of all ids: the walk counts the kept ids among the
/// chosen ids, and in a row in which nothing is dropped, the oracle expects all ids.
fn of_all_ids(mut stats: RowStats, sums: &[f32], way: &Way, vocab: usize) -> RowStats {
    let one_hot = stats.inverse_temperature == 0.0 || stats.max == f32::NEG_INFINITY;
    if !one_hot && stats.cut_score == f32::NEG_INFINITY {
        let score = |sum: f32| (sum - stats.max) * stats.inverse_temperature;
        let kept = sums.iter().filter(|&&sum| sum == stats.max || score(sum) > f32::NEG_INFINITY).count();
        assert_eq!(stats.kept as usize, kept);
        let truncated = way.params.top_k > 0 && way.params.top_k < vocab;
        if !truncated && way.params.top_p >= 1.0 && way.params.min_p == 0.0 {
            stats.kept = vocab as i32;
        }
    }
    stats
}
