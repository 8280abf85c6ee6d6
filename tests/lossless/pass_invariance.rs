//! Tests that the rows of a sequence have the same bits in a pass of their own and in a pass with other sequences.

use flexdraft::device::cpu::{Cpu, CpuBuffer, CpuOptions};
use flexdraft::device::{Precision, StepTables};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::model::Model;
use flexdraft::tensor::Tensor;
use proptest::prelude::*;

use crate::support::models::{Shapes, Spec, spec};
use crate::support::properties::properties;
use crate::support::runs::cpu;

fn bits(buffer: &CpuBuffer, row: usize) -> Vec<u32> {
    buffer.row(row).unwrap().iter().map(|x| x.to_bits()).collect()
}

/// A random sequence of a pass: the number of its cached positions, of its candidates, and its mask groups.
#[derive(Clone, Debug)]
struct Place {
    cached: usize,
    candidates: usize,
    groups: Vec<usize>,
    slots: usize,
}

prop_compose! {
    fn place()(
        cached in 0usize..150,
        candidates in 1usize..6,
        groups in any::<u8>(),
        slots in 1usize..6,
    ) -> Place {
        let groups = (0..candidates).filter(|k| groups >> k & 1 == 1).collect();
        Place { cached, candidates, groups, slots }
    }
}

/// Returns the bits of the logits of every row in a pass over the sequences `places`: for each sequence, the rows of
/// its candidates and of its mask groups.
fn run_pass(
    spec: &Spec,
    device: Cpu,
    page_size: usize,
    places: &[Place],
    poison: bool,
) -> Vec<Vec<Vec<u32>>> {
    let (target, drafter) = spec.weights();
    let model = Model::new(device, &target, Some(&drafter)).unwrap();
    let (mut work, mut logits) = (model.new_workspace(), model.new_logits());
    let token = |position: usize| (position * position + 1) as u32 % spec.vocab as u32;
    let per_sequence = |p: &Place| (p.cached + p.candidates).div_ceil(page_size);
    // An unused page lies between any two sequences; no row may read it.
    let total = places.iter().map(|p| per_sequence(p) + 1).sum::<usize>() + 1;
    let mut cache = model.new_cache(total, page_size).unwrap();
    let mut tables = Vec::new();
    let mut next = 0u32;
    for place in places {
        tables.push((next..next + per_sequence(place) as u32).rev().collect::<Vec<_>>());
        next += per_sequence(place) as u32 + 1;
    }
    if poison {
        // Fills every page with NaN first, because positions that no row sees must not matter.
        let mut nan = target.clone();
        nan.embed = Tensor::from_f32(target.embed.shape(), vec![f32::NAN; spec.vocab * spec.hidden]).unwrap();
        let nan = Model::new(cpu(1), &nan, None).unwrap();
        let all: Vec<u32> = (0..total as u32).collect();
        let candidates = total * page_size;
        let sequence = SequenceRows { pages: &all, start: 0, candidates, groups: vec![], slots: 1 };
        let pass = Pass { sequences: vec![sequence] };
        nan.forward(StepTables::new(&pass, &vec![0; candidates]), &mut cache, &mut nan.new_workspace())
            .unwrap();
    }
    let mut run = |sequences: Vec<SequenceRows<'_>>, work: &mut _| {
        let tokens: Vec<u32> =
            sequences.iter().flat_map(|s| (s.start..s.start + s.candidates).map(token)).collect();
        model.forward(StepTables::new(&Pass { sequences }, &tokens), &mut cache, work).unwrap();
    };
    for (place, pages) in places.iter().zip(&tables).filter(|(place, _)| place.cached > 0) {
        let candidates = place.cached;
        run(vec![SequenceRows { pages, start: 0, candidates, groups: vec![], slots: 1 }], &mut work);
    }
    let sequences: Vec<SequenceRows<'_>> = places
        .iter()
        .zip(&tables)
        .map(|(place, pages)| SequenceRows {
            pages,
            start: place.cached,
            candidates: place.candidates,
            groups: place.groups.clone(),
            slots: place.slots,
        })
        .collect();
    let pass = Pass { sequences: sequences.clone() };
    run(sequences, &mut work);
    let rows: Vec<usize> = (0..pass.total_rows()).collect();
    model.logits(&rows, &mut work, &mut logits).unwrap();
    let row_bits: Vec<Vec<u32>> = rows.iter().map(|&row| bits(&logits, row)).collect();
    let by_place = |index: usize| {
        let first = pass.first_candidate(index);
        let groups = places[index].groups.iter().flat_map(|&k| pass.group_rows(index, k).unwrap());
        (first..first + places[index].candidates).chain(groups).map(|row| row_bits[row].clone()).collect()
    };
    (0..places.len()).map(by_place).collect()
}

proptest! {
    #![proptest_config(properties(48))]

    /// A sequence's candidates and groups have the same bits alone and among other sequences, with other pages and page
    /// sizes, with more threads, and in a cache that held NaN.
    #[test]
    fn sequences_of_a_pass(
        spec in spec(Shapes::SMALL),
        places in prop::collection::vec(place(), 2..5),
        page_size in prop::sample::select(vec![1usize, 3, 16, 64]),
        bf16 in any::<bool>(),
    ) {
        let device = |threads| {
            let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
            Cpu::new(CpuOptions { threads, precision }).unwrap()
        };
        let together = run_pass(&spec, device(2), page_size, &places, true);
        for (place, rows) in places.iter().zip(&together) {
            let alone = run_pass(&spec, device(1), 16, std::slice::from_ref(place), false);
            prop_assert_eq!(&alone[0], rows);
        }
    }

    /// A candidate of a joint pass equals the row of an autoregressive pass, and each group equals the same group in a
    /// pass without the other groups.
    #[test]
    fn rows_of_a_sequence(spec in spec(Shapes::SMALL), place in place()) {
        let joint = run_pass(&spec, cpu(1), 16, std::slice::from_ref(&place), false).remove(0);
        for (i, expected) in joint[..place.candidates].iter().enumerate() {
            let single = Place { cached: place.cached + i, candidates: 1, groups: vec![], slots: 1 };
            let row = run_pass(&spec, cpu(1), 16, &[single], false).remove(0).remove(0);
            prop_assert_eq!(&row, expected);
        }
        for (index, &k) in place.groups.iter().enumerate() {
            // In the pass of group k alone, the candidates up to k count as accepted, so the group follows the last of
            // them.
            let alone = Place { cached: place.cached + k, candidates: 1, groups: vec![0], slots: place.slots };
            let rows = run_pass(&spec, cpu(1), 16, &[alone], false).remove(0);
            let first = place.candidates + index * place.slots;
            prop_assert_eq!(&rows[1..], &joint[first..first + place.slots]);
        }
    }
}
