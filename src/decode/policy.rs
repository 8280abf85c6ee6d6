//! Drafting policies, which decide for each sequence whether to draft in parallel with verification, after
//! verification, or not at all.

use super::explanation::Explanation;
use super::record::StepMode;
use crate::acceptance::Rule;
use crate::layout::GroupSet;

/// The properties of one sequence that a policy sees before a step.
///
/// A view has no draft tokens: whether v ≥ j may not depend on the draft token d_j or a later draft token. The confidences
/// of slots j + 1 and later may depend on d_j, if the drafter has a chain. Therefore a policy that chooses v for a sequence
/// whose [tokens depend on it](Self::tokens_depend_on_verify_len) decides slot by slot, each slot by the confidences up to
/// it and by what was known before the draft.
#[derive(Clone, Debug, Default)]
pub struct SequenceView<'a> {
    /// A number that names the request among the requests of its engine, the same in every step.
    pub number: u64,
    /// n: the position of the newest token.
    pub position: usize,
    /// S: the request's block size.
    pub block_size: usize,
    /// Number of tokens that the step computes for this sequence because their keys and values are not in the cache:
    /// tokens of the prompt, or tokens whose pages were given up. 0 if the sequence decodes.
    pub reads: usize,
    /// Whether the step draws a token for the sequence, so that a draft can follow. The step draws none if it computes
    /// only a part of these tokens.
    pub draws: bool,
    /// Whether the drafter may draft the next block: the model has a drafter and the request allows drafts.
    pub may_draft: bool,
    /// Whether the request has a proposer, whose proposals take the place of drafts, need no mask rows, and come only if
    /// the policy asks for a draft. Without a drafter, asking costs nothing.
    pub proposes: bool,
    /// The maximum number of tokens that the request may still commit.
    pub wanted: usize,
    /// The drafter's confidence in each token of the pending draft. For tokens that a proposer pushed, the acceptance
    /// rate of such tokens, learned for each source and place. Empty if no draft is pending, for example after a
    /// prompt.
    pub confidence: &'a [f32],
    /// v: the verify length that the request's confidence threshold gives.
    pub verify_len: usize,
    /// Whether the policy may choose v and whether to draft. It may if the output stays the same token for token
    /// (greedy and `match`), or if the engine's options say that only the output's distribution matters
    /// ([`EngineOptions::free_verify_len`](super::EngineOptions::free_verify_len)).
    pub verify_len_is_free: bool,
    /// Whether the request's tokens depend on v, although their distribution does not (`rejection` and `block` above
    /// temperature 0).
    pub tokens_depend_on_verify_len: bool,
    /// The request's acceptance rule.
    pub rule: Rule,
}

/// The properties of a batch that a policy sees before a step.
#[derive(Clone, Debug)]
pub struct BatchView<'a> {
    /// Every sequence of the batch, including sequences whose prompt is still being read.
    pub sequences: &'a [SequenceView<'a>],
    /// Whether the drafter can draft in the verification pass. If not, group sets must be empty.
    pub groups_allowed: bool,
}

/// A draft token that no step verified, compared with the token that the sequence committed at its position.
///
/// All earlier tokens of its draft were accepted, or equal the tokens that the sequence committed there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ComparedToken {
    /// The place of the token in its draft, counted from 0.
    pub slot: usize,
    /// The drafter's confidence in the token.
    pub confidence: f32,
    /// Whether the token equals the committed token, so that a verification would have accepted it.
    pub is_equal: bool,
}

/// The outcome of a step for one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceStep {
    /// Index of the sequence among [`BatchView::sequences`].
    pub index: usize,
    /// The mode of decoding; `None` if the step read a part of the prompt, or read committed tokens again, or if
    /// the request failed.
    pub mode: Option<StepMode>,
    /// Number of positions that the sequence had in the cache before the step.
    pub cached: usize,
    /// Number of candidate rows: v + 1, or the number of tokens that the step read.
    pub candidates: usize,
    /// Number of mask groups in the verification pass.
    pub groups: usize,
    /// S: the number of rows of a mask group.
    pub block_size: usize,
    /// Whether the sequence had a draft before the step, even if the step verified no token of it.
    pub had_draft: bool,
    /// Whether the next block was drafted.
    pub drafted: bool,
    /// Whether the next block was drafted in a separate pass, after the verification.
    pub drafted_apart: bool,
    /// Number of accepted draft tokens, plus one for the bonus token if there is one, before the output was cut at its
    /// end.
    pub committed: usize,
    /// The first draft token that no step verified, compared with the step's bonus token. `None` without such a token, for
    /// tokens of a proposer, and if acceptance is no comparison of tokens (`rejection` and `block` above temperature 0).
    pub compared: Option<ComparedToken>,
}

impl SequenceStep {
    /// Returns v, the number of draft tokens that the step verified.
    pub fn verified(&self) -> usize {
        if self.mode.is_some() { self.candidates.saturating_sub(1) } else { 0 }
    }

    /// Returns a, the number of draft tokens that were accepted.
    pub fn accepted(&self) -> usize {
        if self.mode.is_some() { self.committed.saturating_sub(1) } else { 0 }
    }
}

/// The outcome of a step, reported to the policy.
#[derive(Clone, Copy, Debug)]
pub struct StepView<'a> {
    /// Duration of the step in seconds.
    pub seconds: f64,
    /// Every sequence that took part in the step.
    pub sequences: &'a [SequenceStep],
}

/// The accuracy of a policy's expected step durations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTimes {
    /// The duration of the last step in seconds, as the policy expected it from the step's rows.
    pub expected_seconds: f64,
    /// The duration of the last step in seconds.
    pub seconds: f64,
    /// The median error of the expected durations of the last steps, as a fraction of the step's duration.
    pub median_error: f64,
}

/// A policy's choice for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// v: the verify length, the number of draft tokens to verify. It is cut to the length of the pending draft. A
    /// value other than the view's is used only if [`SequenceView::verify_len_is_free`].
    pub verify_len: usize,
    /// K: the accepted lengths for which the verification pass also drafts the next block. Members above v
    /// are ignored. For a prompt, member 0 stands for the group after its last token.
    pub groups: GroupSet,
    /// Whether to draft the next block at all. If not, the next step is autoregressive. A policy that drafts
    /// at all must draft whenever v is not free to choose.
    pub draft: bool,
}

impl Choice {
    /// Returns a choice that drafts with the group set `groups`, and keeps the verify length of `view`.
    pub fn drafting(view: &SequenceView<'_>, groups: GroupSet) -> Self {
        Self { verify_len: view.verify_len, groups, draft: true }
    }
}

/// A policy that chooses the verify length and the group set of every sequence in each step.
///
/// Greedy and `match` outputs are the same under every policy. The engine calls a policy once per step.
pub trait Policy: Send {
    /// Returns one [`Choice`] per entry of `batch.sequences`, in order. Sequences without a choice draft
    /// sequentially.
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice>;

    /// Receives the outcome of the step that the last choice was for.
    fn observe(&mut self, _step: &StepView<'_>) {}

    /// Returns the accuracy of the policy's expected step durations, if the policy predicts durations.
    fn step_times(&self) -> Option<StepTimes> {
        None
    }

    /// Returns the explanation of the policy's last choice, if the policy compares alternatives.
    fn explanation(&self) -> Option<Explanation> {
        None
    }

    /// Returns whether this policy ever asks for a draft.
    fn drafts(&self) -> bool {
        true
    }

    /// Returns whether this policy asks for mask groups even if they are not
    /// [allowed](BatchView::groups_allowed). An engine whose drafter cannot make them refuses such a policy.
    fn needs_groups(&self) -> bool {
        false
    }

    /// Returns the policy's name, for errors.
    fn name(&self) -> &'static str;
}

impl Policy for Box<dyn Policy> {
    fn choose(&mut self, batch: &BatchView<'_>) -> Vec<Choice> {
        self.as_mut().choose(batch)
    }

    fn observe(&mut self, step: &StepView<'_>) {
        self.as_mut().observe(step);
    }

    fn step_times(&self) -> Option<StepTimes> {
        self.as_ref().step_times()
    }

    fn explanation(&self) -> Option<Explanation> {
        self.as_ref().explanation()
    }

    fn drafts(&self) -> bool {
        self.as_ref().drafts()
    }

    fn needs_groups(&self) -> bool {
        self.as_ref().needs_groups()
    }

    fn name(&self) -> &'static str {
        self.as_ref().name()
    }
}

/// A policy that drafts in one way for all sequences and steps. [`Flex`](super::Flex) chooses per sequence and
/// step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Parallel drafting: the verification pass of a block also drafts the next block for every accepted length, so K =
    /// {0..=v}.
    Parallel,
    /// Sequential drafting: the next block is drafted once the accepted length is known, so K = ∅.
    Sequential,
    /// No drafts: one token per step.
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

    fn needs_groups(&self) -> bool {
        *self == Self::Parallel
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Sequential => "sequential",
            Self::Autoregressive => "ar",
        }
    }
}
