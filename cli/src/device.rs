//! The choice `--device auto`: the first GPU, if it can run the model and passes its self-test, or else the CPU.

use flexdraft::device::gpu::{CublasLt, Gpu, ProductAlgorithms};
use flexdraft::device::{Device, DeviceError};
use flexdraft::device_selection::{Chosen, choose};
use flexdraft::runtime::Cuda;

use crate::models::Weights;

/// Label for results of a device on which a row's result depends on the other rows of the batch.
pub const NOT_LOSSLESS: &str = "not lossless (--products any)";

/// Returns the label of a device's results, if the results are not lossless.
pub fn label(device: &impl Device) -> Option<&'static str> {
    (!device.is_row_invariant()).then_some(NOT_LOSSLESS)
}

/// Returns the first GPU, if it can be used for these weights.
pub fn gpu(weights: &Weights, algorithms: ProductAlgorithms) -> Chosen<Gpu<CublasLt>> {
    choose(|| {
        // Without a driver or a GPU, the user is told nothing.
        let Ok(_context) = Cuda::context(0) else { return Ok(None) };
        match unsupported(weights) {
            Some(reason) => Err(DeviceError::Unavailable { requested: "auto".into(), reason }),
            None => Gpu::cuda_with(0, algorithms).map(Some),
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
    let config = &weights.target.config;
    let heads = config.attention;
    let ratio = heads.q_heads / heads.kv_heads.max(1);
    let calibrator = weights.drafter.as_ref().and_then(|drafter| drafter.calibrator.as_ref());
    let rank = calibrator.and_then(|calibrator| calibrator.hidden.weight.shape().first().copied());
    if ![64, 128].contains(&heads.head_dim) {
        Some(format!("its kernels support head_dim 64 and 128, and the model has {}", heads.head_dim))
    } else if !(1..=16).contains(&ratio) {
        Some(format!("its kernels support 1 to 16 query heads per KV head, and the model has {ratio}"))
    } else if config.vocab_size > 1 << 20 {
        Some(format!(
            "its kernels support up to {} token ids, and the model has {}",
            1 << 20,
            config.vocab_size
        ))
    } else if !config.hidden_size.is_multiple_of(8) || !config.intermediate_size.is_multiple_of(8) {
        Some("its kernels support hidden and intermediate sizes that are multiples of 8".into())
    } else {
        let rank = rank.filter(|rank| !rank.is_multiple_of(8))?;
        Some(format!(
            "its kernels support calibrator ranks that are multiples of 8, and the drafter has {rank}"
        ))
    }
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
            Some("its kernels support head_dim 64 and 128, and the model has 96".into())
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
