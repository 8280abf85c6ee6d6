//! Tests acceptance on hand-made distributions: impossible tokens are never committed, and the bonus token is right
//! even if the residual is empty.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::simt::Checking;
use flexdraft::sampling::SamplingParams;

use super::bench;
use super::oracle::check;
use super::run::run;
use super::sequences::Sequence;
use crate::processors::processors;

const NO: f32 = f32::NEG_INFINITY;
const ALL: [f32; 4] = [0.0; 4];
const BOTH: [Rule; 2] = [Rule::Rejection, Rule::Block];

fn by_hand(rule: Rule, p: &[[f32; 4]], q: &[[f32; 4]], tokens: &[i32], seed: u64) -> Sequence {
    assert_eq!((p.len(), q.len()), (tokens.len() + 1, tokens.len()));
    let rows = |rows: &[[f32; 4]]| rows.iter().map(|row| row.to_vec()).collect();
    Sequence {
        rule,
        params: SamplingParams::at_temperature(1.0),
        groups: GroupSet::default(),
        position: 7,
        seed,
        target: rows(p),
        draft: Some(rows(q)),
        tokens: tokens.to_vec(),
    }
}

/// Returns the emulator's verdicts for the same rows and several seeds, after comparing them with the reference, and
/// the decisions of the other processors with the emulator's.
fn verdicts(rule: Rule, p: &[[f32; 4]], q: &[[f32; 4]], tokens: &[i32], seeds: u64) -> Vec<Verdict> {
    let sequences: Vec<Sequence> = (0..seeds).map(|seed| by_hand(rule, p, q, tokens, seed)).collect();
    let verdicts_on = |processor| {
        let outcome = run::<f32>(&bench(processor, Checking::Off, 0), 4, &sequences);
        let mut compared = 0;
        for ((sequence, verdict), committed) in
            sequences.iter().zip(&outcome.verdicts).zip(&outcome.committed)
        {
            compared += usize::from(check(sequence, verdict, committed).unwrap().is_some());
        }
        assert!(compared as u64 >= seeds - 1, "{compared} of {seeds} were compared");
        outcome.verdicts
    };
    let mut found = processors().map(verdicts_on);
    let verdicts = found.next().unwrap();
    // Processors may round the bonus tokens' probabilities differently, so only the decisions are compared.
    let decisions = |verdicts: &[Verdict]| -> Vec<[i64; 4]> {
        let decision = |v: &Verdict| [v.accepted.into(), v.bonus.into(), v.group.into(), v.cached_length];
        verdicts.iter().map(decision).collect()
    };
    assert!(
        found.all(|other| decisions(&other) == decisions(&verdicts)),
        "another processor decides otherwise"
    );
    verdicts
}

#[test]
fn what_cannot_be_is_never_committed() {
    for rule in BOTH {
        let one = |p: [[f32; 4]; 2], q: [f32; 4], token: i32| verdicts(rule, &p, &[q], &[token], 100);
        // If p(d) = 0, the draft token d is never accepted, and the bonus token is possible under p.
        for verdict in one([[NO, 0.0, 0.0, NO], ALL], ALL, 0) {
            assert_eq!(verdict.accepted, 0);
            assert!([1, 2].contains(&verdict.bonus), "{verdict:?}");
        }
        // If q(d) = 0 < p(d), the draft token d is always accepted. A token outside the vocabulary is never accepted.
        assert!(one([ALL, ALL], [NO, 0.0, 0.0, 0.0], 0).iter().all(|verdict| verdict.accepted == 1));
        for token in [4, -1, i32::MAX, i32::MIN] {
            assert!(one([ALL, ALL], ALL, token).iter().all(|verdict| verdict.accepted == 0));
        }
        // If p = q, every draft token is accepted.
        assert!(one([ALL, ALL], ALL, 3).iter().all(|verdict| verdict.accepted == 1));
        // If p and q are one-hot at different tokens, the residual is p, so the bonus token is p's only token.
        for verdict in one([[NO, NO, 5.0, NO], ALL], [0.0, NO, NO, NO], 0) {
            assert_eq!((verdict.accepted, verdict.bonus, verdict.probability), (0, 2, 1.0));
        }
        // If p = q and the draft token is impossible under both, the residual is empty, so the bonus token comes from
        // p.
        for verdict in one([[NO, 0.0, NO, NO], ALL], [NO, 0.0, NO, NO], 0) {
            assert_eq!((verdict.accepted, verdict.bonus), (0, 1));
        }
    }
}

/// Tests the cases of one draft token again at each place of a draft with several tokens.
#[test]
fn what_cannot_be_is_never_committed_anywhere_in_a_draft() {
    let (some, hot) = ([NO, 0.0, 1.0, 2.0], [NO, NO, 5.0, NO]);
    for rule in BOTH {
        for place in 0..3 {
            let drafts = |q: [f32; 4], token: i32, p: [f32; 4]| {
                // At the other places of the draft, p and q are equal, so every other token is accepted.
                let (mut target, mut draft, mut tokens) = ([some; 4], [some; 3], [1, 2, 3]);
                (target[place], draft[place], tokens[place]) = (p, q, token);
                verdicts(rule, &target, &draft, &tokens, 40)
            };
            // If p(d) = 0, no prefix that contains the draft token d is accepted. Block verification may reject the
            // shorter prefix as well, because with p = q after it only longer prefixes pass.
            for q in [ALL, [0.0, NO, NO, NO]] {
                let found = drafts(q, 0, some);
                assert!(found.iter().all(|verdict| verdict.accepted <= place as i32), "{rule:?} {place}");
                assert!(rule == Rule::Block || found.iter().all(|verdict| verdict.accepted == place as i32));
                assert!(found.iter().all(|verdict| verdict.bonus != 0));
            }
            // All draft tokens are accepted in three cases: q(d) = 0 < p(d), p = q, and p and q one-hot at the draft
            // token d.
            for (q, token, p) in [([0.0, NO, 0.0, 0.0], 1, some), (some, 2, some), (hot, 2, hot)] {
                assert!(drafts(q, token, p).iter().all(|verdict| verdict.accepted == 3), "{rule:?} {place}");
            }
            // If p and q are one-hot at different tokens, the bonus token is p's only token.
            for verdict in drafts([0.0, NO, NO, NO], 0, hot) {
                assert!(verdict.accepted <= place as i32);
                if verdict.accepted == place as i32 {
                    assert_eq!((verdict.bonus, verdict.probability), (2, 1.0));
                }
            }
            // If p = q and the draft token is impossible under both, the residual is empty, so the bonus token is a
            // draw from p.
            for (seed, verdict) in (0..).zip(drafts(some, 0, some)) {
                let stopped = if rule == Rule::Rejection { place } else { 0 };
                assert_eq!(verdict.accepted, stopped as i32);
                let numbers = Stream::new(seed, Purpose::ResidualDraw, stopped, 7);
                assert_eq!(verdict.bonus, numbers.gumbel_argmax(some) as i32);
            }
        }
    }
}

/// Without draft tokens, and if all draft tokens are accepted, the bonus token is a draw from p.
#[test]
fn a_bonus_token_without_a_draft_beside_it_is_drawn_from_the_target() {
    let p = [NO, 0.0, 1.0, 2.0];
    for rule in [Rule::Match, Rule::Rejection, Rule::Block] {
        for (seed, verdict) in (0..).zip(verdicts(rule, &[p], &[], &[], 100)) {
            assert_eq!(verdict.accepted, 0);
            assert_eq!(verdict.bonus, Stream::target_draw(seed, 8).gumbel_argmax(p) as i32);
        }
    }
    for rule in BOTH {
        let found = verdicts(rule, &[p; 3], &[p; 2], &[3, 1], 100);
        assert!(found.iter().all(|verdict| verdict.accepted == 2));
        for (seed, verdict) in (0..).zip(&found) {
            let numbers = Stream::new(seed, Purpose::ResidualDraw, 2, 7);
            assert_eq!(verdict.bonus, numbers.gumbel_argmax(p) as i32);
        }
        assert!([1, 2, 3].iter().all(|id| found.iter().any(|verdict| verdict.bonus == *id)));
    }
}
