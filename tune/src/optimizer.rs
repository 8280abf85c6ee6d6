//! The AdamW optimizer (arXiv 1711.05101) with gradient clipping, and the learning-rate schedule.

use std::collections::HashMap;
use std::f64::consts::PI;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, Error, Result, Storage, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::TuneError;

/// A trained tensor, with its name and how it is trained.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name of the parameter in checkpoints.
    pub name: String,
    /// Current values of the parameter.
    pub var: Var,
    /// True if weight decay applies: for matrices, but not for norms, biases and embeddings of one token.
    pub decays: bool,
    /// Learning rate of the parameter, as a multiple of the schedule's rate.
    pub rate: f64,
}

/// Sets each parameter to the tensor with its name.
///
/// # Errors
/// A tensor that is missing; candle's errors: mismatched shapes, out of memory.
pub fn load(parameters: &[Parameter], tensors: &HashMap<String, Tensor>) -> Result<()> {
    for parameter in parameters {
        let Some(value) = tensors.get(&parameter.name) else {
            return Err(Error::msg(format!("tensor `{}` is missing", parameter.name)));
        };
        let value = value.to_dtype(parameter.var.dtype())?.to_device(parameter.var.device())?;
        parameter.var.set(&value.contiguous()?)?;
    }
    Ok(())
}

/// Settings of the AdamW optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamSettings {
    /// Decay rate of the running mean of gradients (β₁).
    pub beta1: f64,
    /// Decay rate of the running mean of squared gradients (β₂).
    pub beta2: f64,
    /// Constant ε that is added to the root of the mean square.
    pub eps: f64,
    /// Weight decay of matrices, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Largest norm of the gradient over all parameters; a larger gradient is scaled down to it.
    pub clip: f64,
}

impl Default for AdamSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, clip: 1.0 }
    }
}

impl AdamSettings {
    /// Checks every setting by itself.
    ///
    /// # Errors
    /// [`TuneError::Setting`] naming the first invalid setting.
    pub fn validate(&self) -> std::result::Result<(), TuneError> {
        for (setting, value) in [("adam.clip", self.clip), ("adam.eps", self.eps)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(TuneError::setting(setting, value, "a finite number above 0"));
            }
        }
        for (setting, value) in [("adam.beta1", self.beta1), ("adam.beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(TuneError::setting(setting, value, "at least 0 and below 1"));
            }
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            let expected = "a finite number, at least 0";
            return Err(TuneError::setting("adam.weight_decay", self.weight_decay, expected));
        }
        Ok(())
    }
}

/// The state of the AdamW optimizer for a set of parameters.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamSettings,
    parameters: Vec<Parameter>,
    moments: Vec<[Tensor; 2]>,
    steps: usize,
}

impl AdamW {
    /// Creates the state before the first step.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn new(parameters: Vec<Parameter>, settings: AdamSettings) -> Result<Self> {
        let moments = parameters
            .iter()
            .map(|p| Ok([p.var.as_detached_tensor().zeros_like()?, p.var.as_detached_tensor().zeros_like()?]))
            .collect::<Result<_>>()?;
        Ok(Self { settings, parameters, moments, steps: 0 })
    }

    /// Returns the trained parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns the number of steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Returns the gradient of each parameter, in the order of the parameters.
    pub fn gradients(&self, gradients: &GradStore) -> Vec<Option<Tensor>> {
        self.parameters.iter().map(|p| gradients.get(p.var.as_tensor()).cloned()).collect()
    }

    /// Takes one step of AdamW along the parameters' gradients, with learning rate `rate`. Returns the gradient's norm
    /// before clipping; if the norm is not finite, nothing has changed. A parameter without a gradient is left
    /// unchanged.
    ///
    /// # Errors
    /// The numbers of gradients and parameters differ; candle's errors: out of memory.
    pub fn step(&mut self, gradients: Vec<Option<Tensor>>, rate: f64) -> Result<f64> {
        let (found, expected) = (gradients.len(), self.parameters.len());
        if found != expected {
            return Err(Error::msg(format!("{found} gradients for {expected} parameters")));
        }
        let mut sum = 0.0;
        for gradient in gradients.iter().flatten() {
            sum += sum_of_squares(gradient)?;
        }
        let norm = sum.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        let update = Update {
            scale: if norm > self.settings.clip { self.settings.clip / norm } else { 1.0 },
            rate,
            correction1: 1.0 - self.settings.beta1.powi(self.steps as i32),
            correction2: 1.0 - self.settings.beta2.powi(self.steps as i32),
            settings: self.settings,
        };
        for ((parameter, moments), gradient) in self.parameters.iter().zip(&mut self.moments).zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let decay = if parameter.decays { self.settings.weight_decay } else { 0.0 };
            let old = parameter.var.as_detached_tensor();
            let update = Update { rate: rate * parameter.rate, ..update };
            let (value, new_moments) = update.apply(&old, moments, &gradient, decay)?;
            parameter.var.set(&value)?;
            *moments = new_moments;
        }
        Ok(norm)
    }

    /// Returns the parameters and their moments, named as in a checkpoint.
    pub fn state(&self) -> HashMap<String, Tensor> {
        let entries = self.parameters.iter().zip(&self.moments).flat_map(|(p, [m, v])| {
            [
                (p.name.clone(), p.var.as_detached_tensor()),
                (format!("{}.mean", p.name), m.clone()),
                (format!("{}.mean_square", p.name), v.clone()),
            ]
        });
        entries.collect()
    }

    /// Restores the optimizer's state after `steps` steps. If a tensor is missing or has another shape, returns the
    /// name of the first one and changes nothing.
    ///
    /// # Errors
    /// Candle's errors: out of memory.
    pub fn restore(&mut self, mut state: HashMap<String, Tensor>, steps: usize) -> Result<Option<String>> {
        let mut values = Vec::new();
        for parameter in &self.parameters {
            let name = &parameter.name;
            let mut tensors = Vec::new();
            for name in [name.clone(), format!("{name}.mean"), format!("{name}.mean_square")] {
                match state.remove(&name) {
                    Some(tensor) if tensor.shape() == parameter.var.shape() => {
                        tensors
                            .push(tensor.to_dtype(parameter.var.dtype())?.to_device(parameter.var.device())?);
                    }
                    _ => return Ok(Some(name)),
                }
            }
            values.push(tensors);
        }
        for ((parameter, moments), mut tensors) in self.parameters.iter().zip(&mut self.moments).zip(values) {
            if let (Some(v), Some(m), Some(value)) = (tensors.pop(), tensors.pop(), tensors.pop()) {
                parameter.var.set(&value)?;
                *moments = [m, v];
            }
        }
        self.steps = steps;
        Ok(None)
    }
}

fn sum_of_squares(x: &Tensor) -> Result<f64> {
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(x)), Some((first, last))) =
            (&*storage, layout.contiguous_offsets())
        {
            let square = |part: &[f32]| part.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            // The threads' partial sums are added in a fixed order, so that a run is reproducible.
            let parts: Vec<f64> = x[first..last].par_chunks(1 << 14).map(square).collect();
            return Ok(parts.into_iter().sum());
        }
    }
    x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()
}

/// The numbers that one step uses for every parameter.
#[derive(Clone, Copy)]
struct Update {
    scale: f64,
    rate: f64,
    correction1: f64,
    correction2: f64,
    settings: AdamSettings,
}

impl Update {
    fn apply(
        &self,
        value: &Tensor,
        moments: &[Tensor; 2],
        gradient: &Tensor,
        decay: f64,
    ) -> Result<(Tensor, [Tensor; 2])> {
        let [m, v] = moments;
        if value.device().is_cpu() && value.dtype() == DType::F32 {
            return self.apply_f32(value, moments, gradient, decay);
        }
        let AdamSettings { beta1, beta2, eps, .. } = self.settings;
        let gradient = gradient.affine(self.scale, 0.0)?;
        let m = (m.affine(beta1, 0.0)? + gradient.affine(1.0 - beta1, 0.0)?)?;
        let v = (v.affine(beta2, 0.0)? + gradient.sqr()?.affine(1.0 - beta2, 0.0)?)?;
        let root = (v.affine(1.0 / self.correction2, 0.0)?.sqrt()? + eps)?;
        let step = m.affine(self.rate / self.correction1, 0.0)?.div(&root)?;
        Ok(((value.affine(1.0 - self.rate * decay, 0.0)? - step)?, [m, v]))
    }

    /// Applies the step in one pass over memory, for f32 on the CPU; see [`apply`](Self::apply).
    fn apply_f32(
        &self,
        value: &Tensor,
        [m, v]: &[Tensor; 2],
        gradient: &Tensor,
        decay: f64,
    ) -> Result<(Tensor, [Tensor; 2])> {
        let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let (mut new, mut new_m, mut new_v) = (flat(value)?, flat(m)?, flat(v)?);
        let gradient = flat(gradient)?;
        let AdamSettings { beta1, beta2, eps, .. } = self.settings;
        let (beta1, beta2, eps) = (beta1 as f32, beta2 as f32, eps as f32);
        let scale = self.scale as f32;
        let keep = (1.0 - self.rate * decay) as f32;
        let rate = (self.rate / self.correction1) as f32;
        let inverse2 = (1.0 / self.correction2) as f32;
        let part = 1 << 14;
        let moments = new_m.par_chunks_mut(part).zip(new_v.par_chunks_mut(part));
        new.par_chunks_mut(part).zip(moments).zip(gradient.par_chunks(part)).for_each(
            |((value, (m, v)), gradient)| {
                for (((value, m), v), g) in value.iter_mut().zip(m).zip(v).zip(gradient) {
                    let g = g * scale;
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *value = *value * keep - rate * *m / ((*v * inverse2).sqrt() + eps);
                }
            },
        );
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, value.shape(), &Device::Cpu);
        Ok((tensor(new)?, [tensor(new_m)?, tensor(new_v)?]))
    }
}

/// Learning-rate schedule: linear warm-up, then a cosine down to a tenth of the peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The largest learning rate of the schedule.
    pub peak: f64,
    /// Number of warm-up steps.
    pub warmup: usize,
    /// Total number of steps; later steps keep the final rate.
    pub steps: usize,
}

impl Schedule {
    /// Returns the learning rate of step `step`, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / length as f64).min(1.0);
        self.peak * (0.1 + 0.9 * 0.5 * (1.0 + (PI * done).cos()))
    }
}

/// Returns the number of steps over which the learning rate of a resumed run of now `steps` steps falls. A run whose
/// schedule of `scheduled` steps is complete stays at the final rate; any other run falls over its new number of steps.
pub fn schedule_steps(step: usize, scheduled: usize, steps: usize) -> usize {
    if step >= scheduled { scheduled } else { steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_and_falls() {
        let schedule = Schedule { peak: 1.0, warmup: 4, steps: 104 };
        assert_eq!(schedule.rate(0), 0.25);
        assert_eq!(schedule.rate(3), 1.0);
        assert!((schedule.rate(54) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(104) - 0.1).abs() < 1e-12);
        assert_eq!(schedule.rate(104), schedule.rate(1000));
    }

    #[test]
    fn both_paths_take_the_same_steps() -> Result<()> {
        let run = |dtype| -> Result<Vec<f64>> {
            let var = Var::from_tensor(
                &Tensor::new(&[[1.0f64, -2.0], [0.5, 3.0]], &Device::Cpu)?.to_dtype(dtype)?,
            )?;
            let settings = AdamSettings { weight_decay: 0.1, ..AdamSettings::default() };
            let parameter = Parameter { name: "w".into(), var: var.clone(), decays: true, rate: 1.0 };
            let mut adam = AdamW::new(vec![parameter], settings)?;
            for _ in 0..5 {
                let loss = var.sqr()?.sum_all()?;
                let gradients = adam.gradients(&loss.backward()?);
                adam.step(gradients, 0.1)?;
            }
            var.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
        };
        let (fast, plain) = (run(DType::F32)?, run(DType::F64)?);
        assert!(fast.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5), "{fast:?} {plain:?}");
        Ok(())
    }

    #[test]
    fn a_parameter_has_a_rate_of_its_own() -> Result<()> {
        let vars = [1.0f32, 1.0, 1.0].map(|x| Var::new(&[x], &Device::Cpu));
        let [a, b, c] = vars;
        let (a, b, c) = (a?, b?, c?);
        let rates = [(&a, 1.0), (&b, 3.0), (&c, 0.0)];
        let parameters = rates
            .map(|(var, rate)| Parameter { name: "w".into(), var: var.clone(), decays: true, rate })
            .to_vec();
        let mut adam = AdamW::new(parameters, AdamSettings { weight_decay: 0.5, ..AdamSettings::default() })?;
        let loss = ((a.sqr()? + b.sqr()?)? + c.sqr()?)?.sum_all()?;
        let gradients = adam.gradients(&loss.backward()?);
        adam.step(gradients, 0.01)?;
        let moved = |var: &Var| Ok::<_, Error>(1.0 - var.to_vec1::<f32>()?[0]);
        assert!((moved(&b)? - 3.0 * moved(&a)?).abs() < 1e-6 && moved(&a)? > 0.009, "{}", moved(&a)?);
        assert_eq!(moved(&c)?, 0.0);
        Ok(())
    }
}
