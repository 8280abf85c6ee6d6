//! The recording file: one machine's results for the inputs of all instructions.

use std::collections::BTreeMap;
use std::path::Path;

use flexdraft::runtime::Runtime;
use serde::{Deserialize, Serialize};

use crate::instructions::Instruction;

/// The recorded results of one device.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Recording {
    pub device: String,
    /// The results of each kernel, by its name.
    pub instructions: BTreeMap<String, Vector>,
}

/// The results of one instruction.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Vector {
    /// Hash of the instruction's input words. Every run generates the input anew; the hash prevents a comparison with a
    /// recording of another input.
    pub input_hash: String,
    /// The results as one string per case, with eight hexadecimal digits per 32-bit word.
    pub output: Vec<String>,
}

/// Returns the FNV-1a hash of 32-bit words.
fn hash(words: &[u32]) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    format!("{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325, step))
}

impl Recording {
    /// Runs every instruction on `runtime` and returns the recording.
    pub fn of<R: Runtime>(
        device: &str,
        instructions: &[Instruction],
        runtime: &R,
        stream: &R::Stream,
    ) -> Self {
        let vector = |instruction: &Instruction| {
            let output = instruction.run(runtime, stream).unwrap();
            let case = |words: &[u32]| words.iter().map(|word| format!("{word:08x}")).collect::<String>();
            let output = output.chunks(instruction.words_out).map(case).collect();
            (instruction.kernel.to_owned(), Vector { input_hash: hash(&instruction.input), output })
        };
        Recording { device: device.to_owned(), instructions: instructions.iter().map(vector).collect() }
    }

    pub fn write(&self, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
    }

    pub fn read(path: &Path) -> Self {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Compares `found` with the recorded results of `instruction`.
    pub fn agrees(&self, instruction: &Instruction, found: &[u32]) -> Result<(), String> {
        let kernel = instruction.kernel;
        let vector =
            self.instructions.get(kernel).ok_or_else(|| format!("{kernel} is not in the recording"))?;
        if vector.input_hash != hash(&instruction.input) {
            return Err(format!("{kernel}: the recording is of another input"));
        }
        let word = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).map_err(|error| error.to_string())?;
            u32::from_str_radix(digits, 16).map_err(|error| format!("{kernel}: {error}"))
        };
        let digits = vector.output.iter().flat_map(|case| case.as_bytes().chunks(8));
        instruction.compare(found, &digits.map(word).collect::<Result<Vec<u32>, String>>()?)
    }
}
