//! Tests that attention by the rows' limits and mask groups equals attention under a dense mask over all keys of the
//! step.

use flexdraft_reference::attention::{
    Heads, KeysValues, ScoreChanges, attend, attend_with, joint_attention, joint_attention_with,
    mask_block_attention,
};
use flexdraft_reference::layout::rows;
use proptest::prelude::*;

use crate::properties::properties;

/// Returns softmax(c · tanh(q Kᵀ / √d / c) + mask) V for one query head, with mask 0 or −∞ and without the tangent if
/// there is no cap c, over the keys and a sink: output, log-sum-exp and Σ p |v|.
fn dense(
    q: &[f64],
    keys: &[&[f64]],
    values: &[&[f64]],
    sees: &[bool],
    (cap, sink): (Option<f64>, Option<f64>),
) -> (Vec<f64>, f64, Vec<f64>) {
    let score = |k: &[f64]| {
        let score = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (q.len() as f64).sqrt();
        cap.map_or(score, |cap| cap * (score / cap).tanh())
    };
    let masked: Vec<f64> =
        keys.iter().zip(sees).map(|(k, &sees)| if sees { score(k) } else { f64::NEG_INFINITY }).collect();
    let log_sum_exp = masked.iter().chain(&sink).map(|s| s.exp()).sum::<f64>().ln();
    let sum = |f: fn(f64) -> f64| -> Vec<f64> {
        (0..q.len())
            .map(|i| masked.iter().zip(values).map(|(s, v)| (s - log_sum_exp).exp() * f(v[i])).sum())
            .collect()
    };
    (sum(|v| v), log_sum_exp, sum(f64::abs))
}

/// Returns the columns `first..first + len` of every row of `x` [rows, width].
fn column(x: &[f64], width: usize, first: usize, len: usize) -> Vec<&[f64]> {
    x.chunks(width).map(|row| &row[first..first + len]).collect()
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-12, "{f} instead of {e}");
    }
}

#[derive(Clone, Debug)]
struct Case {
    heads: Heads,
    start: usize,
    verify_len: usize,
    groups: Vec<usize>,
    slots: usize,
    numbers: Vec<f64>,
    window: Option<usize>,
    soft_cap: Option<f64>,
    has_sinks: bool,
}

fn case() -> impl Strategy<Value = Case> {
    (1..4usize, 1..4usize, 1..5usize, 0..7usize, 0..4usize, 1..4usize).prop_flat_map(
        |(kv_heads, ratio, head_dim, start, verify_len, slots)| {
            let heads = Heads { q_heads: kv_heads * ratio, kv_heads, head_dim };
            let groups = prop::sample::subsequence((0..=verify_len).collect::<Vec<_>>(), 0..=verify_len + 1);
            let numbers = prop::collection::vec(-2.0..2.0f64, 997);
            let changes = (prop::option::of(1..9usize), prop::option::of(0.3..3.0f64), any::<bool>());
            (groups, numbers, changes).prop_map(move |(groups, numbers, changes)| Case {
                heads,
                start,
                verify_len,
                groups,
                slots,
                numbers,
                window: changes.0,
                soft_cap: changes.1,
                has_sinks: changes.2,
            })
        },
    )
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn joint_attention_is_dense_attention_under_the_joint_mask(case in case()) {
        let Case { heads, start, verify_len, groups, slots, numbers, window, soft_cap, has_sinks } = case;
        let Heads { q_heads, kv_heads, head_dim } = heads;
        let take = |offset: usize, len: usize| -> Vec<f64> {
            (0..len).map(|i| numbers[(offset + 7 * i + i * i) % numbers.len()]).collect()
        };
        let rows = rows(start, verify_len, &groups, slots);
        let clean_len = start + verify_len + 1;
        let candidates = verify_len + 1;
        let q = take(1, rows.len() * q_heads * head_dim);
        let (clean_k, clean_v) = (take(2, clean_len * kv_heads * head_dim), take(3, clean_len * kv_heads * head_dim));
        let (own_k, own_v) = (take(4, rows.len() * kv_heads * head_dim), take(5, rows.len() * kv_heads * head_dim));
        let clean = KeysValues { keys: &clean_k, values: &clean_v };
        let own = KeysValues { keys: &own_k, values: &own_v };
        let sinks = take(6, q_heads);
        let changes = ScoreChanges { window, soft_cap, sinks: has_sinks.then_some(&sinks[..]) };
        let found = joint_attention_with(heads, &q, &rows, clean, own, &changes);
        if window.is_none() && soft_cap.is_none() && !has_sinks {
            prop_assert_eq!(&found, &joint_attention(heads, &q, &rows, clean, own));
        }

        // The dense form of attention has the keys of all clean positions, then the keys of all mask rows of the step.
        let kv_width = kv_heads * head_dim;
        let all_keys = [&clean_k[..], &own_k[candidates * kv_width..]].concat();
        let all_values = [&clean_v[..], &own_v[candidates * kv_width..]].concat();
        let group_of = |r: usize| r.checked_sub(candidates).map(|mask| mask / slots);
        for r in 0..rows.len() {
            let limit = group_of(r).map_or(start + r, |group| start + groups[group]);
            let own_position =
                r.checked_sub(candidates).map_or(limit, |mask| limit + 1 + mask % slots);
            let sees_clean = (0..clean_len)
                .map(|position| position <= limit && window.is_none_or(|window| own_position - position < window));
            let sees_masks = (candidates..rows.len()).map(|key| group_of(key) == group_of(r));
            let sees: Vec<bool> = sees_clean.chain(sees_masks).collect();
            for h in 0..q_heads {
                let kv_head = h / (q_heads / kv_heads);
                let of_head = |x| column(x, kv_width, kv_head * head_dim, head_dim);
                let head = &q[(r * q_heads + h) * head_dim..][..head_dim];
                let (output, log_sum_exp, magnitude) =
                    dense(head, &of_head(&all_keys), &of_head(&all_values), &sees, (soft_cap, has_sinks.then(|| sinks[h])));
                let columns = h * head_dim..(h + 1) * head_dim;
                assert_close(&found[r].output[columns.clone()], &output);
                assert_close(&found[r].magnitude[columns], &magnitude);
                assert_close(&found[r].log_sum_exp[h..=h], &[log_sum_exp]);
            }
        }

        // Mask-token block attention of a group alone, with the group's limit, equals the joint attention of the
        // group's rows.
        if let Some(group) = rows.iter().find_map(|row| row.group.clone()) {
            let limit = rows[group.start].limit;
            let part = |x: &[f64], width: usize| x[group.start * width..group.end * width].to_vec();
            let (keys, values) = (part(&own_k, kv_width), part(&own_v, kv_width));
            let alone = mask_block_attention(
                heads,
                &part(&q, q_heads * head_dim),
                clean,
                limit + 1,
                KeysValues { keys: &keys, values: &values },
            );
            let found = joint_attention(heads, &q, &rows, clean, own);
            prop_assert_eq!(&alone[..], &found[group]);
        }
    }
}

#[test]
fn a_row_that_sees_nothing_has_output_zero() {
    let heads = Heads { q_heads: 2, kv_heads: 1, head_dim: 2 };
    let attended = attend::<f32>(heads, &[1.0, 2.0, 3.0, 4.0], &[]);
    assert_eq!(attended.output, [0.0; 4]);
    assert_eq!(attended.magnitude, [0.0; 4]);
    assert_eq!(attended.log_sum_exp, [f32::NEG_INFINITY; 2]);
}

#[test]
fn a_sink_takes_weight_from_the_keys() {
    let heads = Heads { q_heads: 1, kv_heads: 1, head_dim: 1 };
    let keys_values = KeysValues { keys: &[0.0f64], values: &[4.0] };
    // The score of the key is 0, so a sink of ln 3 leaves it a quarter of the weight.
    let changes = ScoreChanges { sinks: Some(&[3f64.ln()]), ..ScoreChanges::default() };
    let attended = attend_with(heads, &[1.0], &[keys_values], &changes);
    assert_close(&attended.output, &[1.0]);
    assert_close(&attended.log_sum_exp, &[4f64.ln()]);
    // A row that sees nothing stays as it is.
    assert_eq!(attend_with(heads, &[1.0], &[], &changes), attend(heads, &[1.0], &[]));
}

#[test]
fn large_scores_do_not_overflow() {
    let heads = Heads { q_heads: 1, kv_heads: 1, head_dim: 1 };
    let keys_values = KeysValues { keys: &[100.0f32, 99.0], values: &[1.0, -1.0] };
    let attended = attend(heads, &[1000.0], &[keys_values]);
    assert_eq!(attended.output, [1.0]);
    assert_eq!(attended.log_sum_exp, [100_000.0]);
}
