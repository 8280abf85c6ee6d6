//! Operands and parameters that do not fit are typed errors that name what is wrong.

use flexdraft::backend::BackendError;
use flexdraft::kernels::KernelError;
use flexdraft::kernels::sampling::{Calibration, LogitRows, RowSampling, RowStats, Sample, workspace_len};
use flexdraft::sampling::{SamplingError, SamplingParams};
use half::bf16;

use crate::batch::kernels;

#[test]
fn parameters_out_of_range_are_refused() {
    let one = SamplingParams::at_temperature(1.0);
    let refused = |params| RowSampling::new(&params, None).unwrap_err();
    assert_eq!(refused(SamplingParams { temperature: -1.0, ..one }), SamplingError::Temperature(-1.0));
    assert_eq!(refused(SamplingParams { top_p: 0.0, ..one }), SamplingError::TopP(0.0));
    assert_eq!(refused(SamplingParams { min_p: 1.0, ..one }), SamplingError::MinP(1.0));
}

/// Operands of two rows over ten ids, of which a test spoils one.
struct Operands {
    vocab: usize,
    stride: usize,
    rank: usize,
    logits: Vec<f32>,
    logit_index: Option<Vec<i32>>,
    sampling: Vec<RowSampling>,
    draft: Vec<i32>,
    hidden: Vec<bf16>,
    weight: Vec<bf16>,
    bias: Vec<f32>,
    workspace: Vec<f32>,
    stats: Vec<RowStats>,
    error: Vec<u32>,
}

impl Operands {
    fn run(mut self) -> Result<(), KernelError> {
        let kernels = kernels();
        let stream = kernels.backend().stream();
        kernels.sample(
            &stream,
            Sample {
                vocab: self.vocab,
                stride: self.stride,
                logits: LogitRows::Update(stream.view_mut(&mut self.logits)),
                logit_index: self.logit_index.as_ref().map(|index| stream.view(index)),
                sampling: stream.view(&self.sampling),
                starts: None,
                draft: Some(stream.view(&self.draft)),
                calibration: Some(Calibration {
                    rank: self.rank,
                    hidden: stream.view(&self.hidden),
                    weight: stream.view(&self.weight),
                    bias: Some(stream.view(&self.bias)),
                }),
                workspace: stream.view_mut(&mut self.workspace),
                stats: stream.view_mut(&mut self.stats),
                error: Some(stream.view_mut(&mut self.error)),
            },
        )
    }
}

fn operands() -> Operands {
    Operands {
        vocab: 10,
        stride: 16,
        rank: 8,
        logits: vec![0.0; 32],
        logit_index: None,
        sampling: vec![RowSampling::new(&SamplingParams::GREEDY, None).unwrap(); 2],
        draft: vec![-1; 2],
        hidden: vec![bf16::ZERO; 16],
        weight: vec![bf16::ZERO; 80],
        bias: vec![0.0; 10],
        workspace: vec![0.0; workspace_len(2, 10, true).unwrap()],
        stats: vec![RowStats::default(); 2],
        error: vec![0],
    }
}

#[test]
fn operands_of_the_wrong_shape_are_named() {
    operands().run().unwrap();
    operands_refused("logits", |o| shorten(&mut o.logits));
    operands_refused("logits", |o| o.logits.truncate(16));
    operands_refused("logit_index", |o| o.logit_index = Some(vec![0; 3]));
    operands_refused("draft", |o| o.draft.push(0));
    operands_refused("hidden", |o| shorten(&mut o.hidden));
    operands_refused("weight", |o| o.weight.push(bf16::ZERO));
    operands_refused("bias", |o| shorten(&mut o.bias));
    operands_refused("workspace", |o| shorten(&mut o.workspace));
    operands_refused("stats", |o| shorten(&mut o.stats));
    operands_refused("error", |o| o.error.clear());
    for (what, spoil) in [
        ("vocab", (|o: &mut Operands| o.vocab = 0) as fn(&mut Operands)),
        ("vocab", |o| o.vocab = (1 << 20) + 1),
        ("stride", |o| o.stride = 12),
        ("stride", |o| o.stride = 8),
        ("rank", |o| o.rank = 0),
        ("rank", |o| o.rank = 12),
    ] {
        let mut operands = operands();
        spoil(&mut operands);
        let error = operands.run().unwrap_err();
        assert!(matches!(error, KernelError::Unsupported { what: found, .. } if found == what), "{error}");
    }
    let overflow = workspace_len(usize::MAX / 4, 10, true).unwrap_err();
    assert_eq!(overflow, KernelError::Overflow { kernel: "sample", what: "workspace" });
}

fn shorten<T>(operand: &mut Vec<T>) {
    operand.truncate(operand.len() - 1);
}

#[track_caller]
fn operands_refused(operand: &str, spoil: impl FnOnce(&mut Operands)) {
    let mut operands = operands();
    spoil(&mut operands);
    let error = operands.run().unwrap_err();
    assert!(matches!(error, KernelError::Length { operand: found, .. } if found == operand), "{error}");
}

#[test]
fn operands_of_another_stream_or_alignment_are_refused() {
    let (kernels, other) = (kernels(), kernels());
    let (stream, elsewhere) = (kernels.backend().stream(), other.backend().stream());
    let logits = [0.0f32; 17];
    let sampling = [RowSampling::new(&SamplingParams::GREEDY, None).unwrap()];
    let run = |first: usize, stats_elsewhere: bool| {
        let (mut workspace, mut stats) = ([0.0; 5], [RowStats::default()]);
        let stats_stream = if stats_elsewhere { elsewhere } else { stream };
        let args = Sample {
            vocab: 8,
            stride: 8,
            logits: LogitRows::Read(stream.view(&logits[first..first + 8])),
            logit_index: None,
            sampling: stream.view(&sampling),
            starts: None,
            draft: None,
            calibration: None,
            workspace: stream.view_mut(&mut workspace),
            stats: stats_stream.view_mut(&mut stats),
            error: None,
        };
        kernels.sample(&stream, args)
    };
    // A vector of floats is aligned to 4 bytes at least, so one of four beginnings is aligned to 16.
    let begin = (0..4).find(|i| (logits.as_ptr() as usize + 4 * i).is_multiple_of(16)).unwrap();
    run(begin, false).unwrap();
    let error = run(begin + 1, false).unwrap_err();
    assert!(matches!(error, KernelError::Alignment { operand: "logits", alignment: 16, .. }), "{error}");
    let error = run(begin, true).unwrap_err();
    assert!(matches!(error, KernelError::Queue { operand: "stats", .. }), "{error}");
}

#[test]
fn a_rank_that_no_cta_can_hold_is_refused() {
    let mut operands = operands();
    operands.rank = 4096;
    operands.hidden = vec![bf16::ZERO; 2 * 4096];
    operands.weight = vec![bf16::ZERO; 10 * 4096];
    let error = operands.run().unwrap_err();
    assert!(matches!(error, KernelError::Backend(BackendError::SharedMemory { .. })), "{error}");
}

#[test]
fn no_rows_are_nothing_to_do() {
    let mut operands = operands();
    (operands.sampling, operands.draft, operands.stats) = (vec![], vec![], vec![]);
    (operands.hidden, operands.workspace) = (vec![], vec![]);
    operands.run().unwrap();
}
