//! Rows of one buffer to another.

use super::Gpu;
use super::checks::{elements, expect_draws, expect_rows, index32};
use super::memory::{GpuBuffer, STATS_WORDS, Values};
use super::products::Products;
use super::scratch::{Scratch, error_word};
use crate::device::{DeviceError, DraftLogits};
use crate::kernels::glue::Gather;
use crate::runtime::Runtime;

impl<P: Products> Gpu<P> {
    /// Rows `indices` of `from` to the first rows of `to`: of activations, or of logits (as pairs of bf16).
    pub(super) fn gather_rows(
        &self,
        from: &GpuBuffer<P::Runtime>,
        indices: &[usize],
        to: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "gather";
        to.forget_draws_from(0);
        if indices.is_empty() || from.cols == 0 {
            return Ok(());
        }
        for &index in indices {
            expect_rows(OPERATION, "x", from, from.cols, index.saturating_add(1))?;
        }
        let (runtime, stream) = (self.runtime(), &self.stream);
        // Rows that follow each other need no table.
        let (first, count) = (indices.first().copied().unwrap_or(0), indices.len());
        if indices.iter().copied().eq(first..first.saturating_add(count)) && from.cols == to.cols {
            let range = elements(from, &(first..first.saturating_add(count)));
            match (&from.values, &mut to.values) {
                (Values::Activations(from), Values::Activations(to)) => {
                    return Ok(runtime.copy(stream, from, range, to, 0)?);
                }
                (Values::Logits { logits: from, .. }, Values::Logits { logits: to, .. }) => {
                    return Ok(runtime.copy(stream, from, range, to, 0)?);
                }
                _ => {}
            }
        }
        let host: Vec<i32> =
            indices.iter().map(|&row| index32(OPERATION, "row", row)).collect::<Result<_, _>>()?;
        let mut scratch = self.scratch();
        let Scratch { gathered, error, .. } = &mut *scratch;
        let ids = gathered.holding(runtime, stream, host)?;
        let (stride, from_rows, to_cols) = (from.stride(), from.rows, to.cols);
        let mismatch = || DeviceError::Shape {
            operation: OPERATION,
            operand: "x",
            expected: vec![indices.len(), to_cols],
            found: vec![from_rows, from.cols],
        };
        let args = match (&from.values, &mut to.values) {
            (Values::Activations(from), Values::Activations(to)) => Gather {
                indices: self.input(ids, 0..count)?,
                x: self.input(from, 0..from_rows * stride)?,
                out: self.output(to, 0..count * stride)?,
                error: Some(error_word(runtime, stream, error)?),
                cols: stride,
            },
            (Values::Logits { logits: from, .. }, Values::Logits { logits: to, .. }) => Gather {
                indices: self.input(ids, 0..count)?,
                x: self.input(from, 0..from_rows * stride)?.cast().ok_or_else(mismatch)?,
                out: self.output(to, 0..count * stride)?.cast().ok_or_else(mismatch)?,
                error: Some(error_word(runtime, stream, error)?),
                cols: 2 * stride,
            },
            _ => return Err(mismatch()),
        };
        Ok(self.kernels.gather(stream, &args)?)
    }

    /// The first `rows` rows of a draft to the first rows of `to`, with the statistics of their draws.
    pub(super) fn copy_draft_rows(
        &self,
        draft: DraftLogits<'_, GpuBuffer<P::Runtime>>,
        rows: usize,
        to: &mut GpuBuffer<P::Runtime>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "copy_draft";
        expect_draws(OPERATION, draft, rows)?;
        let indices: Vec<usize> = (draft.first_row..draft.first_row + rows).collect();
        self.gather_rows(draft.logits, &indices, to)?;
        let (Values::Logits { draws: from, .. }, Values::Logits { draws, .. }) =
            (&draft.logits.values, &mut to.values)
        else {
            return Ok(());
        };
        let words = draft.first_draw * STATS_WORDS..(draft.first_draw + rows) * STATS_WORDS;
        self.runtime().copy(&self.stream, from, words, draws, 0)?;
        to.set_drawn(rows, rows);
        Ok(())
    }
}
