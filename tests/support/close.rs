//! Comparison of values that differ by rounding.

use half::bf16;

/// Checks that values differ by rounding only: by at most `tolerance` relative to the largest value.
pub fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |most, x| most.max(x.abs())).max(1e-3);
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(error <= tolerance || found == expected, "{name}: element {i} is {found}, not {expected}");
    }
}

pub fn f32s(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}
