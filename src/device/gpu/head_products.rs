//! The number of products of the LM head in a step with mask groups.

use super::buffer::GpuBuffer;
use super::linear::GpuLinear;
use super::products::Products;

/// The division of the LM head's work in a step with mask groups into one product or two. The choice changes no
/// result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadProducts {
    /// One product or two, whichever takes less time by [`Products::seconds`]; two if a time is unknown.
    #[default]
    ByTime,
    /// One product for the candidates and for the slots of every mask group.
    Joined,
    /// One product for the candidates, then one product for the slots of the mask groups that the verdicts select.
    Apart,
}

/// The maximum size in bytes of the logits of one joined product. A device keeps two such buffers: the logits of this
/// step and the logits of the step before.
const JOINED_LOGITS_BYTES: usize = 256 << 20;

impl HeadProducts {
    /// Returns the maximum number of rows of a joined product of `head`.
    pub(super) fn most_joined_rows<P: Products>(self, head: &GpuLinear<P>) -> usize {
        if self == Self::Apart {
            return 0;
        }
        let stride = GpuBuffer::<P::Runtime>::new(head.out_cols, true).stride();
        JOINED_LOGITS_BYTES.checked_div(stride.saturating_mul(size_of::<f32>())).unwrap_or(0)
    }

    /// Returns whether one product for `candidates` and `slots` rows replaces a product for the candidates and a
    /// product for `drafted` rows.
    pub(super) fn joins<P: Products>(
        self,
        products: &P,
        head: &GpuLinear<P>,
        candidates: usize,
        slots: usize,
        drafted: usize,
    ) -> bool {
        let seconds = |rows| products.seconds(&head.layer, rows, true);
        match self {
            Self::Apart => false,
            Self::Joined => true,
            Self::ByTime => {
                let joined = seconds(candidates.saturating_add(slots));
                let apart = seconds(candidates).zip(seconds(drafted)).map(|(first, second)| first + second);
                joined.zip(apart).is_some_and(|(joined, apart)| joined < apart)
            }
        }
    }
}
