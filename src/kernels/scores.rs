//! Changes of attention scores that some models make: a sliding window, a soft cap, and attention sinks.

use super::KernelError;
use super::limits;
use super::operands::Operands;
use super::params::attention::FLEXDRAFT_NO_WINDOW;
use crate::layout::{AttentionShape, MAX_BLOCK_SIZE};
use crate::runtime::View;

/// The changes that a model makes to the scores of attention and to their softmax. The default has none.
#[derive(Debug, Default)]
pub struct ScoreChanges<'a> {
    /// The number of positions that a row sees up to its own (sliding window, arXiv 2310.06825): a row at position p sees
    /// the cached positions above p − window, and a mask row all slots of its group. At least 65, so that every slot
    /// sees the position before its group.
    pub window: Option<usize>,
    /// The cap c of a soft cap (Gemma 2, arXiv 2408.00118), 1 to 1000: a score s becomes c · tanh(s / c).
    pub soft_cap: Option<f32>,
    /// A score for each query head, `[q_heads]`, that joins the softmax of every row without a key or a value, as the
    /// sinks of gpt-oss: it takes weight from the keys. It counts in `lse`.
    pub sinks: Option<View<'a, f32>>,
}

/// The changes as parameters of the kernels.
pub(super) struct ScoreParams {
    pub scale_log2: f32,
    pub cap_scale: f32,
    pub window: i32,
    pub sinks: *const f32,
}

impl ScoreChanges<'_> {
    pub(super) fn params(
        &self,
        operands: &mut Operands,
        shape: AttentionShape,
    ) -> Result<ScoreParams, KernelError> {
        let scale_log2 = std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt();
        let (scale_log2, cap_scale) = match self.soft_cap {
            None => (scale_log2, 0.0),
            Some(cap) if (1.0..=1000.0).contains(&cap) => {
                (cap * std::f32::consts::LOG2_E, 2.0 * scale_log2 / cap)
            }
            Some(cap) => {
                let (kernel, what, supported) = (operands.kernel(), "soft cap", "1 to 1000");
                return Err(KernelError::Unsupported { kernel, what, found: cap as i64, supported });
            }
        };
        let window = self.window.unwrap_or(FLEXDRAFT_NO_WINDOW as usize);
        operands.within(limits::window(window))?;
        Ok(ScoreParams {
            scale_log2,
            cap_scale,
            // All windows beyond the largest position have the same effect.
            window: window.min(FLEXDRAFT_NO_WINDOW as usize) as i32,
            sinks: operands.read_optional("sinks", self.sinks.as_ref(), shape.q_heads, 4)?,
        })
    }

    /// Returns the largest number of states of `keys` cached keys each that a sequence with up to `candidates` candidates
    /// can leave, if its cached positions would leave `all`.
    pub(super) fn max_states(&self, candidates: usize, keys: usize, all: usize) -> usize {
        let Some(window) = self.window else { return all };
        // The window of the first row begins window − 1 positions before the row, and the last position that a row sees
        // is less than `spread` positions behind the first row. The keys may begin within a state.
        let spread = candidates.max(MAX_BLOCK_SIZE);
        all.min(window.saturating_add(spread).div_ceil(keys).saturating_add(1))
    }
}
