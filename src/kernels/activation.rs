//! The kernels of activation functions: silu(gate) · up of the MLP, and silu of the calibrator's hidden layer.
//!
//! Rows are bf16 or f16 ([`HalfFloat`]), aligned to 16 bytes, with a multiple of 8 elements. Both kernels read and write every row once, so
//! their lower bound on time is the bytes of the rows divided by the memory's bandwidth. A row's result does not depend
//! on other rows.

use half::bf16;

use super::half_float::names;
use super::limits;
use super::operands::{Grid, Operands};
use super::params::activation::{FlexdraftSiluAddParams, FlexdraftSiluMulParams};
use super::params::shapes::FLEXDRAFT_ROW_THREADS;
use super::{HalfFloat, KernelError, Kernels};
use crate::runtime::{Runtime, View, ViewMut};

/// Operands of [`Kernels::silu_mul`].
#[derive(Debug)]
pub struct SiluMul<'a, T: HalfFloat = bf16> {
    /// The gate and the up projection side by side, `[rows, 2 cols]`.
    pub x: View<'a, T>,
    /// The activation of each row, `[rows, cols]`.
    pub out: ViewMut<'a, T>,
    /// Elements per row of `out`.
    pub cols: usize,
}

/// Operands of [`Kernels::silu_add`].
#[derive(Debug)]
pub struct SiluAdd<'a, T: HalfFloat = bf16> {
    /// The draft slots' half of the calibrator's hidden layer, `[rows, cols]`, which its activation replaces.
    pub x: ViewMut<'a, T>,
    /// The bonus tokens' half of the calibrator's hidden layer, `[bonus rows, cols]`.
    pub bonus: View<'a, T>,
    /// The row of `bonus` for each row of `x`, `[rows]`. With −1, the row of `x` does not change. With any other index
    /// outside `bonus` it does not change either, and the kernel sets value 16 in the error word.
    pub owner: View<'a, i32>,
    /// The device error word `[1]`, in which the kernel sets bits for faults; optional.
    pub error: Option<ViewMut<'a, u32>>,
    /// Elements per row of `x`.
    pub cols: usize,
}

impl<R: Runtime> Kernels<R> {
    /// Computes the MLP's activation: `out[r] = silu(gate[r]) · up[r]`, where silu(x) = x / (1 + exp(−x)).
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, activation::SiluMul};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// // silu(20) is 20 to the last bit of bf16.
    /// let x = [[bf16::from_f32(20.0); 8], [bf16::from_f32(0.5); 8]].concat();
    /// let mut out = vec![bf16::ZERO; 8];
    /// kernels.silu_mul(&stream, &SiluMul { x: stream.view(&x), out: stream.view_mut(&mut out), cols: 8 })?;
    /// assert_eq!(out, [bf16::from_f32(10.0); 8]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn silu_mul<T: HalfFloat>(
        &self,
        stream: &R::Stream,
        args: &SiluMul<'_, T>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new(T::name(names!("silu_mul")), self.runtime.queue(stream));
        let row = operands.cols(args.cols)?;
        let rows = args.out.len() / args.cols;
        let elements = operands.product("out", &[rows, args.cols])?;
        let params = FlexdraftSiluMulParams {
            x: operands.read("x", &args.x, operands.product("x", &[elements, 2])?, 16)?.cast(),
            out: operands.write("out", &args.out, elements, 16)?.cast(),
            cols: row,
            rows: operands.i32("rows", rows)?,
            unused: 0,
        };
        // Each thread computes 8 columns.
        let blocks = args.cols.div_ceil(8 * FLEXDRAFT_ROW_THREADS as usize);
        operands.within(limits::activation_columns(args.cols))?;
        let ctas = [operands.i32("rows", rows)?.cast_unsigned(), blocks as u32, 1];
        let grid = Grid { ctas, threads: FLEXDRAFT_ROW_THREADS, shared_bytes: 0 };
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Computes the hidden layer of the bonus-guided calibrator: `x[r] = silu(x[r] + bonus[owner[r]])`. The
    /// layer's products are separate: one for all slots, and one per sequence for its bonus token.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, activation::SiluAdd};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let (mut x, bonus) = (vec![bf16::from_f32(8.0); 2 * 8], vec![bf16::from_f32(12.0); 8]);
    /// let mut error = [0];
    /// kernels.silu_add(&stream, &SiluAdd {
    ///     x: stream.view_mut(&mut x),
    ///     bonus: stream.view(&bonus),
    ///     owner: stream.view(&[0, 1]),
    ///     error: Some(stream.view_mut(&mut error)),
    ///     cols: 8,
    /// })?;
    /// assert_eq!(x[..8], [bf16::from_f32(20.0); 8]);
    /// // There is no row 1 of `bonus`.
    /// assert_eq!((&x[8..], error), (&[bf16::from_f32(8.0); 8][..], [16]));
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn silu_add<T: HalfFloat>(
        &self,
        stream: &R::Stream,
        args: &SiluAdd<'_, T>,
    ) -> Result<(), KernelError> {
        let mut operands = Operands::new(T::name(names!("silu_add")), self.runtime.queue(stream));
        let (rows, row) = (args.owner.len(), operands.cols(args.cols)?);
        let bonus_rows = args.bonus.len() / args.cols;
        let bonus = operands.product("bonus", &[bonus_rows, args.cols])?;
        let params = FlexdraftSiluAddParams {
            x: operands.write("x", &args.x, operands.product("x", &[rows, args.cols])?, 16)?.cast(),
            bonus: operands.read("bonus", &args.bonus, bonus, 16)?.cast(),
            owner: operands.read("owner", &args.owner, rows, 4)?,
            error: operands.error_word(args.error.as_ref())?,
            cols: row,
            rows: operands.i32("rows", rows)?,
            bonus_rows: operands.i32("rows of bonus", bonus_rows)?,
        };
        let grid = operands.rows_grid(rows, 0)?;
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes;
        // the kernel checks owners.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}
