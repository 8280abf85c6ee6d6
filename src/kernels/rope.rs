//! The kernels of the rotary embedding of q and k, with their norms and the append to the KV cache.
//!
//! Frequencies, rotations and norm weights are f32; rows and the cache are bf16 or f16 ([`HalfFloat`]). A row's result does not depend on other rows.

use half::bf16;

use super::half_float::names;
use super::kv::{KvShape, PagedKvMut};
use super::limits;
use super::operands::{Grid, Operands};
use super::params::rope::{FlexdraftNormRopeAppendParams, FlexdraftRopeTableParams};
use super::params::shapes::{FLEXDRAFT_ROPE_THREADS, FLEXDRAFT_ROW_THREADS};
use super::pass::PassTables;
use super::projections::ProjectionsMut;
use super::{HalfFloat, KernelError, Kernels};
use crate::layout::{AttentionShape, RowKind};
use crate::runtime::{Runtime, View, ViewMut};

/// Operands of [`Kernels::rope_table`].
#[derive(Debug)]
pub struct RopeTable<'a, R: Runtime> {
    /// The rows of the pass, whose positions give the angles.
    pub pass: &'a PassTables<R>,
    /// Inverse frequencies `[head_dim / 2]`, in radians per position.
    pub inv_freq: View<'a, f32>,
    /// The factor by which cosine and sine are multiplied.
    pub scale: f32,
    /// Written by the kernel: cosine and sine of the angles of every row, `[rows, head_dim / 2, 2]`.
    pub cos_sin: ViewMut<'a, f32>,
}

/// Operands of [`Kernels::norm_rope_append`].
#[derive(Debug)]
pub struct NormRopeAppend<'a, R: Runtime, T: HalfFloat = bf16> {
    /// The tables of the pass.
    pub pass: &'a PassTables<R>,
    /// The kind of rows that the kernel processes: candidate rows or mask rows.
    pub kind: RowKind,
    /// q, k and v heads, of every row of the pass or of the rows of this kind.
    pub qkv: ProjectionsMut<'a, T>,
    /// Cosines and sines from [`Kernels::rope_table`].
    pub cos_sin: View<'a, f32>,
    /// RMSNorm weights for a q head and for a k head, `[head_dim]` each; `None` to skip the norms.
    pub norms: Option<(View<'a, f32>, View<'a, f32>)>,
    /// Epsilon, which the norms add to the mean of squares.
    pub eps: f32,
    /// The KV cache of the layer.
    pub cache: PagedKvMut<'a, T>,
    /// Numbers of heads, and head_dim, which is 64 or 128.
    pub shape: AttentionShape,
    /// The device error word `[1]`, optional. If a page id is out of range, the kernel sets value 1, and does not write
    /// the row's k and v.
    pub error: Option<ViewMut<'a, u32>>,
}

impl<R: Runtime> Kernels<R> {
    /// Computes the cosine and sine of every row's rotation angles, once for all layers of a step. The angle, position
    /// times frequency, is rounded to f32 as in transformers; its cosine and sine are accurate to 3e-7 at any position.
    /// Rows beyond the rows of the pass get zeros.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::{Kernels, Paging, PassTables, rope::RopeTable};
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
    pub fn rope_table(&self, stream: &R::Stream, args: &RopeTable<'_, R>) -> Result<(), KernelError> {
        let mut operands = Operands::new("rope_table", self.runtime.queue(stream));
        let half_dim = args.inv_freq.len();
        operands.within(limits::frequencies(half_dim))?;
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
        // SAFETY: the parameters belong to this kernel, and its operands were checked against their shapes;
        // the tables of the pass were checked when they were uploaded.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }

    /// Applies norms (if there are weights) and the rotation to the q and k heads of the pass's candidate rows or mask
    /// rows, and appends the candidates' k and v to the cache. q, and the k of mask rows, change in place. The k and v
    /// of candidate rows go into the cache, at their positions, and do not change where they are. In f16, results of at
    /// least 65520 become infinity.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if operands do not fit each other.
    ///
    /// # Example
    ///
    /// ```
    /// use flexdraft::runtime::{Simt, SimtOptions};
    /// use flexdraft::kernels::rope::NormRopeAppend;
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
    ///     qkv: stream.view_mut(&mut qkv).into(),
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
    pub fn norm_rope_append<T: HalfFloat>(
        &self,
        stream: &R::Stream,
        args: &NormRopeAppend<'_, R, T>,
    ) -> Result<(), KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = args.shape;
        let kernel = match head_dim {
            64 => names!("norm_rope_append_d64"),
            _ => names!("norm_rope_append_d128"),
        };
        let mut operands = Operands::new(T::name(kernel), self.runtime.queue(stream));
        let columns = operands.qkv_cols(args.shape)?;
        operands.i32("qkv columns", columns)?;
        let (first_row, end_row) = match args.kind {
            RowKind::Candidates => (0, args.pass.candidates()),
            RowKind::Masks => (args.pass.candidates(), args.pass.rows()),
        };
        let of_pass = (first_row, end_row, args.pass.rows());
        let ([q, k, v], rows) =
            args.qkv.params(&mut operands, args.shape, of_pass, args.cos_sin.len() / head_dim)?;
        let (pass, page_table, page_table_stride) =
            args.pass.params(&self.runtime, stream, &mut operands, rows, true)?;
        let paging = args.pass.paging();
        let shape = KvShape { paging, kv_heads, head_dim, page_table, page_table_stride };
        let (q_norm, k_norm) = match &args.norms {
            Some((q, k)) => (Some(q), Some(k)),
            None => (None, None),
        };
        let params = FlexdraftNormRopeAppendParams {
            pass,
            cache: args.cache.params(&mut operands, &shape)?,
            q: q.address,
            k: k.address,
            v: v.address,
            cos_sin: operands.read(
                "cos_sin",
                &args.cos_sin,
                operands.product("cos_sin", &[rows, head_dim])?,
                8,
            )?,
            q_norm: operands.read_optional("q norm", q_norm, head_dim, 4)?,
            k_norm: operands.read_optional("k norm", k_norm, head_dim, 4)?,
            error: operands.error_word(args.error.as_ref())?,
            q_stride: q.stride,
            k_stride: k.stride,
            v_stride: v.stride,
            eps: args.eps,
            q_heads: operands.i32("q heads", q_heads)?,
            kv_heads: operands.i32("kv heads", kv_heads)?,
            first_row: operands.i32("rows", first_row)?,
            end_row: operands.i32("rows", end_row)?,
            unused: 0,
        };
        let head_ctas =
            operands.i32("heads", columns / head_dim)?.cast_unsigned().div_ceil(FLEXDRAFT_ROW_THREADS / 32);
        let ctas = [(params.end_row - params.first_row).cast_unsigned(), head_ctas, 1];
        let grid = Grid { ctas, threads: FLEXDRAFT_ROW_THREADS, shared_bytes: 0 };
        // SAFETY: as in `rope_table`; the kernel checks page ids again.
        unsafe { operands.launch(&self.runtime, stream, grid, &params) }
    }
}
