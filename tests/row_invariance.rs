//! A row's result has the same bits whatever other rows, and however many threads, compute with it.

#![cfg(feature = "runner")]

mod common;

use common::models::{Spec, spec};
use common::runs::cpu;
use flexdraft::device::cpu::{Buffer, Cpu, CpuOptions, InstructionSet};
use flexdraft::device::{Device, LinearPart, Precision};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::model::Model;
use flexdraft::tensor::{DType, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn persistence(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: ProptestConfig::default().cases.min(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    }
}

/// Every instruction set of the machine, on 1, 2 and 3 threads.
fn devices() -> Vec<(InstructionSet, usize, Cpu)> {
    let device = |set, threads| {
        let options = CpuOptions { threads, instruction_set: Some(set), ..CpuOptions::default() };
        (set, threads, Cpu::new(options).unwrap())
    };
    let sets = InstructionSet::available();
    sets.iter().flat_map(|&set| (1..=3).map(move |threads| device(set, threads))).collect()
}

/// Numbers in [−1, 1) with full mantissas, so that any other order of summation shows.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn tensor(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let values = numbers(seed, shape.iter().product());
    match dtype {
        DType::F32 => Tensor::from_f32(shape, values),
        DType::F16 => Tensor::from_f16(shape, values.into_iter().map(f16::from_f32).collect()),
        DType::Bf16 => Tensor::from_bf16(shape, values.into_iter().map(bf16::from_f32).collect()),
    }
    .unwrap()
}

/// A buffer that holds `rows`.
fn buffer(device: &Cpu, rows: &[&[f32]]) -> Buffer {
    let mut buffer = device.new_logits(rows[0].len());
    device.resize(&mut buffer, rows.len()).unwrap();
    for (index, row) in rows.iter().enumerate() {
        device.edit_row(&mut buffer, index, &mut |to| to.copy_from_slice(row)).unwrap();
    }
    buffer
}

fn bits(buffer: &Buffer, row: usize) -> Vec<u32> {
    buffer.row(row).unwrap().iter().map(|x| x.to_bits()).collect()
}

struct Layer {
    weights: Vec<Tensor>,
    biases: Vec<Tensor>,
    columns: Option<std::ops::Range<usize>>,
}

impl Layer {
    fn new(dtype: DType, inputs: usize, outputs: &[usize], column_range: bool) -> Self {
        let stored = if column_range { inputs + 9 } else { inputs };
        let indexed = || outputs.iter().zip(1u64..);
        Self {
            weights: indexed().map(|(&n, seed)| tensor(dtype, &[n, stored], seed)).collect(),
            biases: indexed().map(|(&n, seed)| tensor(dtype, &[n], 100 + seed)).collect(),
            columns: column_range.then_some(5..5 + inputs),
        }
    }

    fn product(&self, device: &Cpu, rows: &[&[f32]]) -> Buffer {
        let part = |(weight, bias)| LinearPart { weight, columns: self.columns.clone(), bias: Some(bias) };
        let parts: Vec<_> = self.weights.iter().zip(&self.biases).map(part).collect();
        let layer = device.new_linear(&parts).unwrap();
        let x = buffer(device, rows);
        let mut out = device.new_logits(self.weights.iter().map(|w| w.shape()[0]).sum());
        device.resize(&mut out, rows.len()).unwrap();
        device.linear(&layer, &x, 0..rows.len(), &mut out).unwrap();
        out
    }

    /// In f64, with Σ |w·x| beside it.
    fn exact(&self, row: &[f32]) -> Vec<(f64, f64)> {
        let mut out = Vec::new();
        for (weight, bias) in self.weights.iter().zip(&self.biases) {
            let stored = weight.shape()[1];
            let range = self.columns.clone().unwrap_or(0..stored);
            for (w, bias) in weight.to_f32().chunks_exact(stored).zip(bias.to_f32()) {
                let products = w[range.clone()].iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let magnitude: f64 = products.clone().map(f64::abs).sum();
                out.push((products.sum::<f64>() + f64::from(bias), magnitude + f64::from(bias).abs()));
            }
        }
        out
    }
}

/// Row r of M rows equals the row alone, M = 1..=40, whatever the weights' type, the machine's
/// instruction set and the number of threads.
#[test]
fn products_for_up_to_forty_rows() {
    const ROWS: usize = 40;
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for (inputs, outputs, column_range) in [
            (64, vec![48], false),
            (37, vec![19, 5, 5], false),
            (129, vec![33], true),
            (1000, vec![301], false),
        ] {
            let layer = Layer::new(dtype, inputs, &outputs, column_range);
            let values = numbers(77, ROWS * inputs);
            let rows: Vec<&[f32]> = values.chunks_exact(inputs).collect();
            let mut fused: Option<Vec<Vec<u32>>> = None;
            for (set, threads, device) in devices() {
                let alone: Vec<Vec<u32>> =
                    rows.iter().map(|row| bits(&layer.product(&device, &[row]), 0)).collect();
                for count in 1..=ROWS {
                    let together = layer.product(&device, &rows[..count]);
                    for (row, alone) in alone[..count].iter().enumerate() {
                        let name = format!("{set:?}, {threads} threads, {dtype}, row {row} of {count}");
                        assert_eq!(&bits(&together, row), alone, "{name}");
                    }
                }
                // Instruction sets that fuse multiply and add agree with each other, too.
                if set != InstructionSet::Portable {
                    assert_eq!(fused.get_or_insert_with(|| alone.clone()), &alone, "{set:?}");
                }
                for (row, alone) in rows.iter().zip(&alone) {
                    for (found, (expected, magnitude)) in alone.iter().zip(layer.exact(row)) {
                        let error = (f64::from(f32::from_bits(*found)) - expected).abs();
                        assert!(error <= 1e-6 * magnitude, "{set:?}, {dtype}: {error} of {magnitude}");
                    }
                }
            }
        }
    }
}

/// A sequence of a pass: what it has in the cache, its candidates and its groups.
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

/// Hidden states after a pass over `places` (as logits), by row: candidates and groups of each place.
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
    // A page between any two, which nothing may read.
    let total = places.iter().map(|p| per_sequence(p) + 1).sum::<usize>() + 1;
    let mut cache = model.new_cache(total, page_size).unwrap();
    let mut tables = Vec::new();
    let mut next = 0u32;
    for place in places {
        tables.push((next..next + per_sequence(place) as u32).rev().collect::<Vec<_>>());
        next += per_sequence(place) as u32 + 1;
    }
    if poison {
        // Fill every page with NaN first: what is not seen must not matter.
        let mut nan = target.clone();
        nan.embed = Tensor::from_f32(target.embed.shape(), vec![f32::NAN; spec.vocab * spec.hidden]).unwrap();
        let nan = Model::new(cpu(1), &nan, None).unwrap();
        let all: Vec<u32> = (0..total as u32).collect();
        let candidates = total * page_size;
        let sequence = SequenceRows { pages: &all, start: 0, candidates, groups: vec![], slots: 1 };
        let pass = Pass { sequences: vec![sequence] };
        nan.forward(&pass, &vec![0; candidates], &mut cache, &mut nan.new_workspace()).unwrap();
    }
    let mut run = |sequences: Vec<SequenceRows<'_>>, work: &mut _| {
        let tokens: Vec<u32> =
            sequences.iter().flat_map(|s| (s.start..s.start + s.candidates).map(token)).collect();
        model.forward(&Pass { sequences }, &tokens, &mut cache, work).unwrap();
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
    #![proptest_config(persistence(48))]

    /// Whole passes: a sequence alone, among others, with other pages and page sizes, with more threads,
    /// in a cache that held NaN: the same bits, candidates and groups.
    #[test]
    fn sequences_of_a_pass(
        spec in spec(),
        places in prop::collection::vec(place(), 2..5),
        page_size in prop::sample::select(vec![1usize, 3, 16, 64]),
        bf16 in any::<bool>(),
    ) {
        let device = |threads| {
            let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
            Cpu::new(CpuOptions { threads, precision, ..CpuOptions::default() }).unwrap()
        };
        let together = run_pass(&spec, device(2), page_size, &places, true);
        for (place, rows) in places.iter().zip(&together) {
            let alone = run_pass(&spec, device(1), 16, std::slice::from_ref(place), false);
            prop_assert_eq!(&alone[0], rows);
        }
    }

    /// A candidate of a joint pass equals the row of an autoregressive pass, and each group what it is
    /// without the other groups.
    #[test]
    fn rows_of_a_sequence(spec in spec(), place in place()) {
        let joint = run_pass(&spec, cpu(1), 16, std::slice::from_ref(&place), false).remove(0);
        for i in 0..place.candidates {
            let single = Place { cached: place.cached + i, candidates: 1, groups: vec![], slots: 1 };
            let row = run_pass(&spec, cpu(1), 16, &[single], false).remove(0).remove(0);
            prop_assert_eq!(&row, &joint[i]);
        }
        for (index, &k) in place.groups.iter().enumerate() {
            // The candidates up to k are clean by then: the group follows the last of them.
            let alone = Place { cached: place.cached + k, candidates: 1, groups: vec![0], slots: place.slots };
            let rows = run_pass(&spec, cpu(1), 16, &[alone], false).remove(0);
            let first = place.candidates + index * place.slots;
            prop_assert_eq!(&rows[1..], &joint[first..first + place.slots]);
        }
    }
}
