//! The SwiGLU activation, SiLU(gate) · up, with its gradient.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{columns, is_cpu_f32, rows_a_task, with_elements};

/// Computes silu(gate) · up `[rows, n]` for rows `[rows, 2n]` that hold gate and up side by side.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    let n = columns(gate_up)? / 2;
    if !is_cpu_f32(gate_up) {
        let (gate, up) = (gate_up.narrow(D::Minus1, 0, n)?, gate_up.narrow(D::Minus1, n, n)?);
        return gate.silu()? * up;
    }
    let rows = gate_up.elem_count() / (2 * n).max(1);
    let mut out = vec![0f32; rows * n];
    with_elements(gate_up, |gate_up| {
        let task = rows_a_task(2 * n);
        out.par_chunks_mut(task * n).zip(gate_up.par_chunks(task * 2 * n)).for_each(|(out, gate_up)| {
            for (out, row) in out.chunks_exact_mut(n).zip(gate_up.chunks_exact(2 * n)) {
                let (gate, up) = row.split_at(n);
                for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate * sigmoid(gate) * up;
                }
            }
        });
        Ok(())
    })?;
    Tensor::from_vec(out, (rows, n), gate_up.device())
}

/// Returns the gradient of [`silu_mul`]'s operand `[rows, 2n]` from the gradient of its value `[rows, n]`.
pub fn silu_mul_backward(gate_up: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let n = columns(gradient)?;
    if !is_cpu_f32(gate_up) {
        let (gate, up) = (gate_up.narrow(D::Minus1, 0, n)?, gate_up.narrow(D::Minus1, n, n)?);
        let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
        let silu = (&gate * &sigmoid)?;
        // The derivative of SiLU: silu' = σ · (1 + x · (1 − σ)) = σ + silu · (1 − σ).
        let slope = (&sigmoid + (&silu * (1.0 - &sigmoid)?)?)?;
        let gate_gradient = ((gradient * up)? * slope)?;
        return Tensor::cat(&[gate_gradient, (gradient * silu)?], D::Minus1);
    }
    let rows = gradient.elem_count() / n.max(1);
    let mut out = vec![0f32; rows * 2 * n];
    with_elements(gate_up, |gate_up| {
        with_elements(gradient, |gradient| {
            let task = rows_a_task(2 * n);
            let operands = gate_up.par_chunks(task * 2 * n).zip(gradient.par_chunks(task * n));
            out.par_chunks_mut(task * 2 * n).zip(operands).for_each(|(out, (gate_up, gradient))| {
                let rows = gate_up.chunks_exact(2 * n).zip(gradient.chunks_exact(n));
                for (out, (row, gradient)) in out.chunks_exact_mut(2 * n).zip(rows) {
                    let (gate, up) = row.split_at(n);
                    let (gate_out, up_out) = out.split_at_mut(n);
                    let operands = gate.iter().zip(up).zip(gradient);
                    for ((gate_out, up_out), ((&gate, &up), &g)) in
                        gate_out.iter_mut().zip(up_out).zip(operands)
                    {
                        let sigmoid = sigmoid(gate);
                        let silu = gate * sigmoid;
                        *gate_out = g * up * (sigmoid + silu * (1.0 - sigmoid));
                        *up_out = g * silu;
                    }
                }
            });
            Ok(())
        })
    })?;
    Tensor::from_vec(out, (rows, 2 * n), gradient.device())
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + super::softmax::exp(-x))
}
