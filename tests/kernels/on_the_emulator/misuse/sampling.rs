//! Tests that sampling refuses operands that do not fit, with and without a calibrator.

use flexdraft::kernels::sampling::{
    Calibration, Logit, LogitRows, RowSampling, RowStats, Sample, workspace_len,
};
use flexdraft::kernels::{HalfView, KernelError};
use flexdraft::runtime::RuntimeError;
use flexdraft::sampling::{SamplingError, SamplingParams};
use half::bf16;

use super::memory::Memory;
use super::{Host, Launch, length, measure, measured, operands_are_checked, refused, taken, unsupported};

/// Operands of sampling: two rows over a vocabulary of ten ids.
struct Rows {
    vocab: usize,
    stride: usize,
    /// Rank of the calibrator; 0 without one.
    rank: usize,
    logits: Memory,
    logit_index: Option<Memory>,
    sampling: Memory,
    starts: Memory,
    draft: Memory,
    hidden: Memory,
    weight: Memory,
    /// Whether the hidden layer and the weight are f16.
    f16: [bool; 2],
    bias: Memory,
    workspace: Memory,
    stats: Memory,
    error: Memory,
}

fn rows(rank: usize) -> Rows {
    let greedy = RowSampling::new(&SamplingParams::GREEDY, None).unwrap();
    Rows {
        vocab: 10,
        stride: 16,
        rank,
        logits: Memory::zeros::<f32>(2 * 16),
        logit_index: Some(Memory::of(&[1i32, 0])),
        sampling: Memory::of(&[greedy; 2]),
        starts: Memory::zeros::<i32>(1),
        draft: Memory::of(&[-1i32; 2]),
        hidden: Memory::zeros::<bf16>(2 * rank),
        weight: Memory::zeros::<bf16>(10 * rank),
        f16: [false; 2],
        bias: Memory::zeros::<f32>(10),
        workspace: Memory::zeros::<f32>(workspace_len(2, 10, rank > 0).unwrap()),
        stats: Memory::zeros::<RowStats>(2),
        error: Memory::zeros::<u32>(1),
    }
}

fn plain() -> Rows {
    rows(0)
}

fn calibrated() -> Rows {
    rows(8)
}

/// Returns a view of elements of bf16 or f16.
fn halves<'a>(memory: &'a Memory, host: &Host, f16: bool) -> HalfView<'a> {
    if f16 { memory.view::<half::f16>(host).into() } else { memory.view::<bf16>(host).into() }
}

impl Launch for Rows {
    fn launch(&mut self, host: &Host) -> Result<(), KernelError> {
        let logits = match self.rank {
            0 => LogitRows::Read(self.logits.view::<f32>(host)),
            _ => LogitRows::Update(self.logits.view_mut(host)),
        };
        let args = Sample {
            vocab: self.vocab,
            stride: self.stride,
            logits,
            logit_index: self.logit_index.as_ref().map(|index| index.view(host)),
            sampling: self.sampling.view(host),
            starts: Some(self.starts.view(host)),
            draft: Some(self.draft.view(host)),
            calibration: (self.rank > 0).then(|| Calibration {
                rank: self.rank,
                hidden: halves(&self.hidden, host, self.f16[0]),
                weight: halves(&self.weight, host, self.f16[1]),
                bias: Some(self.bias.view(host)),
            }),
            workspace: self.workspace.view_mut(host),
            stats: self.stats.view_mut(host),
            error: Some(self.error.view_mut(host)),
        };
        host.kernels.sample(&host.stream, args)
    }
}

#[test]
fn sample() {
    for (sound, kernel) in
        [(plain as fn() -> Rows, "sample_rows_f32"), (calibrated, "calibrated_sample_f32_64x16")]
    {
        taken(sound);
        operands_are_checked(
            sound,
            kernel,
            &[
                measure("logits", 16, |k: &mut Rows| &mut k.logits),
                measured("logit_index", 4, |k| k.logit_index.as_mut().unwrap()),
                measure("sampling", 8, |k| &mut k.sampling),
                measure("starts", 4, |k| &mut k.starts),
                measured("draft", 4, |k| &mut k.draft),
                measured("workspace", 4, |k| &mut k.workspace),
                measured("stats", 4, |k| &mut k.stats),
                measured("error", 4, |k| &mut k.error),
            ],
        );
        // The logits are counted in whole rows, and without `logit_index` every sampled row must exist.
        refused(sound, |k| k.logits.shorten(1), length(kernel, "logits", 16, 2 * 16 - 1));
        let spoil = |k: &mut Rows| {
            k.logit_index = None;
            k.logits.shorten(16);
        };
        refused(sound, spoil, length("sample", "logits", 2 * 16, 16));
        for vocab in [0, (1 << 20) + 1] {
            let expected = unsupported("sample", "vocabulary", vocab, "1 to 2^20");
            refused(sound, |k| k.vocab = vocab as usize, expected);
        }
        for stride in [8, 12, 1 << 31] {
            let expected = unsupported("sample", "stride", stride, "multiples of 8, at least the vocabulary");
            refused(sound, |k| k.stride = stride as usize, expected);
        }
    }
}

#[test]
fn the_calibrator() {
    const KERNEL: &str = "calibrated_sample_f32_64x16";
    operands_are_checked(
        calibrated,
        KERNEL,
        &[
            measured("hidden", 16, |k: &mut Rows| &mut k.hidden),
            measured("weight", 16, |k| &mut k.weight),
            measured("bias", 4, |k| &mut k.bias),
        ],
    );
    for rank in [12, 1 << 31] {
        let expected = unsupported("sample", "rank", rank, "a multiple of 8 above 0");
        refused(calibrated, |k| k.rank = rank as usize, expected);
    }
    let wrong = |found, expected| KernelError::Type { kernel: "sample", operand: "weight", expected, found };
    refused(calibrated, |k| k.f16 = [true, false], wrong("bf16", "f16"));
    refused(calibrated, |k| k.f16 = [false, true], wrong("f16", "bf16"));
    operands_are_checked(
        || Rows { f16: [true; 2], ..calibrated() },
        "calibrated_sample_f32_64x16_f16",
        &[measured("hidden", 16, |k: &mut Rows| &mut k.hidden), measured("weight", 16, |k| &mut k.weight)],
    );
    // At this rank, a tile of W2 does not fit in a CTA's shared memory.
    let (kernel, needed, allowed) = (KERNEL, 543_488, 227 << 10);
    let expected = RuntimeError::SharedMemory { kernel, needed, allowed }.into();
    refused(|| rows(4096), |_| (), expected);
}

/// Samples a row of logits of type `L` with a calibrator of f16 or bf16.
fn calibrated_by<L: Logit>(f16: bool) -> Result<(), KernelError> {
    let host = Host::new(None);
    let logits = Memory::zeros::<L>(16);
    let sampling = Memory::of(&[RowSampling::new(&SamplingParams::GREEDY, None).unwrap()]);
    let (hidden, weight) = (Memory::zeros::<bf16>(8), Memory::zeros::<bf16>(80));
    let mut workspace = Memory::zeros::<f32>(workspace_len(1, 10, true).unwrap());
    let mut stats = Memory::zeros::<RowStats>(1);
    let args = Sample::<L> {
        vocab: 10,
        stride: 16,
        logits: LogitRows::Read(logits.view(&host)),
        logit_index: None,
        sampling: sampling.view(&host),
        starts: None,
        draft: None,
        calibration: Some(Calibration {
            rank: 8,
            hidden: halves(&hidden, &host, f16),
            weight: halves(&weight, &host, f16),
            bias: None,
        }),
        workspace: workspace.view_mut(&host),
        stats: stats.view_mut(&host),
        error: None,
    };
    host.kernels.sample(&host.stream, args)
}

/// Logits of 16 bits have the calibrator's type.
#[test]
fn logits_and_calibrator_of_two_types() {
    let wrong =
        |found, expected| Err(KernelError::Type { kernel: "sample", operand: "hidden", expected, found });
    for f16 in [false, true] {
        assert_eq!(calibrated_by::<f32>(f16), Ok(()));
    }
    assert_eq!(calibrated_by::<bf16>(false), Ok(()));
    assert_eq!(calibrated_by::<half::f16>(true), Ok(()));
    assert_eq!(calibrated_by::<bf16>(true), wrong("f16", "bf16, the type of the logits"));
    assert_eq!(calibrated_by::<half::f16>(false), wrong("bf16", "f16, the type of the logits"));
}

#[test]
fn a_workspace_that_is_too_large() {
    let error = workspace_len(usize::MAX / 4, 10, true).unwrap_err();
    assert_eq!(error, KernelError::Overflow { kernel: "sample", what: "workspace" });
}

#[test]
fn parameters_out_of_range() {
    let one = SamplingParams::at_temperature(1.0);
    let refused = |params| RowSampling::new(&params, None).unwrap_err();
    assert_eq!(refused(SamplingParams { temperature: -1.0, ..one }), SamplingError::Temperature(-1.0));
    assert_eq!(refused(SamplingParams { top_p: 0.0, ..one }), SamplingError::TopP(0.0));
    assert_eq!(refused(SamplingParams { min_p: 1.0, ..one }), SamplingError::MinP(1.0));
}

/// Operands without rows are valid, and launch nothing.
#[test]
fn no_rows_are_nothing_to_do() {
    for sound in [plain, calibrated] {
        let mut operands = sound();
        let Rows { logit_index: Some(index), sampling, draft, hidden, stats, .. } = &mut operands else {
            unreachable!()
        };
        for memory in [index, sampling, draft, hidden, stats] {
            memory.shorten(memory.len());
        }
        let host = Host::new(None);
        operands.launch(&host).unwrap();
        assert_eq!(host.simt().take_calls().launches, 0);
    }
}
