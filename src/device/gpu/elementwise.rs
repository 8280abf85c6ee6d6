//! Operations that compute each row independently: norms, activations, sums, and copies of rows.

use std::ops::Range;

use super::buffer::{Draws, GpuBuffer, GpuVector, STATS_WORDS, Values};
use super::check::{expect, index, index32};
use super::context::Context;
use super::scratch::{Scratch, error_word};
use crate::device::{DeviceError, DraftLogits};
use crate::kernels::activation::{SiluAdd, SiluMul};
use crate::kernels::embedding::Gather;
use crate::kernels::norm::{Add, Residual, RmsNorm};
use crate::runtime::Runtime;

/// Writes `value` to each of `rows` of `out`.
pub(super) fn fill_rows<R: Runtime>(
    context: &Context<R>,
    value: &GpuVector<R>,
    rows: Range<usize>,
    out: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "fill_rows";
    if rows.is_empty() {
        return Ok(());
    }
    out.expect_rows(OPERATION, "out", value.len, rows.end)?;
    let mut scratch = context.scratch();
    let Scratch { filled, error, .. } = &mut *scratch;
    let ids = filled.holding(context.queue(), vec![0; rows.len()])?;
    let elements = out.elements(&rows);
    let args = Gather {
        indices: context.input(ids, 0..rows.len())?,
        x: context.view(&value.row),
        out: context.output(out.activations_mut(OPERATION, "out")?, elements)?,
        error: Some(error_word(context.queue(), error)?),
        cols: value.len,
    };
    Ok(context.kernels.gather(&context.stream, &args)?)
}

/// Applies RMSNorm to rows `rows` of `x`.
pub(super) fn rms_norm<R: Runtime>(
    context: &Context<R>,
    x: &GpuBuffer<R>,
    rows: Range<usize>,
    (weight, eps): (&GpuVector<R>, f32),
    out: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "rms_norm";
    x.expect_rows(OPERATION, "x", weight.len, rows.end)?;
    out.expect_rows(OPERATION, "out", weight.len, rows.end)?;
    if rows.is_empty() {
        return Ok(());
    }
    let elements = x.elements(&rows);
    let args = RmsNorm {
        x: Residual::Is(context.input(x.activations(OPERATION, "x")?, elements.clone())?),
        weight: context.view(&weight.values),
        out: context.output(out.activations_mut(OPERATION, "out")?, elements)?,
        eps,
    };
    Ok(context.kernels.rms_norm(&context.stream, &args)?)
}

/// Adds rows `rows` of `delta` to `hidden`.
pub(super) fn add<R: Runtime>(
    context: &Context<R>,
    delta: &GpuBuffer<R>,
    rows: Range<usize>,
    hidden: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "add";
    delta.expect_rows(OPERATION, "delta", hidden.cols(), rows.end)?;
    hidden.expect_rows(OPERATION, "hidden", hidden.cols(), rows.end)?;
    if rows.is_empty() {
        return Ok(());
    }
    let elements = delta.elements(&rows);
    let args = Add {
        x: context.output(hidden.activations_mut(OPERATION, "hidden")?, elements.clone())?,
        delta: context.input(delta.activations(OPERATION, "delta")?, elements)?,
    };
    Ok(context.kernels.add(&context.stream, &args)?)
}

/// Adds rows `rows` of `delta` to `hidden`, and applies RMSNorm to the sums, in one launch.
pub(super) fn add_rms_norm<R: Runtime>(
    context: &Context<R>,
    delta: &GpuBuffer<R>,
    rows: Range<usize>,
    hidden: &mut GpuBuffer<R>,
    (weight, eps): (&GpuVector<R>, f32),
    out: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "add_rms_norm";
    delta.expect_rows(OPERATION, "delta", weight.len, rows.end)?;
    hidden.expect_rows(OPERATION, "hidden", weight.len, rows.end)?;
    out.expect_rows(OPERATION, "out", weight.len, rows.end)?;
    if rows.is_empty() {
        return Ok(());
    }
    let elements = delta.elements(&rows);
    let args = RmsNorm {
        x: Residual::Add {
            x: context.output(hidden.activations_mut(OPERATION, "hidden")?, elements.clone())?,
            delta: context.input(delta.activations(OPERATION, "delta")?, elements.clone())?,
        },
        weight: context.view(&weight.values),
        out: context.output(out.activations_mut(OPERATION, "out")?, elements)?,
        eps,
    };
    Ok(context.kernels.rms_norm(&context.stream, &args)?)
}

/// Applies the MLP's activation to rows `rows` of `x`.
pub(super) fn silu_mul<R: Runtime>(
    context: &Context<R>,
    x: &GpuBuffer<R>,
    rows: Range<usize>,
    out: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "silu_mul";
    let cols = out.cols();
    x.expect_rows(OPERATION, "x", cols.saturating_mul(2), rows.end)?;
    out.expect_rows(OPERATION, "out", cols, rows.end)?;
    if rows.is_empty() {
        return Ok(());
    }
    let (from, to) = (x.elements(&rows), out.elements(&rows));
    let args = SiluMul {
        x: context.input(x.activations(OPERATION, "x")?, from)?,
        out: context.output(out.activations_mut(OPERATION, "out")?, to)?,
        cols,
    };
    Ok(context.kernels.silu_mul(&context.stream, &args)?)
}

/// Adds row `owner[r]` of `bonus` to row r of `x`, and applies SiLU.
pub(super) fn silu_add<R: Runtime>(
    context: &Context<R>,
    bonus: &GpuBuffer<R>,
    owner: &[usize],
    x: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "silu_add";
    let cols = x.cols();
    x.expect_rows(OPERATION, "x", bonus.cols(), owner.len())?;
    if owner.is_empty() || cols == 0 {
        return Ok(());
    }
    let bonus_row = |&row: &usize| {
        index(OPERATION, "owner", row, bonus.rows())?;
        index32(OPERATION, "owner", row)
    };
    let host: Vec<i32> = owner.iter().map(bonus_row).collect::<Result<_, _>>()?;
    let mut scratch = context.scratch();
    let block = scratch.block();
    let Scratch { owners, error, .. } = &mut *scratch;
    let owner = match block.indices(context.queue(), &host) {
        Some(table) => table?,
        None => context.input(owners.holding(context.queue(), host)?, 0..owner.len())?,
    };
    let args = SiluAdd {
        bonus: context.input(bonus.activations(OPERATION, "bonus")?, 0..bonus.rows() * cols)?,
        x: context.output(x.activations_mut(OPERATION, "x")?, 0..owner.len() * cols)?,
        owner,
        error: Some(error_word(context.queue(), error)?),
        cols,
    };
    Ok(context.kernels.silu_add(&context.stream, &args)?)
}

/// Copies rows `indices` of `from` to the first rows of `to`, which is resized. The rows are activations, or
/// logits, which the kernel copies as pairs of bf16.
pub(super) fn gather<R: Runtime>(
    context: &Context<R>,
    from: &GpuBuffer<R>,
    indices: &[usize],
    to: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "gather";
    expect(OPERATION, "out", vec![to.rows(), from.cols()], vec![to.rows(), to.cols()])?;
    to.resize(context.queue(), indices.len())?;
    to.forget_draws_from(0);
    if indices.is_empty() || from.cols() == 0 {
        return Ok(());
    }
    for &index in indices {
        from.expect_rows(OPERATION, "x", from.cols(), index.saturating_add(1))?;
    }
    let (runtime, stream) = context.queue();
    // Rows that follow each other are copied without a table of row indices.
    let (first, count) = (indices.first().copied().unwrap_or(0), indices.len());
    if indices.iter().copied().eq(first..first.saturating_add(count)) {
        let elements = from.elements(&(first..first.saturating_add(count)));
        match (&from.values, &mut to.values) {
            (Values::Activations(from), Values::Activations(to)) => {
                return Ok(runtime.copy(stream, from, elements, to, 0)?);
            }
            (Values::Logits { logits: from, .. }, Values::Logits { logits: to, .. }) => {
                return Ok(runtime.copy(stream, from, elements, to, 0)?);
            }
            _ => {}
        }
    }
    let host: Vec<i32> =
        indices.iter().map(|&row| index32(OPERATION, "row", row)).collect::<Result<_, _>>()?;
    let mut scratch = context.scratch();
    let block = scratch.block();
    let Scratch { gathered, error, .. } = &mut *scratch;
    let indices = match block.indices(context.queue(), &host) {
        Some(table) => table?,
        None => context.input(gathered.holding(context.queue(), host)?, 0..count)?,
    };
    let error = Some(error_word(context.queue(), error)?);
    let (stride, from_rows) = (from.stride(), from.rows());
    let overflow = || DeviceError::Overflow { operation: OPERATION, operand: "row of logits" };
    let args = match (&from.values, &mut to.values) {
        (Values::Logits { logits: from, .. }, Values::Logits { logits: to, .. }) => Gather {
            indices,
            x: context.input(from, 0..from_rows * stride)?.cast().ok_or_else(overflow)?,
            out: context.output(to, 0..count * stride)?.cast().ok_or_else(overflow)?,
            error,
            cols: 2 * stride,
        },
        _ => Gather {
            indices,
            x: context.input(from.activations(OPERATION, "x")?, 0..from_rows * stride)?,
            out: context.output(to.activations_mut(OPERATION, "out")?, 0..count * stride)?,
            error,
            cols: stride,
        },
    };
    Ok(context.kernels.gather(stream, &args)?)
}

/// Copies the first `rows` rows of a draft's logits to the first rows of `to`, which is resized, with the
/// statistics of their draws.
pub(super) fn copy_draft<R: Runtime>(
    context: &Context<R>,
    DraftLogits { logits, first_row, first_draw, .. }: DraftLogits<'_, GpuBuffer<R>>,
    rows: usize,
    to: &mut GpuBuffer<R>,
) -> Result<(), DeviceError> {
    const OPERATION: &str = "copy_draft";
    expect(OPERATION, "out", vec![to.rows(), logits.cols()], vec![to.rows(), to.cols()])?;
    logits.expect_draws(OPERATION, (first_row, first_draw), rows)?;
    if let Some(chosen) = logits.chosen() {
        to.hold_chained_draws(context.queue(), chosen, first_draw..first_draw + rows)?;
    } else {
        let indices: Vec<usize> = (first_row..first_row + rows).collect();
        gather(context, logits, &indices, to)?;
        to.set_drawn(Draws { count: rows, end: rows, chosen: 0 });
    }
    let (Values::Logits { draws: from, .. }, Values::Logits { draws, .. }) = (&logits.values, &mut to.values)
    else {
        return Ok(());
    };
    let words = first_draw * STATS_WORDS..(first_draw + rows) * STATS_WORDS;
    let (runtime, stream) = context.queue();
    Ok(runtime.copy(stream, from, words, draws, 0)?)
}

/// Copies rows of logits to the host: side by side on the device first, so that the host waits once.
pub(super) fn read_rows<R: Runtime>(
    context: &Context<R>,
    logits: &GpuBuffer<R>,
    rows: &[usize],
) -> Result<Vec<Vec<f32>>, DeviceError> {
    const OPERATION: &str = "read_rows";
    let (cols, stride) = (logits.cols(), logits.stride());
    if rows.is_empty() || cols == 0 {
        return Ok(vec![Vec::new(); rows.len()]);
    }
    for &row in rows {
        logits.expect_rows(OPERATION, "logits", cols, row.saturating_add(1))?;
    }
    let (runtime, stream) = context.queue();
    let mut scratch = context.scratch();
    let packed = scratch.read_rows.reserve(context.queue(), rows.len() * stride)?;
    let mut first = 0;
    for run in rows.chunk_by(|a, b| a + 1 == *b) {
        let elements = logits.elements(&(run[0]..run[0] + run.len()));
        runtime.copy(stream, logits.logits(OPERATION)?, elements, packed, first * stride)?;
        first += run.len();
    }
    let mut host = vec![0.0; rows.len() * stride];
    runtime.download(stream, packed, 0, &mut host)?;
    Ok(host.chunks_exact(stride).map(|row| row[..cols].to_vec()).collect())
}

/// Lets `edit` change one row of logits on the host.
pub(super) fn edit_row<R: Runtime>(
    context: &Context<R>,
    logits: &mut GpuBuffer<R>,
    row: usize,
    edit: &mut dyn FnMut(&mut [f32]),
) -> Result<(), DeviceError> {
    const OPERATION: &str = "edit_row";
    logits.expect_rows(OPERATION, "logits", logits.cols(), row.saturating_add(1))?;
    let (runtime, stream) = context.queue();
    let mut host = vec![0.0; logits.cols()];
    let first = row * logits.stride();
    logits.forget_draws_from(row);
    let (memory, _) = logits.logits_and_draws_mut(OPERATION)?;
    runtime.download(stream, memory, first, &mut host)?;
    edit(&mut host);
    // Kernels treat a NaN as −∞ too, but they report it.
    host.iter_mut().filter(|logit| logit.is_nan()).for_each(|logit| *logit = f32::NEG_INFINITY);
    Ok(runtime.upload(stream, &host, memory, first)?)
}
