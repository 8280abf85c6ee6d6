//! Linear layers of the CPU device: matrices side by side, multiplied in their stored element type.

use std::ops::Range;

use half::bf16;

use super::block_product::{BlockRows, block_products};
use super::blocks::{Q4K, Q4One, Q4Zero, Q5K, Q6K, Q8Zero, Unpack};
use super::buffer::CpuBuffer;
use super::check;
use super::pool::Pool;
use super::product::{Factor, Matrix, WeightRows, products};
use super::rounded::RoundedRows;
use super::rounded_product::{IntegerRows, Integers, rounded_products};
use super::simd::{Kernel, LANES, PAIRS, Simd, VectorElement, Vectors};
use crate::device::{DeviceError, LinearPart, Precision};
use crate::tensor::{BlockFormat, Elements, Tensor};

/// Number of tasks per thread: several, so that a thread that falls behind does not delay the others for
/// long.
const TASKS_PER_THREAD: usize = 4;

/// Every task has a multiple of this number of output columns; every tile width divides it.
const TASK_COLS: usize = 24;

/// Target size in bytes of the rows of x that are multiplied together: half of a usual L2 cache.
const ROW_BLOCK_BYTES: usize = 512 << 10;

/// The minimum number of rows of x that are multiplied together, whatever their length, because loading weights costs
/// more than loading x.
const MIN_BLOCK_ROWS: usize = 16;

/// A linear layer of one or more parts, whose outputs lie side by side.
#[derive(Debug)]
pub struct CpuLinear {
    parts: Vec<LinearSource>,
    in_cols: usize,
    out_cols: usize,
}

/// The columns of a stored weight matrix that one part of a layer uses.
#[derive(Debug)]
struct LinearSource {
    /// The stored matrix `[outputs, stored columns]`.
    weight: Tensor,
    columns: Range<usize>,
    outputs: usize,
    stored: usize,
    /// The bias `[outputs]`, if there is one.
    bias: Option<Vec<f32>>,
}

impl LinearSource {
    fn new(part: &LinearPart<'_>) -> Result<Self, DeviceError> {
        const OPERATION: &str = "new_linear";
        let shape = part.weight.shape();
        let &[outputs, stored] = shape else {
            return Err(DeviceError::Shape {
                operation: OPERATION,
                operand: "weight",
                expected: vec![part.weight.elements().len(), 1],
                found: shape.to_vec(),
            });
        };
        let columns = part.columns.clone().unwrap_or(0..stored);
        check::index(OPERATION, "first column", columns.start, columns.end.saturating_add(1))?;
        check::index(OPERATION, "last column", columns.end, stored.saturating_add(1))?;
        if let (Some(format), true) = (part.weight.block_format(), columns != (0..stored)) {
            return Err(DeviceError::Contract {
                operation: OPERATION,
                operand: "columns of a quantised weight",
                expected: "all columns",
                found: format!("columns {} to {} of {stored} of {format}", columns.start, columns.end),
            });
        }
        if let Some(bias) = part.bias {
            check::shape(OPERATION, "bias", &[outputs], bias.shape())?;
        }
        let bias = part.bias.map(Tensor::to_f32);
        Ok(Self { weight: part.weight.clone(), columns, outputs, stored, bias })
    }

    fn matrix<'a, T>(&self, elements: &'a [T]) -> Matrix<'a, T> {
        let elements = elements.get(self.columns.start..).unwrap_or(&[]);
        Matrix { elements, stride: self.stored, rows: self.outputs, cols: self.columns.len() }
    }
}

/// The way in which a layer's outputs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// The outputs replace the previous values.
    Store,
    /// The outputs are added to the previous values.
    Add,
}

impl CpuLinear {
    pub(super) fn new(parts: &[LinearPart<'_>]) -> Result<Self, DeviceError> {
        const OPERATION: &str = "new_linear";
        let parts = parts.iter().map(LinearSource::new).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = parts.first() else {
            let (operand, expected, found) = ("parts", vec![1], vec![0]);
            return Err(DeviceError::Shape { operation: OPERATION, operand, expected, found });
        };
        let in_cols = first.columns.len();
        let mut out_cols = 0usize;
        for part in &parts {
            check::shape(OPERATION, "weight", &[part.outputs, in_cols], &[part.outputs, part.columns.len()])?;
            out_cols = out_cols.saturating_add(part.outputs);
        }
        // The sum of the parts' output columns overflows only for matrices without elements.
        check::index(OPERATION, "output", out_cols, usize::MAX)?;
        Ok(Self { parts, in_cols, out_cols })
    }

    /// Returns the number of columns of the layer's input.
    pub fn in_cols(&self) -> usize {
        self.in_cols
    }

    /// Returns the number of columns of the layer's output.
    pub fn out_cols(&self) -> usize {
        self.out_cols
    }

    /// Writes row `ids[i]` of the layer's matrix to row `first_row + i` of `out`.
    pub(super) fn embed(
        &self,
        ids: &[u32],
        first_row: usize,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "embed";
        let [table] = self.parts.as_slice() else {
            return check::shape(OPERATION, "parts of the table", &[1], &[self.parts.len()]);
        };
        check::cols(OPERATION, "out", out, self.in_cols)?;
        let Some(more) = ids.len().checked_sub(1) else { return Ok(()) };
        check::index(OPERATION, "row", first_row.saturating_add(more), out.rows())?;
        for &id in ids {
            check::index(OPERATION, "token id", id as usize, table.outputs)?;
        }
        let elements = table.weight.elements();
        let precision = out.precision();
        for (&id, out) in ids.iter().zip(out.rows_in_mut(first_row..first_row + ids.len())) {
            let first = id as usize * table.stored + table.columns.start;
            elements.read_f32(first..first + out.len(), out);
            precision.round_all(out);
        }
        Ok(())
    }

    /// Computes the outputs of rows `rows` of `x`, and stores them in, or adds them to, the rows of `out`
    /// from `first_row` on.
    pub(super) fn apply(
        &self,
        (pool, vectors): (&Pool, Vectors),
        x: &CpuBuffer,
        rows: Range<usize>,
        output: Output,
        (out, first_row): (&mut CpuBuffer, usize),
    ) -> Result<(), DeviceError> {
        let operation = match output {
            Output::Store => "linear",
            Output::Add => "linear_add",
        };
        check::cols(operation, "x", x, self.in_cols)?;
        check::cols(operation, "out", out, self.out_cols)?;
        let rows = check::rows(operation, rows, &[x])?;
        let out_rows = first_row..first_row.saturating_add(rows.len());
        let out_rows = check::rows(operation, out_rows, &[out])?;
        if rows.is_empty() || self.out_cols == 0 {
            return Ok(());
        }
        for part in &self.parts {
            let (found, expected) = (part.weight.elements().len(), part.outputs * part.stored);
            check::shape(operation, "elements of weight", &[expected], &[found])?;
        }
        // The values of x are already rounded to bf16, so packing them loses nothing.
        let in_pairs = vectors.multiplies_pairs()
            && x.precision() == Precision::Bf16
            && self.parts.iter().any(|part| matches!(part.weight.elements(), Elements::Bf16(_)));
        let rounds = x.precision() == Precision::Q8
            && self.parts.iter().any(|part| part.weight.block_format().is_some());
        let x = x.matrix(rows.clone());
        let rounded = rounds.then(|| RoundedRows::new(vectors, &x));
        let packed: Vec<bf16> = if in_pairs { pack(&x) } else { Vec::new() };
        let pairs = Matrix { elements: packed.as_slice(), stride: x.cols, rows: x.rows, cols: x.cols };
        let work = x.rows.saturating_mul(self.in_cols).saturating_mul(self.out_cols);
        let precision = out.precision();
        let tasks = self.tasks(pool.threads(), out.rows_in_mut(out_rows).collect());
        pool.for_each(tasks, work, |task| match task.part.weight.elements() {
            Elements::F32(w) => vectors.run(Columns::<_, _, LANES> { w, x, task, output, precision }),
            Elements::F16(w) => vectors.run(Columns::<_, _, LANES> { w, x, task, output, precision }),
            Elements::Bf16(w) if in_pairs => {
                vectors.run_pairs(Columns::<_, _, PAIRS> { w, x: pairs, task, output, precision });
            }
            Elements::Bf16(w) => vectors.run(Columns::<_, _, LANES> { w, x, task, output, precision }),
            Elements::Blocks(blocks) => {
                let w = (blocks.bytes(), task.part.stored, task.part.outputs);
                let columns = BlockColumns { w, x, rounded: rounded.as_ref(), task, output, precision };
                match blocks.format() {
                    BlockFormat::Q4_0 => columns.multiply::<Q4Zero, 18, 2>(vectors),
                    BlockFormat::Q4_1 => columns.multiply::<Q4One, 20, 2>(vectors),
                    BlockFormat::Q8_0 => columns.multiply::<Q8Zero, 34, 2>(vectors),
                    BlockFormat::Q4K => columns.multiply::<Q4K, 144, 4>(vectors),
                    BlockFormat::Q5K => columns.multiply::<Q5K, 176, 4>(vectors),
                    BlockFormat::Q6K => columns.multiply::<Q6K, 210, 8>(vectors),
                }
            }
        });
        Ok(())
    }

    /// Divides the output among tasks, each with some columns of all rows of one part.
    fn tasks<'a>(&'a self, threads: usize, mut out: Vec<&'a mut [f32]>) -> Vec<Task<'a>> {
        let wanted = self.out_cols.div_ceil(threads.max(1) * TASKS_PER_THREAD).next_multiple_of(TASK_COLS);
        let width = if threads == 1 { self.out_cols } else { wanted };
        let mut tasks = Vec::new();
        for part in &self.parts {
            for start in (0..part.outputs).step_by(width) {
                let columns = start..part.outputs.min(start + width);
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

/// A task for one thread: some output columns of one part of the layer, for every row.
struct Task<'a> {
    part: &'a LinearSource,
    columns: Range<usize>,
    /// The output `[rows, columns]`.
    out: Vec<&'a mut [f32]>,
}

impl<'a> Task<'a> {
    /// Divides the rows into blocks that are multiplied together; `row_bytes` is the size of a row of x.
    fn row_blocks(&mut self, row_bytes: usize, output: Output) -> impl Iterator<Item = RowBlock<'_, 'a>> {
        let rows = (ROW_BLOCK_BYTES / row_bytes).next_multiple_of(MIN_BLOCK_ROWS).max(MIN_BLOCK_ROWS);
        let bias = self.part.bias.as_ref().map(|bias| &bias[self.columns.clone()]);
        self.out.chunks_mut(rows).enumerate().map(move |(index, out)| RowBlock {
            first_row: index * rows,
            out,
            bias,
            output,
        })
    }
}

/// Some rows of a task's output.
struct RowBlock<'b, 'a> {
    /// Index of the first row among the rows of x.
    first_row: usize,
    out: &'b mut [&'a mut [f32]],
    /// The bias of the task's columns, if there is one.
    bias: Option<&'a [f32]>,
    output: Output,
}

impl RowBlock<'_, '_> {
    /// Writes sums of row `m` to the columns from `n` on.
    #[inline(always)]
    fn write(&mut self, m: usize, n: usize, sums: &[f32]) {
        let out = &mut self.out[m][n..n + sums.len()];
        let bias = self.bias.map(|bias| &bias[n..n + sums.len()]);
        for (i, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
            let value = bias.map_or(sum, |bias| sum + bias[i]);
            *out = match self.output {
                Output::Store => value,
                Output::Add => *out + value,
            };
        }
    }

    #[inline(always)]
    fn round(&mut self, precision: Precision) {
        self.out.iter_mut().for_each(|row| precision.round_all(row));
    }
}

/// Packs the elements of `x`, which bf16 represents exactly, into bf16.
fn pack(x: &Matrix<'_, f32>) -> Vec<bf16> {
    let mut packed = Vec::with_capacity(x.rows * x.cols);
    for row in 0..x.rows {
        packed.extend(x.row(row).iter().map(|value| bf16::from_bits((value.to_bits() >> 16) as u16)));
    }
    packed
}

/// The operands of a product for some output columns, computed `K` elements at a time.
struct Columns<'a, X, T, const K: usize> {
    /// The stored matrix.
    w: &'a [T],
    x: Matrix<'a, X>,
    task: Task<'a>,
    output: Output,
    precision: Precision,
}

impl<X: Factor<T, K>, T: VectorElement, const K: usize> Kernel for Columns<'_, X, T, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, mut task, output, precision } = self;
        let w = task.part.matrix(w).rows_from(task.columns.start, task.columns.len());
        for mut block in task.row_blocks(x.cols.max(1) * size_of::<X>(), output) {
            let x = x.rows_from(block.first_row, block.out.len());
            products(simd, x, w, &mut |m, n, sums| block.write(m, n, sums));
            block.round(precision);
        }
    }
}

/// The operands of a product with quantised weights for some output columns.
struct BlockColumns<'a> {
    /// The bytes of the stored matrix, and its columns and rows.
    w: (&'a [u8], usize, usize),
    x: Matrix<'a, f32>,
    /// The rows of x, if the product rounds them to 8 bits.
    rounded: Option<&'a RoundedRows>,
    task: Task<'a>,
    output: Output,
    precision: Precision,
}

impl BlockColumns<'_> {
    fn multiply<F, const BYTES: usize, const V: usize>(self, vectors: Vectors)
    where
        F: Unpack<BYTES, V> + Integers<BYTES>,
    {
        let Self { w, x, rounded, task, output, precision } = self;
        match rounded {
            Some(x) => {
                let w = IntegerRows::<F, BYTES>::new(w);
                vectors.run_bytes(RoundedColumns { w, x, task, output, precision });
            }
            None => {
                let w = BlockRows::<F, BYTES, V>::new(w);
                vectors.run(WideColumns { w, x, task, output, precision });
            }
        }
    }
}

/// The operands of a product of quantised weights, unpacked to f32, and activations in f32.
struct WideColumns<'a, F, const BYTES: usize, const V: usize> {
    /// The stored matrix.
    w: BlockRows<'a, F, BYTES, V>,
    x: Matrix<'a, f32>,
    task: Task<'a>,
    output: Output,
    precision: Precision,
}

impl<F: Unpack<BYTES, V>, const BYTES: usize, const V: usize> Kernel for WideColumns<'_, F, BYTES, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, mut task, output, precision } = self;
        let w = w.rows_from(task.columns.start, task.columns.len());
        for mut block in task.row_blocks(x.cols.max(1) * size_of::<f32>(), output) {
            let x = x.rows_from(block.first_row, block.out.len());
            block_products(simd, x, w, &mut |m, n, sums| block.write(m, n, sums));
            block.round(precision);
        }
    }
}

/// The operands of a product of quantised weights and activations that are rounded to 8 bits.
struct RoundedColumns<'a, F, const BYTES: usize> {
    /// The stored matrix.
    w: IntegerRows<'a, F, BYTES>,
    x: &'a RoundedRows,
    task: Task<'a>,
    output: Output,
    precision: Precision,
}

impl<F: Integers<BYTES>, const BYTES: usize> Kernel for RoundedColumns<'_, F, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, mut task, output, precision } = self;
        let w = w.rows_from(task.columns.start, task.columns.len());
        for mut block in task.row_blocks(x.row_bytes().max(1), output) {
            let rows = (x, block.first_row, block.out.len());
            rounded_products(simd, rows, &w, &mut |m, n, sums| block.write(m, n, sums));
            block.round(precision);
        }
    }
}
