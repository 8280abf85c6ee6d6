//! The selection of the next draft by a verdict, on a GPU and on the SIMT emulator.

use bytemuck::Zeroable;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::kernels::glue::RopeTable;
use flexdraft::kernels::selection::{Draft, DraftGroups, FollowVerdicts, SelectDrafts};
use flexdraft::kernels::{Paging, PassTables};
use flexdraft::layout::{GroupSet, Pass, SequenceRows};
use flexdraft::runtime::Runtime;

use crate::bench::Bench;
use crate::{Case, close, compare};

struct Selection;

impl Case for Selection {
    /// The tables of `select_drafts` one after the other, and the turns of a pass that follows its verdicts.
    type Output = (Vec<i32>, Vec<f32>);

    fn run<B: Runtime>(&self, bench: &Bench<B>) -> Self::Output {
        let Bench { kernels, stream } = bench;
        let runtime = kernels.runtime();
        // (n, a, slots) of each sequence; the last has no verdict.
        let sequences = [(3, 0, 4), (20, 2, 2), (9, 1, 5), (30, -1, 3)];
        let verdicts: Vec<Verdict> = sequences
            .iter()
            .map(|&(start, accepted, _)| Verdict {
                accepted,
                bonus: 7 + start,
                cached_length: i64::from(start + accepted + 1),
                ..Verdict::zeroed()
            })
            .collect();
        let (mut table, mut rows) = (Vec::new(), 0);
        for (sequence, groups) in [(2, GroupSet::all(3)), (0, GroupSet::NONE), (1, GroupSet::all(1))] {
            let slots = sequences[sequence].2;
            let (first_slot, first_draft) = (10 * sequence, rows);
            table
                .push(Draft::new(&DraftGroups { sequence, groups, first_slot, slots, first_draft }).unwrap());
            rows += slots - 1;
        }
        let drafts = table.len();
        let (table, verdicts) = (bench.memory(&table), bench.memory(&verdicts));
        let (mut bonus, mut starts) = (bench.memory(&vec![-7; drafts]), bench.memory(&vec![-7; drafts]));
        let (mut sources, mut draft_rows) = (bench.memory(&vec![-7; rows]), bench.memory(&vec![-7; rows]));
        let args = SelectDrafts {
            drafts: runtime.view(stream, &table),
            verdicts: runtime.view(stream, &verdicts),
            bonus: runtime.view_mut(stream, &mut bonus),
            starts: runtime.view_mut(stream, &mut starts),
            sources: runtime.view_mut(stream, &mut sources),
            draft_rows: runtime.view_mut(stream, &mut draft_rows),
            error: None,
        };
        kernels.select_drafts(stream, &args).unwrap();
        drop(args);
        let selected = [(&bonus, drafts), (&starts, drafts), (&sources, rows), (&draft_rows, rows)];
        let selected = selected.map(|(memory, len)| bench.host(memory, len)).concat();

        let pages: Vec<u32> = (0..3).collect();
        let laid_out = |&(start, _, slots): &(i32, i32, usize)| {
            let start = start as usize;
            SequenceRows { pages: &pages, start, candidates: 0, groups: vec![3], slots }
        };
        let pass = Pass { sequences: sequences.iter().map(laid_out).collect() };
        let mut tables = PassTables::new(runtime, stream, sequences.len(), pages.len()).unwrap();
        tables.upload(runtime, stream, &pass, Paging { pages: pages.len(), page_size: 16 }).unwrap();
        let (of, mut error) = (bench.memory(&[0, 1, 2, 3]), bench.memory(&[0u32]));
        let args = FollowVerdicts {
            pass: &mut tables,
            sequences: runtime.view(stream, &of),
            verdicts: runtime.view(stream, &verdicts),
            error: Some(runtime.view_mut(stream, &mut error)),
        };
        kernels.follow_verdicts(stream, args).unwrap();
        assert_eq!(bench.host(&error, 1), [16]);
        let (inv_freq, mut cos_sin) =
            (bench.memory(&[0.01f32]), bench.memory(&vec![0f32; 2 * tables.rows()]));
        let args = RopeTable {
            pass: &tables,
            inv_freq: runtime.view(stream, &inv_freq),
            scale: 1.0,
            cos_sin: runtime.view_mut(stream, &mut cos_sin),
        };
        kernels.rope_table(stream, &args).unwrap();
        drop(args);
        (selected, bench.host(&cos_sin, 2 * tables.rows()))
    }
}

#[test]
fn agrees_with_the_simt_host() {
    compare(Selection, |expected, found| {
        assert_eq!(expected.0, found.0);
        close("cos_sin", &found.1, &expected.1, 1e-5);
    });
}
