//! Tests that operands whose shapes do not match give a typed error that names the operand.

use flexdraft::device::cpu::{Cpu, CpuBuffer, CpuKvCache, CpuOptions};
use flexdraft::device::{
    AttentionRows, AttentionShape, Device, DeviceError, LinearPart, Precision, QkTransform, Rope, RowKind,
    StepTables,
};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::tensor::{DType, Tensor};

use crate::support::cpu::*;

const SHAPE: AttentionShape = AttentionShape { q_heads: 2, kv_heads: 1, head_dim: 4 };

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 1, precision: Precision::F32 }).unwrap()
}

fn message<T>(result: Result<T, DeviceError>) -> String {
    result.err().unwrap().to_string()
}

fn zeros(device: &Cpu, rows: usize, cols: usize) -> CpuBuffer {
    activations(device, cols, &vec![vec![0.0; cols]; rows])
}

#[test]
fn layers_and_vectors() {
    let device = cpu();
    let matrix = weights(DType::F32, &[3, 4], 1);
    let wider = weights(DType::F32, &[3, 5], 1);
    let vector = weights(DType::F32, &[3], 1);
    let part = |columns| LinearPart { weight: &matrix, columns, bias: None };
    let new = |parts: &[LinearPart<'_>]| device.new_linear(parts);
    assert_eq!(message(new(&[])), "new_linear: parts has shape [0], expected [1]");
    assert_eq!(
        message(new(&[LinearPart::new(&vector, None)])),
        "new_linear: weight has shape [3], expected [3, 1]"
    );
    assert_eq!(
        message(new(&[part(None), LinearPart::new(&wider, None)])),
        "new_linear: weight has shape [3, 5], expected [3, 4]"
    );
    assert!(new(&[part(None), LinearPart { weight: &wider, columns: Some(1..5), bias: None }]).is_ok());
    assert_eq!(
        message(new(&[part(Some(2..5))])),
        "new_linear: last column 5 is out of range, the limit is 5"
    );
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = part(Some(3..2));
    assert_eq!(message(new(&[reversed])), "new_linear: first column 3 is out of range, the limit is 3");
    let bias = weights(DType::F32, &[4], 1);
    assert_eq!(
        message(new(&[LinearPart::new(&matrix, Some(&bias))])),
        "new_linear: bias has shape [4], expected [3]"
    );
    let endless = Tensor::from_f32(&[usize::MAX / 2 + 1, 0], vec![]).unwrap();
    let endless = LinearPart::new(&endless, None);
    assert!(matches!(new(&[endless.clone(), endless]), Err(DeviceError::OutOfRange { .. })));
    assert_eq!(message(device.new_vector(&matrix)), "new_vector: tensor has shape [3, 4], expected [12]");
}

#[test]
fn row_operations() {
    let device = cpu();
    let layer = device.new_linear(&[LinearPart::new(&weights(DType::F32, &[3, 4], 1), None)]).unwrap();
    let matrix = weights(DType::F32, &[3, 4], 1);
    let fused = device.new_linear(&[LinearPart::new(&matrix, None), LinearPart::new(&matrix, None)]).unwrap();
    let norm = device.new_vector(&weights(DType::F32, &[4], 1)).unwrap();
    let (x, mut three, mut four) = (zeros(&device, 5, 4), zeros(&device, 2, 3), zeros(&device, 2, 4));
    assert_eq!(
        message(device.linear(&layer, &x, 0..1, &mut four)),
        "linear: out has shape [2, 4], expected [2, 3]"
    );
    assert_eq!(
        message(device.linear_add(&layer, &x, 0..3, &mut three)),
        "linear_add: row 2 is out of range, the limit is 2"
    );
    assert_eq!(
        message(device.linear(&layer, &three, 0..1, &mut four)),
        "linear: x has shape [2, 3], expected [2, 4]"
    );
    assert_eq!(
        message(device.embed(&fused, &[0], 0, &mut four)),
        "embed: parts of the table has shape [2], expected [1]"
    );
    assert_eq!(
        message(device.embed(&layer, &[1, 3], 0, &mut four)),
        "embed: token id 3 is out of range, the limit is 3"
    );
    assert_eq!(
        message(device.embed(&layer, &[1, 1], 1, &mut four)),
        "embed: row 2 is out of range, the limit is 2"
    );
    assert!(device.embed(&layer, &[1, 1], usize::MAX, &mut four).is_err());
    assert_eq!(
        message(device.rms_norm(&three, 0..1, &norm, 0.0, &mut four)),
        "rms_norm: weight has shape [4], expected [3]"
    );
    assert_eq!(
        message(device.rms_norm(&x, 0..1, &norm, 0.0, &mut three)),
        "rms_norm: out has shape [2, 3], expected [2, 4]"
    );
    assert_eq!(
        message(device.fill_rows(&norm, 0..1, &mut three)),
        "fill_rows: value has shape [4], expected [3]"
    );
    assert_eq!(message(device.add(&three, 0..1, &mut four)), "add: delta has shape [2, 3], expected [2, 4]");
    assert_eq!(
        message(device.silu_mul(&four, 0..1, &mut three)),
        "silu_mul: x has shape [2, 4], expected [2, 6]"
    );
    assert_eq!(
        message(device.silu_add(&x, &[0, 5], &mut four)),
        "silu_add: owner 5 is out of range, the limit is 5"
    );
    assert_eq!(
        message(device.silu_add(&x, &[0, 0, 0], &mut four)),
        "silu_add: row 2 is out of range, the limit is 2"
    );
    assert_eq!(
        message(device.gather(&x, &[0, 7], &mut four)),
        "gather: row 7 is out of range, the limit is 5"
    );
    assert_eq!(message(device.gather(&x, &[0], &mut three)), "gather: out has shape [2, 3], expected [2, 4]");
    assert_eq!(
        message(device.edit_row(&mut four, 2, &mut |_| ())),
        "edit_row: row 2 is out of range, the limit is 2"
    );
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 9..3;
    assert_eq!(device.linear(&layer, &x, reversed, &mut three), Ok(()));
}

#[test]
fn caches() {
    let device = cpu();
    let error = device.new_cache(36, 1 << 40, 1 << 10, SHAPE).err().unwrap();
    assert_eq!(error, DeviceError::OutOfMemory { what: "KV cache", bytes: (36 * 2 * 16) << 50 });
    let error = device.new_cache(1, usize::MAX, 16, SHAPE).err().unwrap();
    assert_eq!(error, DeviceError::Overflow { operation: "new_cache", operand: "the KV cache" });
    assert!(device.new_cache(usize::MAX, 0, 16, SHAPE).is_err());
    assert_eq!(message(device.new_cache(1, 1, 0, SHAPE)), "new_cache: a page has shape [0], expected [1]");
    assert_eq!(
        message(device.new_cache(1, 1, 16, AttentionShape { q_heads: 3, kv_heads: 2, head_dim: 4 })),
        "new_cache: [q_heads, kv_heads, head_dim] has shape [3, 2, 4], expected [4, 2, 4]"
    );
}

/// Runs both attention operations on one sequence.
fn attend(
    device: &Cpu,
    cache: &mut CpuKvCache,
    layer: usize,
    sequence: SequenceRows<'_>,
    rows: usize,
) -> Result<(), DeviceError> {
    let rope = Rope { inv_freq: vec![1.0, 0.5], scale: 1.0 };
    let transform = QkTransform { shape: SHAPE, norms: None, eps: 0.0, rope: &rope };
    let pass = Pass { sequences: vec![sequence] };
    let mut qkv = zeros(device, rows, SHAPE.qkv_cols());
    let mut out = zeros(device, rows, SHAPE.out_cols());
    let mut pass = device.begin(StepTables::new(&pass, &[]), cache)?.0;
    let rows = AttentionRows { pass: &pass, masks: true };
    let attended = device.joint_attention(SHAPE, rows, &qkv, layer, cache, &mut out);
    let appended = [RowKind::Candidates, RowKind::Masks]
        .into_iter()
        .try_for_each(|kind| device.norm_rope_append(&transform, &mut pass, kind, &mut qkv, layer, cache));
    assert_eq!(attended.is_ok(), appended.is_ok());
    appended
}

#[test]
fn passes() {
    let device = cpu();
    let mut cache = device.new_cache(2, 3, 4, SHAPE).unwrap();
    let pages = [2, 0];
    let rows = SequenceRows { pages: &pages, start: 5, candidates: 2, groups: vec![0, 1], slots: 3 };
    let mut check = |layer, rows, buffer_rows| attend(&device, &mut cache, layer, rows, buffer_rows);
    assert_eq!(check(0, rows.clone(), 8), Ok(()));
    assert_eq!(
        message(check(2, rows.clone(), 8)),
        "norm_rope_append: layer 2 is out of range, the limit is 2"
    );
    assert_eq!(
        message(check(0, rows.clone(), 7)),
        "norm_rope_append: qkv has shape [7, 16], expected [8, 16]"
    );
    assert_eq!(
        message(check(0, SequenceRows { start: 7, ..rows.clone() }, 8)),
        "begin: position 8 is out of range, the limit is 8"
    );
    assert_eq!(
        message(check(0, SequenceRows { groups: vec![0, 3], ..rows.clone() }, 8)),
        "begin: position 8 is out of range, the limit is 8"
    );
    assert_eq!(
        message(check(0, SequenceRows { pages: &[2, 3], ..rows.clone() }, 8)),
        "begin: page id 3 is out of range, the limit is 3"
    );
    assert_eq!(
        message(check(0, SequenceRows { start: 4, groups: vec![0, 2], ..rows.clone() }, 8)),
        "begin: mask group is 2 with 2 candidates, expected an accepted length below the number of candidates"
    );
    assert_eq!(
        message(check(0, SequenceRows { slots: 65, ..rows.clone() }, 8)),
        "begin: number of slots 65 is out of range, the limit is 65"
    );
    for huge in [
        SequenceRows { start: usize::MAX, ..rows.clone() },
        SequenceRows { candidates: usize::MAX, ..rows.clone() },
        SequenceRows { groups: vec![usize::MAX], ..rows.clone() },
    ] {
        assert!(matches!(check(0, huge, 8), Err(DeviceError::OutOfRange { what: "position", .. })));
    }
    // Attention does not read pages whose positions no row sees, so their ids may be invalid.
    let early = SequenceRows { pages: &[1, 99], start: 1, ..rows };
    assert_eq!(check(0, early, 8), Ok(()));
}

#[test]
fn a_pass_keeps_to_the_pages_it_was_checked_against() {
    let device = cpu();
    let rope = Rope { inv_freq: vec![1.0, 0.5], scale: 1.0 };
    let transform = QkTransform { shape: SHAPE, norms: None, eps: 0.0, rope: &rope };
    let cache = device.new_cache(2, 3, 4, SHAPE).unwrap();
    let mut other = device.new_cache(2, 2, 4, SHAPE).unwrap();
    let rows = SequenceRows { pages: &[2, 0], start: 5, candidates: 2, groups: vec![0, 1], slots: 3 };
    let pass = Pass { sequences: vec![rows] };
    let mut pass = device.begin(StepTables::new(&pass, &[]), &cache).unwrap().0;
    let mut qkv = zeros(&device, 8, SHAPE.qkv_cols());
    let mut out = zeros(&device, 8, SHAPE.out_cols());
    assert_eq!(
        message(device.norm_rope_append(&transform, &mut pass, RowKind::Masks, &mut qkv, 0, &mut other)),
        "norm_rope_append: cache [pages, page_size] has shape [2, 4], expected [3, 4]"
    );
    let rows = AttentionRows { pass: &pass, masks: true };
    assert_eq!(
        message(device.joint_attention(SHAPE, rows, &qkv, 0, &other, &mut out)),
        "joint_attention: cache [pages, page_size] has shape [2, 4], expected [3, 4]"
    );
    // If attention is asked for candidate rows only, its output needs no rows for the mask groups.
    let mut out = zeros(&device, 2, SHAPE.out_cols());
    let attend = |masks, out: &mut CpuBuffer| {
        device.joint_attention(SHAPE, AttentionRows { pass: &pass, masks }, &qkv, 0, &cache, out)
    };
    assert_eq!(attend(false, &mut out), Ok(()));
    assert_eq!(message(attend(true, &mut out)), "joint_attention: out has shape [2, 8], expected [8, 8]");
}

#[test]
fn heads_and_frequencies_must_fit() {
    let device = cpu();
    let mut cache = device.new_cache(1, 1, 4, SHAPE).unwrap();
    let pass = Pass {
        sequences: vec![SequenceRows { pages: &[0], start: 0, candidates: 1, groups: vec![], slots: 0 }],
    };
    let long = device.new_vector(&weights(DType::F32, &[6], 1)).unwrap();
    let good = device.new_vector(&weights(DType::F32, &[4], 1)).unwrap();
    let mut append = |shape: AttentionShape, norms, frequencies| {
        let rope = Rope { inv_freq: vec![1.0; frequencies], scale: 1.0 };
        let transform = QkTransform { shape, norms, eps: 0.0, rope: &rope };
        let mut qkv = zeros(&device, 1, 16);
        let mut pass = device.begin(StepTables::new(&pass, &[]), &cache)?.0;
        device.norm_rope_append(&transform, &mut pass, RowKind::Candidates, &mut qkv, 0, &mut cache)
    };
    assert_eq!(append(SHAPE, Some((&good, &good)), 2), Ok(()));
    assert_eq!(
        message(append(SHAPE, Some((&good, &long)), 2)),
        "norm_rope_append: k norm has shape [6], expected [4]"
    );
    assert_eq!(message(append(SHAPE, None, 3)), "norm_rope_append: inv_freq has shape [3], expected [2]");
    assert_eq!(
        message(append(AttentionShape { kv_heads: 2, ..SHAPE }, None, 2)),
        "norm_rope_append: cache [kv_heads, head_dim] has shape [1, 4], expected [2, 4]"
    );
}
