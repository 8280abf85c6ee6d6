//! Rotary embedding, append to the cache, and joint attention.

use flexdraft::kernels::Paging;
use flexdraft::layout::{Pass, RowKind, SequenceRows};
use flexdraft_candle::{
    JointAttention, KvCache, NormRopeAppend, Projections, RotatedProjections, ScoreChanges,
};
use flexdraft_reference::attention::{self, Heads, KeysValues, joint_attention_with};
use flexdraft_reference::layout::Row;
use flexdraft_reference::norm::rms_norm;
use flexdraft_reference::rope::Rope;
use half::{bf16, f16};
use proptest::prelude::*;

use crate::properties::properties;
use crate::support::{Half, Noise, both, tensor, values};

const PAGE_SIZE: usize = 16;

proptest! {
    #![proptest_config(properties(12))]

    #[test]
    fn passes_are_the_reference_s(
        seed: u64,
        ratio in 1usize..5,
        kv_heads in 1usize..3,
        head_dim in prop::sample::select(vec![64usize, 128]),
        (window, soft_cap) in (prop::option::of(65usize..100), prop::option::of(5f32..30.0)),
        (has_sinks, is_f16) in any::<(bool, bool)>(),
    ) {
        let heads = Heads { q_heads: ratio * kv_heads, kv_heads, head_dim };
        match is_f16 {
            false => check::<bf16>(seed, heads, window, soft_cap, has_sinks)?,
            true => check::<f16>(seed, heads, window, soft_cap, has_sinks)?,
        }
    }
}

/// Returns the rows of one to three sequences, without their pages.
fn random_sequences(noise: &mut Noise) -> Vec<SequenceRows<'static>> {
    (0..1 + noise.below(3))
        .map(|_| {
            let (start, candidates) = (noise.below(150), noise.below(4));
            let groups = (0..candidates.max(1)).filter(|_| noise.below(2) == 0).collect();
            SequenceRows { pages: &[], start, candidates, groups, slots: 1 + noise.below(4) }
        })
        .collect()
}

fn check<T: Half>(
    seed: u64,
    heads: Heads,
    window: Option<usize>,
    soft_cap: Option<f32>,
    has_sinks: bool,
) -> Result<(), TestCaseError> {
    let (kernels, mut noise) = (both().0, Noise(seed));
    let Heads { q_heads, kv_heads, head_dim } = heads;
    let wide = |values: &[T]| values.iter().map(|value| value.to_f64()).collect::<Vec<f64>>();

    // The sequences' page ids descend to page 1.
    let sequences = random_sequences(&mut noise);
    let lengths: Vec<usize> = sequences
        .iter()
        .map(|s| s.start + s.candidates.max(s.groups.last().map_or(0, |last| last + 1)))
        .collect();
    let counts: Vec<usize> = lengths.iter().map(|length| length.div_ceil(PAGE_SIZE)).collect();
    let page_count = 1 + counts.iter().sum::<usize>();
    let mut ids = (1..page_count as u32).rev();
    let pages: Vec<Vec<u32>> = counts.iter().map(|&count| ids.by_ref().take(count).collect()).collect();
    let sequences = sequences.into_iter().zip(&pages).map(|(s, pages)| SequenceRows { pages, ..s });
    let pass = Pass { sequences: sequences.collect() };
    let described = pass.rows();
    let rows = described.len();
    let mut tables = kernels.pass_tables(3, 11).unwrap();
    kernels.upload_pass(&mut tables, &pass, Paging { pages: page_count, page_size: PAGE_SIZE }).unwrap();

    let inv_freq = (0..head_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
    let rope = Rope { inv_freq, scale: 0.75 };
    let inv_freq = tensor(&rope.inv_freq, &[head_dim / 2]);
    let cos_sin = kernels.rope_table(&tables, &inv_freq, rows, rope.scale).unwrap();
    for (row, turns) in described.iter().zip(values::<f32>(&cos_sin).chunks(head_dim)) {
        // The rotation of (1, 0) is the cosine and the sine.
        let mut unit = vec![0f64; head_dim];
        unit[..head_dim / 2].fill(1.0);
        rope.rotate(row.position, &mut unit);
        for (i, turn) in turns.chunks(2).enumerate() {
            // The kernel rounds the angle to f32.
            let tolerance = 3e-7 + row.position as f64 * f64::from(rope.inv_freq[i]) * 2f64.powi(-24);
            for (exact, &found) in [unit[i], unit[head_dim / 2 + i]].into_iter().zip(turn) {
                prop_assert!((exact - f64::from(found)).abs() < tolerance, "{found}, not {exact}");
            }
        }
    }

    let (q_width, kv_width) = (q_heads * head_dim, kv_heads * head_dim);
    let width = q_width + 2 * kv_width;
    let before: Vec<T> = noise.halves(rows * width);
    let qkv = tensor(&before, &[rows, width]);
    let untouched: [Vec<T>; 2] = [(); 2].map(|()| noise.halves(page_count * PAGE_SIZE * kv_width));
    let [k_cache, v_cache] = [&untouched[0], &untouched[1]]
        .map(|cache| tensor(cache, &[page_count, PAGE_SIZE, kv_heads, head_dim]));
    let weights = [noise.floats(head_dim), noise.floats(head_dim)];
    let [q_norm, k_norm] = [&weights[0], &weights[1]].map(|weights| tensor(weights, &[head_dim]));
    let cache = KvCache { k: &k_cache, v: &v_cache };
    for kind in [RowKind::Candidates, RowKind::Masks] {
        kernels
            .norm_rope_append(&NormRopeAppend {
                pass: &tables,
                kind,
                qkv: RotatedProjections::Fused(&qkv),
                cos_sin: &cos_sin,
                norms: Some((&q_norm, &k_norm)),
                eps: 1e-5,
                cache,
                q_heads,
            })
            .unwrap();
    }
    let (found, [k, v]) = (values::<T>(&qkv), [&k_cache, &v_cache].map(values::<T>));
    // The elements of the cache where the k or v of a position belongs.
    let cached = |sequence: usize, position: usize| {
        let page = pages[sequence][position / PAGE_SIZE] as usize;
        let token = (page * PAGE_SIZE + position % PAGE_SIZE) * kv_width;
        token..token + kv_width
    };
    let [mut expected_k, mut expected_v] = untouched;
    for (r, row) in described.iter().enumerate() {
        let (before, found) = (&before[r * width..][..width], &found[r * width..][..width]);
        let (mut rotated, mut v_end) = (found[..q_width + kv_width].to_vec(), q_width + kv_width);
        if r < pass.candidate_rows() {
            let own = cached(row.sequence, row.position);
            rotated[q_width..].copy_from_slice(&k[own.clone()]);
            expected_k[own.clone()].copy_from_slice(&k[own.clone()]);
            expected_v[own].copy_from_slice(&before[v_end..]);
            v_end = q_width;
        }
        // v never changes, and the k of a candidate changes only in the cache.
        prop_assert_eq!(&found[v_end..], &before[v_end..]);
        for (head, (found, before)) in rotated.chunks(head_dim).zip(before.chunks(head_dim)).enumerate() {
            let weight: Vec<f64> =
                weights[usize::from(head >= q_heads)].iter().map(|&weight| weight.into()).collect();
            let normed = rms_norm(&wide(before), &weight, f64::from(1e-5f32));
            let mut exact = normed.clone();
            rope.rotate(row.position, &mut exact);
            for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
                let magnitude =
                    normed[i % (head_dim / 2)].abs() + normed[head_dim / 2 + i % (head_dim / 2)].abs();
                let error = (found.to_f64() - exact).abs();
                prop_assert!(error < magnitude * T::ROUNDOFF * 1.02 + 1e-6, "row {r}, head {head}: {error}");
            }
        }
    }
    prop_assert!(k == expected_k && v == expected_v);

    let sinks = noise.floats(q_heads);
    let sink_tensor = has_sinks.then(|| tensor(&sinks, &[q_heads]));
    let scores = ScoreChanges { window, soft_cap, sinks: sink_tensor.as_ref() };
    let attended = kernels
        .joint_attention(&JointAttention {
            pass: &tables,
            masks: true,
            qkv: Projections::Fused(&qkv),
            cache,
            q_heads,
            split: Some(64),
            scores,
        })
        .unwrap();
    let (out, lse) = (values::<T>(&attended.out), values::<f32>(&attended.lse));
    let sinks: Vec<f64> = sinks.into_iter().map(f64::from).collect();
    let changes = attention::ScoreChanges {
        window,
        soft_cap: soft_cap.map(f64::from),
        sinks: has_sinks.then_some(&sinks[..]),
    };
    let part = |first: usize, len: usize| -> Vec<f64> {
        found.chunks(width).flat_map(|row| wide(&row[first..first + len])).collect()
    };
    let (own_k, own_v) = (part(q_width, kv_width), part(q_width + kv_width, kv_width));
    for (sequence, &length) in lengths.iter().enumerate() {
        let gathered = |cache: &[T]| -> Vec<f64> {
            (0..length).flat_map(|position| wide(&cache[cached(sequence, position)])).collect()
        };
        let (keys, of_values) = (gathered(&k), gathered(&v));
        let own: Vec<usize> = (0..rows).filter(|&r| described[r].sequence == sequence).collect();
        let q: Vec<f64> = own.iter().flat_map(|&r| wide(&found[r * width..][..q_width])).collect();
        let of_reference = own.iter().map(|&r| &described[r]).map(|row| Row {
            position: row.position,
            limit: row.limit,
            group: row.group.map(|(first, end)| first..end),
        });
        let exact = joint_attention_with(
            heads,
            &q,
            &of_reference.collect::<Vec<Row>>(),
            KeysValues { keys: &keys, values: &of_values },
            KeysValues { keys: &own_k, values: &own_v },
            &changes,
        );
        for (&r, exact) in own.iter().zip(&exact) {
            for (i, found) in out[r * q_width..][..q_width].iter().enumerate() {
                let error = (found.to_f64() - exact.output[i]).abs() / exact.magnitude[i];
                prop_assert!(error < 2.0 * T::ROUNDOFF, "row {r}, element {i}: {error}");
            }
            for (&found, exact) in lse[r * q_heads..][..q_heads].iter().zip(&exact.log_sum_exp) {
                let error = (f64::from(found) - exact).abs();
                prop_assert!(error < T::ROUNDOFF + 9e-5, "row {r}: log-sum-exp off by {error}");
            }
        }
    }
    prop_assert_eq!(kernels.take_faults().unwrap(), None);
    Ok(())
}
