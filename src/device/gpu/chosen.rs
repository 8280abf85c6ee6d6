//! The chosen ids of drafts with a chain: the distributions that their tokens were drawn from, draw after draw.

use std::ops::Range;

use super::context::Context;
use super::memory::allocate;
use crate::device::DeviceError;
use crate::kernels::acceptance::ChosenRows;
use crate::runtime::Runtime;

/// The chosen ids of draws, and the chained logits of these ids. Every other id has the logit −∞.
#[derive(Debug)]
pub(super) struct ChosenIds<R: Runtime> {
    /// Number of ids per draw.
    pub(super) count: usize,
    /// Number of draws that the memory has room for.
    pub(super) draws: usize,
    /// The ids `[draws, count]`.
    pub(super) ids: R::Memory<i32>,
    /// The logits of the ids `[draws, count]`.
    pub(super) logits: R::Memory<f32>,
}

impl<R: Runtime> ChosenIds<R> {
    /// Allocates `count` ids for each of `draws` draws.
    pub(super) fn new(queue: (&R, &R::Stream), draws: usize, count: usize) -> Result<Self, DeviceError> {
        const WHAT: &str = "ids of a chain";
        let overflow = DeviceError::Overflow { operation: "draft", operand: WHAT };
        let len = draws.checked_mul(count).ok_or(overflow)?;
        Ok(Self { count, draws, ids: allocate(queue, len, WHAT)?, logits: allocate(queue, len, WHAT)? })
    }

    /// Returns memory for `draws` draws, whose first draws are draws `kept` of this memory.
    pub(super) fn with_room(
        &self,
        queue: (&R, &R::Stream),
        kept: Range<usize>,
        draws: usize,
    ) -> Result<Self, DeviceError> {
        let mut moved = Self::new(queue, draws, self.count)?;
        self.copy(queue, kept, &mut moved, 0)?;
        Ok(moved)
    }

    /// Copies draws `draws` to memory with as many ids per draw, from its draw `first` on.
    pub(super) fn copy(
        &self,
        (runtime, stream): (&R, &R::Stream),
        draws: Range<usize>,
        to: &mut Self,
        first: usize,
    ) -> Result<(), DeviceError> {
        let elements = draws.start * self.count..draws.end * self.count;
        runtime.copy(stream, &self.ids, elements.clone(), &mut to.ids, first * to.count)?;
        Ok(runtime.copy(stream, &self.logits, elements, &mut to.logits, first * to.count)?)
    }

    /// Views the first `draws` draws, for acceptance.
    pub(super) fn rows<'a>(
        &'a self,
        context: &'a Context<R>,
        draws: usize,
    ) -> Result<ChosenRows<'a>, DeviceError> {
        let elements = 0..draws * self.count;
        Ok(ChosenRows {
            count: self.count,
            ids: context.input(&self.ids, elements.clone())?,
            logits: context.input(&self.logits, elements)?,
        })
    }
}
