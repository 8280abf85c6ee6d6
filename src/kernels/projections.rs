//! The q, k and v heads of a pass's rows, as operands of kernels: in one fused tensor, or in separate tensors.

use half::bf16;

use super::limits;
use super::operands::Operands;
use super::{HalfFloat, KernelError};
use crate::layout::AttentionShape;
use crate::runtime::{Access, View, ViewMut};

/// Rows of heads that a kernel reads: row r begins at element r · `stride`, and its heads are adjacent.
#[derive(Debug)]
pub struct HeadRows<'a, T: HalfFloat = bf16> {
    /// The memory of the rows, from the first element of row 0 to at least the last element of the last row.
    pub view: View<'a, T>,
    /// Distance from a row to the next, in elements: a multiple of 8, and at least a row's elements.
    pub stride: usize,
}

/// Rows of heads that a kernel changes in place, as [`HeadRows`].
#[derive(Debug)]
pub struct HeadRowsMut<'a, T: HalfFloat = bf16> {
    /// The memory of the rows, from the first element of row 0 to at least the last element of the last row.
    pub view: ViewMut<'a, T>,
    /// Distance from a row to the next, in elements: a multiple of 8, and at least a row's elements.
    pub stride: usize,
}

/// The heads that joint attention reads: q of all rows, and k and v of mask rows. It reads k and v of candidates in the
/// cache.
#[derive(Debug)]
pub enum Projections<'a, T: HalfFloat = bf16> {
    /// One tensor with q, k and v heads of every row, `[rows, (q_heads + 2 kv_heads) · head_dim]`. Rows after the rows of
    /// the pass are padding.
    Fused(View<'a, T>),
    /// Separate tensors.
    Separate {
        /// The q heads of the candidate rows, `[candidates, q_heads · head_dim]`.
        q: HeadRows<'a, T>,
        /// The heads of the mask rows; `None` if there are none.
        masks: Option<MaskProjections<'a, T>>,
    },
}

/// The heads of the mask rows of a pass, in three tensors whose row 0 is the first mask row.
#[derive(Debug)]
pub struct MaskProjections<'a, T: HalfFloat = bf16> {
    /// q heads, `[mask rows, q_heads · head_dim]`.
    pub q: HeadRows<'a, T>,
    /// k heads, `[mask rows, kv_heads · head_dim]`.
    pub k: HeadRows<'a, T>,
    /// v heads, `[mask rows, kv_heads · head_dim]`.
    pub v: HeadRows<'a, T>,
}

/// The heads that the rotation changes and appends to the cache.
#[derive(Debug)]
pub enum ProjectionsMut<'a, T: HalfFloat = bf16> {
    /// One tensor with q, k and v heads of every row of the pass, `[rows, (q_heads + 2 kv_heads) · head_dim]`.
    Fused(ViewMut<'a, T>),
    /// Separate tensors with only the rows that the launch processes: row 0 is the first candidate row or the first
    /// mask row.
    Separate {
        /// q heads, `[rows, q_heads · head_dim]`, which change in place.
        q: HeadRowsMut<'a, T>,
        /// k heads, `[rows, kv_heads · head_dim]`; the k heads of mask rows change in place.
        k: HeadRowsMut<'a, T>,
        /// v heads, `[rows, kv_heads · head_dim]`.
        v: HeadRows<'a, T>,
    },
}

impl<'a, T: HalfFloat> From<View<'a, T>> for Projections<'a, T> {
    fn from(fused: View<'a, T>) -> Self {
        Projections::Fused(fused)
    }
}

impl<'a, T: HalfFloat> From<ViewMut<'a, T>> for ProjectionsMut<'a, T> {
    fn from(fused: ViewMut<'a, T>) -> Self {
        ProjectionsMut::Fused(fused)
    }
}

/// Rows of heads as a kernel's parameters: the address of row 0, and the distance between rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowsAt {
    pub address: *mut u16,
    pub stride: i64,
}

impl RowsAt {
    const NONE: Self = RowsAt { address: std::ptr::null_mut(), stride: 0 };

    /// Returns the rows that begin at row `row` of these, and at element `column` in each.
    fn at(self, row: usize, column: usize) -> Self {
        let address = self.address.wrapping_add(row * self.stride as usize).wrapping_add(column);
        RowsAt { address, ..self }
    }

    /// Returns these rows, or a null address if there are no rows, because an address after the last row may belong to
    /// other memory.
    fn unless_none(self, rows: usize) -> Self {
        if rows == 0 { Self::NONE } else { self }
    }
}

/// The rows of heads in one kernel's operands.
struct Checked<'a> {
    operands: &'a mut Operands,
    head_dim: usize,
}

impl Checked<'_> {
    /// Returns the number of elements that `rows` rows of `heads` heads span, if rows do not overlap and are aligned.
    fn extent(
        &self,
        name: &'static str,
        rows: usize,
        heads: usize,
        stride: usize,
    ) -> Result<usize, KernelError> {
        let row = self.operands.product(name, &[heads, self.head_dim])?;
        self.operands.within(limits::row_stride(stride, row))?;
        let Some(before) = rows.checked_sub(1) else { return Ok(0) };
        let overflow = KernelError::Overflow { kernel: self.operands.kernel(), what: name };
        self.operands.product(name, &[before, stride])?.checked_add(row).ok_or(overflow)
    }

    /// Returns `rows` rows of `heads` heads, which lie `stride` elements apart in `view`, as parameters.
    fn rows<T: HalfFloat>(
        &mut self,
        name: &'static str,
        (view, stride): (&View<'_, T>, usize),
        rows: usize,
        heads: usize,
        access: Access,
    ) -> Result<RowsAt, KernelError> {
        let needed = self.extent(name, rows, heads, stride)?;
        let address = self.operands.at_least(name, view, needed, 16, access)?;
        Ok(RowsAt { address: address.cast_mut().cast(), stride: stride as i64 }.unless_none(rows))
    }
}

/// The heads that attention reads, as parameters, and the number of rows of the operands.
pub(super) struct AttentionHeads {
    pub q: RowsAt,
    pub mask_q: RowsAt,
    pub mask_k: RowsAt,
    pub mask_v: RowsAt,
    pub rows: usize,
}

impl<T: HalfFloat> Projections<'_, T> {
    /// Returns the parameters for a pass with these numbers of candidate rows and mask rows. `out_rows` is the number
    /// of rows of the output, which gives the number of rows if q has a separate tensor.
    pub(super) fn params(
        &self,
        operands: &mut Operands,
        shape: AttentionShape,
        (candidates, masks): (usize, usize),
        out_rows: usize,
    ) -> Result<AttentionHeads, KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = shape;
        let columns = operands.qkv_cols(shape)?;
        let pass_rows = candidates + masks;
        match self {
            Projections::Fused(qkv) => {
                let rows = (qkv.len() / columns).max(pass_rows);
                let elements = operands.product("qkv", &[rows, columns])?;
                let address = operands.read("qkv", qkv, elements, 16)?.cast::<u16>().cast_mut();
                let all = RowsAt { address, stride: columns as i64 };
                let of_masks = |column| all.at(candidates, column).unless_none(rows - candidates);
                Ok(AttentionHeads {
                    q: all,
                    mask_q: of_masks(0),
                    mask_k: of_masks(q_heads * head_dim),
                    mask_v: of_masks((q_heads + kv_heads) * head_dim),
                    rows,
                })
            }
            Projections::Separate { q, masks: of_masks } => {
                let mut checked = Checked { operands, head_dim };
                let mut read = |name, HeadRows { view, stride }: &HeadRows<'_, T>, rows, heads| {
                    checked.rows(name, (view, *stride), rows, heads, Access::Read)
                };
                let q = read("q", q, candidates, q_heads)?;
                let (mask_q, mask_k, mask_v) = match of_masks {
                    Some(of_masks) => (
                        read("mask q", &of_masks.q, masks, q_heads)?,
                        read("mask k", &of_masks.k, masks, kv_heads)?,
                        read("mask v", &of_masks.v, masks, kv_heads)?,
                    ),
                    None if masks == 0 => (RowsAt::NONE, RowsAt::NONE, RowsAt::NONE),
                    None => {
                        let expected = operands.product("mask q", &[masks, q_heads, head_dim])?;
                        let (kernel, operand) = (operands.kernel(), "mask q");
                        return Err(KernelError::Length { kernel, operand, expected, found: 0 });
                    }
                };
                Ok(AttentionHeads { q, mask_q, mask_k, mask_v, rows: out_rows.max(pass_rows) })
            }
        }
    }
}

impl<T: HalfFloat> ProjectionsMut<'_, T> {
    /// Returns q, k and v as parameters of a launch for the rows `first` to `end` of a pass, which has `pass_rows`
    /// rows, and the number of rows of the operands. `table_rows` is the number of rows of the table of rotations,
    /// which gives the number of rows if q, k and v have separate tensors.
    pub(super) fn params(
        &self,
        operands: &mut Operands,
        shape: AttentionShape,
        (first, end, pass_rows): (usize, usize, usize),
        table_rows: usize,
    ) -> Result<([RowsAt; 3], usize), KernelError> {
        let AttentionShape { q_heads, kv_heads, head_dim } = shape;
        let columns = operands.qkv_cols(shape)?;
        match self {
            ProjectionsMut::Fused(qkv) => {
                let rows = (qkv.len() / columns).max(pass_rows);
                let elements = operands.product("qkv", &[rows, columns])?;
                let address = operands.write("qkv", qkv, elements, 16)?.cast();
                let all = RowsAt { address, stride: columns as i64 };
                let kv = |before: usize| all.at(first, (q_heads + before) * head_dim);
                Ok(([all.at(first, 0), kv(0), kv(kv_heads)], rows))
            }
            ProjectionsMut::Separate { q, k, v } => {
                let mut checked = Checked { operands, head_dim };
                let rows = end - first;
                let q = checked.rows("q", (&q.view.as_view(), q.stride), rows, q_heads, Access::Write)?;
                let k = checked.rows("k", (&k.view.as_view(), k.stride), rows, kv_heads, Access::Write)?;
                // v may be stored in other columns of the rows of q and k.
                let v = checked.rows("v", (&v.view, v.stride), rows, kv_heads, Access::Write)?;
                Ok(([q, k, v], table_rows.max(pass_rows)))
            }
        }
    }
}
