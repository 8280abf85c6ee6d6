//! Kernels for the operations between the matrix products of a decode step: embedding, norms, activations,
//! rotary embedding.
//!
//! Activations are bf16 rows; vectors (norm weights, frequencies) are f32. Every kernel reads and writes its
//! rows once, so its lower bound on time is the bytes of the rows divided by the memory's bandwidth. A row's
//! result does not depend on other rows. Rows are aligned to 16 bytes, so they have a multiple of 8 elements.

use half::bf16;

use super::kv::{KvShape, PagedKvMut};
use super::operands::{Grid, Operands};
use super::params::glue::{
    FlexdraftAddParams, FlexdraftEmbedParams, FlexdraftGatherParams, FlexdraftNormRopeAppendParams,
    FlexdraftRmsNormParams, FlexdraftRopeTableParams, FlexdraftSiluAddParams, FlexdraftSiluMulParams,
};
use super::params::shapes::{
    FLEXDRAFT_NORM_SHARED, FLEXDRAFT_NORM_THREADS, FLEXDRAFT_ROPE_THREADS, FLEXDRAFT_ROW_THREADS,
};
use super::pass::PassTables;
use super::{KernelError, Kernels};
use crate::layout::{AttentionShape, RowKind};
use crate::runtime::{Runtime, View, ViewMut};

fn rows_grid(operands: &Operands, rows: usize, shared_bytes: u32) -> Result<Grid, KernelError> {
    Ok(Grid {
        ctas: [operands.i32("rows", rows)? as u32, 1, 1],
        threads: FLEXDRAFT_ROW_THREADS,
        shared_bytes,
    })
}

fn cols(operands: &Operands, cols: usize) -> Result<i64, KernelError> {
    if cols == 0 || !cols.is_multiple_of(8) {
        return Err(operands.unsupported("number of columns", cols, "multiples of 8"));
    }
    operands.i32("columns", cols).map(i64::from)
}

/// Operands of [`Kernels::embed`].
#[derive(Debug)]
pub struct Embed<'a> {
    /// Token ids `[rows]`. An id outside 0..`vocab` gives a row of zeros and sets bit 2 of the error word.
    pub ids: View<'a, i32>,
    /// The embedding table `[vocab, cols]`.
    pub table: View<'a, bf16>,
    /// The embedding of each id, `[rows, cols]`.
    pub out: ViewMut<'a, bf16>,
    /// The device error word `[1]`, optional.
    pub error: Option<ViewMut<'a, u32>>,
    /// Elements per row.
    pub cols: usize,
}

/// Operands of [`Kernels::gather`].
#[derive(Debug)]
pub struct Gather<'a> {
    /// Row indices into `x`, `[rows]`. −1 gives a row of zeros. Any other index outside `x` also gives zeros,
    /// and sets bit 16 of the error word.
    pub indices: View<'a, i32>,
    /// The rows to gather from, `[x rows, cols]`.
    pub x: View<'a, bf16>,
    /// The gathered rows, `[rows, cols]`.
    pub out: ViewMut<'a, bf16>,
    /// The device error word `[1]`, optional.
    pub error: Option<ViewMut<'a, u32>>,
    /// Elements per row.
    pub cols: usize,
}

/// The residual stream `[rows, cols]`, with or without an addition before the norm.
#[derive(Debug)]
pub enum Residual<'a> {
    /// The stream, which does not change.
    Is(View<'a, bf16>),
    /// The stream before an addition, with the values to add.
    Add {
        /// The stream, which is replaced by the sum.
        x: ViewMut<'a, bf16>,
        /// The last block's output, which is added, `[rows, cols]`.
        delta: View<'a, bf16>,
    },
}

/// Operands of [`Kernels::rms_norm`].
#[derive(Debug)]
pub struct RmsNorm<'a> {
    /// The rows to norm.
    pub x: Residual<'a>,
    /// The norm's weight `[cols]`, aligned to 16 bytes.
    pub weight: View<'a, f32>,
    /// The normed rows, `[rows, cols]`.
    pub out: ViewMut<'a, bf16>,
    /// Epsilon, added to the mean of squares.
    pub eps: f32,
}

/// Operands of [`Kernels::add`].
#[derive(Debug)]
pub struct Add<'a> {
    /// The vector `[elements]` to add to, with a multiple of 8 elements.
    pub x: ViewMut<'a, bf16>,
    /// The vector to add, with the same number of elements.
    pub delta: View<'a, bf16>,
}

/// Operands of [`Kernels::silu_mul`].
#[derive(Debug)]
pub struct SiluMul<'a> {
    /// Gate and up side by side, `[rows, 2 cols]`.
    pub x: View<'a, bf16>,
    /// The result, `[rows, cols]`.
    pub out: ViewMut<'a, bf16>,
    /// Elements per row of `out`.
    pub cols: usize,
}

/// Operands of [`Kernels::silu_add`].
#[derive(Debug)]
pub struct SiluAdd<'a> {
    /// The slots' half of the calibrator's hidden layer `[rows, cols]`, replaced by its activation.
    pub x: ViewMut<'a, bf16>,
    /// The bonus tokens' half of the hidden layer, `[bonus rows, cols]`.
    pub bonus: View<'a, bf16>,
    /// The row of `bonus` for each row of `x`, `[rows]`. With −1, the row of `x` does not change. With any
    /// other index outside `bonus` it does not change either, and bit 16 of the error word is set.
    pub owner: View<'a, i32>,
    /// The device error word `[1]`, optional.
    pub error: Option<ViewMut<'a, u32>>,
    /// Elements per row.
    pub cols: usize,
}

/// Operands of [`Kernels::rope_table`].
#[derive(Debug)]
pub struct RopeTable<'a, B: Runtime> {
    /// The tables of the pass.
    pub pass: &'a PassTables<B>,
    /// Inverse frequencies `[head_dim / 2]`, in radians per position.
    pub inv_freq: View<'a, f32>,
    /// Factor on cosine and sine.
    pub scale: f32,
    /// Cosine and sine of the angles of every row, `[rows, head_dim / 2, 2]`.
    pub cos_sin: ViewMut<'a, f32>,
}

/// Operands of [`Kernels::norm_rope_append`].
#[derive(Debug)]
pub struct NormRopeAppend<'a, B: Runtime> {
    /// The tables of the pass.
    pub pass: &'a PassTables<B>,
    /// The kind of rows to work on.
    pub kind: RowKind,
    /// q, k and v heads of every row of the pass, `[rows, (q_heads + 2 kv_heads) · head_dim]`.
    pub qkv: ViewMut<'a, bf16>,
    /// Cosines and sines from [`Kernels::rope_table`].
    pub cos_sin: View<'a, f32>,
    /// RMSNorm weights for a q head and for a k head, `[head_dim]` each; `None` to skip the norms.
    pub norms: Option<(View<'a, f32>, View<'a, f32>)>,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The layer's KV cache.
    pub cache: PagedKvMut<'a>,
    /// Numbers of heads, and head_dim, which is 64 or 128.
    pub shape: AttentionShape,
    /// The device error word `[1]`, optional. If a page id is not in the cache, bit 1 is set, and the row's k
    /// and v are not written.
    pub error: Option<ViewMut<'a, u32>>,
}

impl<B: Runtime> Kernels<B> {
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
    /// use flexdraft::kernels::{Kernels, glue::Embed};
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
    pub fn embed(&self, stream: &B::Stream, args: &Embed<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("embed", self.runtime.queue(stream));
        let (rows, row) = (args.ids.len(), cols(&operands, args.cols)?);
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
        let grid = rows_grid(&operands, rows, 0)?;
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
    /// use flexdraft::kernels::{Kernels, glue::Gather};
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
    pub fn gather(&self, stream: &B::Stream, args: &Gather<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("gather", self.runtime.queue(stream));
        let (rows, row) = (args.indices.len(), cols(&operands, args.cols)?);
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
        let grid = rows_grid(&operands, rows, 0)?;
        // SAFETY: as in `embed`; the kernel checks indices.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Applies RMSNorm (arXiv 1910.07467), after an optional addition to the residual stream: writes
    /// `x[r] / sqrt(mean(x[r]²) + eps) · weight`. The sum is stored in `x`, rounded to bf16, and the norm is computed
    /// from the rounded sum.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, glue::{Residual, RmsNorm}};
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
    pub fn rms_norm(&self, stream: &B::Stream, args: &RmsNorm<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("rms_norm", self.runtime.queue(stream));
        let width = args.weight.len();
        let row = cols(&operands, width)?;
        let rows = args.out.len() / width;
        let elements = operands.product("x", &[rows, width])?;
        let (x, delta): (*mut bf16, *const bf16) = match &args.x {
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
            Grid { threads: FLEXDRAFT_NORM_THREADS, ..rows_grid(&operands, rows, FLEXDRAFT_NORM_SHARED)? };
        // SAFETY: as in `embed`.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Adds a vector to another one: `x += delta`, with each sum rounded to bf16.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, glue::Add};
    /// use half::bf16;
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let stream = kernels.runtime().stream();
    /// let (mut x, delta) = (vec![bf16::ONE; 8], vec![bf16::from_f32(0.5); 8]);
    /// kernels.add(&stream, &Add { x: stream.view_mut(&mut x), delta: stream.view(&delta) })?;
    /// assert_eq!(x, [bf16::from_f32(1.5); 8]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn add(&self, stream: &B::Stream, args: &Add<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("add", self.runtime.queue(stream));
        let elements = args.delta.len();
        if !elements.is_multiple_of(8) {
            return Err(operands.unsupported("number of elements", elements, "multiples of 8"));
        }
        let chunks = operands.i32("elements", elements / 8)?;
        let params = FlexdraftAddParams {
            x: operands.write("x", &args.x, elements, 16)?.cast(),
            delta: operands.read("delta", &args.delta, elements, 16)?.cast(),
            chunks: chunks.into(),
        };
        let ctas = chunks.cast_unsigned().div_ceil(FLEXDRAFT_ROW_THREADS);
        let grid = Grid { ctas: [ctas, 1, 1], threads: FLEXDRAFT_ROW_THREADS, shared_bytes: 0 };
        // SAFETY: as in `embed`.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

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
    /// use flexdraft::kernels::{Kernels, glue::SiluMul};
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
    pub fn silu_mul(&self, stream: &B::Stream, args: &SiluMul<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("silu_mul", self.runtime.queue(stream));
        let row = cols(&operands, args.cols)?;
        let rows = args.out.len() / args.cols;
        let elements = operands.product("out", &[rows, args.cols])?;
        let params = FlexdraftSiluMulParams {
            x: operands.read("x", &args.x, operands.product("x", &[elements, 2])?, 16)?.cast(),
            out: operands.write("out", &args.out, elements, 16)?.cast(),
            cols: row,
            rows: operands.i32("rows", rows)?,
            unused: 0,
        };
        // A thread computes 8 columns.
        let blocks = args.cols.div_ceil(8 * FLEXDRAFT_ROW_THREADS as usize);
        if blocks > 65_535 {
            return Err(operands.unsupported("number of columns", args.cols, "up to 67107840"));
        }
        let ctas = [operands.i32("rows", rows)?.cast_unsigned(), blocks as u32, 1];
        let grid = Grid { ctas, threads: FLEXDRAFT_ROW_THREADS, shared_bytes: 0 };
        // SAFETY: as in `embed`.
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
    /// use flexdraft::kernels::{Kernels, glue::SiluAdd};
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
    pub fn silu_add(&self, stream: &B::Stream, args: &SiluAdd<'_>) -> Result<(), KernelError> {
        let mut operands = Operands::new("silu_add", self.runtime.queue(stream));
        let (rows, row) = (args.owner.len(), cols(&operands, args.cols)?);
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
        let grid = rows_grid(&operands, rows, 0)?;
        // SAFETY: as in `embed`; the kernel checks owners.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Computes cosine and sine of every row's rotation, once for all layers of a step. The angle, position
    /// times frequency, is rounded to f32 as in transformers; its cosine and sine are accurate to 3e-7 at any
    /// position. Rows beyond the rows of the pass get zeros.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, Paging, PassTables, glue::RopeTable};
    /// use flexdraft::layout::{Pass, SequenceRows};
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
    /// let rows = SequenceRows { pages: &[0], start: 5, candidates: 1, groups: vec![], slots: 0 };
    /// let mut pass = PassTables::new(simt, &stream, 1, 1)?;
    /// let paging = Paging { pages: 1, page_size: 16 };
    /// pass.upload(simt, &stream, &Pass { sequences: vec![rows] }, paging)?;
    ///
    /// let inv_freq = vec![0.0f32, 1.0];
    /// let mut cos_sin = vec![0.0f32; 2 * 2];
    /// kernels.rope_table(&stream, &RopeTable {
    ///     pass: &pass,
    ///     inv_freq: stream.view(&inv_freq),
    ///     scale: 1.0,
    ///     cos_sin: stream.view_mut(&mut cos_sin),
    /// })?;
    /// // The one row is at position 5.
    /// assert_eq!(cos_sin[..2], [1.0, 0.0]);
    /// assert!((cos_sin[2] - 5f32.cos()).abs() < 1e-6 && (cos_sin[3] - 5f32.sin()).abs() < 1e-6);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn rope_table(&self, stream: &B::Stream, args: &RopeTable<'_, B>) -> Result<(), KernelError> {
        let mut operands = Operands::new("rope_table", self.runtime.queue(stream));
        let half_dim = args.inv_freq.len();
        if half_dim == 0 {
            return Err(operands.unsupported("number of frequencies", 0, "head_dim / 2"));
        }
        let rows = args.cos_sin.len() / half_dim / 2;
        let cos_sin = operands.product("cos_sin", &[rows.max(args.pass.rows()), half_dim, 2])?;
        let (pass, ..) = args.pass.params(&self.runtime, stream, &mut operands, rows, true)?;
        let params = FlexdraftRopeTableParams {
            pass,
            inv_freq: operands.read("inv_freq", &args.inv_freq, half_dim, 4)?,
            cos_sin: operands.write("cos_sin", &args.cos_sin, cos_sin, 8)?,
            scale: args.scale,
            half_dim: operands.i32("frequencies", half_dim)?,
        };
        let grid = Grid { ctas: [pass.rows as u32, 1, 1], threads: FLEXDRAFT_ROPE_THREADS, shared_bytes: 0 };
        // SAFETY: as in `embed`; the tables of the pass were checked when they were uploaded.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Applies norms (if there are weights) and rotation to the q and k heads of the pass's rows of one kind,
    /// and appends to the cache. q, and the k of mask rows, change in place. The k and v of candidate rows go
    /// into the cache, at their positions, and do not change in `qkv`.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::glue::NormRopeAppend;
    /// use flexdraft::kernels::{Kernels, KvStrides, PagedKvMut, Paging, PassTables};
    /// use half::bf16;
    /// use flexdraft::layout::{AttentionShape, RowKind, Pass, SequenceRows};
    ///
    /// let kernels = Kernels::new(Simt::new(SimtOptions::default()));
    /// let (simt, stream) = (kernels.runtime(), kernels.runtime().stream());
    /// let rows = SequenceRows { pages: &[0], start: 5, candidates: 1, groups: vec![], slots: 0 };
    /// let mut pass = PassTables::new(simt, &stream, 1, 1)?;
    /// let paging = Paging { pages: 1, page_size: 16 };
    /// pass.upload(simt, &stream, &Pass { sequences: vec![rows] }, paging)?;
    ///
    /// let shape = AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 64 };
    /// let mut qkv = vec![bf16::ONE; 3 * 64];
    /// // No turn at all: cosine 1, sine 0.
    /// let cos_sin = [1.0f32, 0.0].repeat(32);
    /// let (mut k, mut v) = (vec![bf16::ZERO; 16 * 64], vec![bf16::ZERO; 16 * 64]);
    /// let strides = KvStrides::token_major(16, 1, 64);
    /// kernels.norm_rope_append(&stream, &NormRopeAppend {
    ///     pass: &pass,
    ///     kind: RowKind::Candidates,
    ///     qkv: stream.view_mut(&mut qkv),
    ///     cos_sin: stream.view(&cos_sin),
    ///     norms: None,
    ///     eps: 1e-6,
    ///     cache: PagedKvMut {
    ///         k: stream.view_mut(&mut k),
    ///         v: stream.view_mut(&mut v),
    ///         k_strides: strides,
    ///         v_strides: strides,
    ///     },
    ///     shape,
    ///     error: None,
    /// })?;
    /// // Token 5 of page 0.
    /// assert_eq!(k[5 * 64..6 * 64], [bf16::ONE; 64]);
    /// assert_eq!(v[..5 * 64], [bf16::ZERO; 5 * 64]);
    /// # Ok::<(), flexdraft::kernels::KernelError>(())
    /// ```
    pub fn norm_rope_append(
        &self,
        stream: &B::Stream,
        args: &NormRopeAppend<'_, B>,
    ) -> Result<(), KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = args.shape;
        let kernel = match head_dim {
            64 => "norm_rope_append_d64",
            _ => "norm_rope_append_d128",
        };
        let mut operands = Operands::new(kernel, self.runtime.queue(stream));
        let stride = operands.qkv_cols(args.shape)?;
        let rows = (args.qkv.len() / stride).max(args.pass.rows());
        let (pass, page_table, page_table_stride) =
            args.pass.params(&self.runtime, stream, &mut operands, rows, true)?;
        let paging = args.pass.paging();
        let shape = KvShape { paging, kv_heads, head_dim, page_table, page_table_stride };
        let (first_row, end_row) = match args.kind {
            RowKind::Candidates => (0, args.pass.candidates()),
            RowKind::Masks => (args.pass.candidates(), args.pass.rows()),
        };
        let (q_norm, k_norm) = match &args.norms {
            Some((q, k)) => (Some(q), Some(k)),
            None => (None, None),
        };
        let elements = operands.product("qkv", &[rows, stride])?;
        let params = FlexdraftNormRopeAppendParams {
            pass,
            cache: args.cache.params(&mut operands, &shape)?,
            qkv: operands.write("qkv", &args.qkv, elements, 16)?.cast(),
            cos_sin: operands.read(
                "cos_sin",
                &args.cos_sin,
                operands.product("cos_sin", &[rows, head_dim])?,
                8,
            )?,
            q_norm: operands.read_optional("q norm", q_norm, head_dim, 4)?,
            k_norm: operands.read_optional("k norm", k_norm, head_dim, 4)?,
            error: operands.error_word(args.error.as_ref())?,
            qkv_stride: operands.i32("qkv columns", stride)?.into(),
            eps: args.eps,
            q_heads: operands.i32("q heads", q_heads)?,
            kv_heads: operands.i32("kv heads", kv_heads)?,
            first_row: operands.i32("rows", first_row)?,
            end_row: operands.i32("rows", end_row)?,
            unused: 0,
        };
        let head_ctas =
            operands.i32("heads", stride / head_dim)?.cast_unsigned().div_ceil(FLEXDRAFT_ROW_THREADS / 32);
        let ctas = [(params.end_row - params.first_row).cast_unsigned(), head_ctas, 1];
        let grid = Grid { ctas, threads: FLEXDRAFT_ROW_THREADS, shared_bytes: 0 };
        // SAFETY: as in `rope_table`; the kernel checks page ids again.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}
