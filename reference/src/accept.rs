//! The four acceptance rules, which decide how many draft tokens are kept and how the bonus token is drawn.
//!
//! A step verifies draft tokens d_1..d_v. Row i of `p` is the target's distribution after candidate i, for i = 0..=v.
//! Row j − 1 of `q` is the distribution that d_j was drawn from, for j = 1..=v. Both are warped in the same way. A
//! rule finds the accepted length a and the bonus token, which follows d_a.
//!
//! | rule | a | the bonus is drawn from |
//! |---|---|---|
//! | [`greedy`] | while argmax p_i = d_{i+1} | argmax p_a |
//! | [`rejection`] (Leviathan et al., 2211.17192, algorithm 1; Chen et al., 2302.01318) | d_{i+1} with probability min(1, p_i(d) / q_{i+1}(d)), until the first rejection | norm(max(p_a − q_{a+1}, 0)), or p_v |
//! | [`block`] (Sun et al., 2403.10444, algorithm 2) | the last i whose own test passes | norm(max(P_a · p_a − q_{a+1}, 0)), or p_v |
//! | [`matching`] | while the target's own draw x_i = d_{i+1} | x_a |
//!
//! Every rule leaves the target's distribution unchanged. Separate functions return the probabilities of the tests
//! and the weights of the bonus token, so that this can be checked by summation.

use crate::float::Float;
use crate::sample::{LogitsFault, argmax, logits_fault};

/// The acceptance rule that applies at temperatures above 0. At temperature 0 every rule is [`greedy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Rejection sampling; see [`rejection`].
    Rejection,
    /// Block verification; see [`block`].
    Block,
    /// Match verification; see [`matching`].
    Match,
}

/// The result of verifying a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Number a of accepted draft tokens.
    pub accepted: usize,
    /// The bonus token, which follows the accepted draft tokens.
    pub bonus: u32,
}

/// Greedy verification: accepts draft tokens while the target's most probable token is the same, argmax p_i = d_{i+1}.
/// Rows of `p` may also be logits.
pub fn greedy<F: Float>(p: &[Vec<F>], draft: &[u32]) -> Verdict {
    matching(draft, |i| argmax(&p[i]))
}

/// Match verification: accepts draft tokens while the target's own draw x_i equals d_{i+1}; x_a is the bonus token.
///
/// `draw(i)` draws from p_i with the random numbers of the position after candidate i. It is called
/// for i = 0..=a.
pub fn matching(draft: &[u32], mut draw: impl FnMut(usize) -> u32) -> Verdict {
    for (i, &d) in draft.iter().enumerate() {
        let x = draw(i);
        if x != d {
            return Verdict { accepted: i, bonus: x };
        }
    }
    Verdict { accepted: draft.len(), bonus: draw(draft.len()) }
}

/// Rejection sampling (speculative sampling): accepts draft tokens one by one. `uniforms[i − 1]` tests d_i, which
/// passes if u · q < p. The inequality is strict, so a token of probability 0 is never accepted.
///
/// `draw(a, weights)` draws the bonus from `weights` `[V]`, which need not sum to 1.
pub fn rejection<F: Float>(
    p: &[Vec<F>],
    q: &[Vec<F>],
    draft: &[u32],
    uniforms: &[F],
    draw: impl FnOnce(usize, &[F]) -> u32,
) -> Verdict {
    let mut accepted = 0;
    while accepted < draft.len() {
        let d = draft[accepted] as usize;
        if uniforms[accepted] * q[accepted][d] < p[accepted][d] {
            accepted += 1;
        } else {
            break;
        }
    }
    Verdict { accepted, bonus: draw(accepted, &rejection_weights(p, q, accepted)) }
}

/// Block verification: accepts a prefix of the draft by its joint probability. `uniforms[i − 1]` tests length i, which
/// passes if u · (s_i + 1 − P_i) < s_i for i < v, and if u < P_v for i = v; the last i that passes is accepted, 0 if
/// none does.
///
/// `draw(a, weights)` draws the bonus from `weights` `[V]`, which need not sum to 1.
pub fn block<F: Float>(
    p: &[Vec<F>],
    q: &[Vec<F>],
    draft: &[u32],
    uniforms: &[F],
    draw: impl FnOnce(usize, &[F]) -> u32,
) -> Verdict {
    let prefix = block_prefix_probabilities(p, q, draft);
    let mut accepted = 0;
    for i in 1..=draft.len() {
        let u = uniforms[i - 1];
        let passes = if i == draft.len() {
            u < prefix[i]
        } else {
            let s = residual_mass(prefix[i], &p[i], &q[i]);
            u * (s + F::ONE - prefix[i]) < s
        };
        if passes {
            accepted = i;
        }
    }
    Verdict { accepted, bonus: draw(accepted, &block_weights(p, q, draft, accepted)) }
}

/// Returns the first of the target's rows 0..=`accepted` of `logits` that no token may be drawn from, and its fault.
///
/// A fault at row i ends the sequence: d_1..d_i stand, and there is no bonus token. Rows beyond the accepted length
/// are not used, and the draft's rows need no check: whatever a draft was drawn from, the rule verifies it.
pub fn first_fault<F: Float>(logits: &[Vec<F>], accepted: usize) -> Option<(usize, LogitsFault)> {
    logits.iter().take(accepted + 1).enumerate().find_map(|(i, row)| Some((i, logits_fault(row)?)))
}

/// Returns the probabilities with which the tests i = 1..=v of `rejection` pass: min(1, p_{i−1}(d_i) / q_i(d_i)).
pub fn rejection_test_probabilities<F: Float>(p: &[Vec<F>], q: &[Vec<F>], draft: &[u32]) -> Vec<F> {
    let ratio_at = |(i, &d): (usize, &u32)| capped_ratio(F::ONE, p[i][d as usize], q[i][d as usize]);
    draft.iter().enumerate().map(ratio_at).collect()
}

/// Returns the weights of `rejection`'s bonus token after `accepted` tokens: max(p_a − q_{a+1}, 0), or p_v.
pub fn rejection_weights<F: Float>(p: &[Vec<F>], q: &[Vec<F>], accepted: usize) -> Vec<F> {
    bonus_weights(F::ONE, &p[accepted], q.get(accepted))
}

/// Returns the prefix probabilities of `block`: P_0 = 1 and P_i = min(1, P_{i−1} · p_{i−1}(d_i) / q_i(d_i)), i = 0..=v.
pub fn block_prefix_probabilities<F: Float>(p: &[Vec<F>], q: &[Vec<F>], draft: &[u32]) -> Vec<F> {
    let mut prefix = vec![F::ONE];
    for (i, &d) in draft.iter().enumerate() {
        prefix.push(capped_ratio(prefix[i], p[i][d as usize], q[i][d as usize]));
    }
    prefix
}

/// Returns the probabilities h_i with which the tests i = 1..=v of `block` pass. h_i = s_i / (s_i + 1 − P_i) with s_i =
/// Σ_x max(P_i · p_i(x) − q_{i+1}(x), 0), and h_v = P_v.
///
/// If s_i = 0, then h_i = 0, even if P_i = 1: in that case p_i = q_{i+1}, and a longer length passes.
pub fn block_test_probabilities<F: Float>(p: &[Vec<F>], q: &[Vec<F>], draft: &[u32]) -> Vec<F> {
    let prefix = block_prefix_probabilities(p, q, draft);
    let test = |i: usize| {
        if i == draft.len() {
            return prefix[i];
        }
        let s = residual_mass(prefix[i], &p[i], &q[i]);
        if s == F::ZERO { F::ZERO } else { s / (s + F::ONE - prefix[i]) }
    };
    (1..=draft.len()).map(test).collect()
}

/// Returns the weights of `block`'s bonus token after `accepted` tokens: max(P_a · p_a − q_{a+1}, 0), or p_v.
pub fn block_weights<F: Float>(p: &[Vec<F>], q: &[Vec<F>], draft: &[u32], accepted: usize) -> Vec<F> {
    let prefix = block_prefix_probabilities(p, q, draft);
    bonus_weights(prefix[accepted], &p[accepted], q.get(accepted))
}

/// Returns the residual max(P · p − q, 0), or p if there is no q. A residual without any mass, which only rounding can
/// cause, is replaced by p.
fn bonus_weights<F: Float>(prefix: F, p: &[F], q: Option<&Vec<F>>) -> Vec<F> {
    match q {
        Some(q) if residual_mass(prefix, p, q) > F::ZERO => residual(prefix, p, q),
        _ => p.to_vec(),
    }
}

/// Returns max(P · p(x) − q(x), 0) for every token x.
fn residual<F: Float>(prefix: F, p: &[F], q: &[F]) -> Vec<F> {
    p.iter().zip(q).map(|(&p, &q)| (prefix * p - q).max(F::ZERO)).collect()
}

fn residual_mass<F: Float>(prefix: F, p: &[F], q: &[F]) -> F {
    residual(prefix, p, q).into_iter().sum()
}

/// Returns the prefix probability min(1, P · p / q). A token with q = 0 is never drafted; if it were, p alone would
/// decide.
fn capped_ratio<F: Float>(prefix: F, p: F, q: F) -> F {
    let numerator = prefix * p;
    if numerator >= q && numerator > F::ZERO {
        F::ONE
    } else if numerator == F::ZERO {
        F::ZERO
    } else {
        numerator / q
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_leading_matches() {
        let p = vec![vec![0.0, 1.0, 0.0], vec![0.4, 0.2, 0.4], vec![0.1, 0.1, 0.8]];
        assert_eq!(greedy(&p, &[1, 0]), Verdict { accepted: 2, bonus: 2 });
        assert_eq!(greedy(&p, &[1, 2]), Verdict { accepted: 1, bonus: 0 });
        assert_eq!(greedy(&p, &[0, 0]), Verdict { accepted: 0, bonus: 1 });
        assert_eq!(greedy(&p, &[]), Verdict { accepted: 0, bonus: 1 });
    }

    #[test]
    fn a_token_of_probability_zero_is_never_accepted() {
        let (p, q) = (vec![vec![0.0, 1.0], vec![0.5, 0.5]], vec![vec![1.0, 0.0]]);
        let only_1 = |a: usize, weights: &[f64]| {
            assert_eq!((a, weights), (0, &[0.0, 1.0][..]));
            1
        };
        assert_eq!(rejection(&p, &q, &[0], &[0.0], only_1), Verdict { accepted: 0, bonus: 1 });
        assert_eq!(block(&p, &q, &[0], &[0.0], only_1), Verdict { accepted: 0, bonus: 1 });
    }

    #[test]
    fn the_worked_example_of_block_verification() {
        // The example is the first of arXiv 2403.10444: two ids, with p = (1/3, 2/3) and q = (2/3, 1/3) in every row.
        // The expected number of accepted tokens is 10/9 for rejection and 11/9 for block.
        let p = vec![vec![1.0 / 3.0, 2.0 / 3.0]; 3];
        let q = vec![vec![2.0 / 3.0, 1.0 / 3.0]; 2];
        let (mut by_rejection, mut by_block) = (0.0, 0.0);
        for draft in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            let mass: f64 = q[0][draft[0] as usize] * q[1][draft[1] as usize];
            let r = rejection_test_probabilities(&p, &q, &draft);
            by_rejection += mass * (r[0] + r[0] * r[1]);
            let h = block_test_probabilities(&p, &q, &draft);
            by_block += mass * (2.0 * h[1] + (1.0 - h[1]) * h[0]);
        }
        assert!((by_rejection - 10.0 / 9.0).abs() < 1e-12);
        assert!((by_block - 11.0 / 9.0).abs() < 1e-12);
    }

    #[test]
    fn an_empty_residual_falls_back_to_the_target() {
        let row = vec![0.25, 0.75];
        let p = vec![row.clone(), vec![0.5, 0.5]];
        // The test u · q < p passes for every u below 1, so the test plants u = 1: a rejection that only rounding could
        // cause.
        let verdict = rejection(&p, std::slice::from_ref(&row), &[0], &[1.0], |a, weights| {
            assert_eq!((a, weights), (0, row.as_slice()));
            1
        });
        assert_eq!(verdict, Verdict { accepted: 0, bonus: 1 });
    }

    #[test]
    fn a_fault_counts_up_to_the_accepted_length() {
        let rows = [vec![0.0, 1.0], vec![f64::NAN, 1.0], vec![f64::INFINITY, 1.0]];
        assert_eq!(first_fault(&rows, 0), None);
        assert_eq!(first_fault(&rows, 1), Some((1, LogitsFault::Nan)));
        assert_eq!(first_fault(&rows, 2), Some((1, LogitsFault::Nan)));
    }

    #[test]
    fn without_drafts_the_bonus_is_the_targets_own() {
        let p = vec![vec![0.25, 0.75]];
        let from_p = |a: usize, weights: &[f64]| {
            assert_eq!((a, weights), (0, p[0].as_slice()));
            1
        };
        assert_eq!(rejection(&p, &[], &[], &[], from_p), Verdict { accepted: 0, bonus: 1 });
        assert_eq!(block(&p, &[], &[], &[], from_p), Verdict { accepted: 0, bonus: 1 });
    }
}
