//! Tests that a row is independent of everything that it must not see: a change to such memory changes no bit of the
//! row. (The documented exception is a V that is not finite and that another row of the same sequence sees.)

use flexdraft::layout::AttentionShape;
use flexdraft::runtime::SimtOptions;
use flexdraft::runtime::simt::Copies;

use super::case::{Changes, Memory, Sequence, Setting, run, run_changed};
use super::sample;
use crate::halves::Kind;
use crate::processors::processors;

/// A row of a pass, by its sequence and its index within the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    sequence: usize,
    row: usize,
    /// The first and the last cached position that the row sees.
    first: usize,
    limit: usize,
    /// The index of the mask group to which the row belongs; `None` for a candidate.
    group: Option<usize>,
}

fn rows(changes: Changes, sequences: &[Sequence]) -> Vec<Row> {
    let of = |(sequence, s): (usize, &Sequence)| {
        let (start, candidates, groups, slots) = (s.start, s.candidates, s.groups.clone(), s.slots);
        (0..s.rows()).map(move |row| match row.checked_sub(candidates) {
            None => {
                Row { sequence, row, first: changes.first_seen(start + row), limit: start + row, group: None }
            }
            Some(mask) => {
                let group = mask / slots;
                let limit = start + groups[group];
                let first = changes.first_seen(limit + 1 + mask % slots);
                Row { sequence, row, first, limit, group: Some(group) }
            }
        })
    };
    sequences.iter().enumerate().flat_map(of).collect()
}

/// A change to the memory that attention reads, and the rows that see the changed memory.
struct Change {
    name: String,
    make: Box<dyn Fn(&mut Memory<'_>)>,
    seen_by: Box<dyn Fn(&Row) -> bool>,
}

/// Returns a change for each part of one sequence's memory that some row does not see.
fn changes(setting: Setting, sequences: &[Sequence], sequence: usize) -> Vec<Change> {
    let s = &sequences[sequence];
    let mut changes = Vec::new();
    let mut add = |name: String, make: Box<dyn Fn(&mut Memory<'_>)>, seen_by: Box<dyn Fn(&Row) -> bool>| {
        changes.push(Change { name: format!("{name} of sequence {sequence}"), make, seen_by });
    };
    // The changed positions are the first and the last of the prefix, each position that the pass appends, the rest of the
    // last page, which no row sees, and the positions where windows begin.
    let page_end = s.length().next_multiple_of(setting.page_size);
    let windows = setting.changes.window.map_or(0..0, |_| {
        let begins = (0..s.rows()).map(|row| setting.changes.first_seen(s.position(row)));
        let (first, last) = (begins.clone().min().unwrap_or(0), begins.max().unwrap_or(0));
        first.saturating_sub(1).max(1)..last + 1
    });
    let positions = [0, s.start - 1].into_iter().chain(windows).chain(s.start..page_end);
    for (position, tensor) in positions.flat_map(|position| [(position, 0), (position, 1)]) {
        add(
            format!("cached {} {position}", ["K", "V"][tensor]),
            Box::new(move |memory| memory.change_cached(tensor, sequence, position)),
            Box::new(move |row| row.sequence == sequence && (row.first..=row.limit).contains(&position)),
        );
    }
    for (group, slot) in (0..s.groups.len()).flat_map(|group| (0..s.slots).map(move |slot| (group, slot))) {
        let changed = s.candidates + group * s.slots + slot;
        for part in 0..3 {
            add(
                format!("{} of slot {slot} of group {group}", ["q", "K", "V"][part]),
                Box::new(move |memory| memory.change_row(part, sequence, changed)),
                Box::new(move |row| {
                    row.sequence == sequence && row.group == Some(group) && (part > 0 || row.row == changed)
                }),
            );
        }
    }
    for (candidate, part) in (0..s.candidates).flat_map(|candidate| (0..3).map(move |part| (candidate, part)))
    {
        // The kernel reads the candidates' keys and values from the cache; no row reads the copies beside the
        // candidates' q.
        add(
            format!("{} of candidate {candidate}", ["q", "the projected K", "the projected V"][part]),
            Box::new(move |memory| memory.change_row(part, sequence, candidate)),
            Box::new(move |row| row.sequence == sequence && row.row == candidate && part == 0),
        );
    }
    changes
}

/// Tests every kind of row (each candidate, and the slots of each group) in a mixed pass whose rows do not fit in one
/// tile.
#[test]
fn what_a_row_must_not_see_changes_no_bit() {
    let sequences = [
        Sequence { start: 61, candidates: 5, groups: vec![0, 1, 2, 3, 4], slots: 2, seed: 1, first: 0 },
        Sequence { start: 126, candidates: 4, groups: vec![1, 3], slots: 3, seed: 2, first: 0 },
    ];
    let variants = [
        (Kind::Bf16, 64, 6, 2, 24, Copies::Eager, None),
        (Kind::F16, 128, 3, 1, 1, Copies::Late, None),
        (Kind::F16, 64, 2, 1, 24, Copies::Late, Some(66)),
    ];
    for (processor, variant) in
        processors().flat_map(|processor| variants.map(|variant| (processor, variant)))
    {
        let (kind, head_dim, q_heads, kv_heads, multiprocessors, copies, window) = variant;
        let changes_of_model = Changes { window, ..Changes::default() };
        let all = rows(changes_of_model, &sequences);
        let usual = Setting::of(AttentionShape { q_heads, kv_heads, head_dim }).on(processor);
        let options = SimtOptions { copies, ..usual.options };
        let setting = Setting {
            kind,
            options,
            multiprocessors,
            small: head_dim == 64,
            changes: changes_of_model,
            ..usual
        };
        let before = run(setting, &sequences);
        let changes = (0..sequences.len()).flat_map(|sequence| changes(setting, &sequences, sequence));
        for Change { name, make, seen_by } in sample(changes, 13) {
            let after = run_changed(setting, &sequences, |memory| make(memory));
            for row in &all {
                let [before, after] = [&before, &after].map(|rows| &rows[row.sequence][row.row]);
                assert_eq!(before != after, seen_by(row), "{name}, and {row:?}");
            }
        }
    }
}
