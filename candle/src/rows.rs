//! Kernels on rows of the residual stream: embedding, gather, norm, addition and activations.
//!
//! Rows are bf16 or f16 with a multiple of 8 columns, `[rows, cols]`; all rows of a call have one of the two types.

use candle_core::{Result, Tensor};
use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};

use crate::operands::Elements::{self, F32, Index};
use crate::operands::{ANY, Half, dim, of_half};
use crate::processor::{Kernels, launch};

impl Kernels {
    /// Returns the rows of `table` `[vocab, cols]` that `ids` `[rows]` name, `[rows, cols]`. An id outside the table gives
    /// zeros and the fault [`Token`](flexdraft::kernels::Fault::Token).
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn embed(&self, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
        of_half!(table, self.embed_of(ids, table))
    }

    fn embed_of<T: Half>(&self, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
        let mut operands = self.operands("embed");
        let (rows, cols) = (dim(ids, 0), dim(table, 1));
        let ids = operands.read("ids", ids, Index, &[ANY])?;
        let table = operands.read("table", table, Elements::Half, &[ANY, ANY])?;
        let (out, result) = operands.output("out", T::DTYPE, &[rows, cols])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            let (ids, table) = (memory.view(ids), memory.view::<T>(table));
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
        of_half!(x, self.gather_of(indices, x))
    }

    fn gather_of<T: Half>(&self, indices: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut operands = self.operands("gather");
        let (rows, cols) = (dim(indices, 0), dim(x, 1));
        let indices = operands.read("indices", indices, Index, &[ANY])?;
        let x = operands.read("x", x, Elements::Half, &[ANY, ANY])?;
        let (out, result) = operands.output("out", T::DTYPE, &[rows, cols])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            let (indices, x) = (memory.view(indices), memory.view::<T>(x));
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
        of_half!(x, self.norm("rms_norm", x, None, weight, eps))
    }

    /// Adds `delta` to `x` in place, both `[rows, cols]`, and returns the [`rms_norm`](Self::rms_norm) of the sum as it was
    /// rounded.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn add_rms_norm(&self, x: &Tensor, delta: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        of_half!(x, self.norm("add_rms_norm", x, Some(delta), weight, eps))
    }

    fn norm<T: Half>(
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
            None => operands.read("x", x, Elements::Half, &[ANY, ANY])?,
            Some(_) => operands.write("x", x, Elements::Half, &[ANY, ANY])?,
        };
        let delta = operands.optional("delta", delta, T::ELEMENTS, &[rows, cols])?;
        let weight = operands.read("weight", weight, F32, &[cols])?;
        let (out, result) = operands.output("out", T::DTYPE, &[rows, cols])?;
        launch!(self, operands, |loaded, stream, memory| {
            let x: Residual<'_, T> = match delta {
                None => Residual::Is(memory.view(x)),
                Some(delta) => Residual::Add { x: memory.view_mut(x), delta: memory.view(delta) },
            };
            let (weight, out) = (memory.view(weight), memory.view_mut(out));
            loaded.rms_norm(stream, &RmsNorm { x, weight, out, eps })
        })?;
        Ok(result)
    }

    /// Adds `delta` to `x` in place, both `[rows, cols]`. Sums are rounded to the type of `x`.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn add(&self, x: &Tensor, delta: &Tensor) -> Result<()> {
        of_half!(x, self.add_of(x, delta))
    }

    fn add_of<T: Half>(&self, x: &Tensor, delta: &Tensor) -> Result<()> {
        let mut operands = self.operands("add");
        let shape = [dim(x, 0), dim(x, 1)];
        let x = operands.write("x", x, Elements::Half, &[ANY, ANY])?;
        let delta = operands.read("delta", delta, T::ELEMENTS, &shape)?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.add(stream, &Add { x: memory.view_mut::<T>(x), delta: memory.view(delta) })
        })
    }

    /// Returns silu(gate) · up, `[rows, cols]`. Each row of `x` `[rows, 2 · cols]` has gate, then up.
    ///
    /// # Errors
    ///
    /// An [`Error`](crate::Error) if operands do not fit each other.
    pub fn silu_mul(&self, x: &Tensor) -> Result<Tensor> {
        of_half!(x, self.silu_mul_of(x))
    }

    fn silu_mul_of<T: Half>(&self, x: &Tensor) -> Result<Tensor> {
        let mut operands = self.operands("silu_mul");
        let (rows, cols) = (dim(x, 0), dim(x, 1) / 2);
        let x = operands.read("x", x, Elements::Half, &[ANY, ANY])?;
        let (out, result) = operands.output("out", T::DTYPE, &[rows, cols])?;
        launch!(self, operands, |loaded, stream, memory| {
            loaded.silu_mul(stream, &SiluMul { x: memory.view::<T>(x), out: memory.view_mut(out), cols })
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
        of_half!(x, self.silu_add_of(x, bonus, owner))
    }

    fn silu_add_of<T: Half>(&self, x: &Tensor, bonus: &Tensor, owner: &Tensor) -> Result<()> {
        let mut operands = self.operands("silu_add");
        let (rows, cols) = (dim(x, 0), dim(x, 1));
        let x = operands.write("x", x, Elements::Half, &[ANY, ANY])?;
        let bonus = operands.read("bonus", bonus, T::ELEMENTS, &[ANY, cols])?;
        let owner = operands.read("owner", owner, Index, &[rows])?;
        let error = self.faults(&mut operands)?;
        launch!(self, operands, |loaded, stream, memory| {
            let (x, bonus, owner) = (memory.view_mut::<T>(x), memory.view(bonus), memory.view(owner));
            loaded.silu_add(stream, &SiluAdd { x, bonus, owner, error: Some(memory.view_mut(error)), cols })
        })
    }
}
