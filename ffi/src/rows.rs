//! Operations on rows of the residual stream: embedding, gather, norm, addition and activations.

use std::ffi::c_void;

use flexdraft::kernels::HalfFloat;
use flexdraft::kernels::activation::{SiluAdd, SiluMul};
use flexdraft::kernels::embedding::{Embed, Gather};
use flexdraft::kernels::norm::{Add, Residual, RmsNorm};
use flexdraft::runtime::Runtime;

use crate::buffer::{FlexdraftBuffer, Typed, with_half_float};
use crate::processor::{Call, FlexdraftKernels, On, launch};
use crate::status::{FlexdraftError, Outcome, size, versioned};

/// The operands of `flexdraft_embed`. Rows are aligned to 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftEmbed {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Elements per row of the table, a multiple of 8.
    pub cols: u64,
    /// Token ids, i32 `[rows]`. An id outside the table gives zeros and the fault 2.
    pub ids: FlexdraftBuffer,
    /// The embedding table, bf16 or f16 `[vocab, cols]`.
    pub table: FlexdraftBuffer,
    /// Written: the embedding of each id, of the type of `table`, `[rows, cols]`.
    pub out: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

/// The operands of `flexdraft_gather`. Rows are aligned to 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftGather {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Elements per row, a multiple of 8.
    pub cols: u64,
    /// Row indices into `x`, i32 `[rows]`. -1 gives zeros; any other index outside `x` gives zeros and the fault 16.
    pub indices: FlexdraftBuffer,
    /// The rows to gather from, bf16 or f16 `[x_rows, cols]`.
    pub x: FlexdraftBuffer,
    /// Written: the gathered rows, of the type of `x`, `[rows, cols]`.
    pub out: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

/// The operands of `flexdraft_rms_norm`. Rows and weight are aligned to 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftRmsNorm {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The residual stream, bf16 or f16 `[rows, cols]`, with a multiple of 8 columns. Written if `delta` is present.
    pub x: FlexdraftBuffer,
    /// Optional. The values to add to the residual stream before the norm, of the type of `x`, `[rows, cols]`.
    pub delta: FlexdraftBuffer,
    /// The norm's weight, f32 `[cols]`.
    pub weight: FlexdraftBuffer,
    /// Written: the rows after the norm, of the type of `x`, `[rows, cols]`.
    pub out: FlexdraftBuffer,
    /// Epsilon, which is added to the mean of squares.
    pub eps: f32,
    /// Unused; 0.
    pub reserved: u32,
}

/// The operands of `flexdraft_add`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftAdd {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// The elements to add to, bf16 or f16, a multiple of 8, aligned to 16 bytes.
    pub x: FlexdraftBuffer,
    /// The elements to add, of the same type and number.
    pub delta: FlexdraftBuffer,
}

/// The operands of `flexdraft_silu_mul`. Rows are aligned to 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSiluMul {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Elements per row of `out`, a multiple of 8.
    pub cols: u64,
    /// Gate and up projection side by side, bf16 or f16 `[rows, 2 cols]`.
    pub x: FlexdraftBuffer,
    /// Written: the activation of each row, of the type of `x`, `[rows, cols]`.
    pub out: FlexdraftBuffer,
}

/// The operands of `flexdraft_silu_add`. Rows are aligned to 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlexdraftSiluAdd {
    /// Size of this struct in bytes.
    pub struct_size: u64,
    /// Elements per row, a multiple of 8.
    pub cols: u64,
    /// The draft slots' half of the calibrator's hidden layer, bf16 or f16 `[rows, cols]`, which its activation
    /// replaces.
    pub x: FlexdraftBuffer,
    /// The bonus tokens' half of the calibrator's hidden layer, of the type of `x`, `[bonus_rows, cols]`.
    pub bonus: FlexdraftBuffer,
    /// The row of `bonus` for each row, i32 `[rows]`. With -1 the row does not change; with any other index outside
    /// `bonus` it does not change either, and the fault is 16.
    pub owner: FlexdraftBuffer,
    /// Optional. The device error word, u32 `[1]`.
    pub error_word: FlexdraftBuffer,
}

versioned!(
    FlexdraftEmbed,
    FlexdraftGather,
    FlexdraftRmsNorm,
    FlexdraftAdd,
    FlexdraftSiluMul,
    FlexdraftSiluAdd
);

impl FlexdraftEmbed {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            Embed::<T> {
                ids: operands.read("ids", &self.ids)?,
                table: operands.read("table", &self.table)?,
                out: operands.write("out", &self.out)?,
                error: operands.write_optional("error_word", &self.error_word)?,
                cols: size("cols", self.cols)?,
            }
        };
        Ok(on.kernels.embed(on.stream, &args)?)
    }
}

impl Call for FlexdraftEmbed {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "table", &self.table)
    }
}

impl FlexdraftGather {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            Gather::<T> {
                indices: operands.read("indices", &self.indices)?,
                x: operands.read("x", &self.x)?,
                out: operands.write("out", &self.out)?,
                error: operands.write_optional("error_word", &self.error_word)?,
                cols: size("cols", self.cols)?,
            }
        };
        Ok(on.kernels.gather(on.stream, &args)?)
    }
}

impl Call for FlexdraftGather {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "x", &self.x)
    }
}

impl FlexdraftRmsNorm {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            RmsNorm::<T> {
                x: match operands.read_optional("delta", &self.delta)? {
                    None => Residual::Is(operands.read("x", &self.x)?),
                    Some(delta) => Residual::Add { x: operands.write("x", &self.x)?, delta },
                },
                weight: operands.read("weight", &self.weight)?,
                out: operands.write("out", &self.out)?,
                eps: self.eps,
            }
        };
        Ok(on.kernels.rms_norm(on.stream, &args)?)
    }
}

impl Call for FlexdraftRmsNorm {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "x", &self.x)
    }
}

impl FlexdraftAdd {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            Add::<T> { x: operands.write("x", &self.x)?, delta: operands.read("delta", &self.delta)? }
        };
        Ok(on.kernels.add(on.stream, &args)?)
    }
}

impl Call for FlexdraftAdd {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "x", &self.x)
    }
}

impl FlexdraftSiluMul {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            SiluMul::<T> {
                x: operands.read("x", &self.x)?,
                out: operands.write("out", &self.out)?,
                cols: size("cols", self.cols)?,
            }
        };
        Ok(on.kernels.silu_mul(on.stream, &args)?)
    }
}

impl Call for FlexdraftSiluMul {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "x", &self.x)
    }
}

impl FlexdraftSiluAdd {
    fn run_with<R: Runtime, T: HalfFloat + Typed>(&self, on: &On<'_, R>) -> Outcome<()> {
        let operands = on.operands();
        // SAFETY: the exported function's caller guarantees that operands are valid for their sizes.
        let args = unsafe {
            SiluAdd::<T> {
                x: operands.write("x", &self.x)?,
                bonus: operands.read("bonus", &self.bonus)?,
                owner: operands.read("owner", &self.owner)?,
                error: operands.write_optional("error_word", &self.error_word)?,
                cols: size("cols", self.cols)?,
            }
        };
        Ok(on.kernels.silu_add(on.stream, &args)?)
    }
}

impl Call for FlexdraftSiluAdd {
    type Output = ();

    fn run<R: Runtime>(&self, on: &On<'_, R>) -> Outcome<()> {
        with_half_float!(self.run_with(on), "x", &self.x)
    }
}

/// Copies the embeddings of token ids: `out[r] = table[ids[r]]`.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_embed(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftEmbed,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Copies rows by index: `out[r] = x[indices[r]]`.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_gather(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftGather,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Adds `delta`, if it is present, to `x`, rounds the sums to the type of `x`, and writes x / sqrt(mean(x^2) + eps) *
/// weight for each row (arXiv 1910.07467, equation 4).
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_rms_norm(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftRmsNorm,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Adds `delta` to `x`, with each sum rounded to the type of `x`.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_add(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftAdd,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Computes the MLP's activation: `out[r] = silu(gate[r]) * up[r]`, where `silu(x) = x / (1 + exp(-x))`.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_silu_mul(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftSiluMul,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}

/// Computes the hidden layer of the bonus-guided calibrator: `x[r] = silu(x[r] + bonus[owner[r]])`.
///
/// Errors: as in `flexdraft_joint_attention`.
///
/// # Safety
///
/// The conditions of `flexdraft_joint_attention`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flexdraft_silu_add(
    kernels: *const FlexdraftKernels,
    stream: *mut c_void,
    args: *const FlexdraftSiluAdd,
    error: *mut FlexdraftError,
) -> i32 {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { launch(kernels, stream, args, error) }
}
