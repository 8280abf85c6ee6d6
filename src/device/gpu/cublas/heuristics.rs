//! The algorithms that cuBLASLt proposes for a shape.

use cudarc::cublaslt::sys;

use super::buckets;
use super::descriptors::{Preference, Problem};
use super::library::Library;
use super::product::{Shape, WORKSPACE_BYTES, failed};
use crate::device::DeviceError;

/// Number of algorithms requested at each row count.
const PROPOSALS: usize = 8;

/// The maximum number of algorithms that a trial compares.
const MOST_CANDIDATES: usize = 24;

impl Library {
    /// Returns the algorithms without a split sum that cuBLASLt proposes for products of the first `buckets`
    /// buckets. They are proposed at the timed row counts of each bucket, and listed with all first proposals
    /// before all second ones, after the algorithms `known`.
    pub(super) fn candidates(
        &self,
        shape: Shape,
        bias: u64,
        buckets: usize,
        known: &[sys::cublasLtMatmulAlgo_t],
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, DeviceError> {
        let mut by_rows = Vec::new();
        for rows in (0..buckets).flat_map(buckets::timed_rows) {
            by_rows.push(self.proposals(shape, bias, rows, PROPOSALS, false)?);
        }
        let mut candidates = known.to_vec();
        for rank in 0..PROPOSALS {
            for proposal in by_rows.iter().filter_map(|proposals| proposals.get(rank)) {
                if candidates.len() < MOST_CANDIDATES && !candidates.contains(proposal) {
                    candidates.push(*proposal);
                }
            }
        }
        Ok(candidates)
    }

    /// Returns up to `most` algorithms that cuBLASLt proposes for a row count, the fastest first by its own
    /// estimate.
    pub(super) fn proposals(
        &self,
        shape: Shape,
        bias: u64,
        rows: usize,
        most: usize,
        may_split: bool,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, DeviceError> {
        let problem = Problem::new(shape, rows, bias)?;
        let preference = Preference::new(may_split)?;
        let mut found = vec![no_result(); most];
        let asked = i32::try_from(most).unwrap_or(i32::MAX);
        let mut count = 0;
        // SAFETY: all descriptors are alive, and `found` has room for the requested number of results.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                problem.description.0,
                problem.weight.0,
                problem.x.0,
                problem.out.0,
                problem.out.0,
                preference.0,
                asked,
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
                && found.workspaceSize <= WORKSPACE_BYTES
        };
        Ok(found.iter().filter(works).map(|found| found.algo).collect())
    }

    /// Returns whether an algorithm can compute a product with the available workspace.
    pub(super) fn supports(&self, problem: &Problem, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
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
}

fn no_result() -> sys::cublasLtMatmulHeuristicResult_t {
    // SAFETY: the fields are numbers, and an enumeration with a value 0.
    unsafe { std::mem::zeroed() }
}
