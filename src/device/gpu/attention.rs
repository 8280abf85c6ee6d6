//! Joint attention of candidates and mask groups.

use super::buffer::GpuBuffer;
use super::check::expect_paging;
use super::context::Context;
use super::kv_cache::GpuKvCache;
use super::pass::UploadedPass;
use super::scratch::{Scratch, error_word};
use crate::device::{AttentionRows, AttentionShape, DeviceError};
use crate::kernels::ScoreChanges;
use crate::kernels::attention::JointAttention;
use crate::runtime::Runtime;

/// Attends from the rows of a pass to one layer of the cache, in splits of `split` keys.
pub(super) fn joint_attention<R: Runtime>(
    (context, split): (&Context<R>, usize),
    shape: AttentionShape,
    AttentionRows { pass, masks }: AttentionRows<'_, UploadedPass<'_, R>>,
    qkv: &GpuBuffer<R>,
    layer: usize,
    cache: &GpuKvCache<R>,
    out: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "joint_attention";
    let tables = &pass.memory.tables;
    let rows = if masks { tables.rows() } else { tables.candidates() };
    expect_paging(OPERATION, tables, cache.paging())?;
    let cache = cache.view(OPERATION, context.queue(), layer, shape)?;
    qkv.expect_rows(OPERATION, "qkv", shape.qkv_cols(), rows)?;
    out.expect_rows(OPERATION, "out", shape.out_cols(), rows)?;
    if rows == 0 {
        return Ok(());
    }
    let mut scratch = context.scratch();
    let Scratch { workspace, error, .. } = &mut *scratch;
    let needed = context
        .kernels
        .attention_workspace_len(tables, masks, rows, shape, split)
        .ok_or(DeviceError::Overflow { operation: OPERATION, operand: "workspace" })?;
    let workspace = workspace.reserve(context.queue(), needed)?;
    let (inputs, outputs) = (0..rows * qkv.cols(), 0..rows * out.cols());
    let args = JointAttention {
        pass: tables,
        masks,
        qkv: context.input(qkv.activations(OPERATION, "qkv")?, inputs)?.into(),
        cache,
        out: context.output(out.activations_mut(OPERATION, "out")?, outputs)?,
        lse: None,
        workspace: context.view_mut(workspace),
        shape,
        split,
        scores: ScoreChanges::default(),
        error: Some(error_word(context.queue(), error)?),
    };
    Ok(context.kernels.joint_attention(&context.stream, &args)?)
}
