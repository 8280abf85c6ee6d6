//! Tests that warping agrees with transformers' logits processors on recorded rows, and with the reference on random
//! rows.

use flexdraft::sampling::{SamplingParams, softmax, warp};
use flexdraft_reference::warp as reference;
use proptest::prelude::*;
use serde::Deserialize;

use crate::support::properties::properties;

#[derive(Deserialize)]
struct Recording {
    rows: Vec<Row>,
}

/// A recorded row of logits before and after warping; the logit `None` is −∞.
#[derive(Deserialize)]
struct Row {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    ties: bool,
    logits: Vec<Option<f32>>,
    scores: Vec<Option<f32>>,
}

fn recorded() -> Vec<Row> {
    let text = include_str!("../fixtures/transformers/warp.json");
    serde_json::from_str::<Recording>(text).unwrap().rows
}

#[test]
fn scores_equal_those_of_transformers() {
    let rows = recorded();
    assert_eq!(rows.len(), 50);
    assert!(rows.iter().filter(|row| !row.ties).count() >= 40);
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| !row.ties) {
        let logits: Vec<f32> = row.logits.iter().map(|l| l.unwrap_or(f32::NEG_INFINITY)).collect();
        let params = SamplingParams {
            temperature: row.temperature,
            top_k: row.top_k,
            top_p: row.top_p,
            min_p: row.min_p,
        };
        let scores = warp(&logits, &params);
        let largest = row.scores.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max);
        for (id, (found, expected)) in scores.iter().zip(&row.scores).enumerate() {
            let Some(expected) = expected else {
                assert_eq!(*found, f32::NEG_INFINITY, "row {index}, id {id}: kept");
                continue;
            };
            // The crate's scores are relative to the row's largest score, so the recorded scores are shifted by it.
            let tolerance = 1e-6 * expected.abs().max(largest.abs()).max(1.0);
            let difference = (found - (expected - largest)).abs();
            assert!(difference <= tolerance, "row {index}, id {id}: {found} is not {expected} − {largest}");
        }
    }
}

proptest! {
    #![proptest_config(properties(64))]

    /// The logits lie on a coarse grid, so that ties are common and no cut of truncation depends on rounding.
    #[test]
    fn probabilities_equal_the_references(
        grid in prop::collection::vec(-8i32..9, 1..70),
        temperature in prop::sample::select(vec![0.0f32, 0.5, 1.0, 2.0]),
        top_k in 0usize..12,
        top_p in prop::sample::select(vec![0.05f32, 0.31, 0.72, 0.93, 1.0]),
        min_p in prop::sample::select(vec![0.0f32, 0.013, 0.11, 0.57]),
    ) {
        let logits: Vec<f32> = grid.iter().map(|&l| l as f32 / 4.0).collect();
        let wide: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        let params = SamplingParams { temperature, top_k, top_p, min_p };
        let warping = reference::Warping {
            temperature: f64::from(temperature),
            top_k,
            top_p: f64::from(top_p),
            min_p: f64::from(min_p),
        };
        let found = softmax(&warp(&logits, &params));
        let expected = reference::warp(&wide, &warping).probabilities;
        for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
            prop_assert!((found - expected).abs() < 1e-6, "id {}: {} and {}", id, found, expected);
            prop_assert_eq!(*found == 0.0, *expected == 0.0, "id {}", id);
        }
    }
}
