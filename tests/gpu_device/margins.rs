//! Near-ties of the target's logits, after which the tokens of two devices may differ.

use std::sync::{Arc, Mutex};

use flexdraft::decode::{HookError, LogitsHook};

/// The largest margin of a near-tie. The CPU device does not round attention's weights to bf16, and the GPU device does.
pub const NEAR_TIE: f32 = 0.02;

/// The distance between the two largest logits at each token, as a fraction of the range of all logits.
#[derive(Clone, Default)]
pub struct Margins(Arc<Mutex<Vec<f32>>>);

impl Margins {
    /// Returns the margin at the token with number `index`, from 0.
    pub fn of_token(&self, index: usize) -> f32 {
        self.0.lock().unwrap()[index]
    }
}

impl LogitsHook for Margins {
    fn edit(&mut self, _position: usize, _prefix: &[u32], logits: &mut [f32]) -> Result<(), HookError> {
        let mut sorted = logits.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let range = sorted[0] - sorted[sorted.len() - 1];
        self.0.lock().unwrap().push((sorted[0] - sorted[1]) / range);
        Ok(())
    }
}
