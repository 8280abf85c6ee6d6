//! The verdicts that the kernels must give: the reference's verdicts in double precision, for all probabilities within
//! f32 rounding.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::{MAX_COMMITTED, Verdict};
use flexdraft::random::{Purpose, Stream};
use flexdraft::sampling::SamplingParams;
use flexdraft_reference::accept;
use proptest::prelude::*;

use super::sequences::{Sequence, warped};

/// The largest relative error that the kernels' probabilities may have.
const ERROR: f64 = 1e-5;
/// The largest error that the kernels' scores may have; a score is the sum of a logarithm and a Gumbel number.
const SCORE_ERROR: f64 = 1e-4;

/// The target's distributions p_0..p_v and the draft distributions q_1..q_v of a sequence.
struct Distributions {
    p: Vec<Vec<f64>>,
    q: Vec<Vec<f64>>,
}

impl Distributions {
    fn of(sequence: &Sequence) -> Self {
        let warp = |row: &Vec<f32>| warped(row, &sequence.params);
        let p: Vec<Vec<f64>> = sequence.target.iter().map(warp).collect();
        let vocab = p[0].len();
        let point = |&d: &i32| (0..vocab).map(|x| f64::from(u8::from(x == d as usize))).collect();
        let q = match &sequence.draft {
            Some(rows) => rows.iter().map(warp).collect(),
            None => sequence.tokens.iter().map(point).collect(),
        };
        Distributions { p, q }
    }

    /// Returns the probabilities p_{i−1}(d_i) and q_i(d_i) of draft token i; both are 0 for a token outside the
    /// vocabulary.
    fn of_draft(&self, sequence: &Sequence, i: usize) -> (f64, f64) {
        let of = |row: &Vec<f64>| row.get(sequence.tokens[i - 1] as usize).copied().unwrap_or(0.0);
        (of(&self.p[i - 1]), of(&self.q[i - 1]))
    }

    /// Returns whether p_i equals q_{i+1}, so that the kernels compute both with equal bits.
    fn same(&self, i: usize) -> bool {
        self.p[i] == self.q[i]
    }
}

/// Returns whether a prefix sum of top-p is so close to the required mass that rounding may decide which ids are kept.
fn is_close_call(row: &[f32], params: &SamplingParams) -> bool {
    if params.top_p >= 1.0 || params.temperature == 0.0 {
        return false;
    }
    let mut weights = warped(row, &SamplingParams { top_p: 1.0, min_p: 0.0, ..*params });
    weights.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    weights.iter().any(|weight| {
        sum += weight;
        (sum - f64::from(params.top_p)).abs() < 1e-8
    })
}

/// Returns the accepted length if every probability has its largest possible error: in favour of the draft (`favour` 1)
/// or against the draft (−1).
fn accepted(sequence: &Sequence, rows: &Distributions, favour: f64) -> usize {
    let drafts = sequence.tokens.len();
    let uniform =
        |i: usize| Stream::new(sequence.seed, Purpose::AcceptanceUniform, i, sequence.position).uniform();
    if sequence.rule == Rule::Rejection {
        let passes = |i: usize| {
            let (p, q) = rows.of_draft(sequence, i);
            let error = if rows.same(i - 1) { 0.0 } else { 2.0 * ERROR * favour };
            let u: f64 = uniform(i);
            u * q < p * (1.0 + error)
        };
        return (1..=drafts).take_while(|&i| passes(i)).count();
    }
    let prefixes = prefixes(sequence, rows);
    let passes = |i: usize| {
        let Prefix { value, error } = prefixes[i];
        let p = (value * (1.0 + favour * error)).min(1.0);
        let u: f64 = uniform(i);
        if i == drafts {
            return u < p;
        }
        let (above, total) = rows.p[i].iter().zip(&rows.q[i]).fold((0.0, 0.0), |(above, total), (x, y)| {
            (above + (value * x - y).max(0.0), total + value * x + y)
        });
        let error = if error == 0.0 && rows.same(i) { 0.0 } else { (ERROR + error) * total };
        let above = (above + favour * error).max(0.0);
        u * (above + 1.0 - p) < above
    };
    (1..=drafts).rev().find(|&i| passes(i)).unwrap_or(0)
}

/// The prefix probability P_i of block verification, with the largest relative error of its f32 value.
#[derive(Clone, Copy)]
struct Prefix {
    value: f64,
    error: f64,
}

fn prefixes(sequence: &Sequence, rows: &Distributions) -> Vec<Prefix> {
    let mut prefixes = vec![Prefix { value: 1.0, error: 0.0 }];
    for i in 1..=sequence.tokens.len() {
        let before = prefixes[i - 1];
        let (p, q) = rows.of_draft(sequence, i);
        let above = before.value * p;
        let error = before.error + 2.0 * ERROR;
        let exact = |value| Prefix { value, error: 0.0 };
        prefixes.push(match above {
            0.0 => exact(0.0),
            _ if above * (1.0 - error) >= q => exact(1.0),
            _ if before.value == 1.0 && before.error == 0.0 && rows.same(i - 1) => exact(1.0),
            _ => Prefix { value: (above / q).min(1.0), error },
        });
    }
    prefixes
}

/// Returns whether `found` may be the draw from `weights`, given the error bound of each weight: no other id is certain
/// to have a higher score.
fn may_be_drawn(weights: &[(f64, f64)], numbers: Stream, found: usize) -> bool {
    let scored = || weights.iter().zip(numbers.gumbels()).map(|(w, g)| (w, f64::from(g)));
    let surely = scored().map(|((w, error), g)| (w - error).max(0.0).ln() + g);
    let best = surely.fold(f64::NEG_INFINITY, f64::max);
    let mine = scored().nth(found).map(|((w, error), g)| (w + error).max(0.0).ln() + g);
    mine.is_some_and(|mine| mine > f64::NEG_INFINITY && mine >= best - 2.0 * SCORE_ERROR)
}

/// Returns whether `found` is a valid bonus token after `accepted` draft tokens. It is drawn from the excess of P · p_a
/// over q_{a+1}, or from p_a if there is no excess or no q.
fn is_bonus(sequence: &Sequence, rows: &Distributions, accepted: usize, found: usize) -> bool {
    let numbers = Stream::new(sequence.seed, Purpose::ResidualDraw, accepted, sequence.position);
    let p = &rows.p[accepted];
    let of_target: Vec<(f64, f64)> = p.iter().map(|&p| (p, ERROR * p)).collect();
    let from_target = || may_be_drawn(&of_target, numbers, found);
    let Some(q) = rows.q.get(accepted) else { return from_target() };
    let prefix = match sequence.rule {
        Rule::Block => prefixes(sequence, rows)[accepted],
        _ => Prefix { value: 1.0, error: 0.0 },
    };
    if prefix.value == 1.0 && prefix.error == 0.0 && p == q {
        // If p = q, the kernel's differences p − q are exactly 0 too.
        return from_target();
    }
    let above = |(&p, &q): (&f64, &f64)| {
        let p = prefix.value * p;
        (p - q, (ERROR + prefix.error) * p + ERROR * q)
    };
    let above: Vec<(f64, f64)> = p.iter().zip(q).map(above).collect();
    if above.iter().all(|(weight, error)| weight + error <= 0.0) {
        return from_target();
    }
    if above.iter().any(|(weight, error)| weight - error > 0.0) {
        return may_be_drawn(&above, numbers, found);
    }
    // Rounding decides whether the residual is empty, so a draw from p and a draw from the residual are both valid.
    p[found] > 0.0 && (from_target() || may_be_drawn(&above, numbers, found))
}

/// Checks that a verdict is the reference's, up to the rounding of probabilities. Returns `None` if rounding could
/// decide the accepted length.
pub fn check(sequence: &Sequence, verdict: &Verdict, committed: &[i32]) -> Result<Option<()>, TestCaseError> {
    let mut logits = sequence.target.iter().chain(sequence.draft.iter().flatten());
    if logits.any(|row| is_close_call(row, &sequence.params)) {
        return Ok(None);
    }
    let rows = Distributions::of(sequence);
    let draft: Vec<u32> = sequence.tokens.iter().map(|&token| token as u32).collect();
    let found = usize::try_from(verdict.bonus).map_err(|_| TestCaseError::fail("no bonus token"))?;
    prop_assert!(found < rows.p[0].len());
    let accepted = if sequence.effective_rule() == Rule::Match || draft.is_empty() {
        let mut tied = false;
        let draw = |i: usize| {
            let p = &rows.p[i];
            if sequence.params.temperature == 0.0 {
                return p.iter().position(|&x| x == 1.0).unwrap() as u32;
            }
            let numbers = Stream::target_draw(sequence.seed, sequence.position + i + 1);
            let sums = p.iter().zip(numbers.gumbels()).map(|(p, g)| p.ln() + f64::from(g));
            let (mut best, mut second) = ((0, f64::NEG_INFINITY), f64::NEG_INFINITY);
            for (id, sum) in sums.enumerate() {
                if sum > best.1 {
                    (second, best) = (best.1, (id, sum));
                } else {
                    second = second.max(sum);
                }
            }
            tied |= best.1 - second < 1e-5;
            best.0 as u32
        };
        let expected = accept::matching(&draft, draw);
        if tied {
            return Ok(None);
        }
        prop_assert_eq!(verdict.accepted, expected.accepted as i32);
        prop_assert_eq!(verdict.bonus, expected.bonus as i32);
        expected.accepted
    } else {
        let least = accepted(sequence, &rows, -1.0);
        if least != accepted(sequence, &rows, 1.0) {
            return Ok(None);
        }
        prop_assert_eq!(verdict.accepted, least as i32);
        prop_assert_eq!(least, reference(sequence, &rows));
        prop_assert!(is_bonus(sequence, &rows, least, found), "{} is not the bonus token", found);
        least
    };
    let expected = rows.p[accepted][found];
    // The bonus token must be possible under p, because a residual contains only such tokens.
    prop_assert!(expected > 0.0);
    prop_assert!(
        (f64::from(verdict.probability) - expected).abs() < 1e-4,
        "{} for {expected}",
        verdict.probability
    );
    prop_assert_eq!(verdict.cached_length, (sequence.position + accepted + 1) as i64);
    let rank = sequence.groups.iter().position(|k| k == accepted).map_or(-1, |rank| rank as i32);
    prop_assert_eq!(verdict.group, rank);
    let mut tokens: Vec<i32> = sequence.tokens[..accepted].to_vec();
    tokens.push(verdict.bonus);
    tokens.resize(MAX_COMMITTED, -1);
    prop_assert_eq!(committed, tokens);
    Ok(Some(()))
}

/// Returns the accepted length that the reference gives. The reference takes only tokens of the vocabulary.
fn reference(sequence: &Sequence, rows: &Distributions) -> usize {
    // The rows get one more id with probability 0, which stands for tokens outside the vocabulary.
    let with_none = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
        rows.iter().map(|row| [row.as_slice(), &[0.0]].concat()).collect()
    };
    let (p, q) = (with_none(&rows.p), with_none(&rows.q));
    let vocab = rows.p[0].len();
    let draft: Vec<u32> = sequence.tokens.iter().map(|&d| (d as usize).min(vocab) as u32).collect();
    let uniforms: Vec<f64> = (1..=draft.len())
        .map(|i| Stream::new(sequence.seed, Purpose::AcceptanceUniform, i, sequence.position).uniform())
        .collect();
    let bonus = |_: usize, _: &[f64]| 0;
    match sequence.rule {
        Rule::Block => accept::block(&p, &q, &draft, &uniforms, bonus).accepted,
        Rule::Rejection | Rule::Match => accept::rejection(&p, &q, &draft, &uniforms, bonus).accepted,
    }
}
