//! Benchmark cases of sampling: one pass over the logits, and with the calibrator also over W2.

use std::marker::PhantomData;

use flexdraft::kernels::KernelError;
use flexdraft::kernels::sampling::{
    Calibration, Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::Runtime;
use flexdraft::sampling::SamplingParams;
use half::{bf16, f16};
use serde::Serialize;

use super::{Case, Half, Prepared};
use crate::floor::{self, Calibrated, Floor};
use crate::machine::Machine;

/// A type that logits are stored in: f32, bf16 or f16.
pub trait Stored: Logit + Into<f32> {
    /// The type that the names of kernels say.
    const NAME: &'static str;
    /// The type of calibrators whose kernels of 16-bit logits exist.
    type Calibrator: Half;

    fn from_f32(x: f32) -> Self;
}

impl Stored for f32 {
    const NAME: &'static str = "f32";
    type Calibrator = bf16;

    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Stored for bf16 {
    const NAME: &'static str = "bf16";
    type Calibrator = bf16;

    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

impl Stored for f16 {
    const NAME: &'static str = "f16";
    type Calibrator = f16;

    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// A benchmark case of sampling `rows` rows of logits at temperature 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sampling<L = f32, T = bf16> {
    pub rows: usize,
    pub vocab: usize,
    /// Rank of the calibrator, or 0 without a calibrator; the calibrated logits are kept, as the rule `rejection` needs
    /// them.
    pub rank: usize,
    /// True if the rows are truncated by a top-k of 50 and a top-p of 0.9.
    pub truncated: bool,
    #[serde(skip)]
    pub logits: PhantomData<L>,
    /// The type of the calibrator.
    #[serde(skip)]
    pub calibrator: PhantomData<T>,
}

impl Sampling {
    /// Returns the cases with Qwen3-8B's vocabulary: the target's rows of 1 to 64 sequences (a plain step, and steps
    /// with 4 and 15 draft tokens), with and without truncation, and the slots of a block under the calibrator.
    pub fn all() -> Vec<Self> {
        let sampling = |rows, rank, truncated| Sampling {
            rows,
            vocab: 151_936,
            rank,
            truncated,
            logits: PhantomData,
            calibrator: PhantomData,
        };
        let mut all = Vec::new();
        for truncated in [false, true] {
            all.extend([1, 5, 16, 64, 80, 256, 1024].map(|rows| sampling(rows, 0, truncated)));
        }
        all.extend([15, 60, 240, 960].map(|rows| sampling(rows, 512, false)));
        all
    }
}

impl Sampling<bf16> {
    /// Returns some of the sampling cases with bf16 logits.
    pub fn of_bf16() -> Vec<Self> {
        [(16, 0), (256, 0), (60, 512)]
            .map(|(rows, rank)| Sampling {
                rows,
                vocab: 151_936,
                rank,
                truncated: false,
                logits: PhantomData,
                calibrator: PhantomData,
            })
            .to_vec()
    }
}

/// The operands of the calibrator: its output weight W2, its bias b2 and the hidden rows u.
struct Calibrator<R: Runtime, L: Stored, T: Half> {
    rank: usize,
    hidden: R::Memory<T>,
    weight: R::Memory<T>,
    bias: R::Memory<f32>,
    /// A copy of the logits before the calibrator's correction, from which every launch restores them.
    pristine: R::Memory<L>,
}

struct Operands<'a, R: Runtime, L: Stored, T: Half> {
    machine: &'a Machine<R>,
    vocab: usize,
    stride: usize,
    len: usize,
    logits: R::Memory<L>,
    ways: R::Memory<RowSampling>,
    calibrator: Option<Calibrator<R, L, T>>,
    workspace: R::Memory<f32>,
    stats: R::Memory<RowStats>,
}

/// Returns the temperature, truncation and random numbers for row `row` of the logits.
pub fn way(row: usize, purpose: Purpose, truncated: bool) -> RowSampling {
    let (top_k, top_p) = if truncated { (50, 0.9) } else { (0, 1.0) };
    let params = SamplingParams { temperature: 1.0, top_k, top_p, min_p: 0.0 };
    RowSampling::new(&params, Some(Stream::new(9, purpose, row, 100))).expect("parameters in range")
}

impl<L: Stored, T: Half> Case for Sampling<L, T> {
    fn kernel(&self) -> &'static str {
        match (self.rank > 0, L::NAME) {
            (true, "f32") => "calibrated_sample",
            (true, "bf16") => "calibrated_sample_bf16",
            (true, _) => "calibrated_sample_f16",
            (false, "f32") => "sample_rows",
            (false, "bf16") => "sample_rows_bf16",
            (false, _) => "sample_rows_f16",
        }
    }

    fn floor(&self) -> Floor {
        let calibrated = (self.rank > 0).then_some(Calibrated { rank: self.rank as u64, kept: true });
        floor::sampling(self.rows as u64, self.vocab as u64, size_of::<L>() as u64, calibrated)
    }

    fn prepare<'a, R: Runtime>(
        &self,
        machine: &'a Machine<R>,
    ) -> Result<Box<dyn Prepared + 'a>, KernelError> {
        let stride = self.vocab.next_multiple_of(8);
        let len = self.rows * stride;
        let ways: Vec<RowSampling> =
            (0..self.rows).map(|row| way(row, Purpose::TargetDraw, self.truncated)).collect();
        let calibrator = match self.rank {
            0 => None,
            rank => Some(Calibrator {
                rank,
                hidden: machine.noise(2, self.rows * rank, T::from_f32)?,
                weight: machine.noise(3, self.vocab * rank, T::from_f32)?,
                bias: machine.f32_noise(4, self.vocab)?,
                pristine: machine.noise(1, len, L::from_f32)?,
            }),
        };
        Ok(Box::new(Operands {
            machine,
            vocab: self.vocab,
            stride,
            len,
            logits: machine.noise(1, len, L::from_f32)?,
            ways: machine.memory(&ways)?,
            workspace: machine.zeros(workspace_len(self.rows, self.vocab, calibrator.is_some())?)?,
            calibrator,
            stats: machine.zeros(self.rows)?,
        }))
    }
}

impl<R: Runtime, L: Stored, T: Half> Prepared for Operands<'_, R, L, T> {
    fn restore(&mut self) -> Result<(), KernelError> {
        let runtime = self.machine.kernels.runtime();
        if let Some(calibrator) = &self.calibrator {
            runtime.copy(&self.machine.stream, &calibrator.pristine, 0..self.len, &mut self.logits, 0)?;
        }
        Ok(())
    }

    fn launch(&mut self) -> Result<(), KernelError> {
        let (runtime, stream) = (self.machine.kernels.runtime(), &self.machine.stream);
        let logits = match self.calibrator {
            None => LogitRows::Read(runtime.view(stream, &self.logits)),
            Some(_) => LogitRows::Update(runtime.view_mut(stream, &mut self.logits)),
        };
        self.machine.kernels.sample(
            stream,
            Sample {
                vocab: self.vocab,
                stride: self.stride,
                logits,
                logit_index: None,
                sampling: runtime.view(stream, &self.ways),
                starts: None,
                draft: None,
                calibration: self.calibrator.as_ref().map(|calibrator| Calibration {
                    rank: calibrator.rank,
                    hidden: runtime.view(stream, &calibrator.hidden).into(),
                    weight: runtime.view(stream, &calibrator.weight).into(),
                    bias: Some(runtime.view(stream, &calibrator.bias)),
                }),
                workspace: runtime.view_mut(stream, &mut self.workspace),
                stats: runtime.view_mut(stream, &mut self.stats),
                error: None,
            },
        )
    }
}
