//! One layer of a paged KV cache, as an operand of kernels.

use half::bf16;

use super::limits;
use super::operands::Operands;
use super::params::common::FlexdraftPagedKv;
use super::pass::Paging;
use super::{HalfFloat, KernelError};
use crate::runtime::{Access, View, ViewMut};

/// Strides of a paged K or V tensor, in elements. The elements of a head are adjacent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvStrides {
    /// Distance from the beginning of a page to the beginning of the next, in elements.
    pub page: usize,
    /// Distance from a token to the next within a page, in elements.
    pub token: usize,
    /// Distance from a head to the next within a token, in elements.
    pub head: usize,
}

impl KvStrides {
    /// Returns the strides of a K or V tensor `[page, token, head, dim]`.
    pub fn token_major(page_size: usize, kv_heads: usize, head_dim: usize) -> Self {
        let token = kv_heads.saturating_mul(head_dim);
        KvStrides { page: page_size.saturating_mul(token), token, head: head_dim }
    }

    /// Returns the strides of a K or V tensor `[page, head, token, dim]`.
    pub fn head_major(page_size: usize, kv_heads: usize, head_dim: usize) -> Self {
        let head = page_size.saturating_mul(head_dim);
        KvStrides { page: kv_heads.saturating_mul(head), token: head_dim, head }
    }

    /// Returns the number of elements that a tensor with these strides spans: the offset of its last element plus one.
    fn extent(self, paging: Paging, kv_heads: usize, head_dim: usize) -> Option<usize> {
        let [last_page, last_token, last_head] =
            [paging.pages.checked_sub(1)?, paging.page_size.checked_sub(1)?, kv_heads.checked_sub(1)?];
        let page = last_page.checked_mul(self.page)?;
        let token = last_token.checked_mul(self.token)?;
        let head = last_head.checked_mul(self.head)?;
        page.checked_add(token)?.checked_add(head)?.checked_add(head_dim)
    }
}

/// One layer of a paged KV cache that a kernel reads.
#[derive(Debug)]
pub struct PagedKv<'a, T: HalfFloat = bf16> {
    /// The keys of the layer.
    pub k: View<'a, T>,
    /// The values of the layer.
    pub v: View<'a, T>,
    /// Strides of `k`, in elements.
    pub k_strides: KvStrides,
    /// Strides of `v`, in elements.
    pub v_strides: KvStrides,
}

/// One layer of a paged KV cache that a kernel appends to.
#[derive(Debug)]
pub struct PagedKvMut<'a, T: HalfFloat = bf16> {
    /// The keys of the layer.
    pub k: ViewMut<'a, T>,
    /// The values of the layer.
    pub v: ViewMut<'a, T>,
    /// Strides of `k`, in elements.
    pub k_strides: KvStrides,
    /// Strides of `v`, in elements.
    pub v_strides: KvStrides,
}

/// Returns the factor and the shift with which kernels divide a position below 2^31 by the page size: position / size =
/// position · factor >> shift (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994).
pub(super) fn page_division(page_size: usize) -> (u32, i32) {
    // The page size is 1 to 2^16, so the factor is 2^31 to 2^32 - 1.
    let size = page_size.max(1) as u64;
    let shift = 31 + size.next_power_of_two().trailing_zeros();
    ((1u64 << shift).div_ceil(size) as u32, shift as i32)
}

/// The shape that the K and V tensors are checked against, and the paging of the pass that lists their pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvShape {
    pub paging: Paging,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_table: *const i32,
    pub page_table_stride: i64,
}

impl KvShape {
    /// Returns the number of elements from the tensor's first to its last, if every row of the tensor is aligned.
    fn extent(
        &self,
        operands: &Operands,
        operand: &'static str,
        strides: KvStrides,
    ) -> Result<usize, KernelError> {
        for stride in [strides.page, strides.token, strides.head] {
            operands.within(limits::cache_stride(stride))?;
        }
        let overflow = KernelError::Overflow { kernel: operands.kernel(), what: operand };
        match self.paging.pages {
            0 => Ok(0),
            _ => strides.extent(self.paging, self.kv_heads, self.head_dim).ok_or(overflow),
        }
    }

    fn params(&self, k: (u64, KvStrides), v: (u64, KvStrides)) -> FlexdraftPagedKv {
        FlexdraftPagedKv {
            k: k.0 as *mut _,
            v: v.0 as *mut _,
            page_table: self.page_table,
            k_page_stride: k.1.page as i64,
            k_token_stride: k.1.token as i64,
            k_head_stride: k.1.head as i64,
            v_page_stride: v.1.page as i64,
            v_token_stride: v.1.token as i64,
            v_head_stride: v.1.head as i64,
            page_table_stride: self.page_table_stride,
            // The number of pages fits, because the upload of the pass checked it.
            pages: self.paging.pages as i32,
            page_size: self.paging.page_size as i32,
        }
    }
}

impl<T: HalfFloat> PagedKv<'_, T> {
    pub(super) fn params(
        &self,
        operands: &mut Operands,
        shape: &KvShape,
    ) -> Result<FlexdraftPagedKv, KernelError> {
        let (k, v) = (
            shape.extent(operands, "k cache", self.k_strides)?,
            shape.extent(operands, "v cache", self.v_strides)?,
        );
        let k = operands.at_least("k cache", &self.k, k, 16, Access::Read)? as u64;
        let v = operands.at_least("v cache", &self.v, v, 16, Access::Read)? as u64;
        Ok(shape.params((k, self.k_strides), (v, self.v_strides)))
    }
}

impl<T: HalfFloat> PagedKvMut<'_, T> {
    pub(super) fn params(
        &self,
        operands: &mut Operands,
        shape: &KvShape,
    ) -> Result<FlexdraftPagedKv, KernelError> {
        let (k, v) = (
            shape.extent(operands, "k cache", self.k_strides)?,
            shape.extent(operands, "v cache", self.v_strides)?,
        );
        let k = operands.workspace("k cache", &self.k, k, 16)? as u64;
        let v = operands.workspace("v cache", &self.v, v, 16)? as u64;
        Ok(shape.params((k, self.k_strides), (v, self.v_strides)))
    }
}

#[cfg(test)]
mod tests {
    use super::page_division;

    #[test]
    fn division_by_a_page_size() {
        for size in (1..=16).chain((32..=1 << 16).step_by(16)) {
            let (factor, shift) = page_division(size);
            let size = size as u64;
            let edges = [1, 2, 3, 1000, (1 << 31) / size].map(|page| page * size);
            for position in
                edges.into_iter().flat_map(|edge| [edge - 1, edge, edge + 1]).chain([0, (1 << 31) - 1])
            {
                if position < 1 << 31 {
                    assert_eq!(
                        (position * u64::from(factor)) >> shift,
                        position / size,
                        "{position} / {size}"
                    );
                }
            }
        }
    }
}
