//! Sampling and acceptance.

use bytemuck::Zeroable;
use candle_core::Tensor;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{
    Accept as Launch, DraftDistributions as LaunchedDrafts, MAX_COMMITTED, SampledRows, Verdict, Verify,
    VerifySequence, accept_workspace_len,
};
use flexdraft::kernels::sampling::{
    Calibration as LaunchedCalibration, EditTables, Edits, Logit, LogitRows, RowSampling, RowStats,
    Sample as LaunchedSample, workspace_len,
};
use flexdraft::layout::GroupSet;
use flexdraft::processors::{History, LogitProcessors};
use flexdraft::random::{Purpose, Stream};
use flexdraft_candle::{
    Accept, Calibration, DraftDistributions, Sample, Sampled, SampledLogits, table, tokens,
};
use half::bf16;
use proptest::prelude::*;

use crate::properties::properties;
use crate::support::{Half, Noise, Stored, both, of_stored, same, same_table, sampling_row, tensor};

/// A calibrator: hidden rows, weight and bias.
pub type Calibrator<'a, T> = (&'a [T], &'a [T], &'a [f32]);

/// The logits, statistics and partial results after sampling.
pub struct Expected<L> {
    pub logits: Vec<L>,
    pub stats: Vec<RowStats>,
    pub partials: Vec<f32>,
}

/// Samples the same rows by the wrappers and on tensors, and compares the results. Returns both.
pub fn sample_both<L: Logit + candle_core::WithDType, T: Half>(
    logits: &[L],
    vocab: usize,
    rows: &[RowSampling],
    calibrator: Option<Calibrator<'_, T>>,
) -> (Expected<L>, Tensor, Sampled) {
    let (kernels, wrappers) = both();
    let (stream, stride) = (wrappers.runtime().stream(), logits.len() / rows.len());
    let rank = calibrator.map_or(0, |(hidden, ..)| hidden.len() / rows.len());
    let found_logits = tensor(logits, &[rows.len(), stride]);
    let mut expected = Expected {
        logits: logits.to_vec(),
        stats: vec![RowStats::zeroed(); rows.len()],
        partials: vec![0f32; workspace_len(rows.len(), vocab, calibrator.is_some()).unwrap()],
    };
    wrappers
        .sample(
            &stream,
            LaunchedSample {
                vocab,
                stride,
                logits: LogitRows::Update(stream.view_mut(&mut expected.logits)),
                logit_index: None,
                sampling: stream.view(rows),
                starts: None,
                draft: None,
                calibration: calibrator.map(|(hidden, weight, bias)| LaunchedCalibration {
                    rank,
                    hidden: stream.view(hidden).into(),
                    weight: stream.view(weight).into(),
                    bias: Some(stream.view(bias)),
                }),
                workspace: stream.view_mut(&mut expected.partials),
                stats: stream.view_mut(&mut expected.stats),
                error: None,
            },
        )
        .unwrap();
    let calibrator = calibrator.map(|(hidden, weight, bias)| {
        let (hidden, weight) = (tensor(hidden, &[rows.len(), rank]), tensor(weight, &[vocab, rank]));
        (hidden, weight, tensor(bias, &[vocab]))
    });
    let args = Sample {
        vocab,
        logits: SampledLogits::Update(&found_logits),
        logit_index: None,
        sampling: &table(rows, found_logits.device()).unwrap(),
        starts: None,
        draft: None,
        calibration: calibrator.as_ref().map(|(hidden, weight, bias)| Calibration {
            hidden,
            weight,
            bias: Some(bias),
        }),
    };
    // The first launch alone leaves the same partial results.
    let copy = found_logits.copy().unwrap();
    same(
        &kernels.sample_partials(&Sample { logits: SampledLogits::Update(&copy), ..args }).unwrap(),
        &expected.partials,
    );
    same(&copy, &expected.logits);
    let sampled = kernels.sample(&args).unwrap();
    same(&found_logits, &expected.logits);
    same_table(&sampled.stats, &expected.stats);
    same(&sampled.partials, &expected.partials);
    let drawn: Vec<i32> = expected.stats.iter().map(|stats| stats.token).collect();
    same(&tokens(&sampled.stats).unwrap(), &drawn);
    assert_eq!(kernels.take_faults().unwrap(), None);
    (expected, found_logits, sampled)
}

proptest! {
    #![proptest_config(properties(9))]

    #[test]
    fn sampling_and_acceptance(
        seed: u64, drafts in 1usize..4, vocab in 20usize..71, rule in 0usize..3, stored in 0..3,
    ) {
        of_stored!(stored, sampling_and_acceptance_of(seed, drafts, vocab, rule))?;
    }

    #[test]
    fn edited_logits(seed: u64, drafts in 0usize..4, vocab in 33usize..71, stored in 0..3) {
        of_stored!(stored, edited_logits_of(seed, drafts, vocab))?;
    }

    #[test]
    fn indexed_rows_and_relative_positions(seed: u64, vocab in 20usize..71, stored in 0..3) {
        of_stored!(stored, indexed_rows_and_relative_positions_of(seed, vocab))?;
    }
}

fn sampling_and_acceptance_of<L: Stored>(
    seed: u64,
    drafts: usize,
    vocab: usize,
    rule: usize,
) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise) = (both(), Noise(seed));
    let stream = wrappers.runtime().stream();
    let (stride, rank) = (72, 8);
    let rule = [Rule::Match, Rule::Rejection, Rule::Block][rule];
    let purpose = if rule == Rule::Match { Purpose::TargetDraw } else { Purpose::DraftDraw };
    let target_rows: Vec<_> =
        (0..=drafts).map(|i| sampling_row(0.8, Stream::target_draw(11, 121 + i))).collect();
    let draft_rows: Vec<_> =
        (0..drafts).map(|i| sampling_row(0.8, Stream::new(11, purpose, i + 1, 120))).collect();
    let (hidden, weight, bias): (Vec<L::Calibrator>, Vec<L::Calibrator>, _) =
        (noise.halves(drafts * rank), noise.halves(vocab * rank), noise.floats(vocab));
    let logits = noise.logits::<L>((drafts + 1) * stride);
    let (target, target_tensor, target_sampled) =
        sample_both::<_, L::Calibrator>(&logits, vocab, &target_rows, None);
    let (draft, draft_tensor, draft_sampled) =
        sample_both(&logits[..drafts * stride], vocab, &draft_rows, Some((&hidden, &weight, &bias)));
    // Logits of f32 with a calibrator of the other type.
    let (hidden, weight): (Vec<bf16>, Vec<bf16>) = (noise.halves(drafts * rank), noise.halves(vocab * rank));
    let floats = noise.floats(drafts * stride);
    sample_both(&floats, vocab, &draft_rows, Some((&hidden[..], &weight[..], &bias[..])));

    let verify = Verify::new(&VerifySequence {
        rule,
        seed: 11,
        position: 120,
        drafts,
        first_target: 0,
        first_draft: (rule != Rule::Match).then_some(0),
        first_token: 0,
        groups: GroupSet::from_bits(0b11),
    })
    .unwrap();
    let draft_tokens: Vec<i32> = draft.stats.iter().map(|stats| stats.token).collect();
    let mut workspace = vec![0u64; accept_workspace_len(1, vocab).unwrap()];
    let (mut verdicts, mut committed) = ([Verdict::zeroed()], [5i32; MAX_COMMITTED]);
    wrappers
        .accept(
            &stream,
            &Launch {
                vocab,
                stride,
                sequences: stream.view(&[verify]),
                any_block: rule == Rule::Block,
                tokens: stream.view(&draft_tokens),
                target: SampledRows {
                    logits: stream.view(&target.logits),
                    stats: stream.view(&target.stats),
                },
                target_partials: Some(stream.view(&target.partials)),
                draft: Some(LaunchedDrafts {
                    logits: Some(stream.view(&draft.logits)),
                    chosen: None,
                    stats: stream.view(&draft.stats),
                }),
                workspace: stream.view_mut(bytemuck::cast_slice_mut(&mut workspace)),
                arrived: stream.view_mut(&mut [0]),
                verdicts: stream.view_mut(&mut verdicts),
                committed: stream.view_mut(&mut committed),
                error: None,
            },
        )
        .unwrap();
    for partials in [None, Some(&target_sampled.partials)] {
        let accepted = kernels
            .accept(&Accept {
                vocab,
                sequences: &table(&[verify], kernels.device()).unwrap(),
                any_block: rule == Rule::Block,
                tokens: &tokens(&draft_sampled.stats).unwrap(),
                target: &target_tensor,
                target_stats: &target_sampled.stats,
                target_partials: partials,
                draft: Some(DraftDistributions {
                    logits: Some(&draft_tensor),
                    chosen: None,
                    stats: &draft_sampled.stats,
                }),
            })
            .unwrap();
        same_table(&accepted.verdicts, &verdicts);
        same(&accepted.committed, &committed);
    }
    prop_assert!((0..=drafts as i32).contains(&verdicts[0].accepted));
    Ok(())
}

fn edited_logits_of<L: Stored>(seed: u64, drafts: usize, vocab: usize) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise) = (both(), Noise(seed));
    let (stream, stride, rows) = (wrappers.runtime().stream(), 72, drafts + 1);
    let ids =
        |noise: &mut Noise, len: usize| -> Vec<u32> { (0..len).map(|_| noise.below(vocab) as u32).collect() };
    let (history, draft) = (ids(&mut noise, 6), ids(&mut noise, drafts));
    let processors = LogitProcessors {
        repetition_penalty: 1.3,
        frequency_penalty: 0.2,
        presence_penalty: 0.1,
        logit_bias: ids(&mut noise, 3).into_iter().zip([0.5, -1.0, 2.0]).collect(),
        allowed: Some((0..vocab.div_ceil(32)).map(|_| noise.next() as u32 | 1).collect()),
        ..LogitProcessors::default()
    };
    let history = History { tokens: &history, prompt_len: 2, draft: &draft, stop_ids: &[] };
    let mut tables = EditTables::new(rows);
    tables.push(0, rows, &processors.edits(history, vocab), vocab).unwrap();
    let sampling: Vec<_> = (0..rows).map(|i| sampling_row(0.8, Stream::target_draw(11, 121 + i))).collect();
    let mut logits = noise.logits::<L>(rows * stride);
    let edited = tensor(&logits, &[rows, stride]);
    let mut stats = vec![RowStats::zeroed(); rows];
    let mut partials = vec![0f32; workspace_len(rows, vocab, false).unwrap()];
    let before = logits.clone();
    wrappers
        .sample(
            &stream,
            LaunchedSample {
                vocab,
                stride,
                logits: LogitRows::Edit(
                    stream.view_mut(&mut logits),
                    Edits {
                        rows: stream.view(&tables.rows),
                        offsets: stream.view(&tables.offsets),
                        edits: stream.view(&tables.edits),
                        masks: stream.view(&tables.masks),
                    },
                ),
                logit_index: None,
                sampling: stream.view(&sampling),
                starts: None,
                draft: None,
                calibration: None,
                workspace: stream.view_mut(&mut partials),
                stats: stream.view_mut(&mut stats),
                error: None,
            },
        )
        .unwrap();
    let sampled = kernels
        .sample(&Sample {
            vocab,
            logits: SampledLogits::Edit(&edited, &tables),
            logit_index: None,
            sampling: &table(&sampling, kernels.device()).unwrap(),
            starts: None,
            draft: None,
            calibration: None,
        })
        .unwrap();
    prop_assert_ne!(before, logits.clone());
    same(&edited, &logits);
    same_table(&sampled.stats, &stats);

    Ok(())
}

fn indexed_rows_and_relative_positions_of<L: Stored>(seed: u64, vocab: usize) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise) = (both(), Noise(seed));
    let (stream, stride) = (wrappers.runtime().stream(), 72);
    let logits = noise.logits::<L>(3 * stride);
    let (index, starts, draft) = ([2, -1, 0], [120, 7], [3, -1, 5]);
    let sampling: Vec<_> = (0..3u32)
        .map(|i| sampling_row(0.8, Stream::target_draw(11, 1 + i as usize)).relative_to(i % 2))
        .collect();
    let mut stats = vec![RowStats::zeroed(); 3];
    let mut partials = vec![0f32; workspace_len(3, vocab, false).unwrap()];
    wrappers
        .sample(
            &stream,
            LaunchedSample {
                vocab,
                stride,
                logits: LogitRows::Read(stream.view(&logits)),
                logit_index: Some(stream.view(&index)),
                sampling: stream.view(&sampling),
                starts: Some(stream.view(&starts)),
                draft: Some(stream.view(&draft)),
                calibration: None,
                workspace: stream.view_mut(&mut partials),
                stats: stream.view_mut(&mut stats),
                error: None,
            },
        )
        .unwrap();
    let sampled = kernels
        .sample(&Sample {
            vocab,
            logits: SampledLogits::Read(&tensor(&logits, &[3, stride])),
            logit_index: Some(&tensor(&index, &[3])),
            sampling: &table(&sampling, kernels.device()).unwrap(),
            starts: Some(&tensor(&starts, &[2])),
            draft: Some(&tensor(&draft, &[3])),
            calibration: None,
        })
        .unwrap();
    prop_assert_eq!(stats[1], RowStats::zeroed());
    same_table(&sampled.stats, &stats);

    Ok(())
}
