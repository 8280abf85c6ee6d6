//! The rotary position embedding in the rotate-half layout, with its gradient.

use candle_core::{D, DType, Device, Result, Tensor};
use flexdraft::device::Rope;
use rayon::prelude::*;

use super::{is_cpu_f32, rows_a_task, with_elements};

/// Cosines and sines of the rotations of some rows.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Cosines, `[rows, 1, head_dim / 2]`.
    cos: Tensor,
    /// Sines, `[rows, 1, head_dim / 2]`.
    sin: Tensor,
}

impl Rotation {
    /// Returns the rotation of one row per position, with the model's frequencies.
    pub fn new(rope: &Rope, positions: &[usize], dtype: DType, device: &Device) -> Result<Self> {
        let angles =
            positions.iter().flat_map(|&p| rope.inv_freq.iter().map(move |&f| p as f64 * f64::from(f)));
        let angles: Vec<f64> = angles.collect();
        let shape = (positions.len(), 1, rope.inv_freq.len());
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = angles.iter().map(|&a| f(a) * f64::from(rope.scale)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Rotates the rows of `x` `[rows, heads, head_dim]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.rotate(x, 1.0)
    }

    /// Returns the gradient of the operand of [`apply`](Self::apply): the inverse rotation.
    pub fn backward(&self, gradient: &Tensor) -> Result<Tensor> {
        self.rotate(gradient, -1.0)
    }

    fn rotate(&self, x: &Tensor, sign: f32) -> Result<Tensor> {
        let (rows, heads, head_dim) = x.dims3()?;
        let half = head_dim / 2;
        if !is_cpu_f32(x) {
            let sin = self.sin.affine(f64::from(sign), 0.0)?;
            let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
            let first = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&sin)?)?;
            return Tensor::cat(&[first, second], D::Minus1);
        }
        let mut out = vec![0f32; rows * heads * head_dim];
        with_elements(x, |x| {
            with_elements(&self.cos, |cos| {
                with_elements(&self.sin, |sin| {
                    let task = rows_a_task(heads * head_dim);
                    let tables = cos.par_chunks(task * half).zip(sin.par_chunks(task * half));
                    let operands = x.par_chunks(task * heads * head_dim).zip(tables);
                    out.par_chunks_mut(task * heads * head_dim).zip(operands).for_each(
                        |(out, (x, (cos, sin)))| {
                            for (row, (cos, sin)) in
                                cos.chunks_exact(half).zip(sin.chunks_exact(half)).enumerate()
                            {
                                let row = row * heads * head_dim..(row + 1) * heads * head_dim;
                                let heads = out[row.clone()].chunks_exact_mut(head_dim);
                                for (out, x) in heads.zip(x[row].chunks_exact(head_dim)) {
                                    rotate_head(out, x, cos, sin, sign);
                                }
                            }
                        },
                    );
                    Ok(())
                })
            })
        })?;
        Tensor::from_vec(out, (rows, heads, head_dim), x.device())
    }
}

fn rotate_head(out: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (a, b) = x.split_at(cos.len());
    let (first, second) = out.split_at_mut(cos.len());
    for (i, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
        let sin = sin * sign;
        first[i] = a[i] * cos - b[i] * sin;
        second[i] = b[i] * cos + a[i] * sin;
    }
}
