//! The selection of the next draft rows by verdicts: the kernels on the SIMT emulator must agree with the same selection on
//! the host.

use bytemuck::Zeroable;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::glue::RopeTable;
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{KernelError, Kernels, Paging, PassTables};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft::runtime::simt::{Checking, Copies};
use flexdraft::runtime::{Simt, SimtOptions};
use proptest::prelude::*;

use crate::support::properties::properties;
use crate::support::simt_variant::checking;

/// The outputs of the selection: bonus tokens, starts, sources, draft rows, and the error word.
type Selected = (Vec<i32>, Vec<i32>, Vec<i32>, Vec<i32>, u32);

type MakeDraft = fn(&DraftGroups) -> Result<Draft, KernelError>;

fn select(
    verdicts: &[Verdict],
    drafts: &[DraftGroups],
    new: MakeDraft,
    rows: usize,
    schedule: u64,
) -> Selected {
    let options = SimtOptions { checking: checking(Checking::Accesses), copies: Copies::Eager, schedule };
    let kernels = Kernels::new(Simt::new(options));
    let stream = kernels.runtime().stream();
    let table: Vec<Draft> = drafts.iter().map(|draft| new(draft).unwrap()).collect();
    let (mut bonus, mut starts) = (vec![-7; drafts.len()], vec![-7; drafts.len()]);
    let (mut sources, mut draft_rows, mut error) = (vec![-7; rows], vec![-7; rows], [0]);
    let args = SelectDrafts {
        drafts: stream.view(&table),
        verdicts: stream.view(verdicts),
        bonus: stream.view_mut(&mut bonus),
        starts: stream.view_mut(&mut starts),
        sources: stream.view_mut(&mut sources),
        draft_rows: stream.view_mut(&mut draft_rows),
        error: Some(stream.view_mut(&mut error)),
    };
    kernels.select_drafts(&stream, &args).unwrap();
    drop(args);
    (bonus, starts, sources, draft_rows, error[0])
}

/// Returns the rotations of a pass's rows after its groups have followed verdicts, and the error word.
fn positions(pass: &Pass<'_>, follow: Option<(&[Verdict], &[i32])>, schedule: u64) -> (Vec<f32>, u32) {
    let options = SimtOptions { checking: checking(Checking::Accesses), copies: Copies::Eager, schedule };
    let kernels = Kernels::new(Simt::new(options));
    let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
    let mut tables = PassTables::new(simt, &stream, pass.sequences.len(), 4).unwrap();
    tables.upload(simt, &stream, pass, Paging { pages: 4, page_size: 16 }).unwrap();
    let mut error = [0];
    if let Some((verdicts, of)) = follow {
        let args = FollowVerdicts {
            pass: &mut tables,
            sequences: stream.view(of),
            verdicts: stream.view(verdicts),
            error: Some(stream.view_mut(&mut error)),
        };
        kernels.follow_verdicts(&stream, args).unwrap();
    }
    let mut cos_sin = vec![0.0; 2 * tables.rows()];
    let args = RopeTable {
        pass: &tables,
        inv_freq: stream.view(&[0.01]),
        scale: 1.0,
        cos_sin: stream.view_mut(&mut cos_sin),
    };
    kernels.rope_table(&stream, &args).unwrap();
    drop(args);
    (cos_sin, error[0])
}

fn verdict(accepted: i32, bonus: i32, cached_length: i64) -> Verdict {
    Verdict { accepted, bonus, cached_length, ..Verdict::zeroed() }
}

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn the_group_of_the_accepted_length(
        sequences in prop::collection::vec(
            (-1i32..64, prop_oneof![4 => any::<u64>(), 1 => Just(0)], 1usize..65, 0usize..1000),
            1..6,
        ),
        in_logits in any::<bool>(),
        schedule in 0u64..4,
    ) {
        // Sequences in reverse order, so that the order of drafts differs from the order of their verdicts.
        let verdicts: Vec<Verdict> = sequences
            .iter()
            .enumerate()
            .map(|(i, &(accepted, ..))| verdict(accepted, 40 + i as i32, 100 + i64::from(accepted)))
            .collect();
        let mut rows = 0;
        let drafts: Vec<DraftGroups> = sequences
            .iter()
            .enumerate()
            .rev()
            .map(|(sequence, &(_, bits, slots, first_slot))| {
                let groups = GroupSet::from_bits(bits);
                let draft = DraftGroups { sequence, groups, first_slot, slots, first_draft: rows };
                rows += slots - 1;
                draft
            })
            .collect();
        let new: MakeDraft = if in_logits { Draft::in_logits } else { Draft::new };
        let (bonus, starts, sources, draft_rows, error) = select(&verdicts, &drafts, new, rows, schedule);
        prop_assert_eq!(error, 0);
        for (i, draft) in drafts.iter().enumerate() {
            let verdict = &verdicts[draft.sequence];
            let known = verdict.accepted >= 0;
            prop_assert_eq!(bonus[i], if known { verdict.bonus } else { 0 });
            prop_assert_eq!(i64::from(starts[i]), if known { verdict.cached_length } else { 0 });
            let rank = match draft.groups {
                // The only group follows the verdict.
                GroupSet::NONE => known.then_some(0),
                groups => groups.iter().position(|k| k as i32 == verdict.accepted),
            };
            for slot in 1..draft.slots {
                let row = draft.first_draft + slot - 1;
                // Slot 0 of a group has a row in a pass, and none in logits.
                let source = rank.map(|rank| match in_logits {
                    false => draft.first_slot + rank * draft.slots + slot,
                    true => draft.first_slot + rank * (draft.slots - 1) + slot - 1,
                });
                prop_assert_eq!(sources[row], source.map_or(-1, |source| source as i32));
                let logits_row = source.map(|source| if in_logits { source } else { row });
                prop_assert_eq!(draft_rows[row], logits_row.map_or(-1, |row| row as i32));
            }
        }
    }

    #[test]
    fn a_pass_that_follows_its_verdicts_is_the_pass_that_they_ask_for(
        sequences in prop::collection::vec((0usize..40, 0usize..8, 0usize..8, 1usize..6), 1..70),
        schedule in 0u64..4,
    ) {
        // Sequence i follows verdict i + 2, because not every verified sequence drafts.
        let pages: Vec<u32> = (0..4).collect();
        let rows = |start, group, slots| SequenceRows { pages: &pages, start, candidates: 0, groups: vec![group], slots };
        let laid_out = Pass {
            sequences: sequences.iter().map(|&(start, a, more, slots)| rows(start, a + more, slots)).collect(),
        };
        let asked_for =
            Pass { sequences: sequences.iter().map(|&(start, a, _, slots)| rows(start, a, slots)).collect() };
        let mut verdicts = vec![verdict(-1, 0, 0); 2];
        verdicts.extend(sequences.iter().map(|&(start, a, ..)| verdict(a as i32, 3, (start + a + 1) as i64)));
        let of: Vec<i32> = (2..).take(sequences.len()).collect();
        let (followed, error) = positions(&laid_out, Some((&verdicts, &of)), schedule);
        prop_assert_eq!(error, 0);
        prop_assert_eq!(&followed, &positions(&asked_for, None, schedule).0);
        // For a verdict beyond the laid-out rows, and without a verdict, the group stays in place.
        for (verdicts, of) in [(&verdicts[..], vec![0; of.len()]), (&verdicts[..2], of)] {
            let (stayed, error) = positions(&laid_out, Some((verdicts, &of)), schedule);
            prop_assert_eq!(error, 16);
            prop_assert_eq!(stayed, positions(&laid_out, None, schedule).0);
        }
    }
}

#[test]
fn drafts_that_do_not_exist() {
    let sound =
        DraftGroups { sequence: 0, groups: GroupSet::all(0), first_slot: 4, slots: 3, first_draft: 0 };
    let verdicts = [verdict(0, 9, 5)];
    let selected = |draft, new| select(&verdicts, &[draft], new, 2, 0);
    assert_eq!(selected(sound, Draft::new), (vec![9], vec![5], vec![5, 6], vec![0, 1], 0));
    assert_eq!(selected(sound, Draft::in_logits), (vec![9], vec![5], vec![4, 5], vec![4, 5], 0));
    for wrong in [
        DraftGroups { sequence: 1, ..sound },
        DraftGroups { first_draft: 1, ..sound },
        DraftGroups { first_draft: i32::MAX as usize, ..sound },
        DraftGroups { slots: 64, ..sound },
    ] {
        // Only a valid token and a valid position are written.
        assert_eq!(selected(wrong, Draft::new), (vec![0], vec![0], vec![-7, -7], vec![-7, -7], 16));
    }
}
