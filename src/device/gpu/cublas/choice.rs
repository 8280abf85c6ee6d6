//! Which algorithm multiplies: the fastest of those that give a row the same bits among any others.

use std::sync::{Arc, Mutex};

use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaStream, DriverError};
use half::bf16;

use super::problem::{Preference, Problem};
use super::{CublasLt, Operands, Plan, Shape, WORKSPACE_BYTES, failed, tried};
use crate::backend::{Backend, BackendError, Cuda};
use crate::device::DeviceError;

/// Algorithms that are asked for, at each number of rows.
const CANDIDATES: usize = 16;

/// Rows that they are asked for at besides the most, and timed at: a token decoded alone, and a verification.
const USUAL_ROWS: usize = 16;
const TIMED_ROWS: [usize; 2] = [1, USUAL_ROWS];

/// Launches that are timed, after one that is not.
const TIMED_LAUNCHES: usize = 5;

/// Noise for products of a shape, and memory for their results.
struct Trial<'a> {
    backend: &'a Cuda,
    stream: &'a Arc<CudaStream>,
    shape: Shape,
    operands: Operands,
    x: <Cuda as Backend>::Memory<bf16>,
    out: <Cuda as Backend>::Memory<u8>,
    most: usize,
}

impl Trial<'_> {
    /// Bytes from a row of the results to the next, and those that count.
    fn row_bytes(&self) -> (usize, usize) {
        let element = if self.shape.logits { 4 } else { 2 };
        (self.shape.stride * element, self.shape.out_cols * element)
    }

    /// The operands of a product of rows of noise from `first` on.
    fn operands(&mut self, first: usize) -> Operands {
        let x = self.backend.view(self.stream, &self.x).address();
        let out = self.backend.view_mut(self.stream, &mut self.out).address();
        let x = x + (first * self.shape.in_cols * size_of::<bf16>()) as u64;
        Operands { x, out, ..self.operands }
    }
}

impl CublasLt {
    /// The fastest algorithm that is row-invariant, for products of up to `most` rows.
    pub(super) fn choose(
        &self,
        backend: &Cuda,
        stream: &Arc<CudaStream>,
        shape: Shape,
        operands: Operands,
        most: usize,
    ) -> Result<Plan, DeviceError> {
        let noise = tried::noise(tried::noise_rows(most), shape.in_cols);
        let mut x = backend.allocate::<bf16>(stream, noise.len())?;
        backend.upload(stream, &noise, &mut x, 0)?;
        let row_bytes = shape.stride * if shape.logits { 4 } else { 2 };
        let out = backend.allocate::<u8>(stream, most.max(tried::PERIOD) * row_bytes)?;
        let mut trial = Trial { backend, stream, shape, operands, x, out, most };
        let mut timed = Vec::new();
        for algorithm in self.candidates(shape, operands, most)? {
            let problem = Mutex::new(Problem::new(shape, 1, operands.bias)?);
            let plan = Plan { algorithm, problem };
            // One that fails here is none.
            if let Ok(seconds) = self.time(&mut trial, &plan) {
                timed.push((seconds, plan));
            }
        }
        timed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        for (_, plan) in timed {
            if self.is_row_invariant(&mut trial, &plan)? {
                return Ok(plan);
            }
        }
        Err(BackendError::Driver(format!("cuBLASLt has no row-invariant algorithm for {shape:?}")).into())
    }

    /// What cuBLASLt proposes for the usual and the largest number of rows, and supports at both and at one row.
    fn candidates(
        &self,
        shape: Shape,
        operands: Operands,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, DeviceError> {
        let mut found = self.proposals(shape, operands, USUAL_ROWS)?;
        for other in self.proposals(shape, operands, most)? {
            if !found.contains(&other) {
                found.push(other);
            }
        }
        let mut supported = Vec::new();
        for algorithm in found {
            let mut everywhere = true;
            for rows in [1, USUAL_ROWS, most] {
                everywhere =
                    everywhere && self.supports(&Problem::new(shape, rows, operands.bias)?, &algorithm);
            }
            if everywhere {
                supported.push(algorithm);
            }
        }
        Ok(supported)
    }

    /// What cuBLASLt proposes for a number of rows, without a split sum.
    fn proposals(
        &self,
        shape: Shape,
        operands: Operands,
        rows: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, DeviceError> {
        let problem = Problem::new(shape, rows, operands.bias)?;
        let preference = Preference::new()?;
        let mut found = vec![no_result(); CANDIDATES];
        let mut count = 0;
        // SAFETY: all descriptors are alive, and there is room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                problem.description.0,
                problem.weight.0,
                problem.x.0,
                problem.out.0,
                problem.out.0,
                preference.0,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        status.result().map_err(failed)?;
        found.truncate(usize::try_from(count).unwrap_or_default());
        let works = |found: &&sys::cublasLtMatmulHeuristicResult_t| {
            found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        Ok(found.iter().filter(works).map(|found| found.algo).collect())
    }

    /// Whether an algorithm can do a product with the workspace that there is.
    fn supports(&self, problem: &Problem, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = no_result();
        // SAFETY: all descriptors are alive; the algorithm came from cuBLASLt.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle.0,
                problem.description.0,
                problem.weight.0,
                problem.x.0,
                problem.out.0,
                problem.out.0,
                algorithm,
                &raw mut found,
            )
        };
        status.result().is_ok() && found.workspaceSize <= WORKSPACE_BYTES
    }

    /// Milliseconds of a product of each of [`TIMED_ROWS`].
    fn time(&self, trial: &mut Trial<'_>, plan: &Plan) -> Result<f32, DeviceError> {
        let driver = |error: DriverError| BackendError::Driver(error.to_string());
        let stream = trial.stream;
        let mut sum = 0.0;
        for rows in TIMED_ROWS {
            let operands = trial.operands(0);
            self.run(stream, plan, rows, operands)?;
            let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver)?;
            for _ in 0..TIMED_LAUNCHES {
                self.run(stream, plan, rows, operands)?;
            }
            let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver)?;
            sum += start.elapsed_ms(&end).map_err(driver)? / TIMED_LAUNCHES as f32;
        }
        Ok(sum)
    }

    /// Whether every row of noise has the same bits in all of the products that are tried.
    fn is_row_invariant(&self, trial: &mut Trial<'_>, plan: &Plan) -> Result<bool, DeviceError> {
        let (stride, bytes) = trial.row_bytes();
        let operands = trial.operands(0);
        if self.run(trial.stream, plan, tried::PERIOD, operands).is_err() {
            return Ok(false);
        }
        let mut reference = vec![0; tried::PERIOD * stride];
        trial.backend.download(trial.stream, &trial.out, 0, &mut reference)?;
        for rows in tried::products(trial.most) {
            let operands = trial.operands(rows.start);
            if self.run(trial.stream, plan, rows.len(), operands).is_err() {
                return Ok(false);
            }
            for part in tried::compared(rows.len()) {
                let mut found = vec![0; part.len() * stride];
                trial.backend.download(trial.stream, &trial.out, part.start * stride, &mut found)?;
                let first = rows.start + part.start;
                if !tried::same_rows(&reference, &found, first, (stride, bytes)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn no_result() -> sys::cublasLtMatmulHeuristicResult_t {
    // SAFETY: numbers and an enumeration of which 0 is a value.
    unsafe { std::mem::zeroed() }
}
