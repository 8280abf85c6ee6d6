//! Who drafts how: parallel with the verification, after it, or not at all.

use super::record::StepMode;
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
    /// Whether a policy may choose v, and whether anything is drafted at all: the output stays token for token the
    /// same (greedy and `match`), or the engine was told that only its distribution counts
    /// ([`EngineOptions::free_verify_len`](super::EngineOptions::free_verify_len)).
    pub verify_len_is_free: bool,
    /// The request's rule.
    pub rule: Rule,
}

/// What a policy sees before a step.
#[derive(Clone, Debug)]
pub struct BatchView<'a> {
    /// Every sequence of the batch, those whose prompt is still being read included.
    pub sequences: &'a [SequenceView<'a>],
}

/// What became of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceStep {
    /// How it was decoded; `None` if the step read a part of its prompt, or read again what it had committed.
    pub mode: Option<StepMode>,
    /// Whether there was a draft to verify, whatever v.
    pub had_draft: bool,
    /// Whether the next block was drafted.
    pub drafted: bool,
    /// Accepted draft tokens and the bonus token, before the output was cut at its end.
    pub committed: usize,
}

/// What a policy is told after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepView<'a> {
    /// How long the step took.
    pub seconds: f64,
    /// Every sequence that took part.
    pub sequences: &'a [SequenceStep],
}

/// What a policy chose for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// v. Values above the pending draft's length are cut to it. A value that differs from the view's is
    /// followed only where [`SequenceView::verify_len_is_free`].
    pub verify_len: usize,
    /// K: the accepted lengths for which the next block is drafted within the verification pass; members
    /// above v are ignored. For a prompt, member 0 stands for the group after its last token.
    pub groups: GroupSet,
    /// Whether the next block is drafted at all. If not, the next step is an autoregressive one. A policy that
    /// ever drafts does so wherever v is not free to choose.
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

    /// Is told what became of the step that the last choice was for.
    fn observe(&mut self, _step: &StepView<'_>) {}

    /// Whether this policy ever asks for a draft.
    fn drafts(&self) -> bool {
        true
    }

    /// The name that errors use.
    fn name(&self) -> &'static str;
}

impl Policy for Box<dyn Policy> {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        self.as_mut().choose(batch)
    }

    fn observe(&mut self, step: &StepView<'_>) {
        self.as_mut().observe(step);
    }

    fn drafts(&self) -> bool {
        self.as_ref().drafts()
    }

    fn name(&self) -> &'static str {
        self.as_ref().name()
    }
}

/// The same for every sequence and step. [`Auto`](super::Auto) chooses between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
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
            Self::Parallel => "parallel",
            Self::Sequential => "sequential",
            Self::Autoregressive => "ar",
        }
    }
}
