//! Launches of the kernels in `cuda/simt/tests/planted.cu`.

use std::ffi::c_void;

use flexdraft::runtime::{Access, Launch, Region, Runtime, Simt};

/// Returns pseudo-random 32-bit words that are the same in every run.
pub fn counting(len: u32) -> Vec<u32> {
    (0..len).map(|i| i.wrapping_mul(0x9e37_79b9) >> 7).collect()
}

/// The parameters of the planted kernels (`PlantedParams` in C++).
#[repr(C)]
struct Params {
    input: *const u32,
    out: *mut u32,
    counter: *mut u32,
    argument: u32,
}

/// A launch of a kernel with a planted mistake.
pub struct Run {
    pub input: Vec<u32>,
    pub out: Vec<u32>,
    pub counter: Vec<u32>,
    argument: u32,
    ctas: u32,
    threads: u32,
    pub shared_bytes: u32,
}

impl Run {
    pub fn new(input: Vec<u32>, outputs: usize, ctas: u32, threads: u32) -> Self {
        let out = vec![0xdead_beef; outputs];
        Run { input, out, counter: vec![0], argument: 0, ctas, threads, shared_bytes: 16 << 10 }
    }

    pub fn with(mut self, argument: u32) -> Self {
        self.argument = argument;
        self
    }

    /// Runs the launch; the error is the emulator's report.
    pub fn on(&mut self, simt: &Simt, kernel: &'static str) -> Result<(), String> {
        let params = Params {
            input: self.input.as_ptr(),
            out: self.out.as_mut_ptr(),
            counter: self.counter.as_mut_ptr(),
            argument: self.argument,
        };
        let region = |name, memory: &[u32], access| Region {
            name,
            address: memory.as_ptr() as u64,
            bytes: 4 * memory.len() as u64,
            access,
        };
        let regions = [
            region("in", &self.input, Access::Read),
            region("out", &self.out, Access::Write),
            region("counter", &self.counter, Access::Write),
        ];
        let launch = Launch {
            kernel,
            grid: [self.ctas, 1, 1],
            threads: self.threads,
            shared_bytes: self.shared_bytes,
            params: (&raw const params).cast::<c_void>(),
            params_bytes: size_of_val(&params),
            regions: &regions,
        };
        // SAFETY: the pointers lead to vectors of this struct. Planted kernels that leave these vectors run either with
        // checks, which stop them first, or in a process that a sanitizer ends.
        unsafe { simt.launch(&simt.stream(), &launch) }.map_err(|error| error.to_string())
    }
}
