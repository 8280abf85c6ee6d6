//! Batches of rows for the sampling kernels, their generators, and a method that runs the kernels on them.

use flexdraft::kernels::sampling::{
    Calibration, EditTables, Edits, Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::Checking;
use half::{bf16, f16};
use proptest::prelude::*;

use super::generators::{logits, noise, shape, vocab, way};
use super::oracle::check_row;
use super::way::Way;
use crate::halves::Half;
use crate::processors::{Bench, Processor, processors};
use crate::support::simt_variant::checking;

const NAN: f32 = f32::NAN;

/// A type that stores logits, with conversions from and to the tests' f32 logits.
pub trait Stored: Logit + PartialEq + std::fmt::Debug {
    fn of(value: f32) -> Self;
    fn value(self) -> f32;
    /// The difference between neighbouring stored values of magnitude 1.
    const EPSILON: f32;
    /// A magnitude from which sums may overflow.
    const LARGE: f64;
    /// A type of calibrators for logits of this type.
    type Calibrator: Half;
}

impl Stored for f32 {
    fn of(value: f32) -> Self {
        value
    }
    fn value(self) -> f32 {
        self
    }
    const EPSILON: f32 = f32::EPSILON;
    const LARGE: f64 = 3.38e38;
    type Calibrator = bf16;
}

impl Stored for bf16 {
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
    const EPSILON: f32 = 1.0 / 128.0;
    const LARGE: f64 = 3.38e38;
    type Calibrator = bf16;
}

impl Stored for f16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
    const EPSILON: f32 = 1.0 / 1024.0;
    const LARGE: f64 = 65472.0;
    type Calibrator = f16;
}

/// The calibrator of a test, and its inputs.
#[derive(Clone, Debug)]
pub struct Correction<T = bf16> {
    pub rank: usize,
    pub weight: Vec<T>,
    pub bias: Option<Vec<f32>>,
    /// The calibrator's hidden rows, one per row of logits.
    pub hidden: Vec<Vec<T>>,
}

/// Rows to sample, all over the same vocabulary.
#[derive(Clone, Debug)]
pub struct Batch<L, T = bf16> {
    pub vocab: usize,
    pub rows: Vec<Vec<L>>,
    pub ways: Vec<Way>,
    pub correction: Option<Correction<T>>,
    pub edits: Option<EditTables>,
}

/// The results of the sampling kernels: statistics, the logits afterwards, and the error word.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<L> {
    pub stats: Vec<RowStats>,
    pub logits: Vec<Vec<L>>,
    pub error: u32,
}

impl<L: Stored, T: Half> Batch<L, T> {
    pub fn plain(rows: Vec<Vec<f32>>, ways: Vec<Way>) -> Self {
        let rows: Vec<Vec<L>> = rows.into_iter().map(|row| row.into_iter().map(L::of).collect()).collect();
        Batch { vocab: rows[0].len(), rows, ways, correction: None, edits: None }
    }

    /// Returns a batch with the rows whose indices are in `order`, in that order.
    pub fn picked(&self, order: &[usize]) -> Self {
        Batch {
            vocab: self.vocab,
            rows: order.iter().map(|&r| self.rows[r].clone()).collect(),
            ways: order.iter().map(|&r| self.ways[r]).collect(),
            correction: self.correction.as_ref().map(|correction| Correction {
                hidden: order.iter().map(|&r| correction.hidden[r].clone()).collect(),
                ..correction.clone()
            }),
            edits: None,
        }
    }

    /// Runs the sampling kernels on each processor in turn.
    pub fn on_every_processor(&self, keep: bool) -> impl Iterator<Item = Outcome<L>> {
        processors().map(move |processor| self.run(&bench(processor), keep))
    }

    /// Runs the sampling kernels on the batch. Memory that they must not read, and memory that they must write, is NaN
    /// before.
    pub fn run(&self, bench: &Bench, keep: bool) -> Outcome<L> {
        let stride = self.vocab.next_multiple_of(8) + 8;
        let mut logits = vec![L::of(NAN); self.rows.len() * stride];
        for (row, stored) in self.rows.iter().zip(logits.chunks_exact_mut(stride)) {
            stored[..self.vocab].copy_from_slice(row);
        }
        let sampling: Vec<RowSampling> =
            self.ways.iter().map(|way| RowSampling::new(&way.params, way.stream()).unwrap()).collect();
        let draft: Vec<i32> = self.ways.iter().map(|way| way.draft).collect();
        let needed = workspace_len(self.rows.len(), self.vocab, self.correction.is_some()).unwrap();
        let (mut logits, sampling, draft) =
            (bench.memory(&logits), bench.memory(&sampling), bench.memory(&draft));
        let mut workspace = bench.memory(&vec![NAN; needed + 3]);
        let mut stats = bench.memory(&vec![poisoned_stats(); self.rows.len()]);
        let mut error = bench.memory(&[0]);
        let correction = self.correction.as_ref().map(|c| {
            let bias = c.bias.as_ref().map(|bias| bench.memory(bias));
            (c.rank, bench.memory(&c.hidden.concat()), bench.memory(&c.weight), bias)
        });

        let edits = self.edits.as_ref().map(|tables| {
            let (rows, offsets) = (bench.memory(&tables.rows), bench.memory(&tables.offsets));
            (rows, offsets, bench.memory(&tables.edits), bench.memory(&tables.masks))
        });
        let edits = edits.as_ref().map(|(rows, offsets, edits, masks)| Edits {
            rows: bench.view(rows),
            offsets: bench.view(offsets),
            edits: bench.view(edits),
            masks: bench.view(masks),
        });
        let rows = match edits {
            Some(edits) => LogitRows::Edit(bench.view_mut(&mut logits), edits),
            None if keep => LogitRows::Update(bench.view_mut(&mut logits)),
            None => LogitRows::Read(bench.view(&logits)),
        };
        let args = Sample {
            vocab: self.vocab,
            stride,
            logits: rows,
            logit_index: None,
            sampling: bench.view(&sampling),
            starts: None,
            draft: Some(bench.view(&draft)),
            calibration: correction.as_ref().map(|(rank, hidden, weight, bias)| Calibration {
                rank: *rank,
                hidden: bench.view(hidden).into(),
                weight: bench.view(weight).into(),
                bias: bias.as_ref().map(|bias| bench.view(bias)),
            }),
            workspace: bench.view_mut(&mut workspace),
            stats: bench.view_mut(&mut stats),
            error: Some(bench.view_mut(&mut error)),
        };
        bench.kernels.sample(&bench.stream, args).unwrap();
        let (workspace, logits) = (bench.host(&workspace), bench.host(&logits));
        assert!(workspace[needed..].iter().all(|x| x.is_nan()), "wrote beyond the workspace");
        for row in logits.chunks_exact(stride) {
            assert!(row[self.vocab..].iter().all(|x| x.value().is_nan()), "wrote beyond the vocabulary");
        }
        let logits = logits.chunks_exact(stride).map(|row| row[..self.vocab].to_vec()).collect();
        Outcome { stats: bench.host(&stats), logits, error: bench.host(&error)[0] }
    }
}

/// Returns row statistics with all bits set, to show what a kernel does not write.
pub fn poisoned_stats() -> RowStats {
    bytemuck::pod_read_unaligned(&[0xff; size_of::<RowStats>()])
}

/// Returns kernels on a processor; on the emulator without checks (unless FLEXDRAFT_TEST_CHECKING says otherwise).
pub fn bench(processor: Processor) -> Bench {
    Bench::on(processor, SimtOptions { checking: checking(Checking::Off), ..SimtOptions::default() })
}

pub fn bits(stats: &RowStats) -> Vec<u8> {
    bytemuck::bytes_of(stats).to_vec()
}

pub fn batch<L: Stored>(rows: std::ops::Range<usize>, correction: bool) -> impl Strategy<Value = Batch<L>> {
    batch_of::<L, bf16>(rows, correction)
}

/// Returns batches whose corrections, if there are any, have hidden rows and weights of `T`.
pub fn batch_of<L: Stored, T: Half>(
    rows: std::ops::Range<usize>,
    correction: bool,
) -> impl Strategy<Value = Batch<L, T>> {
    let vocab = if correction { (1usize..400).boxed() } else { vocab().boxed() };
    let rank = prop::sample::select(vec![8usize, 16, 56, 64, 72, 136]);
    (vocab, rank, any::<u64>(), any::<bool>())
        .prop_flat_map(move |(vocab, rank, seed, bias)| {
            let row = (any::<u64>(), shape(), way(vocab));
            (prop::collection::vec(row, rows.clone()), Just((vocab, rank, seed, bias)))
        })
        .prop_map(move |(rows, (vocab, rank, seed, bias))| Batch {
            vocab,
            edits: None,
            ways: rows.iter().map(|row| row.2).collect(),
            correction: correction.then(|| Correction {
                rank,
                weight: noise(seed ^ 1, vocab * rank, 0.3).into_iter().map(T::rounded).collect(),
                bias: bias.then(|| noise(seed ^ 2, vocab, 1.0)),
                hidden: rows
                    .iter()
                    .map(|row| noise(row.0 ^ 3, rank, 0.7).into_iter().map(T::rounded).collect())
                    .collect(),
            }),
            rows: rows
                .into_iter()
                .map(|(seed, shape, _)| logits(seed, vocab, shape).into_iter().map(L::of).collect())
                .collect(),
        })
}

/// Compares the statistics of all rows with the reference on the logits afterwards.
pub fn check<L: Stored>(outcome: &Outcome<L>, ways: &[Way]) {
    for ((stats, logits), way) in outcome.stats.iter().zip(&outcome.logits).zip(ways) {
        let logits: Vec<f32> = logits.iter().map(|l| l.value()).collect();
        check_row(stats, &logits, way);
        assert_eq!(outcome.error & 4 == 0, !outcome.logits.iter().flatten().any(|l| l.value().is_nan()));
    }
}
