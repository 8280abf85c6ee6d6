//! Rotary position embedding (Su et al., RoFormer, arXiv 2104.09864, equation 34), in the rotate-half
//! form of Llama and Qwen, and the frequency scalings of long-context models.
//!
//! The frequencies are f32 for every float type of the model. They are computed by the same f32 operations in the
//! same order as transformers' `modeling_rope_utils` (4.57), which the models were trained with. [`Rope::rotate`]
//! uses them as given numbers.

use std::f64::consts::PI;

use crate::float::Float;

/// The frequencies of a rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Inverse frequencies `[head_dim / 2]`, in radians per position.
    pub inv_freq: Vec<f32>,
    /// Factor on every cosine and sine; 1 except for yarn.
    pub scale: f32,
}

/// Parameters of [`Rope::llama3`], by their names in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// Divisor of the low frequencies, those with long wavelengths.
    pub factor: f64,
    /// Divisor that bounds the long wavelengths: wavelengths above `original_max_position_embeddings / low_freq_factor`
    /// are scaled in full.
    pub low_freq_factor: f64,
    /// Divisor that bounds the short wavelengths: wavelengths below `original_max_position_embeddings /
    /// high_freq_factor` are not scaled.
    pub high_freq_factor: f64,
    /// Context length of the training before scaling, in positions.
    pub original_max_position_embeddings: usize,
}

/// Parameters of [`Rope::yarn`], by their names in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct YarnScaling {
    /// Ratio of the new context length to the original one.
    pub factor: f64,
    /// Context length of the training before scaling (`max_position_embeddings` if the config has none), in
    /// positions.
    pub original_max_position_embeddings: usize,
    /// Number of rotations over the original context above which a dimension is not scaled; 32 if absent.
    pub beta_fast: f64,
    /// Number of rotations over the original context below which a dimension is fully scaled; 1 if absent.
    pub beta_slow: f64,
    /// The factor on cosine and sine, if the config gives it.
    pub attention_factor: Option<f64>,
    /// The config's `mscale` and `mscale_all_dim`, if the config gives both and neither is 0.
    pub mscale: Option<(f64, f64)>,
    /// True if the ramp's ends are rounded outwards to whole dimensions; true if absent.
    pub truncate: bool,
}

impl YarnScaling {
    /// Returns the scaling by `factor` from `original_max_position_embeddings`, with the defaults for all other fields.
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Self {
        Self {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            truncate: true,
        }
    }
}

impl Rope {
    /// Returns the rotary embedding of rope type `default`: inv_freq_i = theta^(−2i / head_dim).
    pub fn unscaled(head_dim: usize, theta: f64) -> Self {
        Self { inv_freq: wavelengths(head_dim, theta).map(|w| 1.0 / w).collect(), scale: 1.0 }
    }

    /// Returns the rotary embedding of rope type `linear` (position interpolation, arXiv 2306.15595): every frequency
    /// is divided by `factor`.
    pub fn linear(head_dim: usize, theta: f64, factor: f64) -> Self {
        let mut rope = Self::unscaled(head_dim, theta);
        rope.inv_freq.iter_mut().for_each(|f| *f /= factor as f32);
        rope
    }

    /// Returns the rotary embedding of rope type `llama3` (Llama 3.1): long wavelengths are scaled, short wavelengths
    /// are not, with a blend between.
    pub fn llama3(head_dim: usize, theta: f64, scaling: Llama3Scaling) -> Self {
        let factor = scaling.factor as f32;
        let original = scaling.original_max_position_embeddings as f64;
        let low_freq_wavelength = (original / scaling.low_freq_factor) as f32;
        let high_freq_wavelength = (original / scaling.high_freq_factor) as f32;
        let band = (scaling.high_freq_factor - scaling.low_freq_factor) as f32;

        let mut rope = Self::unscaled(head_dim, theta);
        for inv_freq in &mut rope.inv_freq {
            let wavelength = (2.0 * PI) as f32 / *inv_freq;
            *inv_freq = if wavelength > low_freq_wavelength {
                *inv_freq / factor
            } else if wavelength < high_freq_wavelength {
                *inv_freq
            } else {
                let smooth = (original as f32 / wavelength - scaling.low_freq_factor as f32) / band;
                (1.0 - smooth) * *inv_freq / factor + smooth * *inv_freq
            };
        }
        rope
    }

    /// Returns the rotary embedding of rope type `yarn` (Peng et al., arXiv 2309.00071, sections 3.2 to 3.4):
    /// dimensions with high frequencies are not scaled, dimensions with low frequencies are, with a linear ramp
    /// between.
    pub fn yarn(head_dim: usize, theta: f64, scaling: YarnScaling) -> Self {
        // Returns the dimension that makes `rotations` rotations over the original context.
        let original = scaling.original_max_position_embeddings as f64;
        let dimension =
            |rotations: f64| head_dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (dimension(scaling.beta_fast), dimension(scaling.beta_slow));
        if scaling.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }

        let inv_freq = wavelengths(head_dim, theta)
            .enumerate()
            .map(|(i, wavelength)| {
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let extrapolated = 1.0 - ramp;
                let interpolated_freq = 1.0 / (scaling.factor as f32 * wavelength);
                interpolated_freq * (1.0 - extrapolated) + 1.0 / wavelength * extrapolated
            })
            .collect();
        Self { inv_freq, scale: yarn_scale(&scaling) as f32 }
    }

    /// Rotates one head `[head_dim]` at `position`, in place: for i < head_dim / 2, the pair (x_i, x_{i +
    /// head_dim/2}) is rotated by position · inv_freq_i.
    pub fn rotate<F: Float>(&self, position: usize, head: &mut [F]) {
        let half = self.inv_freq.len();
        assert_eq!(head.len(), 2 * half);
        let scale = F::from_f64(self.scale.into());
        for (i, &inv_freq) in self.inv_freq.iter().enumerate() {
            let angle = F::from_f64(position as f64) * F::from_f64(inv_freq.into());
            let (cos, sin) = (angle.cos() * scale, angle.sin() * scale);
            let (x, y) = (head[i], head[half + i]);
            head[i] = x * cos - y * sin;
            head[half + i] = y * cos + x * sin;
        }
    }
}

/// Returns theta^(2i / head_dim) for i < head_dim / 2: positions per radian, in f32.
fn wavelengths(head_dim: usize, theta: f64) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |i| (theta as f32).powf((2 * i) as f32 / head_dim as f32))
}

/// Returns the factor on cosine and sine (the square root of yarn's attention temperature, section 3.4).
fn yarn_scale(scaling: &YarnScaling) -> f64 {
    let from_factor = |mscale: f64| {
        if scaling.factor <= 1.0 { 1.0 } else { 0.1 * mscale * scaling.factor.ln() + 1.0 }
    };
    match (scaling.attention_factor, scaling.mscale) {
        (Some(factor), _) => factor,
        (None, Some((mscale, all_dim))) => from_factor(mscale) / from_factor(all_dim),
        (None, None) => from_factor(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_products_of_equal_distance() {
        let rope = Rope::unscaled(4, 100.0);
        let turned = |position, mut head: [f64; 4]| {
            rope.rotate(position, &mut head);
            head
        };
        let product = |x: [f64; 4], y: [f64; 4]| crate::linear::dot(&x, &y);
        let (q, k) = ([0.3, -1.0, 0.7, 2.0], [1.1, 0.4, -0.6, 0.2]);
        let near = product(turned(7, q), turned(4, k));
        let far = product(turned(1007, q), turned(1004, k));
        assert!((near - far).abs() < 1e-12);
        assert!((near - product(turned(7, q), turned(5, k))).abs() > 1e-2);
        assert_eq!(turned(0, q), q);
    }

    #[test]
    fn rotation_pairs_the_halves() {
        let rope = Rope { inv_freq: vec![std::f32::consts::FRAC_PI_2, 0.0], scale: 2.0 };
        let mut head = [1.0f64, 2.0, 3.0, 4.0];
        rope.rotate(1, &mut head);
        // The pair (1, 3) is rotated by a quarter turn, (2, 4) is not rotated; both are doubled.
        for (found, expected) in head.into_iter().zip([-6.0, 4.0, 2.0, 8.0]) {
            assert!((found - expected).abs() < 1e-6);
        }
    }
}
