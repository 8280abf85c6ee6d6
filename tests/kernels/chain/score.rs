//! Tests of the scores of pairs of neighbouring tokens: dot products within rounding, with the same bits in any batch.

use flexdraft::kernels::chain::ChainScore;
use flexdraft::runtime::simt::Checking;
use half::{bf16, f16};
use proptest::prelude::*;

use super::bench;
use crate::processors::{Bench, processors};
use crate::sampling::batch::Stored;
use crate::sampling::generators::noise;
use crate::support::properties::properties;

/// Factors of the tokens of some drafts.
#[derive(Clone, Debug)]
pub struct Factors {
    pub count: usize,
    /// The factors of the bonus tokens, then of the chosen ids.
    pub before: Vec<Vec<f32>>,
    pub after: Vec<Vec<f32>>,
    /// The draft of each row.
    pub owners: Vec<i32>,
    pub drafts: usize,
}

/// Returns the scores of each row, [count, count], and the error word. Scores that the kernel does not write are −7.
pub fn score<L: Stored>(bench: &Bench, factors: &Factors) -> (Vec<Vec<f32>>, u32) {
    let Factors { count, before, after, owners, drafts } = factors;
    let rank = before[0].len();
    let (before_stride, after_stride) = (rank.next_multiple_of(8), rank.next_multiple_of(8) + 8);
    // Elements beyond the rank must not matter.
    let padded = |rows: &[Vec<f32>], stride: usize| -> Vec<f32> {
        let pad = |row: &Vec<f32>| [&row[..], &vec![f32::NAN; stride - rank]].concat();
        rows.iter().flat_map(pad).collect()
    };
    let before = bench.memory(&padded(before, before_stride));
    let after: Vec<L> = padded(after, after_stride).into_iter().map(L::of).collect();
    let (after, owners) = (bench.memory(&after), bench.memory(owners));
    let mut scores = bench.memory(&vec![-7.0; owners.len() * count * count]);
    let mut error = bench.memory(&[0]);
    let args = ChainScore {
        rank,
        count: *count,
        drafts: *drafts,
        before: bench.view(&before),
        before_stride,
        after: bench.view(&after),
        after_stride,
        owners: bench.view(&owners),
        scores: bench.view_mut(&mut scores),
        error: Some(bench.view_mut(&mut error)),
    };
    bench.kernels.chain_score(&bench.stream, &args).unwrap();
    drop(args);
    let scores = bench.host(&scores).chunks(count * count).map(<[f32]>::to_vec).collect();
    (scores, bench.host(&error)[0])
}

/// Returns random factors of drafts with the given numbers of rows.
fn random<L: Stored>(rows: &[usize], rank: usize, count: usize, seed: u64) -> Factors {
    let owners: Vec<i32> =
        (0..).zip(rows).flat_map(|(draft, &rows)| std::iter::repeat_n(draft, rows)).collect();
    let factors = |seed: u64, len: usize| -> Vec<Vec<f32>> {
        (0..len).map(|i| noise(seed.wrapping_mul(31).wrapping_add(i as u64), rank, 1.0)).collect()
    };
    let stored = |row: Vec<f32>| row.into_iter().map(|x| L::of(x).value()).collect();
    Factors {
        count,
        before: factors(seed, rows.len() + owners.len() * count),
        after: factors(!seed, owners.len() * count).into_iter().map(stored).collect(),
        drafts: rows.len(),
        owners,
    }
}

fn check<L: Stored>(rows: &[usize], rank: usize, count: usize, seed: u64) {
    let factors = random::<L>(rows, rank, count, seed);
    for processor in processors() {
        let bench = bench(processor, Checking::Off, seed % 4);
        let (scores, error) = score::<L>(&bench, &factors);
        assert_eq!(error, 0);
        let mut first = 0;
        for (draft, &len) in rows.iter().enumerate() {
            for (row, table) in scores.iter().enumerate().skip(first).take(len) {
                let before: Vec<&Vec<f32>> = match row - first {
                    0 => vec![&factors.before[draft]],
                    _ => factors.before[rows.len() + (row - 1) * count..][..count].iter().collect(),
                };
                for a in 0..count {
                    for b in 0..count {
                        let found = table[a * count + b];
                        let Some(before) = before.get(a) else {
                            assert_eq!(found, -7.0);
                            continue;
                        };
                        let after = &factors.after[row * count + b];
                        let products =
                            || before.iter().zip(after).map(|(x, y)| f64::from(*x) * f64::from(*y));
                        let (exact, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
                        assert!((f64::from(found) - exact).abs() <= 1e-6 * size, "{found}, not {exact}");
                    }
                }
            }
            // A draft alone has the same bits.
            let ids = first * count..(first + len) * count;
            let alone = Factors {
                before: [
                    vec![factors.before[draft].clone()],
                    factors.before[rows.len()..][ids.clone()].to_vec(),
                ]
                .concat(),
                after: factors.after[ids].to_vec(),
                owners: vec![0; len],
                drafts: 1,
                count,
            };
            assert_eq!(score::<L>(&bench, &alone).0, scores[first..first + len]);
            first += len;
        }
    }
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn scores_are_dot_products(
        rows in prop::collection::vec(0usize..5, 1..4),
        rank in prop_oneof![1usize..20, 120usize..140, 250usize..300],
        count in 1usize..=32,
        stored in 0..3,
        seed in any::<u64>(),
    ) {
        match stored {
            0 => check::<bf16>(&rows, rank, count, seed),
            1 => check::<f16>(&rows, rank, count, seed),
            _ => check::<f32>(&rows, rank, count, seed),
        }
    }
}

#[test]
fn drafts_that_do_not_exist() {
    let sound = random::<f32>(&[2, 1], 9, 5, 3);
    for processor in processors() {
        let bench = bench(processor, Checking::Accesses, 1);
        let (scores, _) = score::<f32>(&bench, &sound);
        for wrong in [-1, 2, i32::MAX] {
            let owners = vec![0, wrong, 1];
            let (found, error) = score::<f32>(&bench, &Factors { owners, ..sound.clone() });
            assert_eq!((error, &found[0], &found[2]), (16, &scores[0], &scores[2]));
            assert!(found[1].iter().all(|&score| score == -7.0));
        }
    }
}
