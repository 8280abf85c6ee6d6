//! Tests that compare the CPU device's operations with direct f64 implementations of the same formulas.

use flexdraft::device::cpu::{Cpu, CpuBuffer, CpuOptions};
use flexdraft::device::{
    AttentionRows, AttentionShape, Device, LinearPart, Precision, QkTransform, Rope, RowKind, StepTables,
};
use flexdraft::layout::{Pass, SequenceRows};
use flexdraft::tensor::{DType, Tensor};
use half::bf16;

use crate::support::cpu::*;

fn assert_close(found: f32, expected: f64, tolerance: f64, what: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= tolerance, "{what}: {found} is {error:e} from {expected}, allowed {tolerance:e}");
}

fn row(buffer: &CpuBuffer, row: usize) -> &[f32] {
    buffer.row(row).unwrap()
}

#[test]
fn linear_layers() {
    for (in_cols, out_cols) in [(1, 1), (15, 7), (17, 26), (1000, 31)] {
        let x = noise_rows(1, 7, in_cols);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let weight = weights(dtype, &[out_cols, in_cols], 2);
            let bias = weights(dtype, &[out_cols], 3);
            let (w, b) = (weight.to_f32(), bias.to_f32());
            for device in devices(1, Precision::F32) {
                let layer = device.new_linear(&[LinearPart::new(&weight, Some(&bias))]).unwrap();
                let x_buffer = activations(&device, in_cols, &x);
                let before = noise_rows(4, 7, out_cols);
                let mut stored = logits(&device, out_cols, &before);
                device.linear(&layer, &x_buffer, 0..7, &mut stored).unwrap();
                let mut added = logits(&device, out_cols, &before);
                device.linear_add(&layer, &x_buffer, 0..7, &mut added).unwrap();
                for (m, x) in x.iter().enumerate() {
                    for n in 0..out_cols {
                        let terms =
                            x.iter().zip(&w[n * in_cols..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let sum = terms.clone().sum::<f64>() + f64::from(b[n]);
                        // The tolerance counts roundings: Σ |x·w| bounds every partial sum, and each partial sum is
                        // rounded once or twice.
                        let size = terms.map(f64::abs).sum::<f64>() + 2.0;
                        let roundings = (in_cols.div_ceil(16) * 2 + 6) as f64;
                        let tolerance = size * roundings * f64::from(f32::EPSILON) / 2.0;
                        assert_close(row(&stored, m)[n], sum, tolerance, "linear");
                        assert_close(
                            row(&added, m)[n],
                            sum + f64::from(before[m][n]),
                            tolerance,
                            "linear_add",
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_layer_without_inputs_gives_its_bias() {
    let (weight, bias) = (weights(DType::Bf16, &[3, 0], 1), weights(DType::F32, &[3], 2));
    for device in devices(1, Precision::F32) {
        let layer = device.new_linear(&[LinearPart::new(&weight, Some(&bias))]).unwrap();
        let mut out = activations(&device, 3, &noise_rows(1, 2, 3));
        device.linear(&layer, &activations(&device, 0, &[vec![], vec![]]), 0..2, &mut out).unwrap();
        assert_eq!(row(&out, 0), bias.to_f32());
        assert_eq!(row(&out, 1), bias.to_f32());
    }
}

#[test]
fn rows_outside_the_range_are_left_alone() {
    let weight = weights(DType::F32, &[5, 4], 1);
    for device in devices(1, Precision::F32) {
        let layer = device.new_linear(&[LinearPart::new(&weight, None)]).unwrap();
        let x = activations(&device, 4, &noise_rows(1, 6, 4));
        let before = noise_rows(2, 6, 5);
        let mut out = activations(&device, 5, &before);
        device.linear(&layer, &x, 2..4, &mut out).unwrap();
        let changed: Vec<bool> = (0..6).map(|r| row(&out, r) != before[r]).collect();
        assert_eq!(changed, [false, false, true, true, false, false]);
    }
}

#[test]
fn embeddings_are_rows_of_the_table() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let table = weights(dtype, &[9, 5], 1);
        let values = table.to_f32();
        let device = Cpu::new(CpuOptions::default()).unwrap();
        let layer = device.new_linear(&[LinearPart::new(&table, None)]).unwrap();
        let before = noise_rows(2, 5, 5);
        let mut out = activations(&device, 5, &before);
        device.embed(&layer, &[8, 0, 8], 1, &mut out).unwrap();
        assert_eq!(row(&out, 0), before[0]);
        assert_eq!(row(&out, 1), &values[40..45]);
        assert_eq!(row(&out, 2), &values[..5]);
        assert_eq!(row(&out, 3), &values[40..45]);
        assert_eq!(row(&out, 4), before[4]);
    }
}

#[test]
fn norms_and_activations() {
    let cols = 70;
    let x = noise_rows(1, 3, cols);
    let y = noise_rows(2, 3, cols);
    let weight = weights(DType::Bf16, &[cols], 3);
    let eps = 1e-3;
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for device in devices(1, Precision::F32) {
        let x_buffer = activations(&device, cols, &x);
        let vector = device.new_vector(&weight).unwrap();
        let mut normed = activations(&device, cols, &y);
        device.rms_norm(&x_buffer, 0..3, &vector, eps, &mut normed).unwrap();
        let mut added = activations(&device, cols, &y);
        device.add(&x_buffer, 0..3, &mut added).unwrap();
        let mut gated = activations(&device, cols / 2, &noise_rows(4, 3, cols / 2));
        device.silu_mul(&x_buffer, 0..3, &mut gated).unwrap();
        let owner = [2, 0, 0];
        let mut hidden = activations(&device, cols, &y);
        device.silu_add(&x_buffer, &owner, &mut hidden).unwrap();
        let mut filled = activations(&device, cols, &y);
        device.fill_rows(&vector, 1..3, &mut filled).unwrap();
        assert_eq!(row(&filled, 0), y[0]);
        for r in 0..3 {
            let mean = x[r].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
            for c in 0..cols {
                let [x_rc, y_rc] = [x[r][c], y[r][c]].map(f64::from);
                let expected = x_rc / (mean + f64::from(eps)).sqrt() * f64::from(weight.to_f32()[c]);
                assert_close(row(&normed, r)[c], expected, 1e-6, "rms_norm");
                assert_close(row(&added, r)[c], x_rc + y_rc, 1e-6, "add");
                let expected = silu(y_rc + f64::from(x[owner[r]][c]));
                assert_close(row(&hidden, r)[c], expected, 1e-6, "silu_add");
                if r > 0 {
                    assert_eq!(row(&filled, r)[c], weight.to_f32()[c]);
                }
                if c < cols / 2 {
                    let expected = silu(x_rc) * f64::from(x[r][cols / 2 + c]);
                    assert_close(row(&gated, r)[c], expected, 1e-6, "silu_mul");
                }
            }
        }
    }
}

#[test]
fn silu_is_finite_far_from_zero() {
    let device = Cpu::new(CpuOptions::default()).unwrap();
    let x = activations(&device, 4, &[vec![-1e30, 200.0, 1.0, 1.0]]);
    let mut out = activations(&device, 2, &[vec![5.0; 2]]);
    device.silu_mul(&x, 0..1, &mut out).unwrap();
    assert_eq!(row(&out, 0), [0.0, 200.0]);
}

/// The operands of one attention layer for one sequence with `start` cached positions.
struct Case {
    shape: AttentionShape,
    rope: Rope,
    norms: (Tensor, Tensor),
    eps: f32,
    start: usize,
    candidates: usize,
    groups: Vec<usize>,
    slots: usize,
}

impl Case {
    /// Returns every row in f64: its q, k and v after norm and rotation.
    fn rows(&self, raw: &[Vec<f32>]) -> Vec<Vec<f64>> {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.shape;
        let pass = self.pass(&[]);
        let positions = (0..self.start).chain(pass.rows().into_iter().map(|row| row.position));
        positions
            .zip(raw)
            .map(|(position, raw)| {
                let mut row: Vec<f64> = raw.iter().map(|&x| f64::from(x)).collect();
                for (h, head) in row.chunks_mut(head_dim).take(q_heads + kv_heads).enumerate() {
                    let norm = if h < q_heads { self.norms.0.to_f32() } else { self.norms.1.to_f32() };
                    let mean = head.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                    for (x, weight) in head.iter_mut().zip(norm) {
                        *x = *x / (mean + f64::from(self.eps)).sqrt() * f64::from(weight);
                    }
                    for i in 0..head_dim / 2 {
                        // The CPU device rounds the product of position and frequency to f32, so the f64 formula does
                        // too.
                        let angle = f64::from(position as f32 * self.rope.inv_freq[i]);
                        let scale = f64::from(self.rope.scale);
                        let (sin, cos) = (angle.sin() * scale, angle.cos() * scale);
                        let (x, y) = (head[i], head[i + head_dim / 2]);
                        head[i] = x * cos - y * sin;
                        head[i + head_dim / 2] = y * cos + x * sin;
                    }
                }
                row
            })
            .collect()
    }

    fn pass<'a>(&self, pages: &'a [u32]) -> Pass<'a> {
        let Self { start, candidates, slots, .. } = *self;
        let sequences = vec![SequenceRows { pages, start, candidates, groups: self.groups.clone(), slots }];
        Pass { sequences }
    }

    /// Returns the softmax attention of row `r` of the pass and query head `head`.
    fn attend(&self, rows: &[Vec<f64>], r: usize, head: usize) -> Vec<f64> {
        let AttentionShape { q_heads, kv_heads, head_dim } = self.shape;
        let row = self.pass(&[]).rows()[r];
        let own = row.group.map_or(0..0, |(first, end)| self.start + first..self.start + end);
        let kv_head = head / (q_heads / kv_heads);
        let q = &rows[self.start + r][head * head_dim..][..head_dim];
        let seen: Vec<&Vec<f64>> = (0..=row.limit).chain(own).map(|i| &rows[i]).collect();
        let scores: Vec<f64> = seen
            .iter()
            .map(|row| {
                let k = &row[(q_heads + kv_head) * head_dim..][..head_dim];
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        (0..head_dim)
            .map(|d| {
                let v = (q_heads + kv_heads + kv_head) * head_dim + d;
                seen.iter().zip(&scores).map(|(row, score)| (score - max).exp() / sum * row[v]).sum()
            })
            .collect()
    }
}

#[test]
fn joint_attention() {
    for (q_heads, kv_heads, head_dim, start, candidates, groups, slots) in [
        (4, 2, 16, 130, 3, vec![0, 2], 5),
        (3, 3, 6, 0, 70, vec![69], 4),
        (6, 1, 40, 200, 1, vec![], 0),
        (2, 2, 128, 66, 2, vec![1], 64),
    ] {
        let shape = AttentionShape { q_heads, kv_heads, head_dim };
        let inv_freq = (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        // Norm weights around 2 make attention scores that differ by several units.
        let norm = |seed| {
            let values = noise(seed, head_dim).iter().map(|x| x + 2.0).collect();
            Tensor::from_f32(&[head_dim], values).unwrap()
        };
        let rope = Rope { inv_freq, scale: 1.1 };
        let case =
            Case { shape, rope, norms: (norm(1), norm(2)), eps: 1e-6, start, candidates, groups, slots };
        let pages: Vec<u32> = (0..20).rev().collect();
        let pass = case.pass(&pages);
        let raw = noise_rows(3, start + pass.total_rows(), shape.qkv_cols());
        let expected = case.rows(&raw);
        for device in devices(1, Precision::F32) {
            let norms = [&case.norms.0, &case.norms.1].map(|norm| device.new_vector(norm).unwrap());
            let transform =
                QkTransform { shape, norms: Some((&norms[0], &norms[1])), eps: case.eps, rope: &case.rope };
            let mut cache = device.new_cache(3, 20, 16, shape).unwrap();
            let prefill =
                SequenceRows { pages: &pages, start: 0, candidates: start, groups: vec![], slots: 0 };
            let prefill = Pass { sequences: vec![prefill] };
            let mut prefill = device.begin(StepTables::new(&prefill, &[]), &cache).unwrap().0;
            let mut qkv = activations(&device, shape.qkv_cols(), &raw[..start]);
            let kind = RowKind::Candidates;
            device.norm_rope_append(&transform, &mut prefill, kind, &mut qkv, 2, &mut cache).unwrap();
            let mut qkv = activations(&device, shape.qkv_cols(), &raw[start..]);
            let mut laid_out = device.begin(StepTables::new(&pass, &[]), &cache).unwrap().0;
            for kind in [RowKind::Candidates, RowKind::Masks] {
                device.norm_rope_append(&transform, &mut laid_out, kind, &mut qkv, 2, &mut cache).unwrap();
            }
            let mut out = device.new_buffer(shape.out_cols());
            device.resize(&mut out, pass.total_rows()).unwrap();
            let attending = AttentionRows { pass: &laid_out, masks: true };
            device.joint_attention(shape, attending, &qkv, 2, &cache, &mut out).unwrap();
            for r in 0..pass.total_rows() {
                for (&found, &expected) in row(&qkv, r).iter().zip(&expected[start + r]) {
                    assert_close(found, expected, 4e-6, "norm and rope");
                }
                for head in 0..q_heads {
                    let found = &row(&out, r)[head * head_dim..][..head_dim];
                    for (&found, expected) in found.iter().zip(case.attend(&expected, r, head)) {
                        assert_close(found, expected, 1e-5, "attention");
                    }
                }
            }
        }
    }
}

#[test]
fn without_norms_only_the_rotation_is_applied_and_values_are_untouched() {
    let shape = AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 2 };
    let rope = Rope { inv_freq: vec![0.25], scale: 1.0 };
    let device = Cpu::new(CpuOptions::default()).unwrap();
    let mut cache = device.new_cache(1, 1, 4, shape).unwrap();
    let transform = QkTransform { shape, norms: None, eps: 0.0, rope: &rope };
    let sequence = SequenceRows { pages: &[0], start: 2, candidates: 1, groups: vec![], slots: 0 };
    let pass = Pass { sequences: vec![sequence] };
    let mut pass = device.begin(StepTables::new(&pass, &[]), &cache).unwrap().0;
    let mut qkv = activations(&device, 6, &[vec![1.0, 0.0, 0.0, 1.0, 7.0, 8.0]]);
    device.norm_rope_append(&transform, &mut pass, RowKind::Candidates, &mut qkv, 0, &mut cache).unwrap();
    let (sin, cos) = (0.5f32.sin(), 0.5f32.cos());
    assert_eq!(row(&qkv, 0), [cos, sin, -sin, cos, 7.0, 8.0]);
}

#[test]
fn bf16_stores_what_f32_computes_rounded() {
    let cols = 48;
    let round = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
    // All operands are numbers that bf16 and f32 represent exactly.
    let x: Vec<_> = noise_rows(1, 3, cols).iter().map(|row| round(row)).collect();
    let y: Vec<_> = noise_rows(2, 3, cols).iter().map(|row| round(row)).collect();
    let matrix = weights(DType::F32, &[cols, cols], 3);
    let weight = weights(DType::F32, &[cols], 4);
    let run = |device: &Cpu| {
        let layer = device.new_linear(&[LinearPart::new(&matrix, None)]).unwrap();
        let vector = device.new_vector(&weight).unwrap();
        let x = activations(device, cols, &x);
        let fresh = || activations(device, cols, &y);
        let mut outs = [fresh(), fresh(), fresh(), fresh(), fresh(), fresh(), fresh()];
        device.linear(&layer, &x, 0..3, &mut outs[0]).unwrap();
        device.linear_add(&layer, &x, 0..3, &mut outs[1]).unwrap();
        device.add(&x, 0..3, &mut outs[2]).unwrap();
        device.rms_norm(&x, 0..3, &vector, 1e-6, &mut outs[3]).unwrap();
        device.silu_add(&x, &[1, 2, 0], &mut outs[4]).unwrap();
        device.fill_rows(&vector, 0..3, &mut outs[5]).unwrap();
        device.embed(&layer, &[4, 5, 6], 0, &mut outs[6]).unwrap();
        let mut gated = device.new_buffer(cols / 2);
        device.resize(&mut gated, 3).unwrap();
        device.silu_mul(&x, 0..3, &mut gated).unwrap();
        let mut logits = device.new_logits(cols);
        device.resize(&mut logits, 3).unwrap();
        device.linear(&layer, &x, 0..3, &mut logits).unwrap();
        (outs.into_iter().chain([gated]).collect::<Vec<_>>(), logits)
    };
    for (single, half) in devices(1, Precision::F32).iter().zip(devices(1, Precision::Bf16)) {
        let ((single, single_logits), (half, half_logits)) = (run(single), run(&half));
        for (operation, (single, half)) in single.iter().zip(&half).enumerate() {
            for r in 0..3 {
                assert_eq!(row(half, r), round(row(single, r)), "operation {operation}");
                assert_ne!(row(half, r), row(single, r), "operation {operation}");
            }
        }
        assert_eq!(bits(&half_logits), bits(&single_logits));
    }
}
