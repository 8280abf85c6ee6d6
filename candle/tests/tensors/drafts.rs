//! The chain of a draft, and the selection of the next drafts.

use bytemuck::Zeroable;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::chain::{ChainChoose as Choose, ChainScore as Score, ChainWalk as Walk};
use flexdraft::kernels::rope::RopeTable;
use flexdraft::kernels::sampling::RowStats;
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{Paging, PassTables};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft::random::{Purpose, Stream};
use flexdraft_candle::{ChainChoose, ChainScore, ChainWalk, table};
use proptest::prelude::*;

use crate::properties::properties;
use crate::sampling::sample_both;
use crate::support::{Noise, Stored, both, of_stored, same, same_table, sampling_row, tensor};

proptest! {
    #![proptest_config(properties(6))]

    #[test]
    fn chain_of_a_draft(seed: u64, slots in 2usize..5, count in 1usize..8, stored in 0..3) {
        of_stored!(stored, chain_of_a_draft_of(seed, slots, count))?;
    }

    #[test]
    fn selection_and_the_pass_that_follows(seed: u64, accepted in 0i32..4, slots in 2usize..6) {
        let ((kernels, wrappers), mut noise) = (both(), Noise(seed));
        let (simt, stream) = (wrappers.runtime(), wrappers.runtime().stream());
        let start = noise.below(30);
        let cached_length = start as i64 + i64::from(accepted) + 1;
        let verdict = Verdict { accepted, bonus: 9, group: accepted.min(2), cached_length, ..Verdict::zeroed() };
        let verdicts = [verdict];
        let verdict_table = table(&verdicts, kernels.device()).unwrap();
        let groups = GroupSet::from_bits(noise.next() & 0xf);
        // One row more than the draft has.
        let (rows, first_slot) = (slots, 4);
        let drafts = [Draft::new(&DraftGroups { sequence: 0, groups, first_slot, slots, first_draft: 0 }).unwrap()];
        let (mut bonus, mut starts) = ([0i32], [0i32]);
        let (mut sources, mut draft_rows) = (vec![-1i32; rows], vec![-1i32; rows]);
        wrappers.select_drafts(&stream, &SelectDrafts {
            drafts: stream.view(&drafts),
            verdicts: stream.view(&verdicts),
            bonus: stream.view_mut(&mut bonus),
            starts: stream.view_mut(&mut starts),
            sources: stream.view_mut(&mut sources),
            draft_rows: stream.view_mut(&mut draft_rows),
            error: None,
        }).unwrap();
        let selected = kernels
            .select_drafts(&table(&drafts, kernels.device()).unwrap(), &verdict_table, rows)
            .unwrap();
        same(&selected.bonus, &bonus);
        same(&selected.starts, &starts);
        same(&selected.sources, &sources);
        same(&selected.draft_rows, &draft_rows);

        // The rows of the pass that follows have the angles of its positions.
        let sequence = SequenceRows { pages: &[0, 1, 2], start, candidates: 0, groups: vec![3], slots };
        let (pass, paging) = (Pass { sequences: vec![sequence] }, Paging { pages: 3, page_size: 16 });
        let mut expected_pass = PassTables::new(simt, &stream, 1, 3).unwrap();
        expected_pass.upload(simt, &stream, &pass, paging).unwrap();
        let mut tables = kernels.pass_tables(1, 3).unwrap();
        kernels.upload_pass(&mut tables, &pass, paging).unwrap();
        let inv_freq = [1.0f32];
        let inv_freq_tensor = tensor(&inv_freq, &[1]);
        let before = kernels.rope_table(&tables, &inv_freq_tensor, slots, 1.0).unwrap();
        wrappers.follow_verdicts(&stream, FollowVerdicts {
            pass: &mut expected_pass,
            sequences: stream.view(&[0]),
            verdicts: stream.view(&verdicts),
            error: None,
        }).unwrap();
        kernels.follow_verdicts(&mut tables, &tensor(&[0i32], &[1]), &verdict_table).unwrap();
        let mut cos_sin = vec![7f32; slots * 2];
        wrappers.rope_table(&stream, &RopeTable {
            pass: &expected_pass,
            inv_freq: stream.view(&inv_freq),
            scale: 1.0,
            cos_sin: stream.view_mut(&mut cos_sin),
        }).unwrap();
        let after = kernels.rope_table(&tables, &inv_freq_tensor, slots, 1.0).unwrap();
        same(&after, &cos_sin);
        let [before, after] = [before, after].map(|turns| turns.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        prop_assert_eq!(before == after, accepted == 3);
        prop_assert_eq!(kernels.take_faults().unwrap(), None);
    }
}

fn chain_of_a_draft_of<L: Stored>(seed: u64, slots: usize, count: usize) -> Result<(), TestCaseError> {
    let ((kernels, wrappers), mut noise) = (both(), Noise(seed));
    let stream = wrappers.runtime().stream();
    let (rows, vocab, stride, rank) = (slots - 1, 50, 56, 5);
    let sampling: Vec<_> =
        (0..rows).map(|i| sampling_row(0.7, Stream::new(11, Purpose::DraftDraw, i + 1, 120))).collect();
    let (logits, logits_tensor, sampled) =
        sample_both::<_, L::Calibrator>(&noise.logits::<L>(rows * stride), vocab, &sampling, None);
    let (mut ids, mut chosen) = (vec![0i32; rows * count], vec![0f32; rows * count]);
    wrappers
        .chain_choose(
            &stream,
            &Choose {
                vocab,
                stride,
                logits: stream.view(&logits.logits),
                logit_index: None,
                partials: stream.view(&logits.partials),
                calibrated: false,
                count,
                ids: stream.view_mut(&mut ids),
                chosen: stream.view_mut(&mut chosen),
                error: None,
            },
        )
        .unwrap();
    let found = kernels
        .chain_choose(&ChainChoose {
            vocab,
            logits: &logits_tensor,
            logit_index: None,
            partials: &sampled.partials,
            calibrated: false,
            count,
        })
        .unwrap();
    same(&found.ids, &ids);
    same(&found.logits, &chosen);

    let before = noise.floats((1 + rows * count) * 8);
    let owners = vec![0i32; rows];
    let mut scores = vec![0f32; rows * count * count];
    let before_tensor = tensor(&before, &[1 + rows * count, 8]);
    let after = noise.logits::<L>(rows * count * 8);
    wrappers
        .chain_score(
            &stream,
            &Score {
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
    let after_tensor = tensor(&after, &[rows * count, 8]);
    let scores_tensor = kernels
        .chain_score(&ChainScore {
            rank,
            count,
            drafts: 1,
            before: &before_tensor,
            after: &after_tensor,
            owners: &tensor(&owners, &[rows]),
        })
        .unwrap();
    same(&scores_tensor, &scores);

    let groups = DraftGroups { sequence: 0, groups: GroupSet::NONE, first_slot: 0, slots, first_draft: 0 };
    let drafts = [Draft::new(&groups).unwrap()];
    let mut stats = vec![RowStats::zeroed(); rows];
    wrappers
        .chain_walk(
            &stream,
            &Walk {
                drafts: stream.view(&drafts),
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
    let walked = kernels
        .chain_walk(&ChainWalk {
            drafts: &table(&drafts, kernels.device()).unwrap(),
            logit_index: None,
            sampling: &table(&sampling, kernels.device()).unwrap(),
            starts: None,
            chosen: &found,
            scores: &scores_tensor,
        })
        .unwrap();
    same(&found.logits, &chosen);
    same_table(&walked, &stats);
    prop_assert!(stats.iter().all(|row| ids.contains(&row.token)));
    Ok(())
}
