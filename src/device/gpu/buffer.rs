//! Activation buffers, logits, and weight vectors of the GPU device.

use std::ops::Range;

use half::bf16;

use super::check::{expect, index};
use super::chosen::ChosenIds;
use super::context::Context;
use super::memory::allocate;
use crate::device::DeviceError;
use crate::kernels::sampling::RowStats;
use crate::runtime::{Element, Runtime, View};
use crate::tensor::Tensor;

/// Size of a row's [`RowStats`], in words of 8 bytes.
pub(super) const STATS_WORDS: usize = size_of::<RowStats>() / 8;

/// Activations `[rows, cols]` in bf16, or logits in f32, row-major. Rows of logits are padded to a multiple of
/// eight elements.
#[derive(Debug)]
pub struct GpuBuffer<R: Runtime> {
    pub(super) values: Values<R>,
    rows: usize,
    cols: usize,
    capacity: usize,
    drawn: Draws,
}

/// The number and the rows of the draws from a buffer of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Draws {
    /// Number of rows that were drawn from. Their statistics are stored in the order of the draws.
    pub(super) count: usize,
    /// A row index above all rows that were drawn from.
    pub(super) end: usize,
    /// The number of chosen ids that each draw was from, if the draws have a chain; 0 for draws from whole rows.
    pub(super) chosen: usize,
}

/// The memory of logits, and the memory of the statistics of their draws.
type LogitsAndDraws<'a, R> = (&'a mut <R as Runtime>::Memory<f32>, &'a mut <R as Runtime>::Memory<u64>);

/// The memory of logits, of the statistics of their draws, and of the chosen ids of draws with a chain.
type LogitsDrawsAndIds<'a, R> =
    (&'a mut <R as Runtime>::Memory<f32>, &'a mut <R as Runtime>::Memory<u64>, &'a mut ChosenIds<R>);

#[derive(Debug)]
pub(super) enum Values<R: Runtime> {
    Activations(R::Memory<bf16>),
    Logits {
        logits: R::Memory<f32>,
        /// The statistics of the draws from the logits, draw after draw. A verification uses them with the logits, so
        /// that it compares the distributions that the tokens were drawn from.
        draws: R::Memory<u64>,
        /// The chosen ids of draws with a chain, once there was such a draw.
        chosen: Option<ChosenIds<R>>,
    },
    /// Activations without memory yet.
    NoActivations,
    /// Logits without memory yet.
    NoLogits,
}

impl<R: Runtime> Values<R> {
    fn is_logits(&self) -> bool {
        matches!(self, Self::Logits { .. } | Self::NoLogits)
    }
}

impl<R: Runtime> GpuBuffer<R> {
    /// Makes an empty buffer [0, cols].
    pub(super) fn new(cols: usize, logits: bool) -> Self {
        let values = if logits { Values::NoLogits } else { Values::NoActivations };
        GpuBuffer { values, rows: 0, cols, capacity: 0, drawn: Draws::default() }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of values per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns whether the buffer holds logits; if not, it holds activations.
    pub(super) fn is_logits(&self) -> bool {
        self.values.is_logits()
    }

    /// Returns the number of elements from one row to the next.
    pub(super) fn stride(&self) -> usize {
        if self.values.is_logits() { self.cols.next_multiple_of(8) } else { self.cols }
    }

    /// Sets the number of rows. Existing rows keep their contents.
    pub(super) fn resize(&mut self, queue: (&R, &R::Stream), rows: usize) -> Result<(), DeviceError> {
        let (stride, operand) =
            (self.stride(), if self.values.is_logits() { "logits" } else { "activations" });
        let overflow = DeviceError::Overflow { operation: "resize", operand };
        let needed = rows.checked_mul(stride).ok_or(overflow)?;
        let fresh = matches!(self.values, Values::NoActivations | Values::NoLogits);
        if needed > self.capacity || fresh {
            let capacity = needed.max(2 * self.capacity);
            let kept = self.rows.min(rows);
            let rows = capacity.checked_div(stride).unwrap_or(0);
            let draws = rows * STATS_WORDS;
            self.values = match &self.values {
                Values::Activations(old) => {
                    Values::Activations(moved(queue, old, kept * stride, capacity, operand)?)
                }
                Values::Logits { logits, draws: old, chosen } => {
                    let kept_draws = self.drawn.count.min(kept);
                    let words = kept_draws * STATS_WORDS;
                    let chosen = chosen.as_ref().map(|chosen| chosen.with_room(queue, 0..kept_draws, rows));
                    Values::Logits {
                        logits: moved(queue, logits, kept * stride, capacity, operand)?,
                        draws: moved(queue, old, words, draws, "statistics of logits")?,
                        chosen: chosen.transpose()?,
                    }
                }
                Values::NoActivations => Values::Activations(allocate(queue, capacity, operand)?),
                Values::NoLogits => Values::Logits {
                    logits: allocate(queue, capacity, operand)?,
                    draws: allocate(queue, draws, "statistics of logits")?,
                    chosen: None,
                },
            };
            self.capacity = capacity;
        }
        self.rows = rows;
        self.forget_draws_from(rows);
        Ok(())
    }

    /// Returns the range of elements that `rows` occupy.
    pub(super) fn elements(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.stride()..rows.end * self.stride()
    }

    /// Checks that the buffer has `cols` columns and rows up to `end`.
    pub(super) fn expect_rows(
        &self,
        operation: &'static str,
        operand: &'static str,
        cols: usize,
        end: usize,
    ) -> Result<(), DeviceError> {
        expect(operation, operand, vec![self.rows, cols], vec![self.rows, self.cols])?;
        if end == 0 { Ok(()) } else { index(operation, "row", end - 1, self.rows) }
    }

    /// Checks that tokens were drawn from rows `first_row..first_row + rows`, by draws `first_draw..first_draw +
    /// rows`.
    pub(super) fn expect_draws(
        &self,
        operation: &'static str,
        (first_row, first_draw): (usize, usize),
        rows: usize,
    ) -> Result<(), DeviceError> {
        // A chain's distributions are stored with the draws, not in the rows of logits.
        let rows_end = if self.drawn.chosen > 0 { usize::MAX } else { self.drawn.end };
        for (first, limit) in [(first_row, rows_end), (first_draw, self.drawn.count)] {
            let end = first.saturating_add(rows);
            if end > limit {
                return Err(DeviceError::Contract {
                    operation,
                    operand: "draft_logits",
                    expected: "rows that a draft was drawn from",
                    found: format!("{first}..{end} of {limit} drawn rows"),
                });
            }
        }
        Ok(())
    }

    /// Returns the number and the rows of the draws from the logits.
    pub(super) fn drawn(&self) -> Draws {
        self.drawn
    }

    /// Records that the draws `drawn` were enqueued, with their statistics.
    pub(super) fn set_drawn(&mut self, drawn: Draws) {
        self.drawn = Draws { end: drawn.end.min(self.rows), ..drawn };
    }

    /// Returns the logits, the statistics of their draws and the memory for `count` chosen ids per draw, for draws with a
    /// chain.
    pub(super) fn chained_draws_mut(
        &mut self,
        operation: &'static str,
        queue: (&R, &R::Stream),
        count: usize,
    ) -> Result<LogitsDrawsAndIds<'_, R>, DeviceError> {
        let rows = self.capacity.checked_div(self.stride()).unwrap_or(0);
        let (logits, draws, chosen) = match &mut self.values {
            Values::Logits { logits, draws, chosen } => (logits, draws, chosen),
            other => return Err(other.not(operation, "logits", LOGITS)),
        };
        let chosen = match chosen.take() {
            Some(memory) if memory.count == count => chosen.insert(memory),
            _ => chosen.insert(ChosenIds::new(queue, rows, count)?),
        };
        Ok((logits, draws, chosen))
    }

    /// Returns the chosen ids of the draws, if the draws have a chain.
    pub(super) fn chosen(&self) -> Option<&ChosenIds<R>> {
        match &self.values {
            Values::Logits { chosen, .. } if self.drawn.chosen > 0 => chosen.as_ref(),
            _ => None,
        }
    }

    /// Replaces the contents of the buffer by draws `draws` of `from`, which have a chain, without rows of logits.
    pub(super) fn hold_chained_draws(
        &mut self,
        queue: (&R, &R::Stream),
        from: &ChosenIds<R>,
        draws: Range<usize>,
    ) -> Result<(), DeviceError> {
        let chosen = from.with_room(queue, draws.clone(), draws.len())?;
        self.values = Values::Logits {
            logits: allocate(queue, 1, "logits")?,
            draws: allocate(queue, draws.len() * STATS_WORDS, "statistics of logits")?,
            chosen: Some(chosen),
        };
        (self.rows, self.capacity) = (0, 0);
        self.drawn = Draws { count: draws.len(), end: 0, chosen: from.count };
        Ok(())
    }

    /// Forgets all draws if some draw was from row `row` or a later row. Called before these rows get other values.
    /// All draws are forgotten together, because only the device knows their rows.
    pub(super) fn forget_draws_from(&mut self, row: usize) {
        if row < self.drawn.end {
            self.drawn = Draws::default();
        }
    }

    /// Returns the activations, for an operation that reads them.
    pub(super) fn activations(
        &self,
        operation: &'static str,
        operand: &'static str,
    ) -> Result<&R::Memory<bf16>, DeviceError> {
        match &self.values {
            Values::Activations(memory) => Ok(memory),
            other => Err(other.not(operation, operand, ACTIVATIONS)),
        }
    }

    /// Returns the activations, for an operation that writes them.
    pub(super) fn activations_mut(
        &mut self,
        operation: &'static str,
        operand: &'static str,
    ) -> Result<&mut R::Memory<bf16>, DeviceError> {
        match &mut self.values {
            Values::Activations(memory) => Ok(memory),
            other => Err(other.not(operation, operand, ACTIVATIONS)),
        }
    }

    /// Returns the logits, for an operation that reads them.
    pub(super) fn logits(&self, operation: &'static str) -> Result<&R::Memory<f32>, DeviceError> {
        match &self.values {
            Values::Logits { logits, .. } => Ok(logits),
            other => Err(other.not(operation, "logits", LOGITS)),
        }
    }

    /// Views the statistics of the draws from the logits.
    pub(super) fn draws<'a>(
        &'a self,
        operation: &'static str,
        context: &'a Context<R>,
    ) -> Result<View<'a, RowStats>, DeviceError> {
        let Values::Logits { draws, .. } = &self.values else {
            return Err(self.values.not(operation, "logits", LOGITS));
        };
        let overflow = DeviceError::Overflow { operation, operand: "draws" };
        context.input(draws, 0..self.drawn.count * STATS_WORDS)?.cast().ok_or(overflow)
    }

    /// Returns the logits and the statistics of their draws, for an operation that writes them.
    pub(super) fn logits_and_draws_mut(
        &mut self,
        operation: &'static str,
    ) -> Result<LogitsAndDraws<'_, R>, DeviceError> {
        match &mut self.values {
            Values::Logits { logits, draws, .. } => Ok((logits, draws)),
            other => Err(other.not(operation, "logits", LOGITS)),
        }
    }
}

const ACTIVATIONS: &str = "activations with at least one row";
const LOGITS: &str = "logits with at least one row";

impl<R: Runtime> Values<R> {
    /// Returns the error for a buffer that holds logits instead of activations or the reverse, or that never had
    /// rows.
    fn not(&self, operation: &'static str, operand: &'static str, expected: &'static str) -> DeviceError {
        let found = match self {
            Self::Activations(_) => "activations",
            Self::Logits { .. } => "logits",
            Self::NoActivations => "activations that never had rows",
            Self::NoLogits => "logits that never had rows",
        };
        DeviceError::Contract { operation, operand, expected, found: found.into() }
    }
}

/// Copies the first `kept` elements of `old` to new memory of `capacity` elements.
fn moved<R: Runtime, T: Element>(
    (runtime, stream): (&R, &R::Stream),
    old: &R::Memory<T>,
    kept: usize,
    capacity: usize,
    what: &'static str,
) -> Result<R::Memory<T>, DeviceError> {
    let mut memory = allocate((runtime, stream), capacity, what)?;
    runtime.copy(stream, old, 0..kept, &mut memory, 0)?;
    Ok(memory)
}

/// A vector of weights: in f32 for norms, and in bf16 for the mask embedding, which is a row of activations.
#[derive(Debug)]
pub struct GpuVector<R: Runtime> {
    pub(super) values: R::Memory<f32>,
    pub(super) row: R::Memory<bf16>,
    pub(super) len: usize,
}

impl<R: Runtime> GpuVector<R> {
    /// Uploads a tensor `[n]` as a vector of weights.
    pub(super) fn new((runtime, stream): (&R, &R::Stream), tensor: &Tensor) -> Result<Self, DeviceError> {
        let host = tensor.to_f32();
        expect("new_vector", "tensor", vec![host.len()], tensor.shape().to_vec())?;
        let mut values = runtime.allocate(stream, host.len())?;
        runtime.upload(stream, &host, &mut values, 0)?;
        let mut row = runtime.allocate(stream, host.len())?;
        let rounded: Vec<bf16> = host.iter().map(|&x| bf16::from_f32(x)).collect();
        runtime.upload(stream, &rounded, &mut row, 0)?;
        Ok(Self { values, row, len: host.len() })
    }
}
