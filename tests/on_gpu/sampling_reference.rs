//! Statistics and draws compared with the reference in f64, calibrated logits compared with exact sums, and the bits of
//! a row in different batches.

use bytemuck::Zeroable;
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::Runtime;
use flexdraft::sampling::{SamplingParams, warp};
use flexdraft_reference::random::Numbers;
use flexdraft_reference::sample::{argmax, confidence};
use flexdraft_reference::warp as reference;
use half::bf16;

use crate::bench::{Bench, halves, noise};
use crate::{Case, everywhere, on_a_gpu, on_a_gpu_or_rehearsed};

const SEED: u64 = 9;
const POSITION: usize = 100;

/// Rows of noise, each with its own sampling parameters.
struct Rows {
    vocab: usize,
    count: usize,
    /// Rank of the calibrator; 0 without one.
    rank: usize,
}

/// The statistics and the logits after the launch, row after row.
type Found = (Vec<RowStats>, Vec<Vec<f32>>);

fn ways() -> [SamplingParams; 6] {
    let way = |temperature, top_k, top_p, min_p| SamplingParams { temperature, top_k, top_p, min_p };
    [
        way(1.0, 0, 1.0, 0.0),
        way(0.0, 0, 1.0, 0.0),
        way(0.8, 40, 1.0, 0.0),
        way(1.0, 0, 0.9, 0.0),
        way(0.7, 20, 0.8, 0.05),
        way(1.5, 0, 1.0, 0.02),
    ]
}

impl Rows {
    fn params(row: usize) -> SamplingParams {
        ways()[row % ways().len()]
    }

    /// Returns logits with the spread of a model's logits.
    fn logits(&self, row: usize) -> Vec<f32> {
        noise(10 + row as u64, self.vocab).into_iter().map(|x| x * x * x).collect()
    }

    fn hidden(&self, row: usize) -> Vec<bf16> {
        halves(1000 + row as u64, self.rank)
    }

    fn weight(&self) -> Vec<bf16> {
        halves(2, self.vocab * self.rank)
    }

    fn bias(&self) -> Vec<f32> {
        noise(3, self.vocab)
    }

    /// Samples these rows in one launch.
    fn sample<B: Runtime>(&self, bench: &Bench<B>, rows: &[usize]) -> Found {
        let Bench { kernels, stream } = bench;
        let runtime = kernels.runtime();
        let (vocab, stride) = (self.vocab, self.vocab.next_multiple_of(8));
        let padded = |row: &usize| {
            let mut logits = self.logits(*row);
            logits.resize(stride, f32::NAN);
            logits
        };
        let mut logits = bench.memory(&rows.iter().flat_map(padded).collect::<Vec<f32>>());
        let way = |&row: &usize| {
            let numbers = Stream::new(SEED, Purpose::DraftDraw, row, POSITION);
            let params = Rows::params(row);
            RowSampling::new(&params, (params.temperature > 0.0).then_some(numbers)).unwrap()
        };
        let ways = bench.memory(&rows.iter().map(way).collect::<Vec<_>>());
        let hidden: Vec<bf16> = rows.iter().flat_map(|&row| self.hidden(row)).collect();
        let calibrator = (self.rank > 0)
            .then(|| (bench.memory(&hidden), bench.memory(&self.weight()), bench.memory(&self.bias())));
        let needed = workspace_len(rows.len(), vocab, self.rank > 0).unwrap();
        let mut workspace = bench.memory(&vec![f32::NAN; needed]);
        let mut stats = bench.memory(&vec![RowStats::zeroed(); rows.len()]);
        let mut error = bench.memory(&[0u32]);
        let calibration = calibrator.as_ref().map(|(hidden, weight, bias)| Calibration {
            rank: self.rank,
            hidden: runtime.view(stream, hidden),
            weight: runtime.view(stream, weight),
            bias: Some(runtime.view(stream, bias)),
        });
        let sample = Sample {
            vocab,
            stride,
            logits: match self.rank {
                0 => LogitRows::Read(runtime.view(stream, &logits)),
                _ => LogitRows::Update(runtime.view_mut(stream, &mut logits)),
            },
            logit_index: None,
            sampling: runtime.view(stream, &ways),
            starts: None,
            draft: None,
            calibration,
            workspace: runtime.view_mut(stream, &mut workspace),
            stats: runtime.view_mut(stream, &mut stats),
            error: Some(runtime.view_mut(stream, &mut error)),
        };
        kernels.sample(stream, sample).unwrap();
        assert_eq!(bench.host(&error, 1), [0]);
        let logits = bench.host(&logits, rows.len() * stride);
        (bench.host(&stats, rows.len()), logits.chunks(stride).map(|row| row[..vocab].to_vec()).collect())
    }

    fn check(&self, (stats, logits): &Found) {
        let weight: Vec<f64> = self.weight().iter().map(|w| w.to_f64()).collect();
        for (row, (stats, logits)) in stats.iter().zip(logits).enumerate() {
            if self.rank > 0 {
                let u: Vec<f64> = self.hidden(row).iter().map(|u| u.to_f64()).collect();
                let before = self.logits(row).into_iter().zip(self.bias());
                let sums = weight.chunks(self.rank).zip(before).map(|(w, (logit, bias))| {
                    let products = || w.iter().zip(&u).map(|(w, u)| w * u);
                    let size: f64 = products().map(f64::abs).sum();
                    (products().sum::<f64>() + f64::from(logit) + f64::from(bias), size + 8.0)
                });
                for (id, (&found, (exact, size))) in logits.iter().zip(sums).enumerate() {
                    let error = (f64::from(found) - exact).abs();
                    assert!(error <= 1e-6 * size, "row {row}, id {id}: {found}, not {exact}");
                }
            }
            check_row(row, stats, logits);
        }
    }
}

/// Compares one row's statistics with the reference on the same logits.
fn check_row(row: usize, stats: &RowStats, logits: &[f32]) {
    let params = Rows::params(row);
    let exact: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    let near = |what: &str, found: f32, expected: f64| {
        let error = (f64::from(found) - expected).abs();
        assert!(error < 1e-3 * expected.abs().max(1e-6), "row {row}: {what} is {found}, not {expected}");
    };
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(stats.max, largest, "row {row}");
    near("confidence", stats.confidence, confidence(&exact));
    let token = stats.token as usize;
    assert_eq!(stats.token_logit, logits[token], "row {row}");
    if params.temperature == 0.0 {
        assert_eq!(token, argmax(&exact) as usize, "row {row}");
        assert_eq!((stats.probability, stats.kept), (1.0, 1));
        return;
    }
    // The contract of truncation determines every id that is kept.
    let kept: Vec<usize> = warp(logits, &params)
        .iter()
        .enumerate()
        .filter(|(_, x)| **x > f32::NEG_INFINITY)
        .map(|(id, _)| id)
        .collect();
    assert_eq!(stats.kept as usize, kept.len(), "row {row}");
    let scores =
        reference::warp(&exact, &reference::Warping::temperature(params.temperature.into())).log_weights;
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = kept.iter().map(|&id| (scores[id] - top).exp()).sum();
    let log_sum = f64::from(stats.log_sum);
    assert!((log_sum - sum.ln()).abs() < 1e-3, "row {row}: log-sum-exp is {log_sum}, not {}", sum.ln());
    near("probability", stats.probability, (scores[token] - top).exp() / sum);
    let numbers = Numbers::of_step(SEED, flexdraft_reference::random::Purpose::DraftDraw, row, POSITION);
    let perturbed = |id: usize| scores[id] + numbers.gumbel::<f64>(id as u32);
    let best = kept.iter().map(|&id| perturbed(id)).fold(f64::NEG_INFINITY, f64::max);
    assert!(kept.contains(&token), "row {row}: {token} is not kept");
    let short = best - perturbed(token);
    assert!(short < 1e-5 * (1.0 + best.abs()), "row {row}: {token} is {short} from the best");
}

fn bits((stats, logits): &Found, row: usize) -> (Vec<u8>, Vec<u32>) {
    (bytemuck::bytes_of(&stats[row]).to_vec(), logits[row].iter().map(|x| x.to_bits()).collect())
}

impl Case for Rows {
    type Output = Found;

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Found {
        let rows: Vec<usize> = (0..self.count).collect();
        let together = self.sample(bench, &rows);
        let reversed: Vec<usize> = rows.iter().rev().copied().collect();
        let permuted = self.sample(bench, &reversed);
        for row in rows {
            let expected = bits(&together, row);
            assert!(bits(&permuted, self.count - 1 - row) == expected, "row {row} in another order");
            if row < ways().len() {
                assert!(bits(&self.sample(bench, &[row]), 0) == expected, "row {row} alone");
            }
        }
        together
    }
}

#[test]
fn rows_of_logits() {
    for vocab in [8, 100, 5001] {
        let case = Rows { vocab, count: 8, rank: 0 };
        everywhere(&case, |found| case.check(found));
    }
}

/// A batch with more rows than a tile.
#[test]
fn calibrated_rows() {
    for (vocab, count, rank) in [(100, 18, 24), (3001, 7, 64)] {
        let case = Rows { vocab, count, rank };
        everywhere(&case, |found| case.check(found));
    }
}

/// The vocabulary sizes of Qwen3 and SmolLM2, and the calibrator rank of the released drafters.
#[test]
fn a_large_vocabulary() {
    for (vocab, rank) in [(151_936, 0), (151_936, 512), (49_152, 0), (49_152, 512)] {
        let case = Rows { vocab, count: 33, rank };
        on_a_gpu(&case, |found| case.check(found));
    }
    for rank in [0, 512] {
        let case = Rows { vocab: 49_152, count: 7, rank };
        on_a_gpu_or_rehearsed(&case, |found| case.check(found));
    }
}
