//! Inverse frequencies and scales compared with the values of transformers.

use flexdraft_reference::rope::{Llama3Scaling, Rope, YarnScaling};

/// Asserts agreement to two units in the last place, because `powf` differs between platforms.
fn assert_frequencies(rope: &Rope, inv_freq: &[f32], scale: f64) {
    assert_eq!(rope.inv_freq.len(), inv_freq.len());
    for (i, (&found, &expected)) in rope.inv_freq.iter().zip(inv_freq).enumerate() {
        let ulps = found.to_bits().abs_diff(expected.to_bits());
        assert!(ulps <= 2, "inv_freq[{i}] is {found}, expected {expected}");
    }
    assert_eq!(rope.scale, scale as f32);
}

// transformers 4.57.6 with PyTorch computed the expected values below.

#[test]
fn unscaled_and_linear() {
    assert_frequencies(
        &Rope::unscaled(16, 1e4),
        &[1.0, 0.31622776, 0.1, 0.03162278, 0.01, 0.0031622779, 0.001, 0.0003162278],
        1.0,
    );
    assert_frequencies(
        &Rope::linear(16, 1e4, 4.0),
        &[0.25, 0.07905694, 0.025, 0.007905695, 0.0025, 0.00079056947, 0.00025, 7.905695e-05],
        1.0,
    );
}

#[test]
fn llama3() {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_frequencies(
        &Rope::llama3(32, 5e5, scaling),
        &[
            1.0,
            0.44036663,
            0.19392276,
            0.0853971,
            0.03760603,
            0.01656044,
            0.007292665,
            0.003211446,
            0.000524846,
            7.7846555e-05,
            3.4281024e-05,
            1.5096218e-05,
            6.6478697e-06,
            2.9274997e-06,
            1.2891732e-06,
            5.677088e-07,
        ],
        1.0,
    );
}

#[test]
fn yarn() {
    assert_frequencies(
        &Rope::yarn(32, 1e6, YarnScaling::new(4.0, 32768)),
        &[
            1.0,
            0.4216965,
            0.17782794,
            0.074989416,
            0.03162278,
            0.013335215,
            0.0047799014,
            0.0016599617,
            0.00055,
            0.00016867858,
            4.4456985e-05,
            1.8747356e-05,
            7.905694e-06,
            3.3338035e-06,
            1.4058534e-06,
            5.9284343e-07,
        ],
        1.138629436111989,
    );
    assert_frequencies(
        &Rope::yarn(
            16,
            1e4,
            YarnScaling {
                beta_fast: 16.0,
                beta_slow: 2.0,
                mscale: Some((0.707, 1.2)),
                ..YarnScaling::new(40.0, 4096)
            },
        ),
        &[1.0, 0.31622776, 0.1, 0.03162278, 0.0067499992, 0.0011067971, 2.5e-05, 7.9056945e-06],
        0.8739404576185121,
    );
    assert_frequencies(
        &Rope::yarn(16, 1e4, YarnScaling { truncate: false, ..YarnScaling::new(8.0, 4096) }),
        &[1.0, 0.31622776, 0.1, 0.028112082, 0.005983133, 0.00097285764, 0.000125, 3.9528473e-05],
        1.2079441541679836,
    );
    assert_frequencies(
        &Rope::yarn(16, 1e4, YarnScaling { attention_factor: Some(1.5), ..YarnScaling::new(8.0, 4096) }),
        &[1.0, 0.31622776, 0.1, 0.024705295, 0.0056249998, 0.001087033, 0.000125, 3.9528473e-05],
        1.5,
    );
}
