//! The kernels of RMSNorm and of the addition to the residual stream.
//!
//! Rows are bf16 or f16 ([`HalfFloat`]), aligned to 16 bytes, with a multiple of 8 elements; the norm's weight is f32. Both kernels read and
//! write every row once, so their lower bound on time is the bytes of the rows divided by the memory's bandwidth. A row's
//! result does not depend on other rows.

use half::bf16;

use super::half_float::names;
use super::limits;
use super::operands::{Grid, Operands};
use super::params::norm::{FlexdraftAddParams, FlexdraftRmsNormParams};
use super::params::shapes::{FLEXDRAFT_NORM_SHARED, FLEXDRAFT_NORM_THREADS, FLEXDRAFT_ROW_THREADS};
use super::{HalfFloat, KernelError, Kernels};
use crate::runtime::{Runtime, View, ViewMut};

/// The residual stream `[rows, cols]`, with or without an addition before the norm.
#[derive(Debug)]
pub enum Residual<'a, T: HalfFloat = bf16> {
    /// The residual stream, which does not change.
    Is(View<'a, T>),
    /// The residual stream before an addition, with the values to add.
    Add {
        /// The residual stream, which is replaced by the sum.
        x: ViewMut<'a, T>,
        /// The values to add, `[rows, cols]`: the output of an attention or MLP block.
        delta: View<'a, T>,
    },
}

/// Operands of [`Kernels::rms_norm`].
#[derive(Debug)]
pub struct RmsNorm<'a, T: HalfFloat = bf16> {
    /// The rows to which the norm is applied.
    pub x: Residual<'a, T>,
    /// The norm's weight `[cols]`, aligned to 16 bytes.
    pub weight: View<'a, f32>,
    /// The rows after the norm, `[rows, cols]`.
    pub out: ViewMut<'a, T>,
    /// Epsilon, which is added to the mean of squares.
    pub eps: f32,
}

/// Operands of [`Kernels::add`].
#[derive(Debug)]
pub struct Add<'a, T: HalfFloat = bf16> {
    /// The vector `[elements]` to add to, with a multiple of 8 elements.
    pub x: ViewMut<'a, T>,
    /// The vector to add, with the same number of elements.
    pub delta: View<'a, T>,
}

impl<R: Runtime> Kernels<R> {
    /// Applies RMSNorm (arXiv 1910.07467), after an optional addition to the residual stream: writes
    /// `x[r] / sqrt(mean(x[r]²) + eps) · weight`. The sum is stored in `x`, rounded to the type of `x`, and the norm is
    /// computed from the rounded sum.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, norm::{Residual, RmsNorm}};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let (x, weight) = (vec![bf16::from_f32(3.0); 8], vec![0.5; 8]);
    /// let mut out = vec![bf16::ZERO; 8];
    /// kernels.rms_norm(&stream, &RmsNorm {
    ///     x: Residual::Is(stream.view(&x)),
    ///     weight: stream.view(&weight),
    ///     out: stream.view_mut(&mut out),
    ///     eps: 0.0,
    /// })?;
    /// assert_eq!(out, [bf16::from_f32(0.5); 8]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn rms_norm<T: HalfFloat>(
        &self,
        stream: &R::Stream,
        args: &RmsNorm<'_, T>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new(T::name(names!("rms_norm")), self.runtime.queue(stream));
        let width = args.weight.len();
        let row = operands.cols(width)?;
        let rows = args.out.len() / width;
        let elements = operands.product("x", &[rows, width])?;
        let (x, delta): (*mut T, *const T) = match &args.x {
            Residual::Is(x) => (operands.read("x", x, elements, 16)?.cast_mut(), std::ptr::null()),
            Residual::Add { x, delta } => {
                (operands.write("x", x, elements, 16)?, operands.read("delta", delta, elements, 16)?)
            }
        };
        let params = FlexdraftRmsNormParams {
            x: x.cast(),
            delta: delta.cast(),
            weight: operands.read("weight", &args.weight, width, 16)?,
            out: operands.write("out", &args.out, elements, 16)?.cast(),
            cols: row,
            rows: operands.i32("rows", rows)?,
            eps: args.eps,
        };
        let grid =
            Grid { threads: FLEXDRAFT_NORM_THREADS, ..operands.rows_grid(rows, FLEXDRAFT_NORM_SHARED)? };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Adds one vector to another: `x += delta`, with each sum rounded to the type of `x`.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, norm::Add};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let (mut x, delta) = (vec![bf16::ONE; 8], vec![bf16::from_f32(0.5); 8]);
    /// kernels.add(&stream, &Add { x: stream.view_mut(&mut x), delta: stream.view(&delta) })?;
    /// assert_eq!(x, [bf16::from_f32(1.5); 8]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn add<T: HalfFloat>(&self, stream: &R::Stream, args: &Add<'_, T>) -> Result<(), KernelError> {
        let mut operands = Operands::new(T::name(names!("add")), self.runtime.queue(stream));
        let elements = args.delta.len();
        operands.within(limits::elements(elements))?;
        let chunks = operands.i32("elements", elements / 8)?;
        let params = FlexdraftAddParams {
            x: operands.write("x", &args.x, elements, 16)?.cast(),
            delta: operands.read("delta", &args.delta, elements, 16)?.cast(),
            chunks: chunks.into(),
        };
        let ctas = chunks.cast_unsigned().div_ceil(FLEXDRAFT_ROW_THREADS);
        let grid = Grid { ctas: [ctas, 1, 1], threads: FLEXDRAFT_ROW_THREADS, shared_bytes: 0 };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}
