//! Functions on rows of the residual stream.

use super::super::abi::Any;
use super::super::arguments::Arguments;
use super::super::arguments::Elements::{F32, Half, I32, Word};
use super::super::launch::{ANY, launch};
use crate::rows::{
    FlexdraftAdd, FlexdraftEmbed, FlexdraftGather, FlexdraftRmsNorm, FlexdraftSiluAdd, FlexdraftSiluMul,
};
use crate::status::Outcome;

/// `embed(ids [rows], table [vocab, cols], out [rows, cols], error [1] or None)`.
pub(super) fn embed(args: &mut Arguments<'_>) -> Outcome<Any> {
    let ids = args.tensor("ids", I32, &[ANY])?;
    let table = args.tensor("table", Half, &[ANY, ANY])?;
    let out = args.tensor("out", Half, &[ids.shape[0], table.shape[1]])?;
    let error_word = args.optional("error", Word, &[1])?;
    let (ids, cols, table, out) = (ids.buffer, table.dim(1), table.buffer, out.buffer);
    launch(args, &FlexdraftEmbed { struct_size: 0, cols, ids, table, out, error_word })
}

/// `gather(indices [rows], x [x_rows, cols], out [rows, cols], error [1] or None)`.
pub(super) fn gather(args: &mut Arguments<'_>) -> Outcome<Any> {
    let indices = args.tensor("indices", I32, &[ANY])?;
    let x = args.tensor("x", Half, &[ANY, ANY])?;
    let out = args.tensor("out", Half, &[indices.shape[0], x.shape[1]])?;
    let error_word = args.optional("error", Word, &[1])?;
    let (indices, cols, x, out) = (indices.buffer, x.dim(1), x.buffer, out.buffer);
    launch(args, &FlexdraftGather { struct_size: 0, cols, indices, x, out, error_word })
}

/// `rms_norm(x [rows, cols], delta [rows, cols] or None, weight [cols], out [rows, cols], eps)`.
pub(super) fn rms_norm(args: &mut Arguments<'_>) -> Outcome<Any> {
    let x = args.tensor("x", Half, &[ANY, ANY])?;
    let delta = args.optional("delta", Half, x.shape)?;
    let weight = args.tensor("weight", F32, &x.shape[1..])?.buffer;
    let out = args.tensor("out", Half, x.shape)?.buffer;
    let eps = args.float("eps")?;
    launch(args, &FlexdraftRmsNorm { struct_size: 0, x: x.buffer, delta, weight, out, eps, reserved: 0 })
}

/// `add(x [rows, cols], delta [rows, cols])`.
pub(super) fn add(args: &mut Arguments<'_>) -> Outcome<Any> {
    let x = args.tensor("x", Half, &[ANY, ANY])?;
    let delta = args.tensor("delta", Half, x.shape)?.buffer;
    launch(args, &FlexdraftAdd { struct_size: 0, x: x.buffer, delta })
}

/// `silu_mul(x [rows, 2 cols], out [rows, cols])`.
pub(super) fn silu_mul(args: &mut Arguments<'_>) -> Outcome<Any> {
    let x = args.tensor("x", Half, &[ANY, ANY])?;
    let out = args.tensor("out", Half, &[x.shape[0], x.shape[1] / 2])?;
    launch(args, &FlexdraftSiluMul { struct_size: 0, cols: out.dim(1), x: x.buffer, out: out.buffer })
}

/// `silu_add(x [rows, cols], bonus [bonus_rows, cols], owner [rows], error [1] or None)`.
pub(super) fn silu_add(args: &mut Arguments<'_>) -> Outcome<Any> {
    let x = args.tensor("x", Half, &[ANY, ANY])?;
    let bonus = args.tensor("bonus", Half, &[ANY, x.shape[1]])?.buffer;
    let owner = args.tensor("owner", I32, &x.shape[..1])?.buffer;
    let error_word = args.optional("error", Word, &[1])?;
    launch(args, &FlexdraftSiluAdd { struct_size: 0, cols: x.dim(1), x: x.buffer, bonus, owner, error_word })
}
