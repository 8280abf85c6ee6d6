//! Rotary frequencies of a model, computed once, with scaling, when the model is loaded.
//!
//! The types and their arithmetic follow transformers' `modeling_rope_utils.py`, including the order of
//! operations and f32 roundings. Scaling types whose frequencies depend on the length of the sequence
//! (`dynamic`, `longrope`) are not supported.

use std::f64::consts::PI;

use super::{MAX_CONTEXT, MAX_HEAD_DIM};
use crate::device::Rope;
use crate::model::LoadError;
use crate::model::format::json::Fields;

const SUPPORTED: &str = "default, linear, llama3, yarn";

/// A method of stretching the rotary embedding over contexts longer than the pretraining context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling of the frequencies.
    Default,
    /// Position interpolation: every frequency is divided by `factor`.
    Linear {
        /// Ratio of the new context length to the pretraining context.
        factor: f64,
        /// Number of positions of the pretraining context; `None` if it is the context that the model states.
        original_context: Option<f64>,
    },
    /// Llama 3.1: the frequencies of long wavelengths are divided by `factor`, the frequencies of short
    /// wavelengths are kept, with a smooth transition between them.
    Llama3 {
        /// Divisor of the frequencies whose wavelengths exceed `original_context` / `low_freq_factor`.
        factor: f64,
        /// Bound of the long wavelengths, as a divisor of `original_context`.
        low_freq_factor: f64,
        /// Bound of the short wavelengths: wavelengths below `original_context` / `high_freq_factor` are
        /// kept.
        high_freq_factor: f64,
        /// Number of positions of the pretraining context.
        original_context: f64,
    },
    /// YaRN (arXiv 2309.00071): interpolation by parts, and a factor on cosine and sine.
    Yarn(Yarn),
}

impl RopeScaling {
    /// Returns the number of positions of the stretched context, given the number that the model states. Llama
    /// 3's models state the stretched context; others may state the pretraining context.
    pub(super) fn context_len(&self, stated: usize) -> usize {
        let stretched = match *self {
            Self::Default | Self::Llama3 { .. } => 0.0,
            Self::Linear { factor, original_context } => factor * original_context.unwrap_or(stated as f64),
            Self::Yarn(Yarn { factor, original_context, .. }) => factor * original_context,
        };
        stated.max(stretched.min(MAX_CONTEXT as f64) as usize)
    }
}

/// The parameters of [`RopeScaling::Yarn`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Ratio of the new context length to the pretraining context.
    pub factor: f64,
    /// Number of positions of the pretraining context.
    pub original_context: f64,
    /// Number of rotations over the pretraining context above which a dimension's frequency is kept.
    pub beta_fast: f64,
    /// Number of rotations over the pretraining context below which a dimension's frequency is interpolated.
    pub beta_slow: f64,
    /// True if the bounds between kept and interpolated dimensions are rounded to whole dimensions.
    pub truncate: bool,
    /// Factor on every cosine and sine.
    pub attention_factor: f64,
}

impl Yarn {
    /// Returns YaRN parameters with the paper's recommended values for all parameters but the arguments.
    pub fn new(factor: f64, original_context: f64) -> Self {
        Self {
            factor,
            original_context,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: mscale(factor, 1.0),
        }
    }
}

/// Returns the YaRN paper's √(1/t) = 0.1·ln(s) + 1, with DeepSeek's coefficient on the logarithm.
fn mscale(factor: f64, coefficient: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * coefficient * factor.ln() + 1.0 }
}

/// Returns a rotary embedding that leaves every vector of `head_dim` dimensions as it is.
pub(in crate::model) fn no_rotation(head_dim: usize) -> Rope {
    Rope { inv_freq: vec![0.0; head_dim / 2], scale: 1.0 }
}

/// Returns the rotary embedding of a model with `head_dim` dimensions per head, base `theta` and a scaling.
///
/// `None` if `head_dim` is odd, 0 or above 4096, or if the parameters give a frequency that is not finite.
pub fn rope(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Option<Rope> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        return None;
    }
    // The wavelength of dimension i is 2π · θ^(2i / head_dim) positions.
    let turns: Vec<f32> = (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            f64::from(theta as f32).powf(f64::from(exponent)) as f32
        })
        .collect();
    let plain = turns.iter().map(|&x| 1.0 / x);
    let mut scale = 1.0;
    let inv_freq: Vec<f32> = match *scaling {
        RopeScaling::Default => plain.collect(),
        RopeScaling::Linear { factor, .. } => plain.map(|x| x / factor as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let low_wavelen = (original_context / low_freq_factor) as f32;
            let high_wavelen = (original_context / high_freq_factor) as f32;
            let factor = factor as f32;
            plain
                .map(|x| {
                    let wavelen = (1.0 / x) * (2.0 * PI) as f32;
                    if wavelen > low_wavelen {
                        return x / factor;
                    }
                    if wavelen < high_wavelen {
                        return x;
                    }
                    let smooth = ((1.0 / wavelen) * original_context as f32 - low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - smooth) * x / factor + smooth * x
                })
                .collect()
        }
        RopeScaling::Yarn(yarn) => {
            scale = yarn.attention_factor as f32;
            yarn_frequencies(head_dim, theta, &turns, &yarn)?
        }
    };
    let finite = scale.is_finite() && inv_freq.iter().all(|x| x.is_finite());
    finite.then_some(Rope { inv_freq, scale })
}

fn yarn_frequencies(head_dim: usize, theta: f64, turns: &[f32], yarn: &Yarn) -> Option<Vec<f32>> {
    let dim = head_dim as f64;
    // Returns the (fractional) dimension that makes `rotations` rotations over the pretraining context.
    let dimension_of =
        |rotations: f64| dim * (yarn.original_context / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension_of(yarn.beta_fast), dimension_of(yarn.beta_slow));
    if !low.is_finite() || !high.is_finite() {
        return None;
    }
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    let frequency = |(i, &turn): (usize, &f32)| {
        let kept = 1.0 / turn;
        let interpolated = 1.0 / (yarn.factor as f32 * turn);
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        interpolated * (1.0 - keep) + kept * keep
    };
    Some(turns.iter().enumerate().map(frequency).collect())
}

/// Reads the rotary embedding of a `config.json`, with its scaling: `rope_parameters` (transformers 5), or `rope_theta` and
/// `rope_scaling` (transformers 4).
pub(in crate::model) fn from_config(
    config: &Fields<'_>,
    head_dim: usize,
    context_len: usize,
    default_theta: f64,
) -> Result<(Rope, RopeScaling), LoadError> {
    let key = match (config.get("rope_parameters"), config.get("rope_scaling")) {
        (Some(new), Some(old)) if new != old => {
            return Err(config.invalid("rope_scaling", "the same as `rope_parameters`, or only one of them"));
        }
        (Some(_), _) => "rope_parameters",
        (None, _) => "rope_scaling",
    };
    let parameters = config.object(key)?;
    full_rotation_only(config)?;
    let mut theta = config.positive("rope_theta")?;
    let mut scaling = RopeScaling::Default;
    if let Some(parameters) = &parameters {
        full_rotation_only(parameters)?;
        theta = parameters.positive("rope_theta")?.or(theta);
        scaling = read_scaling(parameters, context_len)?;
    }
    let theta = theta.unwrap_or(default_theta);
    match (rope(head_dim, theta, &scaling), parameters) {
        (Some(rope), _) => Ok((rope, scaling)),
        (None, Some(_)) => Err(config.invalid(key, "parameters that give finite frequencies")),
        (None, None) => Err(config.invalid("rope_theta", "a base that gives finite frequencies")),
    }
}

fn full_rotation_only(fields: &Fields<'_>) -> Result<(), LoadError> {
    match fields.number("partial_rotary_factor")? {
        Some(part) if part != 1.0 => Err(fields.unsupported("partial_rotary_factor", "1")),
        _ => Ok(()),
    }
}

fn read_scaling(fields: &Fields<'_>, context_len: usize) -> Result<RopeScaling, LoadError> {
    let (new, old) = (fields.text("rope_type")?, fields.text("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(fields.invalid("type", format!("\"{new}\", as `rope_type`")));
    }
    let key = if new.is_some() { "rope_type" } else { "type" };
    let required = |key: &str| fields.positive(key)?.ok_or_else(|| fields.missing(key));
    let original_context = fields.positive("original_max_position_embeddings")?;
    match new.or(old) {
        None | Some("default") => {
            // A scaling without a type, or with one object per layer type, is refused: it does not mean "no scaling".
            match fields.entries().find(|(key, value)| *key == "factor" || value.is_object()) {
                Some((key, _)) if new.or(old).is_none() => Err(fields.unsupported(key, SUPPORTED)),
                _ => Ok(RopeScaling::Default),
            }
        }
        Some("linear") => Ok(RopeScaling::Linear { factor: required("factor")?, original_context }),
        Some("llama3") => {
            let scaling = RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_context: original_context.unwrap_or(context_len as f64),
            };
            match scaling {
                RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }
                    if low_freq_factor >= high_freq_factor =>
                {
                    Err(fields.invalid(
                        "high_freq_factor",
                        format!("more than `low_freq_factor`, {low_freq_factor}"),
                    ))
                }
                scaling => Ok(scaling),
            }
        }
        Some("yarn") => {
            let factor = match (fields.positive("factor")?, original_context) {
                (Some(factor), _) => factor,
                (None, Some(original)) => context_len as f64 / original,
                (None, None) => return Err(fields.missing("factor")),
            };
            let mut yarn = Yarn::new(factor, original_context.unwrap_or(context_len as f64));
            // transformers treats a 0 in these keys like a missing key.
            let given = |key: &str| Ok::<_, LoadError>(fields.number(key)?.filter(|&x| x != 0.0));
            yarn.beta_fast = given("beta_fast")?.unwrap_or(yarn.beta_fast);
            yarn.beta_slow = given("beta_slow")?.unwrap_or(yarn.beta_slow);
            yarn.truncate = fields.flag("truncate")?.unwrap_or(true);
            if let (Some(all), Some(all_dim)) = (given("mscale")?, given("mscale_all_dim")?) {
                yarn.attention_factor = mscale(factor, all) / mscale(factor, all_dim);
            }
            if let Some(attention_factor) = fields.positive("attention_factor")? {
                yarn.attention_factor = attention_factor;
            }
            Ok(RopeScaling::Yarn(yarn))
        }
        Some(_) => Err(fields.unsupported(key, SUPPORTED)),
    }
}
