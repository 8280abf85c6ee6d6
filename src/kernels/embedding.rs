//! The kernels that copy rows by index: embeddings of token ids, and rows gathered from other rows.
//!
//! Both kernels copy rows of bf16 or f16 ([`HalfFloat`]) that are aligned to 16 bytes and have a multiple of 8 elements. They read and write every
//! row once, so their lower bound on time is the bytes of the rows divided by the memory's bandwidth.

use half::bf16;

use super::operands::Operands;
use super::params::embedding::{FlexdraftEmbedParams, FlexdraftGatherParams};
use super::{HalfFloat, KernelError, Kernels};
use crate::runtime::{Runtime, View, ViewMut};

/// Operands of [`Kernels::embed`].
#[derive(Debug)]
pub struct Embed<'a, T: HalfFloat = bf16> {
    /// Token ids `[rows]`. An id outside 0..`vocab` gives a row of zeros and sets value 2 in the error word.
    pub ids: View<'a, i32>,
    /// The embedding table `[vocab, cols]`.
    pub table: View<'a, T>,
    /// The embedding of each id, `[rows, cols]`.
    pub out: ViewMut<'a, T>,
    /// The device error word `[1]`, in which the kernel sets bits for faults; optional.
    pub error: Option<ViewMut<'a, u32>>,
    /// Elements per row of the table.
    pub cols: usize,
}

/// Operands of [`Kernels::gather`].
#[derive(Debug)]
pub struct Gather<'a, T: HalfFloat = bf16> {
    /// Row indices into `x`, `[rows]`. −1 gives a row of zeros. Any other index outside `x` also gives zeros, and
    /// sets value 16 in the error word.
    pub indices: View<'a, i32>,
    /// The rows to gather from, `[x rows, cols]`.
    pub x: View<'a, T>,
    /// The gathered rows, `[rows, cols]`.
    pub out: ViewMut<'a, T>,
    /// The device error word `[1]`, in which the kernel sets bits for faults; optional.
    pub error: Option<ViewMut<'a, u32>>,
    /// Elements per row of `x`.
    pub cols: usize,
}

impl<R: Runtime> Kernels<R> {
    /// Copies the embeddings of token ids: `out[r] = table[ids[r]]`.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, embedding::Embed};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let table: Vec<bf16> = (0..3 * 8).map(|x| bf16::from_f32(x as f32)).collect();
    /// let (mut out, mut error) = (vec![bf16::ONE; 2 * 8], [0]);
    /// kernels.embed(&stream, &Embed {
    ///     ids: stream.view(&[2, 7]),
    ///     table: stream.view(&table),
    ///     out: stream.view_mut(&mut out),
    ///     error: Some(stream.view_mut(&mut error)),
    ///     cols: 8,
    /// })?;
    /// assert_eq!(out[..8], table[16..]);
    /// // There is no token 7.
    /// assert_eq!((&out[8..], error), (&[bf16::ZERO; 8][..], [2]));
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn embed<T: HalfFloat>(&self, stream: &R::Stream, args: &Embed<'_, T>) -> Result<(), KernelError> {
        let mut operands = Operands::new("embed", self.runtime.queue(stream));
        let (rows, row) = (args.ids.len(), operands.cols(args.cols)?);
        let vocab = args.table.len() / args.cols;
        let table = operands.product("table", &[vocab, args.cols])?;
        let elements = operands.product("out", &[rows, args.cols])?;
        let params = FlexdraftEmbedParams {
            ids: operands.read("ids", &args.ids, rows, 4)?,
            table: operands.read("table", &args.table, table, 16)?.cast(),
            out: operands.write("out", &args.out, elements, 16)?.cast(),
            error: operands.error_word(args.error.as_ref())?,
            cols: row,
            rows: operands.i32("rows", rows)?,
            vocab: operands.i32("vocab", vocab)?,
        };
        let grid = operands.rows_grid(rows, 0)?;
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes;
        // the kernel checks ids.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Copies rows by index: `out[r] = x[indices[r]]`.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, embedding::Gather};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let x: Vec<bf16> = (0..3 * 8).map(|x| bf16::from_f32(x as f32)).collect();
    /// let mut out = vec![bf16::ONE; 2 * 8];
    /// kernels.gather(&stream, &Gather {
    ///     indices: stream.view(&[1, -1]),
    ///     x: stream.view(&x),
    ///     out: stream.view_mut(&mut out),
    ///     error: None,
    ///     cols: 8,
    /// })?;
    /// assert_eq!((&out[..8], &out[8..]), (&x[8..16], &[bf16::ZERO; 8][..]));
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn gather<T: HalfFloat>(&self, stream: &R::Stream, args: &Gather<'_, T>) -> Result<(), KernelError> {
        let mut operands = Operands::new("gather", self.runtime.queue(stream));
        let (rows, row) = (args.indices.len(), operands.cols(args.cols)?);
        let x_rows = args.x.len() / args.cols;
        let x = operands.product("x", &[x_rows, args.cols])?;
        let elements = operands.product("out", &[rows, args.cols])?;
        let params = FlexdraftGatherParams {
            indices: operands.read("indices", &args.indices, rows, 4)?,
            x: operands.read("x", &args.x, x, 16)?.cast(),
            out: operands.write("out", &args.out, elements, 16)?.cast(),
            error: operands.error_word(args.error.as_ref())?,
            cols: row,
            rows: operands.i32("rows", rows)?,
            x_rows: operands.i32("rows of x", x_rows)?,
        };
        let grid = operands.rows_grid(rows, 0)?;
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes;
        // the kernel checks indices.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}
