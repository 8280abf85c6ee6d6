//! What happens to a fused projection before attention: norms and rotation of the q and k heads in
//! place, and candidate rows' k and v into the cache.

use super::buffer::{Buffer, Vector};
use super::check;
use super::elementwise::RmsNorm;
use super::kv_cache::KvCache;
use super::pool::Pool;
use super::simd::{Kernel, Simd, Vectors};
use crate::device::{DeviceError, Precision, QkTransform, Rope, RowKind};
use crate::layout::Pass;

/// Multiply-adds that a value of a q or k head costs, its share of the sines included.
const WORK: usize = 8;

const OPERATION: &str = "norm_rope_append";

pub(super) fn norm_rope_append(
    (pool, vectors): (&Pool, Vectors),
    transform: &QkTransform<'_, Vector>,
    pass: &Pass<'_>,
    kind: RowKind,
    qkv: &mut Buffer,
    layer: usize,
    cache: &mut KvCache,
) -> Result<(), DeviceError> {
    let shape = transform.shape;
    cache.check(OPERATION, layer, shape)?;
    if let Some((q, k)) = transform.norms {
        check::shape(OPERATION, "q norm", &[shape.head_dim], &[q.0.len()])?;
        check::shape(OPERATION, "k norm", &[shape.head_dim], &[k.0.len()])?;
    }
    check::shape(OPERATION, "inv_freq", &[shape.head_dim / 2], &[transform.rope.inv_freq.len()])?;
    let (candidates, masks) = check::pass(OPERATION, pass, cache.paging)?;
    let range = match kind {
        RowKind::Candidates => 0..candidates,
        RowKind::Masks => candidates..candidates + masks,
    };
    if range.is_empty() {
        return Ok(());
    }
    check::at_least(OPERATION, "qkv", qkv, range.end, shape.qkv_cols())?;

    let rows = &pass.rows()[range.clone()];
    let precision = qkv.precision();
    let qk_cols = (shape.q_heads + shape.kv_heads) * shape.head_dim;
    let items: Vec<_> = rows.iter().map(|row| row.position).zip(qkv.rows_in_mut(range.clone())).collect();
    pool.for_each(items, rows.len() * qk_cols * WORK, |(position, row)| {
        let (cos, sin) = angles(transform.rope, position);
        let (q, kv) = row.split_at_mut(shape.q_heads * shape.head_dim);
        let (k, _) = kv.split_at_mut(shape.kv_heads * shape.head_dim);
        for (heads, norm) in
            [(q, transform.norms.map(|norms| norms.0)), (k, transform.norms.map(|norms| norms.1))]
        {
            let norm = norm.map(|norm| (norm.0.as_slice(), transform.eps));
            vectors.run(NormRope { heads, norm, cos: &cos, sin: &sin, precision });
        }
    });

    if kind == RowKind::Candidates {
        let v_start = qk_cols;
        let k_start = shape.q_heads * shape.head_dim;
        for (row, qkv) in rows.iter().zip(qkv.rows_in(range)) {
            let Some(sequence) = pass.sequences.get(row.sequence) else { continue };
            let (keys, values) = (&qkv[k_start..v_start], &qkv[v_start..]);
            cache.append(layer, sequence.pages, row.position, keys, values);
        }
    }
    Ok(())
}

/// Cosines and sines `[head_dim / 2]` at `position`, in f32 as transformers takes them.
fn angles(rope: &Rope, position: usize) -> (Vec<f32>, Vec<f32>) {
    let angles = rope.inv_freq.iter().map(|inv_freq| position as f32 * inv_freq);
    angles.map(|angle| (angle.cos() * rope.scale, angle.sin() * rope.scale)).unzip()
}

/// Norms and rotates the q or the k heads of one row.
struct NormRope<'a> {
    /// `[heads · head_dim]`.
    heads: &'a mut [f32],
    /// Weight `[head_dim]` and epsilon.
    norm: Option<(&'a [f32], f32)>,
    cos: &'a [f32],
    sin: &'a [f32],
    precision: Precision,
}

impl Kernel for NormRope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { heads, norm, cos, sin, precision } = self;
        for head in heads.chunks_exact_mut(2 * cos.len()) {
            if let Some((weight, eps)) = norm {
                RmsNorm { row: head, weight, eps }.run(simd);
            }
            let (low, high) = head.split_at_mut(cos.len());
            for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                let (x, y) = (*low, *high);
                *low = precision.round(x * cos - y * sin);
                *high = precision.round(y * cos + x * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_turns_each_pair_by_its_frequency() {
        let rope = Rope { inv_freq: vec![1.0, 0.01], scale: 1.5 };
        let (cos, sin) = angles(&rope, 7);
        assert_eq!(cos, [7.0f32.cos() * 1.5, (7.0f32 * 0.01).cos() * 1.5]);
        let mut heads = [1.0, 0.0, 0.0, 2.0];
        NormRope { heads: &mut heads, norm: None, cos: &cos, sin: &sin, precision: Precision::F32 }
            .run(super::super::simd::Portable);
        assert_eq!(heads, [cos[0], -2.0 * sin[1], sin[0], 2.0 * cos[1]]);
    }
}
