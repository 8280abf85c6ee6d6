//! The skinny matrix product: few rows of activations against a whole matrix of weights.
//!
//! `out[m][n] = Σ_k x[m][k] · w[n][k] + b[n]`. A general matrix product picks its order of summation
//! by the number of rows; this one never does. Each output is summed in 16 lanes along K (lane l takes
//! k = l, l + 16, …, the end padded with zeros), then by the tree of [`Simd::sum`], then the bias is
//! added. Tiles only decide how often a weight is loaded: once for several rows.

use std::ops::Range;

use super::buffer::Buffer;
use super::check;
use super::pool::Pool;
use super::simd::{Element, Kernel, LANES, Simd, Vectors, padded};
use crate::device::{DeviceError, LinearPart};
use crate::tensor::{Elements, Tensor};

/// A linear layer of one or several parts, whose outputs stand side by side.
pub struct Linear {
    parts: Vec<Part>,
    input: usize,
    output: usize,
}

struct Part {
    weight: Tensor,
    /// The stored columns that are used.
    columns: Range<usize>,
    bias: Option<Vec<f32>>,
    outputs: usize,
}

impl Linear {
    pub(super) fn new(parts: &[LinearPart<'_>]) -> Result<Self, DeviceError> {
        const OPERATION: &str = "new_linear";
        let mut linear = Self { parts: Vec::new(), input: 0, output: 0 };
        for part in parts {
            let &[outputs, stored] = part.weight.shape() else {
                let found = part.weight.shape().to_vec();
                let expected = vec![0, 0];
                return Err(DeviceError::Shape { operation: OPERATION, operand: "weight", expected, found });
            };
            let columns = part.columns.clone().unwrap_or(0..stored);
            if columns.start > columns.end || columns.end > stored {
                return Err(DeviceError::OutOfRange {
                    operation: OPERATION,
                    what: "column",
                    index: columns.end,
                    limit: stored + 1,
                });
            }
            let bias = part.bias.map(|bias| {
                check::shape(OPERATION, "bias", &[outputs], bias.shape()).map(|()| bias.to_f32())
            });
            if linear.parts.is_empty() {
                linear.input = columns.len();
            }
            check::shape(OPERATION, "weight", &[outputs, linear.input], &[outputs, columns.len()])?;
            linear.output += outputs;
            linear.parts.push(Part {
                weight: part.weight.clone(),
                columns,
                bias: bias.transpose()?,
                outputs,
            });
        }
        Ok(linear)
    }

    pub(super) fn input(&self) -> usize {
        self.input
    }

    pub(super) fn output(&self) -> usize {
        self.output
    }

    /// Row `row` of the first part, as f32: an embedding.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        if let Some(part) = self.parts.first() {
            let first = row * part.weight.shape()[1] + part.columns.start;
            part.weight.elements().read_f32(first..first + out.len(), out);
        }
    }

    /// Rows of the first part.
    pub(super) fn rows(&self) -> usize {
        self.parts.first().map_or(0, |part| part.outputs)
    }

    /// Writes (or with `add`, adds) the product of rows `rows` of `x` to the same rows of `out`.
    pub(super) fn apply(
        &self,
        pool: &Pool,
        vectors: Vectors,
        x: &Buffer,
        rows: Range<usize>,
        add: bool,
        out: &mut Buffer,
    ) {
        let inputs: Vec<&[f32]> = x.rows_in(rows.clone()).collect();
        let mut first = 0;
        for part in &self.parts {
            let mut columns = vec![0.0; part.outputs * inputs.len()];
            part.multiply(pool, vectors, &inputs, &mut columns);
            let precision = out.precision();
            for (m, row) in out.rows_in_mut(rows.clone()).enumerate() {
                for (n, value) in row[first..first + part.outputs].iter_mut().enumerate() {
                    let product = columns[n * inputs.len() + m];
                    let sum = part.bias.as_ref().map_or(product, |bias| product + bias[n]);
                    *value = precision.round(if add { *value + sum } else { sum });
                }
            }
            first += part.outputs;
        }
    }
}

impl Part {
    /// `out[n][m]`: transposed, so that each thread writes a range of its own.
    fn multiply(&self, pool: &Pool, vectors: Vectors, x: &[&[f32]], out: &mut [f32]) {
        match self.weight.elements() {
            Elements::F32(w) => self.multiply_elements(w, pool, vectors, x, out),
            Elements::F16(w) => self.multiply_elements(w, pool, vectors, x, out),
            Elements::Bf16(w) => self.multiply_elements(w, pool, vectors, x, out),
        }
    }

    fn multiply_elements<T: Element>(
        &self,
        weights: &[T],
        pool: &Pool,
        vectors: Vectors,
        x: &[&[f32]],
        out: &mut [f32],
    ) {
        if x.is_empty() {
            return;
        }
        let stored = self.weight.shape()[1];
        let work = self.outputs * self.columns.len() * x.len();
        let chunk = self.outputs.div_ceil(4 * pool.threads()).next_multiple_of(4).max(16);
        let chunks: Vec<_> = out.chunks_mut(chunk * x.len()).enumerate().collect();
        pool.for_each(chunks, work, |(index, out)| {
            let rows = (index * chunk..).take(out.len() / x.len());
            let weights: Vec<&[T]> = rows.map(|n| &weights[n * stored..][self.columns.clone()]).collect();
            vectors.run(Tiles { x, weights: &weights, out });
        });
    }
}

/// `out[n][m]` for all of `x` and `weights`, in register tiles.
struct Tiles<'a, T> {
    x: &'a [&'a [f32]],
    weights: &'a [&'a [T]],
    out: &'a mut [f32],
}

impl<T: Element> Kernel for Tiles<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.x.len();
        let mut n = 0;
        while n < self.weights.len() {
            let wide = n + 4 <= self.weights.len();
            let mut m = 0;
            while m < rows {
                let out = &mut self.out[n * rows + m..];
                let tall = m + 4 <= rows && S::REGISTERS >= 32;
                match (tall, wide) {
                    (true, true) => tile::<S, T, 4, 4>(simd, &self.x[m..], &self.weights[n..], rows, out),
                    (true, false) => tile::<S, T, 4, 1>(simd, &self.x[m..], &self.weights[n..], rows, out),
                    (false, true) => tile::<S, T, 1, 4>(simd, &self.x[m..], &self.weights[n..], rows, out),
                    (false, false) => tile::<S, T, 1, 1>(simd, &self.x[m..], &self.weights[n..], rows, out),
                }
                m += if tall { 4 } else { 1 };
            }
            n += if wide { 4 } else { 1 };
        }
    }
}

#[inline(always)]
fn tile<S: Simd, T: Element, const M: usize, const N: usize>(
    simd: S,
    x: &[&[f32]],
    weights: &[&[T]],
    rows: usize,
    out: &mut [f32],
) {
    let len = x[0].len();
    let whole = len - len % LANES;
    let mut sums = [[simd.splat(0.0); N]; M];
    let mut k = 0;
    while k < len {
        let mut w = [simd.splat(0.0); N];
        for n in 0..N {
            let element = &weights[n][k..];
            w[n] = match element.first_chunk::<LANES>() {
                Some(lanes) if k < whole => T::load(simd, lanes),
                _ => T::load(simd, &padded(element)),
            };
        }
        for m in 0..M {
            let element = &x[m][k..];
            let lanes = match element.first_chunk::<LANES>() {
                Some(lanes) if k < whole => simd.load(lanes),
                _ => simd.load(&padded(element)),
            };
            for n in 0..N {
                sums[m][n] = simd.mul_add(lanes, w[n], sums[m][n]);
            }
        }
        k += LANES;
    }
    for n in 0..N {
        for m in 0..M {
            out[n * rows + m] = simd.sum(sums[m][n]);
        }
    }
}
