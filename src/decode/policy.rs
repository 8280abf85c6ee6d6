//! Who drafts how: parallel with the verification, after it, or not at all.

use crate::acceptance::Rule;
use crate::layout::GroupSet;

/// What a policy sees of one sequence before a step.
#[derive(Clone, Debug)]
pub struct SequenceView<'a> {
    /// n: the position of the newest token.
    pub position: usize,
    /// S of the request.
    pub block_size: usize,
    /// Confidences of the pending draft, slots 1..S; empty if there is none (after a prompt, say).
    pub confidence: &'a [f32],
    /// v as the request's confidence threshold has it.
    pub verify_len: usize,
    /// Whether the output stays token for token the same whatever v is: greedy and `match`. The other
    /// rules keep their distribution, not their tokens.
    pub tokens_independent_of_verify_len: bool,
    /// The request's rule.
    pub rule: Rule,
}

/// What a policy sees before a step.
#[derive(Clone, Debug)]
pub struct BatchView<'a> {
    /// Every sequence of the batch, those whose prompt is still being read included.
    pub sequences: &'a [SequenceView<'a>],
    /// The largest batch at which this device gains by drafting in parallel.
    pub parallel_batch_limit: usize,
}

/// What a policy chose for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// v. Values above the pending draft's length are cut to it. A value that differs from the view's is
    /// followed only where the output's tokens do not depend on it, or where
    /// [`EngineOptions::free_verify_len`](super::EngineOptions::free_verify_len) allows it.
    pub verify_len: usize,
    /// K: the accepted lengths for which the next block is drafted within the verification pass; members
    /// above v are ignored. For a prompt, member 0 stands for the group after its last token.
    pub groups: GroupSet,
    /// Whether the next block is drafted at all. If not, the next step is an autoregressive one.
    pub draft: bool,
}

impl Choice {
    /// The view's own v with group set `groups`.
    pub fn drafting(view: &SequenceView<'_>, groups: GroupSet) -> Self {
        Self { verify_len: view.verify_len, groups, draft: true }
    }
}

/// Chooses the verify length and the group set of every sequence, step by step.
///
/// Greedy and `match` outputs are the same under every policy. Policies are asked once a step.
pub trait Policy: Send {
    /// One [`Choice`] for each of `batch.sequences`, in order. Missing ones are drafted sequentially.
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice>;

    /// Whether this policy ever asks for a draft.
    fn drafts(&self) -> bool {
        true
    }

    /// The name that errors use.
    fn name(&self) -> &'static str;
}

/// The policies that come with the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Parallel up to the batch at which the device gains by it, sequential above.
    #[default]
    Auto,
    /// K = {0..=v}: every possible next block is drafted while this one is verified.
    Parallel,
    /// K = ∅: the next block is drafted once the accepted length is known.
    Sequential,
    /// No drafts: one token a step.
    Autoregressive,
}

impl Policy for Mode {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        let parallel = match self {
            Self::Auto => batch.sequences.len() <= batch.parallel_batch_limit,
            Self::Parallel => true,
            Self::Sequential | Self::Autoregressive => false,
        };
        let draft = self.drafts();
        let groups = |v| if parallel { GroupSet::all(v) } else { GroupSet::NONE };
        batch
            .sequences
            .iter()
            .map(|view| Choice { verify_len: view.verify_len, groups: groups(view.verify_len), draft })
            .collect()
    }

    fn drafts(&self) -> bool {
        *self != Self::Autoregressive
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Parallel => "parallel",
            Self::Sequential => "sequential",
            Self::Autoregressive => "ar",
        }
    }
}
