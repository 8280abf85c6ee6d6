//! Proposals: draft tokens from a source outside the model, with a length of their own.
//!
//! The rules of [`crate::accept`] verify a proposal like a draft. A proposal without distributions is certain of its
//! tokens: q_j is the point mass at d_j. Then `rejection` accepts d_j with probability p(d_j), and the bonus token
//! comes from p without d_j.
//!
//! [`prompt_lookup`] is a source without a model: text often repeats itself.

use crate::accept::Rule;
use crate::float::Float;
use crate::random::{Numbers, Purpose};
use crate::sample::draw;
use crate::warp::{Distribution, Warping, warp};

/// The slots of the draws of a proposal begin after this number, so that they share no random number with a drafter's
/// draft of the same step.
const FIRST_SLOT: usize = 64;

/// Draft tokens from a source outside the model. A step verifies all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal<F> {
    /// Draft tokens d_1, d_2, ….
    pub tokens: Vec<u32>,
    /// The distribution that each token was drawn from, given the tokens before it.
    pub distributions: Vec<Distribution<F>>,
}

impl<F: Float> Proposal<F> {
    /// Returns a proposal whose tokens count as certain, for a vocabulary of `vocab` ids.
    pub fn certain(tokens: Vec<u32>, vocab: usize) -> Self {
        let distributions = tokens.iter().map(|&token| point_mass(token, vocab)).collect();
        Self { tokens, distributions }
    }

    /// Returns a proposal of tokens that are drawn one after the other, by the request's rule, warping and seed.
    /// `logits` gives the logits `[V]` of the next token after the tokens so far, or `None` at the proposal's end. `start`
    /// is the position of c_0 in the step that verifies the proposal.
    pub fn drawn(
        (rule, warping, seed): (Rule, &Warping, u64),
        start: usize,
        mut logits: impl FnMut(&[u32]) -> Option<Vec<F>>,
    ) -> Self {
        let mut proposal = Self { tokens: vec![], distributions: vec![] };
        while let Some(logits) = logits(&proposal.tokens) {
            let slot = proposal.tokens.len() + 1;
            let q = warp(&logits, warping);
            let numbers = match rule {
                Rule::Match => Numbers::target_draw(seed, start + slot),
                Rule::Rejection | Rule::Block => {
                    Numbers::of_step(seed, Purpose::DraftDraw, FIRST_SLOT + slot, start)
                }
            };
            proposal.tokens.push(draw(&q.log_weights, &numbers));
            proposal.distributions.push(q);
        }
        proposal
    }
}

/// Returns the distribution `[V]` that gives all its mass to `token`.
pub fn point_mass<F: Float>(token: u32, vocab: usize) -> Distribution<F> {
    let chosen = |yes: F, no: F| (0..vocab as u32).map(|id| if id == token { yes } else { no }).collect();
    Distribution {
        log_weights: chosen(F::ZERO, F::NEG_INFINITY),
        probabilities: chosen(F::ONE, F::ZERO),
        kept: vec![token as usize],
    }
}

/// Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023): proposes the tokens that followed an earlier occurrence of
/// the last tokens.
///
/// For n = `longest` down to `shortest`: if the last n of `tokens` occur earlier, the proposal is the `count` tokens
/// after the last such occurrence. A proposal that reaches the end of `tokens` goes on with its own first tokens, so
/// that a repetition continues. Without an occurrence the proposal is empty.
pub fn prompt_lookup(tokens: &[u32], longest: usize, shortest: usize, count: usize) -> Vec<u32> {
    let len = tokens.len();
    for n in (shortest.max(1)..=longest.min(len)).rev() {
        let last = &tokens[len - n..];
        let Some(end) = (n..len).rev().find(|&end| tokens[end - n..end] == *last) else { continue };
        let mut all = tokens.to_vec();
        for index in end..end + count {
            all.push(all[index]);
        }
        return all[len..].to_vec();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_counts_and_then_the_last() {
        // The last three tokens 1 2 3 occur at the start; the last two occur later too; the last one most often.
        let tokens = [1, 2, 3, 7, 2, 3, 8, 3, 9, 1, 2, 3];
        assert_eq!(prompt_lookup(&tokens, 3, 1, 2), [7, 2]);
        assert_eq!(prompt_lookup(&tokens, 9, 1, 2), [7, 2]);
        assert_eq!(prompt_lookup(&tokens, 2, 1, 2), [8, 3]);
        assert_eq!(prompt_lookup(&tokens, 1, 1, 2), [9, 1]);
        assert_eq!(prompt_lookup(&tokens[..6], 3, 3, 2), [0; 0]);
        assert_eq!(prompt_lookup(&tokens[..6], 3, 2, 2), [7, 2]);
        assert_eq!(prompt_lookup(&[4], 3, 1, 2), [0; 0]);
        assert_eq!(prompt_lookup(&[], 3, 0, 2), [0; 0]);
    }

    #[test]
    fn a_repetition_continues_beyond_the_end() {
        assert_eq!(prompt_lookup(&[5, 1, 2, 1, 2], 2, 1, 5), [1, 2, 1, 2, 1]);
        assert_eq!(prompt_lookup(&[5, 5], 3, 1, 4), [5; 4]);
    }

    #[test]
    fn a_proposal_without_distributions_is_certain() {
        let certain = Proposal::<f64>::certain(vec![2, 0], 3);
        let probabilities: Vec<_> = certain.distributions.into_iter().map(|q| q.probabilities).collect();
        assert_eq!(probabilities, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
    }

    #[test]
    fn a_drawn_proposal_depends_on_its_own_tokens() {
        let logits = |tokens: &[u32]| {
            let row = (0..5).map(|id| f64::from((id * 3 + tokens.iter().sum::<u32>()) % 5)).collect();
            (tokens.len() < 4).then_some(row)
        };
        let drawn = |rule, seed| {
            Proposal::drawn((rule, &Warping { top_k: 3, ..Warping::temperature(0.9) }, seed), 7, logits)
        };
        let first = drawn(Rule::Block, 1);
        assert_eq!(first, drawn(Rule::Rejection, 1));
        assert!(first != drawn(Rule::Block, 2) && first != drawn(Rule::Match, 1));
        for (index, (&token, q)) in first.tokens.iter().zip(&first.distributions).enumerate() {
            assert!(q.kept.contains(&(token as usize)));
            assert_eq!(
                *q,
                warp(
                    &logits(&first.tokens[..index]).unwrap(),
                    &Warping { top_k: 3, ..Warping::temperature(0.9) }
                )
            );
        }
    }
}
