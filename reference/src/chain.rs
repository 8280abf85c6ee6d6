//! Chained Calibration: the tokens of a draft are drawn slot by slot, each from logits that are corrected for the token
//! of the previous slot.
//!
//! The calibrator of FlexDraft tells every slot the bonus token, and the slots are drawn independently: slot 5 does not
//! know which token slot 4 drew. This optional extension of the method (not part of arXiv 2605.20022) looks again at
//! the K most likely ids of each slot. For slots j = 1..S−1 in order, with t_0 the bonus token b' and t_j = d_j:
//!
//! 1. ℓ_j are the calibrated logits of slot j ([`crate::calibration`]). C_j are the K ids of the largest ℓ_j, ties to
//!    the lowest id: chosen before warping, and without d_{j−1}.
//! 2. s_j(x) = ℓ_j(x) + score(t_{j−1}, x) for x in C_j. [`ChainScores`] defines two kinds of score.
//! 3. d_j is drawn from q_j, the warped softmax of s_j over C_j. Every other id has probability 0.
//!
//! The confidence of slot j is the largest probability of softmax(s_j) over C_j at temperature 1, not the probability
//! of the drawn id: the verify length would then depend on a token that it decides about, which biases the output.
//!
//! All acceptance rules stay exact, because they use the q_j that d_j was drawn from, given d_1..d_{j−1}.

use crate::float::Float;
use crate::linear::{Linear, dot};
use crate::swiglu::silu;

/// The part of a drafter that chains the slots of a draft.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain<F> {
    /// The weights of the score of two neighbouring tokens.
    pub scores: ChainScores<F>,
    /// K: the number of ids of a slot that are scored. A vocabulary of fewer ids is scored whole.
    pub top_k: usize,
}

/// The score of token x in a slot after token t in the previous slot; both kinds of score use the target's own
/// embeddings of the tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum ChainScores<F> {
    /// The score `(A · embed(t)) · (B · embed(x))` of token x after token t, which depends on the two tokens alone.
    Pair {
        /// The matrix A `[r, hidden]`, applied to the embedding of the token before.
        before: Linear<F>,
        /// The matrix B `[r, hidden]`, applied to the embedding of the scored token.
        after: Linear<F>,
    },
    /// The score `lm_head[x] · (W2 · silu(W1 · [embed(t); h_j]))` of token x after token t, which also depends on the
    /// final-normed hidden row h_j of x's slot.
    Hidden {
        /// The matrix W1 `[r, 2 · hidden]`.
        hidden: Linear<F>,
        /// The matrix W2 `[hidden, r]`.
        output: Linear<F>,
    },
}

/// The target's matrices with a row for each token.
#[derive(Clone, Copy, Debug)]
pub struct TokenRows<'a, F> {
    /// The token embeddings, row-major `[V, hidden]`.
    pub embed: &'a [F],
    /// The output projection, `[V, hidden]`.
    pub lm_head: &'a Linear<F>,
}

impl<'a, F: Float> TokenRows<'a, F> {
    fn embedding(&self, token: u32) -> &'a [F] {
        let hidden = self.lm_head.inputs;
        &self.embed[token as usize * hidden..][..hidden]
    }
}

impl<F: Float> ChainScores<F> {
    /// Returns the score of each of `ids` after token `before`, in a slot with the final-normed hidden row `h`
    /// `[hidden]`.
    pub fn score(&self, target: TokenRows<'_, F>, before: u32, h: &[F], ids: &[u32]) -> Vec<F> {
        match self {
            Self::Pair { before: a, after: b } => {
                let a = a.apply(target.embedding(before));
                ids.iter().map(|&id| dot(&a, &b.apply(target.embedding(id)))).collect()
            }
            Self::Hidden { hidden, output } => {
                let inner = hidden.apply(&[target.embedding(before), h].concat());
                let correction = output.apply(&inner.into_iter().map(silu).collect::<Vec<F>>());
                ids.iter().map(|&id| dot(target.lm_head.row(id as usize), &correction)).collect()
            }
        }
    }
}

/// Returns C_j: the `top_k` ids of the largest `logits` `[V]`, in descending order; ties go to the lowest id, and NaN
/// counts as −∞.
pub fn likeliest<F: Float>(logits: &[F], top_k: usize) -> Vec<u32> {
    let value = |id: u32| {
        let logit = logits[id as usize];
        if logit > F::NEG_INFINITY { logit } else { F::NEG_INFINITY }
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    // The sort is stable, so that equal logits stay in ascending order of id.
    ids.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).unwrap_or(std::cmp::Ordering::Equal));
    ids.truncate(top_k);
    ids
}

/// Returns the chained logits `[V]` of one slot: s_j for the ids in C_j and −∞ for all others.
///
/// `before` is the token drawn in the slot before, or the bonus token for slot 1; `h` is the slot's final-normed hidden
/// row `[hidden]`, and `logits` `[V]` are its calibrated logits.
pub fn chained_logits<F: Float>(
    target: TokenRows<'_, F>,
    chain: &Chain<F>,
    before: u32,
    h: &[F],
    logits: &[F],
) -> Vec<F> {
    let ids = likeliest(logits, chain.top_k);
    let mut chained = vec![F::NEG_INFINITY; logits.len()];
    for (&id, score) in ids.iter().zip(chain.scores.score(target, before, h, &ids)) {
        chained[id as usize] = logits[id as usize] + score;
    }
    chained
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_ids_are_in_descending_order_with_ties_to_the_lowest() {
        let logits = [1.0, f64::NAN, 3.0, 3.0, f64::NEG_INFINITY];
        assert_eq!(likeliest(&logits, 3), [2, 3, 0]);
        assert_eq!(likeliest(&logits, 1), [2]);
        assert_eq!(likeliest(&logits, 4), [2, 3, 0, 1]);
        assert_eq!(likeliest(&logits, 9), [2, 3, 0, 1, 4]);
        assert!(likeliest(&logits, 0).is_empty());
    }

    #[test]
    fn a_pair_score_with_one_dimension() {
        let target = TokenRows { embed: &[0.5, -2.0, 3.0], lm_head: &Linear::new(vec![0.0; 3], 1) };
        let scores =
            ChainScores::Pair { before: Linear::new(vec![4.0], 1), after: Linear::new(vec![0.25], 1) };
        let chain = Chain { scores, top_k: 2 };
        // C_j = {2, 0}: id 1 has the smallest logit. The scores after token 1 are (4 · −2) · (0.25 · embed(x)).
        let chained = chained_logits(target, &chain, 1, &[9.0], &[1.0, 0.5, 2.0]);
        assert_eq!(chained, [1.0 - 8.0 * 0.125, f64::NEG_INFINITY, 2.0 - 8.0 * 0.75]);
    }

    #[test]
    fn a_hidden_score_with_one_dimension() {
        let lm_head = Linear::new(vec![10.0, 20.0, 30.0], 1);
        let target = TokenRows { embed: &[0.5, -2.0, 3.0], lm_head: &lm_head };
        let scores = ChainScores::Hidden {
            hidden: Linear::new(vec![4.0, 5.0], 2),
            output: Linear::new(vec![0.25], 1),
        };
        let chain = Chain { scores, top_k: 3 };
        let correction = 0.25 * silu(4.0 * 3.0 + 5.0 * 0.2f64);
        let chained = chained_logits(target, &chain, 2, &[0.2], &[1.0, 0.5, 2.0]);
        for (value, (logit, head)) in chained.iter().zip([(1.0, 10.0), (0.5, 20.0), (2.0, 30.0)]) {
            assert!((value - (logit + head * correction)).abs() < 1e-12);
        }
    }

    /// The choice of C_j does not see the scores: an id outside C_j stays out, however large its score would be.
    #[test]
    fn the_ids_are_chosen_before_the_scores() {
        let target = TokenRows { embed: &[1.0, 1.0, 100.0], lm_head: &Linear::new(vec![0.0; 3], 1) };
        let scores =
            ChainScores::Pair { before: Linear::new(vec![1.0], 1), after: Linear::new(vec![1.0], 1) };
        let chained = chained_logits(target, &Chain { scores, top_k: 2 }, 0, &[0.0], &[0.3, 0.2, 0.1]);
        assert_eq!(chained, [1.3, 1.2, f64::NEG_INFINITY]);
    }
}
