//! Loads targets and drafters from the paths of the arguments.

use std::path::Path;

use flexdraft::device::Precision;
use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterWeights, ModelConfig, ModelWeights, QuantizedWeights, TargetWeights};
use flexdraft_tune::{Result, TuneError};

/// Maps a target's weights into memory.
pub fn target(path: &Path) -> Result<TargetWeights> {
    // SAFETY: other processes cannot be prevented from changing the files, only forbidden to, which the help of
    // --target does; this process does not write to them.
    Ok(unsafe { TargetWeights::map(path) }?)
}

/// Maps the weights of a drafter into memory, for a target with the configuration `target`.
pub fn drafter(path: &Path, target: &ModelConfig) -> Result<DrafterWeights> {
    // SAFETY: as for a target's files.
    Ok(unsafe { DrafterWeights::map(path, target) }?)
}

/// Maps the weights of a target and of its drafter into memory; `quantized` is the format in which quantised weights
/// are kept. The drafter is in the directory `draft`, or by default in the target's own files.
pub fn pair(
    target: &Path,
    quantized: QuantizedWeights,
    draft: Option<&Path>,
) -> Result<(TargetWeights, DrafterWeights)> {
    // SAFETY: as for a target's files.
    let mapped = unsafe { ModelWeights::map_with(target, quantized) }?;
    let ModelWeights { target: weights, drafter: own } = mapped;
    let drafter = match (draft, own) {
        (Some(path), _) => drafter(path, &weights.config)?,
        (None, Some(own)) => own,
        (None, None) => {
            let expected = "the directory of a drafter, because the target has no drafter of its own";
            return Err(TuneError::setting("--draft", "not given", expected));
        }
    };
    Ok((weights, drafter))
}

/// Returns a CPU device with the given number of threads; 0 takes one per core.
pub fn cpu(threads: usize, precision: Precision) -> Result<Cpu> {
    Ok(Cpu::new(CpuOptions { threads, precision })?)
}
