//! Kernels on rows of the residual stream: embedding, gather, norm, addition and activations.
//!
//! Rows are bf16 with a multiple of 8 columns, `[rows, cols]`.

use candle_core::{DType, Result, Tensor};
use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};

use crate::operands::Elements::{Bf16, F32, Index};
use crate::operands::{ANY, dim};
use crate::processor::{Kernels, launch};

impl Kernels {
    /// Returns the rows of `table` `[vocab, cols]` that `ids` `[rows]` name, `[rows, cols]`. An id outside the table gives
    /// zeros and the fault [`Token`](flexdraft::kernels::Fault::Token).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn embed(&self, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
        let mut operands = self.operands("embed");
        let (rows, cols) = (dim(ids, 0), dim(table, 1));
        let ids = operands.read("ids", ids, Index, &[ANY])?;
        let table = operands.read("table", table, Bf16, &[ANY, ANY])?;
        let (out, result) = operands.output("out", DType::BF16, &[rows, cols])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            let (ids, table) = (memory.view(ids), memory.view(table));
            let (out, error) = (memory.view_mut(out), Some(memory.view_mut(error)));
            loaded.embed(stream, &Embed { ids, table, out, error, cols })
        })?;
        Ok(result)
    }

    /// Returns the rows of `x` `[x_rows, cols]` that `indices` `[rows]` name, `[rows, cols]`. Index −1 gives zeros; any
    /// other index outside `x` gives zeros and the fault [`Row`](flexdraft::kernels::Fault::Row).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn gather(&self, indices: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut operands = self.operands("gather");
        let (rows, cols) = (dim(indices, 0), dim(x, 1));
        let indices = operands.read("indices", indices, Index, &[ANY])?;
        let x = operands.read("x", x, Bf16, &[ANY, ANY])?;
        let (out, result) = operands.output("out", DType::BF16, &[rows, cols])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            let (indices, x) = (memory.view(indices), memory.view(x));
            let (out, error) = (memory.view_mut(out), Some(memory.view_mut(error)));
            loaded.gather(stream, &Gather { indices, x, out, error, cols })
        })?;
        Ok(result)
    }

    /// Returns x / √(mean(x²) + eps) · weight for each row, `[rows, cols]`. `weight` `[cols]` is f32.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.norm("rms_norm", x, None, weight, eps)
    }

    /// Adds `delta` to `x` in place, both `[rows, cols]`, and returns the [`rms_norm`](Self::rms_norm) of the sum as it was
    /// rounded.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn add_rms_norm(&self, x: &Tensor, delta: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.norm("add_rms_norm", x, Some(delta), weight, eps)
    }

    fn norm(
        &self,
        kernel: &'static str,
        x: &Tensor,
        delta: Option<&Tensor>,
        weight: &Tensor,
        eps: f32,
    ) -> Result<Tensor> {
        let mut operands = self.operands(kernel);
        let (rows, cols) = (dim(x, 0), dim(x, 1));
        let x = match delta {
            None => operands.read("x", x, Bf16, &[ANY, ANY])?,
            Some(_) => operands.write("x", x, Bf16, &[ANY, ANY])?,
        };
        let delta = operands.optional("delta", delta, Bf16, &[rows, cols])?;
        let weight = operands.read("weight", weight, F32, &[cols])?;
        let (out, result) = operands.output("out", DType::BF16, &[rows, cols])?;
        launch!(self, operands, |loaded, stream, memory| {
            let x = match delta {
                None => Residual::Is(memory.view(x)),
                Some(delta) => Residual::Add { x: memory.view_mut(x), delta: memory.view(delta) },
            };
            let (weight, out) = (memory.view(weight), memory.view_mut(out));
            loaded.rms_norm(stream, &RmsNorm { x, weight, out, eps })
        })?;
        Ok(result)
    }

    /// Adds `delta` to `x` in place, both `[rows, cols]`. Sums are rounded to bf16.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn add(&self, x: &Tensor, delta: &Tensor) -> Result<()> {
        let mut operands = self.operands("add");
        let shape = [dim(x, 0), dim(x, 1)];
        let x = operands.write("x", x, Bf16, &[ANY, ANY])?;
        let delta = operands.read("delta", delta, Bf16, &shape)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.add(stream, &Add { x: memory.view_mut(x), delta: memory.view(delta) })
        })
    }

    /// Returns silu(gate) · up, `[rows, cols]`. Each row of `x` `[rows, 2 · cols]` has gate, then up.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn silu_mul(&self, x: &Tensor) -> Result<Tensor> {
        let mut operands = self.operands("silu_mul");
        let (rows, cols) = (dim(x, 0), dim(x, 1) / 2);
        let x = operands.read("x", x, Bf16, &[ANY, ANY])?;
        let (out, result) = operands.output("out", DType::BF16, &[rows, cols])?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.silu_mul(stream, &SiluMul { x: memory.view(x), out: memory.view_mut(out), cols })
        })?;
        Ok(result)
    }

    /// Replaces each row of `x` `[rows, cols]` by silu(x + bonus), the calibrator's hidden layer. `owner` `[rows]` names the
    /// row of `bonus` `[drafts, cols]`; an owner outside `bonus` gives the fault
    /// [`Row`](flexdraft::kernels::Fault::Row).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn silu_add(&self, x: &Tensor, bonus: &Tensor, owner: &Tensor) -> Result<()> {
        let mut operands = self.operands("silu_add");
        let (rows, cols) = (dim(x, 0), dim(x, 1));
        let x = operands.write("x", x, Bf16, &[ANY, ANY])?;
        let bonus = operands.read("bonus", bonus, Bf16, &[ANY, cols])?;
        let owner = operands.read("owner", owner, Index, &[rows])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            let (x, bonus, owner) = (memory.view_mut(x), memory.view(bonus), memory.view(owner));
            loaded.silu_add(stream, &SiluAdd { x, bonus, owner, error: Some(memory.view_mut(error)), cols })
        })
    }
}
