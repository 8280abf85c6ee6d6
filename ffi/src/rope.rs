//! Rotary embedding with the norms of q and k, and the append to the KV cache.

use std::ffi::c_void;

use flexdraft::kernels::rope::{NormRopeAppend, RopeTable};
use flexdraft::kernels::{HalfFloat, PagedKvMut, ProjectionsMut};
use flexdraft::layout::RowKind;
use flexdraft::runtime::Runtime;

use crate::attention::{FlexdraftCache, FlexdraftHeadRows};
use crate::buffer::{FlexdraftBuffer, Operands, Typed, with_half_float};
use crate::pass::FlexdraftPass;
use crate::processor::{Call, FlexdraftHeads, FlexdraftKernels, On, launch};
use crate::status::{FlexdraftError, Outcome, Refusal, borrow, versioned};

/// Kind of rows: the candidate rows of a pass.
pub const FLEXDRAFT_CANDIDATES: u32 = 0;
/// Kind of rows: the mask rows of a pass.
pub const FLEXDRAFT_MASKS: u32 = 1;

/// The operands of `flexdraft_rope_table`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRopeTable {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The tables of the pass, whose positions give the angles.
    pub pass: *const FlexdraftPass,
    /// Inverse frequencies in radians per position, f32 `[head_dim / 2]`.
    pub inv_freq: FlexdraftBuffer,
    /// Written: cosine and sine of each row, f32 `[rows, head_dim / 2, 2]`, aligned to 8 bytes; zeros for padding rows.
    pub cos_sin: FlexdraftBuffer,
    /// The factor of cosine and sine, which is 1 for most models.
    pub scale: f32,
    /// Unused; 0.
    pub reserved: u32,
}

/// The operands of `flexdraft_norm_rope_append`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftNormRopeAppend {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The tables of the pass.
    pub pass: *const FlexdraftPass,
    /// Numbers and size of the heads.
    pub heads: FlexdraftHeads,
    /// q, k and v heads of every row, of the cache's type: `[rows, (q_heads + 2 kv_heads) * head_dim]`, aligned to 16
    /// bytes; q, and the k of mask rows, change in place. In f16, results of at least 65520 become infinity. Absent if
    /// `q`, `k` and `v` are present.
    pub qkv: FlexdraftBuffer,
    /// Cosines and sines from `flexdraft_rope_table`, f32 `[rows, head_dim / 2, 2]`, aligned to 8 bytes.
    pub cos_sin: FlexdraftBuffer,
    /// Optional. RMSNorm weight of a q head, f32 `[head_dim]`; with it, `k_norm` is present too.
    pub q_norm: FlexdraftBuffer,
    /// Optional. RMSNorm weight of a k head, f32 `[head_dim]`.
    pub k_norm: FlexdraftBuffer,
    /// Written: the KV cache of the layer gets k and v of candidates at their positions.
    pub cache: FlexdraftCache,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
    /// Epsilon, which the norms add to the mean of squares.
    pub eps: f32,
    /// FLEXDRAFT_CANDIDATES or FLEXDRAFT_MASKS: the rows that the launch processes.
    pub kind: u32,
    /// q heads in a separate tensor, `[rows, q_heads * head_dim]`, in place of `qkv`. This tensor, `k` and `v` have
    /// only rows of this kind: row 0 is the first candidate row or the first mask row.
    pub q: FlexdraftHeadRows,
    /// k heads, `[rows, kv_heads * head_dim]`, with `q`.
    pub k: FlexdraftHeadRows,
    /// v heads, `[rows, kv_heads * head_dim]`, with `q`.
    pub v: FlexdraftHeadRows,
}

impl FlexdraftNormRopeAppend {
    /// Views the heads that change and that are appended.
    ///
    /// # Safety
    ///
    /// The operands are valid for their sizes for `'a`.
    unsafe fn projections<'a, T: HalfFloat + Typed>(
        &self,
        operands: Operands,
    ) -> Outcome<ProjectionsMut<'a, T>> {
        let shape = self.heads.shape()?;
        let (row, kv_row) = (shape.out_cols(), shape.kv_heads.saturating_mul(shape.head_dim));
        if [self.q, self.k, self.v].iter().all(FlexdraftHeadRows::is_absent) {
            // SAFETY: the caller upholds the contract of this function.
            return Ok(unsafe { operands.write::<T>("qkv", &self.qkv)? }.into());
        }
        if !self.qkv.is_absent() {
            return Err(Refusal::value(
                "qkv",
                "present together with separate tensors",
                "either `qkv` or separate tensors",
            ));
        }
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            Ok(ProjectionsMut::Separate {
                q: self.q.write(operands, "q", row)?,
                k: self.k.write(operands, "k", kv_row)?,
                v: self.v.read(operands, "v", kv_row)?,
            })
        }
    }
}

versioned!(FlexdraftRopeTable, FlexdraftNormRopeAppend before q);

impl Call for FlexdraftRopeTable {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that the pass is open and that operands are valid.
        let args = unsafe {
            RopeTable {
                pass: borrow("pass", self.pass)?.launched(on)?,
                inv_freq: operands.read("inv_freq", &self.inv_freq)?,
                scale: self.scale,
                cos_sin: operands.write("cos_sin", &self.cos_sin)?,
            }
        };
        Ok(on.kernels.rope_table(on.stream, &args)?)
    }
}

impl FlexdraftNormRopeAppend {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        let (k_strides, v_strides) = self.cache.strides()?;
        // SAFETY: the exported function's caller guarantees that the pass is open and that operands are valid.
        let args = unsafe {
            let norms = match self.q_norm.is_absent() && self.k_norm.is_absent() {
                true => None,
                false => {
                    Some((operands.read("q_norm", &self.q_norm)?, operands.read("k_norm", &self.k_norm)?))
                }
            };
            NormRopeAppend::<R, T> {
                pass: borrow("pass", self.pass)?.launched(on)?,
                kind: match self.kind {
                    FLEXDRAFT_CANDIDATES => RowKind::Candidates,
                    FLEXDRAFT_MASKS => RowKind::Masks,
                    other => return Err(Refusal::value("kind", other, "0 (candidates) or 1 (masks)")),
                },
                qkv: self.projections(operands)?,
                cos_sin: operands.read("cos_sin", &self.cos_sin)?,
                norms,
                eps: self.eps,
                cache: PagedKvMut {
                    k: operands.write("cache.k", &self.cache.k)?,
                    v: operands.write("cache.v", &self.cache.v)?,
                    k_strides,
                    v_strides,
                },
                shape: self.heads.shape()?,
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.norm_rope_append(on.stream, &args)?)
    }
}

impl Call for FlexdraftNormRopeAppend {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "cache.k", &self.cache.k)
    }
}

/// Computes the cosine and sine of every row's rotation angles (position times frequency), once for all layers of a
/// step.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_rope_table(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftRopeTable,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Applies the norms, if there are weights, and the rotation to q and k of the candidate rows or of the mask rows, and
/// appends the candidates' k and v to the cache.
///
/// Fault in `error_word`: 1 for a page id out of range, whose row is not written.
///
/// Errors: as in `flexdraft_joint_attention`; FLEXDRAFT_NULL if one norm is present without the other.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_norm_rope_append(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftNormRopeAppend,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}
