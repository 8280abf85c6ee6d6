//! Linear layers: stored matrices side by side, multiplied as they are stored.

use std::ops::Range;

use super::buffer::Buffer;
use super::check;
use super::pool::Pool;
use super::product::{TILE_ROWS, products};
use super::simd::{Element, Kernel, Simd, Vectors};
use crate::device::{DeviceError, LinearPart, Precision};
use crate::tensor::{Elements, Tensor};

/// Tasks a thread, so that a thread that falls behind does not hold up the others for long.
const TASKS_PER_THREAD: usize = 4;

/// Output columns of a task are a multiple of this, which every tile width divides.
const TASK_COLS: usize = 24;

/// Rows of x that pass over the weights together should fit half of a usual L2 cache, in bytes, …
const ROW_BLOCK_BYTES: usize = 512 << 10;

/// … but weights come from further away than x, so that so many rows go together at any length.
const MIN_BLOCK_ROWS: usize = 4 * TILE_ROWS;

/// A linear layer of one or more parts, whose outputs are side by side.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Part>,
    in_cols: usize,
    out_cols: usize,
}

/// Some columns of a stored matrix.
#[derive(Debug)]
struct Part {
    /// `[out, stored columns]`.
    weight: Tensor,
    columns: Range<usize>,
    out_cols: usize,
    /// `[out]`.
    bias: Option<Vec<f32>>,
}

impl Part {
    fn new(part: &LinearPart<'_>) -> Result<Self, DeviceError> {
        let operation = "new_linear";
        let shape = part.weight.shape();
        let &[out_cols, stored] = shape else {
            return Err(DeviceError::Shape {
                operation,
                operand: "weight",
                expected: vec![shape.iter().product(), 1],
                found: shape.to_vec(),
            });
        };
        check::shape(operation, "elements of weight", &[out_cols * stored], &[part.weight.elements().len()])?;
        let columns = part.columns.clone().unwrap_or(0..stored);
        check::index(operation, "first column", columns.start, columns.end.saturating_add(1))?;
        check::index(operation, "last column", columns.end, stored.saturating_add(1))?;
        if let Some(bias) = part.bias {
            check::shape(operation, "bias", &[out_cols], bias.shape())?;
        }
        let bias = part.bias.map(Tensor::to_f32);
        Ok(Self { weight: part.weight.clone(), columns, out_cols, bias })
    }

    /// Where row `row` of the weights is among the matrix's elements.
    fn row(&self, row: usize) -> Range<usize> {
        let start = row * self.weight.shape()[1];
        start + self.columns.start..start + self.columns.end
    }
}

/// What happens to the outputs of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// They replace what was there.
    Store,
    /// They are added to what was there.
    Add,
}

impl Linear {
    pub(super) fn new(parts: &[LinearPart<'_>]) -> Result<Self, DeviceError> {
        let parts = parts.iter().map(Part::new).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = parts.first() else {
            return Err(DeviceError::Shape {
                operation: "new_linear",
                operand: "parts",
                expected: vec![1],
                found: vec![0],
            });
        };
        let in_cols = first.columns.len();
        let mut out_cols = 0usize;
        for part in &parts {
            let found = [part.out_cols, part.columns.len()];
            check::shape("new_linear", "weight", &[part.out_cols, in_cols], &found)?;
            check::index("new_linear", "output column", part.out_cols, usize::MAX - out_cols)?;
            out_cols += part.out_cols;
        }
        Ok(Self { parts, in_cols, out_cols })
    }

    /// Columns of the layer's input.
    pub fn in_cols(&self) -> usize {
        self.in_cols
    }

    /// Columns of the layer's output.
    pub fn out_cols(&self) -> usize {
        self.out_cols
    }

    /// Writes row `ids[i]` of the layer's matrix to row `first_row + i` of `out`.
    pub(super) fn embed(&self, ids: &[u32], first_row: usize, out: &mut Buffer) -> Result<(), DeviceError> {
        let operation = "embed";
        let [table] = self.parts.as_slice() else {
            return check::shape(operation, "parts of the table", &[1], &[self.parts.len()]);
        };
        check::cols(operation, "out", out, self.in_cols)?;
        let Some(more) = ids.len().checked_sub(1) else { return Ok(()) };
        check::index(operation, "row", first_row.saturating_add(more), out.rows())?;
        for &id in ids {
            check::index(operation, "token id", id as usize, self.out_cols)?;
        }
        let elements = table.weight.elements();
        let precision = out.precision();
        for (&id, out) in ids.iter().zip(out.rows_in_mut(first_row..first_row + ids.len())) {
            elements.read_f32(table.row(id as usize), out);
            precision.round_all(out);
        }
        Ok(())
    }

    /// The outputs of rows `rows` of `x`, stored in or added to the same rows of `out`.
    pub(super) fn apply(
        &self,
        (pool, vectors): (&Pool, Vectors),
        x: &Buffer,
        rows: Range<usize>,
        output: Output,
        out: &mut Buffer,
    ) -> Result<(), DeviceError> {
        let operation = match output {
            Output::Store => "linear",
            Output::Add => "linear_add",
        };
        check::cols(operation, "x", x, self.in_cols)?;
        check::cols(operation, "out", out, self.out_cols)?;
        let rows = check::rows(operation, rows, &[x, out])?;
        let x: Vec<&[f32]> = match self.in_cols {
            0 => vec![&[]; rows.len()],
            _ => x.rows_in(rows.clone()).collect(),
        };
        let work = x.len().saturating_mul(self.in_cols).saturating_mul(self.out_cols);
        let precision = out.precision();
        let tasks = self.tasks(pool.threads(), out.rows_in_mut(rows).collect());
        pool.for_each(tasks, work, |task| {
            let part = task.part;
            match part.weight.elements() {
                Elements::F32(w) => vectors.run(Columns { w, x: &x, task, output, precision }),
                Elements::F16(w) => vectors.run(Columns { w, x: &x, task, output, precision }),
                Elements::Bf16(w) => vectors.run(Columns { w, x: &x, task, output, precision }),
            }
        });
        Ok(())
    }

    /// Divides the output among tasks, each some columns of all rows of one part.
    fn tasks<'a>(&'a self, threads: usize, mut out: Vec<&'a mut [f32]>) -> Vec<Task<'a>> {
        let wanted = self.out_cols.div_ceil(threads.max(1) * TASKS_PER_THREAD);
        let width = if threads == 1 { self.out_cols } else { wanted.next_multiple_of(TASK_COLS) };
        let mut tasks = Vec::new();
        for part in &self.parts {
            for start in (0..part.out_cols).step_by(width.max(1)) {
                let columns = start..part.out_cols.min(start + width);
                let mut task_out = Vec::with_capacity(out.len());
                for row in &mut out {
                    let (here, rest) = std::mem::take(row).split_at_mut(columns.len());
                    task_out.push(here);
                    *row = rest;
                }
                tasks.push(Task { part, columns, out: task_out });
            }
        }
        tasks
    }
}

/// Some output columns of one part, for every row.
struct Task<'a> {
    part: &'a Part,
    columns: Range<usize>,
    /// `[rows][columns]`.
    out: Vec<&'a mut [f32]>,
}

struct Columns<'a, T> {
    /// The stored matrix.
    w: &'a [T],
    x: &'a [&'a [f32]],
    task: Task<'a>,
    output: Output,
    precision: Precision,
}

impl<T: Element> Kernel for Columns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, task: Task { part, columns, mut out }, output, precision } = self;
        let w: Vec<&[T]> = columns.clone().map(|n| &w[part.row(n)]).collect();
        let bias = part.bias.as_ref().map(|bias| &bias[columns]);
        let row_bytes = part.columns.len().max(1) * size_of::<f32>();
        let block_rows = (ROW_BLOCK_BYTES / row_bytes).next_multiple_of(TILE_ROWS).max(MIN_BLOCK_ROWS);
        for (x, out) in x.chunks(block_rows).zip(out.chunks_mut(block_rows)) {
            products(simd, x, &w, &mut |m, n, sum| {
                let value = bias.map_or(sum, |bias| sum + bias[n]);
                let out = &mut out[m][n];
                *out = precision.round(match output {
                    Output::Store => value,
                    Output::Add => *out + value,
                });
            });
        }
    }
}
