//! The key of a probe's result: the device, the model and the build that the result holds for.

use std::time::UNIX_EPOCH;
use std::{env, fs};

use flexdraft::device::cpu::Cpu;
use flexdraft::runtime::Cuda;

use crate::models::Weights;

/// A device, in words that tell it apart from devices on which steps take other times.
#[derive(Clone, Debug, PartialEq)]
pub struct Place(String);

impl Place {
    /// Names a CPU device: processor, threads, instruction set, and number format.
    pub fn cpu(cpu: &Cpu) -> Self {
        let (threads, instructions) = (cpu.threads(), cpu.instruction_set());
        Self(format!("{}, {threads} threads, {instructions:?}, {:?}", processor(), cpu.precision()))
    }

    /// Names a GPU; `options` are the options that its steps depend on.
    pub fn gpu(ordinal: usize, options: &impl std::fmt::Debug) -> Self {
        let name = Cuda::context(ordinal).ok().and_then(|context| context.name().ok());
        Self(format!("{}, {options:?}", name.unwrap_or_else(|| format!("cuda:{ordinal}"))))
    }
}

/// Returns the processor's name, if the operating system tells it, or else its architecture.
fn processor() -> String {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// Returns the key of the result for a model on a device, with requests of `block_size` slots in batches of up to
/// `batch` sequences.
pub fn key(place: &Place, weights: &Weights, block_size: Option<usize>, batch: usize) -> String {
    format!("{}; {}; S {block_size:?}, batch {batch}; {}", place.0, model(weights), build())
}

/// Names a model by what its steps depend on: shapes and number formats, not the values of weights.
fn model(weights: &Weights) -> String {
    let target = &weights.target;
    let drafter = weights.drafter.as_ref().map(|drafter| {
        let rank = drafter.calibrator.as_ref().map(|calibrator| calibrator.hidden.weight.shape().to_vec());
        let attention = drafter.attention.iter().map(|layer| layer.q.weight.byte_len()).sum::<usize>();
        let chain = drafter.chain.as_ref().map(|chain| (&chain.config, chain.first.weight.shape().to_vec()));
        (&drafter.config, rank, attention, chain)
    });
    let shapes = format!("{:?} {:?}", target.config, drafter);
    format!("{:?}, {} bytes, {:016x}", target.config.architecture, weights.bytes_a_token(), hash(&shapes))
}

/// Names the build: the version, and the size and the time of the executable.
fn build() -> String {
    let executable = env::current_exe().and_then(fs::metadata).ok();
    let written = executable.as_ref().and_then(|file| file.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    let (bytes, nanoseconds) = (executable.map(|file| file.len()), written.map(|time| time.as_nanos()));
    format!("{} {bytes:?} {nanoseconds:?}", env!("CARGO_PKG_VERSION"))
}

/// Returns the 64-bit FNV-1a hash of a text.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use flexdraft::device::Precision;
    use flexdraft::device::cpu::CpuOptions;

    use super::*;
    use crate::bench::synthetic::Synthetic;

    #[test]
    fn keys_tell_devices_models_and_requests_apart() {
        let place = |threads, precision| Place::cpu(&Cpu::new(CpuOptions { threads, precision }).unwrap());
        let weights = |block_size| Synthetic::Tiny.weights(block_size).unwrap();
        let key =
            |place: Place, weights: Weights, block_size, batch| key(&place, &weights, block_size, batch);
        let one = || key(place(1, Precision::F32), weights(4), None, 1);
        assert_eq!(one(), one());
        let mut plain = weights(4);
        plain.drafter = None;
        let others = [
            key(place(2, Precision::F32), weights(4), None, 1),
            key(place(1, Precision::Bf16), weights(4), None, 1),
            key(Place::gpu(65_535, &"graphs"), weights(4), None, 1),
            key(place(1, Precision::F32), weights(8), None, 1),
            key(place(1, Precision::F32), plain, None, 1),
            key(place(1, Precision::F32), weights(4), Some(2), 1),
            key(place(1, Precision::F32), weights(4), None, 2),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, one());
            assert!(!others[..index].contains(other), "{other}");
        }
        // The published hash of this text.
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
