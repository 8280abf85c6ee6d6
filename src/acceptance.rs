//! The four acceptance rules: they decide how many draft tokens are kept, and which distribution gives the
//! bonus token.
//!
//! p_i is the target's distribution after candidate i; q_j is the distribution from which draft token d_j was
//! drawn. Both are taken after warping. The tokens that a rule emits are distributed exactly like the
//! target's own.
//!
//! A rule that compares two distributions has two parts, so that a test can integrate it exactly: a sequence
//! of [`Test`]s, each decided by its own uniform number, gives the accepted length, and [`Decision::weights`]
//! is the distribution of the bonus token. The rules that only compare tokens share [`matching_prefix`].

/// The rule by which a step accepts or rejects draft tokens. Every rule leaves the target's distribution unchanged; at
/// temperature 0 every rule is greedy verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rule {
    /// Speculative sampling (Leviathan et al. 2211.17192, Chen et al. 2302.01318).
    #[default]
    Rejection,
    /// Block verification (Sun et al. 2403.10444): in expectation it accepts at least as many tokens as `Rejection`.
    Block,
    /// Draws the target's token with the random numbers of its position, and accepts while the drafts match:
    /// the output equals, token for token, autoregressive sampling with the same seed.
    Match,
}

/// One test of an acceptance rule, which a random number passes or fails. It passes for a uniform u on [0, 1) if u ·
/// `scale` < `threshold`. The inequality is strict, so a token of probability 0 never passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Test {
    /// The bound: u · scale must be smaller for the test to pass.
    pub threshold: f64,
    /// The factor by which the uniform number u is multiplied.
    pub scale: f64,
}

impl Test {
    /// Returns whether the test passes for the uniform number `u`.
    pub fn passes(&self, u: f64) -> bool {
        u * self.scale < self.threshold
    }

    /// Returns the probability that the test passes.
    pub fn probability(&self) -> f64 {
        if self.threshold >= self.scale {
            if self.threshold > 0.0 { 1.0 } else { 0.0 }
        } else {
            self.threshold / self.scale
        }
    }
}

/// The result of applying an acceptance rule to a draft.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The number a of accepted draft tokens.
    pub accepted: usize,
    /// Weights `[vocab]`, not normalised and not all zero, from which the bonus token is drawn.
    pub weights: Vec<f64>,
}

/// The distributions that an acceptance rule compares: the target's p and the drafter's q. A rule asks for each row at
/// most once, in ascending order.
pub trait Rows {
    /// Returns the target's distribution p_i `[vocab]` after i draft tokens, 0 ≤ i ≤ v.
    fn target(&mut self, i: usize) -> Vec<f64>;
    /// Returns the distribution q_j `[vocab]` from which draft token d_j was drawn, 1 ≤ j ≤ v.
    fn draft(&mut self, j: usize) -> Vec<f64>;
}

/// Applies greedy verification or the rule `match`: accepts draft tokens while the target chooses the same token at the
/// same place.
///
/// `choose(i)` is the target's token after candidate i. Returns the accepted length and the bonus token: the
/// first choice that differs, or the choice after the whole draft.
pub fn matching_prefix(draft: &[u32], mut choose: impl FnMut(usize) -> u32) -> (usize, u32) {
    let mut accepted = 0;
    loop {
        let choice = choose(accepted);
        if draft.get(accepted) != Some(&choice) {
            return (accepted, choice);
        }
        accepted += 1;
    }
}

/// Applies the rule `rejection`: draft token d_i passes with probability min(1, p_{i−1}(d_i) / q_i(d_i)). The scan
/// stops at the first failure and draws the bonus token from the residual there. If every test passes, the bonus token
/// comes from p_v.
///
/// `uniform(i)` decides on d_i, i = 1..=v. The rule reads only the rows up to the place where the scan stops.
pub fn rejection(draft: &[u32], rows: &mut impl Rows, mut uniform: impl FnMut(usize) -> f64) -> Decision {
    for (i, &token) in draft.iter().enumerate() {
        let (p, q) = (rows.target(i), rows.draft(i + 1));
        if !rejection_test(&p, &q, token).passes(uniform(i + 1)) {
            return Decision { accepted: i, weights: residual(1.0, p, &q) };
        }
    }
    Decision { accepted: draft.len(), weights: rows.target(draft.len()) }
}

/// Returns the test that `rejection` applies to a draft `token` drawn from `q` when the target's distribution
/// is `p`.
pub fn rejection_test(p: &[f64], q: &[f64], token: u32) -> Test {
    Test { threshold: at(p, token), scale: at(q, token) }
}

/// Applies the rule `block`: the **last** draft token whose test passes ends the accepted prefix (Algorithm 2 of
/// 2403.10444). `uniform(i)` decides on d_i, i = 1..=v.
pub fn block(draft: &[u32], rows: &mut impl Rows, mut uniform: impl FnMut(usize) -> f64) -> Decision {
    let mut scan = BlockScan::new(rows.target(0));
    for (i, &token) in draft.iter().enumerate() {
        let (q, next) = (rows.draft(i + 1), rows.target(i + 1));
        scan.advance(token, q, next);
    }
    let tests = scan.tests();
    let accepted = (1..=draft.len()).rev().find(|&i| tests[i - 1].passes(uniform(i))).unwrap_or(0);
    Decision { accepted, weights: scan.weights(accepted) }
}

/// The running state of block verification over a draft.
///
/// P_0 = 1, P_i = min(1, P_{i−1} · p_{i−1}(d_i) / q_i(d_i)); test i < v passes with probability
/// h_i = s_i / (s_i + 1 − P_i), s_i = Σ_x max(P_i · p_i(x) − q_{i+1}(x), 0); h_v = P_v.
#[derive(Clone, Debug)]
pub struct BlockScan {
    target: Vec<Vec<f64>>,
    draft: Vec<Vec<f64>>,
    prefix: Vec<f64>,
}

impl BlockScan {
    /// Starts a block verification with the target's distribution p_0.
    pub fn new(target: Vec<f64>) -> Self {
        Self { target: vec![target], draft: Vec::new(), prefix: vec![1.0] }
    }

    /// Appends draft token `token` = d_i, drawn from `q` = q_i, and the target's distribution `next` = p_i.
    pub fn advance(&mut self, token: u32, q: Vec<f64>, next: Vec<f64>) {
        let previous = self.prefix.last().copied().unwrap_or(1.0);
        let p = previous * self.target.last().map_or(0.0, |row| at(row, token));
        let q_token = at(&q, token);
        // If the drafter cannot draw this token, there is no ratio p/q; the token counts as certain if p is above 0,
        // and as impossible otherwise.
        let ratio = if q_token > 0.0 { p / q_token } else { f64::from(u8::from(p > 0.0)) };
        self.prefix.push(ratio.min(1.0));
        self.draft.push(q);
        self.target.push(next);
    }

    /// Returns the tests of the draft tokens d_1..d_v: element i − 1 decides whether the accepted prefix may end at
    /// d_i.
    pub fn tests(&self) -> Vec<Test> {
        (1..self.prefix.len())
            .map(|i| {
                let prefix = self.prefix[i];
                match self.draft.get(i) {
                    Some(q) => {
                        let surplus: f64 =
                            self.target[i].iter().zip(q).map(|(p, q)| (prefix * p - q).max(0.0)).sum();
                        Test { threshold: surplus, scale: surplus + 1.0 - prefix }
                    }
                    None => Test { threshold: prefix, scale: 1.0 },
                }
            })
            .collect()
    }

    /// Returns the distribution of the bonus token after `accepted` draft tokens, not normalised.
    fn weights(mut self, accepted: usize) -> Vec<f64> {
        let p = self.target.swap_remove(accepted);
        match self.draft.get(accepted) {
            Some(q) => residual(self.prefix[accepted], p, q),
            None => p,
        }
    }
}

/// Returns the distribution of the bonus token after a rejection, not normalised: max(prefix · p − q, 0), or `p` itself
/// if that is 0 everywhere, which happens only through rounding.
fn residual(prefix: f64, p: Vec<f64>, q: &[f64]) -> Vec<f64> {
    let weights: Vec<f64> = p.iter().zip(q).map(|(p, q)| (prefix * p - q).max(0.0)).collect();
    if weights.iter().any(|&w| w > 0.0) { weights } else { p }
}

fn at(row: &[f64], token: u32) -> f64 {
    row.get(token as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed<'a>(&'a [&'a [f64]], &'a [&'a [f64]]);

    impl Rows for Fixed<'_> {
        fn target(&mut self, i: usize) -> Vec<f64> {
            self.0[i].to_vec()
        }
        fn draft(&mut self, j: usize) -> Vec<f64> {
            self.1[j - 1].to_vec()
        }
    }

    #[test]
    fn matching_prefix_ends_at_the_first_difference_or_after_the_draft() {
        assert_eq!(matching_prefix(&[4, 5, 6], |i| [4, 5, 7, 0][i]), (2, 7));
        assert_eq!(matching_prefix(&[4, 5, 6], |i| [4, 5, 6, 9][i]), (3, 9));
        assert_eq!(matching_prefix(&[], |_| 3), (0, 3));
    }

    #[test]
    fn impossible_tokens_never_pass() {
        let mut rows = Fixed(&[&[0.0, 1.0], &[0.5, 0.5]], &[&[1.0, 0.0]]);
        let expected = Decision { accepted: 0, weights: vec![0.0, 1.0] };
        assert_eq!(rejection(&[0], &mut rows, |_| 0.0), expected);
        assert_eq!(block(&[0], &mut rows, |_| 0.0), expected);
    }

    #[test]
    fn equal_distributions_accept_everything() {
        let row: &[f64] = &[0.25, 0.75];
        let mut rows = Fixed(&[row, row, row], &[row, row]);
        let expected = Decision { accepted: 2, weights: row.to_vec() };
        assert_eq!(rejection(&[0, 1], &mut rows, |_| 1.0 - f64::EPSILON), expected);
        assert_eq!(block(&[0, 1], &mut rows, |_| 1.0 - f64::EPSILON), expected);
    }

    #[test]
    fn an_empty_residual_falls_back_to_the_target() {
        assert_eq!(residual(1.0, vec![0.5, 0.5], &[0.5, 0.5]), [0.5, 0.5]);
        assert_eq!(residual(0.5, vec![0.5, 0.5], &[0.0, 1.0]), [0.25, 0.0]);
    }

    #[test]
    fn a_test_passes_as_often_as_its_probability_says() {
        for (threshold, scale, probability) in
            [(0.5, 1.0, 0.5), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.0, 1.0)]
        {
            let test = Test { threshold, scale };
            assert_eq!(test.probability(), probability);
            let passed = (0..1000).filter(|&u| test.passes(f64::from(u) / 1000.0)).count();
            assert_eq!(passed as f64 / 1000.0, probability);
        }
    }
}
