//! The device that `--device` names. `auto` is the first GPU, if it can run the model and passes its self-test, or else
//! the CPU.

use flexdraft::device::gpu::{CublasLt, CudaOptions, Gpu};
use flexdraft::device::{Device, DeviceError};
use flexdraft::device_selection::{Chosen, choose};
use flexdraft::kernels::supports;
use flexdraft::model::QuantizedWeights;
use flexdraft::model::weights::model_shape;
use flexdraft::runtime::Cuda;

use crate::args::{DeviceChoice, ModelArgs, WeightsChoice};
use crate::error::{CliError, Result};
use crate::models::{self, Weights};
use crate::probe::Place;
use crate::progress::Progress;

/// A command that has loaded its models and runs on a device of any type.
pub trait Work {
    fn weights(&self) -> &Weights;

    fn progress(&self) -> &Progress;

    /// Runs the command on a device, which `place` names.
    fn run_on(self, device: impl Device, place: Place) -> Result<()>;
}

/// Loads a command's models with `load`, and runs the command on the requested device.
pub fn run<W: Work>(args: &ModelArgs, load: impl FnOnce(QuantizedWeights) -> Result<W>) -> Result<()> {
    if let DeviceChoice::Cuda(ordinal) = args.device {
        let quantized = quantized_on_gpu(args.weights)?;
        let gpu = Gpu::cuda_with(ordinal, args.cuda_options())?;
        return load(quantized)?.run_on(gpu, Place::gpu(ordinal, &args.cuda_options()));
    }
    let cpu = models::cpu(args.threads, args.dtype.into())?;
    let place = Place::cpu(&cpu);
    let may_use_gpu = args.device == DeviceChoice::Auto && args.weights != Some(WeightsChoice::Keep);
    if !may_use_gpu || Cuda::context(0).is_err() {
        return load(args.weights.unwrap_or(WeightsChoice::Keep).into())?.run_on(cpu, place);
    }
    let work = load(QuantizedWeights::Bf16)?;
    let chosen = gpu(work.weights(), args.cuda_options());
    if let Some(note) = note(&chosen) {
        work.progress().note(&note);
    }
    match chosen {
        Chosen::Device(gpu) => work.run_on(gpu, Place::gpu(0, &args.cuda_options())),
        Chosen::Missing | Chosen::Refused(_) => work.run_on(cpu, place),
    }
}

/// Returns what becomes of quantised weights on a GPU, which takes only bf16.
pub fn quantized_on_gpu(choice: Option<WeightsChoice>) -> Result<QuantizedWeights> {
    match choice {
        None | Some(WeightsChoice::Bf16) => Ok(QuantizedWeights::Bf16),
        Some(WeightsChoice::Keep) => {
            Err(CliError::Usage("--weights keep needs --device cpu: a GPU takes only --weights bf16".into()))
        }
    }
}

/// Label for results of a device on which a row's result depends on the other rows of the batch.
pub const NOT_LOSSLESS: &str = "not lossless (--products any)";

/// Returns the label of a device's results, if the results are not lossless.
pub fn label(device: &impl Device) -> Option<&'static str> {
    (!device.is_row_invariant()).then_some(NOT_LOSSLESS)
}

/// Returns the first GPU if the kernels can run a model with these weights; otherwise the reason, if there is a GPU.
pub fn gpu(weights: &Weights, options: CudaOptions) -> Chosen<Gpu<CublasLt>> {
    choose(|| {
        // Without a driver or a GPU, the CPU is used and the user gets no note.
        let Ok(_context) = Cuda::context(0) else { return Ok(None) };
        match unsupported(weights) {
            Some(reason) => Err(DeviceError::Unavailable { requested: "auto".into(), reason }),
            None => Gpu::cuda_with(0, options).map(Some),
        }
    })
}

/// Returns the note to the user about the choice of device.
pub fn note<D>(chosen: &Chosen<D>) -> Option<String> {
    match chosen {
        Chosen::Device(_) => Some("Running on cuda:0 (see --device).".into()),
        Chosen::Refused(reason) => Some(format!("Running on the CPU, not on cuda:0: {reason}.")),
        Chosen::Missing => None,
    }
}

/// Returns the reason why the kernels cannot run a model, if there is one.
fn unsupported(weights: &Weights) -> Option<String> {
    let shape = model_shape(&weights.target, weights.drafter.as_ref());
    supports(&shape).err().map(|limit| format!("the model's {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::synthetic::Synthetic;

    #[test]
    fn models_that_the_kernels_cannot_run() {
        let mut weights: Weights = Synthetic::Tiny.weights(4).unwrap();
        assert_eq!(unsupported(&weights), None);
        weights.target.config.attention.head_dim = 96;
        assert_eq!(
            unsupported(&weights),
            Some("the model's head_dim is 96; the kernels support 64, 128".into())
        );
    }

    #[test]
    fn only_a_gpu_is_worth_a_word() {
        assert_eq!(note(&Chosen::<()>::Missing), None);
        let refused = Chosen::<()>::Refused("it is old".into());
        assert_eq!(note(&refused), Some("Running on the CPU, not on cuda:0: it is old.".into()));
        assert!(note(&Chosen::Device(())).unwrap().contains("cuda:0"));
    }
}
