//! Simulated algorithms for tests without a GPU: sums of f32 in an order that may depend on the row count and
//! on a row's place.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

use half::bf16;

use super::buckets;
use super::row_invariance::{ProductTrial, TrialOperands, rows_of_x};
use super::trial_data::{self, PERIOD};

/// Number of output ids of the simulated products.
const IDS: usize = 8;

/// The order in which a simulated algorithm sums the K terms of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// Chunks of this many terms are summed, and then the chunks' sums are added one after the other.
    Chunks(usize),
    /// K is split into this many parts; each part is summed in chunks of 16 terms, and the parts' sums are
    /// added at the end.
    Split(usize),
}

impl Sum {
    const ALL: [Sum; 5] = [Sum::Chunks(16), Sum::Chunks(8), Sum::Chunks(64), Sum::Split(2), Sum::Split(4)];

    fn index(self) -> usize {
        Self::ALL.iter().position(|&sum| sum == self).unwrap()
    }

    fn add(self, x: &[bf16], weights: &[[f32; IDS]]) -> [f32; IDS] {
        let mut total = [0.0; IDS];
        let (parts, chunk) = match self {
            Sum::Chunks(chunk) => (1, chunk),
            Sum::Split(parts) => (parts, 16),
        };
        let part_len = x.len().div_ceil(parts);
        for (x, weights) in x.chunks(part_len).zip(weights.chunks(part_len)) {
            let mut part = [0.0; IDS];
            for (x, weights) in x.chunks(chunk).zip(weights.chunks(chunk)) {
                let mut sum = [0.0; IDS];
                for (x, weights) in x.iter().zip(weights) {
                    let x = x.to_f32();
                    sum.iter_mut().zip(weights).for_each(|(sum, w)| *sum += x * w);
                }
                part.iter_mut().zip(sum).for_each(|(part, sum)| *part += sum);
            }
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
        total
    }
}

/// A simulated algorithm: the order of a row's sums, given the product's row count and the row's place, and
/// the seconds of a product, given its row count.
pub(super) struct Algorithm {
    pub(super) order: Box<dyn Fn(usize, usize) -> Sum>,
    pub(super) seconds: Box<dyn Fn(usize) -> Option<f32>>,
}

impl Algorithm {
    pub(super) fn new(
        order: impl Fn(usize, usize) -> Sum + 'static,
        seconds: impl Fn(usize) -> Option<f32> + 'static,
    ) -> Self {
        Algorithm { order: Box::new(order), seconds: Box::new(seconds) }
    }

    /// Makes an algorithm with a constant order of sums, and the seconds of each bucket.
    pub(super) fn constant(sum: Sum, seconds: [f32; buckets::COUNT]) -> Self {
        Self::new(move |_, _| sum, move |rows| Some(seconds[buckets::bucket_of(rows)]))
    }
}

impl fmt::Debug for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Algorithm")
    }
}

/// Simulated products of one shape.
#[derive(Debug)]
pub(super) struct Simulated {
    pub(super) algorithms: Vec<Algorithm>,
    /// Whether results are rounded to bf16.
    pub(super) rounds: bool,
    /// Seconds since the trial began, and seconds that each timing adds to them.
    pub(super) elapsed: f32,
    pub(super) seconds_a_time: f32,
    pub(super) most_rows: usize,
    /// Operands, and the index of an algorithm that sums them in another order in products of more than 64
    /// rows.
    pub(super) elsewhere: Option<(TrialOperands, usize)>,
    /// Number of products computed, and number of their result rows that were compared.
    pub(super) products: usize,
    pub(super) rows: usize,
    x: [Vec<bf16>; 2],
    weights: [Vec<[f32; IDS]>; 2],
    /// The result bits that are known already, by operands, order of sums and row.
    known: Vec<Option<Vec<u8>>>,
}

impl Simulated {
    pub(super) fn new(seed: u64, cols: usize) -> Self {
        let columns = |weights: &[bf16]| {
            (0..cols).map(|k| std::array::from_fn(|id| weights[id * cols + k].to_f32())).collect::<Vec<_>>()
        };
        let model = trial_data::noise(seed ^ 0xabcd, cols);
        Simulated {
            algorithms: Vec::new(),
            rounds: true,
            elapsed: 0.0,
            seconds_a_time: 0.0,
            most_rows: usize::MAX,
            elsewhere: None,
            products: 0,
            rows: 0,
            x: [trial_data::cancelling(seed, cols), trial_data::noise(seed, cols)],
            weights: [columns(&trial_data::weights(seed, IDS, cols)), columns(&model)],
            known: vec![None; 3 * Sum::ALL.len() * PERIOD],
        }
    }

    pub(super) fn offering(mut self, algorithms: Vec<Algorithm>) -> Self {
        self.algorithms = algorithms;
        self
    }

    /// Returns the bits of a row's result, summed in the order `sum`.
    fn bits(&mut self, operands: TrialOperands, sum: Sum, row: usize) -> &[u8] {
        let (kind, x, weights) = match operands {
            TrialOperands::Cancelling => (0, &self.x[0], &self.weights[0]),
            TrialOperands::Noise => (1, &self.x[1], &self.weights[0]),
            TrialOperands::Model => (2, &self.x[1], &self.weights[1]),
        };
        let rounds = self.rounds;
        self.known[(kind * Sum::ALL.len() + sum.index()) * PERIOD + row].get_or_insert_with(|| {
            let cols = weights.len();
            let values = sum.add(&x[row * cols..][..cols], weights);
            if rounds {
                values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
            } else {
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
        })
    }

    /// Returns the fraction of result elements that differ between two orders of sums.
    pub(super) fn differing(&mut self, operands: TrialOperands, a: Sum, b: Sum) -> f64 {
        let width = if self.rounds { 2 } else { 4 };
        let mut differing = 0;
        for row in 0..PERIOD {
            let a = self.bits(operands, a, row).to_vec();
            let b = self.bits(operands, b, row);
            differing += a.chunks(width).zip(b.chunks(width)).filter(|(a, b)| a != b).count();
        }
        differing as f64 / (PERIOD * IDS) as f64
    }
}

impl ProductTrial for Simulated {
    type Error = Infallible;

    fn algorithms(&self) -> usize {
        self.algorithms.len()
    }

    fn most_rows(&self, operands: TrialOperands) -> usize {
        if operands == TrialOperands::Model { self.most_rows } else { usize::MAX }
    }

    fn multiply(
        &mut self,
        operands: TrialOperands,
        algorithm: usize,
        products: &[Range<usize>],
        accept: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<bool, Infallible> {
        for product in products {
            assert!(!product.is_empty() && product.end <= rows_of_x(buckets::COUNT), "{product:?}");
            assert!(product.len() <= self.most_rows(operands), "{product:?}");
            let algorithm_of = &self.algorithms[algorithm];
            if (algorithm_of.seconds)(product.len()).is_none() {
                return Ok(false);
            }
            self.products += 1;
            let elsewhere = self.elsewhere == Some((operands, algorithm)) && product.len() > 64;
            for (place, row) in product.clone().enumerate() {
                let order = &self.algorithms[algorithm].order;
                let sum = if elsewhere { Sum::Split(4) } else { order(product.len(), place) };
                self.rows += 1;
                if !accept(row % PERIOD, self.bits(operands, sum, row % PERIOD)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn seconds(&mut self, algorithm: usize, rows: usize) -> Result<Option<f32>, Infallible> {
        self.elapsed += self.seconds_a_time;
        Ok((self.algorithms[algorithm].seconds)(rows))
    }

    fn elapsed(&self) -> f32 {
        self.elapsed
    }
}
