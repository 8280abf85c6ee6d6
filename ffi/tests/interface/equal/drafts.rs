//! The chain of a draft, and the selection of the next drafts.

use bytemuck::Zeroable;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::sampling::RowStats;
use flexdraft::kernels::selection::{self, Draft};
use flexdraft::kernels::{Paging, PassTables, chain, rope};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft_ffi::*;
use half::{bf16, f16};

use super::acceptance::Verified;
use super::sampling::{sample_both, sampling_row};
use super::{STREAM, bits, simt};
use crate::support::{Noise, Opened, Stored, attempt, read, sequence, versioned, write};

#[test]
fn chain_of_a_draft() {
    chain_of_a_draft_of::<f32>();
    chain_of_a_draft_of::<bf16>();
    chain_of_a_draft_of::<f16>();
}

fn chain_of_a_draft_of<L: Stored>() {
    let (opened, kernels) = (Opened::new(), simt());
    let stream = kernels.runtime().stream();
    let mut noise = Noise(4);
    for count in [1, 4, 7] {
        let (slots, vocab, stride, rank) = (2 + noise.below(3), 50, 56, 5);
        let rows = slots - 1;
        let logits = noise.rounded::<L>(rows * stride);
        let sampling: Vec<_> =
            (0..rows).map(|slot| sampling_row(FLEXDRAFT_DRAFT_DRAW, slot as u64 + 1, 0.7).0).collect();
        let (logits, _, partials) = sample_both::<_, L::Calibrator>(&logits, vocab, &sampling, None);
        let tables = || (vec![0i32; rows * count], vec![0f32; rows * count]);
        let ((mut ids, mut chosen), (mut found_ids, mut found_chosen)) = (tables(), tables());
        kernels
            .chain_choose(
                &stream,
                &chain::ChainChoose {
                    vocab,
                    stride,
                    logits: stream.view(&logits),
                    logit_index: None,
                    partials: stream.view(&partials),
                    calibrated: false,
                    count,
                    ids: stream.view_mut(&mut ids),
                    chosen: stream.view_mut(&mut chosen),
                    error: None,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_chain_choose,
            versioned!(FlexdraftChainChoose {
                vocab: vocab as u64,
                stride: stride as u64,
                count: count as u64,
                logits: read(&logits),
                partials: read(&partials),
                ids: write(&mut found_ids),
                chosen: write(&mut found_chosen),
                calibrated: 0,
                ..
            })
        );
        assert_eq!((&found_ids, bits(&found_chosen)), (&ids, bits(&chosen)));

        let (before, after) = (noise.floats((1 + rows * count) * 8), noise.rounded::<L>(rows * count * 8));
        let owners = vec![0i32; rows];
        let (mut scores, mut found_scores) =
            (vec![0f32; rows * count * count], vec![0f32; rows * count * count]);
        kernels
            .chain_score(
                &stream,
                &chain::ChainScore {
                    rank,
                    count,
                    drafts: 1,
                    before: stream.view(&before),
                    before_stride: 8,
                    after: stream.view(&after),
                    after_stride: 8,
                    owners: stream.view(&owners),
                    scores: stream.view_mut(&mut scores),
                    error: None,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_chain_score,
            versioned!(FlexdraftChainScore {
                rank: rank as u64,
                count: count as u64,
                drafts: 1,
                before: read(&before),
                before_stride: 8,
                after: read(&after),
                after_stride: 8,
                owners: read(&owners),
                scores: write(&mut found_scores),
                ..
            })
        );
        assert_eq!(bits(&found_scores), bits(&scores));

        let draft = draft_both(&versioned!(FlexdraftDraftGroups {
            sequence: 0,
            groups: 0,
            first_slot: 0,
            slots: slots as u64,
            first_draft: 0,
            rows: FLEXDRAFT_PASS_SLOTS,
            ..
        }));
        let (mut stats, mut found_stats) = (vec![RowStats::zeroed(); rows], vec![RowStats::zeroed(); rows]);
        kernels
            .chain_walk(
                &stream,
                &chain::ChainWalk {
                    drafts: stream.view(&[draft]),
                    logit_index: None,
                    sampling: stream.view(&sampling),
                    starts: None,
                    count,
                    ids: stream.view(&ids),
                    scores: stream.view(&scores),
                    chosen: stream.view_mut(&mut chosen),
                    stats: stream.view_mut(&mut stats),
                    error: None,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_chain_walk,
            versioned!(FlexdraftChainWalk {
                count: count as u64,
                drafts: read(&[draft]),
                sampling: read(&sampling),
                ids: read(&ids),
                scores: read(&scores),
                chosen: write(&mut found_chosen),
                stats: write(&mut found_stats),
                ..
            })
        );
        assert_eq!((bits(&found_chosen), bits(&found_stats)), (bits(&chosen), bits(&stats)));
        assert!(stats.iter().all(|row| ids.contains(&row.token)));

        // The chain's draft is verified by its chosen ids.
        let target_rows: Vec<_> = (0..slots).map(|_| sampling_row(FLEXDRAFT_TARGET_DRAW, 0, 0.7).0).collect();
        let target = noise.rounded::<L>(slots * stride);
        let (target, target_stats, partials) =
            sample_both::<_, L::Calibrator>(&target, vocab, &target_rows, None);
        for rule in [FLEXDRAFT_REJECTION, FLEXDRAFT_BLOCK] {
            Verified {
                rule,
                vocab,
                target: (&target, &target_stats, &partials),
                draft: None,
                chosen: Some((count, &ids, &chosen)),
                draft_stats: &stats,
            }
            .accept_both();
        }
    }
}

/// Returns a sequence that drafts, made by both interfaces.
pub fn draft_both(groups: &FlexdraftDraftGroups) -> Draft {
    let mut found = FlexdraftDraft { words: [0; 4] };
    // SAFETY: both pointers lead to variables.
    attempt(|error| unsafe { flexdraft_draft(groups, &raw mut found, error) }).unwrap();
    let make = [Draft::new, Draft::in_logits, Draft::predicting_next][groups.rows as usize];
    let expected = make(&selection::DraftGroups {
        sequence: groups.sequence as usize,
        groups: GroupSet::from_bits(groups.groups),
        first_slot: groups.first_slot as usize,
        slots: groups.slots as usize,
        first_draft: groups.first_draft as usize,
    })
    .unwrap();
    assert_eq!(bits(&found.words), bits(&[expected]));
    expected
}

#[test]
fn selection_of_the_next_drafts() {
    let (opened, kernels) = (Opened::new(), simt());
    let (runtime, stream) = (kernels.runtime(), kernels.runtime().stream());
    let verdict = Verdict { accepted: 2, bonus: 9, cached_length: 43, ..Verdict::zeroed() };
    for rows in [FLEXDRAFT_PASS_SLOTS, FLEXDRAFT_LOGIT_SLOTS, FLEXDRAFT_NEXT_SLOTS] {
        let draft = draft_both(&versioned!(FlexdraftDraftGroups {
            sequence: 0,
            groups: 0b101,
            first_slot: 5,
            slots: 3,
            first_draft: 0,
            rows,
            ..
        }));
        let outs = || ([-7i32; 1], [-7i32; 1], [-7i32; 2], [-7i32; 2]);
        let (mut expected, mut found) = (outs(), outs());
        kernels
            .select_drafts(
                &stream,
                &selection::SelectDrafts {
                    drafts: stream.view(&[draft]),
                    verdicts: stream.view(&[verdict]),
                    bonus: stream.view_mut(&mut expected.0),
                    starts: stream.view_mut(&mut expected.1),
                    sources: stream.view_mut(&mut expected.2),
                    draft_rows: stream.view_mut(&mut expected.3),
                    error: None,
                },
            )
            .unwrap();
        launch!(
            opened,
            flexdraft_select_drafts,
            versioned!(FlexdraftSelectDrafts {
                drafts: read(&[draft]),
                verdicts: read(&[verdict]),
                bonus: write(&mut found.0),
                starts: write(&mut found.1),
                sources: write(&mut found.2),
                draft_rows: write(&mut found.3),
                ..
            })
        );
        assert_eq!(found, expected);
        assert_eq!((found.0, found.1), ([9], [43]));
    }

    // The angles of the rope show where the verdict moved the group.
    let rows = SequenceRows { pages: &[0], start: 5, candidates: 0, groups: vec![3], slots: 4 };
    let mut pass = PassTables::new(runtime, &stream, 1, 1).unwrap();
    let paging = Paging { pages: 1, page_size: 16 };
    pass.upload(runtime, &stream, &Pass { sequences: vec![rows] }, paging).unwrap();
    let opened_pass = opened.pass(&[sequence(&[0], 5, 0, 0b1000, 4)], 1, 16);
    let verdict = Verdict { accepted: 1, cached_length: 7, ..Verdict::zeroed() };
    kernels
        .follow_verdicts(
            &stream,
            selection::FollowVerdicts {
                pass: &mut pass,
                sequences: stream.view(&[0]),
                verdicts: stream.view(&[verdict]),
                error: None,
            },
        )
        .unwrap();
    let inv_freq = [1f32];
    let (mut cos_sin, mut found) = ([0f32; 8], [[0f32; 8]; 2]);
    kernels
        .rope_table(
            &stream,
            &rope::RopeTable {
                pass: &pass,
                inv_freq: stream.view(&inv_freq),
                scale: 1.0,
                cos_sin: stream.view_mut(&mut cos_sin),
            },
        )
        .unwrap();
    for (step, found) in found.iter_mut().enumerate() {
        if step == 1 {
            launch!(
                opened,
                flexdraft_follow_verdicts,
                versioned!(FlexdraftFollowVerdicts {
                    pass: opened_pass.0,
                    sequences: read(&[0i32]),
                    verdicts: read(&[verdict]),
                    ..
                })
            );
        }
        launch!(
            opened,
            flexdraft_rope_table,
            versioned!(FlexdraftRopeTable {
                pass: opened_pass.0,
                inv_freq: read(&inv_freq),
                cos_sin: write(found),
                scale: 1.0,
                ..
            })
        );
    }
    assert_ne!(bits(&found[0]), bits(&cos_sin));
    assert_eq!(bits(&found[1]), bits(&cos_sin));
}
