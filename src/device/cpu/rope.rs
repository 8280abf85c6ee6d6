//! Norms and rotary embedding of a fused projection: changes q and k heads in place, and appends candidate
//! rows' k and v to the cache.

use super::buffer::{CpuBuffer, CpuVector};
use super::check;
use super::elementwise::NormKernel;
use super::kv_cache::CpuKvCache;
use super::pass::CheckedPass;
use super::pool::Pool;
use super::simd::{Kernel, Simd, Vectors};
use crate::device::{DeviceError, Precision, QkTransform, Rope, RowKind};

/// Cost of one value of a q or k head in multiply-adds, including its share of the sines.
const WORK: usize = 8;

const OPERATION: &str = "norm_rope_append";

pub(super) fn norm_rope_append(
    (pool, vectors): (&Pool, Vectors),
    transform: &QkTransform<'_, CpuVector>,
    pass: &CheckedPass<'_>,
    kind: RowKind,
    qkv: &mut CpuBuffer,
    layer: usize,
    cache: &mut CpuKvCache,
) -> Result<(), DeviceError> {
    let shape = transform.shape;
    cache.check(OPERATION, layer, shape)?;
    if let Some((q, k)) = transform.norms {
        check::shape(OPERATION, "q norm", &[shape.head_dim], &[q.0.len()])?;
        check::shape(OPERATION, "k norm", &[shape.head_dim], &[k.0.len()])?;
    }
    check::shape(OPERATION, "inv_freq", &[shape.head_dim / 2], &[transform.rope.inv_freq.len()])?;
    pass.check_cache(OPERATION, cache)?;
    check::at_least(OPERATION, "qkv", qkv, pass.rows.len(), shape.qkv_cols())?;

    let range = match kind {
        RowKind::Candidates => 0..pass.candidates,
        RowKind::Masks => pass.candidates..pass.rows.len(),
    };
    let rows = &pass.rows[range.clone()];
    let precision = qkv.precision();
    let k_start = shape.q_heads * shape.head_dim;
    let v_start = k_start + shape.kv_heads * shape.head_dim;
    let items: Vec<_> = rows.iter().map(|row| row.position).zip(qkv.rows_in_mut(range.clone())).collect();
    pool.for_each(items, rows.len() * v_start * WORK, |(position, row)| {
        let cos_sin = cos_sin(transform.rope, position);
        let (q, kv) = row.split_at_mut(k_start);
        let (k, _) = kv.split_at_mut(v_start - k_start);
        let (q_norm, k_norm) = transform.norms.unzip();
        for (heads, norm) in [(q, q_norm), (k, k_norm)] {
            let norm = norm.map(|norm| (norm.0.as_slice(), transform.eps));
            vectors.run(NormRope { heads, norm, cos_sin: &cos_sin, precision });
        }
    });

    if kind == RowKind::Candidates {
        for (row, qkv) in rows.iter().zip(qkv.rows_in(range)) {
            let pages = pass.pass.sequences[row.sequence].pages;
            cache.append(layer, pages, row.position, &qkv[k_start..v_start], &qkv[v_start..]);
        }
    }
    Ok(())
}

/// Returns sine and cosine of each dimension pair's angle at `position`, times the scale. The angle is
/// computed in f32, as transformers does.
fn cos_sin(rope: &Rope, position: usize) -> Vec<(f32, f32)> {
    let angles = rope.inv_freq.iter().map(|frequency| position as f32 * frequency);
    angles.map(f32::sin_cos).map(|(sin, cos)| (sin * rope.scale, cos * rope.scale)).collect()
}

/// Applies the norm and the rotation to the q or the k heads of one row.
struct NormRope<'a> {
    /// The heads `[heads, head_dim]`.
    heads: &'a mut [f32],
    /// The norm's weight `[head_dim]` and epsilon.
    norm: Option<(&'a [f32], f32)>,
    /// Sine and cosine of the rotation of each pair of dimensions, `[head_dim / 2]`.
    cos_sin: &'a [(f32, f32)],
    precision: Precision,
}

impl Kernel for NormRope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { heads, norm, cos_sin, precision } = self;
        for head in heads.chunks_exact_mut(2 * cos_sin.len()) {
            if let Some((weight, eps)) = norm {
                NormKernel { row: head, weight, eps }.run(simd);
            }
            let (low, high) = head.split_at_mut(cos_sin.len());
            for ((low, high), (sin, cos)) in low.iter_mut().zip(high).zip(cos_sin) {
                let (x, y) = (*low, *high);
                *low = precision.round(x * cos - y * sin);
                *high = precision.round(y * cos + x * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    #[test]
    fn a_rotation_turns_each_pair_by_its_frequency() {
        let rope = Rope { inv_freq: vec![1.0, 0.01], scale: 1.5 };
        let cos_sin = cos_sin(&rope, 7);
        let (first, second) = (7.0f32, 7.0f32 * 0.01);
        assert_eq!(cos_sin, [first, second].map(|angle| (angle.sin() * 1.5, angle.cos() * 1.5)));
        let mut heads = [1.0, 0.0, 0.0, 2.0];
        NormRope { heads: &mut heads, norm: None, cos_sin: &cos_sin, precision: Precision::F32 }
            .run(Portable);
        assert_eq!(heads, [cos_sin[0].1, -2.0 * cos_sin[1].0, cos_sin[0].0, 2.0 * cos_sin[1].1]);
    }

    #[test]
    fn heads_are_normed_before_they_turn() {
        let weight = [1.0, 2.0];
        let mut heads = [3.0, 4.0, 0.0, 1.0];
        let norm = Some((weight.as_slice(), 0.5));
        NormRope { heads: &mut heads, norm, cos_sin: &[(1.0, 0.0)], precision: Precision::F32 }.run(Portable);
        // A quarter turn maps (x, y) to (−y, x). The mean squares are 12.5 and 0.5.
        let (a, b) = (1.0 / 13f32.sqrt(), 1.0);
        assert_eq!(heads, [-4.0 * a * 2.0, 3.0 * a, -b * 2.0, 0.0]);
    }
}
