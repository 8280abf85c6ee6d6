//! Tests that a row's result has the same bits regardless of the other rows, sequences and threads of the computation.

use std::collections::BTreeMap;

use flexdraft::device::cpu::{Cpu, CpuBuffer, CpuKvCache, CpuLinear, CpuVector, InstructionSet};
use flexdraft::device::{
    AttentionRows, AttentionShape, Device, LinearPart, Precision, QkTransform, Rope, RowKind, StepTables,
};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::tensor::{DType, Tensor};
use proptest::prelude::*;

use crate::support::cpu::*;
use crate::support::properties::properties;

const MAX_ROWS: usize = 40;
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn linear(device: &Cpu, layer: &CpuLinear, x: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let x = activations(device, layer.in_cols(), x);
    let mut out = device.new_logits(layer.out_cols());
    device.resize(&mut out, x.rows()).unwrap();
    device.linear(layer, &x, 0..x.rows(), &mut out).unwrap();
    bits(&out)
}

/// Multiplies each row by itself, on one thread.
fn linear_alone(device: &Cpu, layer: &CpuLinear, x: &[Vec<f32>]) -> Vec<Vec<u32>> {
    x.iter().flat_map(|row| linear(device, layer, std::slice::from_ref(row))).collect()
}

#[test]
fn product_rows_do_not_depend_on_their_number_or_on_threads() {
    // The layer with 701 output columns has enough work for several threads even with one row.
    for (in_cols, out_cols) in [(16, 6), (7, 5), (45, 61), (203, 701)] {
        let x = noise_rows(1, MAX_ROWS, in_cols);
        for dtype in DTYPES {
            let weight = weights(dtype, &[out_cols, in_cols], 2);
            let bias = weights(DType::F32, &[out_cols], 3);
            let parts = [LinearPart::new(&weight, Some(&bias))];
            let single = devices(1, Precision::F32);
            let alone: Vec<_> = single
                .iter()
                .map(|device| linear_alone(device, &device.new_linear(&parts).unwrap(), &x))
                .collect();
            for threads in [1, 2, 3] {
                for (device, alone) in devices(threads, Precision::F32).iter().zip(&alone) {
                    let layer = device.new_linear(&parts).unwrap();
                    for rows in 1..=MAX_ROWS {
                        let together = linear(device, &layer, &x[..rows]);
                        assert_eq!(together, alone[..rows], "{device:?} {dtype} {in_cols} {out_cols} {rows}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_among_many_blocks_of_rows_is_the_row_alone() {
    // The device multiplies blocks of rows whose size depends on the bytes of x: at this width, 40 rows take several
    // blocks.
    let x = noise_rows(4, MAX_ROWS, 10_001);
    let weight = weights(DType::Bf16, &[50, 10_001], 5);
    for device in devices(2, Precision::F32) {
        let layer = device.new_linear(&[LinearPart::new(&weight, None)]).unwrap();
        assert_eq!(linear(&device, &layer, &x), linear_alone(&device, &layer, &x), "{device:?}");
    }
}

#[test]
fn avx2_and_avx512_agree() {
    let x = noise_rows(6, 9, 333);
    let weight = weights(DType::Bf16, &[77, 333], 7);
    let fused: Vec<_> = devices(1, Precision::F32)
        .into_iter()
        .filter(|device| device.instruction_set() != InstructionSet::Portable)
        .map(|device| linear(&device, &device.new_linear(&[LinearPart::new(&weight, None)]).unwrap(), &x))
        .collect();
    assert!(fused.windows(2).all(|pair| pair[0] == pair[1]));

    let shape = AttentionShape { q_heads: 4, kv_heads: 2, head_dim: 40 };
    let attended: Vec<_> = devices(1, Precision::F32)
        .iter()
        .filter(|device| device.instruction_set() != InstructionSet::Portable)
        .map(|device| rows_together(device, shape, &[sequence(1, 150, 3, &[0, 2], 5)], 16))
        .collect();
    assert!(attended.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn elementwise_operations_do_not_depend_on_threads() {
    // The matrix has enough columns that the device divides the rows among threads.
    let (rows, cols) = (9, 30_000);
    let x = noise_rows(8, rows, cols);
    let y = noise_rows(9, rows, cols);
    let weight = weights(DType::F32, &[cols], 10);
    let run = |device: &Cpu| {
        let x = activations(device, cols, &x);
        let weight = device.new_vector(&weight).unwrap();
        let mut outs = [(); 3].map(|()| activations(device, cols, &y));
        device.rms_norm(&x, 0..rows, &weight, 1e-5, &mut outs[0]).unwrap();
        device.add(&x, 0..rows, &mut outs[1]).unwrap();
        device.silu_add(&x, &[4; 9], &mut outs[2]).unwrap();
        let mut gated = device.new_buffer(cols / 2);
        device.resize(&mut gated, rows).unwrap();
        device.silu_mul(&x, 0..rows, &mut gated).unwrap();
        outs.iter().chain([&gated]).map(bits).collect::<Vec<_>>()
    };
    let single: Vec<_> = devices(1, Precision::F32).iter().map(run).collect();
    for threads in [2, 3] {
        let several: Vec<_> = devices(threads, Precision::F32).iter().map(run).collect();
        assert!(several == single, "{threads} threads");
    }
}

/// Returns the given columns of a weight matrix as a matrix of their own.
fn sub_matrix(weight: &Tensor, columns: std::ops::Range<usize>) -> Tensor {
    let [rows, cols] = weight.shape() else { unreachable!() };
    let values = weight.to_f32();
    let kept = values.chunks_exact(*cols).flat_map(|row| row[columns.clone()].to_vec()).collect();
    Tensor::from_f32(&[*rows, columns.len()], kept).unwrap()
}

proptest! {
    #![proptest_config(properties(48))]

    #[test]
    fn fused_parts_and_column_ranges_are_the_parts_alone(
        in_cols in 1usize..70,
        out_cols in prop::collection::vec(1usize..90, 1..4),
        before in prop::collection::vec(0usize..5, 3),
        rows in 1usize..12,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let stored: Vec<_> = out_cols
            .iter()
            .zip(DTYPES.into_iter().zip(&before))
            .map(|(&out, (dtype, before))| weights(dtype, &[out, before + in_cols + 3], seed ^ out as u64))
            .collect();
        let bias = weights(DType::F16, &[out_cols[0]], seed);
        let parts: Vec<_> = stored
            .iter()
            .zip(&before)
            .enumerate()
            .map(|(i, (weight, &before))| LinearPart {
                weight,
                columns: Some(before..before + in_cols),
                bias: (i == 0).then_some(&bias),
            })
            .collect();
        let x = noise_rows(seed >> 12, rows, in_cols);
        for device in devices(threads, Precision::F32) {
            let fused = linear(&device, &device.new_linear(&parts).unwrap(), &x);
            let mut expected = vec![Vec::new(); rows];
            for part in &parts {
                let weight = sub_matrix(part.weight, part.columns.clone().unwrap());
                let layer = device.new_linear(&[LinearPart::new(&weight, part.bias)]).unwrap();
                for (all, part) in expected.iter_mut().zip(linear(&device, &layer, &x)) {
                    all.extend(part);
                }
            }
            prop_assert_eq!(fused, expected);
        }
    }

    #[test]
    fn rows_of_elementwise_operations_are_the_rows_alone(
        cols in 1usize..80,
        rows in 1usize..20,
        first in 0usize..20,
        seed in any::<u64>(),
        precision in prop_oneof![Just(Precision::F32), Just(Precision::Bf16)],
    ) {
        let first = first % rows;
        let x = noise_rows(seed >> 12, rows, 2 * cols);
        let y = noise_rows(seed >> 13, rows, 2 * cols);
        let owner: Vec<usize> = (0..rows).map(|r| (r * 7 + seed as usize % 5) % rows).collect();
        let weight = weights(DType::F32, &[2 * cols], seed);
        let matrix = weights(DType::Bf16, &[2 * cols, 2 * cols], seed);
        for device in devices(2, precision) {
            let weight = device.new_vector(&weight).unwrap();
            let layer = device.new_linear(&[LinearPart::new(&matrix, None)]).unwrap();
            let run = |x: &[Vec<f32>], y: &[Vec<f32>], owner: &[usize], first: usize| {
                let range = first..x.len();
                let x = activations(&device, 2 * cols, x);
                let operand = activations(&device, 2 * cols, y);
                let mut normed = activations(&device, 2 * cols, y);
                device.rms_norm(&x, range.clone(), &weight, 1e-5, &mut normed).unwrap();
                let mut added = activations(&device, 2 * cols, y);
                device.add(&x, range.clone(), &mut added).unwrap();
                let mut multiplied = device.new_buffer(cols);
                device.resize(&mut multiplied, x.rows()).unwrap();
                device.silu_mul(&x, range.clone(), &mut multiplied).unwrap();
                let mut calibrated = activations(&device, 2 * cols, y);
                device.linear_add(&layer, &x, range, &mut calibrated).unwrap();
                let mut bonus = activations(&device, 2 * cols, y);
                device.silu_add(&x, owner, &mut bonus).unwrap();
                let mut gathered = device.new_buffer(2 * cols);
                device.gather(&operand, owner, &mut gathered).unwrap();
                [normed, added, multiplied, calibrated, bonus, gathered].map(|out| bits(&out))
            };
            let together = run(&x, &y, &owner, first);
            for r in 0..rows {
                // Row r is computed alone as row 0 of two rows; row 1 is the row that `owner[r]` names, because row r
                // reads it.
                let alone = run(
                    &[x[r].clone(), x[owner[r]].clone()],
                    &[y[r].clone(), y[owner[r]].clone()],
                    &[1],
                    0,
                );
                for (operation, (together, alone)) in together.iter().zip(&alone).enumerate() {
                    // Operations 0 to 3 leave the rows before the written range unchanged.
                    if r >= first || operation >= 4 {
                        prop_assert_eq!(&together[r], &alone[0], "operation {} row {}", operation, r);
                    }
                }
            }
            let untouched = activations(&device, 2 * cols, &y);
            for out in [&together[0], &together[1], &together[3]] {
                prop_assert_eq!(&out[..first], &bits(&untouched)[..first]);
            }
        }
    }
}

/// One sequence of an attention test.
#[derive(Clone, Debug)]
struct Sequence {
    id: u64,
    /// Number of cached positions of the sequence.
    start: usize,
    candidates: usize,
    groups: Vec<usize>,
    slots: usize,
}

/// The place of a row within its sequence, which determines the row's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A token's position in the sequence, either cached or a candidate's.
    Position(usize),
    /// A mask row: slot j of mask group k.
    Slot(usize, usize),
}

impl Sequence {
    fn places(&self) -> Vec<Place> {
        let candidates = (self.start..self.start + self.candidates).map(Place::Position);
        let slots = self.groups.iter().flat_map(|&k| (0..self.slots).map(move |j| Place::Slot(k, j)));
        candidates.chain(slots).collect()
    }

    fn row(&self, place: Place, cols: usize) -> Vec<f32> {
        let seed = match place {
            Place::Position(p) => self.id * 1_000_000 + p as u64,
            Place::Slot(k, j) => self.id * 1_000_000 + 500_000 + (k * 100 + j) as u64,
        };
        noise(seed, cols)
    }
}

/// A CPU device with the operands of attention, except the rows.
struct Attention<'a> {
    device: &'a Cpu,
    shape: AttentionShape,
    norms: (CpuVector, CpuVector),
    rope: Rope,
    page_size: usize,
    cache: CpuKvCache,
}

/// The bits of the attention output of each row, by sequence id and place.
type Outputs = BTreeMap<(u64, Place), Vec<u32>>;

impl<'a> Attention<'a> {
    fn new(device: &'a Cpu, shape: AttentionShape, pages: usize, page_size: usize) -> Self {
        let norm = |seed| device.new_vector(&weights(DType::F32, &[shape.head_dim], seed)).unwrap();
        let inv_freq = (0..shape.head_dim / 2).map(|i| 0.5f32.powi(i as i32)).collect();
        let cache = device.new_cache(2, pages, page_size, shape).unwrap();
        let rope = Rope { inv_freq, scale: 1.0 };
        Self { device, shape, norms: (norm(100), norm(101)), rope, page_size, cache }
    }

    /// Writes NaN to every position of every page of the KV cache.
    fn poison(&mut self, pages: usize) {
        let all: Vec<u32> = (0..pages as u32).collect();
        let rows = vec![vec![f32::NAN; self.shape.qkv_cols()]; pages * self.page_size];
        let mut qkv = activations(self.device, self.shape.qkv_cols(), &rows);
        let sequence =
            SequenceRows { pages: &all, start: 0, candidates: rows.len(), groups: vec![], slots: 0 };
        let pass = Pass { sequences: vec![sequence] };
        self.append(&pass, RowKind::Candidates, &mut qkv);
    }

    fn append(&mut self, pass: &Pass<'_>, kind: RowKind, qkv: &mut CpuBuffer) {
        let norms = Some((&self.norms.0, &self.norms.1));
        let transform = QkTransform { shape: self.shape, norms, eps: 1e-6, rope: &self.rope };
        let mut pass = self.device.begin(StepTables::new(pass, &[]), &self.cache).unwrap().0;
        self.device.norm_rope_append(&transform, &mut pass, kind, qkv, 1, &mut self.cache).unwrap();
    }

    /// Runs attention in one pass over `sequences`, each with its pages.
    fn pass(&mut self, sequences: &[(Sequence, &[u32])]) -> Outputs {
        let pass = Pass {
            sequences: sequences
                .iter()
                .map(|(s, pages)| SequenceRows {
                    pages,
                    start: s.start,
                    candidates: s.candidates,
                    groups: s.groups.clone(),
                    slots: s.slots,
                })
                .collect(),
        };
        let places = |wanted: fn(&Place) -> bool| {
            sequences
                .iter()
                .flat_map(move |(s, _)| s.places().into_iter().filter(wanted).map(move |place| (s, place)))
        };
        let rows: Vec<_> = places(|place| matches!(place, Place::Position(_)))
            .chain(places(|place| matches!(place, Place::Slot(..))))
            .collect();
        let cols = self.shape.qkv_cols();
        let contents: Vec<_> = rows.iter().map(|(s, place)| s.row(*place, cols)).collect();
        let mut qkv = activations(self.device, cols, &contents);
        self.append(&pass, RowKind::Candidates, &mut qkv);
        self.append(&pass, RowKind::Masks, &mut qkv);
        let mut out = self.device.new_buffer(self.shape.out_cols());
        self.device.resize(&mut out, rows.len()).unwrap();
        let rows_of_pass = AttentionRows {
            pass: &self.device.begin(StepTables::new(&pass, &[]), &self.cache).unwrap().0,
            masks: true,
        };
        self.device.joint_attention(self.shape, rows_of_pass, &qkv, 1, &self.cache, &mut out).unwrap();
        rows.iter().enumerate().map(|(r, (s, place))| ((s.id, *place), row_bits(&out, r))).collect()
    }
}

/// Returns every row of the sequence, computed in a pass of its own (a mask group counts as one row) on pages in
/// ascending order.
fn rows_alone(device: &Cpu, shape: AttentionShape, s: &Sequence) -> Outputs {
    let page_size = 16;
    let pages: Vec<u32> = (0..(s.start + s.candidates).div_ceil(page_size) as u32).collect();
    let mut attention = Attention::new(device, shape, pages.len(), page_size);
    let mut outputs = Outputs::new();
    for position in 0..s.start + s.candidates {
        let one = Sequence { start: position, candidates: 1, groups: vec![], ..s.clone() };
        let output = attention.pass(&[(one, &pages)]);
        outputs.extend(output.into_iter().filter(|((_, place), _)| *place >= Place::Position(s.start)));
    }
    for &k in &s.groups {
        let group = Sequence { candidates: 0, groups: vec![k], ..s.clone() };
        outputs.extend(attention.pass(&[(group, &pages)]));
    }
    outputs
}

/// Computes all sequences in one pass, after a joint prefill in another pass, on scattered pages that held NaN before.
fn rows_together(device: &Cpu, shape: AttentionShape, sequences: &[Sequence], page_size: usize) -> Outputs {
    let counts: Vec<_> = sequences.iter().map(|s| (s.start + s.candidates).div_ceil(page_size)).collect();
    let total: usize = counts.iter().sum::<usize>() + 1;
    let mut attention = Attention::new(device, shape, total, page_size);
    attention.poison(total);
    // The sequences get every second page in descending order, then the pages between them.
    let mut free = (0..total as u32).rev().step_by(2).chain((0..total as u32 - 1).rev().step_by(2));
    let pages: Vec<Vec<u32>> = counts.iter().map(|&count| free.by_ref().take(count).collect()).collect();
    let with_pages = |sequences: Vec<Sequence>| -> Vec<(Sequence, &[u32])> {
        sequences.into_iter().zip(pages.iter().map(Vec::as_slice)).collect()
    };
    let prefill = sequences
        .iter()
        .map(|s| Sequence { start: 0, candidates: s.start, groups: vec![], ..s.clone() })
        .collect();
    attention.pass(&with_pages(prefill));
    attention.pass(&with_pages(sequences.to_vec()))
}

fn sequence(id: u64, start: usize, candidates: usize, groups: &[usize], slots: usize) -> Sequence {
    Sequence { id, start, candidates, groups: groups.to_vec(), slots }
}

#[test]
fn attention_rows_do_not_depend_on_batch_groups_pages_or_threads() {
    let sequences = [
        sequence(1, 130, 5, &[0, 1, 2, 3, 4], 6),
        sequence(2, 1, 1, &[0], 4),
        sequence(3, 62, 4, &[1, 3], 5),
        sequence(4, 300, 1, &[], 0),
        sequence(5, 0, 3, &[2], 1),
        sequence(6, 64, 0, &[], 3),
    ];
    for (q_heads, kv_heads, head_dim) in [(4, 2, 16), (6, 2, 40), (3, 1, 150), (2, 2, 6)] {
        let shape = AttentionShape { q_heads, kv_heads, head_dim };
        for precision in [Precision::F32, Precision::Bf16] {
            let alone: Vec<Outputs> = devices(1, precision)
                .iter()
                .map(|device| sequences.iter().flat_map(|s| rows_alone(device, shape, s)).collect())
                .collect();
            for (threads, page_size) in [(1, 1), (2, 7), (3, 16), (2, 64), (1, 100)] {
                for (device, alone) in devices(threads, precision).iter().zip(&alone) {
                    let together = rows_together(device, shape, &sequences, page_size);
                    assert_eq!(together.len(), alone.len());
                    for (place, row) in &together {
                        assert!(row.iter().all(|&x| !f32::from_bits(x).is_nan()), "{place:?} saw NaN");
                        assert_eq!(Some(row), alone.get(place), "{place:?} {device:?} {shape:?} {page_size}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn attention_rows_of_any_pass_are_the_rows_alone(
        heads in (1usize..4, 1usize..4, 1usize..20),
        drawn in prop::collection::vec((0usize..150, 0usize..6, any::<u64>(), 1usize..7), 1..5),
        page_size in 1usize..70,
        threads in 1usize..4,
    ) {
        let (kv_heads, ratio, half_dim) = heads;
        let shape = AttentionShape { q_heads: kv_heads * ratio, kv_heads, head_dim: 2 * half_dim };
        let sequences: Vec<_> = drawn
            .iter()
            .enumerate()
            .map(|(id, &(start, candidates, groups, slots))| {
                let groups: Vec<_> = (0..candidates).filter(|k| groups >> k & 1 == 1).collect();
                sequence(id as u64, start, candidates, &groups, slots)
            })
            .collect();
        for (device, single) in devices(threads, Precision::F32).iter().zip(devices(1, Precision::F32)) {
            let alone: Outputs = sequences.iter().flat_map(|s| rows_alone(&single, shape, s)).collect();
            prop_assert_eq!(rows_together(device, shape, &sequences, page_size), alone);
        }
    }
}
