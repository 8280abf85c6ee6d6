//! Joint draft-and-verify attention.

use std::ffi::c_void;

use flexdraft::kernels::attention::{DEFAULT_SPLIT, JointAttention, attention_workspace_len};
use flexdraft::kernels::{
    HalfFloat, HeadRows, HeadRowsMut, KvStrides, MaskProjections, PagedKv, Projections, ScoreChanges,
};
use flexdraft::runtime::{Runtime, View};

use crate::buffer::{FlexdraftBuffer, Operands, Typed, with_half_float};
use crate::pass::FlexdraftPass;
use crate::processor::{Call, FlexdraftHeads, FlexdraftKernels, On, launch};
use crate::status::{FlexdraftError, Outcome, Refusal, borrow, flag, guard, read, size, versioned, write};

/// One layer of a paged KV cache. Strides are in elements and multiples of 8; the elements of a head are adjacent. The
/// layouts `[page, token, head, dim]` and `[page, head, token, dim]` both work.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftCache {
    /// Keys, bf16 or f16, aligned to 16 bytes. Their type is the type of all rows and caches of the call.
    pub k: FlexdraftBuffer,
    /// Values, of the type of `k`, aligned to 16 bytes.
    pub v: FlexdraftBuffer,
    /// Distance from a page of `k` to the next.
    pub k_page_stride: u64,
    /// Distance from a token of `k` to the next within a page.
    pub k_token_stride: u64,
    /// Distance from a head of `k` to the next within a token.
    pub k_head_stride: u64,
    /// Distance from a page of `v` to the next.
    pub v_page_stride: u64,
    /// Distance from a token of `v` to the next within a page.
    pub v_token_stride: u64,
    /// Distance from a head of `v` to the next within a token.
    pub v_head_stride: u64,
}

impl FlexdraftCache {
    /// Returns the strides of keys and values.
    pub(crate) fn strides(&self) -> Outcome<(KvStrides, KvStrides)> {
        let strides = |page, token, head| -> Outcome<KvStrides> {
            Ok(KvStrides {
                page: size("page_stride", page)?,
                token: size("token_stride", token)?,
                head: size("head_stride", head)?,
            })
        };
        Ok((
            strides(self.k_page_stride, self.k_token_stride, self.k_head_stride)?,
            strides(self.v_page_stride, self.v_token_stride, self.v_head_stride)?,
        ))
    }
}

/// Rows of heads in a separate tensor. The heads of a row are adjacent; rows may be parts of longer rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftHeadRows {
    /// The memory of the rows, of the cache's type, from the first element of row 0 to at least the last element of the
    /// last row, aligned to 16 bytes.
    pub rows: FlexdraftBuffer,
    /// Distance from a row to the next in elements, a multiple of 8; 0 for rows without gaps.
    pub stride: u64,
}

impl FlexdraftHeadRows {
    /// No rows.
    pub const ABSENT: Self = FlexdraftHeadRows { rows: FlexdraftBuffer::ABSENT, stride: 0 };

    pub(crate) fn is_absent(&self) -> bool {
        self.rows.is_absent()
    }

    /// Returns the distance of rows of `row` elements.
    fn stride(&self, name: &str, row: usize) -> Outcome<usize> {
        if self.stride == 0 { Ok(row) } else { size(name, self.stride) }
    }

    /// Views rows of `row` elements that a kernel reads.
    ///
    /// # Safety
    ///
    /// The conditions of [`Operands::read`].
    pub(crate) unsafe fn read<'a, T: HalfFloat + Typed>(
        &self,
        operands: Operands,
        name: &str,
        row: usize,
    ) -> Outcome<HeadRows<'a, T>> {
        // SAFETY: the caller upholds the contract of this function.
        let view = unsafe { operands.read(name, &self.rows)? };
        Ok(HeadRows { view, stride: self.stride(name, row)? })
    }

    /// Views rows of `row` elements that a kernel writes.
    ///
    /// # Safety
    ///
    /// The conditions of [`Operands::write`].
    pub(crate) unsafe fn write<'a, T: HalfFloat + Typed>(
        &self,
        operands: Operands,
        name: &str,
        row: usize,
    ) -> Outcome<HeadRowsMut<'a, T>> {
        // SAFETY: the caller upholds the contract of this function.
        let view = unsafe { operands.write(name, &self.rows)? };
        Ok(HeadRowsMut { view, stride: self.stride(name, row)? })
    }
}

/// The operands of `flexdraft_joint_attention`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftJointAttention {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The tables of the pass whose rows attend.
    pub pass: *const FlexdraftPass,
    /// Numbers and size of the heads.
    pub heads: FlexdraftHeads,
    /// q, k and v heads of every row, after `flexdraft_norm_rope_append`, of the cache's type: `[rows, (q_heads + 2
    /// kv_heads) * head_dim]`, aligned to 16 bytes. The kernel reads the k and v of mask rows here, and the k and v of candidates
    /// in the cache. Rows after the rows of the pass are padding. Absent if `q` is present.
    pub qkv: FlexdraftBuffer,
    /// The KV cache of the layer.
    pub cache: FlexdraftCache,
    /// Written: the output of each row, of the cache's type: `[rows, q_heads * head_dim]`, aligned to 16 bytes; zeros for
    /// padding.
    pub out: FlexdraftBuffer,
    /// Optional. Written: the natural logarithm of the sum of exp(score), f32 `[rows, q_heads]`; -inf for padding.
    pub lse: FlexdraftBuffer,
    /// f32, at least `flexdraft_attention_workspace_len` elements, aligned to 8 bytes; its contents do not matter.
    pub workspace: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`, see `flexdraft_faults`.
    pub error_word: FlexdraftBuffer,
    /// Keys per split of a long sequence, a multiple of 64, or 0 for 512. Results with another split differ in
    /// rounding.
    pub split: u64,
    /// 1 if the mask rows of the pass take part; 0 below the tail layers, which have only candidate rows.
    pub with_masks: u32,
    /// Unused; 0.
    pub reserved: u32,
    /// q heads of the candidate rows in a separate tensor, `[candidates, q_heads * head_dim]`, in place of `qkv`;
    /// absent if the pass has no candidates.
    pub q: FlexdraftHeadRows,
    /// q heads of the mask rows, `[mask rows, q_heads * head_dim]`, in place of `qkv`; absent if no mask rows take part.
    pub mask_q: FlexdraftHeadRows,
    /// k heads of the mask rows, `[mask rows, kv_heads * head_dim]`, with `mask_q`.
    pub mask_k: FlexdraftHeadRows,
    /// v heads of the mask rows, `[mask rows, kv_heads * head_dim]`, with `mask_q`.
    pub mask_v: FlexdraftHeadRows,
    /// Optional. A score for each query head, f32 `[q_heads]`, that joins the softmax of every row without a key or a
    /// value (attention sinks, as in gpt-oss). It counts in `lse`.
    pub sinks: FlexdraftBuffer,
    /// The number of positions that a row sees up to its own (sliding window), at least 65; 0 for no window. A row at
    /// position p sees the cached positions above p - window, and a mask row all slots of its group.
    pub window: u64,
    /// The cap c of a soft cap, 1 to 1000: a score s becomes c * tanh(s / c); 0 for no cap.
    pub soft_cap: f32,
    /// Unused; 0.
    pub unused: u32,
}

impl FlexdraftJointAttention {
    /// Views the heads that attention reads.
    ///
    /// # Safety
    ///
    /// The operands are valid for their sizes for `'a`.
    unsafe fn projections<'a, T: HalfFloat + Typed>(
        &self,
        operands: Operands,
    ) -> Outcome<Projections<'a, T>> {
        let shape = self.heads.shape()?;
        let (row, kv_row) = (shape.out_cols(), shape.kv_heads.saturating_mul(shape.head_dim));
        let has_masks = ![self.mask_q, self.mask_k, self.mask_v].iter().all(FlexdraftHeadRows::is_absent);
        if self.q.is_absent() && !has_masks {
            // SAFETY: the caller upholds the contract of this function.
            return Ok(unsafe { operands.read::<T>("qkv", &self.qkv)? }.into());
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
            let masks = match has_masks {
                true => Some(MaskProjections {
                    q: self.mask_q.read(operands, "mask_q", row)?,
                    k: self.mask_k.read(operands, "mask_k", kv_row)?,
                    v: self.mask_v.read(operands, "mask_v", kv_row)?,
                }),
                false => None,
            };
            let q = match self.q.is_absent() {
                // A pass without candidates needs no q here; the launch refuses a pass with candidates.
                true => HeadRows { view: View::from_raw(0, 0, operands.0), stride: row },
                false => self.q.read(operands, "q", row)?,
            };
            Ok(Projections::Separate { q, masks })
        }
    }
}

/// The sizes from which `flexdraft_attention_workspace_len` computes the length of the workspace.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftAttentionSize {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The tables of the uploaded pass; null for a bound that holds for every pass within `rows` and `longest`.
    pub pass: *const FlexdraftPass,
    /// Numbers and size of the heads.
    pub heads: FlexdraftHeads,
    /// Number of rows of the operands.
    pub rows: u64,
    /// The largest number of cached positions that a sequence sees; used without a pass.
    pub longest: u64,
    /// Keys per split, or 0 for 512.
    pub split: u64,
    /// 1 if the mask rows of the pass take part.
    pub with_masks: u32,
    /// Unused; 0.
    pub reserved: u32,
}

versioned!(FlexdraftJointAttention before q, FlexdraftAttentionSize);

fn split_of(split: u64) -> Outcome<usize> {
    if split == 0 { Ok(DEFAULT_SPLIT) } else { size("split", split) }
}

impl FlexdraftJointAttention {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        let (k_strides, v_strides) = self.cache.strides()?;
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            JointAttention::<R, T> {
                pass: borrow("pass", self.pass)?.launched(on)?,
                masks: flag("with_masks", self.with_masks)?,
                qkv: self.projections(operands)?,
                cache: PagedKv {
                    k: operands.read("cache.k", &self.cache.k)?,
                    v: operands.read("cache.v", &self.cache.v)?,
                    k_strides,
                    v_strides,
                },
                out: operands.write("out", &self.out)?,
                lse: operands.write_optional("lse", &self.lse)?,
                workspace: operands.write("workspace", &self.workspace)?,
                shape: self.heads.shape()?,
                split: split_of(self.split)?,
                scores: ScoreChanges {
                    window: (self.window != 0).then(|| size("window", self.window)).transpose()?,
                    soft_cap: (self.soft_cap != 0.0).then_some(self.soft_cap),
                    sinks: operands.read_optional("sinks", &self.sinks)?,
                },
                error: operands.write_optional("error_word", &self.error_word)?,
            }
        };
        Ok(on.kernels.joint_attention(on.stream, &args)?)
    }
}

impl Call for FlexdraftJointAttention {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "cache.k", &self.cache.k)
    }
}

impl Call for FlexdraftAttentionSize {
    type Output = u64;

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<u64> {
        let (shape, rows, split) = (self.heads.shape()?, size("rows", self.rows)?, split_of(self.split)?);
        let len = if self.pass.is_null() {
            attention_workspace_len(shape, rows, size("longest", self.longest)?, split)
        } else {
            // SAFETY: the exported function's caller guarantees that the pass is open.
            let tables = unsafe { borrow("pass", self.pass)? }.tables(on)?;
            let masks = flag("with_masks", self.with_masks)?;
            on.kernels.attention_workspace_len(tables, masks, rows, shape, split)
        };
        len.map(|len| len as u64).ok_or_else(|| Refusal::overflow("workspace"))
    }
}

/// Writes to `len` the number of f32 elements of workspace that `flexdraft_joint_attention` needs: for the uploaded
/// pass, or, if `size->pass` is null, for any pass of up to `rows` rows whose sequences see up to `longest` positions.
///
/// Errors: FLEXDRAFT_OVERFLOW if the number is too large.
///
/// # Safety
///
/// `kernels` and the pass are null or open; `size`, `len` and `error` are null or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_attention_workspace_len(
    kernels: *const FlexdraftKernels,
    size: *const FlexdraftAttentionSize,
    len: *mut u64,
    error: *mut FlexdraftError,
) -> i32 {
    let body = || {
        // SAFETY: the caller upholds the contract of this function.
        let (kernels, size) = unsafe { (borrow("kernels", kernels)?, read(size)?) };
        let elements = kernels.run(std::ptr::null_mut(), &size)?;
        // SAFETY: as above.
        unsafe { write("len", len, elements) }
    };
    // SAFETY: the caller upholds the contract of this function.
    unsafe { guard(error, body) }
}

/// Computes softmax(q K^T / sqrt(head_dim)) V over the keys that each row of the pass sees, for one layer: candidates
/// and mask groups together, candidates alone, or groups alone. One launch, or two if the keys of a sequence are
/// divided.
///
/// Candidate i sees the cached positions 0 to n + i. A slot of group k sees the cached positions 0 to n + k, and all
/// slots of its group. Products have operands of the cache's type, bf16 or f16, and f32 sums. A row's bits do not
/// depend on the other rows of the batch.
///
/// Faults in `error_word`: 1 for a page id out of range, 8 for a sequence that is longer than the workspace allows.
///
/// Errors: FLEXDRAFT_NULL, FLEXDRAFT_DTYPE, FLEXDRAFT_LENGTH, FLEXDRAFT_ALIGNMENT, FLEXDRAFT_QUEUE or
/// FLEXDRAFT_UNSUPPORTED for an operand or a shape that does not fit, FLEXDRAFT_RUNTIME for a failed launch.
///
/// # Safety
///
/// `kernels` and the pass are null or open, `stream` is alive, operands are valid for their sizes until the launch has
/// run, `error` is null or valid for the size that it states.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_joint_attention(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftJointAttention,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}
