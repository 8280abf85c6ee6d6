//! Proposals: draft tokens from a source outside the model, and the trait of such sources.

use super::hook::HookError;
use crate::acceptance::Rule;
use crate::layout::MAX_BLOCK_SIZE;
use crate::logits::LogitsFault;
use crate::random::{Purpose, Stream};
use crate::sampling::{SamplingParams, argmax, confidence, draw, warp};

/// The maximum number of tokens in a proposal.
pub const MAX_PROPOSAL: usize = MAX_BLOCK_SIZE - 1;

/// A source of draft tokens outside the model: a lookup, or another model.
///
/// A proposal takes the place of the drafter's draft, and needs no drafter. Every rule verifies all its tokens, so the
/// output stays lossless whatever is proposed. [`PromptLookup`](super::PromptLookup) is the built-in source.
///
/// ```
/// use flexdraft::decode::{HookError, Proposal, Proposer};
///
/// /// Proposes that the text goes on as a text that is known.
/// struct Known(Vec<u32>);
///
/// impl Proposer for Known {
///     fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
///         if let Some(rest) = self.0.strip_prefix(prefix) {
///             for &token in rest.iter().take(8) {
///                 proposal.push(token)?;
///             }
///         }
///         Ok(())
///     }
/// }
/// ```
///
/// A source that draws its tokens lets the engine draw them from its logits, so that a rule can compare the source's
/// distribution with the target's:
///
/// ```
/// # use flexdraft::decode::{HookError, Proposal};
/// # fn small_model(_: &[u32], _: &[u32]) -> Vec<f32> { Vec::new() }
/// fn propose(prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
///     for _ in 0..4 {
///         let logits = small_model(prefix, proposal.tokens());
///         proposal.draw(&logits)?;
///     }
///     Ok(())
/// }
/// ```
pub trait Proposer: Send {
    /// Proposes tokens for the positions after `prefix`, which has all tokens so far, the bonus token last. If
    /// `proposal` stays empty, the drafter's draft is kept. The result must depend on the arguments alone.
    ///
    /// # Errors
    ///
    /// Any error for which there is no proposal. An error, like a panic, ends the request with
    /// [`DecodeError::Hook`](super::DecodeError::Hook), after the tokens in `prefix`.
    fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError>;

    /// Returns the name of the source; by default, the name of its type, which closures of one function share. The engine
    /// learns for each name how often tokens that count as certain are accepted, which policies see as their
    /// [confidence](super::SequenceView::confidence).
    fn source(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

impl<F: FnMut(&[u32], &mut Proposal<'_>) -> Result<(), HookError> + Send> Proposer for F {
    fn propose(&mut self, prefix: &[u32], proposal: &mut Proposal<'_>) -> Result<(), HookError> {
        self(prefix, proposal)
    }
}

/// An error of a proposed token.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposalError {
    /// A proposed token is not in the target's vocabulary.
    #[error("proposed token {token} is out of vocabulary ({vocab_size} ids)")]
    OutOfVocabulary {
        /// The token id.
        token: u32,
        /// V: the number of token ids in the vocabulary.
        vocab_size: usize,
    },
    /// The proposal already has the maximum number of tokens that a step can verify.
    #[error("a proposal has at most {MAX_PROPOSAL} tokens")]
    Full,
    /// The number of logits differs from the number of ids in the vocabulary.
    #[error("a row of logits has {expected} values, found {found}")]
    LogitsLength {
        /// V: the number of token ids in the vocabulary.
        expected: usize,
        /// The number of logits.
        found: usize,
    },
    /// A row of logits from which no token can be drawn.
    #[error("the logits of the proposal have {0}")]
    Logits(LogitsFault),
}

/// A proposal that a [`Proposer`] fills, token by token.
///
/// Tokens that are [pushed](Self::push) count as certain, q(d) = 1, and their confidence is how often tokens of the same
/// [source](Proposer::source) at the same place were accepted so far; tokens that are [drawn](Self::draw) come from their
/// distribution. A proposal may have both.
#[derive(Debug)]
pub struct Proposal<'a> {
    request: ProposalRequest<'a>,
    tokens: Vec<u32>,
    confidence: Vec<f32>,
    /// The warped scores that each token was drawn from; `None` for a token that was pushed.
    scores: Vec<Option<Vec<f32>>>,
    /// Whether each token was pushed.
    places: Vec<bool>,
    /// The verify length that the drafter's confidences give, if the proposal is the drafter's draft.
    verify_len: Option<usize>,
}

/// The settings of the request that a proposal is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProposalRequest<'a> {
    pub(super) vocab_size: usize,
    pub(super) sampling: &'a SamplingParams,
    pub(super) rule: Rule,
    pub(super) seed: u64,
    /// The position of the bonus token, the first candidate of the step that verifies the proposal.
    pub(super) start: usize,
    /// Tokens, confidences and verify length of the drafter's draft, if there is one.
    pub(super) draft: Option<(&'a [u32], &'a [f32], usize)>,
}

/// A finished proposal.
#[derive(Debug, PartialEq)]
pub(super) struct ProposedDraft {
    /// The tokens d_1, d_2, ….
    pub(super) tokens: Vec<u32>,
    /// The largest probability of each token's distribution at temperature 1.
    pub(super) confidence: Vec<f32>,
    /// Whether each token was pushed as certain.
    pub(super) places: Vec<bool>,
    /// v: the number of tokens to verify.
    pub(super) verify_len: usize,
    /// The warped scores `[vocab]` that each token was drawn from, if the rule compares distributions and any token was
    /// drawn.
    pub(super) scores: Option<Vec<Vec<f32>>>,
}

impl<'a> Proposal<'a> {
    /// Makes an empty proposal.
    pub(super) fn new(request: ProposalRequest<'a>) -> Self {
        let (tokens, confidence, scores, places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { request, tokens, confidence, scores, places, verify_len: None }
    }

    /// Returns the tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns whether the proposal has [`MAX_PROPOSAL`] tokens.
    pub fn is_full(&self) -> bool {
        self.tokens.len() >= MAX_PROPOSAL
    }

    /// Returns the number of ids in the target's vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.request.vocab_size
    }

    /// Adds a token that counts as certain.
    ///
    /// # Errors
    ///
    /// [`ProposalError`] if the token is not in the vocabulary, or if the proposal is full.
    pub fn push(&mut self, token: u32) -> Result<(), ProposalError> {
        let vocab_size = self.request.vocab_size;
        if token as usize >= vocab_size {
            return Err(ProposalError::OutOfVocabulary { token, vocab_size });
        }
        self.add(token, 1.0, None)?;
        if let Some(place) = self.places.last_mut() {
            *place = true;
        }
        Ok(())
    }

    /// Draws the next token from `logits` `[vocab]`, with the request's sampling parameters and random numbers, and adds
    /// the token. The logits, and whether there is another token, may depend on the tokens so far.
    ///
    /// # Errors
    ///
    /// [`ProposalError`] if the number of logits is not V, if no token can be drawn from the logits, or if the proposal
    /// is full.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32, ProposalError> {
        let ProposalRequest { vocab_size, sampling, rule, seed, start, .. } = self.request;
        if logits.len() != vocab_size {
            return Err(ProposalError::LogitsLength { expected: vocab_size, found: logits.len() });
        }
        if let Some(fault) = LogitsFault::of(logits) {
            return Err(ProposalError::Logits(fault));
        }
        let slot = self.tokens.len() + 1;
        let (token, scores) = if sampling.is_greedy() {
            (argmax(logits.iter().copied()), None)
        } else {
            let scores = warp(logits, sampling);
            match rule {
                Rule::Match => (draw(&scores, Stream::target_draw(seed, start + slot)), None),
                // The random numbers differ from the numbers of the drafter's draft, which the source may have seen.
                Rule::Rejection | Rule::Block => {
                    let stream = Stream::new(seed, Purpose::DraftDraw, MAX_BLOCK_SIZE + slot, start);
                    (draw(&scores, stream), Some(scores))
                }
            }
        };
        self.add(token, confidence(logits), scores)?;
        Ok(token)
    }

    /// Takes the drafter's draft, if there is one, as a proposal that counts as certain. The drafter's confidences decide
    /// how much of it is verified. Replaces the tokens so far.
    pub fn keep_draft(&mut self) {
        let Some((tokens, confidence, verify_len)) = self.request.draft else { return };
        (self.tokens, self.confidence) = (tokens.to_vec(), confidence.to_vec());
        (self.scores, self.places) = (vec![None; tokens.len()], vec![false; tokens.len()]);
        self.verify_len = Some(verify_len);
    }

    fn add(&mut self, token: u32, confidence: f32, scores: Option<Vec<f32>>) -> Result<(), ProposalError> {
        if self.is_full() {
            return Err(ProposalError::Full);
        }
        self.tokens.push(token);
        self.confidence.push(confidence);
        self.scores.push(scores);
        self.places.push(false);
        self.verify_len = None;
        Ok(())
    }

    /// Returns what was proposed; `None` for an empty proposal.
    pub(super) fn finish(self) -> Option<ProposedDraft> {
        let Self { request, tokens, confidence, scores, places, verify_len } = self;
        if tokens.is_empty() {
            return None;
        }
        let certain = |token: u32| {
            let mut scores = vec![f32::NEG_INFINITY; request.vocab_size];
            if let Some(score) = scores.get_mut(token as usize) {
                *score = 0.0;
            }
            scores
        };
        let is_drawn = scores.iter().any(Option::is_some);
        let rows = scores.into_iter().zip(&tokens).map(|(row, &token)| row.unwrap_or_else(|| certain(token)));
        let scores = is_drawn.then(|| rows.collect());
        let verify_len = verify_len.unwrap_or(tokens.len());
        Some(ProposedDraft { tokens, confidence, places, verify_len, scores })
    }
}
