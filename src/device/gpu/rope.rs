//! Norms and rotation of q and k, and the append to the KV cache.

use super::buffer::{GpuBuffer, GpuVector};
use super::check::{expect, expect_paging};
use super::context::Context;
use super::kv_cache::GpuKvCache;
use super::pass::UploadedPass;
use super::scratch::{Scratch, error_word};
use crate::device::{DeviceError, QkTransform, RowKind};
use crate::kernels::rope::NormRopeAppend;
use crate::runtime::Runtime;

/// Transforms the q and k heads of rows `kind`, and appends k and v of candidate rows to the cache.
pub(super) fn norm_rope_append<R: Runtime>(
    context: &Context<R>,
    transform: &QkTransform<'_, GpuVector<R>>,
    pass: &mut UploadedPass<'_, R>,
    kind: RowKind,
    qkv: &mut GpuBuffer<R>,
    layer: usize,
    cache: &mut GpuKvCache<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "norm_rope_append";
    let shape = transform.shape;
    let rows = pass.memory.tables.rows();
    qkv.expect_rows(OPERATION, "qkv", shape.qkv_cols(), rows)?;
    expect(OPERATION, "inv_freq", vec![shape.head_dim / 2], vec![transform.rope.inv_freq.len()])?;
    expect_paging(OPERATION, &pass.memory.tables, cache.paging())?;
    let cache = cache.view_mut(OPERATION, context.queue(), layer, shape)?;
    let mut scratch = context.scratch();
    let Scratch { frequencies, error, .. } = &mut *scratch;
    let inv_freq = frequencies.of(context.queue(), transform.rope)?;
    let (tables, cos_sin) =
        pass.memory.rotations(&context.kernels, &context.stream, transform.rope, inv_freq)?;
    let elements = 0..rows * qkv.cols();
    let args = NormRopeAppend {
        pass: tables,
        kind,
        qkv: context.output(qkv.activations_mut(OPERATION, "qkv")?, elements)?.into(),
        cos_sin: context.input(cos_sin, 0..rows * shape.head_dim)?,
        norms: transform.norms.map(|(q, k)| (context.view(&q.values), context.view(&k.values))),
        eps: transform.eps,
        cache,
        shape,
        error: Some(error_word(context.queue(), error)?),
    };
    Ok(context.kernels.norm_rope_append(&context.stream, &args)?)
}
