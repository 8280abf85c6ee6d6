//! Sampling and acceptance.

use bytemuck::Zeroable;
use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{self, Verdict, Verify};
use flexdraft::kernels::sampling::{self, RowSampling, RowStats};
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::{STREAM, bits, simt};
use crate::support::{ABSENT, Elements, Half, Noise, Opened, attempt, read, versioned, write};

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
pub fn sample_both<L: sampling::Logit + Elements, T: Half>(
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
fn sampling_and_acceptance() {
    let (opened, kernels) = (Opened::new(), simt());
    let stream = kernels.runtime().stream();
    let mut noise = Noise(3);
    for rule in [FLEXDRAFT_MATCH, FLEXDRAFT_REJECTION, FLEXDRAFT_BLOCK] {
        let (drafts, vocab, stride, rank) = (1 + noise.below(3), 40 + noise.below(30), 72, 8);
        let draft_purpose =
            if rule == FLEXDRAFT_MATCH { FLEXDRAFT_TARGET_DRAW } else { FLEXDRAFT_DRAFT_DRAW };
        let target_rows: Vec<_> =
            (0..=drafts).map(|_| sampling_row(FLEXDRAFT_TARGET_DRAW, 0, 0.8).0).collect();
        let draft_rows: Vec<_> =
            (0..drafts).map(|slot| sampling_row(draft_purpose, slot as u64 + 1, 0.8).0).collect();
        // Logits of the drafts are bf16 in one case, and f32 in the other cases.
        let (hidden, weight, bias) =
            (noise.bf16s(drafts * rank), noise.bf16s(vocab * rank), noise.floats(vocab));
        let target = noise.floats((drafts + 1) * stride);
        let draft: Vec<f32> = target[..drafts * stride].to_vec();
        let (target, target_stats, partials) = sample_both::<_, bf16>(&target, vocab, &target_rows, None);
        let (draft, draft_stats, _) =
            sample_both(&draft, vocab, &draft_rows, Some((&hidden, &weight, &bias)));
        let halves: Vec<bf16> = target.iter().map(|&logit| bf16::from_f32(logit)).collect();
        sample_both::<_, bf16>(&halves, vocab, &target_rows, None);
        // A calibrator of f16, with logits of either type.
        let (hidden, weight) = (noise.halves::<f16>(drafts * rank), noise.halves::<f16>(vocab * rank));
        let calibrator = Some((&hidden[..], &weight[..], &bias[..]));
        sample_both(&target[..drafts * stride], vocab, &draft_rows, calibrator);
        let halves: Vec<f16> = target.iter().map(|&logit| f16::from_f32(logit)).collect();
        sample_both(&halves[..drafts * stride], vocab, &draft_rows, calibrator);

        let tokens: Vec<i32> = draft_stats.iter().map(|stats| stats.token).collect();
        let asked = versioned!(FlexdraftVerifySequence {
            seed: 11,
            position: 120,
            drafts: drafts as u64,
            first_target: 0,
            first_draft: 0,
            first_draft_stats: 0,
            first_token: 0,
            groups: 0b11,
            rule,
            draft: if rule == FLEXDRAFT_MATCH { FLEXDRAFT_DRAFT_CERTAIN } else { FLEXDRAFT_DRAFT_LOGITS },
        });
        let mut verify = FlexdraftVerify { words: [0; 6] };
        // SAFETY: both pointers lead to variables.
        attempt(|error| unsafe { flexdraft_verify(&raw const asked, &raw mut verify, error) }).unwrap();
        let expected = Verify::new(&acceptance::VerifySequence {
            rule: [Rule::Match, Rule::Rejection, Rule::Block][rule as usize],
            seed: 11,
            position: 120,
            drafts,
            first_target: 0,
            first_draft: (rule != FLEXDRAFT_MATCH).then_some(0),
            first_token: 0,
            groups: GroupSet::from_bits(0b11),
        })
        .unwrap();
        assert_eq!(bits(&verify.words), bits(&[expected]));

        let mut elements = 0;
        // SAFETY: the pointer leads to a variable.
        attempt(|error| unsafe { flexdraft_accept_workspace_len(1, vocab as u64, &raw mut elements, error) })
            .unwrap();
        assert_eq!(Some(elements as usize), acceptance::accept_workspace_len(1, vocab));
        let mut workspace = vec![0u64; elements as usize];
        let workspace: &mut [f32] = bytemuck::cast_slice_mut(&mut workspace);
        let (mut verdicts, mut found_verdicts) = ([Verdict::zeroed()], [Verdict::zeroed()]);
        let (mut committed, mut found_committed) = ([5i32; 64], [6i32; 64]);
        let any_block = rule == FLEXDRAFT_BLOCK;
        kernels
            .accept(
                &stream,
                &acceptance::Accept {
                    vocab,
                    stride,
                    sequences: stream.view(&[expected]),
                    any_block,
                    tokens: stream.view(&tokens),
                    target: acceptance::SampledRows {
                        logits: stream.view(&target),
                        stats: stream.view(&target_stats),
                    },
                    target_partials: Some(stream.view(&partials)),
                    draft: Some(acceptance::DraftDistributions {
                        logits: Some(stream.view(&draft)),
                        chosen: None,
                        stats: stream.view(&draft_stats),
                    }),
                    workspace: stream.view_mut(workspace),
                    arrived: stream.view_mut(&mut [0]),
                    verdicts: stream.view_mut(&mut verdicts),
                    committed: stream.view_mut(&mut committed),
                    error: None,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_accept,
            versioned!(FlexdraftAccept {
                vocab: vocab as u64,
                stride: stride as u64,
                sequences: read(&[expected]),
                tokens: read(&tokens),
                target: read(&target),
                target_stats: read(&target_stats),
                target_partials: read(&partials),
                draft: read(&draft),
                draft_stats: read(&draft_stats),
                chosen_count: 0,
                workspace: write(workspace),
                arrived: write(&mut [0u32]),
                verdicts: write(&mut found_verdicts),
                committed: write(&mut found_committed),
                any_block: u32::from(any_block),
                ..
            })
        );
        assert_eq!((bits(&found_verdicts), found_committed), (bits(&verdicts), committed));
        assert!((0..=drafts as i32).contains(&verdicts[0].accepted));
    }
}
