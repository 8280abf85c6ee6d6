//! Rows of one buffer to another.

use super::Gpu;
use super::checks::{elements, expect_rows, index32};
use super::memory::{Buffer, STATS_WORDS, Values};
use super::products::Products;
use super::scratch::{Scratch, error_word};
use crate::backend::Backend;
use crate::device::DeviceError;
use crate::kernels::glue::Gather;

impl<P: Products> Gpu<P> {
    /// Rows `indices` of `from` to the first rows of `to`: of activations, or of logits (as pairs of bf16) with
    /// what is known of them since they were drawn from.
    pub(super) fn gather_rows(
        &self,
        from: &Buffer<P::Backend>,
        indices: &[usize],
        to: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "gather";
        to.forget_draws_from(0);
        if indices.is_empty() || from.cols == 0 {
            return Ok(());
        }
        for &index in indices {
            expect_rows(OPERATION, "x", from, from.cols, index.saturating_add(1))?;
        }
        if indices.iter().all(|&index| index < from.drawn()) {
            self.gather_draws(from, indices, to)?;
        }
        let (backend, stream) = (self.backend(), &self.stream);
        // Rows that follow each other need no table.
        let (first, count) = (indices.first().copied().unwrap_or(0), indices.len());
        if indices.iter().copied().eq(first..first.saturating_add(count)) && from.cols == to.cols {
            let range = elements(from, &(first..first.saturating_add(count)));
            match (&from.values, &mut to.values) {
                (Values::Activations(from), Values::Activations(to)) => {
                    return Ok(backend.copy(stream, from, range, to, 0)?);
                }
                (Values::Logits { logits: from, .. }, Values::Logits { logits: to, .. }) => {
                    return Ok(backend.copy(stream, from, range, to, 0)?);
                }
                _ => {}
            }
        }
        let host: Vec<i32> =
            indices.iter().map(|&row| index32(OPERATION, "row", row)).collect::<Result<_, _>>()?;
        let mut scratch = self.scratch();
        let Scratch { gathered, error, .. } = &mut *scratch;
        let ids = gathered.holding(backend, stream, host)?;
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
                error: Some(error_word(backend, stream, error)?),
                cols: stride,
            },
            (Values::Logits { logits: from, .. }, Values::Logits { logits: to, .. }) => Gather {
                indices: self.input(ids, 0..count)?,
                x: self.input(from, 0..from_rows * stride)?.cast().ok_or_else(mismatch)?,
                out: self.output(to, 0..count * stride)?.cast().ok_or_else(mismatch)?,
                error: Some(error_word(backend, stream, error)?),
                cols: 2 * stride,
            },
            _ => return Err(mismatch()),
        };
        Ok(self.kernels.gather(stream, &args)?)
    }

    /// The statistics of the draws from rows `indices` of `from`, to those of the first rows of `to`.
    fn gather_draws(
        &self,
        from: &Buffer<P::Backend>,
        indices: &[usize],
        to: &mut Buffer<P::Backend>,
    ) -> Result<(), DeviceError> {
        let (Values::Logits { draws: from, .. }, Values::Logits { draws, .. }) =
            (&from.values, &mut to.values)
        else {
            return Ok(());
        };
        let mut first = 0;
        for rows in indices.chunk_by(|&row, &next| next == row + 1) {
            let words = rows[0] * STATS_WORDS..(rows[0] + rows.len()) * STATS_WORDS;
            self.backend().copy(&self.stream, from, words, draws, first * STATS_WORDS)?;
            first += rows.len();
        }
        to.set_drawn(first);
        Ok(())
    }
}
