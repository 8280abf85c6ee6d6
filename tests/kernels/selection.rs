//! Tests of the kernels that select the next draft's rows by verdicts: they must agree with the same selection on the
//! host.

use bytemuck::Zeroable;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::rope::RopeTable;
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{KernelError, Paging, PassTables};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::{Checking, Copies};
use proptest::prelude::*;

use crate::processors::{Bench, Processor, processors, runtimes_agree};
use crate::support::close::close;
use crate::support::properties::properties;
use crate::support::simt_variant::checking;

/// The outputs of `select_drafts`: bonus tokens, starts, sources, draft rows, and the error word.
type Selected = (Vec<i32>, Vec<i32>, Vec<i32>, Vec<i32>, u32);

type MakeDraft = fn(&DraftGroups) -> Result<Draft, KernelError>;

fn bench(processor: Processor, schedule: u64) -> Bench {
    let checking = checking(Checking::Accesses);
    Bench::on(processor, SimtOptions { checking, copies: Copies::Eager, schedule })
}

fn select(
    bench: &Bench,
    verdicts: &[Verdict],
    drafts: &[DraftGroups],
    new: MakeDraft,
    rows: usize,
) -> Selected {
    let table: Vec<Draft> = drafts.iter().map(|draft| new(draft).unwrap()).collect();
    let (table, verdicts) = (bench.memory(&table), bench.memory(verdicts));
    let [mut bonus, mut starts] = [(); 2].map(|()| bench.memory(&vec![-7; drafts.len()]));
    let [mut sources, mut draft_rows] = [(); 2].map(|()| bench.memory(&vec![-7; rows]));
    let mut error = bench.memory(&[0]);
    let args = SelectDrafts {
        drafts: bench.view(&table),
        verdicts: bench.view(&verdicts),
        bonus: bench.view_mut(&mut bonus),
        starts: bench.view_mut(&mut starts),
        sources: bench.view_mut(&mut sources),
        draft_rows: bench.view_mut(&mut draft_rows),
        error: Some(bench.view_mut(&mut error)),
    };
    bench.kernels.select_drafts(&bench.stream, &args).unwrap();
    drop(args);
    let [bonus, starts, sources, draft_rows] =
        [bonus, starts, sources, draft_rows].map(|memory| bench.host(&memory));
    (bonus, starts, sources, draft_rows, bench.host(&error)[0])
}

/// Returns the rotations of a pass's rows after its mask groups have followed verdicts, and the error word.
fn positions(bench: &Bench, pass: &Pass<'_>, follow: Option<(&[Verdict], &[i32])>) -> (Vec<f32>, u32) {
    let Bench { kernels, stream } = bench;
    let mut tables = PassTables::new(bench.runtime(), stream, pass.sequences.len(), 4).unwrap();
    tables.upload(bench.runtime(), stream, pass, Paging { pages: 4, page_size: 16 }).unwrap();
    let mut error = bench.memory(&[0]);
    if let Some((verdicts, of)) = follow {
        let (verdicts, of) = (bench.memory(verdicts), bench.memory(of));
        let args = FollowVerdicts {
            pass: &mut tables,
            sequences: bench.view(&of),
            verdicts: bench.view(&verdicts),
            error: Some(bench.view_mut(&mut error)),
        };
        kernels.follow_verdicts(stream, args).unwrap();
    }
    let (inv_freq, mut cos_sin) = (bench.memory(&[0.01]), bench.memory(&vec![0.0; 2 * tables.rows()]));
    let args = RopeTable {
        pass: &tables,
        inv_freq: bench.view(&inv_freq),
        scale: 1.0,
        cos_sin: bench.view_mut(&mut cos_sin),
    };
    kernels.rope_table(stream, &args).unwrap();
    drop(args);
    (bench.host(&cos_sin), bench.host(&error)[0])
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
        (in_logits, predicting_next) in prop::sample::select(&[(true, false), (false, false), (false, true)][..]),
        schedule in 0u64..4,
    ) {
        // The drafts are in the reverse order of the sequences, so that their order differs from the order of the
        // verdicts.
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
        let new: MakeDraft = match (in_logits, predicting_next) {
            (true, _) => Draft::in_logits,
            (false, true) => Draft::predicting_next,
            (false, false) => Draft::new,
        };
        for processor in processors() {
            let bench = bench(processor, schedule);
            let (bonus, starts, sources, draft_rows, error) = select(&bench, &verdicts, &drafts, new, rows);
            prop_assert_eq!(error, 0);
            for (i, draft) in drafts.iter().enumerate() {
                let verdict = &verdicts[draft.sequence];
                let known = verdict.accepted >= 0;
                prop_assert_eq!(bonus[i], if known { verdict.bonus } else { 0 });
                prop_assert_eq!(i64::from(starts[i]), if known { verdict.cached_length } else { 0 });
                let rank = match draft.groups {
                    // An empty group set stands for a single group that has followed the verdict.
                    GroupSet::NONE => known.then_some(0),
                    groups => groups.iter().position(|k| k as i32 == verdict.accepted),
                };
                for slot in 1..draft.slots {
                    let row = draft.first_draft + slot - 1;
                    // Slot 0 of a mask group has a row in the pass, but no row of logits.
                    let source = rank.map(|rank| match in_logits {
                        false => draft.first_slot + rank * draft.slots + slot - usize::from(predicting_next),
                        true => draft.first_slot + rank * (draft.slots - 1) + slot - 1,
                    });
                    prop_assert_eq!(sources[row], source.map_or(-1, |source| source as i32));
                    let logits_row = source.map(|source| if in_logits { source } else { row });
                    prop_assert_eq!(draft_rows[row], logits_row.map_or(-1, |row| row as i32));
                }
            }
        }
    }

    #[test]
    fn a_pass_that_follows_its_verdicts_is_the_pass_that_they_ask_for(
        sequences in prop::collection::vec((0usize..40, 0usize..8, 0usize..8, 1usize..6), 1..70),
        schedule in 0u64..4,
    ) {
        // Sequence i follows verdict i + 2, because verdicts 0 and 1 belong to sequences that do not draft.
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
        for processor in processors() {
            let bench = bench(processor, schedule);
            let (followed, error) = positions(&bench, &laid_out, Some((&verdicts, &of)));
            prop_assert_eq!(error, 0);
            prop_assert_eq!(&followed, &positions(&bench, &asked_for, None).0);
            // If the verdict asks for a position beyond the laid-out rows, and if the sequence has no verdict, the
            // group stays in place.
            for (verdicts, of) in [(&verdicts[..], vec![0; of.len()]), (&verdicts[..2], of.clone())] {
                let (stayed, error) = positions(&bench, &laid_out, Some((verdicts, &of)));
                prop_assert_eq!(error, 16);
                prop_assert_eq!(stayed, positions(&bench, &laid_out, None).0);
            }
        }
    }
}

#[test]
fn drafts_that_do_not_exist() {
    for processor in processors() {
        check_drafts_that_do_not_exist(&bench(processor, 0));
    }
}

fn check_drafts_that_do_not_exist(bench: &Bench) {
    let sound =
        DraftGroups { sequence: 0, groups: GroupSet::all(0), first_slot: 4, slots: 3, first_draft: 0 };
    let verdicts = [verdict(0, 9, 5)];
    let selected = |draft, new| select(bench, &verdicts, &[draft], new, 2);
    assert_eq!(selected(sound, Draft::new), (vec![9], vec![5], vec![5, 6], vec![0, 1], 0));
    assert_eq!(selected(sound, Draft::in_logits), (vec![9], vec![5], vec![4, 5], vec![4, 5], 0));
    for wrong in [
        DraftGroups { sequence: 1, ..sound },
        DraftGroups { first_draft: 1, ..sound },
        DraftGroups { first_draft: i32::MAX as usize, ..sound },
        DraftGroups { slots: 64, ..sound },
    ] {
        // For an invalid draft, the kernel writes the valid token 0 and the valid position 0, and nothing else.
        assert_eq!(selected(wrong, Draft::new), (vec![0], vec![0], vec![-7, -7], vec![-7, -7], 16));
    }
}

/// Returns the outputs of `select_drafts` one after the other, and the rotations of a pass that follows the verdicts.
fn selection(bench: &Bench) -> (Vec<i32>, Vec<f32>) {
    // Each sequence has its position n, its accepted length a and its slots; the last sequence has no verdict.
    let sequences = [(3, 0, 4), (20, 2, 2), (9, 1, 5), (30, -1, 3)];
    let verdicts: Vec<Verdict> = sequences
        .iter()
        .map(|&(start, accepted, _)| verdict(accepted, 7 + start, i64::from(start + accepted + 1)))
        .collect();
    let (mut drafts, mut rows) = (Vec::new(), 0);
    for (sequence, groups) in [(2, GroupSet::all(3)), (0, GroupSet::NONE), (1, GroupSet::all(1))] {
        let slots = sequences[sequence].2;
        drafts.push(DraftGroups { sequence, groups, first_slot: 10 * sequence, slots, first_draft: rows });
        rows += slots - 1;
    }
    let (bonus, starts, sources, draft_rows, error) = select(bench, &verdicts, &drafts, Draft::new, rows);
    assert_eq!(error, 0);
    let pages: Vec<u32> = (0..3).collect();
    let laid_out = |&(start, _, slots): &(i32, i32, usize)| {
        let start = start as usize;
        SequenceRows { pages: &pages, start, candidates: 0, groups: vec![3], slots }
    };
    let pass = Pass { sequences: sequences.iter().map(laid_out).collect() };
    let (cos_sin, error) = positions(bench, &pass, Some((&verdicts, &[0, 1, 2, 3])));
    assert_eq!(error, 16);
    ([bonus, starts, sources, draft_rows].concat(), cos_sin)
}

#[test]
fn is_the_same_on_every_runtime() {
    runtimes_agree(selection, |expected, found| {
        assert_eq!(expected.0, found.0);
        close("cos_sin", &found.1, &expected.1, 1e-5);
    });
}
