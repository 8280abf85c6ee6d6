//! Hand-made distributions: impossible tokens are never committed, and the bonus token is right even if the residual is
//! empty.

use flexdraft::acceptance::Rule;
use flexdraft::kernels::Kernels;
use flexdraft::kernels::acceptance::Verdict;
use flexdraft::layout::GroupSet;
use flexdraft::random::{Purpose, Stream};
use flexdraft::runtime::simt::Checking;
use flexdraft::runtime::{Simt, SimtOptions};
use flexdraft::sampling::SamplingParams;

use super::kernels;
use super::oracle::check;
use super::sequences::{Sequence, run};

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

/// Returns the kernel's verdicts of the same rows for several seeds, after checking each against the reference.
fn verdicts(rule: Rule, p: &[[f32; 4]], q: &[[f32; 4]], tokens: &[i32], seeds: u64) -> Vec<Verdict> {
    let sequences: Vec<Sequence> = (0..seeds).map(|seed| by_hand(rule, p, q, tokens, seed)).collect();
    let outcome = run::<f32>(&kernels(Checking::Off, 0), 4, &sequences);
    let mut compared = 0;
    for ((sequence, verdict), committed) in sequences.iter().zip(&outcome.verdicts).zip(&outcome.committed) {
        compared += usize::from(check(sequence, verdict, committed).unwrap().is_some());
    }
    assert!(compared as u64 >= seeds - 1, "{compared} of {seeds} were compared");
    outcome.verdicts
}

#[test]
fn what_cannot_be_is_never_committed() {
    for rule in BOTH {
        let one = |p: [[f32; 4]; 2], q: [f32; 4], token: i32| verdicts(rule, &p, &[q], &[token], 100);
        // p(d) = 0: the draft token is never accepted, and the bonus token is possible under p.
        for verdict in one([[NO, 0.0, 0.0, NO], ALL], ALL, 0) {
            assert_eq!(verdict.accepted, 0);
            assert!([1, 2].contains(&verdict.bonus), "{verdict:?}");
        }
        // q(d) = 0 < p(d): the draft token is always accepted. A token outside the vocabulary is never accepted.
        assert!(one([ALL, ALL], [NO, 0.0, 0.0, 0.0], 0).iter().all(|verdict| verdict.accepted == 1));
        for token in [4, -1, i32::MAX, i32::MIN] {
            assert!(one([ALL, ALL], ALL, token).iter().all(|verdict| verdict.accepted == 0));
        }
        // p = q: always accepted.
        assert!(one([ALL, ALL], ALL, 3).iter().all(|verdict| verdict.accepted == 1));
        // One-hot p and q elsewhere: the residual is p.
        for verdict in one([[NO, NO, 5.0, NO], ALL], [0.0, NO, NO, NO], 0) {
            assert_eq!((verdict.accepted, verdict.bonus, verdict.probability), (0, 2, 1.0));
        }
        // q = p and an impossible draft token: the residual is empty, so the bonus token comes from p.
        for verdict in one([[NO, 0.0, NO, NO], ALL], [NO, 0.0, NO, NO], 0) {
            assert_eq!((verdict.accepted, verdict.bonus), (0, 1));
        }
    }
}

/// The same cases with several draft tokens, at each place.
#[test]
fn what_cannot_be_is_never_committed_anywhere_in_a_draft() {
    let (some, hot) = ([NO, 0.0, 1.0, 2.0], [NO, NO, 5.0, NO]);
    for rule in BOTH {
        for place in 0..3 {
            let drafts = |q: [f32; 4], token: i32, p: [f32; 4]| {
                // At the other places p and q are equal, so every other token is accepted.
                let (mut target, mut draft, mut tokens) = ([some; 4], [some; 3], [1, 2, 3]);
                (target[place], draft[place], tokens[place]) = (p, q, token);
                verdicts(rule, &target, &draft, &tokens, 40)
            };
            // p(d) = 0: no prefix that contains the token is accepted. Block verification may reject the shorter prefix
            // as well, because with p = q after it only longer prefixes pass.
            for q in [ALL, [0.0, NO, NO, NO]] {
                let found = drafts(q, 0, some);
                assert!(found.iter().all(|verdict| verdict.accepted <= place as i32), "{rule:?} {place}");
                assert!(rule == Rule::Block || found.iter().all(|verdict| verdict.accepted == place as i32));
                assert!(found.iter().all(|verdict| verdict.bonus != 0));
            }
            // q(d) = 0 < p(d); p = q; and both one-hot at the token: all tokens are accepted.
            for (q, token, p) in [([0.0, NO, 0.0, 0.0], 1, some), (some, 2, some), (hot, 2, hot)] {
                assert!(drafts(q, token, p).iter().all(|verdict| verdict.accepted == 3), "{rule:?} {place}");
            }
            // One-hot p and q at different tokens: the bonus token is p's only token.
            for verdict in drafts([0.0, NO, NO, NO], 0, hot) {
                assert!(verdict.accepted <= place as i32);
                if verdict.accepted == place as i32 {
                    assert_eq!((verdict.bonus, verdict.probability), (2, 1.0));
                }
            }
            // p = q and a token that neither can draw: the residual is empty, so the bonus token is a draw from p.
            for (seed, verdict) in (0..).zip(drafts(some, 0, some)) {
                let stopped = if rule == Rule::Rejection { place } else { 0 };
                assert_eq!(verdict.accepted, stopped as i32);
                let numbers = Stream::new(seed, Purpose::ResidualDraw, stopped, 7);
                assert_eq!(verdict.bonus, numbers.gumbel_argmax(some) as i32);
            }
        }
    }
}

/// Without draft tokens, and if all are accepted, the bonus token is a draw from p.
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

/// All ids that top-k keeps are in one of eight chunks. Each launch runs twice: once reading every id, and once with
/// the largest logits of the target's chunks, which allow it to skip chunks.
#[test]
fn chunks_of_the_target_without_a_kept_id_are_not_read() {
    let vocab = 8192;
    let row = |seed: usize| -> Vec<f32> {
        let high = |id: usize| if (3000..3006).contains(&id) { 9.0 + (id % 3) as f32 } else { 0.0 };
        (0..vocab).map(|id| ((id * 7 + seed) % 11) as f32 / 4.0 + high(id)).collect()
    };
    for rule in BOTH {
        let sequence = Sequence {
            rule,
            params: SamplingParams { top_k: 3, ..SamplingParams::at_temperature(0.7) },
            groups: GroupSet::default(),
            position: 7,
            seed: 5,
            target: vec![row(1), row(2), row(3)],
            draft: Some(vec![row(4), row(5)]),
            tokens: vec![3002, 3005],
        };
        // Only race mode counts bytes, so the run under sanitizers uses it here too.
        let kernels =
            Kernels::new(Simt::new(SimtOptions { checking: Checking::Accesses, ..SimtOptions::default() }));
        let outcome = run::<f32>(&kernels, vocab, std::slice::from_ref(&sequence));
        check(&sequence, &outcome.verdicts[0], &outcome.committed[0]).unwrap();
        let read: Vec<u64> = kernels
            .runtime()
            .take_traffic()
            .iter()
            .filter(|t| t.kernel.starts_with("accept") && ["target", "draft"].contains(&t.operand))
            .map(|t| t.read)
            .collect();
        let (every, kept) = read.split_at(read.len() / 2);
        let (every, kept): (u64, u64) = (every.iter().sum(), kept.iter().sum());
        assert!(every > 2 * 4 * 8192 && kept > 0 && kept * 7 < every, "{rule:?}: {kept} bytes of {every}");
    }
}
