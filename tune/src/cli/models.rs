//! Loads targets and drafters from the paths of the arguments.

use std::path::Path;

use flexdraft::device::cpu::{Cpu, CpuOptions};
use flexdraft::model::{DrafterWeights, ModelConfig, TargetWeights};
use flexdraft_tune::Result;

use super::args::TargetArgs;

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

/// Returns the CPU device that the arguments describe.
pub fn cpu(args: &TargetArgs) -> Result<Cpu> {
    Ok(Cpu::new(CpuOptions { threads: args.threads, precision: args.dtype.into() })?)
}
