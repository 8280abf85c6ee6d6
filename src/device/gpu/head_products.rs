//! How many products of the head a step with mask groups has.

use super::memory::GpuBuffer;
use super::products::Products;
use super::{Gpu, GpuLinear};

/// How the head's products of a step with mask groups are put together. The choice changes no result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadProducts {
    /// Whichever takes less time by [`Products::seconds`]; apart if a time is unknown.
    #[default]
    ByTime,
    /// One product for the candidates and for the slots of every group.
    Joined,
    /// One product for the candidates, then one for the slots of the groups that came true.
    Apart,
}

/// Most bytes of the logits that one joined product makes. A device keeps two such buffers: the logits of this step and
/// the logits of the step before.
const JOINED_LOGITS_BYTES: usize = 256 << 20;

impl<P: Products> Gpu<P> {
    /// The most rows that a joined product may have.
    pub(super) fn most_joined_rows(&self, head: &GpuLinear<P>) -> usize {
        if self.head_products == HeadProducts::Apart {
            return 0;
        }
        let stride = GpuBuffer::<P::Runtime>::new(head.out_cols, true).stride();
        JOINED_LOGITS_BYTES.checked_div(stride.saturating_mul(size_of::<f32>())).unwrap_or(0)
    }

    /// Whether one product for `candidates` and `slots` rows is to replace a product for the candidates and one for
    /// `drafted` rows.
    pub(super) fn joins(&self, head: &GpuLinear<P>, candidates: usize, slots: usize, drafted: usize) -> bool {
        let seconds = |rows| self.products.seconds(&head.layer, rows, true);
        match self.head_products {
            HeadProducts::Apart => false,
            HeadProducts::Joined => true,
            HeadProducts::ByTime => {
                let joined = seconds(candidates.saturating_add(slots));
                let apart = seconds(candidates).zip(seconds(drafted)).map(|(first, second)| first + second);
                joined.zip(apart).is_some_and(|(joined, apart)| joined < apart)
            }
        }
    }
}
