//! Sampling, with and without a calibrator.

use bytemuck::Zeroable;
use flexdraft::kernels::sampling::{self, RowSampling, RowStats};
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::{STREAM, bits, simt};
use crate::support::{ABSENT, Half, Noise, Opened, Stored, attempt, read, versioned, write};

/// Returns the sampling of a row in both forms.
pub fn sampling_row(purpose: u32, slot: u64, temperature: f32) -> (RowSampling, FlexdraftRowSampling) {
    let params = versioned!(FlexdraftSamplingParams {
        temperature,
        top_p: 0.9,
        min_p: 0.01,
        purpose,
        top_k: 20,
        seed: 11,
        slot,
        position: 120,
        relative: 0,
        sequence: 0,
    });
    let mut row = FlexdraftRowSampling { words: [0; 5] };
    // SAFETY: both pointers lead to variables.
    attempt(|error| unsafe { flexdraft_row_sampling(&raw const params, &raw mut row, error) }).unwrap();
    let warping = SamplingParams { temperature, top_k: 20, top_p: 0.9, min_p: 0.01 };
    let purpose = match purpose {
        FLEXDRAFT_TARGET_DRAW => Purpose::TargetDraw,
        _ => Purpose::DraftDraw,
    };
    let numbers = Stream::new(11, purpose, slot as usize, 120);
    let expected = RowSampling::new(&warping, Some(numbers)).unwrap();
    assert_eq!(bits(&[expected]), bits(&row.words));
    (expected, row)
}

/// Samples rows through both interfaces. Returns the logits after sampling, the statistics and the workspace.
pub fn sample_both<L: Stored, T: Half>(
    logits: &[L],
    vocab: usize,
    rows: &[RowSampling],
    calibrator: Option<(&[T], &[T], &[f32])>,
) -> (Vec<L>, Vec<RowStats>, Vec<f32>) {
    let (opened, kernels) = (Opened::new(), simt());
    let stream = kernels.runtime().stream();
    let stride = logits.len() / rows.len();
    let (mut expected_logits, mut found_logits) = (logits.to_vec(), logits.to_vec());
    let rank = calibrator.map_or(0, |(hidden, ..)| hidden.len() / rows.len());
    let mut elements = 0;
    // SAFETY: the pointer leads to a variable.
    attempt(|error| unsafe {
        let (rows, calibrated) = (rows.len() as u64, u32::from(calibrator.is_some()));
        flexdraft_sample_workspace_len(rows, vocab as u64, calibrated, &raw mut elements, error)
    })
    .unwrap();
    assert_eq!(Ok(elements as usize), sampling::workspace_len(rows.len(), vocab, calibrator.is_some()));
    let (mut workspace, mut found_workspace) = (vec![0f32; elements as usize], vec![0f32; elements as usize]);
    let (mut stats, mut found_stats) =
        (vec![RowStats::zeroed(); rows.len()], vec![RowStats::zeroed(); rows.len()]);
    kernels
        .sample(
            &stream,
            sampling::Sample {
                vocab,
                stride,
                logits: sampling::LogitRows::Update(stream.view_mut(&mut expected_logits)),
                logit_index: None,
                sampling: stream.view(rows),
                starts: None,
                draft: None,
                calibration: calibrator.map(|(hidden, weight, bias)| sampling::Calibration {
                    rank,
                    hidden: stream.view(hidden).into(),
                    weight: stream.view(weight).into(),
                    bias: Some(stream.view(bias)),
                }),
                workspace: stream.view_mut(&mut workspace),
                stats: stream.view_mut(&mut stats),
                error: None,
            },
        )
        .unwrap();
    let args = versioned!(FlexdraftSample {
        vocab: vocab as u64,
        stride: stride as u64,
        logits: write(&mut found_logits),
        sampling: read(rows),
        rank: rank as u64,
        hidden: calibrator.map_or(ABSENT, |(hidden, ..)| read(hidden)),
        weight: calibrator.map_or(ABSENT, |(_, weight, _)| read(weight)),
        bias: calibrator.map_or(ABSENT, |(.., bias)| read(bias)),
        workspace: write(&mut found_workspace),
        stats: write(&mut found_stats),
        update: 1,
        ..
    });
    launch!(opened, flexdraft_sample, args);
    assert_eq!(bits(&found_logits), bits(&expected_logits));
    assert_eq!((bits(&found_stats), bits(&found_workspace)), (bits(&stats), bits(&workspace)));
    // The first launch alone leaves the same partial results, and no statistics.
    found_logits.copy_from_slice(logits);
    found_workspace.fill(0.0);
    found_stats.fill(RowStats::zeroed());
    launch!(opened, flexdraft_sample_partials, args);
    assert_eq!((bits(&found_logits), bits(&found_workspace)), (bits(&expected_logits), bits(&workspace)));
    assert!(found_stats.iter().all(|stats| *stats == RowStats::zeroed()));
    (expected_logits, stats, workspace)
}

#[test]
fn calibrated_sampling() {
    calibrated_sampling_of::<f32, bf16>();
    calibrated_sampling_of::<f32, f16>();
    calibrated_sampling_of::<bf16, bf16>();
    calibrated_sampling_of::<f16, f16>();
}

fn calibrated_sampling_of<L: Stored, T: Half>() {
    let mut noise = Noise(14);
    let (rows, vocab, rank) = (1 + noise.below(3), 40 + noise.below(30), 8 * (1 + noise.below(3)));
    let sampling: Vec<_> =
        (0..rows).map(|slot| sampling_row(FLEXDRAFT_DRAFT_DRAW, slot as u64 + 1, 0.8).0).collect();
    let (hidden, weight) = (noise.rounded::<T>(rows * rank), noise.rounded::<T>(vocab * rank));
    let (logits, bias) = (noise.rounded::<L>(rows * 72), noise.floats(vocab));
    let (after, ..) = sample_both(&logits, vocab, &sampling, Some((&hidden, &weight, &bias)));
    assert_ne!(bits(&after), bits(&logits));
}

#[test]
fn sampling_with_every_optional_operand() {
    optional_operands_of::<f32>();
    optional_operands_of::<bf16>();
    optional_operands_of::<f16>();
}

fn optional_operands_of<L: Stored>() {
    let (opened, kernels) = (Opened::new(), simt());
    let stream = kernels.runtime().stream();
    let mut noise = Noise(15);
    let (vocab, stride) = (50, 56);
    let logits = noise.rounded::<L>(2 * stride);
    // Row 1 is padding. The position of row 2 counts from the start of sequence 1. Its draft token is no id, which is a
    // fault.
    let (index, starts, draft) = ([1, -1, 0], [3, 100], [7, -1, 60]);
    let numbers = Stream::target_draw(11, 20);
    let warping = SamplingParams::at_temperature(0.8);
    let of_row = |row| match row {
        2 => RowSampling::new(&warping, Some(numbers)).unwrap().relative_to(1),
        _ => RowSampling::new(&warping, Some(numbers)).unwrap(),
    };
    let sampling = [0, 1, 2].map(of_row);
    let mut workspace = vec![0f32; sampling::workspace_len(3, vocab, false).unwrap()];
    let (mut stats, mut found_stats) = ([RowStats::zeroed(); 3], [RowStats::zeroed(); 3]);
    let (mut word, mut found_word) = ([0u32], [0u32]);
    kernels
        .sample(
            &stream,
            sampling::Sample {
                vocab,
                stride,
                logits: sampling::LogitRows::Read(stream.view(&logits)),
                logit_index: Some(stream.view(&index)),
                sampling: stream.view(&sampling),
                starts: Some(stream.view(&starts)),
                draft: Some(stream.view(&draft)),
                calibration: None,
                workspace: stream.view_mut(&mut workspace),
                stats: stream.view_mut(&mut stats),
                error: Some(stream.view_mut(&mut word)),
            },
        )
        .unwrap();
    launch!(
        opened,
        flexdraft_sample,
        versioned!(FlexdraftSample {
            vocab: vocab as u64,
            stride: stride as u64,
            logits: read(&logits),
            logit_index: read(&index),
            sampling: read(&sampling),
            starts: read(&starts),
            draft: read(&draft),
            workspace: write(&mut workspace),
            stats: write(&mut found_stats),
            error_word: write(&mut found_word),
            ..
        })
    );
    assert_eq!((bits(&found_stats), found_word), (bits(&stats), word));
    assert!(stats[0].draft_probability > 0.0 && stats[1] == RowStats::zeroed() && word == [2]);
}
